"""Reading Retry-After."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_client.hints import retry_after_s

DATE = "Sat, 21 Nov 2026 10:00:00 GMT"
LATER = "Sat, 21 Nov 2026 10:00:30 GMT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"retry-after": "2"}, 2.0, id="seconds"),
        pytest.param({"retry-after": "0"}, 0.0, id="zero"),
        pytest.param({"retry-after": "0.25"}, 0.25, id="fraction"),
        pytest.param({"retry-after": "2", "retry-after-ms": "1250"}, 1.25, id="milliseconds win"),
        pytest.param({"retry-after": "2", "retry-after-ms": "soon"}, 2.0, id="unreadable milliseconds are passed over"),
        pytest.param({"retry-after": LATER, "date": DATE}, 30.0, id="date"),
        pytest.param({"retry-after": DATE, "date": LATER}, 0.0, id="date in the past"),
        pytest.param({"retry-after": LATER}, None, id="date without a clock to read it by"),
        pytest.param({"retry-after": LATER.replace("GMT", "-0000"), "date": DATE}, 30.0, id="date of unknown origin"),
        pytest.param({"retry-after": "-1"}, None, id="negative"),
        pytest.param({"retry-after": "nan"}, None, id="not a number"),
        pytest.param({"retry-after": "inf"}, None, id="for ever"),
        pytest.param({"retry-after": "a while"}, None, id="prose"),
    ],
)
def test_hint_is_read_or_refused(headers: dict[str, str], expected: float | None) -> None:
    """Every form that means a wait is read; everything else is no hint."""
    assert retry_after_s(headers) == expected


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_header_can_break_the_reader(value: str, date: str) -> None:
    """Whatever a server sends, the result is None or a wait that is not negative."""
    hint = retry_after_s({"retry-after": value, "date": date})
    assert hint is None or hint >= 0
