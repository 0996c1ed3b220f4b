"""Imports run one way: from the edges to the core."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "idem_grpc"

# What each part of the package may import of the others. docs/architecture.md explains it.
ALLOWED = {
    "_core": set(),
    "keys": {"_core"},
    "updates": {"_core"},
    "stores": {"_core"},
    "testing": {"_core", "stores"},
    "_client": {"_core"},
    "_server": {"_core", "stores", "updates"},
    "_tokens": {"_core", "_server", "stores"},
    "_cli": {"_core", "_client", "stores"},
    "__init__": {"_core", "_client", "_server", "_tokens", "keys", "stores", "updates"},
    "aio": {"__init__", "keys", "updates", "_core", "_client", "_server", "_tokens", "stores"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to: its folder, or a module at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source: str) -> set[str]:
    """All that ``source`` imports, wherever in it: `from a import b` may mean a module a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_imported(name: str) -> str | None:
    """The part of the package that an imported name belongs to; None for other packages."""
    package, *rest = name.split(".")
    if package != "idem_grpc":
        return None
    return rest[0] if rest and rest[0] in ALLOWED else "__init__"


def test_the_check_sees_every_way_to_import():
    source = "import grpc.aio\ndef f():\n  from redis import Redis\n  from idem_grpc import stores, Swap"
    assert imports(source) == {"grpc.aio", "redis.Redis", "idem_grpc.stores", "idem_grpc.Swap"}
    assert part_imported("idem_grpc.stores") == "stores"
    assert part_imported("idem_grpc.Swap") == "__init__"


def test_the_table_names_every_part():
    assert {part_of(path) for path in MODULES} == ALLOWED.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_part_imports_only_what_the_table_allows(path):
    part = part_of(path)
    found = {part_imported(name) for name in imports(path.read_text())} - {None, part}
    assert found <= ALLOWED[part]


@pytest.mark.parametrize("path", sorted((PACKAGE / "_core").glob("*.py")), ids=lambda path: path.stem)
def test_the_core_does_no_io(path):
    tops = {name.partition(".")[0] for name in imports(path.read_text())}
    assert not tops & {"asyncio", "grpc", "grpc_status", "redis", "socket", "sqlite3", "valkey"}


def test_only_public_modules_have_public_names():
    public = {"__init__", "aio", "keys", "stores", "testing", "updates"}
    assert {part for part in ALLOWED if not part.startswith("_")} | {"__init__"} == public
    for folder in ("stores", "updates"):
        names = {path.stem for path in (PACKAGE / folder).glob("*.py")}
        assert all(name.startswith("_") for name in names)


def test_redis_is_not_loaded_by_those_who_do_not_use_it():
    script = "import sys, idem_grpc; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_page_on_architecture_says_the_same():
    page = (PACKAGE.parent / "docs/architecture.md").read_text()
    table = page.partition("| part | may import |")[2].partition("\n\n")[0]
    said: dict[str, set[str]] = {}
    for line in table.splitlines()[2:]:
        parts, allowed = (re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:3])
        said |= {part: set(allowed) for part in parts}
    facades = {"__init__", "aio"}  # these may import everything that users need
    assert said == {part: allowed for part, allowed in ALLOWED.items() if part not in facades}


def test_the_page_on_architecture_names_every_file_of_the_large_parts():
    page = (PACKAGE.parent / "docs/architecture.md").read_text()
    table = page.partition("## Files")[2].partition("Names that start")[0]
    for folder in ("_core", "_server", "_client"):
        named = set()
        for row in re.findall(rf"^\| `{folder}/(.*?)` \|", table, re.MULTILINE):
            named |= {name.strip("` ") for name in row.split(",")}
        assert named == {path.name for path in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}


def test_the_page_on_architecture_names_what_is_there():
    page = (PACKAGE.parent / "docs/architecture.md").read_text()
    source = "\n".join(path.read_text() for path in MODULES)
    for name in set(re.findall(r"`([A-Z]\w+)[`(.]", page)) - {"UNAVAILABLE"}:
        assert re.search(rf"\b{name}\b", source), name
    for path in set(re.findall(r"`(tests/[\w/]+\.py)`", page)):
        assert (PACKAGE.parent / path).exists(), path
