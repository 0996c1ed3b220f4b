"""Eight ways in which one call arrives twice, over real ports: ``make demo``.

Checks the answers and the shop's ledger. Exits with status 0 if every scene held.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from examples.checkout.scenes import SCENES, Scene, Seen, booked, listing, run
from examples.checkout.shop import LEASE, Shop
from idem_grpc import keys


def main() -> int:
    options = parse()
    # Raise an exception, as Ctrl-C does, so that the servers are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="checkout-") as folder:
        store = options.store or f"sqlite:///{folder}/idem.db"
        settings = ["--store", store, "--namespace", f"demo-{keys.unique()}"]
        settings += ["--lease", str(LEASE), "--retention", "60"]
        if options.unprotected:
            settings.append("--unprotected")
        try:
            with Shop(Path(folder), *settings) as shop:
                return play(shop, store.partition(":")[0])
        except RuntimeError as error:
            print(f"FAILED: {error}")
            return 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show how calls that arrive twice take effect once.")
    parser.add_argument("--store", help="URL of a store, such as redis://localhost; default: SQLite")
    parser.add_argument("--unprotected", action="store_true", help="run without the interceptor, which fails")
    return parser.parse_args()


def play(shop: Shop, kind: str) -> int:
    began = time.monotonic()
    print(f"Two servers share one store ({kind}) and one ledger; a silent server is dead after {LEASE} s.")
    print("All calls of a scene carry one idempotency key. The ledger counts the handler's runs.\n")
    print(row(" ", "scene", "what was sent", "runs", "charged", "answers"))
    held = [show(number, scene, run(scene, shop, number)) for number, scene in enumerate(SCENES, 1)]
    statuses = shop.stop()
    late = [fault for number, scene in enumerate(SCENES, 1) for fault in booked(scene, shop, number)]
    if any(statuses):
        print(f"✗ the servers did not stop cleanly: exit statuses {statuses}")
    if late and all(held):
        print(f"✗ after the servers had stopped: {late}")
    seconds = time.monotonic() - began
    if any(statuses) or late or not all(held):
        print(f"\nFAILED: {held.count(False)} of {len(held)} scenes did not hold ({seconds:.1f} s).")
        return 1
    print(f"\nAll {len(held)} scenes held ({seconds:.1f} s).")
    return 0


def show(number: int, scene: Scene, seen: Seen) -> bool:
    """Print a row of the table. Returns whether the scene held."""
    tick = "✗" if seen.faults else "✓"
    charged = f"{seen.charged / 100:.2f} EUR"
    print(row(tick, f"{number} {scene.title}", scene.sent, str(seen.runs), charged, listing(seen.answers)))
    for line in [*seen.remarks, *(f"✗ {fault}" for fault in seen.faults)]:
        print(f"    {line}")
    sys.stdout.flush()
    return not seen.faults


def row(tick: str, scene: str, sent: str, runs: str, charged: str, answers: str) -> str:
    return f"{tick} {scene:<26} {sent:<42} {runs:>4} {charged:>10}   {answers}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
