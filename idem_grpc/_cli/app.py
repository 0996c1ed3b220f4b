"""The command group ``idem-grpc``."""

import click

from idem_grpc._cli.contracts import lint, service_config
from idem_grpc._cli.records import forget, inspect, list_records, resolve, revoke
from idem_grpc._core.methods import proto_path


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 success; 1 negative result; 2 invalid command; 3 the store did not answer.",
)
@click.version_option(package_name="idem-grpc")
def app() -> None:
    """Check contracts for idempotency, and inspect and change a store of idempotency keys."""


@app.command("proto-path")
def print_proto_path() -> None:
    """Print the folder to pass to protoc as -I."""
    try:
        click.echo(proto_path())
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from error


for command in (lint, service_config, inspect, list_records, revoke, resolve, forget):
    app.add_command(command)
