"""Feedback over HTTP: one item or many, each taken or refused by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from samegraph_transforms.errors import InputError
from samegraph_transforms.wire import is_json

from samegraph_service.errors import BodyTooLarge, MethodNotAllowed, NoFeedbackKey, UnknownModel
from samegraph_service.experiments.feedback import MAX_FEEDBACK_ID, Feedback
from samegraph_service.service import Service

#: Largest body of a feedback request, in bytes.
MAX_BODY_BYTES = 1 << 20
#: Items between two turns of the event loop: about a quarter of a millisecond.
TURN = 20


class FeedbackItem(BaseModel):
    """What came of one prediction."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: str = Field(description="From the answer (header samegraph-prediction-id); for one of several instances `id.index`.")
    values: dict[str, bool | float] | None = Field(default=None, description="Metric → value; metrics are defined in routing.yaml.")
    label: str | float | bool | None = Field(default=None, description="The true label; it is compared with the one that was answered.")
    feedback_id: str | None = Field(default=None, max_length=MAX_FEEDBACK_ID, description="Yours; it comes back in the result.")


class FeedbackItems(BaseModel):
    """What came of several predictions."""

    model_config = ConfigDict(extra="forbid")

    feedback: list[FeedbackItem] = Field(description="The items.")


class FeedbackResult(BaseModel):
    """What became of one item."""

    status: str = Field(description="`accepted` or `rejected`.")
    counted: list[str] | None = Field(default=None, description="Accepted: the metrics that were counted.")
    repeated: list[str] | None = Field(default=None, description="Accepted: the metrics that had been counted before.")
    reason: str | None = Field(default=None, description="Rejected: a word of docs/feedback.md.")
    error: str | None = Field(default=None, description="Rejected: a sentence.")
    metric: str | None = Field(default=None, description="Rejected: the metric at fault.")
    feedback_id: str | None = Field(default=None, description="Yours.")


class FeedbackResults(BaseModel):
    """What became of each item, in order."""

    accepted: int = Field(description="Items that were counted.")
    rejected: int = Field(description="Items that were not.")
    results: list[FeedbackResult] = Field(description="One for each item.")


_EXAMPLE = {"prediction_id": "Ae9R1wIvUw…", "values": {"clicked": 1}, "label": "late"}
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"anyOf": [FeedbackItem.model_json_schema(), FeedbackItems.model_json_schema(ref_template="#/$defs/{model}")]},
            "examples": {"one": {"value": _EXAMPLE}, "many": {"value": {"feedback": [_EXAMPLE]}}},
        }
    },
}
# OpenAPI knows no definitions inside a schema: the one there is stands in its place.
_many = _BODY["content"]["application/json"]["schema"]["anyOf"][1]
_many["properties"]["feedback"]["items"] = _many.pop("$defs")["FeedbackItem"]


def feedback_router(service: Callable[[], Service]) -> APIRouter:
    """Return the routes; `service` gives the running service."""
    router = APIRouter()
    errors: dict[int | str, dict[str, Any]] = {
        status: {"$ref": f"#/components/responses/Error{status}"} for status in (400, 404, 409, 413, 415)
    }

    @router.post(
        "/v1/models/{model}:feedback",
        tags=["feedback"],
        summary="What came of predictions",
        response_model=FeedbackResults,
        response_model_exclude_none=True,
        responses=errors,
        openapi_extra={"requestBody": _BODY},
    )
    async def feedback(model: str, request: Request) -> JSONResponse:
        return JSONResponse(await _take(service(), model, request))

    @router.api_route("/v1/models/{model}:feedback", methods=["GET", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def other_methods(request: Request) -> Response:
        raise MethodNotAllowed(f"feedback is sent with POST, not {request.method}", allowed=("POST",))

    return router


async def _take(service: Service, model: str, request: Request) -> dict[str, Any]:
    models, taking = service.repository.routes.models, service.feedback
    if model not in models:
        raise UnknownModel(model, sorted(models))
    if taking is None:
        raise NoFeedbackKey
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if not is_json(content_type):
        raise InputError(f"feedback is JSON; got {content_type[:80]!r}", code="unsupported_media_type")
    results: list[dict[str, Any]] = []
    for i, item in enumerate(_items(await _body(request), service.settings.feedback.max_items)):
        if i % TURN == TURN - 1:
            await asyncio.sleep(0)  # predictions go on between items
        results.append(_one(taking, model, item))
    accepted = sum(result["status"] == "accepted" for result in results)
    return {"accepted": accepted, "rejected": len(results) - accepted, "results": results}


async def _body(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes; send fewer items at a time")
        chunks.append(chunk)
    return b"".join(chunks)


def _items(body: bytes, most: int) -> Sequence[bytes | msgspec.Raw]:
    """Return the items of a body, each not yet read: what is wrong with one costs the others nothing.

    Raises:
        InputError: The body as a whole is no feedback.
    """
    try:
        document = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise InputError("the body must be a JSON object: one item, or `feedback` with a list of them", code="bad_body") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the body is not valid JSON: {error}", code="malformed_json") from error
    if "feedback" not in document:
        return [body]
    if len(document) > 1:
        raise InputError("beside `feedback` the body has no other members", code="bad_body")
    try:
        items: list[msgspec.Raw] = msgspec.json.decode(document["feedback"], type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError("`feedback` must be a list of items", code="bad_body", field="feedback") from error
    if not items:
        raise InputError("`feedback` holds no items", code="no_instances", field="feedback")
    if len(items) > most:
        raise InputError(
            f"the request holds {len(items)} items; the limit is {most}: send several requests", code="too_many_instances", field="feedback"
        )
    return items


def _one(taking: Feedback, model: str, item: bytes | msgspec.Raw) -> dict[str, Any]:
    try:
        given = msgspec.json.decode(item)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        return taking.unreadable(model, f"the item is not valid JSON: {str(error)[:200]}")
    return taking.take(model, given)
