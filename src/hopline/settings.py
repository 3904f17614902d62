"""What an operator sets: every value has a sane default and one environment variable, HOPLINE_<NAME>.

The bounds of the engine (windows, leases, group sizes) stand here too, each with its unit and its reason,
so that there is one place to look when something is "too much" or "too slow". A value's range stands in its type:
nothing that can be set breaks a promise. environment.py reads and checks.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from hopline.environment import EnvironmentSettings, Port, Url
from hopline.errors import UsageError
from hopline.redaction import redacted

PREFIX = "HOPLINE_"
AMQP_PREFETCH_MAX = 65_535
"""AMQP's prefetch count has 16 bits (0-9-1, basic.qos)."""


class Settings(EnvironmentSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one process; `Settings.from_environment()` reads them."""

    PREFIX: ClassVar[str] = PREFIX
    ALSO_KNOWN: ClassVar[frozenset[str]] = frozenset(
        {
            "HOPLINE_APP",  # the `hopline` command
            "HOPLINE_FAILPOINTS",
            "HOPLINE_RABBITMQ_SBIN",  # node.py, ./dev
            "HOPLINE_CHROMIUM",  # the tests and ./dev, here and below
            "HOPLINE_DEBIAN_MIRROR",
            "HOPLINE_FAULT_BASKETS",
            "HOPLINE_PYTHON",
            "HOPLINE_SCREENSHOTS",
        }
    )
    OTHERS: ClassVar[tuple[str, ...]] = ("HOPLINE_CONSOLE_",)

    database_url: Url = "sqlite+aiosqlite:///hopline.db"
    """SQLAlchemy URL: sqlite+aiosqlite:///FILE or postgresql+asyncpg://user:password@host/name."""
    broker_url: Url = "amqp://guest:guest@127.0.0.1:5672/%2F"
    """AMQP URL; amqps:// for TLS."""
    management_url: Url = ""
    """RabbitMQ's management API, http://user:password@host:15672; the audit and `hopline topology` read there."""

    outbox_limit: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] = 100_000
    """Messages that may wait unsent before a send is refused with OutboxFull (the API's 503)."""
    relay_window: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 2048
    """Messages that one process holds in memory between commit and confirm; more wait in the database."""
    relay_window_bytes: Annotated[int, msgspec.Meta(ge=1, le=64 << 30)] = 16 << 20
    """Bytes of their bodies, likewise."""
    lease_seconds: Annotated[float, msgspec.Meta(ge=1, le=3_600)] = 30.0
    """How long a process owns a row of the outbox before another may send it.

    In less than a second a busy process could not send what it owns; after an hour what a dead one owned is very late.
    """
    confirm_timeout_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=1_800)] = 10.0
    """Deadline of write + confirm of one publish; well below the lease, so that a lease never ends unseen."""
    probe_seconds: Annotated[float, msgspec.Meta(ge=0.01, le=60)] = 0.5
    """How often each process looks for due rows, jittered; one read-only query. It has to rest between them."""
    returns_before_parking: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 5
    """Times that RabbitMQ may return a message as unroutable before it is parked."""
    message_limit_bytes: Annotated[int, msgspec.Meta(ge=1_024, le=16 << 20)] = 1 << 20
    """Largest encoded body, checked before the outbox. RabbitMQ 4 closes the channel above 16 MiB."""

    prefetch: Annotated[int, msgspec.Meta(ge=1, le=AMQP_PREFETCH_MAX)] = 500
    """Deliveries that one worker holds of each queue; bounds its memory. AMQP has 16 bits for it."""
    effect_concurrency: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 32
    """Effect handlers that run at once, per handler and worker process."""
    group_members: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 250
    """Most members of one group commit (64 on SQLite, whose one writer must not be held for long)."""
    inbox_retention_days: Annotated[float, msgspec.Meta(ge=0.05, le=3_650)] = 14.0
    """How long the inbox remembers what is done; an older delivery is parked, not run. What is older is purged.

    At least an hour: what the inbox has forgotten could be done twice by whoever sends it again.
    """
    purge_seconds: Annotated[float, msgspec.Meta(ge=1, le=7 * 86_400)] = 3600.0
    """About how often each process purges what is older, in small batches."""
    consumer_timeout_seconds: Annotated[float, msgspec.Meta(ge=1, le=365 * 86_400)] = 1800.0
    """RabbitMQ's consumer_timeout (30 minutes unless the operator changed it); deadlines are checked against it."""
    watchdog_seconds: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 30.0
    """A queue with messages ready that gives an idle consumer none for so long has it connect again."""
    pause_first_seconds: Annotated[float, msgspec.Meta(ge=0.01, le=3_600)] = 1.0
    """How long a queue pauses when its handler finds that what it needs is down; doubled each time in a row."""
    pause_cap_seconds: Annotated[float, msgspec.Meta(ge=0.01, le=86_400)] = 60.0
    """The longest such pause."""
    heartbeat_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 2.0
    """How often each process writes that it is alive; after four times as long without it counts as dead."""
    overrun_seconds: Annotated[float, msgspec.Meta(ge=0.5, le=86_400)] = 15.0
    """How long a handler may go on after its deadline before its process is ended, because nothing else stops it.

    A day of it is for a debugger, at whose breakpoint the event loop stands still.
    """
    unknown_type_seconds: Annotated[float, msgspec.Meta(ge=0, le=7 * 86_400)] = 3600.0
    """How long messages of a type or version that the worker does not know are deferred before they are parked."""
    drain_seconds: Annotated[float, msgspec.Meta(ge=0, le=3_600)] = 20.0
    """How long a stopping process may take to finish what it has begun."""
    health_port: Port = 0
    """Where a worker or relay answers /healthz, /readyz and /metrics over HTTP; 0 is nowhere."""
    health_host: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] = "127.0.0.1"
    """The address of that port; no login, so one that only operators reach."""
    log_json: bool = False
    """Log lines as JSON objects instead of coloured text."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """The least important lines that are logged."""

    def check(self) -> None:
        """Refuses values that do not fit each other, and would break a promise together."""
        if self.confirm_timeout_seconds * 2 > self.lease_seconds:
            raise UsageError(
                f"HOPLINE_CONFIRM_TIMEOUT_SECONDS={self.confirm_timeout_seconds:g} must be at most half of "
                f"HOPLINE_LEASE_SECONDS={self.lease_seconds:g}, or a message could be sent by two processes at once"
            )
        if self.pause_first_seconds > self.pause_cap_seconds:
            raise UsageError(
                f"HOPLINE_PAUSE_FIRST_SECONDS={self.pause_first_seconds:g} must be at most "
                f"HOPLINE_PAUSE_CAP_SECONDS={self.pause_cap_seconds:g}, the longest pause"
            )

    def places(self) -> dict[str, str]:
        """The database and the broker, without passwords: for a role's first line of its log."""
        return {"database": redacted(self.database_url), "broker": redacted(self.broker_url)}
