"""Every error that Hopline raises, in one tree with three branches: whose fault it is decides the reaction.

    HoplineError
    ├── UsageError                 our mistake: fix the code or the configuration; retrying is pointless
    │   ├── TopologyMismatch       a queue or exchange exists on the broker with other arguments
    │   └── EndlessHandler         a handler went on long after its deadline: only the end of its process stops it
    ├── MessageError               their bad message: park it, it can never succeed as it is
    │   ├── Undecodable            the bytes are not what the type says
    │   ├── UnknownType            no such message type or version in this program
    │   └── MessageTooLarge        larger than the limit that is checked before the outbox
    └── OutsideError               the outside world's failure: wait and try again
        ├── BrokerUnavailable      no connection to RabbitMQ
        ├── OutboxFull             too many unsent messages wait for RabbitMQ
        ├── DependencyDown         raised by a handler: what it needs is down, so its queue pauses
        └── DatabaseError
            ├── DatabaseUnavailable    no connection to the database; nothing was committed
            ├── DatabaseContention     deadlock, lock timeout, serialisation failure; rolled back
            ├── TransactionAborted     a limit, or a statement that failed before, ended it; rolled back
            └── CommitUnknown          the connection died during COMMIT: it may or may not have happened

An error's text says what happened and what to do next; its fields carry what a program needs.
"""

from __future__ import annotations

from collections.abc import Sequence


class HoplineError(Exception):
    """The base of all errors of Hopline."""


class UsageError(HoplineError):
    """Our mistake: the code or the configuration has to change."""


class TopologyMismatch(UsageError):
    """A queue or exchange exists with other arguments than this program declares (AMQP 406)."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(
            f"{name!r} exists on the broker with other arguments than this program declares: {detail}. "
            f"Nothing was changed. Either declare it as it is, or drain it, delete it by hand "
            f"(`rabbitmqctl delete_queue {name}`) and start again."
        )
        self.name = name


class EndlessHandler(UsageError):
    """A handler went on long after its deadline, and nothing stops it but the end of its process."""

    def __init__(self, endpoint: str, message_ids: Sequence[str]) -> None:
        super().__init__(
            f"the handler of {endpoint} has not ended long after its deadline, for {', '.join(message_ids[:5])}: its "
            "stack is in the log above; give everything that it waits for a timeout"
        )
        self.endpoint = endpoint
        self.message_ids = tuple(message_ids)


class MessageError(HoplineError):
    """A message that can never succeed as it is."""

    reason = "bad-message"


class Undecodable(MessageError):
    """The body does not decode as its type says."""

    reason = "undecodable"


class UnknownType(MessageError):
    """This program has no message type of that name and version."""

    reason = "unknown-type"

    def __init__(self, type_name: str, version: int) -> None:
        super().__init__(
            f"this program knows no message type {type_name!r} version {version}; "
            f"declare it with @message({type_name!r}, version={version}) or add a handler for it"
        )
        self.type_name = type_name
        self.version = version


class MessageTooLarge(MessageError):
    """The encoded body is over the limit that is checked before the outbox."""

    reason = "too-large"

    def __init__(self, type_name: str, body_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the message {type_name!r} has {body_bytes} bytes, over the limit of {limit_bytes}; "
            "store the large part elsewhere and send a reference"
        )
        self.body_bytes = body_bytes
        self.limit_bytes = limit_bytes


class OutsideError(HoplineError):
    """A dependency failed; the same call may succeed later."""


class BrokerUnavailable(OutsideError):
    """There is no usable connection to RabbitMQ."""


class OutboxFull(OutsideError):
    """The outbox holds as many unsent messages as it may."""

    def __init__(self, unsent: int, limit: int, retry_after_seconds: int) -> None:
        super().__init__(
            f"{unsent} messages wait for RabbitMQ, the limit is {limit}; "
            f"nothing was stored, try again in {retry_after_seconds} s"
        )
        self.unsent = unsent
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds


class DependencyDown(OutsideError):
    """What a handler needs (a mail server, a partner's API) is down: raise it, and the handler's queue pauses."""


class DatabaseError(OutsideError):
    """The database could not do what was asked."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached, entered or written: nothing was stored."""

    def __init__(self, detail: str, *, exhausted: bool = False) -> None:
        super().__init__(detail)
        self.exhausted = exhausted
        """Whether it lacks disk, memory or connections: this tells nothing about who used them up."""


class DatabaseContention(DatabaseError):
    """Deadlock, lock timeout or serialisation failure: rolled back, the same work may succeed now."""


class TransactionAborted(DatabaseError):
    """A limit of time, or a statement in it that failed before, ended the transaction: rolled back.

    The work itself is the cause if the database works otherwise, so a handler that raises it has failed an attempt.
    """


class CommitUnknown(DatabaseError):
    """The connection died during COMMIT: read back by id to learn whether it happened."""


TEXT_CHARACTERS = 2_000
"""Maximum length of the text that `text_of` keeps of an exception."""


def text_of(error: BaseException) -> str:
    """Returns the text of any exception, cut to TEXT_CHARACTERS.

    Never raises: an exception whose own `__str__` fails is described by its class.
    """
    try:
        return str(error)[:TEXT_CHARACTERS]
    except BaseException:  # noqa: BLE001 - code of the exception's author: whatever it raises, there is no text
        return f"{type(error).__name__}, whose text cannot be made"
