"""Chooses the key of a call: the first that is available, in a fixed order.

These are the call's own metadata, ``keys.using``, a key made from the request, inside a keyed handler a key
derived from the handler's, and any other source. The key is chosen once, before the first attempt.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from idem_grpc._core.digest import as_uuid, digest
from idem_grpc._core.execution import DerivedCall, Run, current_run
from idem_grpc._core.keys import (
    METADATA_KEY,
    FromRequest,
    Outgoing,
    SingleUse,
    current_step,
    is_valid,
    take_pending,
    unique,
)
from idem_grpc._core.methods import (
    PATTERN,
    check_method,
    declared_key_rule,
    find_method,
    find_service,
    has_no_side_effects,
    is_idempotent,
    key_fields,
    pattern_of_service,
    service_of,
)
from idem_grpc._core.policy import KeyRule

KeySource = Callable[[Outgoing], Any]
"""Returns the key of a call, or None for no key. In aio it may return an awaitable of either."""

_ALL = "*"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The key of a call.

    key: what to add to the call's metadata; None adds nothing. In aio it may be an awaitable.
    is_safe: whether the call may be sent again.
    derived: set if the key is derived from that of a keyed handler. It must end before the handler can
        make its next call.
    source: where the key came from, if it is for a single use.
    """

    key: Any
    is_safe: bool
    derived: DerivedCall | None = None
    source: SingleUse | None = None

    def end(self) -> None:
        """Note that the call is over. Repeated calls have no further effect."""
        if self.derived is not None:
            self.derived.end()


class Keying:
    """Chooses the keys of a channel's calls.

    ``keys`` is a source for all methods, or maps "/pkg.Service/Method" or "/pkg.Service/*" to sources.
    ``derive`` enables derived keys. Raises ValueError or TypeError for invalid patterns and templates.
    """

    def __init__(self, keys: KeySource | Mapping[str, KeySource] | None, derive: bool) -> None:
        self._derive = derive
        self._sources = dict(keys) if isinstance(keys, Mapping) else {}
        for pattern in self._sources:
            if not PATTERN.fullmatch(pattern):
                raise ValueError(f"keys: {pattern!r} is not '/pkg.Service/Method' or '/pkg.Service/*'")
        self._unchecked = tuple(each for each in self._sources.items() if not _is_checked(*each))
        if keys is not None and not isinstance(keys, Mapping):
            self._sources[_ALL] = keys
        given: tuple[object, ...] = tuple(self._sources.values())
        for source in given:
            if not callable(source) or isinstance(source, type):
                raise TypeError(
                    f"keys: {source!r} is no source: give keys.unique, keys.from_request(…) or a function"
                )

    def choose(self, outgoing: Outgoing) -> Chosen:
        """Choose the key of a call. Raises what its source raises, and RuntimeError as DerivedCalls.begin."""
        descriptor = find_method(outgoing.method)
        is_safe = is_idempotent(descriptor)
        if any(key == METADATA_KEY for key, _ in outgoing.metadata):
            return Chosen(None, is_safe=True)
        if has_no_side_effects(descriptor):
            return Chosen(None, is_safe=True)
        if (given := take_pending()) is not None:
            return Chosen(given, is_safe=True)
        source = self._source(outgoing.method, descriptor)
        if isinstance(source, SingleUse) and current_run() is not None:
            raise RuntimeError(
                f"{outgoing.method} takes a token, and a keyed handler that is run again would take"
                " another: have the handler's caller send the token, and pass it on with keys.using(…)"
            )
        execution = current_run() if self._derive else None
        if execution is not None and not isinstance(source, FromRequest):
            return _derived(execution, outgoing.method)
        key = None if source is None else source(outgoing)
        single_use = source if isinstance(source, SingleUse) else None
        return Chosen(key, is_safe=is_safe or key is not None, source=single_use)

    def _source(self, method: str, descriptor: MethodDescriptor | None) -> KeySource | None:
        """Return the source for the method, else the one for its service or for all.

        Key fields in its contract take precedence over the latter two.

        Raises ValueError if a pattern of its service is at fault, which was not known before.
        """
        if self._unchecked and descriptor is not None:
            self._check_late(service_of(method))
        if method in self._sources:
            return self._sources[method]
        declared = _contract_source(descriptor)
        patterns = (pattern_of_service(method), _ALL)
        given = next((self._sources[pattern] for pattern in patterns if pattern in self._sources), None)
        if given is None or (isinstance(declared, FromRequest) and not isinstance(given, FromRequest)):
            return declared
        return given

    def _check_late(self, service: str) -> None:
        """Check the patterns of a service whose module was imported after construction."""
        late = [each for each in self._unchecked if service_of(each[0]) == service and _is_checked(*each)]
        self._unchecked = tuple(each for each in self._unchecked if each not in late)


def _contract_source(descriptor: MethodDescriptor | None) -> KeySource | None:
    """Return the source that a method's contract implies: its key fields, or ``unique`` if it takes keys."""
    if descriptor is None:
        return None
    if (fields := key_fields(descriptor)) is not None:
        return fields
    return unique if declared_key_rule(descriptor) in (KeyRule.OPTIONAL, KeyRule.REQUIRED) else None


def _is_checked(pattern: str, source: object) -> bool:
    """Check a pattern. Returns False if its service is not known yet.

    Raises ValueError if it is, and the pattern names no method of it, or its template no field.
    """
    service = find_service(service_of(pattern))
    if service is None:
        return False
    if pattern.endswith("/*"):
        faults = [_fault(source, method) for method in service.methods]
        if faults and all(faults):
            raise ValueError(f"keys: {pattern!r} suits no method of it: {faults[0]}")
        return True
    check_method("keys", pattern, service)
    if fault := _fault(source, service.methods_by_name[pattern.rpartition("/")[2]]):
        raise ValueError(f"keys: {pattern!r}: {fault}")
    return True


def _fault(source: object, descriptor: MethodDescriptor) -> str:
    """Return why a template cannot make a key for a method, or an empty string if it can."""
    if not isinstance(source, FromRequest):
        return ""
    if descriptor.client_streaming:
        return (
            f"{descriptor.name} takes a stream of requests, and so has no single request message to make a"
            " key of: give another source, such as keys.unique"
        )
    try:
        source.check(descriptor.input_type)
    except ValueError as error:
        return str(error)
    return ""


def checked(key: Any) -> str | None:
    """Return the key that a source gave. Raises ValueError or TypeError if it may not be sent."""
    if inspect.isawaitable(key):
        if inspect.iscoroutine(key):
            key.close()  # otherwise Python warns that it was never awaited
        raise TypeError("a key source gave an awaitable: async sources are for idem_grpc.aio")
    if key is not None and not (isinstance(key, str) and is_valid(key)):
        raise ValueError(f"a key source gave {key!r}: a key has 1 to 255 characters of 0x21 to 0x7E")
    return key


def _derived(execution: Run, method: str) -> Chosen:
    """Derive a key that is the same each time that the handler is run and makes this call.

    It is made of the record's name, so that tenants and methods never meet, of the
    request, so that a corrected one is new downstream too, and of the call's place.
    """
    step = current_step()
    call = execution.calls.begin(method, step)
    place = (method.encode(), step.encode(), str(call.ordinal).encode())
    key = as_uuid(int.from_bytes(digest("downstream", execution.identity, *place), "big"), version=8)
    return Chosen(key, is_safe=True, derived=call)
