"""`samegraph serve`: start the service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click


@click.command(
    epilog="""\b
Examples:
  samegraph serve                                   serve ./models on 127.0.0.1:8000
  samegraph serve --repository /models --host 0.0.0.0
  SAMEGRAPH_LIMITS__MAX_REQUESTS=500 samegraph serve

\b
Exit codes: 0 stopped after draining, 1 could not start, 2 wrong usage.
Every setting is also a variable SAMEGRAPH_<GROUP>__<NAME>; docs/settings.md lists them.
"""
)
@click.option("--repository", type=click.Path(path_type=Path), help="Directory of models, <name>/<version>/. [default: models]")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 lets the system choose. [default: 8000]")
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Port of gRPC; 0 lets the system choose. [default: no gRPC]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where batches run. [default: auto]")
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]), help="How events are written. [default: auto]")
@click.option("--no-access-log", is_flag=True, help="Write no line per request.")
def serve(
    repository: Path | None,
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    device: str | None,
    log_format: str | None,
    no_access_log: bool,
) -> None:
    """Serve the models of a repository over HTTP.

    Loads the latest two versions of every model, proves each against its golden samples, and answers raw inputs. New versions
    are picked up while it runs (or at once on SIGHUP); SIGTERM drains.
    """
    overrides: dict[str, dict[str, Any]] = {
        "repository": {"path": repository},
        "server": {"host": host, "port": port},
        "grpc": {"port": grpc_port},
        "execution": {"device": device},
        "log": {"format": log_format, "access": False if no_access_log else None},
    }
    from .launch import launch  # not above: `samegraph --help` and the other commands need no web framework

    sys.exit(launch(overrides))
