"""Play the scenes of the page with an HTTP client, and check the results."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import httpx

from examples.fastapi_gateway.launch import Launched
from idem_grpc import keys

PRICE = 1299


@dataclass(frozen=True)
class Answer:
    """An answer as the client sees it. ``status`` is 0 if there was no reply."""

    status: int
    body: str = ""
    code: str = ""
    replayed: bool = False
    retry_after: int | None = None

    def __str__(self) -> str:
        words = [
            str(self.status) if self.status else "no reply",
            self.code,
            "replayed" if self.replayed else "",
        ]
        return " ".join(word for word in words if word)


class Browser:
    """Sends the requests of the page."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=20)

    def pay(
        self,
        order: str,
        *,
        card: str = "card-good",
        price: int = PRICE,
        headers: Mapping[str, str] | None = None,
        lose: bool = False,
    ) -> Answer:
        """Press "Pay". Every press for one order has the same key, unless ``headers`` is given."""
        sent = dict({"Idempotency-Key": f'"pay-{order}"'} if headers is None else headers)
        if lose:
            sent["X-Lose-Reply"] = "true"
        payment = {"order_id": order, "minor_units": price, "card": card}
        try:
            response = self._http.post("/payments", json=payment, headers=sent)
        except httpx.TransportError:
            return Answer(0)
        return Answer(
            response.status_code,
            response.text,
            response.json().get("code", ""),
            response.headers.get("idempotency-replayed") == "true",
            int(response.headers["retry-after"]) if "retry-after" in response.headers else None,
        )

    def books(self, order: str) -> dict[str, int]:
        """Return the ledger's entries for an order."""
        books: dict[str, int] = self._http.get(f"/orders/{order}/books").raise_for_status().json()
        return books

    def close(self) -> None:
        self._http.close()


@dataclass(frozen=True)
class Scene:
    """A scene with the expected answers and charges. Answers with an outcome must be identical."""

    title: str
    play: Callable[[Browser, str], list[Answer]]
    answers: tuple[str, ...]
    charges: int = 1


def _at_once(browser: Browser, order: str) -> list[Answer]:
    with ThreadPoolExecutor(2) as presses:
        return [*presses.map(lambda _: browser.pay(order), range(2))]


def _lost(browser: Browser, order: str) -> list[Answer]:
    return [browser.pay(order, lose=True), browser.pay(order)]


def _slow(browser: Browser, order: str) -> list[Answer]:
    with ThreadPoolExecutor(1) as presses:
        first = presses.submit(browser.pay, order, card="card-slow")
        give_up = time.monotonic() + 10
        while not browser.books(order)["runs"] and time.monotonic() < give_up:
            Event().wait(0.01)
        busy = again = browser.pay(order, card="card-slow")
        while again.retry_after is not None and time.monotonic() < give_up:
            Event().wait(again.retry_after)
            again = browser.pay(order, card="card-slow")
        return [first.result(), busy, again]


def _other_price(browser: Browser, order: str) -> list[Answer]:
    return [browser.pay(order), browser.pay(order, price=2 * PRICE)]


def _no_key(browser: Browser, order: str) -> list[Answer]:
    return [browser.pay(order, headers={}), browser.pay(order, headers={"Idempotency-Key": '""'})]


def _declined(browser: Browser, order: str) -> list[Answer]:
    return [browser.pay(order, card="card-declined") for _ in range(2)]


SCENES = [
    Scene("Double-click", _at_once, ("201", "201 replayed")),
    Scene("Lost reply, press again", _lost, ("no reply", "201 replayed")),
    Scene("Slow bank, press meanwhile", _slow, ("201", "409 IN_PROGRESS", "201 replayed")),
    Scene("Same key, other price", _other_price, ("201", "422 KEY_REUSED")),
    Scene("No key, empty key", _no_key, ("400 KEY_REQUIRED", "400 KEY_INVALID"), charges=0),
    Scene("Declined card", _declined, ("402 CARD_DECLINED", "402 CARD_DECLINED replayed"), charges=0),
]


def faults(scene: Scene, answers: list[Answer], charges: int) -> list[str]:
    """Return the expectations that did not hold."""
    found = []
    if Counter(map(str, answers)) != Counter(scene.answers):
        found.append(f"the answers must be: {', '.join(scene.answers)}")
    if any(answer.status == 409 and answer.retry_after is None for answer in answers):
        found.append("a 409 must have a Retry-After")
    if len({answer.body for answer in answers if answer.status in {201, 402}}) > 1:
        found.append("a replay must equal the first answer, and differed")
    if charges != scene.charges:
        found.append(f"the card must be charged {scene.charges}×, and was charged {charges}×")
    return found


def check() -> int:
    """Play all scenes. Returns the exit status."""
    broken = 0
    with Launched("examples.fastapi_gateway", "--child") as gateway:
        browser = Browser(gateway.address)
        print(f"  {'scene':<27} charged  answers")
        for scene in SCENES:
            order = f"order-{keys.unique()}"
            answers = scene.play(browser, order)
            charges = browser.books(order)["charges"]
            found = faults(scene, answers, charges)
            print(f"{'✗' if found else '✓'} {scene.title:<27} {charges:>6}×  {', '.join(map(str, answers))}")
            for fault in found:
                print(f"    ✗ {fault}")
            sys.stdout.flush()
            broken += bool(found)
        browser.close()
        status = gateway.stop()
    if broken or status:
        print(
            f"\nFAILED: {broken} of {len(SCENES)} scenes did not hold, and the gateway's status was {status}."
        )
        return 1
    print(f"\nAll {len(SCENES)} scenes held.")
    return 0
