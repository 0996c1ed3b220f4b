"""Methods of contracts that are not imported: from descriptor sets, and from folders of protos.

Each has a descriptor pool of its own, so that two contracts may disagree, and no
generated code is run. Our options are found in any pool, as their numbers are fixed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import click
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_database import DescriptorDatabase
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from idem_grpc.cli.failures import Wrong
from idem_grpc.contract import name_of
from idem_grpc.protofiles import proto_path

_HOW = "make one with 'protoc --include_imports -o FILE …' or 'buf build -o FILE'"

contracts_argument = click.argument(
    "contracts",
    nargs=-1,
    required=True,
    metavar="DESCRIPTOR_SET…",
    type=click.Path(exists=True, allow_dash=True, path_type=Path),
)
include_option = click.option(
    "-I",
    "--include",
    "includes",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="For a folder of protos: where else its imports are. May be given again.",
)


def methods_of(contracts: Iterable[Path], includes: Sequence[Path]) -> dict[str, MethodDescriptor]:
    """Every method of the contracts, by its name, in the order of files and services.

    Of a folder, only what is declared in it; of a descriptor set, all that is in it.
    Raises Wrong for what is no contract.
    """
    found: dict[str, MethodDescriptor] = {}
    for path in contracts:
        if path.is_dir():
            files = _protos_in(path)
            read = FileDescriptorSet.FromString(_compiled(path, files, includes))
            methods = _methods(path, read, set(files))
        else:
            read = _descriptor_set(path)
            methods = _methods(path, read, {file.name for file in read.file})
        for method in methods:
            found.setdefault(name_of(method), method)
    return found


def _descriptor_set(path: Path) -> FileDescriptorSet:
    if path.suffix == ".proto":
        raise Wrong(f"{path} is a source file: give the folder that its imports start from, or {_HOW}")
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        read = FileDescriptorSet.FromString(data)
    except OSError as error:
        raise Wrong(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise Wrong(f"{path} is no descriptor set: {_HOW}") from error
    if not read.file or not all(file.name for file in read.file):
        raise Wrong(f"{path} is no descriptor set: {_HOW}")
    return read


def _methods(path: Path, read: FileDescriptorSet, listed: set[str]) -> Iterator[MethodDescriptor]:
    names = {file.name for file in read.file}
    database = DescriptorDatabase()
    for file in read.file:
        if missing := sorted(set(file.dependency) - names):
            raise Wrong(f"{path}: {file.name} imports {missing[0]}, which is not in it: {_HOW}")
        database.Add(file)
    pool = DescriptorPool(database)
    for file in read.file:
        if file.name in listed:
            try:
                descriptor = pool.FindFileByName(file.name)
            except (TypeError, KeyError, ValueError) as error:
                raise Wrong(f"{path}: {file.name} cannot be used: {error}") from error
            for service in descriptor.services_by_name.values():
                yield from service.methods


def _protos_in(folder: Path) -> list[str]:
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.proto"))
    files = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not files:
        raise Wrong(f"there is no .proto in {folder}")
    return files


def _compiled(folder: Path, files: list[str], includes: Sequence[Path]) -> bytes:
    if find_spec("grpc_tools") is None:
        raise Wrong(f"to read a folder of protos, pip install grpcio-tools; or give a descriptor set: {_HOW}")
    common = find_spec("google.rpc.status_pb2")  # google/api and google/rpc have their protos beside them
    folders = [folder, *includes, Path(proto_path())]
    if common is not None and common.origin is not None:
        folders.append(Path(common.origin).parents[2])
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "set.binpb")
        compiler = [sys.executable, "-P", "-m", "grpc_tools.protoc", "--include_imports", "-o", str(output)]
        ended = subprocess.run(
            [*compiler, *(f"-I{place}" for place in folders), *files],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise Wrong(f"{folder} does not compile:\n{ended.stdout.strip()}")
        return output.read_bytes()
