"""V1 and multipart bodies nobody should send: each is answered with a 4xx that names the fault, or rightly; never a 5xx or a hang."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import odd_packages as odd
import package_builders as build
import pytest
from live_server import LiveServer, Reply, live_server
from samegraph_transforms.pack import pack

GOOD = {"size": 1.5, "kind": "moss"}
MAX_INSTANCES = 10_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    odd.pack_greeting(repository)
    odd.pack_lists(repository)
    odd.pack_tint(repository)
    with live_server(repository, limits={"max_body_bytes": 4_000_000, "max_instances": MAX_INSTANCES}) as live:
        yield live


def one(**changes: Any) -> bytes:
    return json.dumps({"instances": [{**GOOD, **changes}]}).encode()


def raw(size: bytes = b"1.5", kind: bytes = b'"moss"', before: bytes = b"") -> bytes:
    return b'{%b"instances": [{"size": %b, "kind": %b}]}' % (before, size, kind)


def label(reply: Reply) -> str:
    return str(reply.json()["predictions"][0]["label"])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (raw(kind=b'"\\ud800"'), "malformed_json"),
        (raw(kind=b'"\xed\xa0\x80"'), "malformed_json"),
        (raw(kind=b'"\xff"'), "malformed_json"),
        (b"\xef\xbb\xbf" + raw(), "malformed_json"),
        (raw().decode().encode("utf-16"), "malformed_json"),
        (raw().decode().encode("utf-16-le"), "malformed_json"),
        (raw().decode().encode("utf-32"), "malformed_json"),
        (b"\0" * 100, "malformed_json"),
        (raw() + b"x", "malformed_json"),
        (raw() * 2, "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed_json"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "malformed_json"),
        (raw(before=b'"extra": ' + b"[" * 100_000 + b"]" * 100_000 + b", "), "malformed_json"),
        (raw(b"[" * 900 + b"]" * 900), "wrong_type"),
        (raw(b"1e400"), "out_of_range"),
        (raw(b"-1e99999999999999999999"), "out_of_range"),
        (raw(b"9" * 400), "out_of_range"),
        (raw(b"9" * 100_000), "out_of_range"),
        (raw(b"NaN"), "not_a_number"),
        (raw(b"true"), "wrong_type"),
        (raw(b'"1"'), "wrong_type"),
        (raw(before=b'"inputs": {}, '), "bad_body"),
        (raw(before=b'"signature_name": {"a": [1]}, '), "bad_body"),
        (b'{"instances": [' + b"[]," * 200_000 + b"[]]}", "too_many_instances"),
        (json.dumps({"instances": [GOOD] * (MAX_INSTANCES + 1)}).encode(), "too_many_instances"),
        (json.dumps({"instances": [{f"k{i}": 1 for i in range(50_000)}]}).encode(), "unknown_field"),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{len(v)}-{v[:36]!r}",
)
def test_a_body_that_means_nothing_is_refused(server: LiveServer, body: bytes, code: str) -> None:
    """Encodings, nesting, numbers and members that are not ours, small and large."""
    reply = server.predict("plants", body)
    assert (reply.status, reply.json()["code"]) == (413 if code == "too_many_instances" else 400, code)
    assert len(reply.body) < 2000


@pytest.mark.parametrize(
    ("body", "like"),
    [
        (one(kind="moss\0"), {"kind": "bamboo"}),
        (one(kind="\0moss"), {"kind": "bamboo"}),
        (one(kind="\U0001f600"), {"kind": "bamboo"}),
        (one(kind="x" * 3_000_000), {"kind": "bamboo"}),
        (raw(b"1.5" + b"0" * 1_000_000), {}),
        (raw(b"1e-999999999999"), {"size": 0}),
        (raw(b"-0.0"), {"size": 0}),
        (raw(b'7, "size": 1.5'), {}),
        (raw(before=b'"instances": [], '), {}),
    ],
    ids=[
        "nul-after",
        "nul-before",
        "astral",
        "3-MB-string",
        "1-MB-number",
        "underflow",
        "minus-zero",
        "duplicate-field",
        "duplicate-member",
    ],
)
def test_odd_but_valid_json_means_what_json_says(server: LiveServer, body: bytes, like: dict[str, Any]) -> None:
    """A string is all of its characters, a number its value, and of duplicate names the last one counts, as in every JSON library."""
    reply = server.predict("plants", body)
    assert reply.status == 200
    assert reply.json()["predictions"] == server.predict("plants", one(**like)).json()["predictions"]


def test_10000_instances_are_answered_each_with_its_own(server: LiveServer) -> None:
    """The largest request there may be comes back whole and in order."""
    rows = [{"size": i % 900 / 3, "kind": build.KINDS[i % 3]} for i in range(MAX_INSTANCES)]
    reply = server.predict("plants", {"instances": rows})
    assert [p["label"] for p in reply.json()["predictions"]] == build.reference(rows)["label"].tolist()


def test_9999_bad_instances_do_not_hide_the_good_one(server: LiveServer) -> None:
    """Every bad one has its error in its place; the good one is answered."""
    rows: list[Any] = [{"size": "x", "kind": "moss"}] * MAX_INSTANCES
    rows[6_000] = GOOD
    reply = server.predict("plants", {"instances": rows}, "?on_error=partial")
    document = reply.json()
    assert (reply.status, reply.headers["samegraph-failed-instances"]) == (200, str(MAX_INSTANCES - 1))
    assert [i for i, p in enumerate(document["predictions"]) if p is not None] == [6_000]
    assert [e["instance"] for e in document["errors"]] == [i for i in range(MAX_INSTANCES) if i != 6_000]
    assert {(e["code"], e["field"]) for e in document["errors"]} == {("wrong_type", "size")}


def test_partial_answers_to_columns_keep_every_instance_in_its_place(server: LiveServer) -> None:
    """In columns, too, a bad value fails its own instance only."""
    columns = {"size": [1.5, "x", None, 5000], "kind": ["moss", "fern", "oak", "fern"]}
    whole = server.predict("plants", {"inputs": columns})
    assert (whole.status, whole.json()["instance"], whole.json()["field"]) == (400, 1, "size")
    partial = server.predict("plants", {"inputs": columns}, "?on_error=partial").json()
    answers = build.reference([{"size": 1.5, "kind": "moss"}, {"size": None, "kind": "oak"}])["label"]
    assert [p and p["label"] for p in partial["predictions"]] == [answers[0], None, answers[1], None]
    assert [(e["instance"], e["code"]) for e in partial["errors"]] == [(1, "wrong_type"), (3, "out_of_range")]


def test_when_every_instance_is_bad_the_request_is(server: LiveServer) -> None:
    """A partial answer without an answer would be a success that is none."""
    reply = server.predict("plants", {"instances": [{}, {}]}, "?on_error=partial")
    assert (reply.status, reply.json()["code"], reply.json()["instance"]) == (400, "missing_field", 0)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "hit"),
    [
        (b"hello", "text/plain", 200, 1),
        (b"hello\0", "text/plain", 200, 0),
        (b"\xef\xbb\xbfhello", "text/plain; charset=utf-8", 200, 0),
        (b"", "text/plain", 200, 0),
        (b"hello", 'text/plain; charset="US-ASCII"', 200, 1),
        (b"hello", "text/plain; charset=utf-16", 415, None),
        (b"hello", "text/plain; charset=\xff", 415, None),
        (b"\xff", "text/plain", 400, None),
        (b"h" * 101, "text/plain", 400, None),
        (b"hello", "text/html", 415, None),
        (b"hello", "image/png", 415, None),
        (b"hello", ";;;", 400, None),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_text_is_the_characters_it_says_it_is(server: LiveServer, body: bytes, content_type: str, status: int, hit: int | None) -> None:
    """Nothing is trimmed, guessed or cut at a NUL."""
    reply = server.request("POST", "/v1/models/greeting:predict", body, {"content-type": content_type})
    assert reply.status == status
    if hit is not None:
        assert reply.json()["predictions"] == [hit]


# --- answers of different shapes ------------------------------------------------------------------------------------------


def test_instances_whose_answers_do_not_fit_together_fail_their_own_request_only(server: LiveServer) -> None:
    """Lists of different length run apart and cannot be one answer; nobody waits for it, least of all those who share the batch."""
    requests = [[[1], [1, 2]], [[3.0]], [[1, 2], [1]], [[4.0]], [[5.0], [6.0]]]
    with ThreadPoolExecutor(len(requests)) as pool:
        replies = list(pool.map(lambda rows: server.predict("lists", {"instances": rows}), requests))
    assert [r.status for r in replies] == [400, 200, 400, 200, 200]
    assert replies[0].json()["code"] == "wrong_shape"
    assert [r.json()["predictions"] for r in replies if r.status == 200] == [[[6.0]], [[8.0]], [[10.0], [12.0]]]


def test_a_partial_answer_does_not_help_answers_that_do_not_fit_together(server: LiveServer) -> None:
    """No single instance is at fault, so the request is."""
    reply = server.predict("lists", {"instances": [[1], [1, 2], "x"]}, "?on_error=partial")
    assert (reply.status, reply.json()["code"]) == (400, "wrong_shape")


# --- multipart ------------------------------------------------------------------------------------------------------------

FORM = "multipart/form-data; boundary=edge"
END = b"--edge--\r\n"


def part(data: bytes, headers: bytes = b"Content-Type: image/png") -> bytes:
    return b"--edge\r\n" + headers + b"\r\n\r\n" + data + b"\r\n"


def form(server: LiveServer, body: bytes, content_type: str = FORM) -> Reply:
    return server.request("POST", "/v1/models/tint:predict", body, {"content-type": content_type})


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "truncated"),
        (END, "no_instances"),
        (part(b"x"), "truncated"),
        (part(b"x")[:-3], "truncated"),
        (b"hello\r\n" + part(b"x") + END, "bad_body"),
        ((part(b"x") + END).replace(b"\r\n", b"\n"), "bad_body"),
        (part(b"x", b"X: " + b"y" * 100_000) + END, "bad_body"),
        (part(b"x", b"y" * 1_000_000) + END, "bad_body"),
        (part(b"x", b"\r\n".join(b"X%d: y" % i for i in range(100))) + END, "bad_body"),
        (part(b"x", b"no colon") + END, "bad_body"),
        (part(b"x", b": x") + END, "bad_body"),
        (part(b"x") * (MAX_INSTANCES + 1) + END, "too_many_instances"),
        (part(part(odd.image_file(1)) + END, b"Content-Type: multipart/mixed; boundary=edge2") + END, "unsupported_media_type"),
        (part(b"not an image") + END, "undecodable"),
        (part(b"") + END, "undecodable"),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{len(v)}-{v[:30]!r}",
)
def test_a_form_that_holds_no_image_is_refused(server: LiveServer, body: bytes, code: str) -> None:
    """Ends, edges, headers, nesting and numbers of parts."""
    reply = form(server, body)
    assert (reply.status, reply.json()["code"]) == ({"too_many_instances": 413, "unsupported_media_type": 415}.get(code, 400), code)


@pytest.mark.parametrize(
    "parameters",
    ["", "; boundary", "; boundary=", '; boundary=""', "; boundary=" + "x" * 71, "; boundary*=utf-8''edge", "; boundary*=x'", ";;;", "; =",
     "; boundary*0*=%%%; boundary*1*=''", "; boundary=other", "; boundary=\xff", "; boundary*-1=a; boundary*99999999999999999999=b"],
    ids=lambda v: repr(v)[:30],
)  # fmt: skip
def test_a_form_without_a_usable_boundary_is_refused(server: LiveServer, parameters: str) -> None:
    """However the parameter is spelt."""
    reply = form(server, part(odd.image_file(1)) + END, "multipart/form-data" + parameters)
    assert (reply.status, reply.json()["code"]) == (400, "bad_body")


def test_10000_parts_are_10000_instances(server: LiveServer) -> None:
    """Empty parts cost their own instance, at any number of them."""
    image = odd.image_file(2)
    reply = form(server, part(b"") * (MAX_INSTANCES - 1) + part(image) + END)
    predictions = reply.json()["predictions"]
    assert reply.status == 200
    assert (len(predictions), predictions[:-1].count(None), predictions[-1]) == (MAX_INSTANCES, MAX_INSTANCES - 1, odd.tint(image))


def test_what_follows_the_last_boundary_is_ignored(server: LiveServer) -> None:
    """An epilogue is allowed and means nothing."""
    image = odd.image_file(3)
    reply = form(server, part(image) + END + part(b"x"))
    assert reply.json()["predictions"] == [odd.tint(image)]


def test_the_server_is_as_it_was(server: LiveServer) -> None:
    """After all of this nothing is held, and no answer was a 5xx."""
    assert server.metric("samegraph_in_flight_requests") == server.metric("samegraph_in_flight_bytes") == 0
    for status in ("500", "503", "504"):
        assert server.metric("samegraph_requests_total", status=status) == 0
    assert server.predict("plants", one()).status == 200
