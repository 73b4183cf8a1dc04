"""The client against the real server's admission: a model with a declared time, and fewer places than requests."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer, live_server
from samegraph_client import AsyncClient, Client, Gate, Prediction, RetryPolicy
from samegraph_transforms.golden import read_samples
from server_process import ServerProcess

BATCH_S, BATCH, PLACES = 0.05, 8, 24


@pytest.fixture(scope="module")
def busy(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of one model that takes 50 ms for up to eight rows and accepts 24 requests."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(examples / "penguins", models / "penguins", copy_function=shutil.copyfile)
    execution = {"simulated_batch_s": BATCH_S, "max_batch_size": BATCH, "run_slots": 1}
    with live_server(models, execution=execution, limits={"max_requests": PLACES}) as server:
        yield server


@pytest.fixture(scope="module")
def row(examples: Path) -> object:
    """A row of the model's."""
    sample = next(s for s in read_samples(examples / "penguins/1/golden") if b'"instances"' in s.body)
    return json.loads(sample.body)["instances"][0]


def test_burst_through_the_gate_is_not_refused(busy: LiveServer, row: object) -> None:
    """The window follows the advertised limit: one attempt each, no refusal, and never more in flight than there are places."""
    most = 0

    def watch(event: object) -> None:
        nonlocal most
        most = max(most, event.in_flight)  # type: ignore[attr-defined]

    with Client(busy.url, hooks=[watch]) as client:
        results = client.predict_many("penguins", [row] * 120)
        assert [outcome.index for outcome in results] == list(range(120))
        assert client.gate.follows_server
    report = results.report
    assert (report.answered, report.failed) == (120, 0)
    assert report.attempts <= 1.1 * 120
    assert most <= PLACES


def test_callers_that_only_obey_hints_all_get_in(busy: LiveServer, row: object) -> None:
    """Sixty callers that know nothing of each other: each is answered, and hinted refusals cost none of their five attempts."""

    async def all_at_once() -> list[Prediction]:
        clients = [AsyncClient(busy.url, policy=RetryPolicy(deadline_s=60), gate=Gate(1)) for _ in range(60)]
        try:
            return await asyncio.gather(*(client.predict("penguins", row) for client in clients))
        finally:
            for client in clients:
                await client.close()

    answers = asyncio.run(all_at_once())
    assert len(answers) == 60
    assert sum(answer.refusals for answer in answers) == sum(answer.attempts - 1 for answer in answers)


def test_repeated_key_is_answered_without_computing_again(busy: LiveServer, row: object, tmp_path: Path) -> None:
    """A journal that lost its answers sends the same keys again; the server gives the answers it has kept."""
    journal = tmp_path / "j"
    with Client(busy.url) as client:
        first = [outcome.prediction for outcome in client.predict_many("penguins", [row] * 5, journal=journal)]
        lines = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join(line for line in lines if '"answer"' not in line))
        again = [outcome.prediction for outcome in client.predict_many("penguins", [row] * 5, journal=journal)]
    assert [p.prediction_id for p in first if p] == [p.prediction_id for p in again if p]


def test_server_killed_and_started_again_loses_nothing(examples: Path, tmp_path: Path, row: object) -> None:
    """SIGKILL in the middle of a burst, another process on the same port after it: every item is answered, once, in order."""
    models = tmp_path / "models"
    shutil.copytree(examples / "penguins", models / "penguins", copy_function=shutil.copyfile)

    def started(port: int = 0) -> ServerProcess:
        return ServerProcess(
            models, port=port, EXECUTION__SIMULATED_BATCH_S=str(BATCH_S), EXECUTION__MAX_BATCH_SIZE=str(BATCH), EXECUTION__RUN_SLOTS="1"
        )

    first = started()
    second: list[ServerProcess] = []
    try:
        with Client(first.url) as client:
            indexes = []
            for outcome in client.predict_many("penguins", [row] * 150):
                assert outcome.ok
                indexes.append(outcome.index)
                if outcome.index == 20:
                    first.process.kill()
                    first.process.wait(60)
                    second.append(started(int(first.url.rpartition(":")[2])))
    finally:
        for server in (first, *second):
            server.close()
    assert indexes == list(range(150))
