"""The responses that a person gives for a call, parsed as what its method declares."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from idem_grpc._cli.contracts import include_option, methods_of
from idem_grpc._cli.failures import Wrong
from idem_grpc._core.methods import PATTERN, find_method, name_of

F = TypeVar("F", bound=Callable[..., Any])

_KNOWN_BY = (
    "give its --contract (a descriptor set, or a folder of protos), or --unchecked to take the bytes"
    " as they are"
)


_MAY_BE_LISTS = ("google.protobuf.ListValue", "google.protobuf.Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the options say of the responses."""

    files: tuple[Path, ...]
    jsons: tuple[str, ...]
    contracts: tuple[Path, ...]
    includes: tuple[Path, ...]
    method: str | None
    unchecked: bool

    def __bool__(self) -> bool:
        return bool(self.files or self.jsons)


def response_options(command: F) -> F:
    """Adds the options that make a Given."""
    for option in (
        click.option(
            "--unchecked",
            is_flag=True,
            help="Take response files as they are: clients fail if these are not the method's responses.",
        ),
        click.option("--method", metavar="NAME", help="Whose responses they are.  [default: --operation]"),
        include_option,
        click.option(
            "--contract",
            "contracts",
            multiple=True,
            metavar="DESCRIPTOR_SET",
            type=click.Path(exists=True, path_type=Path),
            help="Where the method is declared, as for 'lint', to check the response; may be given again.",
        ),
        click.option(
            "--response-json",
            "jsons",
            multiple=True,
            metavar="JSON",
            help="The same as protobuf's JSON.",
        ),
        click.option(
            "--response-file",
            "files",
            multiple=True,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="The response, which ends it OK: serialized, or as JSON if the name ends in .json;"
            " again for each message of a response stream.",
        ),
    ):
        command = option(command)
    return command


def responses(given: Given, operation: str | None) -> tuple[bytes, ...]:
    """The serialized responses that end a call OK. Raises click.UsageError or Wrong for what are none."""
    if given.files and given.jsons:
        raise click.UsageError("Give the responses in one way: --response-file, or --response-json.")
    if given.unchecked:
        if given.jsons or any(map(_is_json, given.files)):
            raise click.UsageError("JSON is serialized by the method's contract, so it is never unchecked.")
        if not given.files:
            raise click.UsageError("OK needs a response file (which may be empty).")
        return tuple(map(_read, given.files))
    method = _method(given, operation)
    count = len(given.files) + len(given.jsons)
    if not method.server_streaming and count != 1:
        raise click.UsageError(
            f"{name_of(method)} has one response (which may be empty), and {count} are given."
        )
    files = [_parsed(method, _read(file), str(file), _is_json(file)) for file in given.files]
    texts = [_parsed(method, text, "--response-json", True) for text in given.jsons]
    return (*files, *texts)


def _method(given: Given, operation: str | None) -> MethodDescriptor:
    name = given.method or operation
    if name is None or not PATTERN.fullmatch(name):
        raise click.UsageError("Say whose response it is: --method /pkg.Service/Method; or --unchecked.")
    if not given.contracts:
        found = find_method(name)
        if found is None:
            raise Wrong(f"nothing is known of {name}, so its response cannot be checked: {_KNOWN_BY}")
        return found
    declared = methods_of(given.contracts, given.includes)
    if name not in declared:
        raise Wrong(
            f"{name} is not in {', '.join(map(str, given.contracts))}: give the --contract that has it"
        )
    return declared[name]


def _parsed(method: MethodDescriptor, data: bytes | str, source: str, is_json: bool) -> bytes:
    kind = GetMessageClass(method.output_type)
    message: Message = kind()
    what = f"{source} is no {kind.DESCRIPTOR.full_name}, the response of {name_of(method)}"
    try:
        if is_json or isinstance(data, str):
            text = data if isinstance(data, str) else data.decode("utf-8-sig")
            if text.lstrip().startswith("[") and kind.DESCRIPTOR.full_name not in _MAY_BE_LISTS:
                raise ParseError("a list is no message; give one response after the other")
            Parse(text, message, descriptor_pool=method.output_type.file.pool)
            data = message.SerializePartialToString()
        else:
            message.MergeFromString(data)
    except (DecodeError, ParseError, UnicodeError) as error:
        hint = "" if is_json else "; JSON is taken from a file whose name ends in .json"
        raise Wrong(f"{what}: {error}{hint}") from error
    if not message.IsInitialized():
        raise Wrong(f"{what}: it lacks a required field")
    if _has_unknown_fields(message):
        raise Wrong(f"{what}, or one of another version: it has fields that the contract does not know")
    return data


def _has_unknown_fields(message: Message) -> bool:
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.ByteSize() != message.ByteSize()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Wrong(f"{file} cannot be read: {error.strerror}") from error


def _is_json(file: Path) -> bool:
    return file.suffix.lower() == ".json"
