"""What grpc knows of a caller: asked when it is needed, since most calls need none of it."""

from typing import Any

_NAMES = ("invocation_metadata", "peer", "peer_identities", "peer_identity_key", "auth_context")


class Facts:
    """What the context of an RPC says of its caller, each fact asked for once.

    When the RPC ends, grpc.aio frees what its context stands on, and asking it crashes the process. So
    what may still be wanted is asked for by then, with ``freeze``.
    """

    __slots__ = ("_context", "_known")

    def __init__(self, context: Any) -> None:
        self._context = context
        self._known: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """What the method ``name`` of the context returns."""
        if name not in self._known:
            if self._context is None:
                raise RuntimeError(f"the RPC is over: its context can no longer be asked for {name}()")
            self._known[name] = getattr(self._context, name)()
        return self._known[name]

    def freeze(self) -> None:
        """Ask for all that is not known yet. The context is not asked any more."""
        if self._context is not None:
            for name in _NAMES:
                self.get(name)
        self._context = None

    def close(self) -> None:
        """The context is not asked any more. Raises RuntimeError from now on for what was not asked for."""
        self._context = None
