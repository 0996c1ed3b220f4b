"""The service config for gRPC's own retries, for clients without the interceptors of this library."""

import json
import re
from collections.abc import Collection, Iterable

from idem_grpc._core.checks import StatusCode, codes_of, number, seconds_of, whole_number
from idem_grpc._core.durations import Duration
from idem_grpc._core.methods import check_method, find_service

_NAME = re.compile(r"/?(?P<service>\w+(\.\w+)*)(/(?P<method>\w+|\*)?)?", re.ASCII)
_MULTIPLIERS = (1, 1000)
_SHORTEST = 0.01
"""Seconds of backoff. With less than a millisecond, gRPC's core never sends the call again."""


def service_config(
    services: Iterable[str] = (),
    *,
    max_attempts: int = 5,
    initial_backoff: Duration = 0.1,
    max_backoff: Duration = 5.0,
    multiplier: float = 2.0,
    codes: Collection[StatusCode | str] = ("UNAVAILABLE",),
) -> str:
    """Return the service config (JSON) with which a stock gRPC client in any language retries.

    ``services`` are full names, "/pkg.Service/*" or "/pkg.Service/Method"; with none it is for
    all methods of the channel. These must all have a key, and no request stream:
    gRPC can lose messages of a stream that it sends again (``benchmarks/native.py``).
    Methods with a request stream are left out of the services that are named, where their
    generated modules are imported. gRPC makes at most five attempts. No retryThrottling is
    set, since refusals such as IN_PROGRESS would drain it. In Python::

        options = [("grpc.service_config", service_config(["pkg.Service"]))]
        grpc.insecure_channel(target, options)

    Raises ValueError or TypeError for settings that gRPC would refuse, and ValueError for a
    method with a request stream, or one that its service, if imported, does not have.
    """
    whole_number("service_config", "max_attempts", max_attempts, smallest=2)
    if max_attempts > 5:
        raise ValueError(f"service_config(max_attempts={max_attempts}): gRPC takes 2 to 5")
    names: list[dict[str, str]] = []
    left_out: list[dict[str, str]] = []
    for service in _each(services):
        name = _name(service)
        if name in names:
            raise ValueError(f"service_config: {service!r} is named twice, which gRPC does not take")
        known = find_service(name["service"])
        if known is not None and "method" in name:
            check_method("service_config", f"/{name['service']}/{name['method']}", known)
        streams = _with_request_stream(name["service"])
        if name in streams:
            raise ValueError(
                f"service_config: {service!r} has a request stream, of which gRPC's own retries can"
                " lose messages: leave it out, and retry with client_interceptors(retry=Retry())"
            )
        names.append(name)
        if "method" not in name:
            left_out += streams
    retried = codes_of("service_config(codes=…)", codes)
    if not retried:
        raise ValueError("service_config(codes=…): name at least one, such as 'UNAVAILABLE'")
    policy = {
        "maxAttempts": max_attempts,
        "initialBackoff": _duration("initial_backoff", initial_backoff),
        "maxBackoff": _duration("max_backoff", max_backoff),
        "backoffMultiplier": _checked(multiplier),
        "retryableStatusCodes": sorted(code.name for code in retried),
    }
    retrying: dict[str, object] = {"name": names or [{}], "retryPolicy": policy}
    return json.dumps({"methodConfig": [retrying, {"name": left_out}] if left_out else [retrying]})


def _each(services: object) -> Iterable[object]:
    if isinstance(services, (str, bytes)) or not isinstance(services, Iterable):
        raise TypeError(f"service_config({services!r}): give a list of names, such as ['pkg.Service']")
    return services


def _name(service: object) -> dict[str, str]:
    found = _NAME.fullmatch(service) if isinstance(service, str) else None
    if found is None:
        raise ValueError(
            f"service_config: {service!r} is no name: give 'pkg.Service' or 'pkg.Service/Method'"
        )
    names = found.groupdict()
    if names["method"] in (None, "*"):
        del names["method"]
    return names


def _with_request_stream(service: str) -> list[dict[str, str]]:
    """Return the methods of a service that have a request stream, if the service is known."""
    descriptor = find_service(service)
    methods = descriptor.methods if descriptor else ()
    return [{"service": service, "method": method.name} for method in methods if method.client_streaming]


def _duration(name: str, duration: Duration) -> str:
    """Format a duration as protobuf's JSON does: a decimal without exponent."""
    seconds = seconds_of("service_config", name, duration)
    if seconds < _SHORTEST:
        raise ValueError(f"service_config({name}={duration!r}): give {_SHORTEST} seconds or more")
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def _checked(multiplier: float) -> float:
    number("service_config", "multiplier", multiplier)
    if not _MULTIPLIERS[0] <= multiplier <= _MULTIPLIERS[1]:
        raise ValueError(f"service_config(multiplier={multiplier!r}): give a number from 1 to 1000")
    return multiplier
