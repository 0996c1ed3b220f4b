"""All types in public signatures can be imported from a public module."""

import ast
import inspect
import sys
import textwrap
import typing
from typing import Any, TypeVar

import pytest

import idem_grpc
import idem_grpc.aio
import idem_grpc.testing
from idem_grpc import keys, updates

PUBLIC = [idem_grpc, idem_grpc.aio, idem_grpc.testing, keys, updates]
EXPORTED = [getattr(module, name) for module in PUBLIC for name in module.__all__]


def is_ours(module: str | None) -> bool:
    return bool(module) and str(module).partition(".")[0] == "idem_grpc"


def callables(value: Any, name: str):
    """The functions of a public value whose signatures users read; of a class, those that it defines."""
    if inspect.isfunction(value):
        yield name, value
    if not inspect.isclass(value):
        return
    for each in value.__mro__:
        if not is_ours(each.__module__):
            continue
        yield f"{name} ({each.__name__})", each
        for own, member in vars(each).items():
            if own.startswith("_") and own not in ("__init__", "__call__", "__enter__", "__aenter__"):
                continue
            for attribute in ("fget", "__func__", "func"):
                member = getattr(member, attribute, member)
            if inspect.isfunction(member) and is_ours(member.__module__):
                yield f"{name}.{own}", member


SIGNATURES = [
    pytest.param(function, id=f"{module.__name__}.{name}")
    for module in PUBLIC
    for public in module.__all__
    for name, function in callables(getattr(module, public), public)
]


def is_generated(function: Any) -> bool:
    """Whether it is generated, like the __init__ of a dataclass."""
    return inspect.isfunction(function) and function.__code__.co_filename == "<string>"


def inside(hint: Any):
    """A type, and the types that it is made of."""
    yield hint
    for part in typing.get_args(hint):
        yield from inside(part) if not isinstance(part, list) else (each for p in part for each in inside(p))


@pytest.mark.parametrize("function", SIGNATURES)
def test_types_of_signatures_are_public(function):
    for name, hint in typing.get_type_hints(function).items():
        if name.startswith("_"):
            continue
        for each in inside(hint):
            if inspect.isclass(each) and is_ours(each.__module__):
                assert any(each is public for public in EXPORTED), (
                    f"{name} is {each}, which has no public name"
                )


WRITTEN = [each for each in SIGNATURES if not is_generated(each.values[0])]


@pytest.mark.parametrize("function", WRITTEN)
def test_aliases_in_signatures_are_public(function):
    """get_type_hints resolves them, but users read and write them."""
    module = vars(sys.modules[function.__module__])
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if isinstance(node, ast.ClassDef):
        written = [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]
    else:
        assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)), node
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        written = [each.annotation for each in given if each.annotation is not None]
        written += [node.returns] if node.returns is not None else []
    names = {each.id for one in written for each in ast.walk(one) if isinstance(each, ast.Name)}
    for name in names & ours_in(function.__module__):
        value = module[name]
        if inspect.isclass(value) and not is_ours(value.__module__):
            continue  # another name for a class of grpc's
        assert any(value is public for public in EXPORTED), f"{name} has no public name"


def ours_in(module: str) -> set[str]:
    """The names in a module that are from this package, without type variables."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_ours(node.module):
            names |= {alias.asname or alias.name for alias in node.names}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
    known = vars(sys.modules[module])
    return {name for name in names if name in known and not isinstance(known[name], TypeVar)}


SHARED_NAMES = ["Code", "Duration", "Scope", "StatusCode", "Swap"]


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_types_are_the_same_on_both_faces(name):
    assert name in idem_grpc.__all__
    assert getattr(idem_grpc, name) is getattr(idem_grpc.aio, name)


def test_the_faces_have_the_same_names():
    assert set(idem_grpc.__all__) == set(idem_grpc.aio.__all__)
