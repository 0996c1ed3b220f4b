"""Arrows run one way: edges import the core, and the core imports no edge."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "idem_grpc"

# The modules at the top that are edges all the same; every folder is one.
EDGES = {"__init__", "testing"}
CORE = {path.stem for path in PACKAGE.glob("*.py")} - EDGES


def imports(source: str) -> set[str]:
    """All that ``source`` imports, wherever in it: `from a import b` may mean a module a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_edge(name: str) -> bool:
    top, _, rest = name.partition(".")
    if top == "idem_grpc":
        return rest.partition(".")[0] not in CORE
    return top in {"grpc", "grpc_status", "redis", "valkey"}


def test_the_check_sees_every_way_to_import():
    source = "import grpc.aio\ndef f():\n  from redis import Redis\n  from idem_grpc import stores, swap"
    assert {name for name in imports(source) if is_edge(name)} == {
        "grpc.aio",
        "redis.Redis",
        "idem_grpc.stores",
    }


@pytest.mark.parametrize("module", sorted(CORE))
def test_core_imports_no_edge(module):
    source = (PACKAGE / f"{module}.py").read_text()
    assert not [name for name in imports(source) if is_edge(name)]


def test_redis_is_not_loaded_by_those_who_do_not_use_it():
    script = "import sys, idem_grpc; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
