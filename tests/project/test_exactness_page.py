"""docs/exactness.md is what was measured, and what the code promises to be exact has been measured."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pytest

from scripts.exactness import PAGE, UNMEASURED, committed, missing, modules, page

SECTIONS: dict[str, Any] = dict(committed())


def test_the_page_is_the_join_of_what_was_measured() -> None:
    """Nobody edits it; `scripts/exactness.py --page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page(SECTIONS), (
        "run .venv/bin/python scripts/exactness.py --page and commit docs/exactness.md"
    )


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_can_be_measured_again_and_says_when_and_with_what_it_was(name: str) -> None:
    """It has a module, a date, versions, and tables as wide as their heads."""
    section = SECTIONS[name]
    assert name in modules()
    assert dt.date.fromisoformat(section["measured_on"]).year >= 2026
    assert section["versions"]
    assert section["title"]
    assert section["about"]
    assert section["tables"]
    for table in section["tables"]:
        assert table["rows"]
        assert {len(row) for row in table["rows"]} == {len(table["head"])}


def test_every_filter_importer_and_estimator_has_a_row() -> None:
    """What the code's own registries offer is in a table, or named as unmeasured."""
    absent = [name for names in missing(SECTIONS).values() for name in names]
    assert not set(absent) - UNMEASURED, f"in no table: {', '.join(sorted(set(absent) - UNMEASURED))}"


def test_no_file_was_decoded_otherwise_and_none_crashed() -> None:
    """Every file gave Pillow's pixels or was refused."""
    for table in SECTIONS["decoding"]["tables"]:
        for bad in ("elements different", "accepted, not by Pillow", "crashed"):
            assert not any(row[table["head"].index(bad)] for row in table["rows"]), bad


def test_every_wrong_package_was_refused_by_the_node_at_fault() -> None:
    """The node named is the one that was changed; what was left as it was is packed."""
    (table,) = SECTIONS["wrong-packages"]["tables"]
    for row in (dict(zip(table["head"], cells, strict=True)) for cells in table["rows"]):
        right = row["what is wrong"] == "nothing"
        assert row["answer"] == ("packed" if right else "refused"), row
        assert row["node named"] == row["node changed"], row


def test_a_filter_without_a_row_would_be_seen() -> None:
    """Taking its rows away makes it missing."""
    fewer = copy.deepcopy(SECTIONS)
    for section in fewer.values():
        for table in section["tables"]:
            table["rows"] = [row for row in table["rows"] if "lanczos" not in str(row[0])]
    assert missing(fewer)["filter"] != missing(SECTIONS)["filter"]


def test_the_summary_adds_up_what_the_tables_count() -> None:
    """Inputs, elements and differences are summed over the rows, a ULP is the largest; a control counts nowhere."""
    head = ["what", "reference library", "inputs tried", "elements compared", "elements different", "largest ULP", "decisions flipped"]
    table = {"caption": "", "head": head, "rows": [["a", "b 1", 10, 2_000, 3, 7, 0], ["c", "b 1", 5, 50, 0, None, 1]]}
    control = {"caption": "", "head": ["what", "elements", "different"], "rows": [["a", 1, 1]], "control": True}
    section = {"title": "Some text", "about": "x", "measured_on": "2026-01-02", "versions": {"b": "1"}, "tables": [table, control]}
    assert "| [Some text](#some-text) | 2026-01-02 | 15 | 2,050 | 3 | 7 | 1 |" in page({"some": section}).splitlines()
