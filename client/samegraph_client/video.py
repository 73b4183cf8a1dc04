"""Frames out of a video file: what the stream really decodes, as encoded images. Needs PyAV (`samegraph-client[video]`)."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import ExtraMissing, VideoUnreadable
from .many import Frame

FrameFormat = Literal["png", "bmp", "jpeg"]
#: Pixel formats that FFmpeg converts to BGR with the same values as to RGB; of the others some round differently.
_SAME_EITHER_WAY = frozenset(("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "rgb24", "bgr24"))
#: Messages of the decoder that a report keeps; all are counted.
_MOST_MESSAGES = 20


@dataclass
class StreamReport:
    """What a video's stream is like; complete once all frames have been read.

    Attributes:
        codec: Name of the codec.
        width: Pixels.
        height: Pixels.
        claimed: Frames the file's header claims; None when it claims none.
        decoded: Frames the stream really decodes.
        corrupt: Those the decoder marks as damaged.
        errors: Packets that could not be decoded, and places where the file could not be read on.
        messages: What the decoder said about the first of them.
    """

    codec: str = ""
    width: int = 0
    height: int = 0
    claimed: int | None = None
    decoded: int = 0
    corrupt: int = 0
    errors: int = 0
    messages: list[str] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether anything was lost: errors, damaged frames, or fewer frames than claimed."""
        return bool(self.errors or self.corrupt) or (self.claimed is not None and self.decoded < self.claimed)

    def note(self, error: Exception) -> None:
        """Count an error of the decoder."""
        self.errors += 1
        if len(self.messages) < _MOST_MESSAGES:
            self.messages.append(str(error)[:200])


class Frames:
    """The frames of a video's first video stream, in presentation order; each iteration reads the file anew.

    The decoded picture is converted to 8-bit RGB (FFmpeg's conversion) and encoded. BMP and PNG keep those pixels exactly. BMP is the
    default, since encoding is time the server waits: measured on 320 × 240 on a busy machine, 0.4 ms to encode and 0.4 to decode against
    PNG's 9.7 and 5.9 at its fastest, for 230 KB against 81, so that PNG is the better one below about 80 Mbit/s.

    Args:
        path: The file.
        image_format: What a frame is sent as.
        jpeg_quality: 1 to 100, for `jpeg`; chroma is not subsampled.

    Attributes:
        report: What the stream is like, as far as it has been read.
        skip: Whether a frame is not needed; it is counted, and its content left empty.

    Raises:
        ExtraMissing: PyAV or Pillow is not installed.
        VideoUnreadable: The file holds no video stream.
    """

    def __init__(self, path: Path, image_format: FrameFormat = "bmp", jpeg_quality: int = 95) -> None:
        if image_format not in ("png", "bmp", "jpeg"):
            raise ValueError(f"image_format must be png, bmp or jpeg, got {image_format!r}")
        if not 1 <= jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be 1 to 100, got {jpeg_quality}")
        self._path, self._format, self._quality = path, image_format, jpeg_quality
        self.report = StreamReport()
        self.skip: Callable[[int], bool] = lambda _index: False
        with self._open() as container:
            self._describe(container)

    def described(self) -> dict[str, object]:
        """Return what tells these frames from others: the file's name and size, and how frames are encoded."""
        quality = {"jpeg_quality": self._quality} if self._format == "jpeg" else {}
        return {"video": self._path.name, "bytes": self._path.stat().st_size, "image_format": self._format, **quality}

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames that decode; what does not is in the report."""
        report = self.report
        report.decoded = report.corrupt = report.errors = 0
        report.messages.clear()
        with self._open() as container:
            for picture in self._decoded(container):
                index = report.decoded
                report.decoded += 1
                corrupt = bool(picture.is_corrupt)
                report.corrupt += corrupt
                content = b"" if self.skip(index) else self._encoded(picture)
                yield Frame(index, picture.time, content, corrupt)

    def _open(self) -> Any:
        av = _av()
        try:
            container = av.open(str(self._path))
        except (OSError, av.FFmpegError) as error:
            raise VideoUnreadable(f"cannot read {self._path}: {error.strerror}") from error
        if not container.streams.video:
            container.close()
            raise VideoUnreadable(f"{self._path} holds no video stream")
        return container

    def _describe(self, container: Any) -> None:
        stream = container.streams.video[0]
        context = stream.codec_context
        self.report = StreamReport(context.name, context.width, context.height, int(stream.frames) or None)

    def _decoded(self, container: Any) -> Iterator[Any]:
        """Yield decoded pictures; a damaged packet costs only itself, an unreadable rest ends the stream."""
        stream = container.streams.video[0]
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except _av().FFmpegError as error:
                self.report.note(error)
                yield from self._of(lambda: stream.decode(None))  # what the decoder still holds
                return
            yield from self._of(packet.decode)

    def _of(self, decode: Callable[[], list[Any]]) -> list[Any]:
        try:
            return decode()
        except _av().FFmpegError as error:
            self.report.note(error)
            return []

    def _encoded(self, picture: Any) -> bytes:
        if self._format == "bmp" and picture.format.name in _SAME_EITHER_WAY:
            return _bitmap(picture.reformat(format="bgr24"))
        options: dict[str, Any] = {
            "png": {"compress_level": 1},
            "bmp": {},
            "jpeg": {"quality": self._quality, "subsampling": 0},
        }[self._format]
        buffer = io.BytesIO()
        picture.to_image().save(buffer, format=self._format, **options)
        return buffer.getvalue()


def _bitmap(picture: Any) -> bytes:
    """Return a BGR picture as a BMP file, byte for byte as Pillow writes it."""
    plane, width, height = picture.planes[0], picture.width, picture.height
    pixels, step, row = memoryview(plane), plane.line_size, 3 * width
    padding = bytes(-row % 4)
    size = (row + len(padding)) * height
    head = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + size, 0, 0, 54, 40, width, height, 1, 24, 0, size, 3780, 3780, 0, 0)
    rows = (pixels[start : start + row] for start in range((height - 1) * step, -1, -step))  # the lowest first
    return b"".join((head, *((piece for line in rows for piece in (line, padding)) if padding else rows)))


def _av() -> Any:
    try:
        import av
        import PIL.Image  # noqa: F401 - PyAV makes its images with it, and says so late
    except ImportError as error:
        raise ExtraMissing("reading a video", "video") from error
    return av
