"""Both faces against a real HTTP server on a loopback port; time is fake, so nothing waits."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import tenacity
from fake_time import FakeTime
from samegraph_client import (
    AnswerNotUnderstood,
    AsyncClient,
    AttemptTimedOut,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    FeedbackRejected,
    Gate,
    InputRejected,
    NotAuthorized,
    NotFound,
    Prediction,
    RawInputInvalid,
    Refused,
    RetryPolicy,
    ServerDeadlinePassed,
    ServerError,
    ServerFault,
)
from scripted_server import Reply, predicted, refused, scripted_server

ROW = {"x": 1.5}
#: Calls `predict` on one of the faces: (url, time, policy, arguments of predict).
Face = Callable[..., Prediction]


def blocking(
    url: str, time: FakeTime, policy: RetryPolicy | None = None, raw: object = ROW, model: str = "m", **options: object
) -> Prediction:
    """Predict through `Client`."""
    with Client(url, policy=policy, clock=time, sleep=time.sleep) as client:
        return client.predict(model, raw, **options)  # type: ignore[arg-type]


def awaiting(
    url: str, time: FakeTime, policy: RetryPolicy | None = None, raw: object = ROW, model: str = "m", **options: object
) -> Prediction:
    """Predict through `AsyncClient`."""

    async def call() -> Prediction:
        async with AsyncClient(url, policy=policy, clock=time, sleep=time.asleep) as client:
            return await client.predict(model, raw, **options)  # type: ignore[arg-type]

    return asyncio.run(call())


@pytest.fixture(params=[blocking, awaiting], ids=["sync", "async"])
def predict(request: pytest.FixtureRequest) -> Face:
    """Each test runs on both faces."""
    face: Face = request.param
    return face


@pytest.fixture
def time() -> FakeTime:
    """A clock that moves only by sleeping."""
    return FakeTime()


def test_row_is_predicted(predict: Face, time: FakeTime) -> None:
    """A row goes out as one V1 instance, and its prediction comes back with who answered."""
    answer = predicted({"label": "yes"}, samegraph_model="m", samegraph_model_version="3", samegraph_arm="b", samegraph_prediction_id="p1")
    with scripted_server(answer) as server:
        result = predict(server.url, time)
    assert result.value == {"label": "yes"}
    assert (result.model, result.version, result.arm, result.prediction_id) == ("m", "3", "b", "p1")
    assert (result.attempts, result.refusals, result.waited_s) == (1, 0, 0.0)
    assert server.received[0].path == "/v1/models/m:predict"
    assert server.received[0].json == {"instances": [ROW]}


def test_rows_come_back_in_order(predict: Face, time: FakeTime) -> None:
    """A list in is a list out."""
    with scripted_server(predicted(1, 2, 3)) as server:
        assert predict(server.url, time, raw=[ROW, ROW, ROW]).value == [1, 2, 3]


def test_bytes_are_the_body(predict: Face, time: FakeTime, tmp_path: Path) -> None:
    """An image goes out as it is, with its media type."""
    image = tmp_path / "cat"
    image.write_bytes(b"\xff\xd8\xffcat")
    with scripted_server(predicted("cat")) as server:
        assert predict(server.url, time, raw=image).value == "cat"
    assert server.received[0].body == b"\xff\xd8\xffcat"
    assert server.received[0].headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"version": 2}, "/v1/models/m/versions/2:predict"),
        ({"label": "stable"}, "/v1/models/m/labels/stable:predict"),
        ({"model": "a b/c"}, "/v1/models/a%20b%2Fc:predict"),
        ({"on_error": "partial"}, "/v1/models/m:predict?on_error=partial"),
    ],
)
def test_path_says_model_and_version(predict: Face, time: FakeTime, options: dict[str, object], path: str) -> None:
    """Versions and labels are pinned in the path; names cannot leave their segment."""
    with scripted_server(predicted(1)) as server:
        predict(server.url, time, **options)
    assert server.received[0].path == path


def test_version_and_label_together_are_refused(predict: Face, time: FakeTime) -> None:
    """V1 knows one or the other; nothing is sent."""
    with scripted_server(predicted(1)) as server, pytest.raises(RawInputInvalid, match="not both"):
        predict(server.url, time, version=1, label="stable")
    assert server.received == []


def test_hint_is_obeyed_and_costs_no_attempt(predict: Face, time: FakeTime) -> None:
    """Nine hinted refusals pass under a policy of two attempts, each waited out in full, under one key."""
    hints = [0.5 * n for n in range(1, 10)]
    script = [refused(429 if n % 2 else 503, headers={"retry-after-ms": str(int(hint * 1000))}) for n, hint in enumerate(hints)]
    with scripted_server(*script, predicted("at last")) as server:
        result = predict(server.url, time, RetryPolicy(stop=tenacity.stop_after_attempt(2)))
    assert result.value == "at last"
    assert (result.attempts, result.refusals) == (10, 9)
    assert all(hint <= slept <= 1.25 * hint for hint, slept in zip(hints, time.slept, strict=True))
    assert result.waited_s == pytest.approx(sum(time.slept))
    keys = {request.headers["idempotency-key"] for request in server.received}
    assert len(keys) == 1
    assert re.fullmatch(r'"[0-9a-f]{32}"', keys.pop())
    assert [request.headers["x-attempt"] for request in server.received] == [str(n) for n in range(10)]
    assert {request.body for request in server.received} == {server.received[0].body}


def test_keys_differ_between_calls(predict: Face, time: FakeTime) -> None:
    """Two calls are two pieces of work."""
    with scripted_server(predicted(1)) as server:
        predict(server.url, time)
        predict(server.url, time)
    assert len({request.headers["idempotency-key"] for request in server.received}) == 2


def test_lost_connection_is_sent_again(predict: Face, time: FakeTime) -> None:
    """A server that hangs up without an answer gets the same request again."""
    with scripted_server(Reply(drop=True), Reply(drop=True), predicted(7)) as server:
        result = predict(server.url, time)
    assert (result.value, result.attempts, len(time.slept)) == (7, 3, 2)


def test_attempts_end(predict: Face, time: FakeTime) -> None:
    """A server that keeps failing without a hint is given up after five attempts."""
    with scripted_server(Reply(drop=True)) as server, pytest.raises(ConnectionFailed) as caught:
        predict(server.url, time)
    assert (len(server.received), caught.value.attempts) == (5, 5)


def test_nobody_listening_is_a_connection_failure(predict: Face, time: FakeTime) -> None:
    """A port without a server is named in the error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ConnectionFailed, match=url):
        predict(url, time, RetryPolicy(stop=tenacity.stop_after_attempt(2)))
    assert len(time.slept) == 1


def test_address_that_is_none_is_named(predict: Face, time: FakeTime) -> None:
    """A base URL without a scheme is a connection failure that shows it."""
    with pytest.raises(ConnectionFailed, match="localhost-without-scheme"):
        predict("localhost-without-scheme", time, RetryPolicy(stop=tenacity.stop_after_attempt(1)))


def test_hint_beyond_the_deadline_fails_at_once(predict: Face, time: FakeTime) -> None:
    """A wait that cannot fit is not slept through; the refusal is kept."""
    with scripted_server(refused(headers={"retry-after": "90"})) as server, pytest.raises(DeadlineExceeded, match="overloaded") as caught:
        predict(server.url, time)
    assert time.slept == []
    assert isinstance(caught.value.last, Refused)
    assert caught.value.wait_s is not None
    assert caught.value.wait_s >= 90
    assert caught.value.attempts == 1


def test_deadline_includes_the_waits_and_is_told_to_the_server(predict: Face, time: FakeTime) -> None:
    """Each attempt announces what is left, and the call ends before the deadline does."""
    with scripted_server(refused(headers={"retry-after": "4"})) as server, pytest.raises(DeadlineExceeded):
        predict(server.url, time, deadline_s=10.0)
    told = [float(request.headers["x-request-timeout-seconds"]) for request in server.received]
    assert told[0] == 10.0
    assert told == sorted(told, reverse=True)
    assert len(told) == len(time.slept) + 1
    assert time.now - 1000.0 < 10.0


def test_deadline_that_passed_during_an_attempt_ends_the_call(predict: Face, time: FakeTime) -> None:
    """Time spent in the server counts as well."""

    def takes_long() -> None:
        time.now += 11.0

    slow = Reply(status=503, document={"error": "worker lost"}, before=takes_long)
    with scripted_server(slow) as server, pytest.raises(DeadlineExceeded, match="worker lost"):
        predict(server.url, time, deadline_s=10.0)
    assert len(server.received) == 1


def test_no_deadline_is_no_limit(predict: Face, time: FakeTime) -> None:
    """Without a deadline a day of hints is waited out, and the server is told of no limit."""
    day = [refused(headers={"retry-after": "3600"})] * 24
    with scripted_server(*day, predicted(1)) as server:
        assert predict(server.url, time, RetryPolicy(deadline_s=None)).refusals == 24
    assert "x-request-timeout-seconds" not in server.received[0].headers


def test_silent_server_times_out(predict: Face, time: FakeTime) -> None:
    """An attempt has its own limit; a server that accepts and says nothing is left."""
    gate = threading.Event()
    policy = RetryPolicy(stop=tenacity.stop_after_attempt(1), attempt_timeout_s=0.05)
    with scripted_server(Reply(drop=True, before=lambda: gate.wait(30))) as server:
        with pytest.raises(AttemptTimedOut):
            predict(server.url, time, policy)
        gate.set()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InputRejected),
        (401, NotAuthorized),
        (403, NotAuthorized),
        (404, NotFound),
        (413, InputRejected),
        (415, InputRejected),
        (418, ServerFault),
        (429, Refused),
        (500, ServerFault),
        (503, Refused),
        (504, ServerDeadlinePassed),
    ],
)
def test_error_document_is_carried(predict: Face, time: FakeTime, status: int, kind: type[ServerError]) -> None:
    """Each status has its class, and the class carries everything the server said."""
    reply = refused(status, "field x is missing", code="missing_field", retryable=False, field="x", instance=2, request_id="r-1")
    with scripted_server(reply) as server, pytest.raises(ServerError) as caught:
        predict(server.url, time)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.error, error.code, error.retryable) == (status, "field x is missing", "missing_field", False)
    assert (error.field, error.instance, error.request_id, error.attempts) == ("x", 2, "r-1", 1)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        pytest.param(Reply(status=500, body=b"<html>Bad</html>"), "<html>Bad</html>", id="page of a proxy"),
        pytest.param(Reply(status=500, body=b""), "status 500 without a body", id="empty"),
        pytest.param(Reply(status=500, body=b"[1]"), r"\[1\]", id="JSON, not a document"),
        pytest.param(Reply(status=500, document={"detail": "framework says"}), "framework says", id="another framework's"),
        pytest.param(Reply(status=500, body=b"\xff\xfe"), "status 500", id="not text"),
    ],
)
def test_foreign_errors_are_readable(predict: Face, time: FakeTime, reply: Reply, words: str) -> None:
    """What is no error document becomes one."""
    with scripted_server(reply) as server, pytest.raises(ServerFault, match=words):
        predict(server.url, time)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        pytest.param(Reply(body=b"ok"), "is not JSON", id="text"),
        pytest.param(Reply(document={"outputs": []}), "has no list called `predictions`; it has \\['outputs'\\]", id="other shape"),
        pytest.param(Reply(document=[1]), "it has list", id="list"),
        pytest.param(Reply(document={"predictions": [None], "errors": [{}]}), "does not name its instance", id="errors"),
    ],
)
def test_good_status_with_another_shape_is_an_error(predict: Face, time: FakeTime, reply: Reply, words: str) -> None:
    """A 200 that is not V1 is never mistaken for a prediction."""
    with scripted_server(reply) as server, pytest.raises(AnswerNotUnderstood, match=words):
        predict(server.url, time)


def test_partial_answer_names_the_failed_instances(predict: Face, time: FakeTime) -> None:
    """A failed instance leaves None in its place and an entry that says why."""
    errors = [{"instance": 1, "code": "undecodable", "field": "image", "error": "not an image", "retryable": False}]
    with scripted_server(Reply(document={"predictions": ["cat", None], "errors": errors})) as server:
        result = predict(server.url, time, raw=[b"a", b"b"], on_error="partial")
    assert result.value == ["cat", None]
    assert [(e.instance, e.code, e.field, e.error, e.retryable) for e in result.errors] == [
        (1, "undecodable", "image", "not an image", False)
    ]


def test_cancelled_call_is_not_retried(time: FakeTime) -> None:
    """Cancellation leaves at once, whatever the policy."""
    arrived, gate = threading.Event(), threading.Event()

    async def cancelled(url: str) -> None:
        async with AsyncClient(url, clock=time, sleep=time.asleep) as client:
            task = asyncio.ensure_future(client.predict("m", ROW))
            await asyncio.to_thread(arrived.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    def hold() -> None:
        arrived.set()
        gate.wait(30)

    with scripted_server(Reply(drop=True, before=hold)) as server:
        asyncio.run(cancelled(server.url))
        gate.set()
    assert len(server.received) == 1
    assert time.slept == []


def test_one_client_serves_many_threads(time: FakeTime) -> None:
    """Threads share a client; each gets its own answer."""
    with scripted_server(predicted(1)) as server, Client(server.url, clock=time, sleep=time.sleep) as client:
        results: list[object] = []
        threads = [threading.Thread(target=lambda: results.append(client.predict("m", ROW).value)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [1] * 8


def test_headers_of_client_and_call_are_sent(time: FakeTime) -> None:
    """A call's headers win over the client's."""
    with scripted_server(predicted(1)) as server, Client(server.url, headers={"X-Api-Key": "a", "X-Unit": "u"}, clock=time) as client:
        client.predict("m", ROW, headers={"x-unit": "v"})
    assert server.received[0].headers["x-api-key"] == "a"
    assert server.received[0].headers["x-unit"] == "v"


def test_faces_take_the_same_arguments() -> None:
    """What one face can do, the other can."""
    for name in ("__init__", "predict", "predict_many", "predict_frames", "send_feedback", "close"):
        faces = [inspect.signature(getattr(face, name)) for face in (Client, AsyncClient)]
        assert list(faces[0].parameters) == list(faces[1].parameters)
    with contextlib.closing(Client("http://127.0.0.1:1")) as client:
        assert client is not None


def awaited_feedback(url: str, **options: object) -> object:
    """Send feedback through `AsyncClient`."""

    async def call() -> object:
        async with AsyncClient(url) as client:
            return await client.send_feedback("m", "p1", **options)  # type: ignore[arg-type]

    return asyncio.run(call())


def blocking_feedback(url: str, **options: object) -> object:
    """Send feedback through `Client`."""
    with Client(url) as client:
        return client.send_feedback("m", "p1", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("send", [blocking_feedback, awaited_feedback], ids=["sync", "async"])
def test_feedback_is_sent_and_its_fate_told(send: Callable[..., object]) -> None:
    """What was counted comes back; what was not is an error with the server's reason."""
    accepted = {"accepted": 1, "rejected": 0, "results": [{"status": "accepted", "counted": ["clicked"]}]}
    late = {"accepted": 0, "rejected": 1, "results": [{"status": "rejected", "reason": "late", "error": "it is 9 days old"}]}
    with scripted_server(Reply(document=accepted), Reply(document=late), Reply(document={"results": []})) as server:
        assert send(server.url, values={"clicked": True}, label="yes") == {"status": "accepted", "counted": ["clicked"]}
        with pytest.raises(FeedbackRejected, match="9 days old") as caught:
            send(server.url, values={"clicked": True})
        with pytest.raises(AnswerNotUnderstood, match="what became of the feedback"):
            send(server.url)
    assert caught.value.reason == "late"
    assert server.received[0].path == "/v1/models/m:feedback"
    assert server.received[0].json == {"prediction_id": "p1", "values": {"clicked": True}, "label": "yes"}


def test_unit_travels_in_the_header_of_choice(time: FakeTime) -> None:
    """The default is the server's; another can be named."""
    with scripted_server(predicted(1)) as server:
        with Client(server.url, clock=time) as client:
            client.predict("m", ROW, unit="u1")
        with Client(server.url, clock=time, unit_header="X-User") as client:
            client.predict("m", ROW, unit="u2")
    assert server.received[0].headers["samegraph-unit"] == "u1"
    assert server.received[1].headers["x-user"] == "u2"


def test_three_hundred_threads_share_one_pause() -> None:
    """Refused at once, they all come back after the hint, none before, and all are answered."""
    window = threading.Barrier(8)
    refusals = [Reply(429, {"error": "full"}, {"retry-after-ms": "200"}, before=lambda: window.wait(30))] * 8
    with scripted_server(*refusals, predicted(1)) as server, Client(server.url) as client:
        values: list[object] = []
        threads = [threading.Thread(target=lambda: values.append(client.predict("m", ROW).value)) for _ in range(300)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert client.gate.pauses == 1
        assert client.gate.in_flight == 0
    assert values == [1] * 300
    assert len(server.received) == 308


def test_closing_ends_calls_that_are_under_way() -> None:
    """Nobody waits for ever for a client that another task has closed."""
    arrived, hold = threading.Event(), threading.Event()

    def before() -> None:
        arrived.set()
        hold.wait(30)

    async def play(url: str) -> None:
        client = AsyncClient(url, gate=Gate(start=1, most=1))
        calls = [asyncio.ensure_future(client.predict("m", ROW)) for _ in range(3)]
        await asyncio.to_thread(arrived.wait, 30)
        await client.close()
        done, waiting = await asyncio.wait(calls, timeout=30)
        assert not waiting
        assert all("closed" in str(call.exception()) for call in done)

    with scripted_server(Reply(drop=True, before=before)) as server:
        asyncio.run(play(server.url))
        hold.set()


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_deadlines_that_are_none_are_refused(value: float) -> None:
    """A sentence names the argument and the value; nothing is sent."""
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match="deadline_s must be > 0"):
            client.predict("m", ROW, deadline_s=value)
        with pytest.raises(ValueError, match="item_deadline_s must be > 0"):
            client.predict_many("m", [ROW], item_deadline_s=value)
