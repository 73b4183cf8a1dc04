"""Every error the package library raises, as one tree.

SamegraphError
├── InputError                  a raw input breaks the signature (the caller's fault, names field and instance)
├── PackageError                a model package cannot be read or trusted
│   ├── ManifestInvalid         manifest.json is missing, unreadable or breaks its schema
│   ├── DigestMismatch          a file is missing, extra, or not what the manifest's digest says
│   ├── BaselineInvalid         baseline.json is unreadable, breaks its schema, or belongs to other fields
│   ├── UnsafePath              a name or path would leave the package or the repository
│   └── PackageExists           another package already holds this name and version
├── AuthoringError              a pipeline or draft cannot become a package as it stands
│   └── UnsupportedStep         a preprocessing step or estimator has no exact graph
├── NotExact                    the package's answers differ from the training code's by more than promised
├── ExecutionError              a graph failed to load or run
├── RemoteError                 a server cannot be reached, or its answer is no prediction (`samegraph predict --url`)
└── EnvironmentUnfit            this Python environment cannot serve (for example two ONNX Runtime distributions)
"""

from __future__ import annotations


class SamegraphError(Exception):
    """Base of every error samegraph raises on purpose; `str()` is a sentence fit to show to a person."""


class InputError(SamegraphError):
    """Raised when a raw input breaks the signature.

    Attributes:
        code: Stable machine word, one of `InputError.CODES`.
        field: Name of the raw input field, or None when the whole body is at fault.
        instance: Zero-based index of the instance in its request, or None when unknown or not applicable.
    """

    CODES = frozenset(
        {
            "malformed_json",
            "not_a_number",  # bare NaN or Infinity in JSON
            "bad_body",  # JSON is fine, its outer shape is not
            "unknown_field",
            "missing_field",
            "wrong_type",
            "out_of_range",
            "not_allowed",  # value outside the allowed set
            "too_long",
            "too_large",  # encoded bytes over the field's limit
            "too_many_pixels",
            "undecodable",
            "truncated",
            "unsupported_format",  # a container or pixel mode the package's decoder refuses
            "wrong_shape",
            "wrong_dtype",
            "no_instances",
            "too_many_instances",
            "unsupported_media_type",
            "execution_failed",  # this instance alone made the graph fail
        }
    )

    def __init__(self, message: str, *, code: str, field: str | None = None, instance: int | None = None) -> None:
        super().__init__(message)
        if code not in self.CODES:
            raise ValueError(f"unknown input error code {code!r}; add it to InputError.CODES")
        self.code = code
        self.field = field
        self.instance = instance

    def at(self, instance: int) -> InputError:
        """Return the same error placed at `instance` of its request."""
        placed = InputError(str(self), code=self.code, field=self.field, instance=instance)
        placed.__cause__ = self.__cause__
        return placed


class PackageError(SamegraphError):
    """Raised when a model package cannot be read or trusted."""


class ManifestInvalid(PackageError):
    """Raised when manifest.json is missing, is not JSON, or breaks its schema."""


class DigestMismatch(PackageError):
    """Raised when a file is missing, extra, or differs from the digest the manifest gives for it."""


class BaselineInvalid(PackageError):
    """Raised when baseline.json is not JSON, breaks its schema, or was made from other fields and outputs than the package's."""


class UnsafePath(PackageError):
    """Raised when a model name, version or file path would point outside its package or repository."""


class PackageExists(PackageError):
    """Raised when a different package already holds this name and version; versions are immutable."""


class AuthoringError(SamegraphError):
    """Raised when a pipeline or a draft cannot become a package as it stands."""


class UnsupportedStep(AuthoringError):
    """Raised when a preprocessing step or estimator has no exact graph.

    Attributes:
        step: Where in the pipeline, for example `preprocess.categories.onehot`.
    """

    def __init__(self, message: str, *, step: str) -> None:
        super().__init__(message)
        self.step = step


class NotExact(SamegraphError):
    """Raised when a package's answers differ from the training code's by more than the promised tolerance.

    Attributes:
        sample: Name of the first golden sample that differs.
        tensor: Name of the first tensor that differs, in the order the data flows.
        detail: One line: element index, expected, got, and how far apart.
        node: Name of the first node that diverges, where it could be found.
        kind: What kind of thing went wrong there: decode, resize, dtype, vocabulary, missing rule, accumulation or arithmetic.
    """

    def __init__(self, message: str, *, sample: str, tensor: str, detail: str, node: str = "", kind: str = "") -> None:
        super().__init__(message)
        self.node = node
        self.kind = kind
        self.sample = sample
        self.tensor = tensor
        self.detail = detail


class ExecutionError(SamegraphError):
    """Raised when a graph fails to load or to run; the runtime's own exception is its cause."""


class RemoteError(SamegraphError):
    """Raised when a server cannot be reached, does not serve the model, or answers with something that is no prediction."""


class EnvironmentUnfit(SamegraphError):
    """Raised when this Python environment cannot run packages, with what to change."""
