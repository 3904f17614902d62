"""Rows that a statement is given: one SQL text for any number of rows, to join with, to look up by, to insert.

On Postgres each column is one array parameter (`unnest`), which the driver sends in binary and whose length the
planner knows. On SQLite, which has no arrays, the rows are one JSON text (`json_each`), or one execution a row for
an INSERT (`executemany`, inside the driver). Parameters are named after the rows, so that statements with rows of
different names can be joined into one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

Dialect = Literal["sqlite", "postgresql"]

Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""Of one execution, or of as many as there are mappings."""

Made = Mapping[str, Callable[[Mapping[str, sa.ColumnElement[Any]]], sa.ColumnElement[Any]]]
"""Values of columns, each made of the given columns."""


class Rows:
    """The columns of rows that statements are given, with the names of their parameters.

    Give the values column by column, all equally long: `Rows("claimed", id=Id, run=sa.Integer())` takes
    `given(dialect, id=[…], run=[…])`.
    """

    def __init__(self, name: str, /, **columns: sa.types.TypeEngine[Any]) -> None:
        self._name = name
        self._columns = columns

    def table(self, dialect: Dialect) -> sa.FromClause:
        """To join with, or to insert from; its parameters are those of `given`."""
        if dialect == "postgresql":
            unnested = sa.func.unnest(*(self._array(name) for name in self._columns))
            columns = (sa.column(name, kind) for name, kind in self._columns.items())
            return unnested.table_valued(*columns, name=self._name).render_derived(name=self._name)
        each = sa.func.json_each(sa.bindparam(self._name, type_=sa.Text)).table_valued(
            "value", name=f"{self._name}_each"
        )
        extracted = [
            sa.type_coerce(sa.func.json_extract(each.c.value, sa.literal_column(f"'$[{number}]'")), kind).label(name)
            for number, (name, kind) in enumerate(self._columns.items())
        ]
        return sa.select(*extracted).subquery(self._name)

    def among(self, dialect: Dialect, column: sa.ColumnElement[Any], name: str = "id") -> sa.ColumnElement[bool]:
        """Whether a column is one of the given values of that name: looked up by index."""
        if dialect == "postgresql":
            return column == sa.any_(self._array(name))
        return column.in_(sa.select(self.table(dialect).c[name]))

    def given(self, dialect: Dialect, /, **values: Sequence[Any]) -> dict[str, Any]:
        """The parameters of a statement that has `table` or `among`."""
        if dialect == "postgresql":
            return {f"{self._name}_{name}": values[name] for name in self._columns}
        rows = list(zip(*(values[name] for name in self._columns), strict=True))
        return {self._name: msgspec.json.encode(rows).decode()}

    def insertion(
        self, dialect: Dialect, table: sa.Table, made: Made | None = None
    ) -> postgresql.Insert | sqlite.Insert:
        """An INSERT of the rows into the columns of the same names, and of those that are made of them."""
        if dialect == "postgresql":
            given: Mapping[str, sa.ColumnElement[Any]] = dict(self.table(dialect).c)
        else:
            given = {name: sa.bindparam(self._parameter(name), type_=kind) for name, kind in self._columns.items()}
        values = {name: column for name, column in given.items() if name in table.c}
        values |= {name: make(given) for name, make in (made or {}).items()}
        if dialect == "postgresql":
            return postgresql.insert(table).from_select(list(values), sa.select(*values.values()))
        return sqlite.insert(table).values(values)

    def inserted(self, dialect: Dialect, /, **values: Sequence[Any]) -> Parameters:
        """The parameters of an `insertion`."""
        if dialect == "postgresql":
            return self.given(dialect, **values)
        names = [self._parameter(name) for name in self._columns]
        return [
            dict(zip(names, row, strict=True)) for row in zip(*(values[name] for name in self._columns), strict=True)
        ]

    def _parameter(self, name: str) -> str:
        return f"{self._name}_{name}"

    def _array(self, name: str) -> sa.BindParameter[Any]:
        element = self._columns[name].compile(dialect=_POSTGRESQL)
        return sa.bindparam(self._parameter(name), type_=_Array(f"{element}[]"))


class _Array(sa.types.UserDefinedType[Sequence[Any]]):
    """A Postgres array of whatever the driver takes for its elements, untouched on its way there."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, declared: str) -> None:
        self.declared = declared

    def get_col_spec(self, **_options: Any) -> str:
        """See sqlalchemy.types.UserDefinedType."""
        return self.declared


_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]


def insert(dialect: Dialect, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def as_json(dialect: Dialect, text: sa.ColumnElement[str], kind: sa.types.TypeEngine[Any]) -> sa.ColumnElement[Any]:
    """JSON text as the value of a JSON column of that type: on SQLite it is text anyway."""
    return sa.cast(text, kind) if dialect == "postgresql" else sa.type_coerce(text, sa.Text)
