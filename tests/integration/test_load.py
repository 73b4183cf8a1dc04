"""Many callers at once on the real image model: batches form, everyone gets his own answer, and SIGTERM loses nothing."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families
from samegraph_transforms.golden import read_samples
from server_process import ServerProcess

CALLERS = 64


@dataclass(frozen=True)
class Case:
    """A raw image and the label training gave it."""

    body: bytes
    content_type: str
    label: str


@pytest.fixture(scope="module")
def cases(examples: Path) -> list[Case]:
    samples = read_samples(examples / ".heldout" / "imagenet" / "1")[:CALLERS]
    return [Case(s.body, s.headers["content-type"], str(s.outputs["label"][0, 0])) for s in samples]


async def post(url: str, case: Case) -> tuple[int, bytes] | None:
    """POST one image on a connection of its own; None when the server closed before accepting the request."""
    address = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
    except ConnectionRefusedError:
        return None
    head = f"POST /v1/models/imagenet:predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {case.content_type}\r\n"
    head += f"content-length: {len(case.body)}\r\n\r\n"
    try:
        writer.write(head.encode() + case.body)
        answer = await reader.read()
    finally:
        writer.close()
    header, _, body = answer.partition(b"\r\n\r\n")
    return int(header.split()[1]), body


async def together(url: str, cases: list[Case]) -> list[tuple[int, bytes] | None]:
    return await asyncio.gather(*(post(url, case) for case in cases))


def metric(server: ServerProcess, name: str, **labels: str) -> float:
    text = server.get("/metrics")[1].decode()
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(s.value for s in samples if s.name == name and all(s.labels.get(k) == v for k, v in labels.items()))


def test_64_callers_share_batches_and_each_gets_his_own_answer(server: ServerProcess, cases: list[Case]) -> None:
    """Batches larger than one form, and no answer is swapped."""
    before = metric(server, "samegraph_batch_size_count", model="imagenet"), metric(server, "samegraph_batch_size_sum", model="imagenet")
    replies = asyncio.run(together(server.url, cases))
    after = metric(server, "samegraph_batch_size_count", model="imagenet"), metric(server, "samegraph_batch_size_sum", model="imagenet")
    for case, reply in zip(cases, replies, strict=True):
        assert reply is not None
        assert reply[0] == 200
        assert json.loads(reply[1])["predictions"][0]["label"][0] == case.label
    assert after[1] - before[1] == CALLERS
    assert after[0] - before[0] < CALLERS, "no batch held more than one row"


def test_a_corrupt_image_among_63_good_ones_fails_alone(server: ServerProcess, cases: list[Case]) -> None:
    """One caller's broken file is his own."""
    good = cases[0]
    broken = Case(good.body[: len(good.body) // 2], good.content_type, "")
    replies = asyncio.run(together(server.url, [*cases[:31], broken, *cases[32:]]))
    failed = [i for i, reply in enumerate(replies) if reply is None or reply[0] != 200]
    assert failed == [31]
    reply = replies[31]
    assert reply is not None
    assert reply[0] == 400
    assert json.loads(reply[1])["field"] == "image"


def test_many_images_in_one_multipart_request_are_answered_in_order(server: ServerProcess, cases: list[Case]) -> None:
    """A bad part is null in its place; the others are right."""
    parts = [*cases[:5], Case(b"not an image", "image/jpeg", ""), *cases[5:8]]
    body = b"".join(b"--edge\r\nContent-Type: " + p.content_type.encode() + b"\r\n\r\n" + p.body + b"\r\n" for p in parts) + b"--edge--\r\n"
    reply = asyncio.run(post(server.url, Case(body, "multipart/form-data; boundary=edge", "")))
    assert reply is not None
    assert reply[0] == 200
    answer = json.loads(reply[1])
    assert [p and p["label"][0] for p in answer["predictions"]] == [p.label or None for p in parts]
    assert [(e["instance"], e["code"]) for e in answer["errors"]] == [(5, "undecodable")]


@pytest.fixture
def own_server(examples: Path) -> Iterator[ServerProcess]:
    running = ServerProcess(examples, LOG__ACCESS="false")
    try:
        assert running.url, "\n".join(running.lines)
        yield running
    finally:
        running.close()


async def until_refused(url: str, case: Case, counts: Counter[str], started: asyncio.Event) -> None:
    """Send one request after another until the server says that it is leaving, or has left; count how each ended."""
    while True:
        try:
            reply = await post(url, case)
        except (ConnectionError, IndexError):
            counts["broken"] += 1
            return
        started.set()
        if reply is None:
            counts["refused"] += 1
            return
        if reply[0] == 200:
            assert json.loads(reply[1])["predictions"][0]["label"][0] == case.label
            counts["answered"] += 1
        else:
            assert reply[0] == 503
            assert json.loads(reply[1])["code"] == "draining"
            counts["draining"] += 1
            return  # a balancer would send him to another replica now


async def terminate_under_load(server: ServerProcess, cases: list[Case], counts: Counter[str]) -> None:
    started = asyncio.Event()
    callers = [asyncio.ensure_future(until_refused(server.url, case, counts, started)) for case in cases]
    await started.wait()
    server.process.terminate()
    await asyncio.wait_for(asyncio.gather(*callers), 60)


def test_sigterm_under_load_answers_everything_that_was_accepted(own_server: ServerProcess, cases: list[Case]) -> None:
    """Every request that got in is answered: right, or 503 draining; no connection breaks off, and the exit is clean."""
    counts: Counter[str] = Counter()
    asyncio.run(terminate_under_load(own_server, cases[:32], counts))
    assert own_server.process.wait(60) == 0
    assert counts["broken"] == 0
    assert counts["answered"] >= 32
    assert counts["draining"] + counts["refused"] == 32
    assert counts["draining"] > 0
    drained = [json.loads(line) for line in own_server.lines if '"shutdown_drained"' in line]
    assert [d["answered_as_draining"] for d in drained] == [0]
