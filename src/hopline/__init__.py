"""Hopline carries business events from an API to workers through RabbitMQ and loses none of them.

The layers, lowest first; a module imports lower layers only:

    0  errors clock settings failpoints metrics
    1  message outcome fingerprint
    2  codec retry topology breaker
    3  broker handlers rows schema migrations database
    4  amqp/ management outbox inbox attempts deadletters deadletter_queries scheduled auditlog idempotency suspects
    5  history/ pausing draining batching live properties heartbeat recovery retention window
    6  rabbitmq/
    7  relay worker timeline messages search audit repair
    8  status
    9  app service node
    10 health
    11 console
    12 cli

What a program needs is exported here; everything else is internal.
"""

from hopline.app import Hopline, Producer, Working
from hopline.audit import Audit, EndpointAudit
from hopline.clock import id_time, new_id, utcnow
from hopline.database import Database, Transaction, Write, now
from hopline.errors import (
    BrokerUnavailable,
    CommitUnknown,
    DatabaseContention,
    DatabaseError,
    DatabaseUnavailable,
    DependencyDown,
    HoplineError,
    MessageError,
    MessageTooLarge,
    OutboxFull,
    OutsideError,
    TopologyMismatch,
    Undecodable,
    UnknownType,
    UsageError,
)
from hopline.handlers import Handlers
from hopline.health import metrics_text
from hopline.idempotency import IdempotentRequest, Remembered, request_hash
from hopline.idempotency import claim as claim_idempotency
from hopline.message import Envelope, message
from hopline.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from hopline.node import Node, find_sbin, free_ports
from hopline.outcome import Dead, Defer, Done, Outcome, Retry
from hopline.retry import RetryPolicy
from hopline.rows import Dialect, Made, Rows, as_json, insert
from hopline.schema import UtcTime
from hopline.search import LookedUp, Lookup
from hopline.service import configure_logging, run, started, until_stopped
from hopline.settings import Settings
from hopline.timeline import ORIGIN_HEADER, Step

__all__ = [
    "METRICS_CONTENT_TYPE",
    "ORIGIN_HEADER",
    "Audit",
    "BrokerUnavailable",
    "CommitUnknown",
    "Database",
    "DatabaseContention",
    "DatabaseError",
    "DatabaseUnavailable",
    "Dead",
    "Defer",
    "DependencyDown",
    "Dialect",
    "Done",
    "EndpointAudit",
    "Envelope",
    "Handlers",
    "Hopline",
    "HoplineError",
    "IdempotentRequest",
    "LookedUp",
    "Lookup",
    "Made",
    "MessageError",
    "MessageTooLarge",
    "Node",
    "OutboxFull",
    "Outcome",
    "OutsideError",
    "Producer",
    "Remembered",
    "Retry",
    "RetryPolicy",
    "Rows",
    "Settings",
    "Step",
    "TopologyMismatch",
    "Transaction",
    "Undecodable",
    "UnknownType",
    "UsageError",
    "UtcTime",
    "Working",
    "Write",
    "as_json",
    "claim_idempotency",
    "configure_logging",
    "find_sbin",
    "free_ports",
    "id_time",
    "insert",
    "message",
    "metrics_text",
    "new_id",
    "now",
    "request_hash",
    "run",
    "started",
    "until_stopped",
    "utcnow",
]
