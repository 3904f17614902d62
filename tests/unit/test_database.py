"""What a driver's error means, and which delays can be stored: for every value, without a database."""

from __future__ import annotations

import math
import socket
import ssl
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import exc

from hopline.database import _not_connected, checked_send_delay, translate
from hopline.errors import (
    DatabaseContention,
    DatabaseError,
    DatabaseUnavailable,
    HoplineError,
    TransactionAborted,
    UsageError,
)
from hopline.outcome import LONGEST_DELAY_SECONDS, checked_delay


class DriverError(Exception):
    """As SQLAlchemy's adapter of asyncpg hands it on."""

    def __init__(self, sqlstate: str = "") -> None:
        super().__init__(f"refused with {sqlstate}")
        self.sqlstate = sqlstate


def wrapped(original: BaseException, *, lost: bool = False) -> exc.DBAPIError:
    return exc.DBAPIError("SELECT 1", {}, original, connection_invalidated=lost)


@pytest.mark.parametrize(
    ("states", "kind"),
    [
        (["40001", "40P01", "55P03"], DatabaseContention),
        (["57014", "25P03", "25P04", "25P02", "53400"], TransactionAborted),
        (["08003", "08006", "57P01", "57P02", "57P03", "57P05"], DatabaseUnavailable),
        (["28000", "28P01", "3D000", "25006", "53100", "53200", "53300"], DatabaseUnavailable),
    ],
)
def test_the_states_of_postgres(states: list[str], kind: type[DatabaseError]) -> None:
    for state in states:
        assert type(translate(wrapped(DriverError(state)))) is kind, state


@pytest.mark.parametrize("state", ["23505", "42P01", "22P02", "55000", "42501", ""])
def test_a_statements_own_fault_stays_what_it_is(state: str) -> None:
    error = wrapped(DriverError(state))

    assert translate(error) is error


def test_a_wrong_parameter_is_the_statements_own_fault_and_no_lost_connection() -> None:
    error = exc.InterfaceError("INSERT", {}, DriverError())

    assert translate(error) is error
    assert isinstance(translate(wrapped(DriverError(), lost=True)), DatabaseUnavailable)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InvalidPasswordError("password authentication failed"),
        asyncpg.InvalidCatalogNameError("there is no such database"),
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.TooManyConnectionsError("sorry, too many clients already"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.ObjectNotInPrerequisiteStateError("database is not currently accepting connections"),
        asyncpg.InternalClientError("unexpected"),
        asyncpg.InterfaceError("cannot"),
        asyncpg.ClientConfigurationError("root certificate file does not exist"),
        asyncpg.ProtocolViolationError("what?"),
        socket.gaierror(-2, "Name or service not known"),
        ssl.SSLCertVerificationError("self-signed certificate"),
        UnicodeError("label too long"),
        OverflowError("port must be 0-65535."),
        TypeError("connect() got an unexpected keyword argument 'x'"),
        ConnectionRefusedError("refused"),
        TimeoutError(),
        exc.TimeoutError("QueuePool limit"),
        wrapped(DriverError("28P01")),
        wrapped(DriverError("55000")),
        exc.PendingRollbackError("rolled back"),
    ],
)
def test_whatever_connecting_raises_is_an_outage_in_one_sentence(error: Exception) -> None:
    cause = _not_connected(error)

    assert isinstance(cause, DatabaseUnavailable)
    assert str(cause).startswith(("no connection to the database", "the database cannot be used now"))


def exceptions_of(module: Any) -> list[type[Exception]]:
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return sorted(set(kinds), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", exceptions_of(asyncpg.exceptions))
def test_connecting_gives_one_of_ours_for_each_class_of_the_driver(kind: type[Exception]) -> None:
    assert isinstance(_not_connected(kind("no")), DatabaseUnavailable | DatabaseContention)


@pytest.mark.parametrize("error", [TimeoutError(), exc.PendingRollbackError("rolled back")])
def test_what_the_drivers_limit_ends_is_an_aborted_transaction(error: Exception) -> None:
    assert isinstance(translate(error), TransactionAborted)


DATABASE_KINDS = [kind for kind in exceptions_of(sa.exc) if issubclass(kind, exc.DBAPIError)]


@pytest.mark.parametrize("kind", [*DATABASE_KINDS, *exceptions_of(asyncpg.exceptions)])
def test_translating_gives_one_of_ours_or_the_error_itself(kind: type[Exception]) -> None:
    arguments: tuple[Any, ...] = ("SELECT 1", {}, DriverError()) if issubclass(kind, exc.DBAPIError) else ("no",)
    error = kind(*arguments)

    assert isinstance(translate(error), HoplineError) or translate(error) is error


@given(st.floats(0, LONGEST_DELAY_SECONDS) | st.integers(0, int(LONGEST_DELAY_SECONDS)))
def test_a_delay_that_can_be_stored_is_taken(delay: float) -> None:
    assert checked_delay("delay_seconds", delay) == delay
    assert math.copysign(1, checked_delay("delay_seconds", -0.0)) == 1


@given(
    st.floats(max_value=0, exclude_max=True)
    | st.floats(min_value=LONGEST_DELAY_SECONDS, exclude_min=True)
    | st.integers(max_value=-1)
    | st.integers(min_value=int(LONGEST_DELAY_SECONDS) + 1)
    | st.sampled_from([math.nan, math.inf, -math.inf, 1e18, 3e11, -5, 10**5_000, -(10**5_000)])
    | st.sampled_from(["60", None, True, False, Decimal(60), 1j, [60], b"60", object()])
    | st.text()
)
def test_any_other_delay_is_refused_with_what_is_possible(delay: object) -> None:
    with pytest.raises(UsageError, match="delay_seconds is a number of seconds from 0 to 3"):
        checked_delay("delay_seconds", delay)


def test_a_delay_that_the_inbox_forgets_names_the_setting() -> None:
    with pytest.raises(UsageError, match="raise HOPLINE_INBOX_RETENTION_DAYS to 23"):
        checked_send_delay(20 * 86_400, 14 * 86_400 * 0.9)
