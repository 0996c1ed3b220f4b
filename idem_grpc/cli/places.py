"""Which store, and which key in it: the options that the commands on stores share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import exists
from typing import Any, Protocol, TypeVar, runtime_checkable

import click

from idem_grpc import keys
from idem_grpc.cli.failures import Wrong, sentences
from idem_grpc.digest import store_key, token_key
from idem_grpc.keytext import can_be_encoded
from idem_grpc.record import Record
from idem_grpc.stores import open_store
from idem_grpc.stores.protocol import Store
from idem_grpc.stores.sqlite import SqliteStore
from idem_grpc.swap import Held

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
