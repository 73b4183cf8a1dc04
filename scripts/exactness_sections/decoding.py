"""Every file of Pillow's own tests, and files made here, cut and damaged: the pixels Pillow gives, or a refusal that says why.

Each file has a process of its own, with a bound on its time and memory, so that one that crashes is counted and not the end.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import tarfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from onnx import TensorProto, helper
from PIL import Image, ImageOps
from pillow_images import encoded, noisy_picture
from samegraph_transforms.decode import _SIGNATURES, FORMATS, decode_image, pillow_decoder
from samegraph_transforms.errors import InputError
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import library
from samegraph_transforms.image import DEFAULT_MAX_PIXELS, ToRGB
from samegraph_transforms.kernels import Pixels, to_rgb
from samegraph_transforms.opsets import IR_VERSION, opset_imports

from models._fetch import fetch
from scripts.exactness_sections._counting import onnx_runtime, section, table

SDIST = "pillow==13.0.0"
#: What one variant of a file may take. Files that Pillow itself needs longer for would be counted as crashed, and seen.
CPU_LIMIT_S, MEMORY_LIMIT = 30, 4 << 30
CUTS = (0.05, 0.3, 0.6, 0.9, 0.99, 0.999)
DAMAGES = 20

EQUAL, BOTH, CONTAINER, MODE, SIZE = (
    "equal",
    "refused, by Pillow too",
    "container not accepted",
    "pixel mode not accepted",
    "over the limit",
)
OURS, THEIRS, CRASHED = "refused, not by Pillow", "accepted, not by Pillow", "crashed"
VERDICTS = (EQUAL, BOTH, CONTAINER, MODE, SIZE, OURS, THEIRS, CRASHED)

ABOUT = f"""Files through `Decode`, all formats accepted, and `ToRGB`, compared with `Image.open(file).convert("RGB")`, and with
`ImageOps.exif_transpose` in between where the orientation is applied: each file counts for both. The first rows are every
file of Pillow's own tests (sdist of {SDIST}, `Tests/images`), by the container that their first bytes name: CMYK, palettes,
16 bits, progressive, EXIF, truncated, bombs, what fuzzers found. Then files written here: every mode of a format with the
encoder's options, and the eight orientations. All that decode come again, cut at {len(CUTS)} places, and {DAMAGES} times
with up to sixteen bytes changed. `ToRGB` runs as kernel and as ONNX. *Crashed* would be a file that brings the process
down, raises anything but a refusal, warns, or takes more than {CPU_LIMIT_S} s or {MEMORY_LIMIT >> 30} GiB.

*Over the limit*: more than 89,478,485 pixels, from where on Pillow warns and ours refuses. *Refused, not by Pillow*: files that would keep
the decoder busy, such as a hundred scans or thousands of segments; see [image models](image-models.md)."""


@dataclass
class Tally:
    """What became of the files of a kind."""

    verdicts: Counter[str] = field(default_factory=Counter)
    elements: int = 0
    different: int = 0
    slowest_s: float = 0.0

    def row(self, what: str) -> list[Any]:
        """Return the cells of the table."""
        counts = [self.verdicts[verdict] for verdict in VERDICTS]
        return [what, f"Pillow {PIL.__version__}", sum(counts), self.elements, self.different, *counts, round(self.slowest_s, 2)]


def measure(work: Path, scale: float) -> dict[str, Any]:  # noqa: ARG001 - the archive is kept with the models'
    """Decode everything with each rule for EXIF; a smaller scale takes every so many files."""
    files = list(_pillow_files())[:: max(1, round(1 / scale))]
    tallies: dict[str, Tally] = {}
    for kind, data in [*files, *_written()]:
        for line in _in_a_process(data):
            variant = line["variant"]
            tally = tallies.setdefault(kind if variant == "as it is" else variant, Tally())
            tally.verdicts[line["verdict"]] += 1
            tally.elements += line["elements"]
            tally.different += line["different"]
            tally.slowest_s = max(tally.slowest_s, line["seconds"])
    head = ["files", "reference", "files tried", "elements compared", "elements different", *VERDICTS, "slowest, CPU s"]
    rows = [tally.row(kind) for kind, tally in sorted(tallies.items(), key=_order)]
    return section("Decoding", ABOUT, [table("", head, rows)], ["pillow", "numpy", onnx_runtime()])


def _order(entry: tuple[str, Tally]) -> tuple[bool, bool, str]:
    kind, _ = entry
    return not kind.startswith("`Tests/images`"), not kind.startswith("written"), kind


# ---------------------------------------------------------------- files


def _pillow_files() -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fetch(SDIST, "sdist"), "r:gz") as archive:
        for entry in archive:
            stream = archive.extractfile(entry) if entry.isfile() and "/Tests/images/" in entry.name else None
            if stream is not None:
                data = stream.read()
                yield f"`Tests/images`, {_container(data)}", data


def _container(data: bytes) -> str:
    found = next((name for name, signature in _SIGNATURES if signature.match(data)), None)
    return found if found in FORMATS else "other containers"


def _written() -> Iterator[tuple[str, bytes]]:
    """Yield one picture in every mode and option of every format, and upright in each of the eight ways."""
    rgb = noisy_picture(3, 37, 53)
    grey = rgb.convert("L")
    rgba = rgb.copy()
    rgba.putalpha(grey)
    palette = rgb.quantize(17)
    wide = Image.fromarray(np.arange(37 * 53, dtype=np.uint16).reshape(37, 53) * np.uint16(33))
    modes = {"1": grey.convert("1"), "L": grey, "LA": rgba.convert("LA"), "P": palette, "RGB": rgb, "RGBA": rgba, "I;16": wide}
    modes |= {"CMYK": rgb.convert("CMYK"), "YCbCr": rgb.convert("YCbCr"), "I": wide.convert("I")}
    can = {
        "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "WEBP": ("L", "RGB", "RGBA"),
        "GIF": ("1", "L", "P", "RGB", "RGBA"),
        "BMP": ("1", "L", "P", "RGB", "RGBA"),
        "TIFF": tuple(modes),
    }
    for container, names in can.items():
        for name in names:
            for options in _options(container, name):
                yield f"written here, {container}", encoded(modes[name], container, **options)
    for container in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            yield f"written here, {container}, EXIF 1 to 8", encoded(rgb, container, exif=exif)


def _options(container: str, mode: str) -> list[dict[str, Any]]:
    """Return what else the encoder can be told."""
    if container == "JPEG":
        plain: list[dict[str, Any]] = [{"quality": q, "progressive": p} for q in (30, 75, 95, 100) for p in (False, True)]
        return plain + ([{"subsampling": s} for s in (0, 1, 2)] if mode in ("RGB", "YCbCr") else [])
    if container == "PNG":
        transparent: dict[str, Any] = {"L": 7, "RGB": (1, 2, 3), "P": 3}
        return [{}, {"optimize": True}] + ([{"transparency": transparent[mode]}] if mode in transparent else [])
    if container == "WEBP":
        return [{}, {"lossless": True}, {"quality": 20}]
    if container == "GIF":
        return [{}, {"interlace": 0}, {"save_all": True, "append_images": [noisy_picture(5, 37, 53)]}]
    if container == "TIFF":
        return [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}]
    return [{}]


def _variants(data: bytes) -> Iterator[tuple[str, bytes]]:
    for part in CUTS:
        yield "cut short", data[: int(part * len(data))]
    chance = random.Random(len(data))
    for _ in range(DAMAGES):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 16)):
            # Half of the changes are near the beginning, where the header is.
            damaged[chance.randrange(min(len(data), 512) if chance.random() < 0.5 else len(data))] = chance.randrange(256)
        yield "damaged", bytes(damaged)


# ---------------------------------------------------------------- one file


def _in_a_process(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield what became of a file and its variants; a variant during which the process died is crashed, and the last one."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints what it finds
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
            with os.fdopen(writes, "w") as out:
                for line in _all(data):
                    out.write(json.dumps(line) + "\n")
                    out.flush()
            code = 0
        finally:
            os._exit(code)
    os.close(writes)
    begun: dict[str, Any] | None = None
    with os.fdopen(reads) as lines:
        for text in lines:
            line = json.loads(text)
            begun = line if "verdict" not in line else None
            if begun is None:
                yield line
    _, status = os.waitpid(child, 0)
    if status != 0:
        yield {"variant": (begun or {"variant": "as it is"})["variant"], "verdict": CRASHED, **_NOTHING}


_NOTHING = {"elements": 0, "different": 0, "seconds": 0.0}


def _all(data: bytes) -> Iterator[dict[str, Any]]:
    body = _to_rgb_as_onnx()
    accepted = False
    for rule in ("ignore", "apply"):
        yield {"variant": "as it is"}
        found = _one(data, rule, body)
        accepted |= found["verdict"] == EQUAL
        yield {"variant": "as it is", **found}
    for variant, changed in _variants(data) if accepted else ():
        yield {"variant": variant}
        yield {"variant": variant, **_one(changed, "apply", body)}


def _to_rgb_as_onnx() -> OrtExecutor:
    node = ToRGB().node("X", "Y")
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, [f"{name}{axis}" for axis in "hwc"]) for name in "XY"]
    graph = helper.make_graph([node], "to_rgb", ends[:1], ends[1:])
    return OrtExecutor(helper.make_model(graph, functions=library(["ToRGB"]), opset_imports=opset_imports(), ir_version=IR_VERSION))


def _one(data: bytes, rule: Any, body: OrtExecutor) -> dict[str, Any]:
    """Decode a file with both and say what came of it."""
    decoder = pillow_decoder("decode", formats=FORMATS, exif_orientation=rule)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 2 * CPU_LIMIT_S, resource.RLIM_INFINITY))
    started = time.process_time()
    refusal: InputError | None = None
    got: list[np.ndarray] = []
    crashed = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            array = decode_image(data, decoder, max_pixels=DEFAULT_MAX_PIXELS, field="image")
            got = [to_rgb(Pixels(array=array)).array(), body.run({"X": array})[0]]
        except InputError as error:
            refusal = error
        except Exception:  # noqa: BLE001 - anything else is what is looked for
            crashed = True
    seconds = time.process_time() - started
    expected = None if crashed else _pillow(data, upright=rule == "apply")
    verdict = CRASHED if crashed or seconds > CPU_LIMIT_S else _verdict(refusal, expected)
    counts = dict(_NOTHING)
    if got and expected is not None:
        different = [expected.size if one.shape != expected.shape else int(np.count_nonzero(one != expected)) for one in got]
        counts |= {"elements": int(expected.size), "different": max(different)}
    return {"verdict": verdict, **counts, "seconds": seconds}


def _verdict(refusal: InputError | None, expected: np.ndarray | None) -> str:
    if refusal is None:
        return THEIRS if expected is None else EQUAL
    if refusal.code == "unsupported_format":
        return MODE if "pixel mode" in str(refusal) else CONTAINER
    if expected is None:
        return BOTH
    if refusal.code == "undecodable" and "not an image" in str(refusal):
        return CONTAINER
    return SIZE if refusal.code == "too_many_pixels" else OURS


def _pillow(data: bytes, *, upright: bool) -> np.ndarray | None:
    """Do what training code does; None when Pillow refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image: Image.Image = Image.open(io.BytesIO(data))
            return np.asarray((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
        except Exception:  # noqa: BLE001 - Pillow refuses in many ways
            return None
