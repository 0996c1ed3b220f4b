"""``idem-grpc revoke``, ``resolve`` and ``forget``: what only a person can decide.

Each shows the record that it is about to change, asks, and swaps from exactly the bytes
shown. A record that has moved meanwhile is left alone.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from idem_grpc.cli.facts import as_lines, facts, is_dead, state_of
from idem_grpc.cli.failures import Away, No
from idem_grpc.cli.look import absent
from idem_grpc.cli.places import Place, key_options, look, opened, place_of
from idem_grpc.cli.responses import Given, response_options, responses
from idem_grpc.cli.tables import span
from idem_grpc.judge import BY_HAND, TRANSITIONS
from idem_grpc.keytext import can_be_encoded
from idem_grpc.outcome import Code, Outcome
from idem_grpc.record import LONGEST, Record, State
from idem_grpc.stores.protocol import Store, StoreUnavailable
from idem_grpc.swap import Held, Swap, Swapped
from idem_grpc.verdicts import UNKNOWN_TTL

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
    return record.ttl - record.lease if record.state is State.RUNNING else None


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
