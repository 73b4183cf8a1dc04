"""The one settings object. Built once, in the composition root; nothing else reads the environment.

Every setting is an environment variable `SAMEGRAPH_<GROUP>__<NAME>`, for example `SAMEGRAPH_SERVER__PORT=9000`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .capture.options import parse_field_names, parse_ratios
from .drift.window_sizes import parse_windows

MIB = 1 << 20


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(_Group):
    """Where the server listens."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 lets the system choose one.")
    backlog: int = Field(
        default=2048, ge=1, le=65535, description="Connections the system may hold before they are accepted; a burst of 300 must fit."
    )
    keep_alive_s: int = Field(
        default=75, ge=1, le=3600, description="Seconds an idle connection is kept; longer than the clients' and proxies' own."
    )
    http: Literal["direct", "asgi"] = Field(
        default="direct",
        description="direct answers predictions on the connection itself; asgi sends them through ASGI too.",
    )
    compress_from_bytes: int = Field(
        default=65_536,
        ge=0,
        description="Smallest answer that is compressed for a caller whose `accept-encoding` allows gzip or deflate; 0 compresses none.",
    )
    root_path: str = Field(default="", description="Path prefix a proxy strips before the request arrives.")


class GrpcSettings(_Group):
    """V2 over gRPC, on a port of its own and `SAMEGRAPH_SERVER__HOST`."""

    port: int | None = Field(
        default=None, ge=0, le=65535, description="TCP port of gRPC, 8001 by custom; 0 lets the system choose one. Unset: no gRPC."
    )
    stream_window: int = Field(
        default=32, ge=1, le=1024, description="Requests of one stream that run at the same time; further ones wait unread."
    )


class RepositorySettings(_Group):
    """Which model versions are loaded."""

    path: Path = Field(default=Path("models"), description="The model repository: <name>/<version>/.")
    poll_s: float = Field(default=5.0, ge=0.1, le=3600, description="Seconds between two looks for new versions; SIGHUP looks at once.")
    recheck_s: float = Field(
        default=86_400.0,
        ge=0,
        le=30 * 86_400,
        description="Seconds between two replays of the golden samples of every served version, at low priority. 0: only at loading.",
    )
    keep_versions: int = Field(default=2, ge=1, le=100, description="Latest versions of each model that stay loaded.")
    memory_budget_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes of graphs and weights loaded at once; a load beyond it is refused. Unset: 80 % of the memory limit.",
    )


class LimitSettings(_Group):
    """Upper bounds of what is accepted."""

    max_body_bytes: int = Field(default=64 * MIB, ge=1024, description="Largest request body.")
    max_instances: int = Field(default=10_000, ge=1, description="Most instances in one request.")
    max_image_bytes: int = Field(
        default=32 * MIB, ge=1024, description="Largest encoded image or byte string; a field of a model may state less."
    )
    max_image_pixels: int = Field(
        default=50_000_000, ge=1, description="Most pixels of an image, read before decoding; a field may state fewer."
    )
    max_requests: int = Field(default=4096, ge=1, description="Most requests accepted and not yet answered.")
    max_queued_rows: int = Field(default=100_000, ge=1, description="Most instances accepted and not yet answered.")
    max_queued_bytes: int = Field(default=1024 * MIB, ge=1024, description="Most body bytes accepted and not yet answered.")
    body_timeout_s: float = Field(default=30.0, gt=0, le=3600, description="Seconds a request body may take to arrive.")
    default_deadline_s: float = Field(default=30.0, gt=0, le=3600, description="Deadline of a request that states none, in seconds.")
    longest_deadline_s: float = Field(default=300.0, gt=0, le=86400, description="Longest deadline a caller may ask for, in seconds.")


class ExecutionSettings(_Group):
    """How work is spread over the machine."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where batches run; auto takes a GPU when one is there.")
    run_slots: int | None = Field(
        default=None, ge=1, le=256, description="Executions at the same time; on a CPU decoding too. Unset: the CPU quota (2 on a GPU)."
    )
    host_threads: int | None = Field(
        default=None, ge=1, le=256, description="Threads for large JSON and, on a GPU, decoding images. Unset: the CPU quota."
    )
    intra_op_threads: int = Field(default=1, ge=1, le=256, description="Threads inside one execution; 1 keeps float sums in one order.")
    max_batch_size: int | None = Field(default=None, ge=1, le=65536, description="Caps every model's own largest batch.")
    kernels: Literal["auto", "off"] = Field(
        default="auto",
        description="off runs every preprocessing function that is exact as a graph by its ONNX body, never by a host library.",
    )
    inline_below_s: float = Field(
        default=0.0005, ge=0, le=0.01, description="Executions predicted to be shorter run on the event loop; 0 never does."
    )
    simulated_batch_s: float = Field(
        default=0.0, ge=0, le=60, description="For load tests only: every execution is made to take at least so many seconds."
    )
    simulated_row_s: float = Field(default=0.0, ge=0, le=60, description="For load tests only: and so many more for each of its rows.")


class AdmissionSettings(_Group):
    """What is let in under load, and what a caller who is not is told."""

    caller_header: str = Field(
        default="", max_length=64, description="Request header that names the caller, set by your gateway. Empty: the peer's address."
    )
    max_callers: int = Field(
        default=4096, ge=1, le=1_000_000, description="Callers told apart at the same time; further ones share a place."
    )
    max_hint_s: float = Field(
        default=60.0, ge=1, le=86400, description="Longest hint, in seconds; beyond it callers are spread over the half below."
    )
    max_keys: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Most tickets of refused callers, and most idempotency keys, kept at the same time."
    )
    replay_s: float = Field(
        default=120.0, ge=0, le=86400, description="Seconds the answer to an idempotency key is kept; 0 keeps none, and joins only."
    )
    replay_bytes: int = Field(default=64 * MIB, ge=0, description="Most bytes of such answers.")
    max_abandoned: int = Field(
        default=256,
        ge=0,
        le=100_000,
        description="Most requests with an idempotency key, for each model, that run on after their callers have left; 0 drops them all.",
    )
    priorities: bool = Field(default=True, description="Whether callers may choose a priority; false takes all as normal.")
    advertise: bool = Field(default=True, description="Whether answers to predictions carry the in-flight limit.")


class GpuSettings(_Group):
    """How batches run on a GPU; without one nothing here matters."""

    small_on_cpu: bool = Field(
        default=True, description="Whether models with too little to compute for a GPU run on the CPU: trees, small linear models."
    )
    memory_limit_bytes: int | None = Field(
        default=None, ge=64 * MIB, description="Most device memory the arena of one loaded graph takes. Unset: all there is."
    )
    buckets: bool = Field(
        default=True, description="Whether batches are padded to powers of two, whose buffers are made and warmed up at load."
    )
    arena_shrink: bool = Field(default=True, description="Whether an oversized batch gives its device memory back.")
    tf32: bool = Field(default=False, description="Whether matrix products may round to TF32: faster, and seldom within the promise.")
    half: bool = Field(
        default=False, description="Whether models whose package promises a tolerance for gpu.half compute in half precision."
    )
    tensorrt: bool = Field(default=False, description="Whether TensorRT compiles the graphs; CUDA runs what it leaves.")
    tensorrt_cache: Path | None = Field(
        default=None, description="Directory of compiled TensorRT engines. Unset: every start compiles them again, for minutes."
    )


class DriftSettings(_Group):
    """How rows are compared with the training baseline; without a baseline in the package nothing here matters."""

    enabled: bool = Field(default=True, description="Whether rows are counted and compared with the baseline.")
    windows: str = Field(
        default="1h,24h", description="Durations that are looked at, one to four, up to 7d; `m`, `h` and `d` are minutes, hours and days."
    )
    least_psi: float = Field(default=0.1, ge=0, le=10, description="Drift that is tolerated: an alarm says that the true PSI is larger.")
    alpha: float = Field(
        default=0.001,
        ge=0.0001,
        le=0.5,
        description="Chance that a look at a version's window says anything about fields that did not change.",
    )
    min_rows: int = Field(default=200, ge=1, description="Rows of a window below which nothing is said.")
    cpu_ratio: float = Field(
        default=0.005,
        ge=0.001,
        le=1,
        description="Most of one CPU that counting takes; rows beyond that are sampled, and counted as dropped.",
    )
    max_queued_rows: int = Field(default=50_000, ge=1, description="Most rows of a version that wait to be counted.")
    max_queued_bytes: int = Field(default=64 * MIB, ge=1024, description="Most bytes of a version's rows that wait to be counted, about.")
    max_series: int = Field(
        default=5000, ge=0, description="Most series about drift in the metrics; beyond it the least important fields are left out."
    )

    @field_validator("windows")
    @classmethod
    def _windows_are_durations(cls, windows: str) -> str:
        parse_windows(windows)
        return windows


class CaptureSettings(_Group):
    """Which requests are kept with their answers, and where; none unless a share of them is asked for."""

    sample_ratio: float = Field(default=0.0, ge=0, le=1, description="Share of the answered requests that is kept; 0 is off.")
    model_ratios: str = Field(
        default="", description="Shares of single models, as `MODEL=RATIO,MODEL=RATIO`; they win over the one for all."
    )
    url: str = Field(default="", description="Where to: a directory, or any URL that fsspec knows, such as `s3://bucket/prefix`.")
    exclude: str = Field(default="", description="Fields of which nothing is kept: `FIELD` of every model or `MODEL:FIELD`, by commas.")
    hashed: str = Field(default="", description="Fields of which a keyed digest is kept instead of the value, written likewise.")
    hash_key_file: Path | None = Field(default=None, description="File with the key of those digests, 16 bytes or more.")
    rotate_rows: int = Field(default=10_000, ge=1, description="Rows after which a file is closed.")
    rotate_bytes: int = Field(default=64 * MIB, ge=1024, description="Bytes of waiting rows after which a file is closed, about.")
    rotate_s: float = Field(default=300.0, gt=0, le=86400, description="Seconds after which a row is in a file at the latest.")
    max_bytes: int = Field(default=10_240 * MIB, ge=1024, description="Most bytes of files in a local directory; the oldest are deleted.")
    max_image_bytes: int = Field(
        default=10_240 * MIB, ge=1024, description="Most bytes of images in a local directory; the least recently seen are deleted."
    )
    max_age_s: float = Field(default=2_592_000.0, ge=60, description="Age at which local files and images are deleted; 30 days.")
    max_queued_rows: int = Field(default=20_000, ge=1, description="Most rows that are not yet in a file; further ones are dropped.")
    max_queued_bytes: int = Field(default=128 * MIB, ge=1024, description="Most bytes of rows that are not yet in a file, about.")
    cpu_ratio: float = Field(default=0.05, ge=0.001, le=1, description="Most of one CPU that turning rows into columns takes, about.")
    flush_s: float = Field(default=5.0, ge=0, le=300, description="Longest time a shutdown waits for what is not yet in a file.")

    @field_validator("exclude", "hashed")
    @classmethod
    def _names_are_fields(cls, names: str) -> str:
        parse_field_names(names)
        return names

    @field_validator("model_ratios")
    @classmethod
    def _ratios_are_shares(cls, ratios: str) -> str:
        parse_ratios(ratios)
        return ratios

    @model_validator(mode="after")
    def _somewhere_to(self) -> Self:
        if self.enabled and not self.url:
            raise ValueError("a share of the requests is to be kept, so SAMEGRAPH_CAPTURE__URL must say where")
        return self

    @property
    def enabled(self) -> bool:
        """Whether anything is captured."""
        return self.sample_ratio > 0 or any(ratio > 0 for ratio in parse_ratios(self.model_ratios).values())


class FeedbackSettings(_Group):
    """Outcomes that come back for predictions."""

    key_file: Path | None = Field(
        default=None,
        description="File of the keys that sign prediction ids, one a line; SIGHUP reads it again. Unset: no feedback is taken.",
    )
    max_age_s: float = Field(
        default=1_209_600.0, ge=60, le=31_536_000, description="Oldest prediction that feedback is taken for, in seconds: 14 days."
    )
    max_items: int = Field(default=1000, ge=1, le=100_000, description="Most items in one feedback request.")
    dedupe_s: float = Field(default=3600.0, ge=0, le=604_800, description="Seconds a value is remembered, so that it is counted once.")
    dedupe_entries: int = Field(
        default=100_000, ge=0, le=10_000_000, description="Most values remembered; beyond it the oldest are forgotten."
    )
    max_series: int = Field(
        default=20_000,
        ge=0,
        description="Most series about experiments and feedback in the metrics; beyond it the least important are left out.",
    )


class ShadowSettings(_Group):
    """Copies of requests that shadow versions get; which versions and which share is said in routing.yaml."""

    max_batch_s: float = Field(
        default=0.005, gt=0, le=10, description="Most predicted seconds of a shadow's execution, which is the most a caller waits for it."
    )
    max_queued_requests: int = Field(default=256, ge=1, le=100_000, description="Most copies that wait; further ones are shed.")
    max_queued_bytes: int = Field(default=64 * MIB, ge=1024, description="Most body bytes of the requests whose copies wait.")
    late_s: float = Field(default=10.0, gt=0, le=3600, description="Seconds after which a copy that still waits is shed.")


class TracingSettings(_Group):
    """Traces of requests, as OpenTelemetry spans; none unless an endpoint is configured."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://.+",
        description="Where spans are sent by OTLP over HTTP, for example http://127.0.0.1:4318/v1/traces. Unset: nothing is traced.",
    )
    sample_ratio: float = Field(
        default=0.01, ge=0, le=1, description="Share of requests that is traced when the caller's `traceparent` does not decide."
    )
    service_name: str = Field(default="samegraph", min_length=1, max_length=255, description="`service.name` of the spans.")
    headers: SecretStr | None = Field(default=None, description="Headers sent to the endpoint, a token say, as `NAME=VALUE,NAME=VALUE`.")
    max_queued: int = Field(
        default=2048, ge=1, le=1_000_000, description="Most traces that wait to be made into spans; further ones are dropped and counted."
    )


class ShutdownSettings(_Group):
    """What happens after SIGTERM."""

    delay_s: float = Field(default=0.0, ge=0, le=300, description="Seconds to go on serving, not ready, so that balancers can take notice.")
    grace_s: float = Field(default=30.0, ge=0, le=3600, description="Seconds accepted requests get to finish.")
    linger_s: float = Field(
        default=0.5,
        ge=0,
        le=60,
        description="Seconds to go on answering 503 after a busy drain, so that callers on their way get an answer, not a reset.",
    )


class LogSettings(_Group):
    """What is written to standard error."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto writes for people on a terminal and JSON lines elsewhere."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severe event that is written.")
    access: bool = Field(default=True, description="Whether every answered request gets a line.")
    access_sample_ratio: float = Field(default=1.0, ge=0, le=1, description="Share of answers below status 500 that gets a line.")
    access_per_s: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Most lines a second, about; beyond that a share of the answers below status 500 gets one, which tells the share.",
    )
    access_queue: int = Field(
        default=65_536,
        ge=100,
        le=10_000_000,
        description="Most access-log lines that wait for a slow reader of standard error; further ones are dropped and counted.",
    )


class AdminSettings(_Group):
    """Routes that change state."""

    token: SecretStr | None = Field(default=None, min_length=16, description="Bearer token of the admin routes; unset closes them.")


class Settings(BaseSettings):
    """All settings of the service."""

    model_config = SettingsConfigDict(
        env_prefix="SAMEGRAPH_", env_nested_delimiter="__", frozen=True, extra="forbid", nested_model_default_partial_update=True
    )

    server: ServerSettings = Field(default_factory=ServerSettings)
    grpc: GrpcSettings = Field(default_factory=GrpcSettings)
    repository: RepositorySettings = Field(default_factory=RepositorySettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    execution: ExecutionSettings = Field(default_factory=ExecutionSettings)
    admission: AdmissionSettings = Field(default_factory=AdmissionSettings)
    gpu: GpuSettings = Field(default_factory=GpuSettings)
    drift: DriftSettings = Field(default_factory=DriftSettings)
    capture: CaptureSettings = Field(default_factory=CaptureSettings)

    feedback: FeedbackSettings = Field(default_factory=FeedbackSettings)
    shadow: ShadowSettings = Field(default_factory=ShadowSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    shutdown: ShutdownSettings = Field(default_factory=ShutdownSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    admin: AdminSettings = Field(default_factory=AdminSettings)


def unknown_variables(environment: dict[str, str]) -> list[str]:
    """Return the variables with our prefix that name no group; pydantic ignores those, and a misspelling should not pass."""
    groups = {name.upper() for name in Settings.model_fields}
    mine = (name for name in environment if name.upper().startswith("SAMEGRAPH_"))
    return sorted(name for name in mine if name.upper().removeprefix("SAMEGRAPH_").partition("__")[0] not in groups or "__" not in name)
