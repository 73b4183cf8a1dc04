"""The journal: what a killed process has done is never done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_time import FakeTime
from samegraph_client import Client, JournalBusy, JournalFile, JournalFull, JournalMismatch
from samegraph_client.encoding import fingerprint
from scripted_server import Reply, predicted, refused, scripted_server

BURST = """
import sys
from samegraph_client import Client
with Client(sys.argv[1], headers={"x-run": sys.argv[3]}) as client:
    for outcome in client.predict_many("m", ({"x": n} for n in range(60)), journal=sys.argv[2]):
        print(outcome.index, outcome.value, outcome.replayed, flush=True)
"""


def run(url: str, journal: Path, name: str) -> subprocess.Popen[str]:
    """Start a process that sends sixty items."""
    return subprocess.Popen([sys.executable, "-c", BURST, url, str(journal), name], stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def item_of(body: bytes) -> int:
    """Return which item a request is about."""
    return int(json.loads(body)["instances"][0]["x"])


def test_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL in the middle: the second run sends what was not answered, under the same keys, and nothing that was."""
    journal = tmp_path / "burst.jsonl"
    enough, hold = threading.Event(), threading.Event()
    with scripted_server(predicted(0)) as server:
        plain = server.next_reply

        def counted(request: object) -> Reply:
            reply = plain(request)  # type: ignore[arg-type]
            if len(server.received) >= 25:  # two may have come between one's coming and its being counted
                enough.set()
                hold.wait(30)  # the last ones are in flight when the process dies
            return reply

        server.next_reply = counted  # type: ignore[method-assign]
        first = run(server.url, journal, "first")
        assert enough.wait(60)
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
        hold.set()
        answered = {entry["i"] for entry in map(json.loads, journal.read_text().splitlines()) if "answer" in entry}
        second = run(server.url, journal, "second")
        output, _ = second.communicate(timeout=60)
    after = [request for request in server.received if request.headers["x-run"] == "second"]
    assert second.returncode == 0
    assert 0 < len(answered) < 60
    assert [line.split()[0] for line in output.splitlines()] == [str(n) for n in range(60)]
    assert {int(line.split()[0]) for line in output.splitlines() if line.endswith("True")} == answered
    assert sorted(item_of(request.body) for request in after) == sorted(set(range(60)) - answered)
    keys: dict[int, set[str]] = {}
    for request in server.received:
        keys.setdefault(item_of(request.body), set()).add(request.headers["idempotency-key"])
    assert all(len(each) == 1 for each in keys.values())


def send(url: str, journal: Path | JournalFile, items: list[object], model: str = "m", **options: object) -> list[object]:
    """Send items with a journal and return the values (None for a failed one)."""
    time = FakeTime()
    with Client(url, clock=time, sleep=time.sleep) as client:
        return [o.value if o.ok else None for o in client.predict_many(model, items, journal=journal, **options)]  # type: ignore[arg-type]


def test_second_run_sends_nothing(tmp_path: Path) -> None:
    """A finished burst is told again from its journal, whole predictions included."""
    journal = tmp_path / "j"
    with scripted_server(predicted({"label": "a"}, samegraph_model="m", samegraph_prediction_id="p")) as server:
        first = send(server.url, journal, [{"x": 1}, {"x": 2}])
        assert send(server.url, journal, [{"x": 1}, {"x": 2}]) == first == [{"label": "a"}] * 2
        with Client(server.url) as client:
            (outcome, _) = client.predict_many("m", [{"x": 1}, {"x": 2}], journal=journal)
    assert len(server.received) == 2
    assert outcome.replayed
    assert outcome.prediction is not None
    assert (outcome.prediction.model, outcome.prediction.prediction_id, outcome.attempts) == ("m", "p", 0)


def test_failed_item_is_sent_again(tmp_path: Path) -> None:
    """Only answers are final."""
    journal = tmp_path / "j"
    with scripted_server(refused(500, "broken"), predicted(7)) as server:
        assert send(server.url, journal, [{"x": 1}]) == [None]
        assert send(server.url, journal, [{"x": 1}]) == [7]
    first, second = server.received
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_torn_line_is_cut_off(tmp_path: Path) -> None:
    """Half a line, as a power failure leaves it, is as if it had not been written."""
    journal = tmp_path / "j"
    with scripted_server(predicted(7)) as server:
        send(server.url, journal, [{"x": 1}])
        whole = journal.read_bytes()
        journal.write_bytes(whole[:-9])
        assert send(server.url, journal, [{"x": 1}]) == [7]
    assert len(server.received) == 2
    assert len(journal.read_bytes()) == len(whole)


@pytest.mark.parametrize(
    ("options", "items", "words"),
    [
        ({"model": "other"}, [{"x": 1}], "belongs to another burst"),
        ({"version": 2}, [{"x": 1}], "belongs to another burst"),
        ({}, [{"x": 3}], "item 0 is not the one"),
    ],
)
def test_journal_of_something_else_is_refused(tmp_path: Path, options: dict[str, object], items: list[object], words: str) -> None:
    """Another model, or other items, never continue a burst."""
    journal = tmp_path / "j"
    with scripted_server(refused(500)) as server:
        send(server.url, journal, [{"x": 1}])
        with pytest.raises(JournalMismatch, match=words):
            send(server.url, journal, items, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"hello\n", b'{"a": 1}\n', b'{"journal": 99, "burst": "x"}\n', b"[]\n"])
def test_file_that_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    """Nobody's file is appended to by mistake."""
    journal = tmp_path / "j"
    journal.write_bytes(content)
    with pytest.raises(JournalMismatch, match=str(journal)):
        send("http://127.0.0.1:9", journal, [{"x": 1}])
    assert journal.read_bytes() == content


def test_journal_has_one_user_at_a_time(tmp_path: Path) -> None:
    """Two processes would send everything twice."""
    request = {"model": "m"}
    place = JournalFile(tmp_path / "j")
    with place.open(request, FakeTime()), pytest.raises(JournalBusy, match="another process"):
        place.open(request, FakeTime())
    place.open(request, FakeTime()).close()


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_journal_is_bounded(tmp_path: Path, fsync: str) -> None:
    """At its limit the burst stops with a sentence, and nothing unnoted is sent."""
    journal = JournalFile(tmp_path / "j", fsync=fsync, max_bytes=400)  # type: ignore[arg-type]
    with scripted_server(predicted("x" * 50)) as server, pytest.raises(JournalFull, match="beyond 400 bytes"):
        send(server.url, journal, [{"x": n} for n in range(100)])
    assert journal.path.stat().st_size <= 400
    assert len(server.received) < 20


def test_fingerprints_tell_items_apart(tmp_path: Path) -> None:
    """The same bytes, given as bytes or by path, are the same item; anything else is another."""
    import numpy as np

    file = tmp_path / "f"
    file.write_bytes(b"abc")
    assert fingerprint(file) == fingerprint(b"abc")
    items: list[object] = [
        b"abc",
        b"ab",
        "abc",
        {"x": 1},
        {"x": 2},
        {"y": 1},
        [1, 2],
        [[1], 2],
        np.zeros(4),
        np.zeros((2, 2)),
        np.zeros(4, "f4"),
        None,
    ]
    assert len({fingerprint(item) for item in items}) == len(items)
