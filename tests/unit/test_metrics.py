from __future__ import annotations

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from hopline import metrics

WORKER = {
    "ready": False,
    "loop_lag_seconds": 0.25,
    "links": {
        "publish": {"ready": True, "trouble": "", "reconnects": 2, "blocked": False},
        "consume": {"ready": False, "trouble": "gone", "reconnects": 3, "rebuilds": 1, "blocked": True},
    },
    "unsent": 7,
    "busy": 4,
    "paused": {"emails": {"reason": "no mail server"}},
    "database": "no connection",
}


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def samples(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """Value by name and label values, of Hopline's own metrics."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name.startswith("hopline_")
    }


def test_a_published_batch_counts_each_message_by_its_outcome_and_one_duration() -> None:
    confirmed = value("hopline_published_total", outcome="confirmed")
    returned = value("hopline_published_total", outcome="returned")
    batches = value("hopline_publish_seconds_count")

    metrics.published(["confirmed", "returned", "confirmed"], 0.02)

    assert value("hopline_published_total", outcome="confirmed") == confirmed + 2
    assert value("hopline_published_total", outcome="returned") == returned + 1
    assert value("hopline_publish_seconds_count") == batches + 1


def test_a_run_of_a_handler_counts_its_messages_by_endpoint_and_outcome() -> None:
    metrics.handled("unit/thing", "done", 0.5, messages=20)
    metrics.handled("unit/thing", "retry", 0.25)

    assert value("hopline_handled_total", endpoint="unit/thing", outcome="done") == 20
    assert value("hopline_handled_total", endpoint="unit/thing", outcome="retry") == 1
    assert value("hopline_handler_seconds_sum", endpoint="unit/thing") == 0.75
    assert value("hopline_handler_seconds_count", endpoint="unit/thing") == 2


def test_what_a_process_says_of_itself_becomes_gauges_and_counters() -> None:
    found = samples(metrics.text(WORKER))

    assert found[("hopline_ready", ())] == 0
    assert found[("hopline_outbox_unsent", ())] == 7
    assert found[("hopline_deliveries_busy", ())] == 4
    assert found[("hopline_database_up", ())] == 0
    assert found[("hopline_event_loop_lag_seconds", ())] == 0.25
    assert found[("hopline_link_ready", ("publish",))] == 1
    assert found[("hopline_link_ready", ("consume",))] == 0
    assert found[("hopline_link_blocked", ("consume",))] == 1
    assert found[("hopline_link_reconnects_total", ("publish",))] == 2
    assert found[("hopline_link_rebuilds_total", ("consume",))] == 1
    assert found[("hopline_queue_paused", ("emails",))] == 1
    assert ("hopline_link_rebuilds_total", ("publish",)) not in found


def test_what_is_not_known_is_not_told() -> None:
    metrics.handled("unit/other", "done", 0.5)

    found = samples(metrics.text({"ready": False, "loop_lag_seconds": 3.0}))

    assert found[("hopline_ready", ())] == 0
    assert found[("hopline_handled_total", ("unit/other", "done"))] == 1
    assert not [name for name, _ in found if name.startswith(("hopline_link", "hopline_database", "hopline_outbox"))]
