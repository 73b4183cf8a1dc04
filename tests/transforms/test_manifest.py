"""The manifest's rules, and the schema that documents them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from package_builders import draft, samples
from pydantic import ValidationError
from samegraph_transforms.manifest import (
    STAGE_FILES,
    Manifest,
    Missing,
    Output,
    Provenance,
    RawField,
    Stage,
    Tolerance,
    is_safe_name,
    json_number,
    json_schema,
)
from samegraph_transforms.package import canonical_json, parse_manifest, write_package

SCHEMA = Path(__file__).parents[2] / "docs" / "manifest.schema.json"


def minimal(**changes: Any) -> dict[str, Any]:
    """Return the smallest manifest document that is valid."""
    return {
        "name": "m",
        "version": 1,
        "fields": [{"name": "x", "kind": "number"}],
        "outputs": [{"name": "y", "dtype": "float32"}],
        "stages": [{"name": "model", "file": "model.onnx", "inputs": {"x": "x"}, "outputs": {"y": "y"}}],
    } | changes


class TestSchema:
    def test_published_schema_is_up_to_date(self) -> None:
        """docs/manifest.schema.json is what `samegraph schema` prints; write it anew after changing the manifest."""
        assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema()

    def test_every_member_is_documented(self) -> None:
        """Each member of each object of the manifest has a sentence."""
        schema = json_schema()
        objects = {"Manifest": schema} | {name: part for name, part in schema["$defs"].items() if "properties" in part}
        assert objects.keys() >= {"RawField", "Output", "Stage", "Decoder", "Tolerance", "Measured", "Provenance"}
        for name, part in objects.items():
            assert part.get("description"), name
            for member, facts in part["properties"].items():
                assert facts.get("description", "").endswith((".", ")", "`")), f"{name}.{member}"
            assert part["additionalProperties"] is False


class TestCanonicalForm:
    def test_order_of_keys_does_not_matter(self) -> None:
        """Two equal manifests have one spelling, whatever order they were written in."""
        document = minimal(tolerances={"gpu": {"ulp": 1}, "cpu.same": {"ulp": 2}})
        turned = json.loads(json.dumps(dict(reversed(document.items()))))
        turned["tolerances"] = dict(reversed(turned["tolerances"].items()))
        assert canonical_json(Manifest.model_validate(document)) == canonical_json(Manifest.model_validate(turned))

    def test_what_is_written_reads_back(self, tmp_path: Path) -> None:
        """A manifest survives its own spelling, and spells the same again."""
        manifest = write_package(draft(), samples(), tmp_path / "plants" / "1").manifest
        raw = canonical_json(manifest)
        files = {s.file: {"sha256": "0" * 64, "bytes": 0} for s in manifest.stages}
        assert parse_manifest(raw, "m") == manifest
        assert canonical_json(parse_manifest(raw, "m")) == raw
        assert files.keys() <= manifest.files.keys()

    @given(
        st.lists(
            st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()), min_size=1
        )
    )
    def test_allowed_values_keep_value_and_type(self, allowed: list[bool | int | float | str]) -> None:
        """True, 1, 1.0 and "1" are four different allowed values after a round trip."""
        field = RawField(name="x", kind="string", allowed=allowed)
        again = RawField.model_validate_json(field.model_dump_json(), strict=True)
        assert again.allowed is not None
        assert [(type(v), v) for v in again.allowed] == [(type(v), v) for v in field.allowed or []]


class TestRules:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            pytest.param({"fields": []}, "at least 1", id="no fields"),
            pytest.param({"outputs": []}, "at least 1", id="no outputs"),
            pytest.param({"stages": []}, "at least 1", id="no stages"),
            pytest.param({"fields": minimal()["fields"] * 2}, "field named twice: x", id="field twice"),
            pytest.param({"outputs": minimal()["outputs"] * 2}, "output named twice: y", id="output twice"),
            pytest.param({"name": "../m"}, "pattern", id="name"),
            pytest.param({"version": 0}, "greater than or equal to 1", id="version"),
            pytest.param({"surprise": 1}, "Extra inputs", id="unknown member"),
            pytest.param({"stages": [{**minimal()["stages"][0], "name": "postprocess"}]}, "needs a `model` stage", id="no model"),
            pytest.param({"stages": [{**minimal()["stages"][0], "name": n} for n in ("postprocess", "model")]}, "in the order", id="order"),
            pytest.param({"stages": minimal()["stages"] * 2}, "distinct", id="stage twice"),
        ],
    )
    def test_broken_manifest_is_refused(self, changes: dict[str, Any], reason: str) -> None:
        """Each rule of the whole has its reason."""
        Manifest.model_validate(minimal())
        with pytest.raises(ValidationError, match=reason):
            Manifest.model_validate(minimal(**changes))

    @pytest.mark.parametrize(
        ("field", "reason"),
        [
            pytest.param({"kind": "tensor"}, "needs dtype and shape", id="tensor without shape"),
            pytest.param({"kind": "number", "dtype": "float32"}, "are for tensors", id="number with dtype"),
            pytest.param({"kind": "string", "minimum": 1}, "are for numbers", id="string with minimum"),
            pytest.param({"kind": "string", "missing": {"rule": "nan"}}, "only numbers can be NaN", id="string as nan"),
            pytest.param(
                {"kind": "number", "default": 1}, "a default is for fields that are not required", id="default of a required field"
            ),
            pytest.param({"kind": "number", "missing": {"rule": "sentinel"}}, "exactly when rule is 'sentinel'", id="no sentinel"),
            pytest.param({"kind": "number", "missing": {"sentinel": 3}}, "exactly when rule is 'sentinel'", id="sentinel unasked"),
            pytest.param({"kind": "date"}, "Input should be", id="unknown kind"),
            pytest.param({"kind": "image", "max_bytes": 0}, "greater than or equal to 1", id="no bytes"),
        ],
    )
    def test_broken_field_is_refused(self, field: dict[str, Any], reason: str) -> None:
        """Facts that do not fit a field's kind are refused with the field's name or the fact's."""
        with pytest.raises(ValidationError, match=reason):
            RawField.model_validate({"name": "x", **field})

    @pytest.mark.parametrize(
        ("field", "dtype"),
        [
            (RawField(name="x", kind="number"), "float64"),
            (RawField(name="x", kind="integer"), "int64"),
            (RawField(name="x", kind="integer", missing=Missing(rule="nan")), "float64"),
            (RawField(name="x", kind="integer", missing=Missing(rule="companion")), "int64"),
            (RawField(name="x", kind="boolean"), "bool"),
            (RawField(name="x", kind="string"), "string"),
            (RawField(name="x", kind="text"), "string"),
            (RawField(name="x", kind="image"), "uint8"),
            (RawField(name="x", kind="tensor", dtype="float16", shape=[2]), "float16"),
        ],
    )
    def test_graph_dtype_follows_kind_and_missing_rule(self, field: RawField, dtype: str) -> None:
        """Numbers are double; a nullable integer is too, because NaN must fit."""
        assert field.graph_dtype == dtype

    def test_companion_is_named_after_its_field(self) -> None:
        """Only a field with that rule has one."""
        assert RawField(name="x", kind="boolean", missing=Missing(rule="companion")).companion == "x__missing"
        assert RawField(name="x", kind="boolean").companion is None

    def test_parts_are_frozen(self) -> None:
        """A manifest cannot change after it was verified."""
        with pytest.raises(ValidationError, match="frozen"):
            Tolerance().ulp = 3

    def test_fields_and_stages_are_found_by_name(self) -> None:
        """Look-ups say when there is nothing."""
        manifest = Manifest.model_validate(minimal())
        assert manifest.field("x").kind == "number"
        assert isinstance(manifest.stage("model"), Stage)
        assert manifest.stage("postprocess") is None
        with pytest.raises(KeyError):
            manifest.field("y")

    def test_every_stage_has_a_file(self) -> None:
        """The usual file names are distinct and end in .onnx."""
        assert len(set(STAGE_FILES.values())) == len(STAGE_FILES) == 4
        assert all(name.endswith(".onnx") for name in STAGE_FILES.values())

    def test_provenance_has_no_time(self) -> None:
        """Nothing in a manifest makes two equal trainings differ by the clock."""
        assert not {"time", "date", "created"} & set(Provenance.model_fields)
        assert Output(name="y", dtype="bool").shape == []


@pytest.mark.parametrize(
    ("name", "safe"),
    [("penguins", True), ("a.b-c_1", True), ("_x", True), ("x" * 128, True), ("x" * 129, False), ("", False), (".", False), ("..", False)]
    + [(n, False) for n in (".git", "-x", "a/b", "a\\b", "a b", "ä", "a\n", "a.", "a\0", "a:predict")],
)
def test_safe_names(name: str, safe: bool) -> None:
    """A model's name is one plain segment of a path and of a URL."""
    assert is_safe_name(name) is safe


@pytest.mark.parametrize(("value", "result"), [(1.5, 1.5), (0.0, 0.0), (math.nan, None), (math.inf, None), (-math.inf, None)])
def test_numbers_that_json_cannot_carry_are_null(value: float, result: float | None) -> None:
    """NaN and infinities become null."""
    assert json_number(value) == result
