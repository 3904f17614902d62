"""The whole at one moment, for one screen: snapshot.py has its parts, reading.py and ages.py read them from the
database and the broker, judging.py says what is not as it should be, queues.py puts a queue's parts together."""

from hopline.status.judging import Check, Tone, Trouble, checks, trouble_list, troubles
from hopline.status.queues import EndpointReport, Policy, QueueReport, queue_reports
from hopline.status.reading import processes, snapshot
from hopline.status.snapshot import (
    HeldQueue,
    Loss,
    OutboxStatus,
    PausedQueue,
    QueueStatus,
    Running,
    Status,
    UnknownType,
    WorkerStatus,
)

__all__ = [
    "Check",
    "EndpointReport",
    "HeldQueue",
    "Loss",
    "OutboxStatus",
    "PausedQueue",
    "Policy",
    "QueueReport",
    "QueueStatus",
    "Running",
    "Status",
    "Tone",
    "Trouble",
    "UnknownType",
    "WorkerStatus",
    "checks",
    "processes",
    "queue_reports",
    "snapshot",
    "trouble_list",
    "troubles",
]
