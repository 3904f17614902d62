"""What the state of a database means to a program, and that the list of versions is that of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from hopline import migrations
from hopline.errors import UsageError
from hopline.migrations import HEAD, VERSIONS, State, check

TABLES = frozenset({"hopline_outbox", "orders"})


def test_the_list_of_versions_is_that_of_the_files() -> None:
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))

    files = [script.revision for script in scripts.walk_revisions()]

    assert tuple(reversed(files)) == VERSIONS
    assert scripts.get_heads() == [HEAD]


def test_a_database_of_todays_version_with_the_programs_tables_is_fine() -> None:
    check(State(TABLES, HEAD, stamped=True), ["orders"])


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State(frozenset(), None, stamped=False), "no tables of Hopline; run `hopline migrate`"),
        (State(TABLES, "0001", stamped=True), f"of version 0001, and {HEAD} is needed; run `hopline migrate`"),
        (State(TABLES, HEAD, stamped=False), "before versions of them were kept; run `hopline migrate`"),
        (State(TABLES, HEAD, stamped=True), "no table 'stock'; run `hopline migrate`"),
        (State(TABLES, "0099", stamped=True), "version 0099, which this Hopline .* does not know"),
    ],
)
def test_any_other_is_refused_with_what_to_do(state: State, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        check(state, ["orders", "stock"])
