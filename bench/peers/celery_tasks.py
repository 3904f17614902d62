"""No-op messages with Celery: confirmed, quorum queue, acknowledged late, no results; one process, the solo pool."""

import os

from celery import Celery

from bench.enqueueing import QUEUE, enqueue_blocking
from bench.tally import FILE, Tally

app = Celery("noop", broker=os.environ["BENCH_BROKER_URL"])
app.conf.update(
    task_default_queue=QUEUE,
    task_default_queue_type="quorum",
    worker_detect_quorum_queues=True,
    broker_transport_options={"confirm_publish": True},
    broker_pool_limit=10,
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=500,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)
tally = Tally.from_environment() if FILE in os.environ else None


@app.task(name="noop")
def noop(sent_at: float, padding: str) -> None:  # noqa: ARG001 - it fills the body
    """Counts."""
    assert tally is not None
    tally.hit(sent_at)


if __name__ == "__main__":
    from bench.peers.celery_tasks import noop as known

    enqueue_blocking(known.delay)
