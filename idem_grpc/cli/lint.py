"""``idem-grpc lint``: what every method's contract says of a call that is sent twice."""

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from idem_grpc.cli.classes import Class, Classified, classify
from idem_grpc.cli.contracts import contracts_argument, include_option, methods_of
from idem_grpc.cli.failures import No
from idem_grpc.cli.tables import span, table
from idem_grpc.record import OnUnclear


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
