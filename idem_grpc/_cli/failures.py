"""How the command ends when it does not succeed: a sentence on stderr, and a status for scripts."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from idem_grpc.stores._protocol import StoreError, StoreUnavailable


class No(click.ClickException):
    """The command did its work, and the answer is no: a finding, nothing there, or moved meanwhile."""

    exit_code = 1


class Wrong(click.ClickException):
    """What the command was given cannot be used. click's own usage errors have the same status."""

    exit_code = 2


class Away(click.ClickException):
    """The store did not answer."""

    exit_code = 3


@contextmanager
def sentences() -> Iterator[None]:
    """Make a sentence and a status of whatever a store says."""
    try:
        yield
    except StoreUnavailable as error:
        raise Away(f"the store did not answer: {error}") from error
    except (StoreError, ValueError) as error:
        raise Wrong(str(error)) from error
