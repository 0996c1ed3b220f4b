"""A stand-in for a payment provider, with test cards.

    card-declined       is declined
    card-slow           is charged once the gate of its order is open
    card-slow-receipt   is charged at once, and the receipt is sent once the gate is open

All other cards are accepted. A gate is a file named after the order. The demonstration creates it to let the
provider answer, so no code has to guess how long to sleep.
"""

import threading
import time
from pathlib import Path


class Declined(Exception):
    """The bank declined the card."""


class Provider:
    """``gates`` is the folder of the gates. Without it, no card is slow."""

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
        """Send the customer a receipt."""
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
