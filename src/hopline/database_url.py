"""The database URL: what an operator wrote, checked, as the driver takes it.

Every fault is a UsageError that says what to write instead, and no text here contains any part of a URL that can be
a password: it names the scheme, or the option that is wrong. `postgresql://` and `postgres://` are what every cloud
hands out, so they work, with libpq's `sslmode`, `sslrootcert`, `sslcert` and `sslkey`.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import sqlalchemy as sa
from sqlalchemy import exc

from hopline.errors import UsageError

SQLITE: Final = "sqlite+aiosqlite"
POSTGRES: Final = "postgresql+asyncpg"
SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""libpq's (Postgres documentation, "SSL Mode Descriptions")."""
SYSTEM_ROOTS: Final = "system"
"""libpq's `sslrootcert` for the certificates of the operating system."""

_SCHEMES: Mapping[str, str] = {
    SQLITE: SQLITE,
    POSTGRES: POSTGRES,
    "postgresql": POSTGRES,
    "postgres": POSTGRES,
}
_SSL_FILES = ("sslrootcert", "sslcert", "sslkey")
_DRIVER_OPTIONS = ("host", "port", "target_session_attrs", "prepared_statement_cache_size")
"""Options that the driver takes as they are."""
_FALLBACKS = {"channel_binding": ("prefer", "disable"), "gssencmode": ("prefer", "disable")}
"""Options of libpq that the driver lacks, with the values that permit to do without."""
_OPTIONS = sorted((*_DRIVER_OPTIONS, *_FALLBACKS, *_SSL_FILES, "application_name", "sslmode", "ssl"))
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ADVICE = f"use {SQLITE}:///FILE or {POSTGRES}://user:password@host/name"


def parse(url: str | sa.URL) -> sa.URL:
    """The URL with the driver's own scheme. UsageError without a part of it that may be secret."""
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        scheme = _SCHEME.match(url) if isinstance(url, str) else None
        if scheme is not None and scheme[1] in _SCHEMES:
            raise UsageError(
                f"the database URL cannot be read after {scheme[0]}: its port has to be a number, "
                f"and special characters of a password are written as %XX; {_ADVICE}"
            ) from None
        begins = f"begins with {scheme[1]!r}" if scheme else "has no scheme"
        raise UsageError(f"the database URL {begins}; {_ADVICE}") from None
    driver = _SCHEMES.get(parsed.drivername)
    if driver is None:
        raise UsageError(f"the database URL begins with {parsed.drivername[:40]!r}; {_ADVICE}")
    if parsed.port is not None and not 0 < parsed.port < 65_536:
        raise UsageError(f"the database URL has the port {parsed.port}; a port is 1 to 65535")
    return parsed.set(drivername=driver)


def postgres_options(url: sa.URL) -> tuple[sa.URL, dict[str, Any]]:
    """A Postgres URL with the options that the driver reads itself, and its arguments for the others."""
    given = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    for name, value in given.items():
        if name not in _OPTIONS:
            raise UsageError(f"the database URL has the unknown option {name[:40]!r}; known are {', '.join(_OPTIONS)}")
        if name in _FALLBACKS and value not in _FALLBACKS[name]:
            raise UsageError(f"{name}={value[:40]} is not supported by the driver asyncpg; leave the option out")
    arguments = _ssl_arguments(given)
    if "application_name" in given:
        arguments["server_settings"] = {"application_name": given["application_name"]}
    if "prepared_statement_cache_size" in given and not given["prepared_statement_cache_size"].isdecimal():
        raise UsageError("prepared_statement_cache_size in the database URL has to be a whole number")
    return url.set(query={name: url.query[name] for name in _DRIVER_OPTIONS if name in url.query}), arguments


def _ssl_arguments(given: Mapping[str, str]) -> dict[str, Any]:
    """asyncpg reads libpq's SSL options from a DSN only, so it gets one that has nothing else."""
    mode = given.get("sslmode", given.get("ssl", ""))
    options = {name: given[name] for name in _SSL_FILES if given.get(name)}
    if mode and mode not in SSL_MODES:
        raise UsageError(f"sslmode={mode[:40]} in the database URL is none of {', '.join(SSL_MODES)}")
    if options and not mode:
        mode = "verify-full" if options.get("sslrootcert") == SYSTEM_ROOTS else "prefer"
    if options.get("sslrootcert") == SYSTEM_ROOTS:
        return {"ssl": _system_roots(mode)}
    for name, path in options.items():
        if not _readable(path):
            raise UsageError(f"{name} in the database URL names a file that cannot be read: {path[:200]}")
    if mode in ("verify-ca", "verify-full") and "sslrootcert" not in options and not _has_default_roots():
        raise UsageError(
            f"sslmode={mode} in the database URL needs the certificates to verify with: add sslrootcert=FILE, or "
            f"sslrootcert={SYSTEM_ROOTS} for those of the operating system"
        )
    if not mode:
        return {}
    return {"dsn": f"postgresql://?{urlencode({'sslmode': mode, **options})}"}


def _system_roots(mode: str) -> ssl.SSLContext:
    """For a server whose certificate a public authority has signed, as most clouds' are."""
    if mode not in ("verify-ca", "verify-full"):
        raise UsageError(f"sslrootcert={SYSTEM_ROOTS} in the database URL needs sslmode=verify-full, not {mode}")
    context = ssl.create_default_context()
    context.check_hostname = mode == "verify-full"
    return context


def _has_default_roots() -> bool:
    """Where the driver looks when the URL names no file, as libpq does."""
    return bool(os.environ.get("PGSSLROOTCERT")) or Path("~/.postgresql/root.crt").expanduser().is_file()


def _readable(path: str) -> bool:
    try:
        with Path(path).open("rb"):
            return True
    except (OSError, ValueError):  # ValueError: a NUL in it
        return False
