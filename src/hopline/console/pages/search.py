"""Search: where is order 4711? Whatever an operator has of it, its flow's whole story is one click away.

What names one flow only goes straight to that flow's page.
"""

from __future__ import annotations

import msgspec

from hopline.console.formatting import path_part
from hopline.console.masking import Mask
from hopline.console.request import Http, query
from hopline.console.web import Goto, desk_of, page
from hopline.search import Found, Hit


class Search(msgspec.Struct, frozen=True):
    """What was looked for and found."""

    text: str
    hits: tuple[Hit, ...] = ()
    looked_for: tuple[str, ...] = ()
    """As what it was looked for; empty if nothing was asked."""
    purged: bool = False
    more: bool = False


async def view(request: Http) -> Search | Goto:
    """The hits for `q`; if they are all of one flow, that flow's page instead."""
    desk, text = desk_of(request), query(request, "q").strip()
    if not text:
        return Search("")
    found = await desk.app.search(desk.database, text)
    flows = {hit.flow for hit in found.hits}
    if len(flows) == 1 and not found.more:
        return Goto(f"/flows/{path_part(flows.pop())}")
    return _shown(found, desk.mask_for(request))


def _shown(found: Found, mask: Mask | None) -> Search:
    hits = found.hits if mask is None else tuple(_masked(hit, mask) for hit in found.hits)
    return Search(found.text, hits, found.looked_for, found.purged, found.more)


def _masked(hit: Hit, mask: Mask) -> Hit:
    return msgspec.structs.replace(hit, key=mask.text(hit.key), text=mask.text(hit.text))


ROUTES = page("/search", "pages/search.html", "search", view)
