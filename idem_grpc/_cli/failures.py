"""Errors of the command. Each prints a message on stderr and has an exit status for scripts."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from idem_grpc.stores._protocol import StoreError, StoreUnavailable


class CommandFailed(click.ClickException):
    """A negative result: a finding, an absent key, a state that does not allow the change, or a lost race."""

    exit_code = 1


class InvalidInput(click.ClickException):
    """Input that the command cannot use. click's own usage errors have the same status."""

    exit_code = 2


class StoreSilent(click.ClickException):
    """A store that did not answer."""

    exit_code = 3


@contextmanager
def report_store_errors() -> Iterator[None]:
    """Convert errors of a store, and ValueError, to errors of the command."""
    try:
        yield
    except StoreUnavailable as error:
        raise StoreSilent(f"the store did not answer: {error}") from error
    except (StoreError, ValueError) as error:
        raise InvalidInput(str(error)) from error
