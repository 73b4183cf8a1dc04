"""How baselines are shown: histograms in the terminal and the HTML page of `inspect`."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from package_builders import KINDS, classifier, draft, samples
from rich.console import Console
from samegraph_transforms.baseline import BASELINE
from samegraph_transforms.baseline_bins import boolean_variable, categorical_variable, numeric_variable
from samegraph_transforms.baseline_svg import COLUMNS, bins_table, histogram
from samegraph_transforms.baseline_view import columns, is_log, percent, short, sparkline, words
from samegraph_transforms.cli import cli
from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.inspection import Inspection, inspect
from samegraph_transforms.inspection_html import render
from samegraph_transforms.manifest import FileEntry, Provenance
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package, open_version, write_package

GENERATOR = np.random.default_rng(7)
ROWS: list[dict[str, Any]] = [
    {"size": None if i % 9 == 0 else float(size), "kind": str(kind)}
    for i, (size, kind) in enumerate(zip(GENERATOR.normal(size=300), GENERATOR.choice(KINDS, 300), strict=True))
]
NUMBER = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A package with a baseline whose texts would break a page that does not escape them."""
    fields = [draft().fields[0], draft().fields[1].model_copy(update={"description": "<b>&\"' kind"})]
    rows = BaselineRows(ROWS, made_from="rows of <a> test", sampled_from="2024-01", sampled_to="2024-06", importance={"size": 3})
    provenance = Provenance(trainer="tests", framework="NumPy", data="Made up.", license="CC0", notes="<script>alert(1)</script>")
    whole = draft(fields=fields, baseline=rows, provenance=provenance, assets={"<i>.txt": b""})
    return pack(whole, samples(), tmp_path_factory.mktemp("models"))


def page(inspection: Inspection, width: int) -> str:
    """Render the terminal page as plain text."""
    console = Console(file=io.StringIO(), width=width)
    inspection.render(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestHistogram:
    @given(st.lists(NUMBER, min_size=1, max_size=100), st.integers(1, 60))
    @settings(max_examples=150, deadline=None)
    def test_columns_hold_every_number_once(self, numbers: list[float], n: int) -> None:
        """Shares are not negative and sum to the share of rows within the range, whatever the numbers."""
        variable = numeric_variable("x", [*numbers, None])
        shares = columns(variable, n)
        assert len(shares) == n
        assert min(shares) >= 0
        assert sum(shares) == pytest.approx(len(numbers) / (len(numbers) + 1))

    def test_columns_follow_the_density_and_not_the_deciles(self) -> None:
        """A normal distribution is high in the middle, though every bin holds a tenth."""
        shares = columns(numeric_variable("x", GENERATOR.normal(size=20_000)), 21)
        assert max(range(21), key=lambda i: shares[i]) in range(8, 13)
        assert shares[0] < shares[10] / 4

    def test_other_counts_lie_on_the_same_axis(self) -> None:
        """Counts of another time are spread over the baseline's bins."""
        variable = numeric_variable("x", np.arange(100.0))
        moved = [0] * len(variable.counts)
        moved[9] = 50
        shares = columns(variable, 10, moved)
        assert shares[9] == pytest.approx(1, abs=0.02)
        assert shares[0] == 0

    def test_wide_ranges_get_a_logarithmic_axis_and_shares_do_not(self) -> None:
        """Sizes of files span decades; a probability of a millionth does not make its axis logarithmic."""
        assert is_log(numeric_variable("bytes", np.geomspace(100, 1e6, 500)))
        assert not is_log(numeric_variable("p", np.geomspace(1e-6, 1, 500)))
        assert not is_log(numeric_variable("x", np.arange(1000.0)))

    @pytest.mark.parametrize("width", [1, 8, 24])
    def test_line_fits_and_shows_what_is_there(self, width: int) -> None:
        """A line of block characters is at most as wide as asked for; a bin with rows is never blank, an empty one is."""
        assert len(sparkline(numeric_variable("x", GENERATOR.normal(size=100)), width)) == width
        rare = categorical_variable("c", ["a"] * 10_000 + ["b"] * 3, known=["a", "b", "c"])
        assert sparkline(rare, width) == "█▁ "[:width]
        assert sparkline(numeric_variable("x", [None]), width) == ""

    def test_words_say_range_shares_and_specials(self) -> None:
        """The facts beside a histogram are short and complete."""
        assert words(numeric_variable("x", [1.0, 2.0, 3.0, None], unit="cm")) == "1 to 3 cm, mean 2 ± 0.8165; missing 25 %"
        assert words(boolean_variable("b", [True, False, True, True])) == "true 75 %"
        assert words(categorical_variable("c", ["a"] * 3, known=["a"])) == "a 100 %"
        assert words(categorical_variable("c", [None], known=["a"])) == "missing 100 %"
        many = categorical_variable("c", [str(i) for i in range(9) for _ in range(5)])
        assert words(many).endswith("and 5 more")

    def test_shares_are_never_rounded_to_none_or_all(self) -> None:
        """0 % means none and 100 % means all."""
        assert [percent(share) for share in (0.0, 0.0001, 0.1234, 0.99999, 1.0)] == ["0 %", "<0.1 %", "12.3 %", ">99.9 %", "100 %"]
        assert [short(x) for x in (2013.0, 1_504_194.0, 0.00012345, 3.0)] == ["2013", "1,504,194", "0.0001234", "3"]

    def test_svg_draws_both_and_escapes_names(self) -> None:
        """Baseline columns and, given other counts, an outline or second bar; names are text, not markup."""
        number = numeric_variable('x<"', GENERATOR.normal(size=500))
        alone, both = histogram(number), histogram(number, number.counts)
        assert alone.count("<rect") == COLUMNS
        assert ("polyline" in alone, "polyline" in both) == (False, True)
        assert "x&lt;&quot;" in alone
        category = categorical_variable("c", ["<i>"] * 3 + ["b"] * 3)
        assert "<i>" not in histogram(category) + bins_table(category)
        assert histogram(category, category.counts).count('class="now"') == 2
        assert "50 % → 0 %" in histogram(category, [0] * 6)

    def test_svg_shows_rows_outside_the_bins_when_two_times_are_compared(self) -> None:
        """Traffic that is all above the training range is not an empty picture: the special bins get bars."""
        number = numeric_variable("x", [*GENERATOR.normal(size=99), None])
        now = [0] * len(number.counts)
        now[number.labels.index("above")] = 7
        drawn = histogram(number, now)
        assert "0 % → 100 %" in drawn
        assert "1 % → 0 %" in drawn
        assert "above" not in histogram(number)

    def test_nothing_to_draw_is_said(self) -> None:
        """A variable without a number or value has words in place of a picture."""
        assert "no finite number" in histogram(numeric_variable("x", [None]))
        assert "no known value" in histogram(categorical_variable("c", [None]))


class TestTerminal:
    @pytest.mark.parametrize("width", [50, 80, 120])
    def test_page_has_a_line_a_variable(self, package: Package, width: int) -> None:
        """Every variable of fields and answers is there with a histogram, and no line is too wide."""
        text = page(inspect(package), width)
        assert all(len(line) <= width for line in text.splitlines())
        assert "…" not in text
        for name in ("size", "kind", "label", "probability.top", "probability.low", "probability.high"):
            assert re.search(rf"^ *{re.escape(name)} +[▁▂▃▄▅▆▇█]", text, re.MULTILINE), name
        flat = " ".join(text.split())
        for wanted in ("300 rows; rows of <a> test; 2024-01 to 2024-06", "missing", "accuracy that probability expects of itself: 0."):
            assert wanted in flat

    def test_json_holds_the_baseline(self, package: Package) -> None:
        """The JSON form carries the counts, and null for a package without."""
        document = inspect(package).to_json()
        assert document["baseline"]["rows"] == 300
        assert sum(document["baseline"]["fields"][0]["variables"][0]["counts"]) == 300
        assert inspect(package).to_json()["baseline_error"] is None

    def test_package_without_one_says_what_to_do(self, tmp_path: Path) -> None:
        """No baseline is no error; the page says how to get one."""
        found = inspect(write_package(draft(), samples(), tmp_path / "plants" / "1"))
        assert "pack with held-out training rows" in page(found, 120)
        assert "Pack with held-out training rows" in render(found)

    def test_baseline_of_a_later_format_is_named_and_the_rest_shown(self, tmp_path: Path) -> None:
        """What this version cannot read does not hide the package."""
        package = write_package(draft(), samples(), tmp_path / "plants" / "1")
        raw = b'{"format": 9}'
        (package.path / BASELINE).write_bytes(raw)
        files = {**package.manifest.files, BASELINE: FileEntry(sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))}
        found = inspect(replace(package, manifest=package.manifest.model_copy(update={"files": files})))
        assert "format is 9" in page(found, 200)
        assert "format is 9" in render(found)
        assert "format is 9" in found.to_json()["baseline_error"]


class Elements(HTMLParser):
    """Checks that tags nest, and gathers text and attributes."""

    VOID = frozenset({"meta", "br", "rect", "line", "polyline"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID or (tag == "rect" and not (self.get_starttag_text() or "").endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


class TestPage:
    @pytest.fixture(scope="class", name="parsed")
    @classmethod
    def _parsed(cls, package: Package) -> Elements:
        parser = Elements()
        parser.feed(render(inspect(package)))
        parser.close()
        return parser

    def test_page_is_whole(self, parsed: Elements) -> None:
        """Every tag is closed, ids are unique and links lead to them."""
        assert parsed.open == []
        ids = [value for _, name, value in parsed.attributes if name == "id"]
        assert len(ids) == len(set(ids))
        assert {value for _, name, value in parsed.attributes if name == "href"} == {f"#{anchor}" for anchor in ids}

    def test_page_asks_for_nothing(self, parsed: Elements, package: Package) -> None:
        """No script, no foreign address, and a policy that makes the browser refuse both."""
        assert not parsed.tags & {"script", "i", "img", "link", "iframe", "object", "form"}
        assert not [a for a in parsed.attributes if a[1] in ("src", "srcset", "action", "style") or a[1].startswith("on")]
        assert (
            "meta",
            "content",
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
        ) in parsed.attributes
        assert not re.search(r"https?://|url\(|@import|<script", render(inspect(package)))
        assert {"<script>alert(1)</script>", "assets/<i>.txt"} <= set(parsed.text)

    def test_page_shows_everything_a_person_asks(self, parsed: Elements) -> None:
        """Proof, signature, histograms, bins, stages, files and provenance, with text escaped."""
        text = " ".join(" ".join(parsed.text).split())
        for wanted in (
            "plants version 1", "answers like training on 6 golden samples", "<b>&\"' kind", "rows of <a> test", "low, mid, high",
            "Importance, where it is not 1: size 3", "probability.margin", "missing 11.3 %", "ai.onnx.ml::LabelEncoder", "model.onnx",
            "Made up.", "16 bins", "below", "floats within 4 ULP",
        ):  # fmt: skip
            assert wanted in text, wanted
        drawn = [value for _, name, value in parsed.attributes if name == "class" and value == "histogram"]
        assert len(drawn) == 6

    def test_page_adapts_to_dark_and_narrow_screens(self, package: Package) -> None:
        """Colours follow the reader's choice, the grid the width of the window."""
        html = render(inspect(package))
        assert "prefers-color-scheme: dark" in html
        assert "width=device-width" in html

    def test_names_in_lists_are_text(self) -> None:
        """What a trainer wrote is shown as it is wherever it stands, also in the table of bins."""
        assert "&lt;i&gt;" in bins_table(categorical_variable("c", ["<i>"] * 3))

    def test_fields_left_out_are_named(self, tmp_path: Path) -> None:
        """A reader sees of which fields nothing is kept."""
        package = pack(draft(baseline=BaselineRows(ROWS, off=["size"])), samples(), tmp_path)
        assert "Not monitored: size" in render(inspect(package))
        assert "not monitored: size" in page(inspect(package), 100)

    def test_bare_model_is_marked(self, tmp_path: Path) -> None:
        """A page about a bare model.onnx says that nothing was proven."""
        (tmp_path / "plants" / "1").mkdir(parents=True)
        onnx.save(classifier(), tmp_path / "plants" / "1" / "model.onnx")
        assert "not proven" in render(inspect(open_version(tmp_path, "plants", 1)))

    def test_command_writes_the_page(self, package: Package, tmp_path: Path) -> None:
        """`samegraph inspect PACKAGE --html FILE` writes it and says where; with --json it is a usage error."""
        target = tmp_path / "plants.html"
        result = CliRunner().invoke(cli, ["inspect", str(package.path), "--html", str(target)])
        assert result.exit_code == 0
        assert str(target) in result.output
        assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
        assert CliRunner().invoke(cli, ["inspect", str(package.path), "--html", str(target), "--json"]).exit_code == 2
