from __future__ import annotations

from pathlib import Path

import pytest

from hopline.errors import UsageError
from hopline.settings import Settings


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
    page = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}

    for name, value in zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True):
        default = (
            f"{value:g}" if isinstance(value, float) else str(value).lower() if value in (True, False) else str(value)
        )
        assert default in rows[name], name
