"""The whole at one moment, for one screen: snapshot.py has its parts and judges them, reading.py reads them."""

from hopline.status.reading import snapshot
from hopline.status.snapshot import (
    Loss,
    OutboxStatus,
    PausedQueue,
    QueueStatus,
    Status,
    UnknownType,
    WorkerStatus,
    troubles,
)

__all__ = [
    "Loss",
    "OutboxStatus",
    "PausedQueue",
    "QueueStatus",
    "Status",
    "UnknownType",
    "WorkerStatus",
    "snapshot",
    "troubles",
]
