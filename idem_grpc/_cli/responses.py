"""Options for the responses of a resolved call, which are validated against the method's contract."""

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
from idem_grpc._cli.failures import InvalidInput
from idem_grpc._core.messages import copied
from idem_grpc._core.methods import PATTERN, find_method, name_of

F = TypeVar("F", bound=Callable[..., Any])

_HOW_TO_FIND = (
    "give its --contract (a descriptor set, or a folder of protos), or --unchecked to skip the check"
)


_MAY_BE_LISTS = ("google.protobuf.ListValue", "google.protobuf.Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseOptions:
    """The values of the options for responses. False if no response is given."""

    files: tuple[Path, ...]
    jsons: tuple[str, ...]
    contracts: tuple[Path, ...]
    includes: tuple[Path, ...]
    method: str | None
    unchecked: bool

    def __bool__(self) -> bool:
        return bool(self.files or self.jsons)


def response_options(command: F) -> F:
    """Add the options from which ResponseOptions is built."""
    for option in (
        click.option(
            "--unchecked",
            is_flag=True,
            help="Do not check response files: clients fail if these are not the method's responses.",
        ),
        click.option("--method", metavar="NAME", help="The method of the responses.  [default: --operation]"),
        include_option,
        click.option(
            "--contract",
            "contracts",
            multiple=True,
            metavar="DESCRIPTOR_SET",
            type=click.Path(exists=True, path_type=Path),
            help="The method's contract, as for 'lint', to check the response; may be repeated.",
        ),
        click.option(
            "--response-json",
            "jsons",
            multiple=True,
            metavar="JSON",
            help="The response as protobuf JSON; may be repeated, as --response-file.",
        ),
        click.option(
            "--response-file",
            "files",
            multiple=True,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="The response of a call that ended OK: serialized, or JSON if the name ends in .json;"
            " repeat it for each message of a response stream.",
        ),
    ):
        command = option(command)
    return command


def responses(given: ResponseOptions, operation: str | None) -> tuple[bytes, ...]:
    """Return the serialized responses. Raises click.UsageError or InvalidInput if they are invalid."""
    if given.files and given.jsons:
        raise click.UsageError("Give the responses in one way: --response-file, or --response-json.")
    if given.unchecked:
        if given.jsons or any(map(_is_json, given.files)):
            raise click.UsageError("JSON needs the method's contract: do not use it with --unchecked.")
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


def _method(given: ResponseOptions, operation: str | None) -> MethodDescriptor:
    name = given.method or operation
    if name is None or not PATTERN.fullmatch(name):
        raise click.UsageError(
            "Name the response's method: --method /pkg.Service/Method; or use --unchecked."
        )
    if not given.contracts:
        found = find_method(name)
        if found is None:
            raise InvalidInput(f"{name} is not known, so its response cannot be checked: {_HOW_TO_FIND}")
        return found
    declared = methods_of(given.contracts, given.includes)
    if name not in declared:
        raise InvalidInput(
            f"{name} is not in {', '.join(map(str, given.contracts))}: give the --contract that has it"
        )
    return declared[name]


def _parsed(method: MethodDescriptor, data: bytes | str, source: str, is_json: bool) -> bytes:
    kind = GetMessageClass(method.output_type)
    message: Message = kind()
    what = f"{source} is not a {kind.DESCRIPTOR.full_name}, the response of {name_of(method)}"
    try:
        if is_json or isinstance(data, str):
            text = data if isinstance(data, str) else data.decode("utf-8-sig")
            if text.lstrip().startswith("[") and kind.DESCRIPTOR.full_name not in _MAY_BE_LISTS:
                raise ParseError("a list is not a message; give the responses one by one")
            Parse(text, message, descriptor_pool=method.output_type.file.pool)
            data = message.SerializePartialToString()
        else:
            message.MergeFromString(data)
    except (DecodeError, ParseError, UnicodeError) as error:
        hint = "" if is_json else "; the name of a JSON file must end in .json"
        raise InvalidInput(f"{what}: {error}{hint}") from error
    if not message.IsInitialized():
        raise InvalidInput(f"{what}: it lacks a required field")
    if _has_unknown_fields(message):
        raise InvalidInput(f"{what}, or of another version: it has fields that the contract lacks")
    return data


def _has_unknown_fields(message: Message) -> bool:
    known = copied(message)
    known.DiscardUnknownFields()
    return known.ByteSize() != message.ByteSize()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error


def _is_json(file: Path) -> bool:
    return file.suffix.lower() == ".json"
