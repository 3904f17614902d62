from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.redaction import redacted

MARK = "S3CR3T"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://app:s3cret@host:5672/%2F", "amqp://app:***@host:5672/%2F"),
        ("amqps://app:s3cret@one:5671,two/v", "amqps://app:***@one:5671,two/v"),
        ("amqp://app:s3cret/pw@host", "amqp://app:***@host"),
        ("amqp://app:s3@cr@host", "amqp://app:***@host"),
        ("amqp://app:s3cr?et@host", "amqp://***"),
        ("amqp://host/path?who=me@s3cret", "amqp://***"),
        ("amqp://:s3cret@host", "amqp://:***@host"),
        ("http://token@host/x", "http://***@host/x"),
        ("postgresql://host/name?password=s3cret&sslmode=require", "postgresql://host/name?***"),
        ("postgresql+asyncpg://u:s3cret@[::1]:5432/name", "postgresql+asyncpg://u:***@[::1]:5432/name"),
        ("sqlite+aiosqlite:////var/lib/shop.db", "sqlite+aiosqlite:////var/lib/shop.db"),
        ("amqp://app:s3cret", "amqp://***"),
        ("amqp://ap p:s3cret@host", "amqp://***@host"),
        ("amqp:/app:s3cret@host", "***"),
        ("app:s3cret@host", "***"),
        ("s3cret", "***"),
        ("", "***"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redacted(url) == shown


@given(st.text())
def test_any_text_is_shown_on_one_line_and_without_what_a_terminal_would_obey(text: str) -> None:
    for url in (text, f"amqp://{text}", f"amqp://u:{text}@host", f"amqp://{text}@host", f"amqp://host/{text}"):
        assert not any(ord(one) < 32 or 0x7F <= ord(one) < 0xA0 for one in redacted(url))


@given(st.text(), st.text(), st.sampled_from(["amqp", "amqsp", "postgresql+asyncpg", "smtp", "x"]))
def test_no_part_of_a_password_is_shown_however_it_is_written(before: str, after: str, scheme: str) -> None:
    assert MARK not in redacted(f"{scheme}://user:{before}{MARK}{after}@host:1/path")
    assert MARK not in redacted(f"{scheme}:user:{MARK}{after}@host:1/path")
    assert MARK not in redacted(f"{scheme}://host/path?{before}{MARK}{after}")
