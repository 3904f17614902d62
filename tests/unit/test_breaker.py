from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.breaker import Breaker

chances = st.floats(0, 1, exclude_max=True)


def test_one_that_is_found_down_stays_open_for_its_time_and_is_then_probed() -> None:
    breaker = Breaker(first_seconds=1.0)

    opened = breaker.found_down("no mail server", began=99.0, now=100.0, random=0.5)

    assert opened
    assert breaker.remaining_seconds(100.0) == pytest.approx(1.0)
    assert not breaker.waited(100.9)
    assert breaker.waited(101.0)
    assert breaker.state == "probing"


def test_a_probe_that_is_handled_closes_it_and_starts_anew() -> None:
    breaker = Breaker(first_seconds=1.0)
    breaker.found_down("down", 0.0, 0.0, 0.5)
    breaker.waited(1.0)

    assert breaker.found_up(began=1.0)
    assert (breaker.state, breaker.reason, breaker.openings) == ("closed", "", 0)


def test_what_began_before_it_opened_changes_nothing() -> None:
    breaker = Breaker(first_seconds=1.0)
    breaker.found_down("down", 0.0, 0.0, 0.5)
    until = breaker.until

    assert not breaker.found_down("down, too", 0.0, 0.5, 0.5)
    assert not breaker.found_up(began=0.0)
    assert (breaker.state, breaker.until) == ("open", until)
    breaker.waited(until)
    assert not breaker.found_down("down, too", 0.0, 20.0, 0.5)
    assert not breaker.found_up(began=0.0)
    assert (breaker.state, breaker.until) == ("probing", until)


@given(st.lists(chances, min_size=1, max_size=40))
def test_pauses_grow_up_to_the_cap_and_jitter(randoms: list[float]) -> None:
    breaker, now, pauses = Breaker(first_seconds=1.0, cap_seconds=60.0), 0.0, []
    for random in randoms:
        breaker.found_down("down", now, now, random)
        pauses.append(breaker.remaining_seconds(now) / (0.8 + 0.4 * random))
        now = breaker.until
        breaker.waited(now)

    assert pauses == pytest.approx([min(60.0, 2.0**opening) for opening in range(len(randoms))])


@given(st.lists(st.tuples(st.sampled_from(["down", "up", "wait"]), st.floats(0, 100)), max_size=50))
def test_it_is_closed_only_at_first_or_after_a_probe(steps: list[tuple[str, float]]) -> None:
    breaker, now, before = Breaker(), 0.0, "closed"
    for step, seconds in steps:
        now += seconds
        match step:
            case "down":
                breaker.found_down("down", now, now, 0.5)
            case "up":
                breaker.found_up(now)
            case "wait":
                breaker.waited(now)
        assert (before, breaker.state) in {
            ("closed", "closed"), ("closed", "open"), ("open", "open"), ("open", "probing"),
            ("probing", "probing"), ("probing", "open"), ("probing", "closed"),
        }  # fmt: skip
        before = breaker.state


def test_a_success_in_another_process_closes_it_from_any_state_and_starts_anew() -> None:
    breaker = Breaker(first_seconds=1.0)
    assert not breaker.found_up_elsewhere()
    breaker.found_down("down", 0.0, 0.0, 0.5)

    assert breaker.found_up_elsewhere()
    assert (breaker.state, breaker.reason, breaker.openings) == ("closed", "", 0)


def test_without_anything_to_probe_it_closes_and_remembers_how_often_it_was_found_down() -> None:
    breaker = Breaker(first_seconds=1.0)
    breaker.found_down("down", 0.0, 0.0, 0.5)
    assert not breaker.nothing_to_probe()
    breaker.waited(1.0)

    assert breaker.nothing_to_probe()
    assert breaker.state == "closed"
    breaker.found_down("down", 2.0, 2.0, 0.5)
    assert breaker.remaining_seconds(2.0) == pytest.approx(2.0)


def test_a_success_while_it_is_closed_forgets_how_often_it_was_found_down() -> None:
    breaker = Breaker(first_seconds=1.0)
    breaker.found_down("down", 0.0, 0.0, 0.5)
    breaker.waited(1.0)
    breaker.nothing_to_probe()

    assert not breaker.found_up(2.0)
    assert breaker.openings == 0
