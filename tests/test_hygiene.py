"""House rules that no linter knows."""

import ast
import re
import tokenize
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parent.parent
WRITTEN = [
    path
    for folder in ("idem_grpc", "tests", "examples", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "generated" not in path.parts
]
TESTS = [path for path in WRITTEN if path.is_relative_to(ROOT / "tests")]
SUPPRESSION = re.compile(r"type: ignore\[[\w, -]+\]|noqa: ?[A-Z]+\d+(, ?[A-Z]+\d+)*")


def name(path):
    return str(path.relative_to(ROOT))


def has_reason(comment: str) -> bool:
    """Whether ``comment`` suppresses nothing, or says what it suppresses and why."""
    said = SUPPRESSION.sub("", comment)
    if re.search(r"\bnoqa\b|type: *ignore", said):
        return False
    return said == comment or len(re.findall(r"\w+", said)) >= 2


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 600


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_suppressions_give_a_reason(path):
    with tokenize.open(path) as file:
        comments = [
            token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT
        ]
    assert not [f"{token.start[0]}: {token.string}" for token in comments if not has_reason(token.string)]


@pytest.mark.parametrize(
    ("comment", "verdict"),
    [
        ("# a comment", True),
        ("# noqa", False),
        ("# type: ignore", False),
        ("# noqa: B007", False),
        ("# noqa: B007 -- counts the tries", True),
        ("# type: ignore[arg-type]", False),
        ("# type: ignore[arg-type]  # stubs know no None", True),
        ("# type: ignore[arg-type]  # noqa: B007", False),
    ],
)
def test_what_counts_as_a_reason(comment, verdict):
    assert has_reason(comment) is verdict


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_test_modules_are_not_imported(path):
    """What two test modules share is in a module that has no tests."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                imported = [alias.name for alias in node.names]
            case ast.ImportFrom():
                imported = [f"{node.module}.{alias.name}" for alias in node.names]
            case _:
                continue
        parts = [part for module in imported for part in module.split(".")]
        assert not [part for part in parts if part.startswith("test_")], f"line {node.lineno}"


def is_pause(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether it waits for a time only: ``asyncio.sleep`` of more than 0, ``Event().wait`` that times out."""
    match node:
        case ast.Call(func=ast.Attribute(ast.Name("asyncio"), "sleep"), args=[ast.Constant(0)]):
            return False
        case ast.Call(func=ast.Attribute(ast.Name("asyncio"), "sleep")):
            return True
        case ast.Call(func=ast.Attribute(ast.Call(func=event), "wait"), args=[_, *_]):
            return ast.unparse(event) in {"Event", "threading.Event"}
    return False


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_tests_do_not_sleep(path):
    """Wait for an event; where only a time will do, a comment on the line says why."""
    source = path.read_text()
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if is_pause(node):
            assert "  # " in lines[(node.end_lineno or node.lineno) - 1], (
                f"line {node.lineno}: say why a time is needed"
            )
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "time.sleep", f"line {node.lineno}: wait for what you wait for"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            assert "sleep" not in {alias.name for alias in node.names}, f"line {node.lineno}"


@pytest.mark.parametrize(
    ("call", "verdict"),
    [
        ("asyncio.sleep(0)", False),
        ("asyncio.sleep(0.1)", True),
        ("asyncio.sleep(pause)", True),
        ("Event().wait(1)", True),
        ("threading.Event().wait(step)", True),
        ("threading.Event().wait()", False),
        ("opened.wait(30)", False),
    ],
)
def test_what_counts_as_a_pause(call, verdict):
    assert is_pause(ast.parse(call, mode="eval").body) is verdict


IDIOMS = re.compile(
    r"\b(told|tells|bears?|mend(s|ed|able)?|whoever|lest|beside|comes to|of ours|its own affair)\b",
    re.IGNORECASE,
)
"""Words that readers of English technical prose stumble over."""

PROSE = [
    *(path for path in WRITTEN if path != Path(__file__)),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *(path for path in sorted(ROOT.rglob("protos/**/*.proto")) if ".venv" not in str(path)),
]


@pytest.mark.parametrize("path", PROSE, ids=name)
def test_prose_is_plain(path):
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        assert not IDIOMS.search(line), f"line {number}: use the field's own words: {line.strip()}"
