"""What is measured of an image: its file and the pixels the model sees."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samegraph_transforms.baseline_images import CONTAINER, PIXELS, container_facts, jpeg_quality, pixel_facts

GENERATOR = np.random.default_rng(5)
NOISE = GENERATOR.integers(0, 256, (224, 224, 3), dtype=np.uint8)


def encoded(mode: str = "RGB", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    """Return a small file; `format` is JPEG unless given."""
    stream = io.BytesIO()
    Image.new(mode, size, 77).save(stream, **{"format": "JPEG", **options})
    return stream.getvalue()


def smooth(height: int = 224, width: int = 224) -> np.ndarray:
    """Return a colourful picture without noise."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 200 // (width + height)], axis=2).astype(np.uint8)


class TestContainer:
    @pytest.mark.parametrize("quality", [1, 10, 40, 49, 50, 51, 75, 90, 99, 100])
    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    def test_jpeg_settings_are_read_from_the_header(self, quality: int, subsampling: str) -> None:
        """The quality a file was written with comes back exactly, and so does its chroma subsampling."""
        facts = container_facts(encoded(quality=quality, subsampling=subsampling))
        assert (facts["quality_estimate"], facts["chroma_subsampling"]) == (quality, subsampling)

    def test_grey_jpeg_has_no_chroma(self) -> None:
        """One component is `grey`."""
        facts = container_facts(encoded("L"))
        assert (facts["mode"], facts["chroma_subsampling"]) == ("L", "grey")

    @pytest.mark.parametrize(("format_", "mode"), [("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB"), ("GIF", "P"), ("BMP", "RGB")])
    def test_other_containers(self, format_: str, mode: str) -> None:
        """Format, mode and size of containers that have neither subsampling nor quality."""
        data = encoded(mode, (60, 40), format=format_)
        assert container_facts(data) == {
            "width": 60, "height": 40, "aspect": 1.5, "bytes": len(data), "format": format_, "mode": mode, "exif_orientation": "none",
            "chroma_subsampling": "none", "quality_estimate": None,
        }  # fmt: skip

    @pytest.mark.parametrize("orientation", [1, 6, 8])
    def test_exif_orientation_is_the_tag_as_it_stands(self, orientation: int) -> None:
        """A tag that says upright is another fact than no tag: cameras write it, editors do not."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert container_facts(encoded(exif=exif))["exif_orientation"] == str(orientation)
        assert container_facts(encoded())["exif_orientation"] == "none"

    def test_missing_and_foreign_files(self) -> None:
        """A missing file has no facts, one that is no image only its size."""
        assert container_facts(None) == dict.fromkeys(CONTAINER)
        assert container_facts(b"no image") == {**dict.fromkeys(CONTAINER), "bytes": 8}

    def test_quality_of_a_foreign_table_stays_in_range(self) -> None:
        """A table no quality setting makes gets the nearest one."""
        assert jpeg_quality([1] * 64) == 100
        assert jpeg_quality([255] * 64) == 1
        assert jpeg_quality([60_000] * 64) == 1


class TestPixels:
    @staticmethod
    def reference(image: np.ndarray) -> dict[str, float]:
        """The definitions in plain float64, over every second pixel."""
        seen = image[::2, ::2].astype(np.float64)
        luma = (77 * seen[..., 0] + 150 * seen[..., 1] + 29 * seen[..., 2]) / 256
        highest, lowest = seen.max(axis=2), seen.min(axis=2)
        shares = seen.sum(axis=(0, 1)) / seen.sum()
        green = image[..., 1].astype(np.float64)
        laplacian = 4 * green[1:-1, 1:-1] - green[:-2, 1:-1] - green[2:, 1:-1] - green[1:-1, :-2] - green[1:-1, 2:]
        return {
            "brightness": luma.mean(), "contrast": luma.std(), "red_share": shares[0], "green_share": shares[1], "blue_share": shares[2],
            "saturation": (highest - lowest).sum() / highest.sum(), "black_share": (highest <= 5).mean(),
            "saturated_share": (lowest >= 250).mean(), "sharpness": laplacian[::2, ::2].var(),
        }  # fmt: skip

    @pytest.mark.parametrize("image", [NOISE, smooth(), NOISE // 50, 255 - NOISE // 50], ids=["noise", "smooth", "dark", "bright"])
    def test_statistics_are_what_they_are_defined_as(self, image: np.ndarray) -> None:
        """Integer sums give what the formulas give in float64, to the rounding of the last shown digit."""
        found, expected = pixel_facts(image), self.reference(image)
        assert list(found) == list(PIXELS)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-4, rel=1e-6), name

    def test_layout_and_alpha_do_not_matter(self) -> None:
        """[C, H, W] and a fourth channel give the same numbers."""
        image = smooth()
        assert pixel_facts(np.ascontiguousarray(image.transpose(2, 0, 1))) == pixel_facts(image)
        assert pixel_facts(np.dstack([image, np.zeros_like(image[..., :1])])) == pixel_facts(image)

    def test_swapped_channels_swap_the_shares(self) -> None:
        """BGR where RGB was meant exchanges red and blue and leaves the rest of the shares."""
        image = smooth()
        right, swapped = pixel_facts(image), pixel_facts(image[..., ::-1])
        assert (swapped["red_share"], swapped["blue_share"]) == (right["blue_share"], right["red_share"])
        assert swapped["green_share"] == right["green_share"]

    def test_grey_has_brightness_and_no_colours(self) -> None:
        """One channel has levels and sharpness; there is no colour to speak of."""
        grey = smooth()[..., :1]
        found = pixel_facts(grey)
        assert found["brightness"] == pytest.approx(grey[::2, ::2].mean(), abs=1e-4)
        assert [name for name, value in found.items() if value is None] == ["red_share", "green_share", "blue_share", "saturation"]

    @pytest.mark.parametrize(
        "pixels",
        [None, np.zeros((4, 4), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 7), np.uint8), np.zeros((0, 8, 3), np.uint8)],
        ids=["missing", "two axes", "floats", "seven channels", "empty"],
    )
    def test_what_is_no_picture_has_no_statistics(self, pixels: np.ndarray | None) -> None:
        """Every statistic is None, and nothing fails."""
        assert pixel_facts(pixels) == dict.fromkeys(PIXELS)

    def test_smallest_and_black_pictures(self) -> None:
        """Nothing is divided by zero: one pixel has no sharpness, black no colour."""
        assert pixel_facts(np.full((1, 1, 3), 9, np.uint8))["sharpness"] is None
        black = pixel_facts(np.zeros((8, 8, 3), np.uint8))
        assert (black["black_share"], black["red_share"], black["saturation"]) == (1.0, None, None)
