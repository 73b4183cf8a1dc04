"""The page of a proof."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from package_builders import WEIGHTS, classifier, draft, samples
from PIL import Image
from samegraph_transforms.cli import cli
from samegraph_transforms.divergence import Picture
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.pack import pack
from samegraph_transforms.package import write_package
from samegraph_transforms.verify import verify
from samegraph_transforms.verify_html import render


class _Wellformed(HTMLParser):
    """Counts elements that are open, and keeps what would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_images_that_differ_are_in_the_page_with_their_difference(tmp_path: Path) -> None:
    """Expected, got and the difference stretched to be seen, pixel for pixel, as files of the page itself."""
    stages = [draft().stages[0], DraftStage("model", classifier(-WEIGHTS)), draft().stages[2]]
    report = verify(write_package(draft(stages=stages), samples(), tmp_path / "plants" / "1"))
    assert report.divergence is not None
    expected = np.random.default_rng(1).integers(0, 200, (20, 30, 3)).astype(np.uint8)
    got = expected.copy()
    got[3, 4] += 5
    page = render(replace(report, divergence=replace(report.divergence, picture=Picture("pixels<", "a&b", expected, got))))
    files = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)]
    shown = [np.asarray(image) for image in files]
    np.testing.assert_array_equal(shown[0], expected)
    np.testing.assert_array_equal(shown[1], got)
    assert shown[2].max() == 255
    assert np.argwhere(shown[2].any(axis=2)).tolist() == [[3, 4]]
    assert "at most 5 levels, 0.2% of the pixels" in page
    assert "pixels&lt;" in page
    parser = _Wellformed()
    parser.feed(page)
    assert parser.open == []
    assert all(place.startswith(("#", "data:")) for place in parser.loads)


def test_command_writes_the_page_and_still_reports(tmp_path: Path) -> None:
    """--html writes the page beside the usual report; the exit code is the report's."""
    package = pack(draft(), samples(), tmp_path)
    result = CliRunner().invoke(cli, ["verify", str(package.path), "--html", str(tmp_path / "report.html")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "exact: the package answers as training did" in page
    assert 'id="node"' not in page
    assert "exact: the package answers as training did" in result.stdout
