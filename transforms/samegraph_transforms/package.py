"""A model package on disk: read with verification, written atomically, immutable once there.

    read_package(path)                  a package whose every byte is what its manifest says
    read_bare(path)                     a bare <name>/<version>/model.onnx: tensors in, tensors out, nothing proven
    open_version(repository, name, v)   whichever of the two lies there, never outside the repository
    write_package(draft, samples, dir)  the only way a package comes to be (through `pack`, which proves it first)

`Package.load_stage` compares each file with its digest again at the moment its bytes are used, so what runs is what was verified.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import onnx
from google.protobuf.message import DecodeError
from onnx import helper
from pydantic import ValidationError

from . import external
from .bare import bare_manifest
from .baseline import BASELINE, BASELINE_BEFORE, Baseline, baseline_bytes, parse_baseline
from .draft import DraftStage, GoldenSample, PackageDraft
from .errors import AuthoringError, DigestMismatch, ManifestInvalid, PackageError, PackageExists, UnsafePath
from .golden import golden_files
from .manifest import FORMAT, STAGE_FILES, FileEntry, HostKernel, Manifest, Measured, Stage
from .opencv_kernels import cv2_version, required_nodes
from .paths import check_name, check_relative, is_version_name, leaves, open_plain, walk_files
from .weights import Weights

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
#: Partial directories of writers that were killed are removed by a later writer once they are this old.
ABANDONED_AFTER_S = 24 * 3600

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """One version of one model.

    Attributes:
        path: The directory that holds the files.
        manifest: What the package says about itself.
        digest: SHA-256 (hex) of manifest.json's bytes: the version's identity.
        proven: False for a bare model.onnx, which nobody has compared with training code.
    """

    path: Path
    manifest: Manifest
    digest: str
    proven: bool = True

    def __str__(self) -> str:
        return f"{self.manifest.name}/{self.manifest.version}"

    def read_file(self, name: str) -> bytes:
        """Return the bytes of the listed file `name`, compared with its digest.

        Raises:
            DigestMismatch: The file is not listed, missing, or not what the manifest says.
            UnsafePath: The path leaves the package or is a link.
        """
        check_relative(name, what="file")
        entry = self.manifest.files.get(name)
        if entry is None:
            raise DigestMismatch(f"{self}: {name} is not covered by the manifest's digests, so it is not read")
        with os.fdopen(open_plain(self.path / name), "rb") as file:
            data = file.read(entry.bytes + 1)
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DigestMismatch(f"{self}: {name} is not what the manifest says; copy the whole package again or pack it anew")
        return data

    def stage_path(self, name: str) -> Path:
        """Return where the graph of stage `name` lies; PackageError if the package has no such stage.

        Prefer `load_stage`, which verifies the very bytes it returns.
        """
        return self.path / check_relative(self._stage(name).file, what=f"file of stage {name}")

    def load_stage(self, name: str, weights: Weights | None = None) -> onnx.ModelProto:
        """Return the graph of stage `name` with all its weights, verified as it is read.

        Args:
            name: Of the stage.
            weights: Takes the large tensors of the graph, which then has references to them; None keeps them in it.

        Raises:
            PackageError: There is no such stage, or its file is not an ONNX model.
            DigestMismatch: A file differs from its digest, or external data is not covered by one.
            UnsafePath: External data points outside the package.
            ManifestInvalid: The graph's inputs or outputs are not those the manifest binds.
        """
        stage = self._stage(name)
        data, what = self.read_file(stage.file), f"{self}: {stage.file}"
        model = parse_model(data if weights is None else weights.cut(data), what)
        external.embed(model, self.read_file, weights)
        _check_bindings(stage, model, f"{self}: {stage.file}", ManifestInvalid)
        return model

    def baseline(self) -> Baseline | None:
        """Return the statistics of its training rows, or None when the package has none.

        Raises:
            BaselineInvalid: The file is no baseline, of another format, or made from other fields and outputs.
            DigestMismatch: The file is not what the manifest says.
        """
        if BASELINE not in self.manifest.files:
            return None
        return parse_baseline(self.read_file(BASELINE), self.manifest, f"{self}: {BASELINE}")

    def baseline_before(self) -> Baseline | None:
        """Return the baseline that the present one took the place of, or None when none is kept.

        Raises:
            BaselineInvalid: As for `baseline`.
            DigestMismatch: The file is not what the manifest says.
        """
        if BASELINE_BEFORE not in self.manifest.files:
            return None
        return parse_baseline(self.read_file(BASELINE_BEFORE), self.manifest, f"{self}: {BASELINE_BEFORE}")

    def golden_dir(self) -> Path:
        """Return the directory of the golden samples."""
        return self.path / "golden"

    def _stage(self, name: str) -> Stage:
        stage = self.manifest.stage(name)
        if stage is None:
            names = ", ".join(s.name for s in self.manifest.stages)
            raise PackageError(f"{self} has no stage {name!r}; it has {names}")
        return stage


def parse_model(data: bytes, what: str) -> onnx.ModelProto:
    """Return the ONNX model in `data` without touching external data; PackageError names `what` when it is none."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise PackageError(f"{what} is not an ONNX model (or is cut short)") from error
    if not model.HasField("graph"):
        raise PackageError(f"{what} is not an ONNX model: it holds no graph")
    return model


# --- canonical bytes -------------------------------------------------------------------------------------------------


def canonical_json(manifest: Manifest) -> bytes:
    """Return the one spelling of `manifest`: UTF-8, sorted keys, two spaces, every default written out, a final newline."""
    document = manifest.model_dump(mode="json")
    return (json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest_of(manifest_bytes: bytes) -> str:
    """Return the package digest: the SHA-256 of manifest.json's bytes, in hex."""
    return hashlib.sha256(manifest_bytes).hexdigest()


# --- reading ---------------------------------------------------------------------------------------------------------


def read_package(path: Path | str, *, verify_digests: bool = True) -> Package:
    """Read and verify the package in directory `path`.

    A directory whose name is a number counts as `<name>/<version>` of a repository: manifest and directories must agree.

    Args:
        path: The version directory.
        verify_digests: Also hash every file and check that external data is covered. False still checks that exactly the
            listed files are there with their sizes.

    Raises:
        ManifestInvalid: manifest.json is missing, breaks its schema, or disagrees with the directory's name.
        DigestMismatch: A file is missing, extra, or differs.
        UnsafePath: A path or link would leave the package.
    """
    path = Path(path)
    raw = _read_manifest_bytes(path)
    manifest = parse_manifest(raw, str(path / MANIFEST))
    package = Package(path=path, manifest=manifest, digest=digest_of(raw))
    if is_version_name(path.absolute().name):
        _check_location(path.absolute(), manifest)
    _check_listing(package)
    if verify_digests:
        _check_digests(package)
    return package


def _read_manifest_bytes(path: Path) -> bytes:
    if not path.is_dir():
        raise ManifestInvalid(f"{path} is not a directory; a model package is a directory with a {MANIFEST}")
    try:
        descriptor = open_plain(path / MANIFEST)
    except DigestMismatch as error:
        raise ManifestInvalid(f"{path} has no {MANIFEST}, so it is not a model package (or its writing did not finish)") from error
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"{path / MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    return raw


def parse_manifest(raw: bytes, what: str) -> Manifest:
    """Return the manifest in `raw`.

    Raises:
        ManifestInvalid: It is not JSON, names a key twice, has another format number, or breaks the schema; says where.
        UnsafePath: A listed file's path would leave the package.
    """
    document = _parse_json(raw, what)
    if not isinstance(document, dict):
        raise ManifestInvalid(f"{what}: a manifest is a JSON object")
    if document.get("format") != FORMAT:
        raise ManifestInvalid(
            f"{what}: format is {document.get('format')!r}; this samegraph reads format {FORMAT}, so install a matching one"
        )
    try:
        manifest = Manifest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise ManifestInvalid(f"{what}: {validation_summary(error)}") from error
    _check_manifest(manifest, what)
    return manifest


def _parse_json(raw: bytes, what: str) -> Any:
    def refuse_constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is not JSON")

    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError(f"a key is given twice among {', '.join(sorted(k for k, _ in pairs))}")
        return result

    try:
        return json.loads(raw, object_pairs_hook=refuse_twice, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"{what} is not valid JSON: {error}") from error


def validation_summary(error: ValidationError, most: int = 5) -> str:
    """Return pydantic's findings as one line of `place: reason`, at most `most` of them."""
    found = [f"{'.'.join(str(p) for p in e['loc']) or 'document'}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
    return "; ".join(found[:most]) + (f"; and {len(found) - most} more" if len(found) > most else "")


def _check_manifest(manifest: Manifest, what: str) -> None:
    check_name(manifest.name)
    for path in manifest.files:
        check_relative(path, what=f"{what}: file")
        if path == MANIFEST:
            raise ManifestInvalid(f"{what}: files lists {MANIFEST} itself, which cannot hold its own digest")
    for stage in manifest.stages:
        check_relative(stage.file, what=f"{what}: file of stage {stage.name}")
        if stage.file not in manifest.files:
            raise ManifestInvalid(f"{what}: stage {stage.name} names {stage.file}, which files does not list")
    check_wiring(manifest, lambda text: ManifestInvalid(f"{what}: {text}"))


def check_wiring(manifest: Manifest, make_error: Callable[[str], Exception]) -> None:
    """Raise `make_error(reason)` unless every stage input and every output is bound to a value that exists by then."""
    known = [f.name for f in manifest.fields] + [f.companion for f in manifest.fields if f.companion]
    for stage in manifest.stages:
        masks = manifest.masks if stage.name != "preprocess.item" else []
        for graph_name, value in stage.inputs.items():
            if value not in known and value not in masks:
                raise make_error(f"stage {stage.name}: input {graph_name!r} wants the value {value!r}; there are only {', '.join(known)}")
        known += [value for value in stage.outputs.values() if value not in known]
    for output in manifest.outputs:
        if output.name not in known:
            raise make_error(f"output {output.name!r} is no value of any stage; there are {', '.join(known)}")
        if output.decided_by is not None and output.decided_by not in known:
            raise make_error(f"output {output.name!r} is decided by {output.decided_by!r}, which is no value of any stage")


def _check_location(path: Path, manifest: Manifest) -> None:
    if str(manifest.version) != path.name or manifest.name != path.parent.name:
        raise ManifestInvalid(
            f"{path} holds {manifest.name} version {manifest.version}; in a repository it belongs in "
            f"{manifest.name}/{manifest.version} (elsewhere, give the directory a name that is not a number)"
        )


def _check_listing(package: Package) -> None:
    present = set(walk_files(package.path)) - {MANIFEST}
    listed = set(package.manifest.files)
    if missing := sorted(listed - present):
        raise DigestMismatch(f"{package}: {_some(missing)} missing from {package.path}; copy the whole package again")
    if extra := sorted(present - listed):
        raise DigestMismatch(
            f"{package}: {_some(extra)} not listed in {MANIFEST}; a package holds exactly the files it lists, so remove what was added"
        )
    for name, entry in package.manifest.files.items():
        size = (package.path / name).lstat().st_size
        if size != entry.bytes:
            raise DigestMismatch(f"{package}: {name} has {size} bytes where the manifest says {entry.bytes}; copy the whole package again")


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _check_digests(package: Package) -> None:
    graphs = {stage.file for stage in package.manifest.stages}
    for name, entry in package.manifest.files.items():
        if name in graphs:
            for location in external.locations(parse_model(Weights().cut(package.read_file(name)), f"{package}: {name}")):
                if location not in package.manifest.files:
                    raise DigestMismatch(f"{package}: {name} keeps tensors in {location}, which the manifest does not list")
        elif file_entry(package.path / name) != entry:
            raise DigestMismatch(f"{package}: {name} is not what the manifest says; copy the whole package again or pack it anew")


def file_entry(path: Path) -> FileEntry:
    """Return size and SHA-256 of the plain file at `path`, read in pieces; never follows a link."""
    with os.fdopen(open_plain(path), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(sha256=digest, bytes=file.tell())


def _check_bindings(stage: Stage, model: onnx.ModelProto, what: str, error: type[PackageError | AuthoringError]) -> None:
    inputs, outputs = graph_names(model)
    if set(stage.inputs) != set(inputs):
        raise error(f"{what}: the graph's inputs are {', '.join(inputs)}; bound are {', '.join(stage.inputs) or 'none'}")
    if set(stage.outputs) != set(outputs):
        raise error(f"{what}: the graph's outputs are {', '.join(outputs)}; named are {', '.join(stage.outputs) or 'none'}")


def graph_names(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Return the names of the inputs a caller must feed (not initializers) and of the outputs, in the graph's order."""
    fixed = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    return [i.name for i in model.graph.input if i.name not in fixed], [o.name for o in model.graph.output]


# --- bare models -----------------------------------------------------------------------------------------------------


def read_bare(path: Path | str) -> Package:
    """Read a bare `<name>/<version>/model.onnx`, the layout other servers use: tensors in, tensors out.

    The manifest is made from the graph and `proven` is False: nothing was compared with training code.

    Raises:
        PackageError: The directory is no `<name>/<version>`, holds more than a model, or the graph cannot be served as it stands.
        DigestMismatch: External data is missing or reaches beyond its file.
        UnsafePath: A path or link would leave the directory.
    """
    path = Path(path).absolute()
    if not is_version_name(path.name):
        raise PackageError(f"{path}: a bare model lies in <name>/<version>/model.onnx, with a number for the version")
    check_name(path.parent.name)
    present = set(walk_files(path))
    if "model.onnx" not in present:
        raise PackageError(f"{path} holds neither {MANIFEST} nor model.onnx")
    with os.fdopen(open_plain(path / "model.onnx"), "rb") as file:
        model = parse_model(file.read(), str(path / "model.onnx"))
    used = {"model.onnx", *external.locations(model)}
    if extra := sorted(present - used):
        raise PackageError(
            f"{path}: {_some(extra)} beside model.onnx but there is no {MANIFEST}: an unfinished copy of a package is not served"
        )
    files = {name: file_entry(path / name) for name in sorted(used)}
    manifest = bare_manifest(path.parent.name, int(path.name), model, files)
    return Package(path=path, manifest=manifest, digest=digest_of(canonical_json(manifest)), proven=False)


# --- repositories ----------------------------------------------------------------------------------------------------


def list_models(repository: Path | str) -> list[str]:
    """Return the names of the models in `repository` that have at least one version, sorted.

    A directory that is a link out of the repository is left out, with a warning in the log.

    Raises:
        PackageError: The repository is not a directory.
    """
    root = _root(repository)
    found = []
    for entry in os.scandir(root):
        if not _is_directory(entry) or not _usable_name(entry.name):
            continue
        if leaves(root, Path(entry.path)):
            _log.warning("%s is a link out of the repository and is not served", entry.path)
        elif list_versions(root, entry.name):
            found.append(entry.name)
    return sorted(found)


def list_versions(repository: Path | str, name: str) -> list[int]:
    """Return the version numbers under `repository`/`name` that hold a package or a bare model, ascending.

    Directories that are being written, or whose name is not a number, are not versions.

    Raises:
        UnsafePath: The name is no model name, or its directory is a link out of the repository.
        PackageError: The repository is not a directory.
    """
    root = _root(repository)
    directory = root / check_name(name)
    if leaves(root, directory):
        raise UnsafePath(f"{directory} is a link out of the repository; put the model's files inside it")
    if not directory.is_dir():
        return []
    return sorted(int(e.name) for e in os.scandir(directory) if is_version_name(e.name) and _is_directory(e) and _holds_model(Path(e.path)))


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads to itself; one such entry must not hide the others


def _holds_model(path: Path) -> bool:
    return os.path.lexists(path / MANIFEST) or os.path.lexists(path / "model.onnx")


def _root(repository: Path | str) -> Path:
    root = Path(repository)
    if not root.is_dir():
        raise PackageError(f"there is no model repository at {root}; create the directory or name another one")
    return root


def _usable_name(name: str) -> bool:
    try:
        check_name(name)
    except UnsafePath:
        return False
    return True


def version_path(repository: Path | str, name: str, version: int) -> Path:
    """Return the directory of `name` version `version`, whether or not it exists yet.

    Raises:
        UnsafePath: The name or number cannot be a directory of the repository, or a link there leads out of it.
    """
    root = Path(repository)
    if not is_version_name(str(version)):
        raise UnsafePath(f"version {version!r} cannot be used: a version is a whole number from 1 to {2**31 - 1}")
    path = root / check_name(name) / str(version)
    if leaves(root, path):
        raise UnsafePath(f"{path} is a link out of the repository; put the package's files inside it")
    return path


def open_version(repository: Path | str, name: str, version: int, *, verify_digests: bool = True) -> Package:
    """Read version `version` of `name` from `repository`: a package, or else a bare model.onnx.

    Raises:
        PackageError: Nothing readable and trustworthy lies there; the subclasses say what is wrong.
    """
    path = version_path(repository, name, version)
    if not path.is_dir():
        raise PackageError(f"{name} has no version {version} in {repository}")
    if os.path.lexists(path / MANIFEST) or not os.path.lexists(path / "model.onnx"):
        return read_package(path, verify_digests=verify_digests)
    return read_bare(path)


def read_latest(path: Path | str) -> Package:
    """Read the package in `path`, or the latest version below it when `path` is a model's directory.

    Raises:
        PackageError: Neither is there; the subclasses say what is wrong with what is.
    """
    path = Path(path).absolute()
    if _holds_model(path) or not path.is_dir() or not _usable_name(path.name):
        return open_version(path.parent.parent, path.parent.name, int(path.name)) if _is_bare(path) else read_package(path)
    versions = list_versions(path.parent, path.name)
    if not versions:
        raise ManifestInvalid(f"{path} is neither a model package (no {MANIFEST}) nor a directory of versions")
    return open_version(path.parent, path.name, versions[-1])


def _is_bare(path: Path) -> bool:
    return is_version_name(path.name) and not os.path.lexists(path / MANIFEST) and os.path.lexists(path / "model.onnx")


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass
class PackageWriter:
    """Writes a package beside its place and moves it there in one step; a context manager.

    Until `commit`, the files lie in a hidden sibling directory without manifest.json, which no reader takes for a version; a writer
    that fails or is interrupted leaves nothing that loads.

    Attributes:
        directory: The version directory to be, `<repository>/<name>/<version>`.
        entries: What was written so far, by POSIX path.
    """

    directory: Path
    entries: dict[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = Path(self.directory).absolute()
        self._partial = self.directory.parent / f".{self.directory.name}.{secrets.token_hex(6)}.partial"
        self._committed = False

    def __enter__(self) -> Self:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self.directory)
        self._partial.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._committed:
            shutil.rmtree(self._partial, ignore_errors=True)

    @property
    def partial(self) -> Path:
        """The directory that holds the files until `commit`."""
        return self._partial

    def add(self, name: str, pieces: bytes | Iterable[bytes]) -> None:
        """Write file `name` and flush it to the disk.

        Raises:
            UnsafePath: The path would leave the package.
            AuthoringError: The package already has this file.
        """
        check_relative(name, what="file")
        if name in self.entries or name == MANIFEST:
            raise AuthoringError(f"the package would hold the file {name} twice")
        hasher, size = hashlib.sha256(), 0
        target = self._partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                hasher.update(piece)
                size += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        self.entries[name] = FileEntry(sha256=hasher.hexdigest(), bytes=size)

    def provisional(self, manifest: Manifest) -> Package:
        """Return the package as it stands, to be run and measured before it exists for anyone else."""
        return Package(path=self._partial, manifest=manifest, digest=digest_of(canonical_json(manifest)))

    def commit(self, manifest: Manifest) -> Package:
        """Write manifest.json last and move the directory into place.

        The same package already there is left as it is and returned.

        Raises:
            PackageExists: Something else is there; versions are immutable.
        """
        raw = canonical_json(manifest)
        parse_manifest(raw, MANIFEST)  # what is written can be read
        if os.path.lexists(self.directory):
            return self._already_there(raw)
        with (self._partial / MANIFEST).open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        for parent in sorted({(self._partial / name).parent for name in [*self.entries, MANIFEST]}):
            _sync_directory(parent)
        try:
            self._partial.rename(self.directory)
        except OSError:
            if os.path.lexists(self.directory):  # another writer was quicker
                return self._already_there(raw)
            raise
        self._committed = True
        _sync_directory(self.directory.parent)
        return Package(path=self.directory, manifest=manifest, digest=digest_of(raw))

    def _already_there(self, raw: bytes) -> Package:
        advice = "versions are immutable: pack under the next number, or remove the directory if nothing uses it"
        if not (self.directory / MANIFEST).is_file():
            raise PackageExists(f"{self.directory} is there and is no package; {advice}")
        existing = digest_of(_read_manifest_bytes(self.directory))
        if existing != digest_of(raw):
            found = f"digest {existing[:12]}, this one {digest_of(raw)[:12]}"
            raise PackageExists(f"{self.directory} holds another package ({found}); {advice}")
        return read_package(self.directory)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(directory: Path) -> None:
    for path in directory.parent.glob(f".{directory.name}.*.partial"):
        if not path.is_symlink() and time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
            shutil.rmtree(path, ignore_errors=True)


def write_files(draft: PackageDraft, samples: Sequence[GoldenSample], writer: PackageWriter) -> Manifest:
    """Write everything but manifest.json through `writer` and return the manifest, without measurements.

    Raises:
        AuthoringError: The draft's parts do not fit together; says which.
    """
    stages = [_write_stage(stage, writer) for stage in draft.stages]
    for name in sorted(draft.assets):
        writer.add(f"assets/{name.removeprefix('assets/')}", draft.assets[name])
    for name, pieces in golden_files(samples):
        writer.add(f"golden/{name}", pieces)
    return _manifest(draft, stages, len(samples), writer.entries)


def write_baseline(baseline: Baseline, manifest: Manifest, writer: PackageWriter) -> Manifest:
    """Write baseline.json through `writer` and return the manifest that lists it.

    Raises:
        BaselineInvalid: The baseline was made from other fields or outputs than the manifest's.
    """
    raw = baseline_bytes(baseline)
    parse_baseline(raw, manifest)  # what is written can be read
    writer.add(BASELINE, raw)
    return manifest.model_copy(update={"files": dict(writer.entries)})


def _write_stage(stage: DraftStage, writer: PackageWriter) -> Stage:
    what = f"stage {stage.name}"
    model, name = stage.model, STAGE_FILES[stage.name]
    if unread := external.locations(model):
        raise AuthoringError(f"{what}: the graph's weights still lie in {', '.join(unread)}; load them first (onnx.load does)")
    if external.embedded_bytes(model) > external.MAX_EMBEDDED_BYTES:
        model, pieces = external.move_out(model, f"assets/{stage.name}.weights")
        writer.add(f"assets/{stage.name}.weights", pieces)
    else:
        _check_model(model, what)
    inputs, outputs = graph_names(model)
    entry = Stage(
        name=stage.name,
        file=name,
        inputs=dict(stage.inputs) if stage.inputs is not None else {n: n for n in inputs},
        outputs=dict(stage.outputs) if stage.outputs is not None else {n: n for n in outputs},
    )
    _check_bindings(entry, model, what, AuthoringError)
    writer.add(name, model.SerializeToString(deterministic=True))
    return entry


def _check_model(model: onnx.ModelProto, what: str) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise AuthoringError(f"{what}: the graph is not valid ONNX: {str(error).strip().splitlines()[0]}") from error


def _host_kernels(draft: PackageDraft) -> list[HostKernel]:
    """Return what the manifest says of nodes that are not exact as a graph."""
    nodes = [node for stage in draft.stages for node in required_nodes(stage.model.graph.node)]
    found = []
    for node in nodes:
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        digest, bound = values.get("digest", b""), values.get("bound", 0)
        found.append(HostKernel(node=node.name, function=node.op_type, library_version=cv2_version(), bound=bound, digest=digest.decode()))
    return found


def _manifest(draft: PackageDraft, stages: list[Stage], golden_samples: int, files: Mapping[str, FileEntry]) -> Manifest:
    try:
        manifest = Manifest(
            name=draft.name,
            version=draft.version,
            description=draft.description,
            fields=list(draft.fields),
            outputs=list(draft.outputs),
            stages=stages,
            decoders=list(draft.decoders),
            tokenizers=list(draft.tokenizers),
            vectorizers=list(draft.vectorizers),
            host_kernels=_host_kernels(draft),
            batching=draft.batching,
            tolerances=dict(draft.tolerances),
            golden_samples=golden_samples,
            provenance=draft.provenance,
            files=dict(files),
        )
    except ValidationError as error:
        raise AuthoringError(f"the draft of {draft.name} is not a package: {validation_summary(error)}") from error
    check_wiring(manifest, lambda text: AuthoringError(f"the draft of {draft.name}: {text}"))
    return manifest


def write_package(
    draft: PackageDraft,
    samples: Sequence[GoldenSample],
    directory: Path | str,
    measured: Sequence[Measured] = (),
    baseline: Baseline | None = None,
) -> Package:
    """Write `draft` with its golden samples as the version directory `directory`, atomically, **without** proving it.

    Use `pack`, which runs the package on the samples first; this is its last step and a tool for tests.

    Args:
        draft: Graphs and facts.
        samples: Golden samples; may be empty only here.
        directory: `<repository>/<name>/<version>`.
        measured: What a proof measured.
        baseline: Statistics of held-out training rows, made already.

    Raises:
        AuthoringError: The draft's parts do not fit together.
        BaselineInvalid: The baseline was made from other fields or outputs.
        PackageExists: Another package is already there.
    """
    with PackageWriter(Path(directory)) as writer:
        manifest = write_files(draft, samples, writer)
        if baseline is not None:
            manifest = write_baseline(baseline, manifest, writer)
        return writer.commit(manifest.model_copy(update={"measured": list(measured)}))
