"""Who takes part in what: ours, ours with other settings, the peers and the floor.

A variant is one more line in `VARIANTS`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.analysis import OURS
from benchmarks.record import Role
from benchmarks.servers import SERVERS, Server
from benchmarks.targets import STANDINS
from benchmarks.workloads import BURST, EXAMPLES, MOBILENET, RESNET50, TREES, Workload


@dataclass(frozen=True)
class Variant:
    """Our server with other settings, measured beside the usual ones to show what a setting costs.

    Attributes:
        without: Words of the usual command line that are left out.
        script: What stands in for the `samegraph` program, beside this file; None for the program itself.
        variables: Environment it is started with.
        workloads: Names of the workloads it takes part in, each with the most clients.
        does_less: Whether it leaves out what the usual settings do, so that the usual ones bear the cost that is shown.
    """

    without: tuple[str, ...] = ()
    script: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    workloads: tuple[str, ...] = ("trees", "mobilenet")
    does_less: bool = False


VARIANTS = {
    # A line in the log costs the same whatever the model, so rows, where a request costs least, show it.
    f"{OURS}, access log to a file": Variant(without=("--no-access-log",), workloads=("trees",)),
    STANDINS: Variant(script="standins.py", workloads=("trees",)),
    f"{OURS}, drift off": Variant(variables={"SAMEGRAPH_DRIFT__ENABLED": "false"}, does_less=True),
}

#: Further configurations of a peer: workload → the numbers of clients at which one is that peer's best (see its app.py).
CONFIGURATIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "mosec-1": {"trees": (1,), "rows1000": (1,), "mobilenet": (1,)},
    "mosec-32": {"trees": (64,)},
}
#: Who is in the picture of open arrivals: ours, and the peers that come nearest in rows and in images.
OFFERED_TO = (OURS, "mosec", "fastapi")


def contenders() -> dict[str, Server]:
    """Return everybody by name, in the order of the tables: ours, its variants, the peers, the floor."""
    ours = {OURS: SERVERS[OURS], **{name: _varied(name, variant) for name, variant in VARIANTS.items()}}
    return {**ours, **{name: server for name, server in SERVERS.items() if name != OURS}}


def role(name: str) -> Role:
    """Return what a contender is."""
    if name in VARIANTS:
        return "variant"
    if name == OURS:
        return "ours"
    return "peer" if SERVERS[name].computes else "floor"


def clients_of(name: str, workload: Workload) -> tuple[int, ...]:
    """Return the numbers of clients a contender is measured at; none when it takes no part.

    A variant shows a cost per request, so the most clients will do; so will they for peers where the model dominates and all are close.
    """
    if name in CONFIGURATIONS:
        return CONFIGURATIONS[name].get(workload.name, ())
    match role(name):
        case "variant":
            return workload.clients[-1:] if workload.name in VARIANTS[name].workloads else ()
        case "floor":
            return workload.clients if workload.name == TREES.name else ()
        case "peer" if workload.home == EXAMPLES:
            return ()
        case "peer" if workload.name == RESNET50.name:
            return workload.clients[-1:]
    return workload.clients


def takes_burst(name: str, workload: Workload) -> bool:
    """Whether a contender gets the burst."""
    return workload.name == BURST.name and role(name) in ("ours", "peer") and name not in CONFIGURATIONS


def takes_offered(name: str, workload: Workload) -> bool:
    """Whether a contender is loaded with open arrivals, for the picture."""
    return name in OFFERED_TO and workload.name in (TREES.name, MOBILENET.name)


def takes_part(name: str, workload: Workload) -> bool:
    """Whether a contender is measured with a workload at all."""
    return bool(clients_of(name, workload)) or takes_burst(name, workload)


def groups(workloads: Sequence[Workload]) -> list[list[Workload]]:
    """Return workloads that ask the same model together: one start of each server does for all of them."""
    found: dict[tuple[Path, str, int], list[Workload]] = {}
    for workload in workloads:
        found.setdefault((workload.home, workload.model, workload.version), []).append(workload)
    return list(found.values())


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return the names in an order that begins with another one each turn, so that nobody always comes first or last."""
    start = turn % max(len(names), 1)
    return [*names[start:], *names[:start]]


def _varied(name: str, variant: Variant) -> Server:
    base = SERVERS[OURS]
    return replace(
        base,
        name=name,
        command=lambda port, repository: _command(base.command(port, repository), variant),
        environment=lambda workload, repository: {**base.environment(workload, repository), **variant.variables},
    )


def _command(usual: Sequence[str], variant: Variant) -> list[str]:
    program = [usual[0]] if variant.script is None else [sys.executable, str(Path(__file__).with_name(variant.script))]
    return program + [word for word in usual[1:] if word not in variant.without]
