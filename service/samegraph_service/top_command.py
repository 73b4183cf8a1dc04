"""`samegraph top`: a live view in the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import click
from rich.console import Console
from rich.live import Live

from .top import Screen, scrape

#: More replicas than fit on a screen.
MAX_REPLICAS = 64


@click.command(
    epilog="""\b
Examples:
  samegraph top                                       the server on this machine
  samegraph top http://10.0.0.1:8000 10.0.0.2:8000    replicas, side by side and added up
  samegraph top --once                                one interval, then leave
  samegraph top --json --once | jq .versions          the same for programs

\b
Ctrl-C leaves. Exit codes: 0 done, 1 no server could be read, 2 wrong usage.
"""
)
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--interval", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Show one interval and leave.")
@click.option("--json", "as_json", is_flag=True, help="Write a JSON document an interval instead of a screen.")
def top(urls: tuple[str, ...], interval: float, once: bool, as_json: bool) -> None:
    """Show what a server is doing now: models, queues, batches, rates, refusals, and how honest its hints are.

    Reads `/metrics` of each URL (default: http://127.0.0.1:8000) and nothing else, so it costs a server what one more Prometheus does.
    """
    urls = urls or ("http://127.0.0.1:8000",)
    if len(urls) > MAX_REPLICAS:
        raise click.UsageError(f"at most {MAX_REPLICAS} servers fit on a screen; got {len(urls)}")
    screen = Screen(urls)
    console = Console()
    with ThreadPoolExecutor(min(len(urls), 8)) as threads:

        def look() -> None:
            list(threads.map(scrape, screen.replicas))

        look()
        try:
            if once or as_json or not console.is_terminal:
                _print(screen, console, look, interval, once=once, as_json=as_json)
            else:
                _watch(screen, console, look, interval)
        except KeyboardInterrupt:
            pass
    if all(replica.now is None for replica in screen.replicas):
        sys.exit(1)


def _print(screen: Screen, console: Console, look: Callable[[], None], interval: float, *, once: bool, as_json: bool) -> None:
    while True:
        time.sleep(interval)
        look()
        if as_json:
            click.echo(json.dumps(screen.document()))
        else:
            console.print(screen.draw(console.width))
        if once:
            return


def _watch(screen: Screen, console: Console, look: Callable[[], None], interval: float) -> None:
    with Live(screen.draw(console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            look()
            live.update(screen.draw(console.width), refresh=True)
