"""One SMTP connection, driven by hand: what is written when, and what becomes of each mail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orders.smtp import (
    REPLY_BYTES,
    AddressRefused,
    Connection,
    Mail,
    MailRefused,
    MailServerDown,
    MailUnavailable,
    RefusalUnclear,
    transparent,
)

COMMANDS = b"MAIL FROM:<shop@example.com>\r\nRCPT TO:<%b@example.com>\r\nDATA\r\n"
GO_ON = b"250 ok\r\n250 ok\r\n354 go on\r\n"


class Wire(asyncio.Transport):
    """What is written, as it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: object) -> None:
        self.writes.append(cast("bytes", data))

    def abort(self) -> None:
        self.aborted = True


class Owner:
    """A pool that notes what it is told."""

    def __init__(self) -> None:
        self.waiting: list[Mail] = []
        self.idle_calls = 0
        self.ends: list[Mail | None] = []

    def next_mail(self) -> Mail | None:
        return self.waiting.pop(0) if self.waiting else None

    def idle(self, _connection: Connection) -> None:
        self.idle_calls += 1

    def over(self, _connection: Connection, unsent: Mail | None) -> None:
        self.ends.append(unsent)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
async def connection(wire: Wire, owner: Owner) -> Connection:
    return Connection(wire, owner, "mail:25", pipelining=True, answer_seconds=60.0)


def a_mail(name: str) -> Mail:
    return Mail(b"shop@example.com", f"{name}@example.com", f"Hi {name}\r\n".encode(), asyncio.get_running_loop())


def content(name: bytes) -> bytes:
    return b"Hi %b\r\n.\r\n" % name


async def test_the_commands_of_a_mail_are_one_write_and_its_content_is_the_other(
    connection: Connection, wire: Wire, owner: Owner
) -> None:
    mail = a_mail("ann")

    connection.send(mail)
    connection.data_received(GO_ON)
    connection.data_received(b"250 2.0.0 taken\r\n")

    assert wire.writes == [COMMANDS % b"ann", content(b"ann")]
    assert await mail.answer == "250 2.0.0 taken"
    assert (owner.idle_calls, owner.ends) == (1, [])


async def test_under_load_a_mail_is_one_write_and_one_read(connection: Connection, wire: Wire, owner: Owner) -> None:
    mails = [a_mail(f"m{number}") for number in range(100)]
    owner.waiting = mails[1:]

    connection.send(mails[0])
    for _ in mails:
        connection.data_received(GO_ON if len(wire.writes) == 1 else b"250 taken\r\n" + GO_ON)
    connection.data_received(b"250 taken\r\n")

    assert [await mail.answer for mail in mails] == ["250 taken"] * 100
    assert len(wire.writes) == 101
    assert wire.writes[1] == content(b"m0") + COMMANDS % b"m1"
    assert sum(map(len, wire.writes)) == sum(len(mail.commands) + len(mail.content) for mail in mails)


async def test_without_pipelining_each_command_waits_for_its_answer(wire: Wire, owner: Owner) -> None:
    connection = Connection(wire, owner, "mail:25", pipelining=False, answer_seconds=60.0)
    first, second = a_mail("ann"), a_mail("bob")
    owner.waiting = [second]

    connection.send(first)
    for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go on\r\n", b"250 taken\r\n") * 2:
        connection.data_received(answer)

    lines = [line + b"\r\n" for line in (COMMANDS % b"ann").split(b"\r\n")[:3]]
    assert wire.writes[:4] == [*lines, content(b"ann")]
    assert len(wire.writes) == 8
    assert [await first.answer, await second.answer] == ["250 taken"] * 2


async def test_answers_may_come_in_any_pieces_and_have_several_lines(connection: Connection, wire: Wire) -> None:
    mail = a_mail("ann")
    answers = b"250-2.1.0 first\r\n250 more\r\n250 ok\r\n354 go on\r\n250-2.0.0 taken\r\n250-and\r\n250 kept\r\n"

    connection.send(mail)
    for at in range(len(answers)):
        connection.data_received(answers[at : at + 1])

    assert await mail.answer == "250 2.0.0 taken and kept"
    assert len(wire.writes) == 2


Refusal = tuple[bytes, type[Exception], str]


@pytest.mark.parametrize(
    ("answers", "error", "says"),
    [
        (b"550 5.1.8 not you\r\n", MailServerDown, "MAIL was answered 550 5.1.8 not you"),
        (b"451 later\r\n", MailUnavailable, "MAIL was answered 451 later"),
        (b"250 ok\r\n550 nobody\r\n554 no valid recipients\r\n", RefusalUnclear, "RCPT was answered 550 nobody"),
        (b"250 ok\r\n550 nobody\r\n354 go on\r\n", RefusalUnclear, "RCPT was answered 550 nobody"),
        (b"250 ok\r\n550 5.1.1 nobody\r\n554 no\r\n", MailRefused, "RCPT was answered 550 5.1.1 nobody"),
        (b"250 ok\r\n250 ok\r\n503 no\r\n", MailServerDown, "DATA was answered 503 no"),
        (b"250-ok\r\n550 or not\r\n", MailUnavailable, "MAIL was answered 250 ok or not"),
        (b"250 ok\r\n450 later\r\n354 go on\r\n", MailUnavailable, "RCPT was answered 450 later"),
        (b"250 ok\r\n250 ok\r\n554 no\r\n", RefusalUnclear, "DATA was answered 554 no"),
        (b"250 ok\r\n250 ok\r\n250 what\r\n", MailUnavailable, "DATA was answered 250 what"),
        (b"421 closing\r\n", MailServerDown, "MAIL was answered 421 closing"),
        (b"hello\r\n", MailUnavailable, "MAIL was answered hel o"),
        (b"\r\n", MailUnavailable, "MAIL was answered"),
        (b"x" * (REPLY_BYTES + 1), MailUnavailable, "an answer has over 32,768 bytes"),
    ],
)
async def test_after_a_refused_command_no_content_is_written_and_the_connection_is_closed(
    answers: bytes, error: type[Exception], says: str, connection: Connection, wire: Wire, owner: Owner
) -> None:
    mail = a_mail("ann")
    owner.waiting = [a_mail("bob")]

    connection.send(mail)
    connection.data_received(answers)

    assert wire.writes == [COMMANDS % b"ann"]
    assert wire.aborted
    assert owner.ends == [None]
    with pytest.raises(error, match=says):
        await mail.answer
    assert type(mail.answer.exception()) is error


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"554 spam\r\n", RefusalUnclear),
        (b"554 5.6.0 spam\r\n", MailRefused),
        (b"452 full\r\n", MailUnavailable),
        (b"421 closing\r\n", MailServerDown),
        (b"", MailUnavailable),
    ],
)
async def test_a_refused_content_fails_its_mail_and_gives_the_next_one_back(
    answer: bytes, error: type[Exception], connection: Connection, wire: Wire, owner: Owner
) -> None:
    # Given a content that was written together with the next mail's commands
    first, second = a_mail("ann"), a_mail("bob")
    owner.waiting = [second]
    connection.send(first)
    connection.data_received(GO_ON)
    assert wire.writes[1] == content(b"ann") + COMMANDS % b"bob"

    # When the content is refused, although the next mail could go on; or nothing comes any more
    connection.data_received(answer + GO_ON if answer else b"")
    if not answer:
        connection.connection_lost(None)

    # Then only the first one has failed
    assert type(first.answer.exception()) is error
    assert owner.ends == [second]
    assert not second.answer.done()
    assert len(wire.writes) == 2


@pytest.mark.parametrize(
    "lose",
    [
        lambda c: c.connection_lost(None),
        lambda c: c.data_received(b"421 timeout\r\n"),
        lambda c: c.data_received(b"450 4.7.0 too many mails in this session\r\n"),
        lambda c: c.data_received(b"250 ok\r\n250 ok\r\n503 what\r\n"),
    ],
)
async def test_a_kept_connection_that_dies_gives_back_what_it_has_not_sent(
    lose: Callable[[Connection], None], connection: Connection, wire: Wire, owner: Owner
) -> None:
    first, second = a_mail("ann"), a_mail("bob")
    connection.send(first)
    connection.data_received(GO_ON + b"250 taken\r\n")

    connection.send(second)
    lose(connection)

    assert await first.answer == "250 taken"
    assert owner.ends == [second]
    assert not second.answer.done()
    assert wire.aborted


async def test_a_new_connection_that_dies_fails_its_mail(connection: Connection, owner: Owner) -> None:
    mail = a_mail("ann")

    connection.send(mail)
    connection.connection_lost(ConnectionResetError("reset"))

    with pytest.raises(MailUnavailable, match="mail:25: the connection was lost: reset"):
        await mail.answer
    assert owner.ends == [None]


@pytest.mark.parametrize(("answers", "error"), [(b"", MailServerDown), (b"250 ok\r\n25", MailServerDown)])
async def test_a_connection_that_is_lost_before_the_content_is_a_server_that_is_down(
    answers: bytes, error: type[Exception], connection: Connection
) -> None:
    mail = a_mail("ann")

    connection.send(mail)
    connection.data_received(answers)
    connection.connection_lost(None)

    assert type(mail.answer.exception()) is error


replies = st.builds(
    lambda code, separator, text: code + separator + text + b"\r\n",
    st.sampled_from([b"250", b"354", b"421", b"450", b"503", b"530", b"550", b"554", b"xyz", b"999", b"", b"2500"]),
    st.sampled_from([b" ", b"-", b""]),
    st.sampled_from([b"ok", b"5.1.1 nobody", b"5.7.1 \xff\x00", b"4.7.0", b"", b"5.999.999 relay"])
    | st.binary(max_size=9),
)


@given(
    replies=st.lists(replies | st.binary(max_size=20), max_size=8),
    pieces=st.integers(1, 9),
    pipelining=st.booleans(),
)
def test_whatever_a_server_answers_each_mail_has_one_end_and_the_connection_is_closed_or_usable(
    replies: list[bytes], pieces: int, pipelining: bool
) -> None:
    async def talk() -> None:
        # Given a mail on its way, and one that waits
        wire, owner = Wire(), Owner()
        connection = Connection(wire, owner, "mail:25", pipelining=pipelining, answer_seconds=60.0)
        first, second = a_mail("ann"), a_mail("bob")
        owner.waiting = [second]
        connection.send(first)

        # When a server answers, in pieces, and closes
        answer = b"".join(replies)
        for at in range(0, len(answer), pieces):
            connection.data_received(answer[at : at + pieces])
        was_usable = not wire.aborted
        assert was_usable == (not owner.ends)
        connection.connection_lost(None)

        # Then the first has one end; the second too, or it waits for another connection
        for mail in (first, second):
            if mail.answer.done() and (error := mail.answer.exception()) is not None:
                assert isinstance(error, MailRefused | MailUnavailable)
                assert str(error).isprintable()
            elif mail.answer.done():
                assert mail.answer.result().isprintable()
            else:
                assert mail is second
                assert mail in owner.waiting or owner.ends == [mail]
        assert len(owner.ends) == 1
        assert wire.aborted

    asyncio.run(talk())


async def test_an_address_outside_ascii_goes_to_a_server_that_offers_it(wire: Wire, owner: Owner) -> None:
    connection = Connection(wire, owner, "mail:25", pipelining=True, answer_seconds=60.0, utf8=True)
    mail = Mail(b"shop@example.com", "jörg@münchen.de", b"Hi\r\n", asyncio.get_running_loop())

    connection.send(mail)

    assert wire.writes == [
        b"MAIL FROM:<shop@example.com> SMTPUTF8 BODY=8BITMIME\r\n" + "RCPT TO:<jörg@münchen.de>\r\nDATA\r\n".encode()
    ]


async def test_an_international_domain_alone_goes_to_every_server(connection: Connection, wire: Wire) -> None:
    connection.send(Mail(b"shop@example.com", "ann@münchen.de", b"Hi\r\n", asyncio.get_running_loop()))

    assert wire.writes == [
        b"MAIL FROM:<shop@example.com>\r\nRCPT TO:<ann@xn--mnchen-3ya.de>\r\nDATA\r\n",
    ]


async def test_a_server_without_smtputf8_refuses_that_mail_and_takes_the_next(
    connection: Connection, wire: Wire, owner: Owner
) -> None:
    # Given two mails for addresses outside ASCII, at the head of the queue and behind the first mail
    head, behind = (Mail(b"shop@example.com", "jörg@example.com", b"", asyncio.get_running_loop()) for _ in range(2))
    first, second = a_mail("ann"), a_mail("bob")
    owner.waiting = [first, behind, second]

    # When they are sent on a connection that cannot carry them
    connection.send(head)
    connection.data_received(GO_ON)
    connection.data_received(b"250 taken\r\n" + GO_ON)
    connection.data_received(b"250 taken\r\n")

    # Then only they are refused
    for mail in (head, behind):
        with pytest.raises(AddressRefused, match=r"mail:25: the address .* does not offer SMTPUTF8"):
            await mail.answer
    assert [await mail.answer for mail in (first, second)] == ["250 taken"] * 2
    assert wire.writes == [COMMANDS % b"ann", content(b"ann") + COMMANDS % b"bob", content(b"bob")]
    assert (owner.idle_calls, owner.ends) == (1, [])


async def test_a_mail_that_no_server_can_be_given_leaves_the_connection_idle(
    connection: Connection, wire: Wire, owner: Owner
) -> None:
    connection.send(mail := Mail(b"shop@example.com", "jörg@example.com", b"", asyncio.get_running_loop()))

    assert isinstance(mail.answer.exception(), MailRefused)
    assert (wire.writes, owner.idle_calls, owner.ends) == ([], 1, [])


async def test_a_mail_that_nobody_waits_for_is_not_sent(connection: Connection, wire: Wire, owner: Owner) -> None:
    mail = a_mail("ann")

    connection.send(mail)
    mail.answer.cancel()
    connection.data_received(GO_ON)

    assert wire.writes == [COMMANDS % b"ann"]
    assert wire.aborted
    assert owner.ends == [None]


async def test_a_server_that_says_goodbye_ends_the_idle_connection(
    connection: Connection, wire: Wire, owner: Owner
) -> None:
    connection.data_received(b"421 4.4.2 idle for too long\r\n")

    assert wire.aborted
    assert owner.ends == [None]


async def test_no_answer_within_the_deadline(wire: Wire, owner: Owner) -> None:
    connection = Connection(wire, owner, "mail:25", pipelining=True, answer_seconds=0.01)
    first, second = a_mail("ann"), a_mail("bob")
    owner.waiting = [second]

    connection.send(first)
    connection.data_received(GO_ON)

    with pytest.raises(MailServerDown, match=r"mail:25: no answer to DATA within 0.01 s"):
        await first.answer
    assert owner.ends == [second]


async def test_quit_lets_the_mail_on_its_way_finish_and_begins_no_other(
    connection: Connection, wire: Wire, owner: Owner
) -> None:
    mail = a_mail("ann")
    owner.waiting = [a_mail("bob")]
    connection.send(mail)

    connection.quit()
    connection.data_received(GO_ON + b"250 taken\r\n")
    connection.data_received(b"221 bye\r\n")

    assert await mail.answer == "250 taken"
    assert wire.writes == [COMMANDS % b"ann", content(b"ann"), b"QUIT\r\n"]
    await connection.wait_gone()


@pytest.mark.parametrize(
    "to", ["a@b\r\nRSET", "a@b\n", "a\x00@b", "a@b> SIZE=1", "ü\r\n@b", "ü\x85@b", "ü\u2028@b", "\ud800@b", "ü @b", ""]
)
async def test_an_address_cannot_carry_a_command(to: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        Mail(b"shop@example.com", to, b"", asyncio.get_running_loop())


@pytest.mark.parametrize(
    ("given", "wire_form"),
    [
        (b"", b"\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".a\r\n.b\r\n..\r\n", b"..a\r\n..b\r\n...\r\n.\r\n"),
        (b"a\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r.\rb", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"\r\n.\n.\r\n", b"\r\n..\r\n..\r\n.\r\n"),
    ],
)
def test_a_content_cannot_end_itself(given: bytes, wire_form: bytes) -> None:
    assert transparent(given) == wire_form
