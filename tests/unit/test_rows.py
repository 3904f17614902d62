"""Rows given to statements: one SQL text whatever their number, and values as the driver takes them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hopline.rows import Dialect, Rows, as_json

things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Text), sa.Column("n", sa.Integer))
few = Rows("few", id=sa.Text(), n=sa.Integer())


def sql(statement: sa.ClauseElement, dialect: Dialect) -> str:
    used = postgresql.dialect() if dialect == "postgresql" else sqlite.dialect()  # type: ignore[no-untyped-call]
    return " ".join(str(statement.compile(dialect=used)).split())


def test_on_postgres_each_column_is_one_array() -> None:
    given = few.table("postgresql")

    assert sql(sa.select(given.c.id), "postgresql") == (
        "SELECT few.id FROM unnest(%(few_id)s::TEXT[], %(few_n)s::INTEGER[]) AS few(id, n)"
    )
    assert few.given("postgresql", id=["a", "b"], n=[1, 2]) == {"few_id": ["a", "b"], "few_n": [1, 2]}


def test_on_sqlite_the_rows_are_one_text() -> None:
    given = few.table("sqlite")

    assert "FROM json_each(?) AS few_each" in sql(sa.select(given.c.id), "sqlite")
    assert few.given("sqlite", id=["a", "b"], n=[1, 2]) == {"few": '[["a",1],["b",2]]'}


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_a_lookup_is_by_the_column_so_that_its_index_serves(dialect: Dialect) -> None:
    text = sql(sa.select(things.c.n).where(few.among(dialect, things.c.id)), dialect)

    assert ("things.id IN (SELECT" if dialect == "sqlite" else "things.id = ANY (%(few_id)s::TEXT[])") in text


def test_an_insertion_is_one_statement_on_postgres_and_one_execution_a_row_on_sqlite() -> None:
    made = {"n": lambda given: given["n"] + 1}

    assert sql(few.insertion("postgresql", things, made), "postgresql").startswith(
        "INSERT INTO things (id, n) SELECT few.id, few.n + %(n_1)s::INTEGER AS anon_1 FROM unnest("
    )
    assert sql(few.insertion("sqlite", things, made), "sqlite") == "INSERT INTO things (id, n) VALUES (?, (? + ?))"
    assert few.inserted("postgresql", id=["a"], n=[1]) == {"few_id": ["a"], "few_n": [1]}
    assert few.inserted("sqlite", id=["a", "b"], n=[1, 2]) == [
        {"few_id": "a", "few_n": 1},
        {"few_id": "b", "few_n": 2},
    ]


def test_columns_of_different_lengths_are_no_rows() -> None:
    with pytest.raises(ValueError, match="shorter"):
        few.given("sqlite", id=["a", "b"], n=[1])


def test_json_text_is_cast_where_the_database_has_json() -> None:
    text = sa.column("text", sa.Text)

    assert sql(as_json("postgresql", text, sa.JSON()), "postgresql") == "CAST(text AS JSON)"
    assert sql(as_json("sqlite", text, sa.JSON()), "sqlite") == "text"
