from __future__ import annotations

from typing import Any

import pytest

from hopline.console import ConsoleSettings
from hopline.console.config import is_loopback
from hopline.errors import UsageError


def test_every_setting_has_a_variable() -> None:
    given = {
        "HOPLINE_CONSOLE_PORT": "9000",
        "HOPLINE_CONSOLE_OPERATOR_PASSWORD": "12345678",
        "HOPLINE_CONSOLE_VIEWER_REVEALS": "false",
        "HOPLINE_CONSOLE_SESSION_HOURS": "0.5",
        "HOPLINE_OTHER": "x",
    }

    settings = ConsoleSettings.from_environment(given)

    assert (settings.host, settings.port, settings.session_hours) == ("127.0.0.1", 9_000, 0.5)
    assert settings.has_password
    assert not settings.viewer_reveals
    assert not ConsoleSettings.from_environment({}).has_password


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"operator_password": "short"}, "OPERATOR_PASSWORD has at least 8"),
        ({"viewer_password": "short"}, "VIEWER_PASSWORD has at least 8"),
        ({"operator_password": "the same!", "viewer_password": "the same!"}, "must differ"),
        ({"secret": "x" * 31}, "SECRET has at least 32"),
        ({"path": "console"}, "no path"),
        ({"path": "/console/"}, "no path"),
        ({"path": "//evil.test"}, "no path"),
        ({"port": 65_536}, "no port"),
        ({"port": -1}, "no port"),
        ({"session_hours": 0}, "SESSION_HOURS"),
        ({"sample_seconds": -1}, "SAMPLE_SECONDS"),
        ({"streams": 0}, "STREAMS"),
    ],
)
def test_what_would_be_unsafe_or_cannot_work_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ConsoleSettings(**changes).check()


def test_a_variable_that_does_not_parse_is_named() -> None:
    with pytest.raises(UsageError, match="port"):
        ConsoleSettings.from_environment({"HOPLINE_CONSOLE_PORT": "http"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_where_others_reach_it_it_needs_a_password(host: str) -> None:
    with pytest.raises(UsageError, match="has no password"):
        ConsoleSettings(host=host).check_listening()
    ConsoleSettings(host=host, viewer_password="viewers only").check_listening()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_on_this_machine_it_needs_none(host: str) -> None:
    assert is_loopback(host)
    ConsoleSettings(host=host).check_listening()


def test_the_personal_fields_are_names_with_commas_between_them() -> None:
    assert ConsoleSettings(personal_fields=" email, phone ,,").personal == {"email", "phone"}
