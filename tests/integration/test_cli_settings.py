"""What the command says of settings that are wrong, and that it does nothing then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PASSWORD = "s3cret"


def hopline(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `hopline …` on the orders system, in an empty folder, with these variables only."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HOPLINE_", "ORDERS_"))}
    return subprocess.run(
        [sys.executable, "-m", "hopline.cli", *words, "--app", "orders.wiring:app"],
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HOPLINE_DATABSE_URL", f"postgresql+asyncpg://me:{PASSWORD}@db/shop", "did you mean HOPLINE_DATABASE_URL?"),
        ("ORDERS_SMPT_URL", f"smtp://me:{PASSWORD}@mail", "did you mean ORDERS_SMTP_URL?"),
        ("ORDERS_SMTP_URL", f"smpt://me:{PASSWORD}@mail", "not smpt://me:***@mail"),
        ("HOPLINE_PREFETCH", "70000", "at least 1 and at most 65535"),
    ],
)
def test_wrong_settings_are_told_in_a_line_and_nothing_is_made(
    tmp_path: Path, variable: str, value: str, said: str
) -> None:
    done = hopline(tmp_path, "migrate", **{variable: value})

    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert PASSWORD not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_database_is_named_where_tables_are_missing_and_where_they_are_made(tmp_path: Path) -> None:
    missing = hopline(tmp_path, "status")
    made = hopline(tmp_path, "migrate")

    assert missing.returncode == 2
    assert "(the database is sqlite+aiosqlite:///hopline.db)" in missing.stderr
    assert made.returncode == 0
    assert "The database is sqlite+aiosqlite:///hopline.db." in made.stdout
