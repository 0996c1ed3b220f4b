"""gRPC's own retries, for clients that cannot have our interceptors."""

import json
from collections.abc import Collection, Iterable

from idem_grpc.policy import Duration, StatusCode, codes_of, in_seconds


def service_config(
    services: Iterable[str] = (),
    *,
    max_attempts: int = 5,
    initial_backoff: Duration = 0.1,
    max_backoff: Duration = 5.0,
    multiplier: float = 2.0,
    codes: Collection[StatusCode | str] = ("UNAVAILABLE",),
) -> str:
    """The service config (JSON) with which a stock gRPC client in any language retries.

    ``services`` are full names, or "pkg.Service/Method"; with none it is for all methods
    of the channel, which then must all bear a key. gRPC makes at most five attempts. No
    retryThrottling is set, since refusals such as IN_PROGRESS would drain it. In Python::

        grpc.insecure_channel(target, options=[("grpc.service_config", service_config())])

    Raises ValueError for settings that gRPC would refuse.
    """
    if not 2 <= max_attempts <= 5:
        raise ValueError(f"service_config(max_attempts={max_attempts}): gRPC takes 2 to 5")
    names = [_name(service) for service in services] or [{}]
    policy = {
        "maxAttempts": max_attempts,
        "initialBackoff": f"{in_seconds(initial_backoff):g}s",
        "maxBackoff": f"{in_seconds(max_backoff):g}s",
        "backoffMultiplier": multiplier,
        "retryableStatusCodes": sorted(code.name for code in codes_of("service_config(codes=…)", codes)),
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})


def _name(service: str) -> dict[str, str]:
    service, _, method = service.strip("/").partition("/")
    return {"service": service, "method": method} if method else {"service": service}
