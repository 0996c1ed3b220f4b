"""``idem-grpc inspect``, ``list``, ``revoke``, ``resolve`` and ``forget``.

The last three show the record that they are about to change, ask for confirmation, and swap from
exactly the bytes shown. A record that has changed meanwhile is left unchanged.
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

from idem_grpc._cli.facts import as_lines, describe, duration, is_dead, state_of, table
from idem_grpc._cli.failures import CommandFailed, InvalidInput, StoreSilent, report_store_errors
from idem_grpc._cli.responses import ResponseOptions, response_options, responses
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
class KeyLocation:
    """A key in a store. The repr omits ``store_url``, which may hold a password."""

    store_url: str
    namespace: str
    name: bytes

    def __repr__(self) -> str:
        return f"KeyLocation({self.name!r})"


@runtime_checkable
class Scannable(Protocol):
    """A store that can list its keys, which the server does not need."""

    def scan(self) -> Iterator[tuple[bytes, Held]]: ...


def store_options(command: F) -> F:
    """Add the options --store and --namespace."""
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
    """Add the options that select one key, and --store and --namespace."""
    for option in (
        click.argument("key", required=False),
        click.option("--operation", help="With KEY: the policy's operation, by default /pkg.Service/Method."),
        click.option("--scope", help="With KEY: the scope, as in current().scope; '' for SHARED."),
        click.option("--token", help="A token of the TokenService, instead of KEY."),
        click.option("--raw", metavar="STORE_KEY", help="A key as printed by 'list', instead of KEY."),
    ):
        command = option(command)
    return store_options(command)


def locate(
    store_url: str,
    namespace: str,
    *,
    key: str | None,
    operation: str | None,
    scope: str | None,
    token: str | None,
    raw: str | None,
) -> KeyLocation:
    """Return the key that the options select. Raises click.UsageError unless they select exactly one."""
    if sum(one is not None for one in (key, token, raw)) != 1:
        raise click.UsageError("Name one key: KEY with --operation and --scope, or --token, or --raw.")
    if key is None and (operation is not None or scope is not None):
        raise click.UsageError("--operation and --scope need KEY: omit them with --token or --raw.")
    for text in (operation, scope, token, raw):
        if text is not None and not can_be_encoded(text):
            raise click.UsageError(f"{text!r} is not valid UTF-8, so no server uses it as a name.")
    if token is not None:
        return KeyLocation(store_url, namespace, token_key(namespace, token))
    if raw is not None:
        return KeyLocation(store_url, namespace, raw.removeprefix(f"{namespace}:").encode())
    if operation is None or scope is None:
        raise click.UsageError("KEY needs --operation and --scope (--scope '' where the scope is SHARED).")
    if key is None or not keys.is_valid(key):
        raise click.UsageError("KEY must have 1 to 255 characters from 0x21 to 0x7E.")
    return KeyLocation(store_url, namespace, store_key(namespace, operation, scope.encode(), key))


@contextmanager
def opened(store_url: str, namespace: str) -> Iterator[Store]:
    """Open the store at a URL, and convert its errors to errors of the command."""
    with report_store_errors():
        if store_url.startswith("memory:"):
            raise InvalidInput(
                "a memory store exists only in its server's process: this command cannot read it"
            )
        store = open_store(store_url, namespace=namespace)
        if isinstance(store, SqliteStore) and not exists(store.path):
            raise InvalidInput(f"there is no store in {store.path}")  # do not create an empty one
        with store:
            yield store


def look(store: Store, name: bytes) -> tuple[Held, Record]:
    """Read a key, and return the store's value and its record."""
    held = store.read(name)
    return held, Record.from_bytes(held.value)


# Other entries of a store, such as the counts of issued tokens, have keys of another form.
_RECORD = re.compile(rb"[A-Za-z0-9_-]{32}")
_DEAD = "dead"
_STATES = ("open", "running", _DEAD, "done", "unknown", "unreadable")


@click.command()
@key_options
@click.option("--show-response", is_flag=True, help="Also show the response, which may be confidential.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def inspect(
    store_url: str, namespace: str, show_response: bool, as_json: bool, **selectors: str | None
) -> None:
    """Show the record of a call.

    KEY is the idempotency-key as the client sent it; a key that starts with '-' goes last, after '--'.
    Exit status 1 if there is no record.
    """
    location = locate(store_url, namespace, **selectors)
    with opened(store_url, namespace) as store:
        held, record = look(store, location.name)
        if record.state is State.ABSENT:
            raise CommandFailed(absent(store, location.name))
    info = describe(location.name, held, record, show_response=show_response)
    click.echo(json.dumps(info, indent=2) if as_json else "\n".join(as_lines(info)))


def absent(store: Store, name: bytes) -> str:
    """Return the error message for an absent key."""
    is_empty = isinstance(store, Scannable) and next(store.scan(), None) is None
    return (
        f"there is no record under {name.decode(errors='backslashreplace')}: the key was never used, has"
        " expired or was dropped, or the namespace, operation or scope differs from the server's"
        f"{f' ({empty(store)})' if is_empty else ''}"
    )


def empty(store: Store) -> str:
    """Return the error message for a namespace without any record."""
    return f"the namespace {store.namespace!r} is empty"


@click.command("list")
@store_options
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(_STATES),
    help="Only records in this state; may be repeated. 'dead': running with an expired lease."
    "  [default: running, unknown and unreadable]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this number of records.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with an object for each key.")
def list_records(
    store_url: str, namespace: str, states: tuple[str, ...], limit: int | None, as_json: bool
) -> None:
    """List running, unclear and unreadable records.

    It reads the whole namespace, a page at a time, without blocking servers. Exit status 1 if the
    namespace is empty.
    """
    wanted = set(states or ("running", "unknown", "unreadable"))
    found: dict[bytes, dict[str, Any]] = {}
    with opened(store_url, namespace) as store:
        if not isinstance(store, Scannable):
            raise InvalidInput(f"{store!r} cannot list its keys; use 'inspect' for a single key")
        is_empty = True
        for name, held in store.scan():
            is_empty = False
            record = Record.from_bytes(held.value)
            if _RECORD.fullmatch(name) and wanted & _states_of(held, record):
                found[name] = describe(name, held, record)  # a scan may show a key twice
                if len(found) == limit:
                    break
    if as_json:
        click.echo(json.dumps(list(found.values()), indent=2))
    if is_empty:
        raise CommandFailed(
            f"{empty(store)}: give the --namespace of the servers, or wait until they have had a keyed call"
        )
    if as_json:
        return
    header = ("KEY", "STATE", "ATTEMPT", "RUN", "SILENT FOR", "EXPIRES IN")
    for line in table([header, *map(_row, found.values())]) if found else ["No records in these states."]:
        click.echo(line)


def _states_of(held: Held, record: Record) -> set[str]:
    state = record.state.name.lower()
    return {state, _DEAD} if is_dead(held, record) else {state}


def _row(info: dict[str, Any]) -> tuple[str, ...]:
    silent, ttl = info.get("silent_seconds"), info["ttl_seconds"]
    return (
        info["key"],
        state_of(info),
        str(info.get("attempt", "")),
        info.get("run", ""),
        "" if silent is None else duration(silent),
        "never" if ttl is None else duration(ttl),
    )


_DAY = 24 * 3600.0
_MIN_SECONDS = 0.001


def _number(_: click.Context, parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("give a number", param=parameter)
    return value


yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


@click.command()
@key_options
@yes_option
def revoke(store_url: str, namespace: str, yes: bool, **selectors: str | None) -> None:
    """Delete an unused token.

    Calls with this token are then refused. Exit status 1 if it is in use, was used, or is not a token.
    """
    location = locate(store_url, namespace, **selectors)
    with opened(store_url, namespace) as store:
        held, record = _existing(store, location)
        if record.state is State.UNREADABLE:
            raise CommandFailed("the record is unreadable, so it may be in use; 'forget' drops it")
        if record.binding is None:
            raise CommandFailed("this is not a token, but a client's own key; 'forget' drops it")
        if record.state is not State.OPEN or record.fingerprint is not None:
            raise CommandFailed(f"the token is in use or was used ({record.state.name}): it was not changed")
        swap = Swap(location.name, held.value, None, _MIN_SECONDS)
        _change(store, swap, held, "Delete this token? Calls with it are then refused.", yes)
        click.echo("Revoked.")


@click.command()
@key_options
@click.option("--rerun", is_flag=True, help="The call had no effect: the next duplicate runs it again.")
@click.option(
    "--outcome-code",
    "code",
    type=click.Choice([code.name for code in Code], case_sensitive=False),
    help="The call ended with this status, which every duplicate gets. OK needs the response.",
)
@click.option("--details", default="", help="The status message for the code.")
@response_options
@click.option(
    "--retention",
    type=click.FloatRange(min=_MIN_SECONDS, max=LONGEST),
    callback=_number,
    default=_DAY,
    show_default=True,
    help="How long the outcome is kept, in seconds.",
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
    **selectors: str | None,
) -> None:
    """Resolve an unclear outcome.

    First find out whether the call had an effect. The record must be UNKNOWN, RUNNING with an expired
    lease, or DONE with an outcome that this command wrote before. Exit status 1 for any other state.
    """
    given = ResponseOptions(
        files=files, jsons=jsons, contracts=contracts, includes=includes, method=method, unchecked=unchecked
    )
    location = locate(store_url, namespace, **selectors)
    outcome = (
        None if rerun and code is None and not given else _outcome(rerun, code, details, given, selectors)
    )
    with opened(store_url, namespace) as store:
        held, record = _existing(store, location)
        _require_unsettled(held, record)
        if outcome is None:
            after = replace(record, state=State.OPEN, outcome=None, by_hand=False)
            ttl = max(min(held.ttl_left, UNKNOWN_TTL), _MIN_SECONDS)
            question = "Let the next duplicate run it again?"
        else:
            after = replace(record, state=State.DONE, outcome=outcome, by_hand=True)
            ttl, size = retention, sum(map(len, outcome.messages))
            what = f"OK and {size} bytes" if outcome.code is Code.OK else outcome.code.name
            question = f"Answer every duplicate with {what}, for {duration(retention)}?"
        if record.by_hand:
            question = f"Duplicates may already have received the previous outcome. {question}"
        swap = Swap(location.name, held.value, after.to_bytes(), ttl, _max_left(record))
        _change(store, swap, held, question, yes)
        click.echo("Resolved: it may run again." if outcome is None else f"Resolved: {outcome.code.name}.")


@click.command()
@key_options
@click.option("--force", is_flag=True, help="Even while the call runs: a duplicate may then run in parallel.")
@yes_option
def forget(store_url: str, namespace: str, force: bool, yes: bool, **selectors: str | None) -> None:
    """Drop a record.

    A duplicate with a client's own key then runs again; a duplicate with a token is refused.
    """
    location = locate(store_url, namespace, **selectors)
    with opened(store_url, namespace) as store:
        held, record = _existing(store, location)
        if record.state is State.RUNNING and not is_dead(held, record) and not force:
            raise CommandFailed("the call is running, and its lease is valid: wait for its end, or --force")
        effect = "is refused" if record.binding is not None else "runs again"
        swap = Swap(location.name, held.value, None, _MIN_SECONDS, None if force else _max_left(record))
        _change(store, swap, held, f"Drop this record? A duplicate then {effect}.", yes)
        click.echo("Forgotten.")


def _outcome(
    rerun: bool,
    code: str | None,
    details: str,
    given: ResponseOptions,
    selectors: Mapping[str, str | None],
) -> Outcome:
    if rerun or (code is None and not given):
        raise click.UsageError(
            "Choose how to resolve it: --rerun, --outcome-code, --response-file or --response-json."
        )
    if not can_be_encoded(details):
        raise click.UsageError("--details is not valid UTF-8.")
    ended = Code[code.upper()] if code is not None else Code.OK
    if ended is Code.OK:
        return Outcome(ended, details, messages=responses(given, selectors["operation"]))
    if given:
        raise click.UsageError("Only OK takes a response: omit the response, or use --outcome-code OK.")
    return Outcome(ended, details)


def _require_unsettled(held: Held, record: Record) -> None:
    """Raise CommandFailed unless the outcome is unclear, or was resolved by this command before."""
    if record.state is State.UNKNOWN or is_dead(held, record):
        assert {State.OPEN, State.DONE} <= set(TRANSITIONS[record.state])
        return
    if record.by_hand:
        assert {State.OPEN, State.DONE} <= set(BY_HAND[record.state])
        return
    if record.state is State.RUNNING:
        raise CommandFailed("the call is running, and its lease is valid: wait for its end")
    if record.state is State.UNREADABLE:
        raise CommandFailed("the record is unreadable and cannot be resolved; 'forget' drops it")
    whose = " by a run, whose outcome cannot be replaced" if record.state is State.DONE else ""
    raise CommandFailed(f"there is nothing to resolve: the record is {record.state.name}{whose}")


def _max_left(record: Record) -> float | None:
    """Return the max_left for a swap of a run with an expired lease; None for other states.

    A renewal leaves the bytes of the record unchanged, and only ``max_left`` detects it.
    """
    return record.max_left_of_dead if record.state is State.RUNNING else None


def _existing(store: Store, location: KeyLocation) -> tuple[Held, Record]:
    held, record = look(store, location.name)
    if record.state is State.ABSENT:
        raise CommandFailed(absent(store, location.name))
    return held, record


def _change(store: Store, swap: Swap, held: Held, question: str, yes: bool) -> None:
    """Show the record, ask, and swap. Raises CommandFailed on a "no", or if the record has changed."""
    click.echo("\n".join(as_lines(describe(swap.key, held, Record.from_bytes(held.value)))))
    if not yes:
        try:
            click.confirm(f"\n{question}", abort=True)
        except click.Abort:
            click.echo(err=True)  # without a terminal, the question is on this line
            raise CommandFailed("nothing was changed") from None
    try:
        seen = store.swap(swap)
    except StoreUnavailable as error:
        raise StoreSilent(f"the store did not answer, so the change may have been made: {error}") from error
    if not isinstance(seen, Swapped):
        record = Record.from_bytes(seen.value)
        now = "gone" if record.state is State.ABSENT else state_of(describe(swap.key, seen, record))
        raise CommandFailed(
            f"the record has changed meanwhile, and is now {now}: nothing was written; inspect it again"
        )
