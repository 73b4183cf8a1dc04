"""The running service: everything that lives between start and stop, put together and taken apart here."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from pydantic import SecretStr
from samegraph_transforms.executor import CPU, available_providers, gpu_present
from samegraph_transforms.gpu import GpuOptions
from samegraph_transforms.wire import predictions
from starlette.types import ASGIApp

from . import memory
from .admission import Gate, Limits
from .api.access import AccessLogged
from .api.asgi import PredictGateway
from .api.front import Front, HttpLimits
from .api.repeats import Repeats
from .batching import BatchPolicy
from .capture.options import CaptureOptions, check_libraries, parse_field_names, parse_ratios, read_key
from .clock import Loop, PreciseLoop
from .device import Device, Lane, Runner
from .drift.exposition import DriftExposition
from .drift.monitor import DriftMonitor, DriftOptions
from .drift.statistics import AlarmRule
from .drift.tap import QueueLimits
from .drift.window_sizes import parse_windows
from .errors import Draining, FeedbackKeyError
from .experiments.counters import LABEL_METRIC, Counters
from .experiments.exposition import ExperimentExposition
from .experiments.feedback import Feedback, Remembered
from .experiments.prediction_id import PredictionIds, read_keys
from .experiments.routing_file import RoutingFile
from .experiments.routing_metrics import RoutingMetrics, RoutingReading
from .experiments.shadow import ShadowLimits, ShadowMetrics, Shadows
from .experiments.signing import AnswerSigner, label_place
from .experiments.view import routes_document, unit_words
from .experiments.watch import ExperimentWatch
from .exposition import Exposition
from .loading import Loaded, LoadOptions
from .logs import AccessLog, LogOutput, get_logger
from .metrics import AdmissionMetrics, HistogramFamily, Metrics, Reading, VersionMetrics, VersionReading
from .openapi import ExampleRequest, ModelDoc
from .operation import LoadPhases, OperationMetrics
from .pages import ModelEntry, VersionEntry
from .predict import Deadlines, Predictor, Served, served_version
from .quota import cpu_quota, memory_limit
from .repository import Repository
from .routing import ModelRoutes
from .settings import Settings
from .simulated import Pace, Paced, paced_cost
from .tracing import TraceMetrics, Tracer, otlp_exporter

if TYPE_CHECKING:
    from .capture.sink import CaptureSink

log = get_logger("samegraph.service")


class Service:
    """All parts, wired. Make it on the event loop it is to run on.

    Args:
        settings: The settings in force.
        log_output: Where access lines go, or None for none.
        fallback: Answers every path that is not a prediction.
    """

    def __init__(self, settings: Settings, log_output: LogOutput | None, fallback: ASGIApp) -> None:
        self.settings = settings
        quota = cpu_quota()
        execution, limits = settings.execution, settings.limits
        providers = available_providers(execution.device)
        loop = PreciseLoop(asyncio.get_running_loop())
        self.host = ThreadPoolExecutor(execution.host_threads or quota, thread_name_prefix="samegraph-host")
        self.device = Device(loop, execution.run_slots or (quota if providers == CPU else 2), execution.inline_below_s)
        admission = settings.admission
        self.admission_metrics = AdmissionMetrics()
        self.gate = Gate(
            Limits(limits.max_requests, limits.max_queued_rows, limits.max_queued_bytes),
            self.device,
            loop.time,
            default_s=limits.default_deadline_s,
            max_hint_s=admission.max_hint_s,
            max_tickets=admission.max_keys,
            max_callers=admission.max_callers,
            on_hint_error=self.admission_metrics.hint_error,
        )
        self.repository = Repository(
            settings.repository.path,
            keep_versions=settings.repository.keep_versions,
            options=_load_options(settings, providers, self.device.slots),
            serve=self._serve,
            retire=self._retire,
            threads=quota,
            on_routes=self._routes_changed,
        )
        self.experiments = ExperimentWatch(Counters(), self.repository.withdraw, loop)
        self.experiment_exposition = ExperimentExposition(
            self.experiments.counters, self.experiments.withdrawn, settings.feedback.max_series
        )
        self.prediction_ids = prediction_ids(settings)
        self.feedback = self._feedback(settings, loop)
        self._key_problem = ""
        self.metrics = Metrics()
        if settings.grpc.port is not None:
            self.metrics.expected_protocols.append("grpc")
        self.drift = DriftMonitor(_drift_options(settings))
        self.drift_exposition = DriftExposition(self.drift, settings.drift.max_series)
        self.capture = _capture(settings)
        self.tracer = _tracer(settings, loop)
        self.shadows = self._shadows(loop, settings, items_in_slots=providers == CPU)
        self.operation = OperationMetrics(dropped_events=lambda: 0 if log_output is None else log_output.dropped, loads=self._load_phases)
        self.exposition = self._exposition()
        self.access_log = _access_log(settings, log_output)
        self.predictor = Predictor(
            loop,
            self.device,
            self.host,
            Deadlines(limits.default_deadline_s, limits.longest_deadline_s),
            lambda: self.repository.routes,
            items_in_slots=providers == CPU,
            shadow=self.shadows.offer,
        )
        self.front = Front(
            loop,
            predictor=self.predictor,
            gate=self.gate,
            routes=lambda: self.repository.routes,
            metrics=self.metrics,
            access_log=self.access_log,
            host=self.host,
            limits=HttpLimits(
                limits.max_body_bytes,
                limits.max_instances,
                limits.body_timeout_s,
                compress_from_bytes=settings.server.compress_from_bytes or None,
                caller_header=admission.caller_header.lower().encode("latin-1", "replace"),
                priorities=admission.priorities,
                advertise=admission.advertise,
            ),
            repeats=Repeats(
                loop,
                keep_s=admission.replay_s,
                max_keys=admission.max_keys,
                max_bytes=admission.replay_bytes,
                max_abandoned=admission.max_abandoned,
            ),
            capture=None if self.capture is None else self.capture.tap,
            experiments=self.experiments,
            sign=None if self.prediction_ids is None else AnswerSigner(self.prediction_ids),
            tracer=self.tracer,
        )
        others = fallback if self.access_log is None else AccessLogged(fallback, self.access_log, loop.time)
        self.gateway = PredictGateway(others, self.front)
        self.stopping = False
        self.loaded = asyncio.Event()  # set once everything in the repository was tried
        self._look = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.pace = Pace(execution.simulated_batch_s, execution.simulated_row_s)
        if self.pace:
            log.warning("execution_times_simulated", batch_s=self.pace.batch_s, row_s=self.pace.row_s, reason="for load tests only")
        if providers == CPU and execution.device == "auto" and gpu_present():
            log.warning("gpu_unusable", reason="ONNX Runtime cannot run a graph on it; what it misses is on standard error above")
        log.info(
            "service_made",
            run_slots=self.device.slots,
            host_threads=execution.host_threads or quota,
            cpu_quota=quota,
            providers=list(providers),
        )

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the access log and the watch over the repository; returns before anything is loaded."""
        if self.access_log is not None:
            self.access_log.start()
        if self.settings.drift.enabled:
            self.drift.start()
        if self.capture is not None:
            self.capture.start()
        if self.tracer is not None:
            self.tracer.start()
        memory.before_loading()
        self.background(self._watch())
        if self.settings.repository.recheck_s:
            self.background(self._recheck(self.settings.repository.recheck_s))

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the requests until it ends or the service closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def rescan(self) -> None:
        """Look at the repository now, and read the key file again (SIGHUP)."""
        self._look.set()
        self._reload_keys()

    def _reload_keys(self) -> None:
        """Use the keys that lie in the file now; when it is unusable, those in force stay."""
        ids, path = self.prediction_ids, self.settings.feedback.key_file
        if ids is None or path is None:
            return
        try:
            ids.set_keys(read_keys(path))
        except FeedbackKeyError as error:
            self._key_problem = f"{error}; the keys that were read before stay in force"
            log.error("feedback_keys_refused", reason=str(error))
            return
        self._key_problem = ""
        log.info("feedback_keys_read", signs=ids.keys[0].id.hex(), accepted=[key.id.hex() for key in ids.keys])

    async def drain(self) -> None:
        """Go through the order of shutdown up to the point where nothing accepted is unanswered."""
        shutdown = self.settings.shutdown
        log.info("shutdown_started", in_flight=self.gate.load.requests, delay_s=shutdown.delay_s, grace_s=shutdown.grace_s)
        self.stopping = True
        if shutdown.delay_s:
            await asyncio.sleep(shutdown.delay_s)
        self.shadows.stop()
        idle = asyncio.Event()
        self.gate.on_idle = idle.set
        self.gate.draining = True
        busy = self.gate.load.requests > 0
        if busy:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(shutdown.grace_s):
                    await idle.wait()
        left = self.predictor.fail_all(Draining(retry_after_s=1.0))
        if busy or self.gate.refused["draining"]:
            await asyncio.sleep(shutdown.linger_s)
        log.info("shutdown_drained", answered_as_draining=left)

    async def close(self) -> None:
        """End tasks and threads. Call after `drain`."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        loop = asyncio.get_running_loop()
        stop_host = partial(self.host.shutdown, wait=True, cancel_futures=True)
        for closing in (self.repository.close, self.device.close, stop_host, self.drift.stop):
            await loop.run_in_executor(None, closing)
        if self.capture is not None:
            await loop.run_in_executor(None, self.capture.stop)
        if self.tracer is not None:
            await loop.run_in_executor(None, self.tracer.stop)
        if self.access_log is not None:
            await loop.run_in_executor(None, self.access_log.stop)

    async def _watch(self) -> None:
        """Keep the routes in step with the repository until cancelled."""
        while True:
            self._look.clear()
            try:
                await self.repository.sync()
                if not self.loaded.is_set():
                    memory.settle()
                self.loaded.set()
            except Exception:  # a look that fails must not end all later ones
                log.exception("repository_sync_crashed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.repository.poll_s):
                    await self._look.wait()

    async def _recheck(self, period_s: float) -> None:
        """Prove every version that serves again and again until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.repository.recheck()
            except Exception:  # one that fails must not end all later ones
                log.exception("recheck_crashed")

    def _feedback(self, settings: Settings, loop: PreciseLoop) -> Feedback | None:
        if self.prediction_ids is None:
            return None
        remembered = Remembered(settings.feedback.dedupe_s, settings.feedback.dedupe_entries, loop.time)
        return Feedback(self.prediction_ids, self.experiments.counters, remembered)

    # --- versions -----------------------------------------------------------------------------------------------------

    def _routes_changed(self, file: RoutingFile) -> None:
        self.experiments.routes_changed(file)

    def _serve(self, loaded: Loaded) -> Served:
        manifest = loaded.package.manifest
        metrics = VersionMetrics(manifest.name, manifest.version)
        self.metrics.expect(manifest.name, manifest.version)
        if self.feedback is not None:
            self.experiments.counters.expect(manifest.name)
            if label_place(manifest.outputs) is not None:
                self.experiments.counters.expect_version(manifest.name, manifest.version, [LABEL_METRIC])
        policy = BatchPolicy(loaded.max_batch_size, manifest.batching.max_queue_delay_s)
        runner: Runner = loaded.runtime
        cost = loaded.cost
        if self.pace:
            runner, cost = Paced(runner, self.pace), paced_cost(self.pace, loaded.max_batch_size, shaped=runner.shapes is not None)
        lane = Lane(f"{manifest.name}/{manifest.version}", runner, policy, cost, metrics, loaded.canary)
        self.device.add(lane)
        self.gate.look_at_rates()
        served = served_version(loaded.runtime, lane, metrics)
        if self.capture is not None:
            self.capture.expect(manifest)
        if self.tracer is not None:
            lane.traced = self.tracer.executed
        if loaded.baseline is not None and self.settings.drift.enabled:
            lane.tap = self.drift.add(loaded.runtime, loaded.baseline, 8 * served.values_per_row)
        return served

    def _shadows(self, loop: PreciseLoop, settings: Settings, *, items_in_slots: bool) -> Shadows:
        shadow = settings.shadow
        limits = ShadowLimits(shadow.max_batch_s, shadow.max_queued_requests, shadow.max_queued_bytes, shadow.late_s)
        return Shadows(loop, self.device, self.host, limits, items_in_slots=items_in_slots)

    def _retire(self, served: Served) -> None:
        # Works that chose this version keep it alive until they are answered.
        self.device.remove(served.lane)
        self.shadows.retire(served)
        self.drift.remove(served.lane.tap)

    # --- readings -----------------------------------------------------------------------------------------------------

    def warnings(self) -> list[str]:
        """Return what an operator should look at although everything answers."""
        found = self.repository.warnings()
        if self.pace:
            found.append(
                f"execution times are simulated ({self.pace.batch_s:g} s a batch, {self.pace.row_s:g} s a row); for load tests only"
            )
        if self.capture is not None:
            found += self.capture.warnings()
        if self._key_problem:
            found.append(self._key_problem)
        return found

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Return whether the process should get traffic, and the reasons as a document."""
        reasons: list[str] = []
        if self.stopping:
            reasons.append("the server is shutting down")
        if not self.repository.scanned:
            reasons.append("the repository was not read yet, or its versions are still loading")
        reasons += self.repository.not_ready()
        if self.repository.scanned and not self.repository.ready_models():
            reasons.append(f"no model in {self.settings.repository.path} is ready")
        ready = not reasons
        warnings = self.warnings()
        status = "ready" if ready and not warnings else "degraded" if ready else "not ready"
        document = {"ready": ready, "status": status, "reasons": reasons, "degraded": warnings, "models": self.repository.ready_models()}
        if self.repository.routing.models:
            routed = {name: routes for name, routes in self.repository.routes.models.items() if name in self.repository.routing.models}
            document["routing"] = {
                "revision": self.repository.routing.revision,
                "models": {name: routes_document(routes) for name, routes in sorted(routed.items())},
            }
        return ready, document

    def model_docs(self) -> list[ModelDoc]:
        """Return what the API page describes: the versions that answer."""
        docs = []
        for name, routes in sorted(self.repository.routes.models.items()):
            versions = {v: served.runtime.manifest for v, served in routes.ready.items()}
            examples = {s.version: _examples(s.loaded) for s in self.repository.states() if s.model == name and s.loaded is not None}
            docs.append(ModelDoc(name=name, versions=versions, default=routes.default, examples=examples, labels=dict(routes.labels)))
        return docs

    def model_entries(self) -> list[ModelEntry]:
        """Return what the start page lists: every known model and version with its state."""
        entries = []
        for name, routes in sorted(self.repository.routes.models.items()):
            states = [s for s in self.repository.states() if s.model == name]
            described = routes.ready.get(routes.default) if routes.default is not None else None
            versions = [
                VersionEntry(
                    version=s.version,
                    state=s.state,
                    reason=s.reason,
                    default=s.version == routes.default,
                    labels=tuple(label for label, v in routes.labels.items() if v == s.version),
                    digest="" if s.loaded is None else s.loaded.package.digest,
                )
                for s in reversed(states)
            ]
            description = "" if described is None else described.runtime.manifest.description
            entries.append(ModelEntry(name, description, versions, _routing_notes(routes)))
        return entries

    def _exposition(self) -> Exposition:
        process = CollectorRegistry(auto_describe=False)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=process)
        self.metrics.reading = Reading(
            versions=self._version_readings,
            gauges=self._gauges,
            refused=lambda: self.gate.refused,
            dropped_log_lines=lambda: 0 if self.access_log is None else self.access_log.dropped,
            loads=lambda: self.repository.loads,
            more=self._admission,
        )
        others: list[Collector] = [process, ShadowMetrics(self.shadows), RoutingMetrics(self._routing_reading), self.operation]
        others.append(TraceMetrics(self.tracer))
        if self.capture is not None:
            from .capture.exposition import CaptureMetrics

            others.append(CaptureMetrics(self.capture))
        return Exposition(self.metrics, others)

    def _routing_reading(self) -> RoutingReading:
        repository = self.repository
        return RoutingReading(repository.routing.revision, len(repository.routing_problems), repository.routing_reads)

    def _admission(self) -> Iterable[Metric | HistogramFamily]:
        repeats = self.front.repeats
        return self.admission_metrics.families(
            self.gate.tickets.seen, {"joined": repeats.joined, "stored": repeats.stored, "reused": repeats.reused}, repeats.went_on
        )

    def _gauges(self) -> Iterable[tuple[str, str, float]]:
        load, limits = self.gate.load, self.gate.limits
        ready, _ = self.readiness()
        yield "samegraph_ready", "One when the process should get traffic.", float(ready)
        yield "samegraph_degraded", "How many things an operator should look at.", float(len(self.warnings()))
        yield "samegraph_in_flight_requests", "Requests accepted and not answered.", load.requests
        yield "samegraph_in_flight_rows", "Instances accepted and not answered.", load.rows
        yield "samegraph_in_flight_bytes", "Body bytes accepted and not answered.", load.bytes
        yield "samegraph_in_flight_requests_limit", "Bound of samegraph_in_flight_requests.", limits.max_requests
        yield "samegraph_in_flight_rows_limit", "Bound of samegraph_in_flight_rows.", limits.max_rows
        yield "samegraph_in_flight_bytes_limit", "Bound of samegraph_in_flight_bytes.", limits.max_bytes
        yield "samegraph_run_slots", "Executions that may run at the same time.", self.device.slots
        yield "samegraph_run_slots_busy", "Executions that run now on a thread.", self.device.busy_slots
        self.gate.look_at_rates()
        yield "samegraph_tickets_waiting", "Refused callers who hold a ticket.", len(self.gate.tickets)
        yield "samegraph_callers", "Callers that are told apart.", len(self.gate.callers)
        yield "samegraph_stored_answers", "Answers kept for repeated requests.", self.front.repeats.kept
        yield "samegraph_abandoned_running_requests", "Requests that run on although their callers have left.", self.front.repeats.abandoned
        yield "samegraph_stored_answers_bytes", "Bytes of their bodies.", self.front.repeats.bytes
        yield "samegraph_predicted_drain_seconds", "Predicted run time of everything that waits.", self.device.pending_s()

    def _load_phases(self) -> Iterable[LoadPhases]:
        for state in self.repository.states():
            if state.loaded is not None:
                yield state.model, str(state.version), state.loaded.phases

    def _version_readings(self) -> Iterable[VersionReading]:
        for state in self.repository.states():
            loaded, served = state.loaded, state.served
            check = self.repository.checks.get((state.model, state.version))
            yield VersionReading(
                model=state.model,
                version=str(state.version),
                state=state.state,
                digest="" if loaded is None else loaded.package.digest,
                proven=loaded is not None and loaded.package.proven,
                golden_samples=0 if loaded is None else loaded.golden_samples,
                max_ulp=0 if check is None else check.max_ulp,
                checked_at=None if check is None else check.at,
                check_passed=check is not None and check.passed,
                engines={} if loaded is None else engines(loaded),
                queue_rows=0 if served is None else served.lane.queue.rows,
                load_seconds=0.0 if loaded is None else loaded.seconds,
                metrics=None if served is None else served.metrics,
            )


def _routing_notes(routes: ModelRoutes[Served]) -> list[str]:
    """Return what the start page says of a model's experiment and shadows."""
    notes = []
    if routes.experiment is not None:
        plan = routes.experiment.plan
        total = sum(arm.weight for arm in plan.arms)
        arms = ", ".join(f"{arm.name} (version {arm.version}) {100 * arm.weight / total:.3g} %" for arm in plan.arms)
        enrolled = "" if plan.enrolment_share >= 1 else f" of the {100 * plan.enrolment_share:.3g} % enrolled"
        notes.append(f"Experiment {plan.experiment}@{plan.revision}, unit from {unit_words(plan)}: {arms}{enrolled}")
        notes += routes.experiment.first_unready()
    notes += [
        f"Shadow: version {shadow.version} sees {100 * shadow.share:.3g} % of the requests and never answers" for shadow in routes.shadows
    ]
    return notes


def engines(loaded: Loaded) -> dict[str, int]:
    """Return how many item-stage steps each engine runs (`host`, `kernel`, `onnx`)."""
    counts: dict[str, int] = {}
    if loaded.runtime.item_plan is not None:
        for step in loaded.runtime.item_plan.steps:
            counts[step.engine] = counts.get(step.engine, 0) + 1
    return counts


def gpu_options(settings: Settings, slots: int) -> GpuOptions:
    """Return how graphs run on a GPU with as many executions at the same time as the device has slots."""
    gpu = settings.gpu
    return GpuOptions(
        memory_limit_bytes=gpu.memory_limit_bytes,
        buckets=gpu.buckets,
        max_batch_size=settings.execution.max_batch_size,
        instances=slots,
        tf32=gpu.tf32,
        tensorrt=gpu.tensorrt,
        engine_cache=gpu.tensorrt_cache,
        half=gpu.half,
        arena_shrink=gpu.arena_shrink,
        small_on_cpu=gpu.small_on_cpu,
    )


def _load_options(settings: Settings, providers: Sequence[str], run_slots: int) -> LoadOptions:
    execution, limits = settings.execution, settings.limits
    return LoadOptions(
        providers=providers,
        intra_op_threads=execution.intra_op_threads,
        kernels=execution.kernels,
        max_batch_size=execution.max_batch_size,
        memory_budget_bytes=settings.repository.memory_budget_bytes or int(memory_limit() * 0.8),
        max_image_bytes=limits.max_image_bytes,
        max_pixels=limits.max_image_pixels,
        gpu=None if tuple(providers) == CPU else gpu_options(settings, run_slots),
    )


def prediction_ids(settings: Settings) -> PredictionIds | None:
    """Return what signs prediction ids, or None when no key file is configured.

    Raises:
        FeedbackKeyError: The file cannot be used.
    """
    path = settings.feedback.key_file
    return None if path is None else PredictionIds(read_keys(path), max_age_s=settings.feedback.max_age_s)


def _drift_options(settings: Settings) -> DriftOptions:
    drift = settings.drift
    return DriftOptions(
        rule=AlarmRule(drift.least_psi, drift.alpha, drift.min_rows),
        windows=parse_windows(drift.windows),
        cpu_ratio=drift.cpu_ratio,
        queue=QueueLimits(drift.max_queued_rows, drift.max_queued_bytes),
    )


def capture_options(settings: Settings) -> CaptureOptions | None:
    """Return how requests are captured, or None when they are not.

    Raises:
        EnvironmentUnfit: They are to be, and a library or the key is not there.
    """
    capture = settings.capture
    if not capture.enabled:
        return None
    check_libraries(capture.url)
    hashed = parse_field_names(capture.hashed)
    return CaptureOptions(
        url=capture.url,
        sample_ratio=capture.sample_ratio,
        model_ratios=parse_ratios(capture.model_ratios),
        exclude=parse_field_names(capture.exclude),
        hashed=hashed,
        key=read_key(capture.hash_key_file, hashed),
        rotate_rows=capture.rotate_rows,
        rotate_bytes=capture.rotate_bytes,
        rotate_s=capture.rotate_s,
        max_bytes=capture.max_bytes,
        max_age_s=capture.max_age_s,
        max_image_bytes=capture.max_image_bytes,
        max_queued_rows=capture.max_queued_rows,
        max_queued_bytes=capture.max_queued_bytes,
        cpu_ratio=capture.cpu_ratio,
        flush_s=capture.flush_s,
    )


def _capture(settings: Settings) -> CaptureSink | None:
    options = capture_options(settings)
    if options is None:
        return None
    from .capture.sink import CaptureSink  # not above: a server that captures nothing needs no pyarrow

    return CaptureSink(options)


def _tracer(settings: Settings, loop: Loop) -> Tracer | None:
    tracing = settings.tracing
    if tracing.endpoint is None:
        return None
    exporter = otlp_exporter(tracing.endpoint, service_name=tracing.service_name, headers=_headers(tracing.headers))
    return Tracer(exporter, loop.time, sample_ratio=tracing.sample_ratio, max_queued=tracing.max_queued)


def _headers(text: SecretStr | None) -> dict[str, str]:
    """Return the headers that `NAME=VALUE,NAME=VALUE` names."""
    pairs = [pair.partition("=") for pair in (text.get_secret_value() if text is not None else "").split(",") if pair.strip()]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _access_log(settings: Settings, output: LogOutput | None) -> AccessLog | None:
    if output is None or not settings.log.access:
        return None
    log = settings.log
    return AccessLog(output, capacity=log.access_queue, sample_ratio=log.access_sample_ratio, per_s=log.access_per_s)


def _examples(loaded: Loaded) -> list[ExampleRequest]:
    """Return the first golden samples as examples, each with the answer training gave."""
    outputs = loaded.package.manifest.outputs
    return [
        ExampleRequest(
            name=sample.name,
            content_type=sample.headers.get("content-type", "application/json"),
            body=sample.body,
            answer={"predictions": predictions(outputs, [np.asarray(sample.outputs[o.name]) for o in outputs])},
        )
        for sample in loaded.examples
        if all(o.name in sample.outputs for o in outputs)
    ]


def dumps(document: Any) -> bytes:
    """Write a small document for people: indented, UTF-8."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
