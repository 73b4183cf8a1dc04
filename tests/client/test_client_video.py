"""Frames of a video: what the stream decodes, pixel for pixel, in order, with their times."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import write_clip
from PIL import Image
from samegraph_client import AsyncClient, Client, Outcome, StreamReport, VideoUnreadable
from samegraph_client.report import Report
from samegraph_client.video import Frames
from scripted_server import predicted, scripted_server


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", n=30, rate=25)


def pixels(content: bytes) -> np.ndarray:
    """Return an encoded image's pixels."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def decoded(path: Path) -> list[np.ndarray]:
    """Return what the stream decodes, straight from FFmpeg."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def stream_of(report: Report) -> StreamReport:
    """Return the stream's part of a report."""
    assert isinstance(report.stream, StreamReport)
    return report.stream


@pytest.mark.parametrize("face", ["sync", "async"])
def test_every_frame_has_one_outcome_with_its_time(clip: Path, face: str) -> None:
    """Thirty frames at 25 a second are thirty outcomes, 40 ms apart; each was sent as an image."""

    async def awaited(url: str) -> tuple[list[Outcome], Report]:
        async with AsyncClient(url) as client:
            results = client.predict_frames("m", clip)
            return [outcome async for outcome in results], results.report

    with scripted_server(predicted("cat")) as server:
        if face == "sync":
            with Client(server.url) as client:
                results = client.predict_frames("m", clip)
                outcomes, report = list(results), results.report
        else:
            outcomes, report = asyncio.run(awaited(server.url))
    assert [outcome.index for outcome in outcomes] == list(range(30))
    assert [outcome.time_s for outcome in outcomes] == pytest.approx([0.04 * n for n in range(30)])
    assert {request.headers["content-type"] for request in server.received} == {"image/bmp"}
    stream = stream_of(report)
    assert (stream.decoded, stream.claimed, stream.damaged, stream.codec, stream.width, stream.height) == (30, 30, False, "h264", 64, 48)


@pytest.mark.parametrize("image_format", ["png", "bmp"])
def test_default_formats_do_not_alter_pixels(clip: Path, image_format: str) -> None:
    """What is sent decodes to exactly what FFmpeg decoded."""
    sent = [pixels(frame.content) for frame in Frames(clip, image_format)]  # type: ignore[arg-type]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(sent, decoded(clip), strict=True))


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "rgb24", "bgr24", "nv12", "gray", "yuv420p10le"])
@pytest.mark.parametrize("size", [(64, 48), (66, 50), (101, 77), (7, 3), (1, 1)], ids=str)
def test_bitmaps_are_those_of_pillow(clip: Path, pixel_format: str, size: tuple[int, int]) -> None:
    """Byte for byte, whatever the stream's pixels are and however rows are padded."""
    picture: Any = av.VideoFrame(*size, pixel_format)
    noise = np.random.default_rng(3)
    for plane in picture.planes:
        plane.update(noise.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    buffer = io.BytesIO()
    picture.to_image().save(buffer, format="BMP")
    assert Frames(clip)._encoded(picture) == buffer.getvalue()


def test_jpeg_is_smaller_and_not_exact(clip: Path) -> None:
    """JPEG is a choice, with its quality; higher quality is nearer."""
    truth = decoded(clip)

    def error(quality: int) -> float:
        return float(
            np.mean([np.abs(pixels(f.content).astype(int) - t).mean() for f, t in zip(Frames(clip, "jpeg", quality), truth, strict=True)])
        )

    assert 0 < error(95) < error(30) < 30


def test_truncated_file_is_reported(clip: Path, tmp_path: Path) -> None:
    """A file that ends early gives the frames it has, and says that it claimed more."""
    source = write_clip(tmp_path / "whole.avi", n=60, codec="mpeg4")
    cut = tmp_path / "cut.avi"
    cut.write_bytes(source.read_bytes()[: int(source.stat().st_size * 0.6)])
    frames = Frames(cut)
    n = len(list(frames))
    assert 5 < n < 60
    assert frames.report.decoded == n
    assert frames.report.damaged


def test_header_is_not_believed(tmp_path: Path) -> None:
    """The count is what decodes, not what the header claims; overwritten packets are reported."""
    source = write_clip(tmp_path / "whole.mp4", n=60)
    content = bytearray(source.read_bytes())
    start, end = content.index(b"mdat"), content.index(b"moov")
    third = (end - start) // 3
    content[start + third : end - third] = b"\xff" * (end - start - 2 * third)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content)
    frames = Frames(broken)
    n = len(list(frames))
    assert frames.report.claimed == 60
    assert frames.report.decoded == n
    assert frames.report.damaged
    assert 0 < n <= 60
    assert frames.report.errors > 0
    assert frames.report.messages


@pytest.mark.parametrize("content", [b"", b"this is no video", b"\x00" * 5000])
def test_file_without_video_is_named(tmp_path: Path, content: bytes) -> None:
    """Nothing is sent, and the file is named."""
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    with Client("http://127.0.0.1:9") as client, pytest.raises(VideoUnreadable, match=r"notes\.mp4"):
        client.predict_frames("m", path)


def test_frames_resume_from_the_journal(clip: Path, tmp_path: Path) -> None:
    """Frames that were answered are decoded, to keep count, but neither encoded nor sent again."""
    with scripted_server(predicted(1)) as server, Client(server.url) as client:
        with client.predict_frames("m", clip, journal=tmp_path / "j") as results:
            for outcome in results:
                if outcome.index == 9:
                    break
        before = len(server.received)
        results = client.predict_frames("m", clip, journal=tmp_path / "j")
        outcomes = list(results)
    assert [outcome.index for outcome in outcomes] == list(range(30))
    assert results.report.replayed >= 10
    assert len(server.received) - before == 30 - results.report.replayed


def test_missing_extra_is_a_sentence(clip: Path) -> None:
    """Without PyAV the client works, and says what a video needs."""
    program = f"""
import sys
sys.modules["av"] = None
from samegraph_client import Client, ExtraMissing
try:
    Client("http://127.0.0.1:9").predict_frames("m", {str(clip)!r})
except ExtraMissing as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "reading a video needs an optional package: pip install 'samegraph-client[video]'\n"
