"""The line of those who were refused: positions, honesty, bounds."""

from __future__ import annotations

import pytest
from samegraph_service.admission import Callers, hint_s
from samegraph_service.cost import wave_s
from samegraph_service.tickets import TicketTable


def refuse(table: TicketTable, key: str | None, now: float, hint: float, owner: str = "a") -> int:
    """Refuse a request with a hint and return the position it was told."""
    ticket = table.find(owner, key, now)
    position = table.position(ticket, owner)
    table.refuse(ticket, owner, key, now, now + hint, now + hint)
    return position


def test_a_key_keeps_its_place_and_moves_up() -> None:
    """Positions are given in order; a place that comes free, or a ticket that is redeemed, lets everybody behind it move up."""
    table = TicketTable(100, 100)
    assert [refuse(table, f"k{i}", 0.0, 1.0) for i in range(4)] == [0, 1, 2, 3]
    assert refuse(table, "k2", 0.5, 1.0) == 2
    table.freed(0.6)
    assert refuse(table, "k2", 0.7, 1.0) == 1
    ticket = table.find("a", "k1", 1.0)
    assert ticket is not None
    table.redeem(ticket, 1.0)
    assert refuse(table, "k2", 1.8, 1.0) == 0
    assert refuse(table, "k9", 1.8, 1.0) == 2


def test_hits_misses_and_early_returns_are_told_apart() -> None:
    """Who comes when he was told and gets in is a hit; who is refused then is a miss; before it says nothing about the hint."""
    table = TicketTable(100, 100)
    refuse(table, "early", 0.0, 1.0)
    refuse(table, "early", 0.5, 1.0)
    refuse(table, "early", 1.5, 1.0)
    ticket = table.find("a", "early", 2.5)
    assert ticket is not None
    table.redeem(ticket, 2.5)
    assert (table.seen.early, table.seen.misses, table.seen.hits) == (1, 1, 1)
    assert len(table) == 0


def test_the_error_of_a_hint_is_measured_against_its_first_promise() -> None:
    """Whenever the caller comes back: what counts is when a place for him came free."""
    errors: list[float] = []
    table = TicketTable(100, 100, errors.append)
    for i in range(3):
        refuse(table, f"k{i}", 0.0, 1.0 + i)
    table.freed(0.75, places=2)
    table.freed(4.0)
    assert errors == pytest.approx([-0.25, -1.25, 1.0])


def test_who_does_not_come_gives_up_his_place() -> None:
    """A ticket lives for twice its hint."""
    table = TicketTable(100, 100)
    refuse(table, "ghost", 0.0, 10.0)
    refuse(table, "other", 0.0, 30.0)
    table.sweep(19.9)
    assert table.owned("a") == 2
    table.sweep(20.1)
    assert (table.owned("a"), table.seen.expired) == (1, 1)
    assert table.position(table.find("a", "other", 21.0), "a") == 0


def test_without_keys_the_oldest_due_ticket_is_a_callers_own() -> None:
    """Each refusal stands at the end of the line; who comes back at a promised moment takes that ticket, whoever he was."""
    table = TicketTable(100, 100)
    assert [refuse(table, None, 0.0, 1.0 + i) for i in range(3)] == [0, 1, 2]
    assert table.find("a", None, 0.5) is None
    due = table.find("a", None, 1.0)
    assert due is not None
    assert due.place[1] == 0
    table.redeem(due, 1.0)
    later = table.find("a", None, 2.0)
    assert later is not None
    assert later.place[1] == 1
    assert table.find("b", None, 5.0) is None


def test_the_table_is_bounded_in_all_and_for_each_owner() -> None:
    """A caller who invents keys stretches nobody's hint beyond his share; refusals without a ticket are counted."""
    table = TicketTable(10, 4)
    for i in range(100):
        refuse(table, f"k{i}", 0.0, 1.0, owner="inventor")
    assert (len(table), table.owned("inventor"), table.seen.unticketed) == (4, 4, 96)
    for i in range(100):
        refuse(table, "k", 0.0, 1.0, owner=f"caller {i}")
    assert len(table) == 10
    table.sweep(1e9)
    assert (len(table), table.owners, table.held(1e9)) == (0, 0, 0)
    assert refuse(table, "k", 1e9, 1.0) == 0


def test_owners_take_turns_in_the_line() -> None:
    """A newcomer stands behind the first tickets of others, not behind all of them, and more of theirs come after his."""
    table = TicketTable(1000, 1000)
    assert [refuse(table, f"frame {i}", 0.0, 1.0, "burst") for i in range(300)] == list(range(300))
    assert [refuse(table, f"visit {i}", 0.1, 1.0, "visitor") for i in range(3)] == [1, 3, 5]
    assert refuse(table, "frame 300", 0.1, 1.0, "burst") == 303
    table.freed(0.2, places=4)  # frame 0, visit 0, frame 1, visit 1
    assert refuse(table, "visit", 0.3, 1.0, "third") == 0, "who comes now stands in the round that is served"
    assert refuse(table, "visit 2", 0.3, 1.0, "visitor") == 2
    table.sweep(1e9)
    assert (len(table), table.owners) == (0, 0)


def test_places_are_kept_for_those_who_may_come_for_them() -> None:
    """From the moment one comes free until a little after he was told."""
    table = TicketTable(10, 10)
    table.grace_s = 0.5
    refuse(table, "k0", 0.0, 1.0)
    refuse(table, "k1", 0.0, 1.0)
    table.freed(0.8)
    assert [table.held(now) for now in (0.9, 1.4, 1.6)] == [1, 1, 0]


def test_the_wave_model_knows_that_slots_end_together() -> None:
    """Source: positions by waves of equal batches over the slots."""
    assert [wave_s([0.0, 0.0], j, 10.0) for j in range(5)] == [0.0, 0.0, 10.0, 10.0, 20.0]
    assert [wave_s([1.0, 4.0], j, 10.0) for j in range(4)] == [1.0, 4.0, 11.0, 14.0]


def test_long_hints_are_spread_over_the_half_below_the_bound() -> None:
    """Nobody believes more, and a crowd told the same number comes as one."""
    assert [hint_s(500.0, 60.0, chance) for chance in (0.0, 0.5, 1.0)] == [30.0, 45.0, 60.0]
    assert hint_s(59.0, 60.0, 0.0) == 59.0


def test_callers_are_bounded_and_those_with_work_here_are_kept() -> None:
    """A flood of names shares one place, and nobody with work is forgotten."""
    callers = Callers(8)
    busy = [callers.of(f"busy {i}") for i in range(8)]
    for caller in busy:
        caller.requests = 1
    rest = callers.of("one more")
    assert rest is callers.of("and another")
    assert len(callers) == 8
    busy[3].requests = 0
    assert callers.of("new").name == "new"
    assert callers.of("busy 0") is busy[0]
