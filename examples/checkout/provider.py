"""A stand-in for the company that moves the money, with test cards as such companies offer them.

    card-declined       is declined
    card-slow           is charged once the gate of its order is open
    card-slow-receipt   is charged at once, and the receipt goes out once the gate is open

Every other card is good. A gate is a file named for the order; whoever runs the service for a
demonstration decides so when the provider answers, and nobody has to guess how long to sleep.
"""

import threading
import time
from pathlib import Path


class Declined(Exception):
    """The card's bank said no."""


class Provider:
    """Without ``gates``, a folder, no card is slow."""

    def __init__(self, gates: Path | None = None, patience: float = 30.0) -> None:
        self._gates = gates
        self._patience = patience

    def authorize(self, order_id: str, card: str) -> None:
        """Ask the card's bank. Raises Declined."""
        if card == "card-declined":
            raise Declined(f"the card of order {order_id} was declined")
        if card == "card-slow":
            self._wait_for_gate(order_id)

    def send_receipt(self, order_id: str, card: str) -> None:
        """Tell the customer."""
        if card == "card-slow-receipt":
            self._wait_for_gate(order_id)

    def _wait_for_gate(self, order_id: str) -> None:
        if self._gates is None:
            return
        gate = self._gates / order_id
        give_up = time.monotonic() + self._patience
        while not gate.exists():
            if time.monotonic() > give_up:
                raise TimeoutError(f"the provider did not answer for order {order_id}")
            threading.Event().wait(0.01)
