"""The short form, which is part of all tests, and the long one (`./dev faults`, HOPLINE_FAULT_BASKETS=2000 or more).

The long form sends at least 2,000 orders in each test, freezes things for 30 s, kills the broker five times, leaves
leases at the length of production, and runs every test on both databases. The short form runs a test on one
database only where the fault is not the database's.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

import pytest

from tests.support.system import LONG, SHORT, Scale

BASKETS = "HOPLINE_FAULT_BASKETS"


def scale() -> Scale:
    """How hard each fault is tried, as the environment says."""
    baskets = int(os.environ.get(BASKETS, SHORT.baskets))
    return replace(LONG if baskets >= LONG.baskets else SHORT, baskets=baskets)


def _on(*databases: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("systems", databases, indirect=True)


def shortly_on(database: Literal["sqlite", "postgres"]) -> pytest.MarkDecorator:
    """In the short form on this database, in the long form on both."""
    return _on(database) if scale().baskets < LONG.baskets else _on("sqlite", "postgres")


on_sqlite = _on("sqlite")
on_postgres = _on("postgres")
