"""Feedback: from a prediction id and what came of the prediction to a count, or to the reason why not.

One item is taken or refused by itself. What was counted is remembered for a while by this replica, so that a repeat is not counted again;
beyond that window, and on another replica, it would be: feedback is counted at least once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .counters import LABEL_METRIC, Counters, Metric, RevisionCounts
from .prediction_id import LABELLED_INSTANCES, Prediction, PredictionIds, RefusedId

#: Longest `feedback_id`.
MAX_FEEDBACK_ID = 128
#: Largest whole number that is taken for a label.
MAX_INTEGER = 2**64
#: Longest text that is taken for a label.
MAX_LABEL = 1024
_MEMBERS = ("prediction_id", "values", "label", "feedback_id")


class Refused(Exception):
    """Raised when an item is not counted.

    Attributes:
        reason: Why, as a word of `counters.REJECTIONS`.
        metric: The metric at fault, or None.
    """

    def __init__(self, reason: str, message: str, metric: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.metric = metric


class Remembered:
    """What was counted lately: bounded in time and in number.

    Args:
        window_s: How long, in seconds.
        entries: How many at most; the oldest are forgotten first.
        clock: Seconds, monotonic.
    """

    def __init__(self, window_s: float, entries: int, clock: Callable[[], float]) -> None:
        self._window_s = window_s
        self._entries = entries
        self._clock = clock
        self._at: OrderedDict[tuple[int, int, str], float] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._at)

    def __contains__(self, key: tuple[int, int, str]) -> bool:
        """Whether this was counted within the window."""
        at = self._at.get(key)
        return at is not None and self._clock() - at < self._window_s

    def add(self, key: tuple[int, int, str]) -> int:
        """Remember that this was counted now; return how many were forgotten for it before their time."""
        now, known = self._clock(), self._at
        known[key] = now
        known.move_to_end(key)
        while known and now - next(iter(known.values())) >= self._window_s:
            known.popitem(last=False)
        forgotten = max(0, len(known) - self._entries)
        for _ in range(forgotten):
            known.popitem(last=False)
        return forgotten


@dataclass(frozen=True, slots=True)
class _Item:
    """One item, its shape checked."""

    prediction_id: str
    values: Mapping[str, Any]
    label: Any
    feedback_id: str | None


class Feedback:
    """Takes feedback. For the event loop's thread.

    Args:
        ids: Reads prediction ids.
        counters: What is counted.
        remembered: What was counted lately.
    """

    def __init__(self, ids: PredictionIds, counters: Counters, remembered: Remembered) -> None:
        self.ids = ids
        self.remembered = remembered
        self._counters = counters

    def take(self, model: str, given: object) -> dict[str, Any]:
        """Count one item, or say why not.

        Args:
            model: A model of the repository.
            given: The item as it came: any JSON value.

        Returns:
            Its result: `status` accepted with the metrics `counted` (and those `repeated`, which were counted before), or rejected with
            `reason`, `metric` and a sentence in `error`; `feedback_id` is passed through.
        """
        passed = given.get("feedback_id") if isinstance(given, dict) else None
        result: dict[str, Any] = {"feedback_id": passed} if isinstance(passed, str) and len(passed) <= MAX_FEEDBACK_ID else {}
        try:
            counted, repeated = self._take(model, _checked(given))
        except Refused as refused:
            self._counters.reject(model, refused.reason)
            result |= {"status": "rejected", "reason": refused.reason, "error": str(refused)}
            return result if refused.metric is None else {**result, "metric": refused.metric}
        result |= {"status": "accepted", "counted": counted}
        return {**result, "repeated": repeated} if repeated else result

    def unreadable(self, model: str, message: str) -> dict[str, Any]:
        """Return the result of an item that is not even JSON."""
        self._counters.reject(model, "malformed")
        return {"status": "rejected", "reason": "malformed", "error": message}

    def _take(self, model: str, item: _Item) -> tuple[list[str], list[str]]:
        try:
            prediction = self.ids.read(item.prediction_id, model)
        except RefusedId as refused:
            raise Refused(refused.reason, str(refused)) from None
        metrics, revision = self._known(model, prediction)
        found = {name: _above(metrics, name, value) for name, value in item.values.items()}
        if item.label is not None:
            right = float(_answered(prediction, item.label))
            found[LABEL_METRIC] = right
            if revision is not None:
                found |= {name: right for name, metric in metrics.items() if metric.kind == "label"}
        whole = -1 if prediction.instance is None else prediction.instance
        new = {name: above for name, above in found.items() if (prediction.nonce, whole, name) not in self.remembered}
        repeated = [name for name in found if name not in new]
        if not new:
            raise Refused("duplicate", "this was counted before; there is nothing left to do")
        if repeated:
            self._counters.reject(model, "duplicate")
        for name, above in new.items():
            self._counters.forgotten += self.remembered.add((prediction.nonce, whole, name))
            self._count(model, prediction, revision, metrics, name, above)
        return list(new), repeated

    def _known(self, model: str, prediction: Prediction) -> tuple[Mapping[str, Metric], RevisionCounts | None]:
        """Return the metrics that may be reported, and where the prediction's arm is counted; None outside of experiments."""
        if not prediction.experiment:
            in_force = self._counters.in_force(model)
            return ({} if in_force is None else in_force.metrics), None
        known = self._counters.experiment(model, prediction.experiment)
        if known is None:
            raise Refused(
                "unknown_experiment",
                f"model {model!r} has no experiment {prediction.experiment!r} any more, or this replica does not know it yet",
            )
        revision = known.told_by(prediction.revision, prediction.minute)
        if revision is None:
            raise Refused(
                "unknown_revision", f"revision {prediction.revision} is older than the last two of experiment {prediction.experiment!r}"
            )
        return known.experiment.metrics, revision

    def _count(
        self, model: str, prediction: Prediction, revision: RevisionCounts | None, metrics: Mapping[str, Metric], name: str, above: float
    ) -> None:
        if revision is not None and name in metrics:
            self._counters.value(revision, prediction.arm, name, prediction.bucket, above)
        if name == LABEL_METRIC or metrics[name].kind != "label":  # labels are counted once per version, whatever experiments call them
            self._counters.version_value(model, prediction.version, name, above)


def _checked(given: object) -> _Item:
    """Return an item whose members are of the right shape.

    Raises:
        Refused: `malformed` or `no_values`.
    """
    if not isinstance(given, dict):
        raise Refused("malformed", "an item is an object with `prediction_id` and `values` or `label`")
    unknown = next((name for name in given if name not in _MEMBERS), None)
    if unknown is not None:
        raise Refused("malformed", f"{unknown[:64]!r} is not a member of an item; it has {', '.join(_MEMBERS)}")
    prediction_id, values, label, feedback_id = (given.get(name) for name in _MEMBERS)
    if not isinstance(prediction_id, str):
        raise Refused("malformed", "`prediction_id` is missing or no text; it is in every answer's header samegraph-prediction-id")
    if values is not None and not isinstance(values, dict):
        raise Refused("malformed", "`values` must be an object: metric name → value")
    if feedback_id is not None and not (isinstance(feedback_id, str) and len(feedback_id) <= MAX_FEEDBACK_ID):
        raise Refused("malformed", f"`feedback_id` must be a text of at most {MAX_FEEDBACK_ID} characters")
    if label is not None and (not isinstance(label, str | int | float) or (isinstance(label, str) and len(label) > MAX_LABEL)):
        raise Refused("wrong_type", "`label` must be a text, a number or a boolean: the true label as the model would have answered it")
    if isinstance(label, int) and abs(label) > MAX_INTEGER:
        raise Refused("wrong_type", "`label` is a whole number beyond 64 bits, which no model answers")
    if not values and label is None:
        raise Refused("no_values", "the item reports nothing; send `values`, `label` or both")
    return _Item(prediction_id, values or {}, label, feedback_id)


def _above(metrics: Mapping[str, Metric], name: str, value: object) -> float:
    """Return how far a value lies above the least its metric can have.

    Raises:
        Refused: `unknown_metric`, `wrong_type` or `out_of_range`.
    """
    metric = metrics.get(name)
    if metric is None:
        have = f"it has {', '.join(metrics)}" if metrics else "it has none: metrics are defined with an experiment in routing.yaml"
        raise Refused("unknown_metric", f"{name[:64]!r} is not a metric of this model; {have}", name[:64])
    if metric.kind == "label":
        raise Refused("wrong_type", f"{name!r} compares labels: send the true one as `label`, beside `values`", name)
    if metric.kind == "binary" and isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("wrong_type", f"{name!r} is a {metric.kind}; got {_kind(value)}", name)
    if not metric.low <= value <= metric.high or (metric.kind != "number" and value != int(value)):
        bounds = {"binary": "0 or 1", "count": f"a whole number from 0 to {metric.high:g}"}
        must = bounds.get(metric.kind, f"from {metric.low:g} to {metric.high:g}")
        raise Refused("out_of_range", f"{name!r} must be {must}; got {_shown(value)}", name)
    return float(value) - metric.low


def _answered(prediction: Prediction, label: object) -> bool:
    """Return whether the true label is the one that was answered.

    Raises:
        Refused: `label_unchecked`.
    """
    right = prediction.answered(label)
    if right is not None:
        return right
    if prediction.instance is None:
        last = prediction.instances - 1
        text = f"the request had {prediction.instances} instances; say whose label this is: the prediction id, a dot, and 0 to {last}"
    elif prediction.instances > LABELLED_INSTANCES:
        text = f"labels are compared for requests of at most {LABELLED_INSTANCES} instances, this one had {prediction.instances}"
    else:
        text = "the model gave no label for this instance that could be compared; report a metric of your own"
    raise Refused("label_unchecked", text)


def _kind(value: object) -> str:
    return {bool: "a boolean", str: "a text", dict: "an object", list: "a list", type(None): "null"}.get(type(value), "something else")


def _shown(value: float) -> str:
    return f"{value:.15g}" if abs(value) < 1e300 else "a number too large"
