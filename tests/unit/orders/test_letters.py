from __future__ import annotations

import email
import email.policy
import re
from datetime import UTC, datetime
from decimal import Decimal
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Any
from xml.etree import ElementTree

import msgspec
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


@pytest.mark.parametrize(
    ("email", "shown"), [("ann@m\u00fcnchen.de", "ann@xn--mnchen-3ya.de"), ("j\u00f6rg@b.de",) * 2]
)
@pytest.mark.parametrize("name", ["", "Ann", "J\u00f6rg"])
def test_an_address_outside_ascii_stands_in_its_header(email: str, shown: str, name: str) -> None:
    raw = letters.welcome(
        UserWelcomed(ORDER_ID, Customer(email, name)), sender="Orders <o@example.com>", message_id=MESSAGE_ID, at=AT
    )

    head = raw.partition(b"\r\n\r\n")[0].decode()
    assert re.search(rf"\nTo: ([^\n]+\n <{shown}>|{shown})\r?\n", head.replace("\r\n", "\n"))


def test_a_control_character_is_not_sent_as_it_is() -> None:
    raw = write(rejected("a\x00b\rc"))

    assert b"\x00" not in raw
    assert raw.count(b"\r") == raw.count(b"\r\n")


letter = {"sender": "Orders <o@example.com>", "message_id": MESSAGE_ID}
order_ids = st.uuids().map(str)
any_text = st.text(max_size=40) | st.text("\x00\r\n\u2028.{%<=?", max_size=12)
# What the decoder lets through, and what only Python code can make (a lone surrogate, a line break in a header).
customers = st.builds(Customer, st.text(max_size=30) | st.just("a" * 300 + "@example.com"), any_text)
prices = st.decimals() | st.sampled_from([Decimal("sNaN"), Decimal("1E+999999"), Decimal("-0")])
confirmed_lines = st.builds(ConfirmedLine, any_text, st.integers(), prices, st.integers())
messages = (
    st.builds(OrderConfirmed, order_ids, customers, st.lists(confirmed_lines, max_size=3), st.integers(), st.integers())
    | st.builds(OrderRejected, order_ids, customers, st.lists(st.builds(Reason, any_text, any_text), max_size=3))
    | st.builds(UserWelcomed, order_ids, customers)
)


@given(messages, st.datetimes(timezones=st.timezones() | st.just(UTC)) | st.datetimes())
@example(UserWelcomed(ORDER_ID, Customer("a@b.de", "\ud800")), AT)
@example(UserWelcomed(ORDER_ID, Customer("\ud800@b.de", "Ann")), AT)
@example(OrderRejected(ORDER_ID, Customer("a@b.de"), [Reason("x", "\ud800")]), AT)
def test_any_message_is_a_letter_or_a_letter_error(message: OrderConfirmed | OrderRejected, at: datetime) -> None:
    write = {OrderConfirmed: letters.confirmation, OrderRejected: letters.rejection, UserWelcomed: letters.welcome}

    try:
        raw = write[type(message)](message, **letter, at=at)  # type: ignore[operator]
    except letters.LetterError:
        return

    head, _, body = raw.partition(b"\r\n\r\n")
    assert [line.split(b":")[0] for line in head.split(b"\r\n") if not line.startswith(b" ")] == HEADERS
    assert body.isascii()
    assert not {0, 0x7F} & set(raw)
    assert raw.count(b"\r") == raw.count(b"\n") == raw.count(b"\r\n")
    assert max(map(len, raw.split(b"\r\n"))) <= letters.LINE_BYTES


HEADERS = [
    *(b"From", b"To", b"Subject", b"Date", b"Message-ID", b"Auto-Submitted", b"MIME-Version", b"Content-Type"),
]


@given(st.binary(max_size=60) | st.text(max_size=20).map(str.encode))
def test_every_customer_that_decodes_gets_a_letter_or_a_letter_error(name: bytes) -> None:
    body = b'{"user_id":"%b","customer":{"email":"\xc3\xbc@example.com","name":"%b"}}' % (ORDER_ID.encode(), name)
    try:
        user = msgspec.json.decode(body, type=UserWelcomed)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return

    assert letters.welcome(user, sender="Orders <o@example.com>", message_id=MESSAGE_ID, at=AT)
