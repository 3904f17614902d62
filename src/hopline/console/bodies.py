"""Message bodies as pages show them: text only, cut, masked where need be; and whole as a file to download."""

from __future__ import annotations

import msgspec
from litestar import Response

from hopline.console.formatting import HEX_BYTES, text_of
from hopline.console.masking import Mask
from hopline.json_text import is_deeper

TEXT_CHARACTERS = 20_000
"""As much of a body is shown; all of it is in the download."""


class Body(msgspec.Struct, frozen=True):
    """A body on a page."""

    text: str
    is_text: bool
    """Else it is the beginning of its bytes in hexadecimal."""
    is_cut: bool
    bytes: int
    is_masked: bool
    is_deep: bool = False
    """It is JSON, perhaps, and nested too deep to be indented."""


def body_of(body: bytes, mask: Mask | None) -> Body:
    """A body for a person."""
    shown = body if mask is None else mask.body(body)
    text = text_of(shown)
    if text is None:
        hexed = "" if mask is not None else body[:HEX_BYTES].hex(" ")
        return Body(hexed, is_text=False, is_cut=len(body) > HEX_BYTES, bytes=len(body), is_masked=mask is not None)
    return Body(
        text[:TEXT_CHARACTERS],
        is_text=True,
        is_cut=len(text) > TEXT_CHARACTERS,
        bytes=len(body),
        is_masked=mask is not None,
        is_deep=is_deeper(shown),
    )


def pretty(body: bytes) -> str:
    """A body as text, JSON indented, bytes that are no text in hexadecimal."""
    text = text_of(body)
    return body.hex(" ") if text is None else text


def download(body: bytes, name: str, mask: Mask | None) -> Response[bytes]:
    """A body as a file: no browser opens it, whatever it holds."""
    shown = body if mask is None else mask.body(body)
    return Response(
        shown,
        media_type="text/plain; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}.txt"'},
    )
