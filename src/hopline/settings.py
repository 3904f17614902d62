"""What an operator sets: every value has a sane default and one environment variable, HOPLINE_<NAME>.

The bounds of the engine (windows, leases, group sizes) stand here too, each with its unit and its reason,
so that there is one place to look when something is "too much" or "too slow".
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from hopline.errors import UsageError

PREFIX = "HOPLINE_"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one process; `Settings.from_environment()` reads them."""

    database_url: str = "sqlite+aiosqlite:///hopline.db"
    """SQLAlchemy URL: sqlite+aiosqlite:///FILE or postgresql+asyncpg://user:password@host/name."""
    broker_url: str = "amqp://guest:guest@127.0.0.1:5672/%2F"
    """AMQP URL; amqps:// for TLS."""
    management_url: str = ""
    """RabbitMQ's management API, http://user:password@host:15672; the audit and `hopline topology` read there."""

    outbox_limit: int = 100_000
    """Messages that may wait unsent before a send is refused with OutboxFull (the API's 503)."""
    relay_window: int = 2048
    """Messages that one process holds in memory between commit and confirm; more wait in the database."""
    relay_window_bytes: int = 16 << 20
    """Bytes of their bodies, likewise."""
    lease_seconds: float = 30.0
    """How long a process owns a row of the outbox before another may send it."""
    confirm_timeout_seconds: float = 10.0
    """Deadline of write + confirm of one publish; well below the lease, so that a lease never ends unseen."""
    probe_seconds: float = 0.5
    """How often each process looks for due rows, jittered; one read-only query."""
    returns_before_parking: int = 5
    """Times that RabbitMQ may return a message as unroutable before it is parked."""
    message_limit_bytes: int = 1 << 20
    """Largest encoded body, checked before the outbox (RabbitMQ would close the channel)."""

    prefetch: int = 500
    """Deliveries that one worker holds of each queue; bounds its memory."""
    effect_concurrency: int = 32
    """Effect handlers that run at once, per handler and worker process."""
    group_members: int = 250
    """Most members of one group commit (64 on SQLite, whose one writer must not be held for long)."""
    inbox_retention_days: float = 14.0
    """How long the inbox remembers what is done; an older delivery is parked, not run. What is older is purged."""
    purge_seconds: float = 3600.0
    """About how often each process purges what is older, in small batches."""
    consumer_timeout_seconds: float = 1800.0
    """RabbitMQ's consumer_timeout (30 minutes unless the operator changed it); deadlines are checked against it."""
    watchdog_seconds: float = 30.0
    """A queue with messages ready that gives an idle consumer none for so long has it connect again."""
    pause_first_seconds: float = 1.0
    """How long a queue pauses when its handler finds that what it needs is down; doubled each time in a row."""
    pause_cap_seconds: float = 60.0
    """The longest such pause."""
    heartbeat_seconds: float = 2.0
    """How often each process writes that it is alive; after four times as long without it counts as dead."""
    unknown_type_seconds: float = 3600.0
    """How long messages of a type or version that the worker does not know are deferred before they are parked."""
    drain_seconds: float = 20.0
    """How long a stopping process may take to finish what it has begun."""
    health_port: int = 0
    """Where a worker or relay answers /healthz, /readyz and /metrics over HTTP; 0 is nowhere."""
    health_host: str = "127.0.0.1"
    """The address of that port; no login, so one that only operators reach."""
    log_json: bool = False
    """Log lines as JSON objects instead of coloured text."""
    log_level: str = "info"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Reads HOPLINE_<NAME> for every field; a value that does not parse is a UsageError that names it."""
        environment = os.environ if environment is None else environment
        given = {
            name: environment[PREFIX + name.upper()]
            for name in cls.__struct_fields__
            if PREFIX + name.upper() in environment
        }
        try:
            settings = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            raise UsageError(f"a {PREFIX}* environment variable does not parse: {error}") from None
        settings.check()
        return settings

    def check(self) -> None:
        """Refuses values that would break a promise."""
        if self.confirm_timeout_seconds * 2 > self.lease_seconds:
            raise UsageError(
                f"HOPLINE_CONFIRM_TIMEOUT_SECONDS={self.confirm_timeout_seconds:g} must be at most half of "
                f"HOPLINE_LEASE_SECONDS={self.lease_seconds:g}, or a message could be sent by two processes at once"
            )
        for name in (
            "outbox_limit",
            "relay_window",
            "relay_window_bytes",
            "prefetch",
            "effect_concurrency",
            "group_members",
            "watchdog_seconds",
        ):
            if getattr(self, name) < 1:
                raise UsageError(f"{PREFIX}{name.upper()} must be at least 1")
        if not 0 <= self.health_port <= 65_535:
            raise UsageError(f"{PREFIX}HEALTH_PORT={self.health_port} is no port; 0 is none at all")
        for name in ("pause_first_seconds", "pause_cap_seconds", "heartbeat_seconds", "purge_seconds"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{PREFIX}{name.upper()} must be above 0")
