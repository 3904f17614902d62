from __future__ import annotations

import getpass
import socket
from datetime import UTC, datetime

import pytest

from hopline.cli.acting import check_choice, confirmed, parse_time, who_acts
from hopline.errors import UsageError

NOW = datetime(2026, 1, 31, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", "2026-01-31T09:58:30+00:00"),
        ("30m", "2026-01-31T09:30:00+00:00"),
        ("2h", "2026-01-31T08:00:00+00:00"),
        ("7d", "2026-01-24T10:00:00+00:00"),
        ("2026-01-01", "2026-01-01T00:00:00+00:00"),
        ("2026-01-01T10:00", "2026-01-01T10:00:00+00:00"),
        ("2026-01-01T10:00+02:00", "2026-01-01T08:00:00+00:00"),
        ("2026-01-01T10:00:00Z", "2026-01-01T10:00:00+00:00"),
    ],
)
def test_a_time_is_given_as_an_age_or_in_iso_8601(text: str, expected: str) -> None:
    time = parse_time(text, NOW)

    assert time is not None
    assert time.isoformat() == expected


def test_no_time_is_none() -> None:
    assert parse_time(None, NOW) is None


@pytest.mark.parametrize("text", ["", "yesterday", "2 h", "-2h", "2w", "h", "2026-13-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no time"):
        parse_time(text, NOW)


@pytest.mark.parametrize(
    ("ids", "filtered", "everything"), [(["a"], False, False), ([], True, False), ([], False, True)]
)
def test_one_way_of_choosing_is_enough(ids: list[str], *, filtered: bool, everything: bool) -> None:
    check_choice(ids, filtered=filtered, everything=everything)


@pytest.mark.parametrize(
    ("ids", "filtered", "everything"), [([], False, False), (["a"], True, False), (["a"], False, True)]
)
def test_nothing_is_chosen_by_accident(ids: list[str], *, filtered: bool, everything: bool) -> None:
    with pytest.raises(UsageError):
        check_choice(ids, filtered=filtered, everything=everything)


def test_without_a_terminal_only_yes_is_a_yes(capsys: pytest.CaptureFixture[str]) -> None:
    assert confirmed("Replay 2 letters?", yes=True)
    assert not confirmed("Replay 2 letters?", yes=False)

    assert "say --yes" in capsys.readouterr().err


def test_who_acts_is_the_login_at_the_host_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "host")
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")

    assert who_acts("bob") == "bob"
    assert who_acts("") == "ann@host"


def test_a_user_without_a_name_acts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nameless)

    assert who_acts("").startswith("unknown@")
