"""Frames of a clip, all at once, through the real `imagenet` server: nothing lost, nothing twice, in order, and about one attempt each.

Forty frames as a test; `BURST_FRAMES=300` sends as many as the founding scenario had and prints the figures of docs/loadtest.md, and
`BURST_CLIP=file` takes them from that clip, from its beginning again when it has fewer. The saturated rate is that between the first and
the last tenth of the answers of a run of its own: once with the client reading a clip twice as long, as in the burst, once with pictures
that were encoded beforehand.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from samegraph_client import Client, StreamReport
from samegraph_client.blocking import Results
from samegraph_client.dispatch import Event
from samegraph_client.report import Report
from samegraph_client.video import Frames
from server_process import ROOT, ServerProcess

N = int(os.environ.get("BURST_FRAMES", "40"))
CLIP = os.environ.get("BURST_CLIP")
HEIGHT, WIDTH = 240, 320


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of N pictures."""
    return _clip_of(N, tmp_path_factory.mktemp("clip") / "clip.mp4")


def _clip_of(n: int, path: Path) -> Path:
    pictures = _pictures_of(Path(CLIP)) if CLIP else _windows()
    first = next(pictures)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        for picture in itertools.chain([first], itertools.islice(pictures, n - 1)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def _windows() -> Iterator[np.ndarray]:
    """Yield different pictures: a window that moves over two photos."""
    photos = [np.asarray(Image.open(ROOT / "docs" / "photos" / name).convert("RGB")) for name in ("camera.jpg", "coffee.jpg")]
    for index in itertools.count():
        photo = photos[index // 10 % 2]
        top, left = (index * 7) % (photo.shape[0] - HEIGHT), (index * 11) % (photo.shape[1] - WIDTH)
        yield np.ascontiguousarray(photo[top : top + HEIGHT, left : left + WIDTH])


def _pictures_of(clip: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a clip, over and over."""
    while True:
        with av.open(str(clip)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def client(server: ServerProcess, events: list[Event]) -> Iterator[Client]:
    """A blocking client of the server, watched."""
    with Client(server.url, hooks=[events.append]) as made:
        yield made


def test_every_frame_is_answered_once_in_order(client: Client, clip: Path, events: list[Event], tmp_path: Path) -> None:
    """Each frame's outcome is what the same picture gets when it is sent alone; attempts stay below 1.1 per frame."""
    contents = [frame.content for frame in Frames(clip)]
    encoded = _all_of(client.predict_many("imagenet", contents))
    reading = _all_of(client.predict_frames("imagenet", _clip_of(2 * N, tmp_path / "longer.mp4"))) if N >= 100 else encoded
    events.clear()
    results = client.predict_frames("imagenet", clip)
    outcomes = list(results)
    report = results.report
    assert [outcome.index for outcome in outcomes] == list(range(N))
    assert all(outcome.ok for outcome in outcomes)
    assert isinstance(report.stream, StreamReport)
    assert (report.stream.decoded, report.stream.damaged) == (N, False)
    assert report.attempts <= 1.1 * N
    assert sum(event.kind == "finished" for event in events) == N
    assert all(event.in_flight <= max(event.window, 8) for event in events if event.kind == "sent" and not event.paused)
    for index in range(0, N, max(1, N // 10)):
        assert outcomes[index].value == client.predict("imagenet", contents[index]).value
    for rates, rate in (("a client that reads a clip", reading), ("pictures encoded before", encoded)):
        assert rate.service_rate_per_s is not None
        print(
            f"{N} frames: {report.attempts} attempts, {report.refusals} refusals, {report.makespan_s:.2f} s; "
            f"{rate.service_rate_per_s:.1f}/s saturated with {rates}: "
            f"{report.makespan_s * rate.service_rate_per_s / N:.2f} × (frames / rate); load average {os.getloadavg()[0]:.1f}"
        )


def _all_of(results: Results) -> Report:
    """Return the report of a burst of which everything was answered."""
    assert all(outcome.ok for outcome in results)
    return results.report
