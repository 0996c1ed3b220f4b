"""A process that counts up in a store, and prints each number once it is acknowledged."""

import sys
from uuid import uuid4

from idem_grpc._core.swap import Swap, Swapped
from idem_grpc.stores import open_store
from idem_grpc.stores._contract import TTL


def count(store, key):
    value = store.read(key).value
    return int(value.split()[0]) if value else 0


def main(url, key, rounds):
    with open_store(url) as store:
        for _ in range(rounds):
            while True:
                held = store.read(key).value
                number = int(held.split()[0]) + 1 if held else 1
                mine = b"%d %s" % (number, uuid4().bytes.hex().encode())
                if isinstance(store.swap(Swap(key, held, mine, TTL)), Swapped):
                    break
            print(number, flush=True)  # noqa: T201 -- read by the test that started this process


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]))
