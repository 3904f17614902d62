from __future__ import annotations

import email
import email.policy
from datetime import UTC, datetime
from decimal import Decimal
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hopline import new_id
from orders import letters
from orders.domain import MAX_NAME_CHARACTERS, Customer, Reason, name_problem
from orders.messages import ConfirmedLine, OrderConfirmed, OrderRejected, UserWelcomed

AT = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ORDER_ID = new_id()
MESSAGE_ID = "<0190-message@example.com>"
MILK = ConfirmedLine("Fluid Milk", 2, Decimal("0.495"), 99)


def confirmed(name: str = "Ann", lines: list[ConfirmedLine] | None = None, count: int = 1) -> OrderConfirmed:
    return OrderConfirmed(
        ORDER_ID, Customer("ann@example.com", name), [MILK] if lines is None else lines, count, 123_456
    )


def rejected(*details: str) -> OrderRejected:
    return OrderRejected(ORDER_ID, Customer("ann@example.com", "Ann"), [Reason("code", detail) for detail in details])


def parsed(raw: bytes) -> EmailMessage:
    message = email.message_from_bytes(raw, policy=email.policy.SMTP)
    assert isinstance(message, EmailMessage)
    assert message.defects == []
    return message


def write(message: OrderConfirmed | OrderRejected | UserWelcomed) -> bytes:
    values: dict[str, Any] = {"sender": "Orders <orders@example.com>", "message_id": MESSAGE_ID, "at": AT}
    if isinstance(message, OrderConfirmed):
        return letters.confirmation(message, **values)
    if isinstance(message, OrderRejected):
        return letters.rejection(message, **values)
    return letters.welcome(message, **values)


def contents(raw: bytes) -> tuple[str, str]:
    text, html = parsed(raw).iter_parts()
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert isinstance(text, EmailMessage)
    assert isinstance(html, EmailMessage)
    return text.get_content().replace("\r\n", "\n"), html.get_content().replace("\r\n", "\n")


def test_a_confirmation_says_what_was_bought() -> None:
    raw = write(confirmed(lines=[MILK, ConfirmedLine("Bread", 1, Decimal("1.10"), 110)], count=52))

    message = parsed(raw)
    assert message["From"] == "Orders <orders@example.com>"
    assert message["To"] == "Ann <ann@example.com>"
    assert message["Subject"] == f"Your order {ORDER_ID} is confirmed"
    assert message["Message-ID"] == MESSAGE_ID
    assert message["Date"].datetime == AT
    text, html = contents(raw)
    assert text == (
        f"Hello Ann,\n\nyour order {ORDER_ID} is confirmed and reserved for you.\n\n"
        "2 x Fluid Milk at 0.495: 0.99\n1 x Bread at 1.10: 1.10\nand 50 more lines\n\nTotal: 1,234.56"
    )
    assert '<td>Fluid Milk</td><td align="right">2</td>' in html
    assert "1,234.56" in html


def test_a_rejection_says_why() -> None:
    text, html = contents(write(rejected("line 1: no", "line 2: never")))

    assert "- line 1: no\n- line 2: never\n" in text
    assert "<li>line 1: no</li>" in html


def test_a_welcome() -> None:
    raw = write(UserWelcomed(new_id(), Customer("ann@example.com", "")))

    text, _ = contents(raw)
    assert text.startswith("Hello,\n")
    assert parsed(raw)["To"] == "ann@example.com"


def test_the_same_message_is_the_same_mail() -> None:
    assert write(confirmed()) == write(confirmed())


@pytest.mark.parametrize("message", [confirmed("<script>&\"'"), rejected("<script>&\"'")])
def test_what_people_typed_is_text_in_html(message: OrderConfirmed | OrderRejected) -> None:
    text, html = contents(write(message))

    assert "<script>&\"'" in text
    assert "<script>" not in html
    assert "&lt;script&gt;&amp;" in html


names = st.text(max_size=MAX_NAME_CHARACTERS).filter(lambda name: not name_problem(name)).map(str.strip)


@example("=?utf-8?q?=0D=0ABcc:_b@example.com?=")
@given(names | st.text("<>&\"'\\,;:()@ ü名", max_size=MAX_NAME_CHARACTERS).map(str.strip))
def test_any_name_that_is_allowed_arrives_and_adds_no_header(name: str) -> None:
    # When a mail is written to somebody of that name
    raw = write(confirmed(name))

    # Then a reader of RFC 2047 finds the name and the address, nothing else has changed, and no line is too long
    message = email.message_from_bytes(raw)
    shown, address = parseaddr(message["To"].replace("\r\n", ""))
    assert address == "ann@example.com"
    assert str(make_header(decode_header(shown))).split() == name.split()
    assert message.keys() == parsed(write(confirmed())).keys()
    assert max(map(len, raw.split(b"\r\n"))) <= letters.LINE_BYTES
    assert b"\n" not in raw.replace(b"\r\n", b"")


@given(names)
def test_html_is_well_formed_whatever_the_name(name: str) -> None:
    _, html = contents(write(confirmed(name)))

    body = html[html.index("<body") : html.index("</body>") + len("</body>")]
    try:
        ElementTree.fromstring(body)
    except ElementTree.ParseError:
        assert any(not character.isprintable() for character in name)  # XML knows fewer characters than HTML


@pytest.mark.parametrize("name", ["Ann\r\nBcc: b@example.com", "Ann\nX: y", "Ann\r", "A\x00"])
def test_the_last_gate_before_a_header_is_shut(name: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        write(confirmed(name))


@pytest.mark.parametrize("name", ["Ü\r\nBcc: b@example.com", "Ü\u2028Bcc: b@example.com", "Ü\x85"])
def test_what_is_encoded_cannot_break_out(name: str) -> None:
    message = email.message_from_bytes(write(confirmed(name)))

    assert "Bcc" not in message
    assert message.keys() == email.message_from_bytes(write(confirmed())).keys()


def test_a_long_line_is_encoded() -> None:
    raw = write(rejected("x" * 5_000))

    text, html = contents(raw)
    assert "x" * 5_000 in text
    assert "x" * 5_000 in html
    assert max(map(len, raw.split(b"\r\n"))) <= letters.LINE_BYTES
