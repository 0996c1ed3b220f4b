"""``idem-grpc service-config``: native retries for clients in any language, as the contract allows them."""

from pathlib import Path

import click

from idem_grpc.cli.classes import Class, classify
from idem_grpc.cli.contracts import contracts_argument, include_option, methods_of
from idem_grpc.cli.failures import No, sentences
from idem_grpc.client import config


@click.command("service-config")
@contracts_argument
@include_option
@click.option(
    "--optional", is_flag=True, help="Also methods whose key is optional: every caller must then send one."
)
@click.option("--max-attempts", default=5, show_default=True, help="Of one call; gRPC makes 5 at most.")
@click.option("--initial-backoff", default=0.1, show_default=True, help="In seconds.")
@click.option("--max-backoff", default=5.0, show_default=True, help="In seconds.")
@click.option("--multiplier", default=2.0, show_default=True, help="Of the backoff, from retry to retry.")
def service_config(
    contracts: tuple[Path, ...],
    includes: tuple[Path, ...],
    optional: bool,
    max_attempts: int,
    initial_backoff: float,
    max_backoff: float,
    multiplier: float,
) -> None:
    """Print the retries that a contract allows.

    It is a service config (JSON) for a gRPC client in any language. It has the methods that are
    declared NO_SIDE_EFFECTS or IDEMPOTENT, or whose contract requires a key, unless they have a
    request stream, of which gRPC's own retries can lose messages. A service is named as a whole if
    all its methods are.
    """
    services: dict[str, list[str]] = {}
    partial: set[str] = set()
    for descriptor in methods_of(contracts, includes).values():
        method = classify(descriptor)
        if method.group is Class.CONTRADICTORY:
            raise No(f"the contract contradicts itself: {method.problem}")
        service = method.name[1:].partition("/")[0]
        safe = method.retryable or (optional and method.group is Class.OPTIONAL)
        if safe and not descriptor.client_streaming:
            services.setdefault(service, []).append(method.name)
        else:
            partial.add(service)
    names = [
        name
        for service, methods in services.items()
        for name in (methods if service in partial else [service])
    ]
    if not names:  # which would stand for every method of the channel
        raise No("no method's contract lets a call be sent again: idem-grpc lint shows what each says")
    with sentences():
        click.echo(
            config.service_config(
                names,
                max_attempts=max_attempts,
                initial_backoff=initial_backoff,
                max_backoff=max_backoff,
                multiplier=multiplier,
            )
        )
