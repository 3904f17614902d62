"""From a message to the bytes of an email: text and HTML, by Jinja2, as multipart/alternative. Pure.

The same message gives the same bytes, however often it is sent: Message-ID, Date and boundary come from its
envelope, so a mail that had to be sent twice can be told by its receiver to be one.

The MIME frame is written by hand because email.message.EmailMessage takes 5 times the CPU. What a person
typed gets into a header in one place only (`_to`), by the standard library's own encoding of names (RFC 2047),
and a test reads each letter back with the standard parser. An address outside ASCII stands there as it is (RFC 6532).

Every message that decodes becomes a letter, or a LetterError: nothing else is raised because of what is in a message.
"""

from __future__ import annotations

import base64
import re
from datetime import datetime
from email.header import Header
from email.utils import format_datetime, formataddr
from functools import lru_cache
from typing import Any

import jinja2

from orders.domain import Customer, mail_address, money
from orders.messages import OrderConfirmed, OrderRejected, UserWelcomed

LINE_BYTES = 998
"""RFC 5322, section 2.1.1."""
_CRLF = "\r\n"
_NOT_7BIT = re.compile(r"[^\t\n -~]")
"""RFC 5322, section 3.5 and RFC 2045, section 2.7: no NUL, no bare CR; other controls are not worth the risk."""
_ANY = "a@example.com"
"""formataddr wants an ASCII address; only what it makes of the name is used."""
_DATES_CACHED = 64
"""Letters of the same seconds follow each other."""

_FRAME = (
    "From: {sender}\r\nTo: {to}\r\nSubject: {subject}\r\nDate: {date}\r\nMessage-ID: {message_id}\r\n"
    "Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n"
    'Content-Type: multipart/alternative; boundary="{boundary}"\r\n\r\n'
    "--{boundary}\r\n{text}\r\n--{boundary}\r\n{html}\r\n--{boundary}--\r\n"
)


class LetterError(ValueError):
    """No letter can be written for this message, however often it is tried."""


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("orders"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


_templates = _environment()


def confirmation(order: OrderConfirmed, *, sender: str, message_id: str, at: datetime) -> bytes:
    """The mail that says that an order is confirmed."""
    values = {
        "name": order.customer.name,
        "order_id": order.order_id,
        "lines": [(line.quantity, line.name, line.unit_price, money(line.cents)) for line in order.lines],
        "more": order.line_count - len(order.lines),
        "total": money(order.total_cents),
    }
    subject = f"Your order {order.order_id} is confirmed"
    return _letter("order-confirmed", order.customer, subject, values, sender, message_id, at)


def rejection(order: OrderRejected, *, sender: str, message_id: str, at: datetime) -> bytes:
    """The mail that says why an order was not accepted."""
    values = {"name": order.customer.name, "order_id": order.order_id, "reasons": order.reasons}
    subject = f"Your order {order.order_id} could not be accepted"
    return _letter("order-rejected", order.customer, subject, values, sender, message_id, at)


def welcome(user: UserWelcomed, *, sender: str, message_id: str, at: datetime) -> bytes:
    """The mail that greets a new user."""
    values = {"name": user.customer.name, "email": user.customer.email, "user_id": user.user_id}
    return _letter("user-welcomed", user.customer, "Welcome", values, sender, message_id, at)


def _letter(
    template: str,
    to: Customer,
    subject: str,
    values: dict[str, Any],
    sender: str,
    message_id: str,
    at: datetime,
) -> bytes:
    """`sender`, `message_id` and `subject` are made by this program, from nothing that a person typed."""
    text, html = _pair(template)
    return _FRAME.format(
        sender=sender,
        to=_to(to.name, to.email),
        subject=subject,
        date=_date(at.replace(microsecond=0)),
        message_id=message_id,
        boundary="=_" + message_id.strip("<>").partition("@")[0],
        text=_part("plain", _render(text, values)),
        html=_part("html", _render(html, values)),
    ).encode()


@lru_cache
def _pair(template: str) -> tuple[jinja2.Template, jinja2.Template]:
    return _templates.get_template(f"{template}.txt.j2"), _templates.get_template(f"{template}.html.j2")


def _render(template: jinja2.Template, values: dict[str, Any]) -> str:
    """As `template.render`, without Jinja's globals (`range` and the like): copying them costs a third of a letter."""
    return "".join(template.root_render_func(template.new_context(values, shared=True)))


@lru_cache(_DATES_CACHED)
def _date(at: datetime) -> str:
    return format_datetime(at)


def _to(name: str, email: str) -> str:
    """The To header's value, folded after the name so that no line gets too long."""
    try:
        email = mail_address(email)
    except ValueError as error:
        raise LetterError(str(error)) from None
    if not name:
        return email
    if not name.isascii() or "=?" in name:  # or it would be read as an encoded word
        sendable = name.encode(errors="replace").decode()  # a lone surrogate has no UTF-8
        return f"{Header(sendable, 'utf-8', header_name='To').encode(linesep=_CRLF)}{_CRLF} <{email}>"
    # Header and formataddr let CR and LF of an ASCII name through; no message with one decodes, but this is the gate.
    if not name.isprintable():
        raise LetterError("a name with control characters cannot go into a header")
    return f"{formataddr((name, _ANY)).removesuffix(f' <{_ANY}>')}{_CRLF} <{email}>"


def _part(subtype: str, content: str) -> str:
    """A body part; base64 only where it must be (RFC 2045, section 6)."""
    lines = content.rstrip("\n").split("\n")
    if not _NOT_7BIT.search(content) and max(map(len, lines)) <= LINE_BYTES:
        encoding, body = "7bit", _CRLF.join(lines)
    else:
        encoding = "base64"
        body = base64.encodebytes(_CRLF.join(lines).encode(errors="replace")).decode().rstrip("\n").replace("\n", _CRLF)
    return f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n{body}'
