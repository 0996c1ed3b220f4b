"""``idem-grpc revoke``, ``resolve`` and ``forget``: what only a person can decide.

Each shows the record that it is about to change, asks, and swaps from exactly the bytes
shown. A record that has moved meanwhile is left alone.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os.path import exists
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import click

from idem_grpc._cli.facts import as_lines, facts, is_dead, span, state_of, table
from idem_grpc._cli.failures import Away, No, Wrong, sentences
from idem_grpc._cli.responses import Given, response_options, responses
from idem_grpc._core import keys
from idem_grpc._core.digest import store_key, token_key
from idem_grpc._core.durations import LONGEST
from idem_grpc._core.judge import BY_HAND, TRANSITIONS, UNKNOWN_TTL
from idem_grpc._core.keys import can_be_encoded
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.record import Record, State
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import open_store
from idem_grpc.stores._protocol import Store, StoreUnavailable
from idem_grpc.stores._sqlite import SqliteStore

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Place:
    """A key in a store. ``store_url`` may hold a password: it is not shown."""

    store_url: str
    namespace: str
    name: bytes

    def __repr__(self) -> str:
        return f"Place({self.name!r})"


@runtime_checkable
class Listing(Protocol):
    """A store that can tell what it holds, which no server needs."""

    def scan(self) -> Iterator[tuple[bytes, Held]]: ...


def store_options(command: F) -> F:
    """Adds --store and --namespace."""
    return click.option(
        "--store",
        "store_url",
        required=True,
        metavar="URL",
        envvar="IDEM_GRPC_STORE",
        show_envvar=True,
        help="As for open_store: sqlite:///path, redis://host/0 and so on.",
    )(
        click.option(
            "--namespace", default="idem", show_default=True, help="As for open_store, on the servers."
        )(command)
    )


def key_options(command: F) -> F:
    """Adds what names one key, beside --store and --namespace."""
    for option in (
        click.argument("key", required=False),
        click.option("--operation", help="With KEY: the policy's operation, by default /pkg.Service/Method."),
        click.option("--scope", help="With KEY: the scope as current().scope shows it; '' for SHARED."),
        click.option("--token", help="A token of the TokenService, in place of KEY."),
        click.option("--raw", metavar="STORE_KEY", help="A key as 'list' shows it, in place of KEY."),
    ):
        command = option(command)
    return store_options(command)


def place_of(
    store_url: str,
    namespace: str,
    *,
    key: str | None,
    operation: str | None,
    scope: str | None,
    token: str | None,
    raw: str | None,
) -> Place:
    """The key that the options name. Raises click.UsageError unless they name exactly one."""
    if sum(one is not None for one in (key, token, raw)) != 1:
        raise click.UsageError("Name one key: KEY with --operation and --scope, or --token, or --raw.")
    if key is None and (operation is not None or scope is not None):
        raise click.UsageError("--operation and --scope go with KEY: a token and a raw key stand alone.")
    for text in (operation, scope, token, raw):
        if text is not None and not can_be_encoded(text):
            raise click.UsageError(f"{text!r} is not UTF-8, and so no name that a server uses.")
    if token is not None:
        return Place(store_url, namespace, token_key(namespace, token))
    if raw is not None:
        return Place(store_url, namespace, raw.removeprefix(f"{namespace}:").encode())
    if operation is None or scope is None:
        raise click.UsageError("KEY needs --operation and --scope (--scope '' where the scope is SHARED).")
    if key is None or not keys.is_valid(key):
        raise click.UsageError("KEY has 1 to 255 characters, of 0x21 to 0x7E.")
    return Place(store_url, namespace, store_key(namespace, operation, scope.encode(), key))


@contextmanager
def opened(store_url: str, namespace: str) -> Iterator[Store]:
    """The store at a URL, whose errors become sentences."""
    with sentences():
        if store_url.startswith("memory:"):
            raise Wrong(
                "a store in memory lives and dies in its server's process: no command can look into it"
            )
        store = open_store(store_url, namespace=namespace)
        if isinstance(store, SqliteStore) and not exists(store.path):
            raise Wrong(f"there is no store in {store.path}")  # it would be made, and be empty
        with store:
            yield store


def look(store: Store, name: bytes) -> tuple[Held, Record]:
    """What a key holds."""
    held = store.read(name)
    return held, Record.from_bytes(held.value)


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


_DAY = 24 * 3600.0
_SHORTEST = 0.001


def _number(_: click.Context, parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("give a number", param=parameter)
    return value


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command()
@key_options
@yes_option
def revoke(store_url: str, namespace: str, yes: bool, **named: str | None) -> None:
    """Delete an unused token.

    A call that bears it is then refused. Exit status 1 if it is in use, was used, or is no token.
    """
    place = place_of(store_url, namespace, **named)
    with opened(store_url, namespace) as store:
        held, record = _found(store, place)
        if record.state is State.UNREADABLE:
            raise No("nobody can read this record, so it may be in use; 'forget' drops it")
        if record.binding is None:
            raise No("this is no token, but a client's own key; 'forget' drops that")
        if record.state is not State.OPEN or record.fingerprint is not None:
            raise No(f"the token is in use, or was used ({record.state.name}): it stays as it is")
        swap = Swap(place.name, held.value, None, _SHORTEST)
        _change(store, swap, held, "Delete this token? Calls that bear it are then refused.", yes)
        click.echo("Revoked.")


@click.command()
@key_options
@click.option("--rerun", is_flag=True, help="It had no effect: the next duplicate runs it again.")
@click.option(
    "--outcome-code",
    "code",
    type=click.Choice([code.name for code in Code], case_sensitive=False),
    help="It ended so: every duplicate gets this status. OK needs the response.",
)
@click.option("--details", default="", help="The status message that goes with the code.")
@response_options
@click.option(
    "--retention",
    type=click.FloatRange(min=_SHORTEST, max=LONGEST),
    callback=_number,
    default=_DAY,
    show_default=True,
    help="How long that answer is kept, in seconds.",
)
@yes_option
def resolve(
    store_url: str,
    namespace: str,
    rerun: bool,
    code: str | None,
    details: str,
    files: tuple[Path, ...],
    jsons: tuple[str, ...],
    contracts: tuple[Path, ...],
    includes: tuple[Path, ...],
    method: str | None,
    unchecked: bool,
    retention: float,
    yes: bool,
    **named: str | None,
) -> None:
    """Settle an unclear outcome.

    Find out first whether the call had an effect. It takes UNKNOWN, RUNNING whose lease ran out, and an
    outcome that was given by this command before. Exit status 1 for any other state.
    """
    given = Given(
        files=files, jsons=jsons, contracts=contracts, includes=includes, method=method, unchecked=unchecked
    )
    place = place_of(store_url, namespace, **named)
    outcome = None if rerun and code is None and not given else _outcome(rerun, code, details, given, named)
    with opened(store_url, namespace) as store:
        held, record = _found(store, place)
        _require_unsettled(held, record)
        if outcome is None:
            after = replace(record, state=State.OPEN, outcome=None, by_hand=False)
            ttl = max(min(held.ttl_left, UNKNOWN_TTL), _SHORTEST)
            question = "Let the next duplicate run it again?"
        else:
            after = replace(record, state=State.DONE, outcome=outcome, by_hand=True)
            ttl, size = retention, sum(map(len, outcome.messages))
            what = f"OK and {size} bytes" if outcome.code is Code.OK else outcome.code.name
            question = f"Answer every duplicate with {what}, for {span(retention)}?"
        if record.by_hand:
            question = f"Duplicates may have had the answer that was given before. {question}"
        swap = Swap(place.name, held.value, after.to_bytes(), ttl, _max_left(record))
        _change(store, swap, held, question, yes)
        click.echo("Resolved: it may run again." if outcome is None else f"Resolved: {outcome.code.name}.")


@click.command()
@key_options
@click.option("--force", is_flag=True, help="Also while it runs: a duplicate then runs beside it.")
@yes_option
def forget(store_url: str, namespace: str, force: bool, yes: bool, **named: str | None) -> None:
    """Drop a record.

    A duplicate of a call with a client's own key then runs again; one with a token is refused.
    """
    place = place_of(store_url, namespace, **named)
    with opened(store_url, namespace) as store:
        held, record = _found(store, place)
        if record.state is State.RUNNING and not is_dead(held, record) and not force:
            raise No("it runs, and its owner lives: wait for its end, or say --force")
        what_then = "is refused" if record.binding is not None else "runs again"
        swap = Swap(place.name, held.value, None, _SHORTEST, None if force else _max_left(record))
        _change(store, swap, held, f"Drop this record? A duplicate then {what_then}.", yes)
        click.echo("Forgotten.")


def _outcome(
    rerun: bool, code: str | None, details: str, given: Given, named: Mapping[str, str | None]
) -> Outcome:
    if rerun or (code is None and not given):
        raise click.UsageError(
            "Say how to settle it: --rerun, or --outcome-code, or --response-file, or --response-json."
        )
    if not can_be_encoded(details):
        raise click.UsageError("--details is no text in UTF-8.")
    ended = Code[code.upper()] if code is not None else Code.OK
    if ended is Code.OK:
        return Outcome(ended, details, messages=responses(given, named["operation"]))
    if given:
        raise click.UsageError("A response goes with OK, and with no other code.")
    return Outcome(ended, details)


def _require_unsettled(held: Held, record: Record) -> None:
    """Raises No unless a person may settle it: if its end is unclear, or if a person settled it before."""
    if record.state is State.UNKNOWN or is_dead(held, record):
        assert {State.OPEN, State.DONE} <= set(TRANSITIONS[record.state])
        return
    if record.by_hand:
        assert {State.OPEN, State.DONE} <= set(BY_HAND[record.state])
        return
    if record.state is State.RUNNING:
        raise No("it runs, and its owner lives: wait for its end")
    if record.state is State.UNREADABLE:
        raise No("nobody can read this record, so it cannot be settled; 'forget' drops it")
    whose = " by a run, whose outcome stays as it is" if record.state is State.DONE else ""
    raise No(f"there is nothing to settle: it is {record.state.name}{whose}")


def _max_left(record: Record) -> float | None:
    """Of a run whose lease ran out: an owner that renews it meanwhile lives, in the very same bytes."""
    return record.max_left_of_dead if record.state is State.RUNNING else None


def _found(store: Store, place: Place) -> tuple[Held, Record]:
    held, record = look(store, place.name)
    if record.state is State.ABSENT:
        raise No(absent(store, place.name))
    return held, record


def _change(store: Store, swap: Swap, held: Held, question: str, yes: bool) -> None:
    """Show what was found, ask, and swap. Raises No if the answer is no, or the record has moved."""
    click.echo("\n".join(as_lines(facts(swap.key, held, Record.from_bytes(held.value)))))
    if not yes:
        try:
            click.confirm(f"\n{question}", abort=True)
        except click.Abort:
            click.echo(err=True)  # the question stands on this line when there is nobody to answer
            raise No("nothing was changed") from None
    try:
        seen = store.swap(swap)
    except StoreUnavailable as error:
        raise Away(f"the store did not answer, so it may be changed or not: {error}") from error
    if not isinstance(seen, Swapped):
        record = Record.from_bytes(seen.value)
        now = "gone" if record.state is State.ABSENT else state_of(facts(swap.key, seen, record))
        raise No(f"the record has moved meanwhile, and is now {now}: nothing was changed; look again")
