"""``idem-grpc inspect`` and ``list``: what a store holds. They change nothing."""

import json
import re
from typing import Any

import click

from idem_grpc.cli.facts import as_lines, facts, is_dead, state_of
from idem_grpc.cli.failures import No, Wrong
from idem_grpc.cli.places import Listing, key_options, look, opened, place_of, store_options
from idem_grpc.cli.tables import span, table
from idem_grpc.record import Record, State
from idem_grpc.stores.protocol import Store
from idem_grpc.swap import Held

# A store holds other things too, such as how many tokens a caller had: their names are shaped otherwise.
_RECORD = re.compile(rb"[A-Za-z0-9_-]{32}")
_DEAD = "dead"
_STATES = ("open", "running", _DEAD, "done", "unknown", "unreadable")


@click.command()
@key_options
@click.option("--show-response", is_flag=True, help="Show the answer too: it may be confidential.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def inspect(store_url: str, namespace: str, show_response: bool, as_json: bool, **named: str | None) -> None:
    """Show what became of a call.

    KEY is the idempotency-key as the client sent it; one that begins with '-' goes last, after '--'.
    Exit status 1 if there is nothing.
    """
    place = place_of(store_url, namespace, **named)
    with opened(store_url, namespace) as store:
        held, record = look(store, place.name)
        if record.state is State.ABSENT:
            raise No(absent(store, place.name))
    told = facts(place.name, held, record, show_response=show_response)
    click.echo(json.dumps(told, indent=2) if as_json else "\n".join(as_lines(told)))


def absent(store: Store, name: bytes) -> str:
    """What to say of a key that is not there."""
    is_empty = isinstance(store, Listing) and next(store.scan(), None) is None
    return (
        f"there is nothing under {name.decode(errors='backslashreplace')}: the key was never seen, has"
        " expired or was forgotten; or namespace, operation or scope are not what the server uses"
        f"{f' ({empty(store)})' if is_empty else ''}"
    )


def empty(store: Store) -> str:
    """What to say of a namespace without a single record."""
    return f"the namespace {store.namespace!r} holds nothing at all"


@click.command("list")
@store_options
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(_STATES),
    help="Only these; may be given again. 'dead' are the running whose lease ran out."
    "  [default: running, unknown and unreadable]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, an object for each key.")
def list_records(
    store_url: str, namespace: str, states: tuple[str, ...], limit: int | None, as_json: bool
) -> None:
    """List what runs or hangs.

    It reads the whole namespace, a page at a time, and keeps nobody waiting. Exit status 1 if that
    holds nothing at all.
    """
    wanted = set(states or ("running", "unknown", "unreadable"))
    found: dict[bytes, dict[str, Any]] = {}
    with opened(store_url, namespace) as store:
        if not isinstance(store, Listing):
            raise Wrong(f"{store!r} cannot list what it holds; 'inspect' looks single keys up")
        is_empty = True
        for name, held in store.scan():
            is_empty = False
            record = Record.from_bytes(held.value)
            if _RECORD.fullmatch(name) and wanted & _states_of(held, record):
                found[name] = facts(name, held, record)  # a scan may show a key twice
                if len(found) == limit:
                    break
    if as_json:
        click.echo(json.dumps(list(found.values()), indent=2))
    if is_empty:
        raise No(
            f"{empty(store)}: give --namespace as the servers do, or wait until they have had a keyed call"
        )
    if as_json:
        return
    header = ("KEY", "STATE", "ATTEMPT", "RUN", "SILENT FOR", "EXPIRES IN")
    for line in table([header, *map(_row, found.values())]) if found else ["Nothing in these states."]:
        click.echo(line)


def _states_of(held: Held, record: Record) -> set[str]:
    state = record.state.name.lower()
    return {state, _DEAD} if is_dead(held, record) else {state}


def _row(told: dict[str, Any]) -> tuple[str, ...]:
    silent, ttl = told.get("silent_seconds"), told["ttl_seconds"]
    return (
        told["key"],
        state_of(told),
        str(told.get("attempt", "")),
        told.get("run", ""),
        "" if silent is None else span(silent),
        "never" if ttl is None else span(ttl),
    )
