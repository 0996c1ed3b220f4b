"""Failures between a client and a server, one scene each: the calls to send and the expected result."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import grpc

from examples.checkout.client import Answer
from examples.checkout.shop import LEASE, PRICE, Shop


@dataclass(frozen=True)
class Scene:
    """A scene. ``play`` sends the calls for the scene's own order and returns their answers.

    answers: the expected number of each answer. Answers with an outcome must be identical bytes.
    runs: the expected number of handler runs.
    charged_by: the run that must have made the one charge; None if nothing may be charged.
    """

    title: str
    sent: str
    play: Callable[[Shop, str], list[Answer]]
    answers: Mapping[str, int]
    runs: int = 1
    charged_by: int | None = 1


@dataclass(frozen=True)
class Seen:
    """The result of a scene: the answers that the clients got, and the ledger's entries."""

    answers: Mapping[str, int]
    runs: int
    charged: int
    remarks: list[str]
    faults: list[str]


def run(scene: Scene, shop: Shop, number: int) -> Seen:
    """Play a scene and compare the result with the expected one."""
    order = _order(number)
    faults: list[str] = []
    answers: list[Answer] = []
    try:
        answers = scene.play(shop, order)
    except TimeoutError as error:
        faults.append(str(error))
    finally:
        shop.open_gate(order)
    counts = Counter(map(str, answers))
    if counts != scene.answers:
        faults.append(f"the answers must be: {listing(scene.answers)}")
    outcomes = {(a.body, a.run) for a in answers if a.code is _OK or a.reason == "CARD_DECLINED"}
    if len(outcomes) > 1:
        faults.append(f"duplicates must get the same bytes, and got {len(outcomes)} different answers")
    faults += booked(scene, shop, number)
    runs, payments = shop.ledger.runs(order), shop.ledger.payments(order)
    remarks = []
    if pushbacks := shop.pushbacks(order):
        remarks.append(
            f"{pushbacks} times the answer was IN_PROGRESS, and the call was sent again after its pushback"
        )
    if scene.runs > 1:
        charging = {payment.run for payment in payments}
        for each in runs:
            charged = "charged the card" if each.id in charging else "did not charge the card"
            later = "" if each is runs[0] else f" {each.began - runs[0].began:.1f} s later"
            remarks.append(f"attempt {each.attempt} ran on {each.server}{later} and {charged}")
    in_order = {label: counts[label] for label in (*scene.answers, *counts) if counts[label]}
    return Seen(in_order, len(runs), sum(p.minor_units for p in payments), remarks, faults)


def booked(scene: Scene, shop: Shop, number: int) -> list[str]:
    """Return the faults in the ledger."""
    order = _order(number)
    runs, payments = shop.ledger.runs(order), shop.ledger.payments(order)
    ids = [each.id for each in runs]
    faults = []
    if len(runs) != scene.runs:
        faults.append(f"the handler must run {scene.runs}×, and ran {len(runs)}×")
    elif (attempts := [each.attempt for each in runs]) != list(range(1, len(runs) + 1)):
        faults.append(f"the runs must be numbered from 1, and their attempts were {attempts}")
    elif any(after.began - before.began < LEASE / 2 for before, after in pairwise(runs)):
        faults.append(f"a run must not follow another before its lease of {LEASE} s has run out")
    charges = 0 if scene.charged_by is None else 1
    if [payment.minor_units for payment in payments] != [PRICE] * charges:
        faults.append(f"the card must be charged {charges}×, and was charged {len(payments)}×")
    elif scene.charged_by is not None and [payments[0].run] != ids[scene.charged_by - 1 : scene.charged_by]:
        faults.append(f"run {scene.charged_by} must make the charge, and another did")
    return faults


def listing(answers: Mapping[str, int]) -> str:
    return ", ".join(label if count == 1 else f"{count} {label}" for label, count in answers.items())


def _order(number: int) -> str:
    return f"order-{number}"


_OK = grpc.StatusCode.OK


def _double_click(shop: Shop, order: str) -> list[Answer]:
    return [click.result() for click in [shop.pay(order, 0), shop.pay(order, 1)]]


def _lost_reply(shop: Shop, order: str) -> list[Answer]:
    first = shop.pay(order, card="card-slow-receipt", timeout=4)
    shop.until(lambda: shop.ledger.payments(order), "the card is charged")
    too_late = first.result()
    shop.open_gate(order)
    return [too_late, shop.pay(order, card="card-slow-receipt").result()]


def _crowd(shop: Shop, order: str) -> list[Answer]:
    calls = [shop.pay(order, number % 2, card="card-slow", timeout=15) for number in range(50)]
    shop.until(
        lambda: shop.pushbacks(order) or len(shop.ledger.runs(order)) > 1,
        "a duplicate is refused with a pushback",
    )
    shop.open_gate(order)
    return [call.result() for call in calls]


def _other_amount(shop: Shop, order: str) -> list[Answer]:
    return [shop.pay(order).result(), shop.pay(order, price=2 * PRICE).result()]


def _killed(card: str) -> Callable[[Shop, str], list[Answer]]:
    def play(shop: Shop, order: str) -> list[Answer]:
        first = shop.pay(order, 1, card=card)
        done = shop.ledger.payments if card == "card-slow-receipt" else shop.ledger.runs
        shop.until(lambda: done(order), "the handler runs")
        shop.kill(1)
        shop.open_gate(order)
        return [first.result(), shop.pay(order, 0, card=card).result()]

    return play


def _declined(shop: Shop, order: str) -> list[Answer]:
    return [shop.pay(order, server, card="card-declined").result() for server in (0, 1)]


def _token(shop: Shop, order: str) -> list[Answer]:
    token = shop.show_page()
    return [click.result() for click in [shop.pay(order, server, token=token) for server in (0, 1)]]


SCENES = [
    Scene(
        "Double-click",
        "2 calls at once, one to each server",
        _double_click,
        {"OK": 1, "OK replayed": 1},
    ),
    Scene(
        "Lost reply",
        "deadline passes after the charge; a retry",
        _lost_reply,
        {"DEADLINE_EXCEEDED": 1, "OK replayed": 1},
    ),
    Scene(
        "50 duplicates",
        "50 calls at once, to both servers",
        _crowd,
        {"OK": 1, "OK replayed": 49},
    ),
    Scene(
        "Key used twice",
        "a call; the same key with another amount",
        _other_amount,
        {"OK": 1, "KEY_REUSED": 1},
    ),
    Scene(
        "Crash before the charge",
        "server-2 is killed in mid-call; a retry",
        _killed("card-slow"),
        {"UNAVAILABLE": 1, "OK": 1},
        runs=2,
        charged_by=2,
    ),
    Scene(
        "Crash after the charge",
        "server-2 is killed in mid-call; a retry",
        _killed("card-slow-receipt"),
        {"UNAVAILABLE": 1, "OK": 1},
        runs=2,
        charged_by=1,
    ),
    Scene(
        "Declined card",
        "a call; a retry on the other server",
        _declined,
        {"CARD_DECLINED": 1, "CARD_DECLINED replayed": 1},
        charged_by=None,
    ),
    Scene(
        "Token, double-click",
        "a token with the page; 2 clicks send it",
        _token,
        {"OK": 1, "OK replayed": 1},
    ),
]
