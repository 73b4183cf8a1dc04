"""What V2 tells about the server and asks of it beside predictions, as plain documents: HTTP and gRPC answer the same."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from samegraph_transforms.errors import InputError
from samegraph_transforms.manifest import BINARY_KINDS, Manifest

from samegraph_service import __version__
from samegraph_service.errors import NotReady, Unauthorized, UnknownVersion, UnsupportedExtension
from samegraph_service.metrics import Histogram, VersionMetrics
from samegraph_service.predict import Served
from samegraph_service.service import Service

from . import v2

#: The extensions whose every part works; docs/protocols.md has the others.
EXTENSIONS = (
    "classification",
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
_STATES = {"loading": "LOADING", "ready": "READY", "failed": "UNAVAILABLE", "unloading": "UNLOADING", "unloaded": "UNAVAILABLE"}
#: Parts of V2 as Triton has it that this server refuses: the beginning of their paths, and what to do instead.
REFUSED = {
    "systemsharedmemory": "system shared memory: send tensors in the request, in bytes",
    "cudasharedmemory": "CUDA shared memory: send tensors in the request, in bytes",
    "trace": "Triton's trace settings: traces go to OpenTelemetry, by settings of the server",
    "logging": "Triton's log settings: the log is set when the server starts",
}


def unsupported(extension: str) -> UnsupportedExtension:
    """Return the refusal of an extension in `REFUSED`."""
    return UnsupportedExtension(f"this server does not have {REFUSED[extension]}")


def authorise(service: Service, authorization: str) -> None:
    """Let a caller change state only with the configured token.

    Raises:
        Unauthorized: No token is configured, or the caller's is another.
    """
    token = service.settings.admin.token
    if token is None:
        raise Unauthorized("admin routes are closed: no SAMEGRAPH_ADMIN__TOKEN is configured")
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.get_secret_value().encode()):
        raise Unauthorized("this route needs the header `Authorization: Bearer <admin token>`")


def server_metadata() -> dict[str, Any]:
    """Return the server's name, version and extensions."""
    return {"name": "samegraph", "version": __version__, "extensions": list(EXTENSIONS)}


def index(service: Service, *, ready_only: bool = False) -> list[dict[str, str]]:
    """Return every known version with its state."""
    return [
        {"name": s.model, "version": str(s.version), "state": _STATES[s.state], "reason": s.reason}
        for s in service.repository.states()
        if s.state == "ready" or not ready_only
    ]


def model_metadata(service: Service, model: str, version: int | None) -> dict[str, Any]:
    """Return inputs and outputs of a version as tensors.

    Raises:
        SamegraphError: There is no such version, or it is not ready.
    """
    _, served = service.repository.routes.resolve(model, version)
    return v2.model_metadata(served.runtime.manifest, sorted(service.repository.routes.models[model].ready))


def model_ready(service: Service, model: str, version: int | None) -> bool:
    """Return whether a known version, or the default one, can answer.

    Raises:
        UnknownModel: There is no such model.
        UnknownVersion: There is no such version.
    """
    try:
        service.repository.routes.resolve(model, version)
    except NotReady:
        return False
    return True


def model_config(service: Service, model: str, version: int | None) -> dict[str, Any]:
    """Return what Triton's model configuration has to say about a version, as far as it has a meaning here.

    Raises:
        SamegraphError: There is no such version, or it is not ready.
    """
    _, served = service.repository.routes.resolve(model, version)
    manifest = served.runtime.manifest
    described = v2.model_metadata(manifest, ())
    on_gpu = any(not provider.startswith("CPU") for provider in served.runtime.providers)
    return {
        "name": model,
        "platform": described["platform"],
        "backend": "samegraph",
        "version_policy": {"latest": {"num_versions": service.settings.repository.keep_versions}},
        "max_batch_size": served.lane.policy.max_batch_size,
        "input": [_config_input(tensor, manifest) for tensor in described["inputs"]],
        "output": [_config_tensor(tensor) for tensor in described["outputs"]],
        "instance_group": [{"name": model, "kind": "KIND_GPU" if on_gpu else "KIND_CPU", "count": service.device.slots}],
        "dynamic_batching": {"max_queue_delay_microseconds": round(served.lane.policy.max_queue_delay_s * 1e6)},
        "model_transaction_policy": {"decoupled": False},
    }


def _config_tensor(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tensor without its first dimension, which the batch size stands for; a tensor without others is [1], reshaped."""
    dims = tensor["shape"][1:]
    entry = {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype'].replace('BYTES', 'STRING')}", "dims": dims or [1]}
    return entry if dims else {**entry, "reshape": {"shape": []}}


def _config_input(tensor: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    own = next(f for f in manifest.fields if f.name == tensor["name"])
    entry = _config_tensor(tensor)
    if own.kind in BINARY_KINDS:
        entry["dims"] = [1]
    return entry if own.required else {**entry, "optional": True}


# --- statistics -----------------------------------------------------------------------------------------------------------


def statistics(service: Service, model: str | None = None, version: int | None = None) -> dict[str, Any]:
    """Return what was counted about the versions that are served: all, those of a model, or one.

    Raises:
        SamegraphError: There is no such version, or it is not ready.
    """
    routes = service.repository.routes
    if model is not None:
        routes.resolve(model, version)
    found = []
    for name in sorted(routes.models) if model is None else [model]:
        own = routes.models[name]
        found += [
            _statistics(service, served, number == own.default) for number, served in sorted(own.ready.items()) if version in (None, number)
        ]
    return {"model_stats": found}


def _statistics(service: Service, served: Served, default: bool) -> dict[str, Any]:
    metrics: VersionMetrics = served.metrics
    counts = service.metrics.requests
    answered = sum(n for (m, v, _, _), n in counts.items() if (m, v) == (served.model, served.version))
    # A request that failed is counted for its model; the default version's entry stands for it.
    failed = sum(n for (m, v, _, _), n in counts.items() if m == served.model and v == 0) if default else 0
    stages = metrics.stages
    nothing = {"count": 0, "ns": 0}
    return {
        "name": served.model,
        "version": str(served.version),
        "last_inference": metrics.last_execution_ns // 1_000_000,
        "inference_count": metrics.instances,
        "execution_count": sum(metrics.batch_size.counts),
        "inference_stats": {
            "success": {"count": answered, "ns": _ns(metrics.duration.total)},
            "fail": {"count": failed, "ns": 0},
            "queue": _duration(stages["queue"]),
            "compute_input": {"count": sum(stages["decode"].counts), "ns": _ns(stages["decode"].total + stages["item"].total)},
            "compute_infer": _duration(stages["batch"]),
            "compute_output": _duration(stages["encode"]),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {"batch_size": size, "compute_input": nothing, "compute_infer": {"count": n, "ns": _ns(seconds)}, "compute_output": nothing}
            for size, (n, seconds) in sorted(metrics.batches.items())
        ],
        "memory_usage": [],
    }


def _duration(histogram: Histogram) -> dict[str, int]:
    return {"count": sum(histogram.counts), "ns": _ns(histogram.total)}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


# --- repository -----------------------------------------------------------------------------------------------------------


async def load(service: Service, model: str, parameters: Mapping[str, Any]) -> None:
    """Look at a model's directory now and serve what is there, also when it was unloaded; answers when that was tried.

    Raises:
        InputError: It came with a configuration or files of its own.
        UnknownModel: The repository has no such model.
        NotReady: None of its versions can be served.
    """
    if any(parameters.get(name) for name in parameters):
        given = ", ".join(sorted(str(name)[:60] for name in parameters)[:5])
        raise InputError(
            f"a load takes no parameters here ({given}): a version is a package in the repository, with its own manifest",
            code="bad_body",
            field="parameters",
        )
    service.repository.allow(model)
    await service.repository.sync()
    service.repository.routes.resolve(model)


async def unload(service: Service, model: str) -> None:
    """Stop serving every version of a model until it is loaded again; what is running is answered.

    Raises:
        UnknownModel: The repository has no such model.
    """
    service.repository.routes.resolve_model(model)
    await service.repository.unload(model)


def version_of(text: str) -> int | None:
    """Return the version a gRPC request or a path names; None where it names none.

    Raises:
        UnknownVersion: It is no number.
    """
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise UnknownVersion(f"a version is a number, such as 3; got {text[:40]!r}")
    return int(text)
