"""``idem-grpc lint``: what every method's contract says of a call that is sent twice."""

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

from idem_grpc._cli.facts import span, table
from idem_grpc._cli.failures import No, Wrong, sentences
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
    help="For a folder of protos: where else its imports are. May be given again.",
)


def methods_of(contracts: Iterable[Path], includes: Sequence[Path]) -> dict[str, MethodDescriptor]:
    """Every method of the contracts, by its name, in the order of files and services.

    Of a folder, only what is declared in it; of a descriptor set, all that is in it.
    Raises Wrong for what is no contract.
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
        raise Wrong(f"{path} is a source file: give the folder that its imports start from, or {_HOW}")
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        read = FileDescriptorSet.FromString(data)
    except OSError as error:
        raise Wrong(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise Wrong(f"{path} is no descriptor set: {_HOW}") from error
    if not read.file or not all(file.name for file in read.file):
        raise Wrong(f"{path} is no descriptor set: {_HOW}")
    return read


def _methods(path: Path, read: FileDescriptorSet, listed: set[str]) -> Iterator[MethodDescriptor]:
    names = {file.name for file in read.file}
    database = DescriptorDatabase()
    for file in read.file:
        if missing := sorted(set(file.dependency) - names):
            raise Wrong(f"{path}: {file.name} imports {missing[0]}, which is not in it: {_HOW}")
        database.Add(file)
    pool = DescriptorPool(database)
    for file in read.file:
        if file.name in listed:
            try:
                descriptor = pool.FindFileByName(file.name)
            except (TypeError, KeyError, ValueError) as error:
                raise Wrong(f"{path}: {file.name} cannot be used: {error}") from error
            for service in descriptor.services_by_name.values():
                yield from service.methods


def _protos_in(folder: Path) -> list[str]:
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.proto"))
    files = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not files:
        raise Wrong(f"there is no .proto in {folder}")
    return files


def _compiled(folder: Path, files: list[str], includes: Sequence[Path]) -> bytes:
    if find_spec("grpc_tools") is None:
        raise Wrong(f"to read a folder of protos, pip install grpcio-tools; or give a descriptor set: {_HOW}")
    common = find_spec("google.rpc.status_pb2")  # google/api and google/rpc have their protos beside them
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
            raise Wrong(f"{folder} does not compile:\n{ended.stdout.strip()}")
        return output.read_bytes()


class Class(Enum):
    """The classes of methods, as lint shows them."""

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
    """A method with its class; ``rules`` are those of a method that takes keys."""

    name: str
    file: str
    group: Class
    rules: Rules | None = None
    fields: tuple[str, ...] = ()
    problem: str = ""

    @property
    def retryable(self) -> bool:
        """Whether a client that knows no more than the contract may send a call again.

        Not where the key is optional: a call that has none would run twice.
        """
        return self.group in _RETRYABLE


def classify(method: MethodDescriptor) -> Classified:
    """The class of a method, by its contract alone."""
    name, file = name_of(method), method.containing_service.file.name
    reads = has_no_side_effects(method)
    try:
        if reads and method.GetOptions().HasExtension(options_pb2.policy):
            raise ValueError(
                f"{file}: {name} is NO_SIDE_EFFECTS, which needs no key, and has an (idem.v1.policy):"
                " keep one of the two"
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
    help="Methods that may be unprotected, as /pkg.Service/Method or with '*'. May be given again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, an object for each method.")
@click.pass_context
def lint(
    context: click.Context,
    contracts: tuple[Path, ...],
    includes: tuple[Path, ...],
    allowed: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say how every method is protected.

    DESCRIPTOR_SET is what 'protoc --include_imports -o FILE' or 'buf build -o FILE' writes, '-' for
    standard input, or a folder of protos (which needs grpcio-tools).

    \b
    no side effects   declared NO_SIDE_EFFECTS: runs as ever
    infrastructure    health, reflection and the like, and the TokenService
    idempotent        declared IDEMPOTENT: safe to send again as it is
    keyed             takes an idempotency-key; required, or optional
    token             takes a token of the TokenService
    from fields       its key is made of fields of the request
    unprotected       its contract says nothing

    Exit status 1 if a method is unprotected and not allowed to be, or contradicts itself, or if there
    is no method at all.
    """
    methods = [classify(method) for method in methods_of(contracts, includes).values()]
    if not methods:  # most likely another contract was meant
        raise No(f"no method in {', '.join(map(str, contracts))}: give the contract of a service")
    waived = {method.name for method in methods if _is_allowed(method, allowed)}
    if as_json:
        click.echo(json.dumps([_as_json(method, waived) for method in methods], indent=2))
    else:
        _print(methods, waived)
    for problem in [method.problem for method in methods if method.problem]:
        click.echo(f"Contradictory: {problem}", err=True)
    for pattern in allowed:
        if not any(_matches(name, pattern) for name in waived):
            click.echo(f"Note: --allow {pattern} is not needed: it matches no unprotected method", err=True)
    if any(_is_fault(method, waived) for method in methods):
        context.exit(1)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name.removeprefix("/"), pattern.removeprefix("/"))


def _is_allowed(method: Classified, patterns: Sequence[str]) -> bool:
    return method.group is Class.UNPROTECTED and any(_matches(method.name, one) for one in patterns)


def _is_fault(method: Classified, waived: set[str]) -> bool:
    if method.group is Class.UNPROTECTED:
        return method.name not in waived
    return method.group is Class.CONTRADICTORY


def _print(methods: Sequence[Classified], waived: set[str]) -> None:
    rows = [(one.name, one.group.value, _remark(one, one.name in waived)) for one in methods]
    header, *lines = table([("METHOD", "CLASS", "REMARK"), *rows])
    click.secho(header, bold=True)
    for method, line in zip(methods, lines, strict=True):
        click.secho(line, fg="red" if _is_fault(method, waived) else None)
    counts = {group: sum(method.group is group for method in methods) for group in Class}
    found = ", ".join(f"{count} {group.value}" for group, count in counts.items() if count)
    click.echo(f"\n{len(methods)} {'method' if len(methods) == 1 else 'methods'}: {found}.")


def _remark(method: Classified, is_allowed: bool) -> str:
    if method.group is Class.CONTRADICTORY:
        return "see below"
    if method.group is Class.UNPROTECTED:
        return "allowed" if is_allowed else "nothing says which calls need a key"
    if method.rules is None:
        return ""
    rules = method.rules
    said = [f"kept {span(rules.retention)}"]
    if method.fields:
        said.insert(0, f"key: {', '.join(method.fields)}")
    if rules.operation != method.name:
        said.append(f"operation {rules.operation}")
    if rules.on_unclear is OnUnclear.FAIL:
        said.append("never run again after an unclear end")
    return "; ".join(said)


def _as_json(method: Classified, waived: set[str]) -> dict[str, Any]:
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
        found["allowed"] = method.name in waived
    if method.problem:
        found["problem"] = method.problem
    return found


@click.command("service-config")
@contracts_argument
@include_option
@click.option(
    "--optional", is_flag=True, help="Also methods whose key is optional: every caller must then send one."
)
@click.option("--max-attempts", default=5, show_default=True, help="Of one call; gRPC makes 5 at most.")
@click.option("--initial-backoff", default=0.1, show_default=True, help="In seconds.")
@click.option("--max-backoff", default=5.0, show_default=True, help="In seconds.")
@click.option("--multiplier", default=2.0, show_default=True, help="Of the backoff, from retry to retry.")
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

    It is a service config (JSON) for a gRPC client in any language. It has the methods that are
    declared NO_SIDE_EFFECTS or IDEMPOTENT, or whose contract requires a key, unless they have a
    request stream, of which gRPC's own retries can lose messages. A service is named as a whole if
    all its methods are.
    """
    services: dict[str, list[str]] = {}
    partial: set[str] = set()
    for descriptor in methods_of(contracts, includes).values():
        method = classify(descriptor)
        if method.group is Class.CONTRADICTORY:
            raise No(f"the contract contradicts itself: {method.problem}")
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
    if not names:  # which would stand for every method of the channel
        raise No("no method's contract lets a call be sent again: idem-grpc lint shows what each says")
    with sentences():
        click.echo(
            config.service_config(
                names,
                max_attempts=max_attempts,
                initial_backoff=initial_backoff,
                max_backoff=max_backoff,
                multiplier=multiplier,
            )
        )
