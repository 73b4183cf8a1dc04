"""Prediction ids: what they carry comes back, and nothing else is taken for one."""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_service.errors import FeedbackKeyError
from samegraph_service.experiments.prediction_id import (
    KEY_BYTES,
    LABELLED_INSTANCES,
    MAX_KEYS,
    NO_BUCKET,
    Key,
    PredictionIds,
    RefusedId,
    label_hash,
    new_key,
    read_keys,
)

DAY = 86_400
NOW = 1_795_000_000.0
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40)


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def key(fill: int = 1) -> Key:
    return Key(bytes([fill]) * KEY_BYTES)


def ids_of(*keys: Key, clock: Clock | None = None) -> PredictionIds:
    return PredictionIds(keys or (key(),), max_age_s=14 * DAY, clock=clock or Clock())


def an_id(ids: PredictionIds, instances: int = 1, labels: tuple[str, ...] = ()) -> str:
    prefix = ids.prefix("flights", 2, experiment="delay-trees", revision="1a2b3c4d", arm="treatment", bucket=17)
    return ids.sign(prefix, instances, [label_hash(label) for label in labels]).decode()


def refusal(ids: PredictionIds, text: str, model: str = "flights") -> str:
    with pytest.raises(RefusedId) as refused:
        ids.read(text, model)
    assert len(str(refused.value)) > 20
    return refused.value.reason


@given(
    NAMES,
    NAMES,
    st.binary(min_size=4, max_size=4),
    st.integers(0, 63),
    st.integers(1, 2**31 - 1),
    st.integers(1, 65_535),
    st.lists(st.text(max_size=10), max_size=LABELLED_INSTANCES),
)
def test_what_is_signed_is_read(
    experiment: str, arm: str, revision: bytes, bucket: int, version: int, instances: int, labels: list[str]
) -> None:
    """Every fact comes back, from an id whose characters need no escaping anywhere."""
    ids = ids_of()
    prefix = ids.prefix("m", version, experiment=experiment, revision=revision.hex(), arm=arm, bucket=bucket)
    text = ids.sign(prefix, instances, [label_hash(label) for label in labels]).decode()
    assert text.replace("-", "").replace("_", "").isalnum()
    found = ids.read(text, "m")
    assert (found.experiment, found.arm, found.revision, found.bucket) == (experiment, arm, revision.hex(), bucket)
    assert (found.version, found.instances, found.minute) == (version, instances, int(NOW) // 60)
    assert found.instance == (0 if instances == 1 else None)
    if instances > 1:
        assert ids.read(f"{text}.1", "m").instance == 1
    for i, label in enumerate(labels[:instances]):
        assert ids.read(f"{text}.{i}", "m").answered(label) is True
        assert ids.read(f"{text}.{i}", "m").answered(label + "?") is False


def test_outside_of_an_experiment_an_id_names_the_version_only() -> None:
    """Feedback for a pinned version is possible too."""
    ids = ids_of()
    found = ids.read(ids.sign(ids.prefix("flights", 7), 3).decode(), "flights")
    assert (found.version, found.experiment, found.revision, found.arm, found.bucket) == (7, "", "", "", NO_BUCKET)


def test_every_flipped_bit_is_found() -> None:
    """No bit of an id can be changed, wherever it is, and every character holds such bits only."""
    ids = ids_of()
    for labels in ((), ("late",), ("late", "on time")):
        text = an_id(ids, max(len(labels), 1), labels)
        data = urlsafe_b64decode(text)
        assert len(data) * 4 == len(text) * 3
        for place in range(len(data)):
            for bit in range(8):
                changed = bytearray(data)
                changed[place] ^= 1 << bit
                assert refusal(ids, urlsafe_b64encode(changed).decode()) == "forged", (place, bit)


@given(st.data())
def test_cut_lengthened_and_foreign_texts_are_refused(data: st.DataObject) -> None:
    """Whatever is not an id of ours is malformed or forged, never an exception of another kind."""
    ids = ids_of()
    text = an_id(ids, 2, ("a", "b"))
    cut = data.draw(st.integers(0, len(text) - 1))
    candidates = [text[:cut], text[cut + 1 :], text + text[: cut + 1], f"{text}.", f"{text}.01", f"{text}.-1", f"{text}.1.1", f"{text}\n"]
    candidates += [data.draw(st.text(max_size=200)), data.draw(st.from_regex(r"[A-Za-z0-9_-]{40,200}", fullmatch=True)), "70cc3d-1f"]
    for candidate in candidates:
        assert refusal(ids, candidate) in ("malformed", "forged"), candidate


def test_ids_of_others_are_refused() -> None:
    """Another key, another model, too old, of the future, and instances that were not there."""
    clock = Clock()
    ids = ids_of(clock=clock)
    text = an_id(ids, 2)
    assert refusal(ids_of(key(2)), text) == "forged"
    assert refusal(ids, text, "penguins") == "wrong_model"
    assert refusal(ids, f"{text}.2") == "unknown_instance"
    clock.now = NOW + 14 * DAY
    assert ids.read(f"{text}.1", "flights").instance == 1
    clock.now = NOW + 14 * DAY + 120
    assert refusal(ids, text) == "late"
    clock.now = NOW - 4 * 60
    assert ids.read(text, "flights").instances == 2
    clock.now = NOW - 7 * 60
    assert refusal(ids, text) == "future"


def test_any_replica_accepts_and_keys_rotate() -> None:
    """First the new key is accepted everywhere, then it signs, then the old one goes; ids made before hold until then."""
    old, new = key(1), key(2)
    here, there = ids_of(old), ids_of(old)
    first = an_id(here)
    assert there.read(first, "flights").arm == "treatment"
    before = here.generation
    here.set_keys((old, new))
    there.set_keys((new, old))
    assert here.generation > before
    second = an_id(there)
    assert {here.read(text, "flights").version for text in (first, second)} == {2}
    here.set_keys((new,))
    assert refusal(here, first) == "forged"
    assert here.read(second, "flights").version == 2


def test_no_two_ids_are_equal() -> None:
    """Two processes begin at random places and count on."""
    made = {an_id(ids) for ids in (ids_of(), ids_of(), ids_of()) for _ in range(500)}
    assert len(made) == 1500


def test_keys_with_one_id_are_both_tried() -> None:
    """The two bytes that name a key are not its identity."""
    first, second = key(1), key(2)
    second.id = first.id
    assert ids_of(first, second).read(an_id(ids_of(second)), "flights").version == 2


@pytest.mark.parametrize(
    ("answered", "same", "other"),
    [("late", "late", "Late"), (3, 3.0, 4), (3, "3", "3.5"), (True, "true", 1), (2.5, 2.5, 2), ("", "", " ")],
)
def test_labels_are_compared_as_people_read_them(answered: object, same: object, other: object) -> None:
    """A class number is the same whatever type JSON gave it."""
    assert label_hash(answered) == label_hash(same)
    assert label_hash(answered) != label_hash(other)


# --- key files ------------------------------------------------------------------------------------------------------------


def key_file(directory: Path, text: str, mode: int = 0o600) -> Path:
    path = directory / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_file_holds_a_key_a_line(tmp_path: Path) -> None:
    """Comments and empty lines are for people."""
    first, second = new_key(), new_key()
    assert first != second
    keys = read_keys(key_file(tmp_path, f"# since November\n{first}\n\n  {second}  \n"))
    assert len(keys) == 2
    ids = PredictionIds(keys, max_age_s=DAY)
    assert ids.read(an_id(PredictionIds((keys[0],), max_age_s=DAY)), "flights").version == 2
    assert first not in repr(keys)


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (new_key(), 0o644, "mode 0644"),
        (new_key(), 0o620, "mode 0620"),
        ("", 0o600, "no key"),
        ("# nothing\n", 0o600, "no key"),
        (f"{new_key()}\nsecret\n", 0o600, "line 2"),
        ("\n".join(new_key() for _ in range(MAX_KEYS + 1)), 0o600, "at most 16"),
        ("#" * 70_000, 0o600, "larger"),
    ],
    ids=["world", "group-write", "empty", "comment", "no-key", "too-many", "too-large"],
)
def test_a_key_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, mode: int, said: str) -> None:
    """The sentence names the file, and tells no secret."""
    path = key_file(tmp_path, text, mode)
    with pytest.raises(FeedbackKeyError, match=said) as refused:
        read_keys(path)
    assert str(path) in str(refused.value)
    assert "secret" not in str(refused.value).replace("Kubernetes secret", "")


def test_a_group_may_read_a_key_file_and_a_missing_one_is_named(tmp_path: Path) -> None:
    """So are secrets mounted."""
    assert len(read_keys(key_file(tmp_path, new_key(), 0o440))) == 1
    with pytest.raises(FeedbackKeyError, match="No such file"):
        read_keys(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FeedbackKeyError, match="not a file"):
        read_keys(tmp_path / "pipe")
