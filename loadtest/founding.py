"""python -m loadtest.founding: the scenario this project began with, replayed in scaled time on a real server.

A video becomes 300 frames, every one of which wants a worker at once; there are twenty workers, one frame each at a time, ten seconds a
frame, and ten seconds until a cold one is there. Three callers are compared:

    naive      sends again at once whatever happens
    founders   exponential backoff with full jitter up to a minute, each frame by itself: what people do
    samegraph  one gate that follows the server's advertised limit

Time is scaled: `--scale 20` makes a second of the story fifty milliseconds here, for the server (its declared execution time), for the
callers' waits and for the cold start alike. Printed are the story's seconds. What does not scale is the work of sending itself, so a small
scale is nearer to the truth and takes longer.
"""

# As in __main__: before anything that waits.
from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from gevent.pool import Pool  # noqa: E402
from samegraph_client import Client, Gate, RetryPolicy  # noqa: E402
from samegraph_client.dispatch import Answer, Request  # noqa: E402
from samegraph_client.errors import TransportFailure, Unreachable  # noqa: E402

from loadtest.fleet import Replica, free_port  # noqa: E402
from loadtest.samples import Sample, read_samples  # noqa: E402
from loadtest.transport import GeventTransport  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
FRAMES, WORKERS, SERVICE_S, COLD_S, JOB_S = 300, 20, 10.0, 10.0, 600.0
#: ceil(300 / 20) rounds of ten seconds.
LOWER_BOUND_S = -(-FRAMES // WORKERS) * SERVICE_S


@dataclass(frozen=True)
class Result:
    """What one caller got, in the story's seconds.

    Attributes:
        caller: Who.
        cold: Whether the workers were started by the burst.
        makespan_s: Until the last frame was answered, or given up.
        lost: Frames without an answer.
        wrong: Frames whose answer is not the golden one.
        attempts: Requests sent.
        replica_s: Seconds of all workers until then.
    """

    caller: str
    cold: bool
    makespan_s: float
    lost: int
    wrong: int
    attempts: int
    replica_s: float


class Story:
    """A server of twenty one-at-a-time workers in scaled time.

    Args:
        repository: Holds the model.
        scale: The story's seconds in one of ours.
    """

    def __init__(self, repository: Path, scale: float) -> None:
        self.scale = scale
        self._repository = repository
        self._settings = {
            "EXECUTION__SIMULATED_BATCH_S": f"{SERVICE_S / scale:.6f}",
            "EXECUTION__RUN_SLOTS": str(WORKERS),
            "EXECUTION__MAX_BATCH_SIZE": "1",
            "EXECUTION__INLINE_BELOW_S": "0",
            "LIMITS__MAX_REQUESTS": str(2 * WORKERS),  # one round at work and one that waits, as burst.md's table
            "DRIFT__ENABLED": "false",
        }

    @contextmanager
    def server(self) -> Iterator[str]:
        """Yield the address of a warm server."""
        replica = Replica(self._repository, free_port(), self._settings)
        try:
            replica.await_ready()
            yield replica.url
        finally:
            replica.close()


def naive(url: str, samples: Sequence[Sample], scale: float, ready_at: float) -> tuple[int, int, int]:
    """Every frame by itself, again at once."""
    return _each_alone(url, samples, scale, ready_at, lambda _: 0.0)


def founders(url: str, samples: Sequence[Sample], scale: float, ready_at: float) -> tuple[int, int, int]:
    """Every frame by itself, after U(0, min(60, 2^attempt)) seconds."""
    generator = random.Random(7)
    return _each_alone(url, samples, scale, ready_at, lambda attempt: generator.uniform(0, min(60.0, 2.0**attempt)))


def _each_alone(url: str, samples: Sequence[Sample], scale: float, ready_at: float, wait_s: Callable[[int], float]) -> tuple[int, int, int]:
    """Return lost and wrong frames and attempts of callers that know nothing of each other nor of hints."""
    transport = GeventTransport(url, FRAMES)
    deadline = time.monotonic() + JOB_S / scale
    counts = [0, 0, 0]

    def one(sample: Sample) -> None:
        body = json.dumps({"instances": sample.raw}).encode()
        request = Request("POST", f"{url}/v1/models/{sample.model}:predict", {"content-type": "application/json"}, body)
        attempt = 0
        while time.monotonic() < deadline:
            counts[2] += 1
            if time.monotonic() >= ready_at:  # before that nobody listens
                try:
                    answer = transport.send(request, JOB_S / scale)
                except TransportFailure:
                    answer = None
                if answer is not None and answer.status == 200:
                    counts[1] += bool(sample.wrong(json.loads(answer.body)["predictions"]))
                    return
            attempt += 1
            gevent.sleep(max(wait_s(attempt) / scale, 0.0005))
        counts[0] += 1

    pool = Pool(FRAMES)
    for sample in samples:
        pool.spawn(one, sample)
    pool.join()
    transport.close()
    return counts[0], counts[1], counts[2]


class _NotYet(GeventTransport):
    """Nobody listens before `ready_at`."""

    def __init__(self, url: str, ready_at: float) -> None:
        super().__init__(url, FRAMES)
        self._ready_at = ready_at

    def send(self, request: Request, timeout_s: float | None) -> Answer:
        """As the base's, once somebody listens."""
        if time.monotonic() < self._ready_at:
            raise Unreachable(f"no answer from {request.url}: connection refused")
        return super().send(request, timeout_s)


def samegraph(url: str, samples: Sequence[Sample], scale: float, ready_at: float) -> tuple[int, int, int]:
    """One gate for all frames."""
    lost = wrong = 0
    transport = _NotYet(url, ready_at)
    with Client(url, policy=RetryPolicy(deadline_s=JOB_S / scale), gate=Gate(), transport=transport) as client:
        results = client.predict_many(samples[0].model, (sample.raw for sample in samples), ordered=False, item_deadline_s=JOB_S / scale)
        for outcome in results:
            lost += not outcome.ok
            wrong += outcome.prediction is not None and bool(samples[outcome.index].wrong(outcome.prediction.predictions))
        return lost, wrong, results.report.attempts


CALLERS = {"naive": naive, "founders": founders, "samegraph": samegraph}


def replay(story: Story, samples: Sequence[Sample], caller: str, *, cold: bool) -> Result:
    """Play the burst once and return what it was like."""
    with story.server() as url:
        started = time.monotonic()
        ready_at = started + (COLD_S / story.scale if cold else 0.0)
        lost, wrong, attempts = CALLERS[caller](url, samples, story.scale, ready_at)
        makespan = (time.monotonic() - started) * story.scale
    return Result(caller, cold, makespan, lost, wrong, attempts, makespan * WORKERS)


def frames(repository: Path, model: str) -> list[Sample]:
    """Return 300 golden samples."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "samples.jsonl"
        command = [
            str(Path(sys.executable).with_name("samegraph")),
            "golden",
            "export",
            str(repository / model / "1"),
            "--output",
            str(file),
        ]
        held_out = repository / ".heldout" / model / "1"
        subprocess.run([*command, *(["--samples", str(held_out)] if held_out.is_dir() else [])], check=True, capture_output=True)
        found = [sample for sample in read_samples(file) if len(sample.raw) == 1]
    return [found[i % len(found)] for i in range(FRAMES)]


def main() -> int:
    """Run from the command line; return the exit code: 1 when ours lost a frame, got a wrong answer, or came last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=20.0, help="the story's seconds in one second here (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="times each caller plays (default: 3)")
    parser.add_argument("--callers", nargs="+", choices=CALLERS, default=list(CALLERS))
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--svg", type=Path, help="where the figure goes: the best of the repeats of each caller")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="samegraph-founding-") as directory:
        repository = Path(directory)
        (repository / "penguins").symlink_to(ROOT / "models" / "penguins")
        samples = frames(ROOT / "models", "penguins")
        story = Story(ROOT / "models", arguments.scale)
        results = []
        for _ in range(arguments.repeats):
            for caller in arguments.callers:
                for cold in (False, True):
                    results.append(replay(story, samples, caller, cold=cold))
                    print(_line(results[-1]), flush=True)
    if arguments.json is not None:
        document = {"scale": arguments.scale, "lower_bound_s": LOWER_BOUND_S, "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.svg is not None:
        arguments.svg.write_text(figure(results))
    ours = [result for result in results if result.caller == "samegraph"]
    return int(any(result.lost or result.wrong for result in ours))


#: What the three callers are called in the figure, and what a simulation of the same story says: makespan in seconds, attempts a frame.
_CALLED = {
    "naive": ("again at once", (152, 156.9)),
    "founders": ("backoff with full jitter", (193, 8.0)),
    "samegraph": ("one gate, the server's limit", (152, 1.0)),
}


def figure(results: Sequence[Result]) -> str:
    """Return an SVG: makespans as bars over the lower bound, with attempts a frame; the median of each caller's repeats."""
    rows = []
    for cold in (False, True):
        for caller, (words, simulated) in _CALLED.items():
            mine = sorted((r for r in results if (r.caller, r.cold) == (caller, cold)), key=lambda r: r.makespan_s)
            if mine:
                rows.append((words, cold, mine[len(mine) // 2], simulated))
    longest = 1.04 * max(*(max(r.makespan_s, simulated[0]) for _, _, r, simulated in rows), LOWER_BOUND_S + COLD_S)
    left, width, height = 200, 420, 34

    def x(seconds: float) -> float:
        return left + width * seconds / longest

    parts = []
    for place, (words, cold, result, simulated) in enumerate(rows):
        top = 58 + place * height + (18 if cold else 0)
        bound = LOWER_BOUND_S + (COLD_S if cold else 0.0)
        kind = "ours" if result.caller == "samegraph" else "theirs"
        told = f"{result.makespan_s:.0f} s, {result.attempts / FRAMES:.3g} attempts a frame"
        told += f", {result.lost} lost" if result.lost else ""
        parts.append(
            f'<text x="{left - 10}" y="{top + 14}" text-anchor="end">{words}</text>'
            f'<rect class="{kind}" x="{left}" y="{top}" width="{x(result.makespan_s) - left:.1f}" height="20" rx="2"/>'
            f'<line class="bound" x1="{x(bound):.1f}" x2="{x(bound):.1f}" y1="{top - 3}" y2="{top + 23}"/>'
            f'<text x="{left + width + 12}" y="{top + 14}">{told}</text>'
        )
        if not cold:
            parts.append(f'<circle class="simulated" cx="{x(simulated[0]):.1f}" cy="{top + 10}" r="4"/>')
    total = 58 + len(rows) * height + 26
    style = (
        "text { font: 13px system-ui, sans-serif; fill: #57606a } .head { font-weight: 600 } .ours { fill: #1f6feb } "
        ".theirs { fill: #9aa5b1 } .bound { stroke: #b3261e; stroke-width: 2 } .simulated { fill: none; stroke: #d9730d; stroke-width: 2 }"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {total}" role="img" aria-label="Makespan of 300 frames by caller">'
        f"<style>{style}</style>"
        '<text class="head" x="10" y="20">300 frames, 20 workers, 10 s each: time to the last answer; above warm, below from cold</text>'
        '<text x="10" y="40">red: the least possible; circle: simulated</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _line(result: Result) -> str:
    bound = LOWER_BOUND_S + (COLD_S if result.cold else 0.0)
    return (
        f"{result.caller:<10} {'cold' if result.cold else 'warm'}  makespan {result.makespan_s:6.1f} s "
        f"({result.makespan_s / bound:.2f} of the bound), {result.attempts / FRAMES:6.1f} attempts a frame, {result.lost} lost, "
        f"{result.wrong} wrong, {result.replica_s:7.0f} replica-seconds"
    )


if __name__ == "__main__":
    sys.exit(main())
