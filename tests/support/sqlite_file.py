"""Fixtures for tests of a store on a SQLite file of their own."""

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The path of the file, which does not exist yet."""
    return str(tmp_path / "store.db")


@pytest.fixture
def url(path: str) -> str:
    """The URL of the store on that file."""
    return f"sqlite:///{path}"
