"""The types of columns as the versions know them. Never changed: a type of another kind gets a name of its own."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
Time = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
"""On SQLite text, `2026-11-24 12:00:00.000`, in UTC."""
