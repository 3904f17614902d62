"""One dead letter whole: why it died, its bytes, what today's code says of a replay, and what can be done with it.

An edit is looked at before it is sent: the form's answer is the difference, with a button that sends exactly what was
shown. Who may not see personal data sees it masked, and may uncover it for a reason that is written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import msgspec
from litestar import Response, get, post
from litestar.exceptions import NotFoundException

from hopline import deadletter_queries, json_text, repair
from hopline.auditlog import Recorded, letter_target, recent
from hopline.console.bodies import Body, body_of, download, pretty
from hopline.console.desk import Desk
from hopline.console.masking import Mask
from hopline.console.pages.dead import masked
from hopline.console.request import API, Http, who
from hopline.console.revealing import reveal
from hopline.console.web import Done, Form, access, action, checked_form, desk_of, json_answer, page
from hopline.deadletter_queries import Filter, Letter, WholeLetter
from hopline.errors import MessageError, UsageError
from hopline.json_text import compact, encoded
from hopline.repair import Plan
from hopline.repair.verdicts import version_of

ACTS = 20
DIFF_LINES = 2_000
"""As much of a difference is shown."""

LETTER = "/dead/letters/{letter:str}"


class LetterPage(msgspec.Struct, frozen=True):
    """One letter."""

    letter: Letter
    stack: str
    properties: str
    """As JSON."""
    body: Body
    verdict: str
    advice: str
    """Why it cannot be replayed, and what to do instead."""
    acts: tuple[Recorded, ...]
    is_masked: bool


class EditPage(msgspec.Struct, frozen=True):
    """The form to edit a letter's body."""

    letter: Letter
    text: str
    """Empty for a body that is no text."""
    is_text: bool
    type: str
    version: int
    error: str = ""
    """What today's code says against the body."""


class DiffLine(msgspec.Struct, frozen=True):
    """One line of a difference."""

    kind: Literal["same", "add", "del", "gap"]
    text: str


class PreviewPage(msgspec.Struct, frozen=True):
    """An edit before it is sent."""

    letter: Letter
    lines: tuple[DiffLine, ...]
    text: str
    type: str
    version: int
    key: str
    reason: str
    left_out: tuple[str, ...]
    """Fields that today's code does not know."""


async def view(request: Http) -> LetterPage:
    """One letter, masked for who may not act."""
    desk = desk_of(request)
    return await _page(desk, letter_of(request), desk.mask_for(request))


async def replay(request: Http, form: Form) -> Done:
    """Replays one letter."""
    desk, identifier = desk_of(request), letter_of(request)
    which = Filter(ids=(identifier,), state="any")
    (judged,) = await repair.check(desk.database, desk.code, [identifier], as_new=form.flag("as_new"))
    if not judged.verdict.ok:
        return Done(judged.verdict.text, _place(identifier), "warn", {"verdict": judged.verdict.kind})
    job = await desk.replays.start(
        which,
        Plan(canary=True),
        title=f"the letter {identifier}",
        who=who(request),
        reason=form.text("reason"),
        as_new=form.flag("as_new"),
    )
    return Done("sent again; waiting for its result", f"/replays/{job.id}", "busy", {"job": job.id})


async def discard(request: Http, form: Form) -> Done:
    """Gives one letter up."""
    desk, identifier = desk_of(request), letter_of(request)
    (judged,) = await repair.discard(desk.database, [identifier], who=who(request), reason=form.text("reason"))
    verdict = judged.verdict
    return Done("discarded" if verdict.ok else verdict.text, _place(identifier), "ok" if verdict.ok else "warn")


async def send_edit(request: Http, form: Form) -> Done:
    """Sends the edited body as a new message."""
    desk, identifier = desk_of(request), letter_of(request)
    whole = await whole_letter(desk, identifier)
    judged = await repair.edit(
        desk.database,
        desk.code,
        identifier,
        _compact(form.text("body")),
        who=who(request),
        reason=form.text("reason"),
        new_type=_new_type(whole, form),
    )
    envelope = judged.verdict.envelope
    if envelope is None:
        return Done(judged.verdict.text, _place(identifier), "warn", {"verdict": judged.verdict.kind})
    return Done("sent as a new message", _place(identifier), "ok", {"message_id": envelope.id, "key": envelope.key})


@get(LETTER + "/raw", opt=access("viewer"))
async def raw(request: Http) -> Response[bytes]:
    """The body byte for byte, as a file; masked for who may not act."""
    desk, identifier = desk_of(request), letter_of(request)
    whole = await whole_letter(desk, identifier)
    return download(whole.body, f"dead-letter-{identifier}", desk.mask_for(request))


@post(LETTER + "/reveal", opt=access("viewer"), status_code=200)
async def uncover(request: Http) -> Response[Any]:
    """The letter's page with its personal data, for a reason that is written down."""
    form = await checked_form(request)
    desk, identifier = desk_of(request), letter_of(request)
    await whole_letter(desk, identifier)
    await reveal(request, letter_target(identifier), form.text("reason"))
    found = await _page(desk, identifier, None)
    return desk.rendering.page(request, "pages/letter.html", "dead", found)


@get(LETTER + "/edit", opt=access("operator"))
async def show_edit(request: Http) -> Response[Any]:
    """The form to edit a letter's body."""
    desk = desk_of(request)
    whole = await whole_letter(desk, letter_of(request))
    return desk.rendering.page(request, "pages/edit.html", "dead", _edit_page(whole))


@post(LETTER + "/edit/preview", opt=access("operator"), status_code=200)
async def preview_edit(request: Http) -> Response[Any]:
    """The difference that an edit makes; it changes nothing. A body that is refused comes back with the reason."""
    form = await checked_form(request)
    desk = desk_of(request)
    whole = await whole_letter(desk, letter_of(request))
    try:
        found = _preview(desk, whole, form)
    except (MessageError, UsageError) as error:
        again = msgspec.structs.replace(_edit_page(whole), text=form.text("body"), error=str(error))
        return desk.rendering.page(request, "pages/edit.html", "dead", again, status=422)
    return desk.rendering.page(request, "pages/preview.html", "dead", found)


@post(API + LETTER + "/edit/preview", opt=access("operator"), status_code=200)
async def preview_edit_twin(request: Http) -> Response[Any]:
    """The same for programs."""
    form = await checked_form(request)
    desk = desk_of(request)
    return json_answer(_preview(desk, await whole_letter(desk, letter_of(request)), form))


ROUTES = [
    *page(LETTER, "pages/letter.html", "dead", view),
    *action(LETTER + "/replay", replay),
    *action(LETTER + "/discard", discard),
    *action(LETTER + "/edit", send_edit),
    raw,
    uncover,
    show_edit,
    preview_edit,
    preview_edit_twin,
]


def letter_of(request: Http) -> str:
    """The letter's id in the path."""
    return str(request.path_params["letter"])


async def whole_letter(desk: Desk, identifier: str) -> WholeLetter:
    """A letter; 404 if there is none, 400 if this is no id."""
    async with desk.database.reading() as connection:
        whole = await deadletter_queries.get(connection, identifier)
    if whole is None:
        raise NotFoundException(f"there is no dead letter {identifier}")
    return whole


def difference(before: bytes, after: bytes) -> tuple[DiffLine, ...]:
    """The lines in which two bodies differ, with some of their surroundings."""
    return tuple(islice(_diff_lines(json_text.difference(pretty(before), pretty(after))), DIFF_LINES))


def _diff_lines(lines: Iterator[str]) -> Iterator[DiffLine]:
    kinds: dict[str, Literal["same", "add", "del", "gap"]] = {"+": "add", "-": "del", "@": "gap"}
    for line in lines:
        yield DiffLine(kinds.get(line[:1], "same"), line if line.startswith("@") else line[1:])


async def _page(desk: Desk, identifier: str, mask: Mask | None) -> LetterPage:
    whole = await whole_letter(desk, identifier)
    async with desk.database.reading() as connection:
        acts = await recent(connection, limit=ACTS, targets=[letter_target(identifier)])
    (judged,) = await repair.check(desk.database, desk.code, [identifier])
    body = body_of(whole.body, mask)
    properties = whole.properties if mask is None else mask.value(dict(whole.properties))
    return LetterPage(
        letter=masked(whole.letter, mask),
        stack=whole.stack if mask is None else mask.text(whole.stack),
        properties=pretty(encoded(properties)),
        body=body,
        verdict=judged.verdict.kind,
        advice=judged.verdict.text,
        acts=tuple(acts),
        is_masked=mask is not None,
    )


def _edit_page(whole: WholeLetter) -> EditPage:
    letter = whole.letter
    if letter.resolution is not None:
        raise UsageError(f"this letter is {letter.resolution} already; nothing can be edited")
    shown = body_of(whole.body, None)
    text = pretty(whole.body) if shown.is_text else ""
    return EditPage(letter, text, shown.is_text, letter.type, version_of(whole))


def _preview(desk: Desk, whole: WholeLetter, form: Form) -> PreviewPage:
    body = _compact(form.text("body"))
    new_type = _new_type(whole, form)
    edited = repair.validate(whole, body, desk.code, desk.database.message_limit_bytes, new_type)
    lines = difference(whole.body, body)
    if not lines and new_type is None:
        raise UsageError("the body is as it was: replay the letter instead, or change something")
    return PreviewPage(
        letter=whole.letter,
        lines=lines,
        text=pretty(body),
        type=edited.type.name,
        version=edited.type.version,
        key=edited.key,
        reason=form.text("reason"),
        left_out=edited.left_out,
    )


def _compact(text: str) -> bytes:
    """The body as it is sent: JSON without the blanks that made it readable."""
    try:
        return compact(text)
    except ValueError as error:
        raise UsageError(f"the body is no JSON that can be edited: {error}") from None


def _new_type(whole: WholeLetter, form: Form) -> tuple[str, int] | None:
    name, version = form.text("type"), form.text("version")
    known = (whole.letter.type, version_of(whole))
    if not name and not version:
        return None
    if version and not (version.isdecimal() and len(version) < 10):
        raise UsageError("the version is a whole number of at most nine digits")
    chosen = (name or known[0], int(version) if version else known[1])
    return None if chosen == known else chosen


def _place(identifier: str) -> str:
    return f"/dead/letters/{identifier}"
