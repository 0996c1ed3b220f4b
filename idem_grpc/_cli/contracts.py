"""``idem-grpc lint`` and ``service-config``: the protection and the retries that contracts declare."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_database import DescriptorDatabase
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from idem_grpc_pb.v1 import options_pb2

from idem_grpc._cli.facts import duration, table
from idem_grpc._cli.failures import CommandFailed, InvalidInput, report_store_errors
from idem_grpc._client import service_config as config
from idem_grpc._core.methods import (
    declared_key_rule,
    declared_rules,
    has_no_side_effects,
    is_idempotent,
    is_infrastructure,
    key_field_names,
    name_of,
    proto_path,
)
from idem_grpc._core.policy import KeyRule, Rules
from idem_grpc._core.record import OnUnclear

_HOW = "make one with 'protoc --include_imports -o FILE …' or 'buf build -o FILE'"

contracts_argument = click.argument(
    "contracts",
    nargs=-1,
    required=True,
    metavar="DESCRIPTOR_SET…",
    type=click.Path(exists=True, allow_dash=True, path_type=Path),
)
include_option = click.option(
    "-I",
    "--include",
    "includes",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="For a folder of protos: another folder with its imports. May be repeated.",
)


def methods_of(contracts: Iterable[Path], includes: Sequence[Path]) -> dict[str, MethodDescriptor]:
    """Return every method of the contracts by its name, in the order of files and services.

    A folder contributes the methods declared in it, without its imports; a descriptor set contributes
    all of its methods. Raises InvalidInput for a path that is not a contract.
    """
    found: dict[str, MethodDescriptor] = {}
    for path in contracts:
        if path.is_dir():
            files = _protos_in(path)
            read = FileDescriptorSet.FromString(_compiled(path, files, includes))
            methods = _methods(path, read, set(files))
        else:
            read = _descriptor_set(path)
            methods = _methods(path, read, {file.name for file in read.file})
        for method in methods:
            found.setdefault(name_of(method), method)
    return found


def _descriptor_set(path: Path) -> FileDescriptorSet:
    if path.suffix == ".proto":
        raise InvalidInput(f"{path} is a source file: give the root folder of its imports, or {_HOW}")
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        read = FileDescriptorSet.FromString(data)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise InvalidInput(f"{path} is not a descriptor set: {_HOW}") from error
    if not read.file or not all(file.name for file in read.file):
        raise InvalidInput(f"{path} is not a descriptor set: {_HOW}")
    return read


def _methods(path: Path, read: FileDescriptorSet, listed: set[str]) -> Iterator[MethodDescriptor]:
    names = {file.name for file in read.file}
    database = DescriptorDatabase()
    for file in read.file:
        if missing := sorted(set(file.dependency) - names):
            raise InvalidInput(f"{path}: {file.name} imports {missing[0]}, which is not in it: {_HOW}")
        database.Add(file)
    pool = DescriptorPool(database)
    for file in read.file:
        if file.name in listed:
            try:
                descriptor = pool.FindFileByName(file.name)
            except (TypeError, KeyError, ValueError) as error:
                raise InvalidInput(f"{path}: {file.name} cannot be used: {error}") from error
            for service in descriptor.services_by_name.values():
                yield from service.methods


def _protos_in(folder: Path) -> list[str]:
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.proto"))
    files = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not files:
        raise InvalidInput(f"there is no .proto file in {folder}")
    return files


def _compiled(folder: Path, files: list[str], includes: Sequence[Path]) -> bytes:
    if find_spec("grpc_tools") is None:
        raise InvalidInput(
            f"to read a folder of protos, pip install grpcio-tools; or give a descriptor set: {_HOW}"
        )
    common = find_spec("google.rpc.status_pb2")  # the package has the protos of google/api and google/rpc
    folders = [folder, *includes, Path(proto_path())]
    if common is not None and common.origin is not None:
        folders.append(Path(common.origin).parents[2])
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "set.binpb")
        compiler = [sys.executable, "-P", "-m", "grpc_tools.protoc", "--include_imports", "-o", str(output)]
        ended = subprocess.run(
            [*compiler, *(f"-I{place}" for place in folders), *files],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise InvalidInput(f"{folder} does not compile:\n{ended.stdout.strip()}")
        return output.read_bytes()


class Class(Enum):
    """The classes of methods, as lint prints them."""

    NO_SIDE_EFFECTS = "no side effects"
    INFRASTRUCTURE = "infrastructure"
    IDEMPOTENT = "idempotent"
    OPTIONAL = "keyed (optional)"
    REQUIRED = "keyed (required)"
    TOKEN = "token"
    FROM_FIELDS = "from fields"
    UNPROTECTED = "unprotected"
    CONTRADICTORY = "contradictory"


_BY_RULE = {
    KeyRule.OPTIONAL: Class.OPTIONAL,
    KeyRule.REQUIRED: Class.REQUIRED,
    KeyRule.TOKEN: Class.TOKEN,
}
_RETRYABLE = {
    Class.NO_SIDE_EFFECTS,
    Class.IDEMPOTENT,
    Class.REQUIRED,
    Class.TOKEN,
    Class.FROM_FIELDS,
}


@dataclass(frozen=True, slots=True)
class Classified:
    """A method with its class. ``rules`` is None if the method takes no key."""

    name: str
    file: str
    group: Class
    rules: Rules | None = None
    fields: tuple[str, ...] = ()
    problem: str = ""

    @property
    def retryable(self) -> bool:
        """Whether the contract alone makes it safe for a client to retry a call.

        False if the key is optional: a call without a key would run twice.
        """
        return self.group in _RETRYABLE


def classify(method: MethodDescriptor) -> Classified:
    """Classify a method by its contract."""
    name, file = name_of(method), method.containing_service.file.name
    reads = has_no_side_effects(method)
    try:
        if reads and method.GetOptions().HasExtension(options_pb2.policy):
            raise ValueError(
                f"{file}: {name} is NO_SIDE_EFFECTS, which needs no key, and also has an (idem.v1.policy):"
                " remove one of the two"
            )
        if reads:
            return Classified(name, file, Class.NO_SIDE_EFFECTS)
        if is_infrastructure(name):
            return Classified(name, file, Class.INFRASTRUCTURE)
        rules, rule = declared_rules(method), declared_key_rule(method)
    except ValueError as error:
        return Classified(name, file, Class.CONTRADICTORY, problem=str(error))
    if fields := key_field_names(method):
        return Classified(name, file, Class.FROM_FIELDS, rules, tuple(fields))
    if rule is not None:
        return Classified(name, file, _BY_RULE[rule], rules)
    return Classified(name, file, Class.IDEMPOTENT if is_idempotent(method) else Class.UNPROTECTED)


@click.command()
@contracts_argument
@include_option
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    metavar="PATTERN",
    help="Methods that may be unprotected, as /pkg.Service/Method or with '*'. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with an object for each method.")
@click.pass_context
def lint(
    context: click.Context,
    contracts: tuple[Path, ...],
    includes: tuple[Path, ...],
    allowed: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show how every method is protected.

    DESCRIPTOR_SET is the output of 'protoc --include_imports -o FILE' or 'buf build -o FILE', '-' for
    standard input, or a folder of protos (which needs grpcio-tools).

    \b
    no side effects   declared NO_SIDE_EFFECTS: needs no protection
    infrastructure    health, reflection and similar services, and the TokenService
    idempotent        declared IDEMPOTENT: safe to send again
    keyed             takes an idempotency-key; required or optional
    token             takes a token of the TokenService
    from fields       its key is computed from fields of the request
    unprotected       its contract declares nothing

    Exit status 1 if a method is unprotected and not allowed to be, or has a contradictory contract, or
    if there is no method at all.
    """
    methods = [classify(method) for method in methods_of(contracts, includes).values()]
    if not methods:  # probably the wrong contract
        raise CommandFailed(f"no method in {', '.join(map(str, contracts))}: give the contract of a service")
    allowed_names = {method.name for method in methods if _is_allowed(method, allowed)}
    if as_json:
        click.echo(json.dumps([_as_json(method, allowed_names) for method in methods], indent=2))
    else:
        _print(methods, allowed_names)
    for problem in [method.problem for method in methods if method.problem]:
        click.echo(f"Contradictory: {problem}", err=True)
    for pattern in allowed:
        if not any(_matches(name, pattern) for name in allowed_names):
            click.echo(f"Note: --allow {pattern} is not needed: it matches no unprotected method", err=True)
    if any(_is_violation(method, allowed_names) for method in methods):
        context.exit(1)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name.removeprefix("/"), pattern.removeprefix("/"))


def _is_allowed(method: Classified, patterns: Sequence[str]) -> bool:
    return method.group is Class.UNPROTECTED and any(_matches(method.name, one) for one in patterns)


def _is_violation(method: Classified, allowed_names: set[str]) -> bool:
    if method.group is Class.UNPROTECTED:
        return method.name not in allowed_names
    return method.group is Class.CONTRADICTORY


def _print(methods: Sequence[Classified], allowed_names: set[str]) -> None:
    rows = [(one.name, one.group.value, _remark(one, one.name in allowed_names)) for one in methods]
    header, *lines = table([("METHOD", "CLASS", "REMARK"), *rows])
    click.secho(header, bold=True)
    for method, line in zip(methods, lines, strict=True):
        click.secho(line, fg="red" if _is_violation(method, allowed_names) else None)
    counts = {group: sum(method.group is group for method in methods) for group in Class}
    found = ", ".join(f"{count} {group.value}" for group, count in counts.items() if count)
    click.echo(f"\n{len(methods)} {'method' if len(methods) == 1 else 'methods'}: {found}.")


def _remark(method: Classified, is_allowed: bool) -> str:
    if method.group is Class.CONTRADICTORY:
        return "see below"
    if method.group is Class.UNPROTECTED:
        return "allowed" if is_allowed else "nothing declares which calls need a key"
    if method.rules is None:
        return ""
    rules = method.rules
    remarks = [f"kept {duration(rules.retention)}"]
    if method.fields:
        remarks.insert(0, f"key: {', '.join(method.fields)}")
    if rules.operation != method.name:
        remarks.append(f"operation {rules.operation}")
    if rules.on_unclear is OnUnclear.FAIL:
        remarks.append("never rerun after an unclear outcome")
    return "; ".join(remarks)


def _as_json(method: Classified, allowed_names: set[str]) -> dict[str, Any]:
    rules = method.rules
    found: dict[str, Any] = {"method": method.name, "file": method.file, "class": method.group.name.lower()}
    if rules is not None:
        found |= {
            "operation": rules.operation,
            "retention_seconds": rules.retention,
            "on_unclear": rules.on_unclear.name,
            "key_fields": list(method.fields),
            "ignored_fields": list(rules.ignore),
        }
    if method.group is Class.UNPROTECTED:
        found["allowed"] = method.name in allowed_names
    if method.problem:
        found["problem"] = method.problem
    return found


@click.command("service-config")
@contracts_argument
@include_option
@click.option(
    "--optional", is_flag=True, help="Include methods with an optional key: every caller must then send one."
)
@click.option("--max-attempts", default=5, show_default=True, help="Of one call; gRPC makes 5 at most.")
@click.option("--initial-backoff", default=0.1, show_default=True, help="In seconds.")
@click.option("--max-backoff", default=5.0, show_default=True, help="In seconds.")
@click.option("--multiplier", default=2.0, show_default=True, help="Of the backoff, after each retry.")
def service_config(
    contracts: tuple[Path, ...],
    includes: tuple[Path, ...],
    optional: bool,
    max_attempts: int,
    initial_backoff: float,
    max_backoff: float,
    multiplier: float,
) -> None:
    """Print the retries that a contract allows.

    The output is a service config (JSON) for a gRPC client in any language. It lists the methods that
    are declared NO_SIDE_EFFECTS or IDEMPOTENT, or whose contract requires a key, unless they have a
    request stream, in which gRPC's own retries can lose messages. If all methods of a service qualify,
    the service is listed instead.
    """
    services: dict[str, list[str]] = {}
    partial: set[str] = set()
    for descriptor in methods_of(contracts, includes).values():
        method = classify(descriptor)
        if method.group is Class.CONTRADICTORY:
            raise CommandFailed(f"the contract is contradictory: {method.problem}")
        service = method.name[1:].partition("/")[0]
        safe = method.retryable or (optional and method.group is Class.OPTIONAL)
        if safe and not descriptor.client_streaming:
            services.setdefault(service, []).append(method.name)
        else:
            partial.add(service)
    names = [
        name
        for service, methods in services.items()
        for name in (methods if service in partial else [service])
    ]
    if not names:  # an empty list would apply to every method of the channel
        raise CommandFailed(
            "no method's contract lets a call be sent again: idem-grpc lint shows what each says"
        )
    with report_store_errors():
        click.echo(
            config.service_config(
                names,
                max_attempts=max_attempts,
                initial_backoff=initial_backoff,
                max_backoff=max_backoff,
                multiplier=multiplier,
            )
        )
