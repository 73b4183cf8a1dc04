#!/usr/bin/env python3
"""Measure everything that is promised to be exact against the library it is named after, and write docs/exactness.md.

    .venv/bin/python scripts/exactness.py                           everything; installs other versions in environments of their own
    .venv/bin/python scripts/exactness.py --only arithmetic         one section, or several
    .venv/bin/python scripts/exactness.py --only images --scale 0.05 --dry-run    a quick look, on the terminal
    .venv/bin/python scripts/exactness.py --page                    join what has been measured, nothing else

A section is a module of scripts/exactness_sections: `measure(work, scale)` returns its title, what it is about, the date, the versions and
its tables, written to docs/exactness/<section>.json. Modules whose name begins with `_` are shared. The page is those files joined, so it
says of every section when it was measured. What the code offers and no table has is listed at the end.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]

MODULES = ROOT / "scripts" / "exactness_sections"
RESULTS = ROOT / "docs" / "exactness"
PAGE = ROOT / "docs" / "exactness.md"
TRANSFORMS = ROOT / "transforms" / "samegraph_transforms"

#: Reading order; other sections follow by name.
ORDER = (
    "images",
    "kernels",
    "crops",
    "opencv",
    "tensor",
    "arithmetic",
    "decoding",
    "importers-images",
    "onnx-files",
    "estimators",
    "vectorizers",
    "boosters",
)
#: Offered, and in no table yet: the page lists what is. A test refuses anything else without a row.
UNMEASURED: set[str] = set()

#: Heads of the columns that the summary adds up, in the words sections use.
INPUTS = re.compile(r"(inputs|images|rows|files|texts|levels a channel|requests)( tried)?|tried")
ELEMENTS = re.compile(r"elements( compared)?")
DIFFERENT = re.compile(r"(elements )?different\b.*")
ULP = re.compile(r"largest ULP\b.*")
FLIPPED = re.compile(r"(decisions|labels) flipped")

Section = Mapping[str, Any]


# ---------------------------------------------------------------- sections


def modules() -> dict[str, str]:
    """Return the sections that can be measured: their name → the module's."""
    stems = sorted(path.stem for path in MODULES.glob("*.py") if not path.stem.startswith("_"))
    return {stem.replace("_", "-"): f"scripts.exactness_sections.{stem}" for stem in stems}


def committed() -> dict[str, Section]:
    """Return what has been measured, by section, in reading order."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}
    return {name: found[name] for name in sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))}


def measure(name: str, work: Path, scale: float) -> Section:
    """Measure one section now."""
    section: Section = importlib.import_module(modules()[name]).measure(work, scale)
    return section


# ---------------------------------------------------------------- what there should be


def registered() -> dict[str, list[str]]:
    """Return what the code offers, by kind: the filters, importers and estimators that a table should have.

    Read from the sources: the estimators' own library is not needed for it.
    """
    filters = [f"`resize`, {name}" for name in _strings("functions.py", "FilterName")]
    filters += [f"INTER_{name.upper()}" for name in _strings("opencv_functions.py", "CvFilter")]
    filters += [f"`TorchResize`, {name}" for name in _strings("torch_functions.py", "TorchFilter")]
    importers = [name for path in sorted(TRANSFORMS.glob("[!_]*.py")) for name in _functions(path) if name.startswith("from_")]
    estimators = [*_supported("_sklearn_steps.py", "_EMITTERS"), *_supported("_sklearn_models.py", "SUPPORTED")]
    estimators += [name for name in _strings("_sklearn_models.py", "BOOSTED") if "." not in name]
    return {"filter": filters, "importer": importers, "estimator": list(dict.fromkeys(estimators))}


def missing(sections: Mapping[str, Section]) -> dict[str, list[str]]:
    """Return what is registered and named in no row of any section, by kind."""
    rows = [row for section in sections.values() for table in section["tables"] if not table.get("control") for row in table["rows"]]
    text = "\n".join(str(cell) for row in rows for cell in row[:2])
    return {
        kind: [name for name in names if not re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text)] for kind, names in registered().items()
    }


def _tree(path: str | Path) -> ast.Module:
    return ast.parse((TRANSFORMS / path).read_text(encoding="utf-8"))


def _functions(path: Path) -> list[str]:
    return [node.name for node in _tree(path).body if isinstance(node, ast.FunctionDef)]


def _values(path: str) -> dict[str, ast.expr]:
    """Return the module's constants by name, as they stand there."""
    found: dict[str, ast.expr] = {}
    for node in _tree(path).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
    return found


def _strings(path: str, name: str) -> list[str]:
    constants = (node.value for node in ast.walk(_values(path)[name]) if isinstance(node, ast.Constant))
    return [value for value in constants if isinstance(value, str)]


def _supported(path: str, name: str) -> list[str]:
    """Return the classes in a registry: a tuple of them, of such tuples or pairs, or a dictionary by them; parts may be other modules'."""
    nodes: list[tuple[str, ast.expr]] = [(path, ast.Name(name))]
    found = []
    while nodes:
        module, node = nodes.pop(0)
        inner: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.Dict):
            inner = [(module, value if key is None else key) for key, value in zip(node.keys, node.values, strict=True)]
        elif isinstance(node, ast.Tuple):
            inner = [(module, part) for part in node.elts]
        elif isinstance(node, ast.Starred):
            inner = [(module, node.value)]
        elif isinstance(node, ast.GeneratorExp):  # the first of each pair
            inner = _firsts(module, node.generators[0].iter)
        elif isinstance(node, ast.Name):
            where, called = _imported(module).get(node.id, (module, node.id))
            value = _values(where).get(called)
            found += [node.id] if value is None else []
            inner = [] if value is None else [(where, value)]
        nodes = [*inner, *nodes]
    return found


def _firsts(module: str, node: ast.expr) -> list[tuple[str, ast.expr]]:
    """Return the first of each pair in a tuple of pairs, with the module they are in."""
    assert isinstance(node, ast.Name)
    where, called = _imported(module).get(node.id, (module, node.id))
    value = _values(where)[called]
    assert isinstance(value, ast.Tuple)
    return [(where, pair.elts[0]) for pair in value.elts if isinstance(pair, ast.Tuple)]


def _imported(module: str) -> dict[str, tuple[str, str]]:
    """Return what a module takes from its neighbours: its name for it → their file, and their name."""
    nodes = [node for node in _tree(module).body if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module]
    return {alias.asname or alias.name: (f"{node.module}.py", alias.name) for node in nodes for alias in node.names}


# ---------------------------------------------------------------- the page


def page(sections: Mapping[str, Section]) -> str:
    """Join the sections: a summary, then each with its tables, then what is in none of them."""
    lines = [PREAMBLE]
    lines += _table(["section", "measured on", *SUMMED], [_summary(section) for section in sections.values()])
    for section in sections.values():
        lines += ["", *_written(section)]
    lines += ["", "## What is not in these tables", ""]
    for kind, names in missing(sections).items():
        if names:
            lines.append(f"- {kind.capitalize()}s without a row: {', '.join(names)}.")
    return "\n".join(lines) + "\n" + CLOSING


SUMMED = ("inputs", "elements compared", "different", "largest ULP", "decisions flipped")


def _summary(section: Section) -> list[Any]:
    tables = [table for table in section["tables"] if not table.get("control")]
    numbers = [list(_numbers(tables, pattern)) for pattern in (INPUTS, ELEMENTS, DIFFERENT, ULP, FLIPPED)]
    inputs, elements, different, ulp, flipped = (list(filter(_is_number, column)) for column in numbers)
    anchor = re.sub(r"[^\w -]", "", section["title"].lower()).replace(" ", "-")
    totals = [sum(column) if column else None for column in (inputs, elements, different)]
    return [
        f"[{section['title']}](#{anchor})",
        section["measured_on"],
        *totals,
        max(ulp) if ulp else None,
        sum(flipped) if flipped else None,
    ]


def _numbers(tables: Sequence[Section], pattern: re.Pattern[str]) -> Iterator[Any]:
    """Yield the cells of the columns whose head fits, of the tables that count differences."""
    for table in tables:
        if any(DIFFERENT.fullmatch(head) for head in table["head"]):
            places = [place for place, head in enumerate(table["head"]) if pattern.fullmatch(head)]
            yield from (row[place] for row in table["rows"] for place in places)


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float)


def _written(section: Section) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in section["versions"].items())
    yield f"## {section['title']}"
    yield f"\n{section['about'].strip()}"
    yield f"\nMeasured on {section['measured_on']} with {versions}."
    for table in section["tables"]:
        yield f"\n{table['caption']}\n" if table["caption"] else ""
        yield from _table(table["head"], table["rows"])


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    columns = list(zip(*rows, strict=True)) or [()] * len(head)
    right = [all(cell is None or _is_number(cell) for cell in column) for column in columns]
    yield _row(head)
    yield _row(["--:" if numeric else "---" for numeric in right])
    yield from map(_row, rows)


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(cell: Any) -> str:
    """Write a cell: numbers with their thousands parted, a dash where there is none."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else re.sub(r"(?<!\\)\|", r"\\|", str(cell)).replace("\n", " ")


PREAMBLE = """# Exactness, measured

What is promised to be exact, compared with the library it is named after. Every section was measured by
`.venv/bin/python scripts/exactness.py --only <section>`, which keeps it in `docs/exactness/<section>.json`; this page is those files
joined.

*Inputs* are images, rows, files or texts, counted once for each reference they were compared with. *Different* counts elements that are not
equal to the reference's bit by bit; in whole numbers one level is one. *Largest ULP* is the largest distance of two floats, in numbers that
lie between them; it is large where numbers are near zero, so promises are relative to the largest of a tensor, and each section states its
own. *Decisions flipped* are labels that are not the reference's. A dash: there is no such thing in that section.
"""

CLOSING = """- Machines other than x86-64, and builds of the libraries other than those on the package index.
"""


def main() -> int:
    """Measure what is asked for and write the page; return the exit code."""
    options = _options()
    RESULTS.mkdir(exist_ok=True)
    names = [] if options.page else options.only or list(modules())
    if unknown := [name for name in names if name not in modules()]:
        print(f"no section {', '.join(unknown)}; there are: {', '.join(modules())}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for name in names:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            section = measure(name, work.resolve(), options.scale)
            if options.dry_run:
                print("\n".join(_written(section)))
            else:
                (RESULTS / f"{name}.json").write_text(json.dumps(section, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not options.dry_run:
        PAGE.write_text(page(committed()), encoding="utf-8")
    for kind, absent in missing(committed()).items():
        if absent:
            print(f"{kind}s without a row: {', '.join(absent)}", file=sys.stderr)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="measure these sections only")
    parser.add_argument("--page", action="store_true", help="measure nothing, join what there is")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full count of inputs (default: 1)")
    parser.add_argument("--work", type=Path, help="directory for environments and results of other versions, to be kept and used again")
    parser.add_argument("--dry-run", action="store_true", help="print the sections, write nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
