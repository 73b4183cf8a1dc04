"""What routes say to people and programs: how a model's calls are divided, and why a unit gets its arm."""

from __future__ import annotations

from typing import Any, TypeVar

from samegraph_service.errors import NotReady
from samegraph_service.routing import Experiment, ModelRoutes

from .assignment import MAX_UNIT_BYTES, Plan, bucket_of

T = TypeVar("T")


def routes_document(routes: ModelRoutes[T]) -> dict[str, Any]:
    """Return how calls to a model are divided: default, labels, experiment, shadows."""
    experiment = routes.experiment
    return {
        "default": {"policy": "latest" if routes.named_default is None else str(routes.named_default), "version": routes.default},
        "labels": dict(routes.labels),
        "experiment": None if experiment is None else _experiment(experiment),
        "shadows": [{"version": shadow.version, "share": shadow.share} for shadow in routes.shadows],
    }


def _experiment(experiment: Experiment[T]) -> dict[str, Any]:
    plan = experiment.plan
    total = sum(arm.weight for arm in plan.arms)
    arms = {}
    for arm in plan.arms:
        answer = experiment.answer_for(arm.name)
        arms[arm.name] = {
            "version": arm.version,
            "weight": arm.weight,
            "share": arm.weight / total * plan.enrolment_share,
            "answered_by": None if answer is None else answer[1],
        }
    return {
        "name": plan.experiment,
        "revision": plan.revision,
        "unit": unit_words(plan),
        "enrolment_share": plan.enrolment_share,
        "arms": arms,
        "fallback": plan.fallback,
    }


def unit_words(plan: Plan) -> str:
    """Return where an experiment's unit ids come from, in words."""
    if plan.unit.header:
        return f"header {plan.unit.header}"
    return f"field {plan.unit.field}" if plan.unit.field else "none: assigned at random, nothing counts"


def explanation(routes: ModelRoutes[T], unit: str) -> dict[str, Any]:
    """Return which arm and version a unit gets and why: its enrolment draw, every arm's score, its bucket.

    Returns:
        `experiment` is None where none decides; then `version` is the model's default. The least score, -ln(u) / weight, wins.
    """
    experiment = routes.experiment
    document: dict[str, Any] = {"unit": unit, "experiment": None, "arm": None, "version": routes.default}
    if experiment is None:
        return document | {"why": "the model has no experiment; its default version answers"}
    plan, data = experiment.plan, unit.encode("utf-8", "surrogatepass")
    document |= {"experiment": f"{plan.experiment}@{plan.revision}", "unit_from": unit_words(plan)}
    if not data or len(data) > MAX_UNIT_BYTES:
        return document | {"version": None, "why": f"a unit id has 1 to {MAX_UNIT_BYTES} bytes; such a request is assigned at random"}
    draw = plan.enrolment(data)
    scores = plan.scores(data)
    document |= {
        "bucket": bucket_of(data),
        "enrolment": {"draw": draw, "share": plan.enrolment_share, "enrolled": plan.enrolled(data)},
        "scores": scores,
    }
    try:
        _, assignment = experiment.by_unit(data)
    except NotReady as error:
        return document | {"version": None, "why": str(error)}
    document |= {"arm": assignment.arm or None, "served_arm": assignment.served_arm, "version": assignment.served_version}
    return document | {"why": _why(plan, document)}


def _why(plan: Plan, document: dict[str, Any]) -> str:
    if not document["enrolment"]["enrolled"]:
        return (
            f"its enrolment draw {document['enrolment']['draw']:.6f} is not below the share {plan.enrolment_share:g}, "
            f"so it takes no part and gets version {document['version']}"
        )
    arm, scores = document["arm"], document["scores"]
    others = ", ".join(f"{name} {score:.6f}" for name, score in sorted(scores.items(), key=lambda pair: pair[1]) if name != arm)
    words = f"{arm} has the least score, {scores[arm]:.6f}" + (f" (then {others})" if others else ", and no other arm has a weight")
    if document["served_arm"] != arm:
        words += f"; its version is not ready or withdrawn, so {document['served_arm']} answers for it"
    return words
