#!/usr/bin/env python3
"""Watch running services: start a real Prometheus with samegraph's rules and alerts, say where to look, end with Ctrl-C.

    make observe                                                  watches 127.0.0.1:8000
    make observe TARGETS="127.0.0.1:8000 127.0.0.1:8001"          several replicas, summed
    python scripts/observe.py --port 9091 --data /var/tmp/prom 127.0.0.1:8000

Series are kept under .cache/observe between starts, for 15 days and at most 1 GB. To run Prometheus for good, take
deploy/prometheus/prometheus.yml; docs/observability.md explains what there is to see.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "deploy" / "prometheus" / "rules"
DATA = ROOT / ".cache" / "observe"
START_S = 60.0
STOP_S = 30.0
#: Prometheus takes its targets up five seconds after its start.
FIRST_LOOK_S = 10.0
RETENTION = ("--storage.tsdb.retention.time=15d", "--storage.tsdb.retention.size=1GB")
TARGET = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}|\[[0-9A-Fa-f:]+\]:\d{1,5}")
#: What a newcomer wants to see first: title → query.
QUERIES = {
    "requests per second": "model:samegraph_requests:rate5m",
    "99th percentile": "model:samegraph_request_duration_seconds:p99_rate5m",
    "drift, 1 is the alarm": "field:samegraph_drift_psi_over_critical:ratio",
}


def main(arguments: list[str]) -> int:
    """Run Prometheus until it ends or Ctrl-C; return the exit code."""
    options = parsed(arguments)
    program = shutil.which("prometheus")
    if program is None:
        print("There is no prometheus on PATH. On Debian: scripts/system-packages prometheus. Else: https://prometheus.io", file=sys.stderr)
        return 1
    if taken(options.port):
        print(f"127.0.0.1:{options.port} is taken: name another port, make observe OBSERVE_PORT=9091", file=sys.stderr)
        return 1
    options.data.mkdir(parents=True, exist_ok=True)
    config = options.data / "prometheus.json"
    config.write_text(json.dumps(configuration(options.targets, options.port, options.scrape_interval), indent=1), encoding="utf-8")
    process = subprocess.Popen(command(program, config, options.data, options.port))
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        if ready(process, options.port):
            announce(options.targets, options.port, options.scrape_interval)
        return 0 if process.wait() in (0, -signal.SIGTERM) else 1
    except KeyboardInterrupt:  # Prometheus, in the same process group, has had it too and writes out what it holds
        return process.wait(STOP_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_S)


def taken(port: int) -> bool:
    """Whether something listens on the port already; it would answer in the place of ours."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return targets, port, data and scrape_interval; exits with a sentence when one is wrong."""
    parser = argparse.ArgumentParser(description="Start a Prometheus that watches running samegraph services.")
    parser.add_argument("targets", nargs="*", default=["127.0.0.1:8000"], metavar="HOST:PORT", help="services (127.0.0.1:8000)")
    parser.add_argument("--port", type=int, default=9090, help="where Prometheus answers, on 127.0.0.1 (9090)")
    parser.add_argument("--data", type=Path, default=DATA, help="where series are kept (.cache/observe)")
    parser.add_argument("--scrape-interval", type=int, default=5, metavar="SECONDS", help="time between two looks (5)")
    options = parser.parse_args(arguments)
    for target in options.targets:
        if not TARGET.fullmatch(target):
            parser.error(f"{target!r} is no target: write host:port, as in 127.0.0.1:8000, without http:// and without a path")
    if not 1 <= options.port <= 65535:
        parser.error("--port must be 1 to 65535")
    if not 1 <= options.scrape_interval <= 60:
        parser.error("--scrape-interval must be 1 to 60 seconds: rates look at five minutes")
    return options


def configuration(targets: list[str], port: int, scrape_interval_s: int) -> dict[str, Any]:
    """Return Prometheus' configuration (JSON is YAML too): the services as one job, Prometheus itself, and our rules."""
    return {
        "global": {"scrape_interval": f"{scrape_interval_s}s", "evaluation_interval": f"{scrape_interval_s}s"},
        "rule_files": [str(RULES / "*.yml")],
        "scrape_configs": [
            {"job_name": "samegraph", "static_configs": [{"targets": targets}]},
            {"job_name": "prometheus", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]},
        ],
    }


def command(program: str, config: Path, data: Path, port: int) -> list[str]:
    """Return the command line: on this machine only, quiet, and with bounded storage."""
    listen = f"--web.listen-address=127.0.0.1:{port}"
    return [program, f"--config.file={config}", f"--storage.tsdb.path={data / 'series'}", *RETENTION, listen, "--log.level=warn"]


def ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until Prometheus answers; False when it ended instead, having said why."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            get(port, "/-/ready")
        except OSError:
            time.sleep(0.1)
        else:
            return process.poll() is None
    return False


def announce(targets: list[str], port: int, scrape_interval_s: int) -> None:
    """Print which services answer, once each was looked at, and where to look."""
    deadline = time.monotonic() + FIRST_LOOK_S + 2 * scrape_interval_s
    found: dict[str, tuple[str, str]] = {}
    while time.monotonic() < deadline and any(found.get(target, ("unknown", ""))[0] == "unknown" for target in targets):
        active = json.loads(get(port, "/api/v1/targets"))["data"]["activeTargets"]
        found = {t["labels"]["instance"]: (t["health"], t["lastError"]) for t in active}
        time.sleep(0.1)
    print(f"\nPrometheus watches, every {scrape_interval_s} s:")
    for target in targets:
        health, error = found.get(target, ("unknown", ""))
        print(f"  {target:<24} {health}{f': {error}' if error else ''}")
    base = f"http://127.0.0.1:{port}"
    print(f"\n  {'alerts':<24} {base}/alerts\n  {'rules':<24} {base}/rules")
    for title, query in QUERIES.items():
        print(f"  {title:<24} {base}/graph?{urllib.parse.urlencode({'g0.expr': query, 'g0.tab': 0, 'g0.range_input': '1h'})}")
    print("\nDrift needs a minute for its first figure and 200 rows for a verdict. Ctrl-C ends it; what was seen is kept.", flush=True)


def get(port: int, path: str) -> bytes:
    """Return the body of a page of Prometheus; OSError when it does not answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
        return bytes(response.read())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
