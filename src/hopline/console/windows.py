"""Which window of the history a page shows."""

from __future__ import annotations

from hopline.console.request import Http, query
from hopline.errors import UsageError
from hopline.history import WINDOWS, Window


def window_of(request: Http) -> Window:
    """The window that the URL names; a quarter of an hour if it names none."""
    name = query(request, "window") or "15m"
    for window in WINDOWS:
        if window == name:
            return window
    raise UsageError(f"the window is one of {', '.join(WINDOWS)}")
