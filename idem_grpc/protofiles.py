"""Where our .proto files are, for those who compile their own."""

from importlib.util import find_spec
from pathlib import Path

_FILE = Path("idem_grpc_pb", "v1", "options.proto")


def proto_path() -> str:
    """The folder to give protoc as ``-I``, so that it finds "idem_grpc_pb/v1/options.proto".

    The wheel has the files beside their stubs; a checkout has them in ``protos/``.
    Raises FileNotFoundError if an incomplete install has them in neither.
    """
    stubs = find_spec("idem_grpc_pb.v1.options_pb2")
    if stubs is None or stubs.origin is None:
        raise FileNotFoundError("the stubs of idem_grpc_pb are not installed: install idem-grpc again")
    root = Path(stubs.origin).parents[2]
    for folder in (root, root.parent / "protos"):
        if (folder / _FILE).is_file():
            return str(folder)
    raise FileNotFoundError(f"{_FILE} is not installed beside its stubs: install idem-grpc again")
