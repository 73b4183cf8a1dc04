"""Fetching pinned archives: nothing but the pinned bytes is ever used."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from models._fetch import PINS, FetchFailed, Pin, fetch, read_member, unpack

WHEEL = "samegraph_demo-1.0-py3-none-any.whl"
METADATA = "samegraph_demo-1.0.dist-info"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes for the whole package index."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def _wheel(path: Path, content: str = "a,b\n1,2\n") -> str:
    """Write a small wheel and return its SHA-256."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("samegraph_demo/data.csv", content)
        archive.writestr(f"{METADATA}/METADATA", "Metadata-Version: 2.1\nName: samegraph-demo\nVersion: 1.0\n")
        archive.writestr(f"{METADATA}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{METADATA}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pinned_wheel_is_downloaded_once(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call needs no index, and a damaged copy is fetched again."""
    monkeypatch.setitem(PINS, ("samegraph-demo==1.0", "wheel"), Pin(WHEEL, _wheel(index / WHEEL)))
    downloads = tmp_path / "downloads"
    path = fetch("samegraph-demo==1.0", downloads=downloads)
    assert read_member(path, "samegraph_demo/data.csv") == b"a,b\n1,2\n"
    path.write_bytes(path.read_bytes()[:-10])
    assert fetch("samegraph-demo==1.0", downloads=downloads).read_bytes() == (index / WHEEL).read_bytes()
    (index / WHEEL).unlink()
    assert fetch("samegraph-demo==1.0", downloads=downloads) == path
    assert sorted(p.name for p in downloads.iterdir()) == [WHEEL]


def test_another_file_under_the_pinned_name_is_refused(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that serves other bytes for the same version gets nowhere, and leaves nothing behind."""
    pinned = _wheel(index / WHEEL)
    _wheel(index / WHEEL, "tampered")
    monkeypatch.setitem(PINS, ("samegraph-demo==1.0", "wheel"), Pin(WHEEL, pinned))
    with pytest.raises(FetchFailed, match=r"(?i)hash"):
        fetch("samegraph-demo==1.0", downloads=tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_what_is_not_pinned_is_not_fetched(index: Path, tmp_path: Path) -> None:
    """A version nobody pinned is refused with the list of those that are."""
    with pytest.raises(FetchFailed, match=r"palmerpenguins==0\.1\.6"):
        fetch("palmerpenguins==9.9", downloads=tmp_path)


def test_an_unreachable_index_is_reported_with_the_file_that_was_wanted(index: Path, tmp_path: Path) -> None:
    """Without network the message names the file instead of showing pip's traceback."""
    with pytest.raises(FetchFailed, match=r"palmerpenguins-0\.1\.6-py3-none-any\.whl"):
        fetch("palmerpenguins==0.1.6", downloads=tmp_path)


def test_a_missing_pip_is_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without pip is told how to get it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(FetchFailed, match="ensurepip"):
        fetch("palmerpenguins==0.1.6", downloads=tmp_path)


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_members_are_unpacked_beside_the_archive_once(tmp_path: Path, kind: str) -> None:
    """Only the named files appear, and an absent one is named."""
    archive = tmp_path / ("demo-1.0-py3-none-any.whl" if kind == "wheel" else "demo-1.0.tar.gz")
    files = {"demo/a.txt": b"one", "demo/b.txt": b"two"}
    if kind == "wheel":
        with zipfile.ZipFile(archive, "w") as opened:
            for name, content in files.items():
                opened.writestr(name, content)
    else:
        with tarfile.open(archive, "w:gz") as opened:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                opened.addfile(entry, io.BytesIO(content))
    directory = unpack(archive, ["demo/a.txt"])
    assert [p.name for p in (directory / "demo").iterdir()] == ["a.txt"]
    assert unpack(archive, ["demo/a.txt"]) == directory
    with pytest.raises(FetchFailed, match=r"no demo/c\.txt"):
        unpack(archive, ["demo/c.txt"])


@pytest.mark.parametrize("member", ["../outside.txt", "/etc/passwd", "demo/../../outside.txt"])
def test_a_member_never_lands_outside_its_directory(tmp_path: Path, member: str) -> None:
    """A path that climbs out is refused before the archive is read."""
    archive = tmp_path / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(member, "no")
    with pytest.raises(FetchFailed, match="not a path inside"):
        unpack(archive, [member])
    assert [p.name for p in tmp_path.iterdir()] == [archive.name]
