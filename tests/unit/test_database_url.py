"""The database URL: what clouds hand out works, what is wrong is named, and a password is never shown."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline import database_url
from hopline.database import Database
from hopline.errors import UsageError

SECRET = "s3cret-Pa55"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_the_schemes_of_every_cloud_mean_postgres(scheme: str) -> None:
    parsed = database_url.parse(f"{scheme}://app:{SECRET}@db.example.com:5432/shop")

    assert (parsed.drivername, parsed.host, parsed.port) == ("postgresql+asyncpg", "db.example.com", 5432)
    assert (parsed.username, parsed.password, parsed.database) == ("app", SECRET, "shop")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"mysql://app:{SECRET}@db/shop", "begins with 'mysql'"),
        (f"postgress://app:{SECRET}@db/shop", "begins with 'postgress'"),
        (f"postgresql//app:{SECRET}@db/shop", "has no scheme"),
        (f"{SECRET}", "has no scheme"),
        (f"app:{SECRET}@db/shop", "has no scheme"),
        ("", "has no scheme"),
        (f"postgresql://app:{SECRET}@db:port/shop", "port has to be a number"),
        (f"postgresql://app:{SECRET}@db:99999/shop", "the port 99999"),
        (f"postgresql://app:{SECRET}@db:0/shop", "the port 0"),
        (f"postgresql://app:{SECRET}@db/shop?sslmode=on", "sslmode=on .* is none of disable, allow"),
        (f"postgresql://app:{SECRET}@db/shop?sslmod=require", "unknown option 'sslmod'; known are .*sslmode"),
        (f"postgresql://app:{SECRET}@db/shop?channel_binding=require", "channel_binding=require is not supported"),
        (f"postgresql://app:{SECRET}@db/shop?sslmode=verify-full&sslrootcert=/no/such", "cannot be read: /no/such"),
        (f"postgresql://app:{SECRET}@db/shop?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
        (f"postgresql://app:{SECRET}@db/shop?prepared_statement_cache_size=many", "whole number"),
    ],
)
def test_a_wrong_url_is_refused_with_what_to_write(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Database(url)

    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@given(
    scheme=st.text(max_size=12),
    user=st.text(max_size=8),
    host=st.text(max_size=12),
    port=st.text(max_size=6),
    rest=st.text(max_size=12),
    raw=st.booleans(),
)
def test_no_url_ends_in_another_error_or_shows_its_password(
    scheme: str, user: str, host: str, port: str, rest: str, *, raw: bool
) -> None:
    user = user if raw else quote(user, errors="replace")
    said = ""
    try:
        Database(f"{scheme}://{user}:{SECRET}@{host}:{port}/{rest}")
    except UsageError as error:
        said = str(error)

    assert SECRET not in said


def test_ssl_options_are_given_to_the_driver(tmp_path: Path) -> None:
    roots = tmp_path / "roots.crt"
    roots.write_text("")
    url = database_url.parse(f"postgres://app@db/shop?sslmode=verify-ca&sslrootcert={roots}&channel_binding=prefer")

    rest, arguments = database_url.postgres_options(url)

    assert rest.query == {}
    assert arguments == {"dsn": f"postgresql://?sslmode=verify-ca&sslrootcert={quote(str(roots), safe='')}"}


def test_the_certificates_of_the_operating_system_can_be_asked_for() -> None:
    url = database_url.parse("postgres://app@db/shop?sslmode=verify-full&sslrootcert=system")

    context = database_url.postgres_options(url)[1]["ssl"]

    assert isinstance(context, ssl.SSLContext)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_verification_without_certificates_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)

    with pytest.raises(UsageError, match="sslrootcert=system"):
        Database("postgres://app@db/shop?sslmode=verify-full")


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object, **_more: object) -> None:
        raise ModuleNotFoundError("No module named 'asyncpg'", name="asyncpg")

    monkeypatch.setattr("hopline.database.create_async_engine", missing)

    with pytest.raises(UsageError, match=r"pip install 'hopline\[postgres\]'"):
        Database("postgresql://app@db/shop")
