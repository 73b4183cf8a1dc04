"""The pages under docs/ say what the code does: every setting, metric and error code, with its facts, and links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types as bounds
import pytest
from live_server import LiveServer, live_server
from package_builders import ROWS, draft, samples
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from samegraph_service.api import error_document
from samegraph_service.errors import ServiceError
from samegraph_service.experiments.prediction_id import new_key
from samegraph_service.settings import Settings
from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.pack import pack

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def table_rows(document: Path) -> Iterator[list[str]]:
    """Yield the cells of every table row whose first cell is code or a number."""
    for line in document.read_text(encoding="utf-8").splitlines():
        if re.match(r"\| (`|\d)", line):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# --- settings -----------------------------------------------------------------------------------------------------------


def setting_rows() -> list[str]:
    """Return the line docs/settings.md must have for each setting."""
    rows = []
    for group, field in Settings.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        for name, setting in field.annotation.model_fields.items():
            variable = f"SAMEGRAPH_{group}__{name}".upper()
            meaning = (setting.description or "").replace("<", "\\<")
            rows.append(f"| `{variable}` | {default_of(setting)} | {allowed(setting)} | {meaning} |")
    return rows


def default_of(setting: FieldInfo) -> str:
    if setting.default is None:
        return "unset"
    if setting.default == "":
        return "empty"
    text = str(setting.default)
    return f"`{text.lower() if isinstance(setting.default, bool) else text}`"


def allowed(setting: FieldInfo) -> str:
    annotation = setting.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if annotation is bool:
        return "`true`, `false`"
    low = high = ""
    for bound in setting.metadata:
        if isinstance(bound, bounds.Ge | bounds.Gt):
            low = f"{bound.ge:,}" if isinstance(bound, bounds.Ge) else f"above {bound.gt:,}"
        elif isinstance(bound, bounds.Le):
            high = f"{bound.le:,}"
        elif isinstance(bound, bounds.MinLen):
            return f"at least {bound.min_length} characters"
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if low else "any"


@pytest.mark.parametrize("row", setting_rows(), ids=lambda row: row.split("`")[1])
def test_every_setting_is_documented_with_default_and_bounds(row: str) -> None:
    """Put the expected line into docs/settings.md when a setting is new or changed."""
    assert row in (DOCS / "settings.md").read_text(encoding="utf-8").splitlines()


def test_no_other_setting_is_documented() -> None:
    """A setting that was removed or renamed leaves the page."""
    documented = {cells[0].strip("`") for cells in table_rows(DOCS / "settings.md")}
    assert {name for name in documented if name.startswith("SAMEGRAPH_")} == {row.split("`")[1] for row in setting_rows()}


def test_every_variable_named_anywhere_exists() -> None:
    """No page names a variable the service would refuse."""
    known = {row.split("`")[1] for row in setting_rows()}
    for page in pages():
        for name in re.findall(r"SAMEGRAPH_[A-Z]+__[A-Z0-9_]+", page.read_text(encoding="utf-8")):
            assert name in known, (page.name, name)


# --- metrics ------------------------------------------------------------------------------------------------------------


ROUTING = """
models:
  plants:
    experiments:
      sizes:
        salt: s1
        arms: {control: {version: 1}}
        slo_ms: 250
        metrics: {clicked: {kind: binary}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    models = tmp_path_factory.mktemp("models")
    pack(draft(baseline=BaselineRows(rows=list(ROWS))), samples(), models)
    (models / "routing.yaml").write_text(ROUTING, encoding="utf-8")
    keys = tmp_path_factory.mktemp("keys") / "feedback.keys"
    keys.write_text(new_key())
    keys.chmod(0o600)
    with live_server(models, capture={"url": "memory://documented", "sample_ratio": 1}, feedback={"key_file": keys}) as live:
        assert live.predict("plants", {"instances": [{"size": 1.5, "kind": "moss"}]}).status == 200
        assert live.predict("plants", {"instances": []}).status == 400
        yield live


def exported(server: LiveServer) -> dict[str, tuple[str, frozenset[str]]]:
    """Return name as it is queried → (type, labels) of every family a running server exports."""
    families = {}
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        families[name] = (family.type, labels)
    return families


def documented_metrics() -> dict[str, tuple[str, frozenset[str]]]:
    rows = [cells for cells in table_rows(DOCS / "metrics.md") if cells[1] in ("counter", "gauge", "histogram")]
    return {cells[0].strip("`"): (cells[1], frozenset(re.findall(r"`(\w+)`", cells[2]))) for cells in rows}


def test_the_documented_metrics_are_the_exported_ones(server: LiveServer) -> None:
    """Names, types and labels are those a running server exports, no more and no fewer."""
    documented, running = documented_metrics(), exported(server)
    shadows = {name for name in documented if name.startswith("samegraph_shadow_")}  # tests/service/test_shadow.py has a server with some
    documented = {name: facts for name, facts in documented.items() if name not in shadows}
    running = {name: facts for name, facts in running.items() if name not in shadows}
    item_stage_only = {"samegraph_item_steps": ("gauge", frozenset({"model", "version", "engine"}))}  # the test's model has no item stage
    assert documented == running | item_stage_only


@pytest.mark.parametrize("cells", [c for c in table_rows(DOCS / "metrics.md") if len(c) > 3], ids=lambda c: c[0].strip("`"))
def test_metric_names_tell_their_unit(cells: list[str]) -> None:
    """The unit column agrees with the name: seconds and bytes are in it."""
    for unit in ("seconds", "bytes"):
        assert (unit in cells[0]) == (cells[3] == unit), cells[0]


# --- errors -------------------------------------------------------------------------------------------------------------


def error_rows() -> dict[str, tuple[int, bool]]:
    """Return code → (status, retryable) of everything a caller can be answered."""
    rows = {}
    for code in InputError.CODES:
        mapped = error_document.mapping_of(InputError("", code=code))
        rows[code] = (mapped.status, mapped.retryable)
    for error in _leaves(ServiceError):
        mapped = error_document.mapping_of(error.__new__(error))
        rows[mapped.code] = (mapped.status, mapped.retryable)
    return rows


def _leaves(cls: type[SamegraphError]) -> Iterator[type[SamegraphError]]:
    subclasses = cls.__subclasses__()
    for subclass in subclasses:
        yield from _leaves(subclass)
    if not subclasses:
        yield cls


def test_every_error_code_is_documented_with_its_status() -> None:
    """The table of errors has every code, its status and whether to try again."""
    again = {"yes": True, "no": False}
    rows = [cells for cells in table_rows(DOCS / "endpoints.md") if cells[0].isdigit()]
    documented = {cells[1].strip("`"): (int(cells[0]), again[cells[2]]) for cells in rows}
    assert documented == error_rows()


def test_every_route_is_documented(server: LiveServer) -> None:
    """Every path of the API document stands in docs/endpoints.md under its method."""
    page = (DOCS / "endpoints.md").read_text(encoding="utf-8")
    document: dict[str, Any] = server.get("/openapi.json").json()
    for path, item in document["paths"].items():
        pattern = path.replace("/plants", "/{model}").replace("/1", "/{version}")
        for method in item:
            route = f"{method.upper()} {pattern}"
            assert f"`{route}`" in page or f"`{pattern}`" in page, route


# --- all pages ----------------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """Return every Markdown file under version control."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return [ROOT / name for name in listed]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link and picture exists, and every anchor is a heading."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Return the anchors GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pages_named_in_code_exist() -> None:
    """A comment or message that sends people to a page sends them somewhere."""
    sources = [*ROOT.glob("service/**/*.py"), *ROOT.glob("transforms/**/*.py"), *ROOT.glob("client/**/*.py")]
    named = {page for path in sources for page in re.findall(r"docs/[a-z0-9_.-]+\.(?:md|json)", path.read_text(encoding="utf-8"))}
    assert len(named) > 3
    assert sorted(page for page in named if not (ROOT / page).is_file()) == []


def test_no_merge_is_left_half_done() -> None:
    """No page has the marks of two versions that somebody meant to choose between."""
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    assert [page.name for page in pages() if any(line.startswith(marks) for line in page.read_text().splitlines())] == []
