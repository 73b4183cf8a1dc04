"""Drifts planted in real flights, photos and texts are found within the rows the power table says, and named by field and bin."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from live_server import LiveServer, live_server
from planted import DRIFTS, ROOT, RULE, Planted, detect, four_of_five, table_row

PAGE = (ROOT / "docs" / "drift.md").read_text(encoding="utf-8").splitlines()
#: Far beyond this machine's monotonic clock, so that the server's own looks come to nothing.
NOON = 60.0 * 10**7


@pytest.mark.parametrize("planted", DRIFTS, ids=lambda planted: planted.name)
def test_a_planted_drift_is_found_in_time(planted: Planted) -> None:
    """Found within the rows of the power table in four orders of five, by the service's own counter and rule; the page says how many."""
    found = detect(planted)
    patience = 1.5 if planted.concentrated else 1.1  # rows are looked at in steps of a tenth
    if found.table is None:
        # What is tolerated is no drift. That something changed is said all the same.
        assert found.psi < RULE.least_psi
        assert found.noticed_table is not None
        assert four_of_five(found.noticed) <= patience * max(RULE.min_rows, found.noticed_table)
        assert found.found.state == "shifted"
    else:
        assert four_of_five(found.rows) <= patience * max(RULE.min_rows, found.table)
    assert found.rank <= planted.rank
    assert found.bin in planted.bins
    assert table_row(planted, found) in PAGE, (
        f"docs/drift.md needs this line (scripts/planted_drifts.py prints them): {table_row(planted, found)}"
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(ROOT / "models" / "flights" / "2", models / "flights" / "2")
    with live_server(models, drift={"windows": "5m"}) as live:
        yield live


def planted_named(name: str) -> Planted:
    return next(planted for planted in DRIFTS if planted.name == name)


@pytest.mark.parametrize(("name", "minute"), [("temperature in °C", 0), ("carrier UA renamed", 10)])
def test_it_is_found_over_http(server: LiveServer, name: str, minute: int) -> None:
    """Two hundred drifted rows, sent to the real server, are a drift in its answer, its metrics and its page, with field and bin."""
    planted = planted_named(name)
    rows = list(planted.rows())[: RULE.min_rows]
    assert server.predict("flights", {"instances": rows}).status == 200
    server.service.drift.flush()
    server.service.drift.look(NOON + 60 * minute)
    (found,) = [v for v in server.get("/v1/models/flights/drift").json()["variables"] if v["name"] == planted.variable]
    window = found["windows"]["5m"]
    assert (window["rows"], window["state"]) == (RULE.min_rows, "drifted")
    assert window["linf_bin"] in planted.bins
    assert server.metric("samegraph_drift_state", field=planted.variable, window="5m", state="drifted") == 1
    page = server.get("/drift/flights/2").body.decode()
    assert page.index(f'href="#input-{planted.variable}"') == min(page.index('href="#input-'), page.index('href="#'))
    server.service.drift.look(NOON + 60 * (minute + 6))  # the next drift begins with an empty window
