from __future__ import annotations

from typing import Any

import pytest

from hopline.health import report_of

UP = {"ready": True, "trouble": "", "reconnects": 0}
DOWN = {"ready": False, "trouble": "cannot connect to RabbitMQ: refused", "reconnects": 4}
ALARMED = {"ready": False, "trouble": "RabbitMQ blocks publishers: low on disk", "reconnects": 0}


def test_ready_when_every_link_is_and_the_database_answers() -> None:
    state = {"links": {"publish": UP, "consume": UP}, "unsent": 3, "database": "ok", "paused": {"emails": {}}}

    report = report_of(state, loop_lag_seconds=0.1)

    assert (report["ready"], report["why"]) == (True, [])
    assert (report["unsent"], report["paused"], report["loop_lag_seconds"]) == (3, {"emails": {}}, 0.1)


@pytest.mark.parametrize(
    ("state", "more", "why"),
    [
        ({"links": {"publish": UP, "consume": DOWN}}, {}, ["consume: cannot connect to RabbitMQ: refused"]),
        ({"links": {"publish": {**DOWN, "trouble": ""}}}, {}, ["publish: closed"]),
        ({"links": {"publish": UP}}, {"database": "no answer"}, ["database: no answer"]),
        ({"links": {"publish": UP}, "database": "refused"}, {}, ["database: refused"]),
        ({"links": {"publish": UP}}, {"unready": "it is draining"}, ["it is draining"]),
        (
            {"links": {"publish": ALARMED}, "database": "refused"},
            {"unready": "it is starting"},
            ["it is starting", "publish: RabbitMQ blocks publishers: low on disk", "database: refused"],
        ),
    ],
)
def test_each_reason_is_told(state: dict[str, Any], more: dict[str, str], why: list[str]) -> None:
    report = report_of(state, loop_lag_seconds=0, **more)

    assert (report["ready"], report["why"]) == (False, why)


def test_an_alarm_is_told_apart_from_a_lost_connection() -> None:
    report = report_of({"links": {"publish": ALARMED, "consume": DOWN}}, loop_lag_seconds=0)

    assert report["links"]["publish"]["blocked"]
    assert not report["links"]["consume"]["blocked"]
