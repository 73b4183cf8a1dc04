"""What differs between where a package was proven and where it runs."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path

from package_builders import draft, samples
from samegraph_transforms.fingerprint import deviations, environment, proven_environment
from samegraph_transforms.inspection import inspect
from samegraph_transforms.manifest import Provenance
from samegraph_transforms.pack import pack
from samegraph_transforms.package import write_package


def test_a_package_knows_what_it_was_proven_with(tmp_path: Path) -> None:
    """Where it was packed nothing differs, and the fingerprint is whole."""
    manifest = pack(draft(), samples(), tmp_path).manifest
    assert proven_environment(manifest) == environment()
    assert {"machine", "system", "python", "onnxruntime", "numpy", "providers", "threads", "locale"} <= environment().keys()
    assert environment()["python"] == platform.python_version()
    assert deviations(manifest, environment()) == []


def test_every_deviation_is_listed_and_what_is_not_used_is_not(tmp_path: Path) -> None:
    """Another runtime and more threads are told; Pillow is not, for a package that reads no images."""
    manifest = pack(draft(), samples(), tmp_path).manifest
    here = environment(("CUDAExecutionProvider",), 4) | {"onnxruntime": "9.9.9", "pillow": "1.0"}
    assert {d.what: d.here for d in deviations(manifest, here)} == {
        "onnxruntime": "9.9.9",
        "providers": "CUDAExecutionProvider",
        "threads": "4",
    }


def test_older_packages_are_compared_by_what_they_state(tmp_path: Path) -> None:
    """Processor, Python and libraries of the provenance; a library that is missing here is told."""
    provenance = Provenance(machine="m68k", python=platform.python_version(), libraries={"onnxruntime": "1.0", "scikit-learn": "1.9"})
    manifest = write_package(draft(provenance=provenance), samples(), tmp_path / "plants" / "1").manifest
    here = {name: value for name, value in environment().items() if name != "onnxruntime"}
    assert [asdict(d) for d in deviations(manifest, here)] == [
        {"what": "machine", "proven": "m68k", "here": here["machine"]},
        {"what": "onnxruntime", "proven": "1.0", "here": "not installed"},
    ]


def test_inspect_lists_what_differs(tmp_path: Path) -> None:
    """The JSON form has the list; it is empty where the package was packed."""
    assert inspect(pack(draft(), samples(), tmp_path)).to_json()["environment"]["differs"] == []
    provenance = Provenance(machine="m68k")
    package = write_package(draft(provenance=provenance, version=2), samples(), tmp_path / "plants" / "2")
    assert [d["what"] for d in inspect(package).to_json()["environment"]["differs"]] == ["machine"]
