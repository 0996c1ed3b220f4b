"""Settings of an interceptor that are of the wrong kind; those of the right kind are judged elsewhere."""

import inspect
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor

from google.protobuf.descriptor import ServiceDescriptor

from idem_grpc.policy import Policy, contradiction, whole_number
from idem_grpc.reporter import Reporter


def check_watch(max_waiters: object, max_detached: object, cache_bytes: object, reporter: object) -> None:
    """Check limits and the reporter. Raises ValueError or TypeError, saying what to give."""
    whole_number("ServerInterceptor", "max_waiters", max_waiters, smallest=0)
    whole_number("ServerInterceptor", "max_detached", max_detached, smallest=1)
    whole_number("ServerInterceptor", "cache_bytes", cache_bytes, smallest=0)
    if reporter is not None and not isinstance(reporter, Reporter):
        raise TypeError(f"reporter={reporter!r}: give an instance of a subclass of idem_grpc.Reporter")


def check_executor(executor: object) -> None:
    """Where plain functions run. Raises TypeError, saying what to give."""
    if executor is None:
        return
    if not isinstance(executor, Executor) or isinstance(executor, ProcessPoolExecutor):
        raise TypeError(
            f"executor={executor!r}: give a concurrent.futures.ThreadPoolExecutor, such as the server's"
            " migration_thread_pool"
        )


def check_scope(scope: object) -> None:
    """Who shares keys and answers. Raises TypeError, saying what to give."""
    if not callable(scope):
        raise TypeError(
            f"scope={scope!r}: give SHARED, PEER, metadata('name') or a function of CallInfo,"
            " which says who shares keys and answers"
        )
    if inspect.iscoroutinefunction(scope) or inspect.iscoroutinefunction(type(scope).__call__):
        raise TypeError(
            f"scope={scope!r}: give a plain function; what has to wait belongs into an interceptor"
            " outside, which passes on what it finds as metadata"
        )


def check_policies(policies: object, default: object) -> None:
    """What methods are protected by. Raises TypeError or ValueError, saying what to give.

    What contradicts itself only together with other layers is found where those are known.
    """
    if not isinstance(policies, Mapping):
        raise TypeError(
            f"policies={policies!r}: give a mapping, such as {{'/pkg.Service/*': Policy(lease=10)}}"
        )
    if not isinstance(default, Policy):
        raise TypeError(f"default={default!r}: give a Policy, or leave it out")
    for pattern, policy in (*policies.items(), ("default", default)):
        if not isinstance(pattern, str):
            raise TypeError(f"policies: {pattern!r} is no string: give a name, as in '/pkg.Service/Method'")
        if isinstance(policy, Policy) and (wrong := contradiction(policy)):
            raise ValueError(f"{pattern}: {wrong}")


def checked_services(services: Iterable[str | ServiceDescriptor]) -> tuple[str | ServiceDescriptor, ...]:
    """The services to check now. Raises TypeError, saying what to give."""
    if isinstance(services, (str, bytes)) or not isinstance(services, Iterable):
        raise TypeError(f"services={services!r}: give a list of names, such as ['pkg.Service']")
    given = tuple(services)
    kinds: tuple[object, ...] = given
    for service in kinds:
        if not isinstance(service, (str, ServiceDescriptor)):
            raise TypeError(
                f"services: {service!r} is none: give a name, as in 'pkg.Service', or a descriptor"
            )
    return given
