"""URLs as they may be shown: in logs, errors and `repr`, without passwords.

`redacted` is total: it takes any text, a misspelt URL too. What it does not understand it does not show.
"""

from __future__ import annotations

import re
from typing import Final

HIDDEN: Final = "***"

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31})://(?P<rest>.*)", re.DOTALL)
_PLACE = re.compile(
    r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._~-]*)(?::[0-9]{1,5})?"  # a host and its port
    r"(?:,(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._~-]*)(?::[0-9]{1,5})?)*"  # and further ones
    r"(?:/[^\x00-\x20\x7f-\x9f\ud800-\udfff]*)?"  # a database, a virtual host, a file
)
_USER = re.compile(r"[A-Za-z0-9_.+~%-]*")


def redacted(url: str) -> str:
    """The URL without its password and without its query, which may hold one too.

    A password may contain `/` or `@` that were not escaped, so everything before the last `@` counts as the login, of
    which only the user's name is shown, and only if a password follows it: alone it may be a token. With a `?` or `#`
    before the last `@` nobody can tell a password from a query.
    """
    found = _URL.fullmatch(url)
    if found is None:
        return HIDDEN
    scheme, rest = found["scheme"], found["rest"]
    login, at, end = rest.rpartition("@")
    place, *query = re.split(r"[?#]", end, maxsplit=1)
    if not _PLACE.fullmatch(place) or "?" in login or "#" in login:
        return f"{scheme}://{HIDDEN}"
    user, colon, _ = login.partition(":")
    shown = f"{user}:{HIDDEN}" if colon and _USER.fullmatch(user) else HIDDEN
    return f"{scheme}://{f'{shown}@' if at else ''}{place}{f'?{HIDDEN}' if query else ''}"
