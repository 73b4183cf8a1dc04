"""The retry policy as numbers."""

from __future__ import annotations

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from samegraph_client import AttemptTimedOut, ClientError, ConnectionFailed, RetryPolicy, ServerError, wait_hint
from samegraph_client.errors import from_answer
from samegraph_client.policy import Tries


def refusal(status: int = 429, hint_s: float | None = None, body: bytes = b"{}") -> ServerError:
    """Return the error of such an answer."""
    return from_answer(status, {} if hint_s is None else {"retry-after-ms": str(hint_s * 1000)}, body)


def tried(policy: RetryPolicy | None = None, attempts: int = 1) -> Tries:
    """Return a call that has been tried so often."""
    return Tries(policy or RetryPolicy(), started=0.0, attempts=attempts)


@given(st.floats(0, 3600), st.booleans(), st.floats(0, 100))
def test_wait_is_never_shorter_than_the_hint(hint_s: float, spread: bool, own_wait_s: float) -> None:
    """Whatever the strategies say, the server's hint is obeyed, and jitter goes upward only."""
    error = refusal(hint_s=hint_s, body=b'{"spread": true}' if spread else b"{}")
    hint_s = error.hint_s or 0.0
    wait_s = tried(RetryPolicy(wait=tenacity.wait_fixed(own_wait_s))).after(error, 0.0)
    assert wait_s is not None
    assert hint_s <= wait_s <= hint_s + (min(0.1 * hint_s, 1.0) if spread else 0.25 * hint_s) + 1e-9


def test_hint_of_a_users_strategy_cannot_undercut_the_server() -> None:
    """A strategy of the user's for hinted waits is raised to the hint."""
    assert tried(RetryPolicy(hint_wait=tenacity.wait_none())).after(refusal(hint_s=3.0), 0.0) == 3.0


@pytest.mark.parametrize("failure", [1, 2, 3, 4])
def test_backoff_without_a_hint_is_full_jitter(failure: int) -> None:
    """The n-th wait is anywhere between nothing and 0.5 × 2^(n-1) seconds, and does spread out."""
    waits = [tried(attempts=failure).after(refusal(), 0.0) for _ in range(300)]
    limit = 0.5 * 2 ** (failure - 1)
    assert all(wait is not None and 0 <= wait <= limit for wait in waits)
    assert max(wait or 0 for wait in waits) > 0.8 * limit
    assert min(wait or 0 for wait in waits) < 0.2 * limit


def test_backoff_is_capped() -> None:
    """No wait of our own choosing is longer than 20 seconds."""
    policy = RetryPolicy(stop=tenacity.stop_never)
    assert all((tried(policy, attempts=30).after(refusal(), 0.0) or 0) <= 20 for _ in range(100))


def test_hinted_refusals_do_not_consume_attempts() -> None:
    """A hundred hinted refusals leave all five attempts for real failures."""
    tries = tried(attempts=0)
    for _ in range(100):
        tries.sent(0.0)
        tries.landed(refusal(hint_s=0.1), 0.0)
        assert tries.after(refusal(hint_s=0.1), 0.0) is not None
    verdicts = []
    for _ in range(5):
        tries.sent(0.0)
        tries.landed(refusal(), 0.0)
        verdicts.append(tries.after(refusal(), 0.0) is None)
    assert verdicts == [False, False, False, False, True]
    assert tries.refusals == 100


@pytest.mark.parametrize(
    ("error", "again"),
    [
        pytest.param(refusal(400), False, id="400"),
        pytest.param(refusal(404), False, id="404"),
        pytest.param(refusal(413, hint_s=1.0), False, id="413 even with a hint"),
        pytest.param(refusal(429), True, id="429"),
        pytest.param(refusal(500), False, id="500"),
        pytest.param(refusal(500, body=b'{"retryable": true}'), True, id="500 that says it may be repeated"),
        pytest.param(refusal(502, body=b"<html>"), True, id="502 of a proxy"),
        pytest.param(refusal(503), True, id="503"),
        pytest.param(refusal(503, hint_s=1.0, body=b'{"retryable": false}'), False, id="503 that says it may not"),
        pytest.param(refusal(504), True, id="504"),
        pytest.param(ConnectionFailed("lost"), True, id="connection"),
        pytest.param(AttemptTimedOut("late"), True, id="timeout"),
    ],
)
def test_only_what_may_pass_is_repeated(error: ClientError, again: bool) -> None:
    """The server's word decides; without one, its status; a lost connection is always worth another try."""
    assert (tried().after(error, 0.0) is not None) is again


def test_strategies_of_tenacity_are_the_vocabulary() -> None:
    """Any wait and stop strategy of tenacity can be given, combined as tenacity combines them."""
    policy = RetryPolicy(
        stop=tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(10),
        wait=tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(7)) + tenacity.wait_fixed(0.5),
    )
    assert tried(policy, attempts=1).after(refusal(), 1.0) == 1.5
    assert tried(policy, attempts=2).after(refusal(), 1.0) == 7.5
    assert tried(policy, attempts=3).after(refusal(), 1.0) is None
    assert tried(policy, attempts=1).after(refusal(), 10.0) is None


@pytest.mark.parametrize("value", [0.0, float("nan"), -1.0])
def test_times_that_are_not_positive_are_refused(value: float) -> None:
    """A message names the setting and the value."""
    with pytest.raises(ValueError, match=f"deadline_s must be > 0 seconds or None, got {value}"):
        RetryPolicy(deadline_s=value)
    with pytest.raises(ValueError, match="attempt_timeout_s must be > 0"):
        RetryPolicy(attempt_timeout_s=value)


def test_downward_jitter_is_refused() -> None:
    """Jitter below the hint cannot be asked for."""
    with pytest.raises(ValueError, match="upward only"):
        wait_hint(shared_ratio=-0.1)
