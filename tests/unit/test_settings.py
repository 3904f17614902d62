from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from hopline.console import ConsoleSettings
from hopline.environment import EnvironmentSettings, _fields, _number
from hopline.errors import UsageError
from hopline.settings import Settings
from orders.settings import OrdersSettings

ROOT = Path(__file__).parents[2]
FIELDS = [(settings, field) for settings in (Settings, ConsoleSettings, OrdersSettings) for field in _fields(settings)]
MARK = "S3CR3T"
"""Part of every password here; a text that is drawn has no such thing by chance."""


def test_values_come_from_the_environment_and_are_converted() -> None:
    settings = Settings.from_environment({"HOPLINE_PREFETCH": "7", "HOPLINE_LOG_JSON": "true", "OTHER": "x"})

    assert settings.prefetch == 7
    assert settings.log_json is True
    assert settings.lease_seconds == Settings().lease_seconds


def test_a_value_that_does_not_parse_is_named() -> None:
    with pytest.raises(UsageError, match="prefetch"):
        Settings.from_environment({"HOPLINE_PREFETCH": "many"})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HOPLINE_LEASE_SECONDS", "15", "half of"),
        ("HOPLINE_RELAY_WINDOW", "0", "at least 1"),
        ("HOPLINE_HEALTH_PORT", "65536", "is no port"),
    ],
)
def test_values_that_would_break_a_promise_are_refused(name: str, value: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Settings.from_environment({name: value})


def test_every_setting_is_in_the_reference_with_its_default() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}

    for name, value in zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True):
        default = (
            f"{value:g}" if isinstance(value, float) else str(value).lower() if value in (True, False) else str(value)
        )
        assert default in rows[name], name
    for field in _fields(Settings):
        if field.type in (int, float):
            assert f"{_number(field.meta.ge or 0)} to {_number(field.meta.le or 0)}" in rows[field.name], field.name


NUMBERS = [
    "0",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e300",
    "-0",
    "70000",
    "1e-9",
    "9" * 400,
    "1" * 5000,
    "true",
    "",
    " 5",
    "0x10",
]


def in_range(settings: EnvironmentSettings) -> bool:
    return all(field.admits(getattr(settings, field.name)) for field in _fields(type(settings)))


@pytest.mark.parametrize(("settings", "field"), FIELDS, ids=lambda one: getattr(one, "variable", ""))
@examples(max_examples=40)
@given(data=st.data())
def test_any_text_gives_settings_in_their_ranges_or_an_error_that_names_the_variable(
    settings: type[EnvironmentSettings], field: Any, data: st.DataObject
) -> None:
    texts = st.text() | st.sampled_from(NUMBERS) | st.floats().map(str) | st.integers().map(str)
    password = data.draw(texts) + MARK + data.draw(texts)
    text = (
        data.draw(texts | st.just(f"amqp://u:{password}@host") | st.just(f"x:{password}@"))
        if field.is_open
        else (data.draw(st.sampled_from([f"amqp://u:{password}@host/x", f"smtp:u:{password}@h", password])))
    )

    found, error = outcome(lambda: settings.from_environment({field.variable: text}))

    if found is None:
        assert field.variable in error
    else:
        assert in_range(found)
    assert field.is_open or MARK not in error + repr(found) + pretty_repr(found)


def outcome(make: Callable[[], EnvironmentSettings]) -> tuple[EnvironmentSettings | None, str]:
    try:
        return make(), ""
    except UsageError as error:
        return None, str(error)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(10**5000)


@pytest.mark.parametrize(("settings", "field"), FIELDS, ids=lambda one: getattr(one, "variable", ""))
@examples(max_examples=40)
@given(value=VALUES)
def test_a_program_that_passes_values_gets_the_same_checks(
    settings: type[EnvironmentSettings], field: Any, value: object
) -> None:
    found, error = outcome(lambda: settings(**{field.name: value}))

    if found is None:
        assert field.variable in error
    else:
        assert in_range(found)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("INBOX_RETENTION_DAYS", ["0", "-1", "nan", "inf", "1e300"]),
        ("LEASE_SECONDS", ["0", "nan"]),
        ("PROBE_SECONDS", ["0", "-1", "nan"]),
        ("PREFETCH", ["0", "70000"]),
        ("LOG_LEVEL", ["loud", ""]),
        ("DRAIN_SECONDS", ["nan", "-1"]),
        ("HEALTH_PORT", ["-1", "70000"]),
    ],
)
def test_what_would_break_a_promise_cannot_be_set(name: str, values: list[str]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=f"HOPLINE_{name}={re.escape(value)}.*{name.lower()} is "):
            Settings.from_environment({f"HOPLINE_{name}": value})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(UsageError) as told:
        Settings.from_environment({"HOPLINE_PREFETCH": "x", "HOPLINE_LEASE_SECONDS": "0", "HOPLINE_PREFETSH": "1"})

    assert "HOPLINE_PREFETCH=x" in str(told.value)
    assert "HOPLINE_LEASE_SECONDS=0" in str(told.value)
    assert "HOPLINE_PREFETSH is no setting: did you mean HOPLINE_PREFETCH?" in str(told.value)


def test_a_changed_copy_is_checked_too() -> None:
    with pytest.raises(UsageError, match="PREFETCH"):
        msgspec.structs.replace(Settings(), prefetch=0)


@pytest.mark.parametrize("name", ["HOPLINE_DATABSE_URL", "HOPLINE_database_url", "HOPLINE_DATABASE_URI"])
def test_a_misspelt_name_is_refused_and_its_value_is_not_shown(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is no setting: did you mean HOPLINE_DATABASE_URL") as told:
        Settings.from_environment({name: f"postgresql+asyncpg://u:{MARK}@host/shop"})

    assert MARK not in str(told.value)


def test_each_settings_refuse_unknown_names_of_their_own_prefix() -> None:
    with pytest.raises(UsageError, match="did you mean HOPLINE_CONSOLE_OPERATOR_PASSWORD"):
        ConsoleSettings.from_environment({"HOPLINE_CONSOLE_OPERATOR_PASSWRD": "x"})
    with pytest.raises(UsageError, match="did you mean ORDERS_SMTP_URL"):
        OrdersSettings.from_environment({"ORDERS_SMPT_URL": "x"})
    Settings.from_environment({"HOPLINE_CONSOLE_ANYTHING": "the console looks at it", "ORDERS_ANYTHING": "x"})


@pytest.mark.parametrize("prefix", ["HOPLINE", "HOPLINE_CONSOLE", "ORDERS"])
def test_what_kubernetes_sets_for_a_service_of_that_name_is_left_alone(prefix: str) -> None:
    link = {
        f"{prefix}_SERVICE_HOST": "10.0.0.1",
        f"{prefix}_SERVICE_PORT": "8100",
        f"{prefix}_SERVICE_PORT_HTTP": "8100",
        f"{prefix}_PORT": "tcp://10.0.0.1:8100",
        f"{prefix}_PORT_8100_TCP": "tcp://10.0.0.1:8100",
        f"{prefix}_PORT_8100_TCP_ADDR": "10.0.0.1",
    }

    for settings in (Settings, ConsoleSettings, OrdersSettings):
        assert settings.from_environment(link) == settings()


def test_every_variable_that_anything_here_reads_is_known() -> None:
    folders = [ROOT / name for name in ("src", "tests", "bench", "dev", "docs", "README.md", "CHANGELOG.md")]
    files = [file for folder in folders for file in (folder.rglob("*") if folder.is_dir() else [folder])]
    readable = [file for file in files if file.suffix in {"", ".py", ".md", ".yml"} and file.is_file()]
    named = {name for file in readable for name in re.findall(r"\b(?:HOPLINE|ORDERS)_[A-Z_]*[A-Z]\b", file.read_text())}
    known = {field.variable for _, field in FIELDS}.union(*(one.ALSO_KNOWN for one in (Settings, ConsoleSettings)))
    invented = set(re.findall(r"\b(?:HOPLINE|ORDERS)_[A-Z_]*[A-Z]\b", Path(__file__).read_text())) | {"HOPLINE_OTHER"}

    assert {"HOPLINE_APP", "HOPLINE_FAULT_BASKETS", "ORDERS_MAIL_LEDGER"} <= named
    assert {name for name in named - known if name not in invented} == set()


def test_the_places_are_shown_without_passwords() -> None:
    settings = Settings(database_url=f"postgresql+asyncpg://u:{MARK}@db/shop", broker_url=f"amqp://u:{MARK}@rabbit/v")

    assert settings.places() == {
        "database": "postgresql+asyncpg://u:***@db/shop",
        "broker": "amqp://u:***@rabbit/v",
    }
