"""The mailer against the development mailbox, and against servers that are less kind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hopline import Database, Dead, Defer, Done, Envelope, Hopline, Retry, Settings, UsageError, new_id, schema, utcnow
from hopline.node import free_ports
from hopline.outcome import Outcome
from hopline.retry import decide
from orders import emails, mailbox
from orders.domain import Customer
from orders.evidence import IN_A_ROW
from orders.mailer import CONNECTIONS, Mailer
from orders.messages import UserWelcomed
from orders.smtp import MailRefused, MailServerDown, MailUnavailable, RefusalUnclear
from tests.support.engine import rows
from tests.support.waiting import wait_until

MAIL = b"From: a@example.com\r\nTo: b@example.com\r\nSubject: Hi\r\nMessage-ID: <1@example.com>\r\n\r\nHello\r\n"

FULL = Path("/dev/full")  # a disk without space: a device of Linux


@asynccontextmanager
async def mailbox_at(port: int, ledger: Path) -> AsyncIterator[None]:
    stop = asyncio.Event()
    serving = asyncio.create_task(mailbox.serve("127.0.0.1", port, ledger, stop))
    await wait_until(lambda: listens(port))
    try:
        yield
    finally:
        stop.set()
        await serving


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "mails.ndjson"


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
async def mailer(port: int) -> AsyncIterator[Mailer]:
    async with Mailer(f"smtp://127.0.0.1:{port}") as opened:
        yield opened


async def test_a_mail_is_in_the_ledger_when_it_is_answered(mailer: Mailer, port: int, ledger: Path) -> None:
    async with mailbox_at(port, ledger):
        answer = await mailer.send("ann@example.com", MAIL)

        (mail,) = mailbox.mails(ledger)

    assert answer.startswith("250 ")
    assert (mail.message_id, mail.to, mail.subject) == ("<1@example.com>", ["ann@example.com"], "Hi")
    assert mail.raw.encode() == MAIL
    assert abs((mail.at - utcnow()).total_seconds()) < 60


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b".",
        b"..",
        b".hidden\r\n..\r\n.\r\nafter the dot",
        b"a\r\n.",
        b"x\n.\ny",
        "名前 ü".encode(),
        b"e." * 400 + b"\r\nend.",
        b"\r\n\r\n.\r\n\r\n",
        b"long " * 100_000,
    ],
)
async def test_any_content_arrives_as_it_was_sent(body: bytes, mailer: Mailer, port: int, ledger: Path) -> None:
    mail = b"Subject: x\r\n\r\n" + body + b"\r\n"

    async with mailbox_at(port, ledger):
        await mailer.send("a@example.com", mail)
        await mailer.send("b@example.com", MAIL)

        first, second = mailbox.mails(ledger)

    assert first.raw.encode() == mail.replace(b"x\n.\ny", b"x\r\n.\r\ny")  # the client makes bare LF CR LF
    assert second.raw.encode() == MAIL


async def test_connections_are_shared_kept_and_bounded(mailer: Mailer, port: int, ledger: Path) -> None:
    async with mailbox_at(port, ledger):
        await asyncio.gather(*(mailer.send(f"a{number}@example.com", MAIL) for number in range(100)))

        assert 1 <= len(mailer._idle) <= CONNECTIONS
        assert mailbox.count_by_message_id(ledger) == {"<1@example.com>": 100}


async def test_a_server_that_is_down_is_unavailable_and_then_found_again(
    mailer: Mailer, port: int, ledger: Path
) -> None:
    # Given a server that was there, and with it connections in the pool
    async with mailbox_at(port, ledger):
        await mailer.send("a@example.com", MAIL)

    # When it is gone, then back
    with pytest.raises(MailServerDown, match=r"refused|lost|closed|Connect"):
        await mailer.send("b@example.com", MAIL)
    async with mailbox_at(port, ledger):
        await mailer.send("c@example.com", MAIL)

    # Then only the mail in between is missing
    assert [mail.to for mail in mailbox.mails(ledger)] == [["a@example.com"], ["c@example.com"]]


async def test_a_connection_that_died_in_the_pool_costs_no_mail(mailer: Mailer, port: int, ledger: Path) -> None:
    async with mailbox_at(port, ledger):
        await mailer.send("a@example.com", MAIL)
    async with mailbox_at(port, ledger):
        await mailer.send("b@example.com", MAIL)

    assert len(list(mailbox.mails(ledger))) == 2


async def test_a_mail_over_1_mib_is_refused_for_good_and_the_connection_goes_on(
    mailer: Mailer, port: int, ledger: Path
) -> None:
    large = b"Subject: x\r\n\r\n" + b"0123456789.\r\n" * 100_000

    async with mailbox_at(port, ledger):
        with pytest.raises(MailRefused, match="552"):
            await mailer.send("a@example.com", large)
        await mailer.send("a@example.com", MAIL)

    assert len(list(mailbox.mails(ledger))) == 1


@pytest.mark.parametrize("full", [FULL] if FULL.exists() else [])
async def test_a_ledger_that_cannot_be_written_is_not_a_250(full: Path, mailer: Mailer, port: int) -> None:
    async with mailbox_at(port, full):
        with pytest.raises(MailUnavailable, match="452"):
            await mailer.send("a@example.com", MAIL)


@pytest.mark.parametrize("to", ["a@example.com\r\nRSET", "a@example.com\nX", "a\x00@example.com"])
async def test_an_address_cannot_carry_a_command(to: str, mailer: Mailer, port: int, ledger: Path) -> None:
    async with mailbox_at(port, ledger):
        with pytest.raises(ValueError, match="control character"):
            await mailer.send(to, MAIL)

    assert list(mailbox.mails(ledger)) == []


Script = Callable[[str], str | None]


@asynccontextmanager
async def scripted(port: int, answer: Script) -> AsyncIterator[list[str]]:
    """A mail server that answers each command as it is told; None closes the connection."""
    commands: list[str] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(b"220 scripted\r\n")
        in_data = False
        with contextlib.suppress(ConnectionError):
            while line := (await reader.readline()).decode().strip("\r\n") if not in_data else await content(reader):
                commands.append(line)
                text = answer(line)
                if text is None:
                    break
                in_data = text.startswith("354")
                writer.write(f"{text}\r\n".encode())
                await writer.drain()
        writer.close()

    async def content(reader: asyncio.StreamReader) -> str:
        await reader.readuntil(b"\r\n.\r\n")
        return "."

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield commands
    finally:
        server.close()
        for writer in writers:  # from Python 3.12 on wait_closed waits for the pooled connections too
            writer.close()
        await server.wait_closed()


def answers(**of_command: str | None) -> Script:
    usual = {
        "EHLO": "250 hi",
        "MAIL": "250 ok",
        "RCPT": "250 ok",
        "DATA": "354 go on",
        ".": "250 taken",
        "QUIT": "221 bye",
    }
    chosen: dict[str, str | None] = {**usual, **{name.replace("END", "."): text for name, text in of_command.items()}}
    return lambda line: chosen[line.split(" ")[0]]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ({"RCPT": "550 no such user"}, MailRefused),
        ({"RCPT": "550 5.1.1 no such user"}, MailRefused),
        ({"MAIL": "554 not you"}, MailServerDown),
        ({"MAIL": "530 Must issue a STARTTLS command first"}, MailServerDown),
        ({"MAIL": "530 Authentication required"}, MailServerDown),
        ({"MAIL": "550 5.7.60 SMTP; Client does not have permissions to send as this sender"}, MailServerDown),
        ({"MAIL": "503 Bad sequence of commands"}, MailServerDown),
        ({"RCPT": "554 Client host blocked"}, MailServerDown),
        ({"EHLO": "554 no service", "HELO": "554 no service"}, MailServerDown),
        ({"MAIL": None}, MailServerDown),
        ({"END": "554 spam"}, MailRefused),
        ({"DATA": "554 no"}, MailRefused),
        ({"RCPT": "450 later"}, MailUnavailable),
        ({"END": "451 later"}, MailUnavailable),
        ({"END": None}, MailUnavailable),
        ({"RCPT": None}, MailUnavailable),
        ({"EHLO": "421 busy"}, MailServerDown),
        ({"RCPT": "421 closing"}, MailServerDown),
    ],
)
async def test_what_a_server_says_decides_between_never_and_later(
    script: dict[str, str | None], error: type[Exception], mailer: Mailer, port: int
) -> None:
    async with scripted(port, answers(**script)):
        with pytest.raises(error) as raised:
            await mailer.send("a@example.com", MAIL)

    assert isinstance(raised.value, MailServerDown) == (error is MailServerDown or script == {"RCPT": None})
    assert mailer._idle == []  # nothing half done is kept


@pytest.mark.parametrize(
    "greeting",
    [b"554 5.7.1 Client host blocked\r\n", b"421 busy\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\xff\x00\r\n", b"22", b""],
)
async def test_whatever_a_server_greets_with_if_it_is_no_welcome_it_is_down(
    greeting: bytes, mailer: Mailer, port: int
) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", port):
        with pytest.raises(MailServerDown) as raised:
            await mailer.send("a@example.com", MAIL)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "script",
    [
        {"EHLO": "250-hi\r\n250 AUTH LOGIN PLAIN", "AUTH": "535 5.7.8 bad credentials"},
        {"EHLO": "250-hi\r\n250 AUTH CRAM-MD5", "AUTH": "334 not base64!"},
        {"EHLO": "250-hi\r\n250 AUTH LOGIN PLAIN", "AUTH": "454 4.7.0 temporary authentication failure"},
        {"EHLO": "250 no AUTH here"},
    ],
)
async def test_a_server_that_does_not_let_us_log_in_is_down(script: dict[str, str | None], port: int) -> None:
    async with scripted(port, answers(**script)), Mailer(f"smtp://u:p@127.0.0.1:{port}") as mailer:
        with pytest.raises(MailServerDown):
            await mailer.send("a@example.com", MAIL)


@pytest.mark.parametrize("script", [{"EHLO": "250 hi"}, {"EHLO": "250-hi\r\n250 STARTTLS", "STARTTLS": "454 no TLS"}])
async def test_a_server_that_does_not_encrypt_is_down(script: dict[str, str | None], port: int) -> None:
    async with scripted(port, answers(**script)), Mailer(f"smtp+starttls://127.0.0.1:{port}") as mailer:
        with pytest.raises(MailServerDown):
            await mailer.send("a@example.com", MAIL)


async def test_a_host_name_that_is_none_is_a_server_that_is_down() -> None:
    async with Mailer(f"smtp://{'x' * 64}.example.com:2525") as mailer:
        with pytest.raises(MailServerDown):
            await mailer.send("a@example.com", MAIL)


async def test_a_mail_that_ends_every_session_pauses_once_and_then_spends_attempts(mailer: Mailer, port: int) -> None:
    # Given a server that blames the session whenever it hears of one recipient
    usual = answers()

    def answer(line: str) -> str | None:
        return "554 Client host blocked" if line.startswith("RCPT TO:<odd@") else usual(line)

    async with scripted(port, answer):
        with pytest.raises(MailServerDown):
            await mailer.send("odd@example.com", MAIL)

        # When another mail goes through in between
        await mailer.send("a@example.com", MAIL)

        # Then it is this mail's own failure
        with pytest.raises(MailUnavailable, match="Client host blocked") as raised:
            await mailer.send("odd@example.com", MAIL)
    assert not isinstance(raised.value, MailServerDown)


async def test_a_server_that_refuses_everything_is_down_after_a_few_mails(mailer: Mailer, port: int) -> None:
    async with scripted(port, answers(RCPT="550 no")):
        ends = [
            await asyncio.gather(mailer.send(f"a{number}@example.com", MAIL), return_exceptions=True)
            for number in range(IN_A_ROW + 3)
        ]

    assert [isinstance(end, MailRefused) for (end,) in ends] == [True] * IN_A_ROW + [False] * 3
    assert [isinstance(end, MailServerDown) for (end,) in ends] == [False] * IN_A_ROW + [True] * 3


async def test_a_mail_to_an_address_outside_ascii_arrives(mailer: Mailer, port: int, ledger: Path) -> None:
    async with mailbox_at(port, ledger):
        await mailer.send("jörg@münchen.de", MAIL)
        await mailer.send("ann@münchen.de", MAIL)
        await mailer.send("a@example.com", MAIL)

    assert [mail.to for mail in mailbox.mails(ledger)] == [
        ["jörg@münchen.de"],
        ["ann@xn--mnchen-3ya.de"],
        ["a@example.com"],
    ]


async def test_without_smtputf8_only_the_mail_that_needs_it_is_refused(mailer: Mailer, port: int) -> None:
    async with scripted(port, answers(EHLO="250-hi\r\n250 PIPELINING")) as commands:
        ends = await asyncio.gather(
            *(mailer.send(to, MAIL) for to in ("jörg@example.com", "ann@münchen.de", "a@example.com")),
            return_exceptions=True,
        )

    assert isinstance(ends[0], MailRefused)
    assert "does not offer SMTPUTF8" in str(ends[0])
    assert ends[1:] == ["250 taken"] * 2
    assert sorted(line for line in commands if line.startswith("RCPT")) == [
        "RCPT TO:<a@example.com>",
        "RCPT TO:<ann@xn--mnchen-3ya.de>",
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_among_any_answers_every_mail_has_an_end_and_the_mailer_stays_whole(
    seed: int, mailer: Mailer, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that answers one command in four as none should
    monkeypatch.setattr("orders.mailer.ANSWER_SECONDS", 0.1)
    choice = random.Random(seed)
    usual = answers(EHLO="250-hi\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8")
    odd = [
        "421 x",
        "550 5.1.1 x",
        "\xff",
        "250-",
        "554 5.7.1 relay",
        "450 x",
        "x" * 40_000,
        "250 ok\r\n250 ok",
        "",
        None,
    ]

    def answer(line: str) -> str | None:
        return choice.choice(odd) if choice.random() < 0.25 and not line.startswith("EHLO") else usual(line)

    # When many mails are sent at once
    async with scripted(port, answer), asyncio.timeout(30):
        ends = await asyncio.gather(
            *(mailer.send(f"{name}@example.com", MAIL) for name in ["ann", "ü", "bob"] * 60), return_exceptions=True
        )

        # Then each has one of the ends that there are, some go through, and every connection is idle
        assert {type(end) for end in ends} <= {str, MailRefused, RefusalUnclear, MailUnavailable, MailServerDown}
        assert any(isinstance(end, str) for end in ends)
        assert mailer._busy == len(mailer._connections) == len(mailer._idle)
        assert not mailer._waiting


async def test_a_mail_takes_three_commands_and_no_more(mailer: Mailer, port: int) -> None:
    async with scripted(port, answers()) as commands:
        await mailer.send("a@example.com", MAIL)
        await mailer.send("b@example.com", MAIL)

        assert [command.split(" ")[0] for command in commands] == ["EHLO", *["MAIL", "RCPT", "DATA", "."] * 2]


async def test_content_that_was_sent_is_not_sent_again_by_the_mailer(mailer: Mailer, port: int) -> None:
    # Given a pooled connection on which the server dies after it has got the content
    script = answers()
    ends = iter(["250 taken", None])
    async with scripted(port, lambda line: next(ends) if line == "." else script(line)) as commands:
        await mailer.send("a@example.com", MAIL)

        # When the next mail is sent on it
        with pytest.raises(MailUnavailable):
            await mailer.send("b@example.com", MAIL)

        # Then it went once: whether to send it again is the retry policy's decision
        assert commands.count(".") == 2


async def test_a_server_that_says_nothing_runs_into_a_deadline(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orders.mailer.CONNECT_SECONDS", 0.2)
    closed = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await closed.wait()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", port), Mailer(f"smtp://127.0.0.1:{port}") as mailer:
        with pytest.raises(MailServerDown):
            await mailer.send("a@example.com", MAIL)
        closed.set()


async def test_no_free_connection_within_the_deadline(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given one connection, on which a mail waits for the rest of its answer
    monkeypatch.setattr("orders.mailer.CHECKOUT_SECONDS", 0.1)
    script = answers()
    async with (
        scripted(port, lambda line: "250-wait" if line == "." else script(line)) as commands,
        Mailer(f"smtp://127.0.0.1:{port}", connections=1) as mailer,
    ):
        first = asyncio.create_task(mailer.send("a@example.com", MAIL))
        await wait_until(lambda: "." in commands)

        # When two more are sent
        others = await asyncio.gather(*(mailer.send("b@example.com", MAIL) for _ in range(2)), return_exceptions=True)

        # Then they are told so, and the first one goes on waiting
        assert [type(one) for one in others] == [MailServerDown] * 2
        assert all("no free connection within 0.1 s" in str(one) for one in others)
        assert not first.done()
        first.cancel()


@pytest.mark.parametrize(
    ("url", "sender"),
    [
        ("http://mail", "a@example.com"),
        ("smtp://", "a@example.com"),
        ("smtp://mail", "nobody"),
        ("smtp://mail", "Ü <a@b.de>"),
        ("smtp://mail", "ü@b.de"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(url: str, sender: str) -> None:
    with pytest.raises(UsageError, match="ORDERS_"):
        Mailer(url, sender)


def test_the_environment_is_read() -> None:
    mailer = Mailer.from_environment(
        {"ORDERS_SMTP_URL": "smtps://u:p%40@mail", "ORDERS_MAIL_FROM": "Shop <s@shop.example>"}
    )

    assert (mailer._host, mailer._port, mailer._user, mailer._password) == ("mail", 465, "u", "p@")
    assert (mailer.sender, mailer.domain) == ("Shop <s@shop.example>", "shop.example")


def envelope_of(message: UserWelcomed) -> Envelope:
    return Envelope(new_id(), "user.welcomed", 1, message.user_id, new_id(), None, utcnow(), b"")


def endpoint(mailer: Mailer) -> Callable[..., object]:
    (found,) = [one for one in emails.handlers(mailer) if one.type.name == "user.welcomed"]
    return found.function


async def test_the_handler_says_what_the_server_said(mailer: Mailer, port: int, ledger: Path) -> None:
    message = UserWelcomed(new_id(), Customer("jörg@example.com".replace("ö", "o"), "Jörg"))
    envelope = envelope_of(message)

    async with mailbox_at(port, ledger):
        outcomes = [await endpoint(mailer)(message, envelope=envelope) for _ in range(2)]  # type: ignore[misc]

    assert isinstance(outcomes[0], Done)
    assert (
        outcomes[0].note
        == f"250 2.0.0 taken <{envelope.id}@example.com>, to jorg@example.com <{envelope.id}@example.com>"
    )
    first, second = mailbox.mails(ledger)
    assert first.raw == second.raw
    assert first.message_id == f"<{envelope.id}@example.com>"


async def test_the_handler_parks_what_is_refused_and_retries_the_rest(mailer: Mailer, port: int) -> None:
    message = UserWelcomed(new_id(), Customer("a@example.com"))

    async with scripted(port, answers(RCPT="550 no such user")):
        outcome = await endpoint(mailer)(message, envelope=envelope_of(message))  # type: ignore[misc]
    assert isinstance(outcome, Dead)
    assert "550 no such user" in outcome.detail
    with pytest.raises(MailUnavailable):
        await endpoint(mailer)(message, envelope=envelope_of(message))  # type: ignore[misc]


async def test_the_handler_parks_what_cannot_be_written(mailer: Mailer, port: int) -> None:
    message = UserWelcomed(new_id(), Customer("a@example.com", "Ann\r\nBcc: b@example.com"))

    outcome = await endpoint(mailer)(message, envelope=envelope_of(message))  # type: ignore[misc]

    assert isinstance(outcome, Dead)
    assert outcome.reason == "mail-unwritable"


@pytest.mark.parametrize(
    ("error", "kind"),
    [(MailServerDown("down"), Defer), (MailUnavailable("later"), Retry), (RuntimeError("a bug"), Retry)],
)
def test_what_the_mailer_raises_is_a_pause_or_an_attempt(error: Exception, kind: type[Outcome]) -> None:
    outcomes = [decide(error, attempt, emails.RETRY, 0.5) for attempt in (0, 50, emails.RETRY.attempts - 1)]

    assert [type(outcome) for outcome in outcomes] == [kind, kind, kind if kind is Defer else Dead]


def test_the_retries_outlive_an_outage_of_hours_but_not_the_inbox() -> None:
    assert 4 * 3600 < emails.RETRY.longest_seconds() < 14 * 86_400
    assert sum(emails.RETRY.delay_seconds(attempt, 0.5) for attempt in range(4)) < 20


def program(database_url: str, broker_url: str, port: int) -> Hopline:
    """The queue of the mails alone."""
    mailer = Mailer(f"smtp://127.0.0.1:{port}")
    settings = Settings(
        database_url=database_url,
        broker_url=broker_url,
        probe_seconds=0.05,
        pause_first_seconds=0.1,
        pause_cap_seconds=0.3,
    )
    return Hopline(handlers=[emails.handlers(mailer)], resources=[mailer], settings=settings)


@pytest.mark.parametrize(
    "script",
    [
        {"MAIL": "530 Must issue a STARTTLS command first"},
        {"MAIL": "550 5.7.60 SMTP; Client does not have permissions to send as this sender"},
        {"RCPT": "554 Client host blocked"},
        {"RCPT": "554 5.7.1 policy"},
    ],
)
async def test_a_server_that_refuses_the_session_pauses_the_queue_until_it_is_mended(
    script: dict[str, str | None], port: int, ledger: Path, sqlite_database_url: str, broker_url: str
) -> None:
    # Given a worker, and a mail server that refuses the session
    app = program(sqlite_database_url, broker_url, port)
    await app.migrate()
    users = [UserWelcomed(new_id(), Customer(f"a{number}@example.com")) for number in range(12)]
    async with app.working() as working:
        database = working.producer.database
        async with scripted(port, answers(**script)) as commands:
            async with working.producer.transaction() as tx:
                for user in users:
                    tx.send(user)
            await wait_until(lambda: commands.count("EHLO localhost") >= 10)  # it was tried again, and again
            state = working.worker.state()

        # When it is mended
        async with mailbox_at(port, ledger):
            await wait_until(lambda: len(list(mailbox.mails(ledger))) >= len(users))
            await wait_until(lambda: done(database, len(users)))

        # Then the queue was paused, and every mail went out once; no attempt was spent, nothing is parked
        assert state["paused"].keys() == {"emails"}  # type: ignore[attr-defined]
        assert next(iter(script.values())) in state["paused"]["emails"]["reason"]  # type: ignore[index]
        assert await rows(database, schema.attempts) == []
        assert await rows(database, schema.dead_letters) == []
    assert sorted(mail.to[0] for mail in mailbox.mails(ledger)) == sorted(user.customer.email for user in users)
    assert set(mailbox.count_by_message_id(ledger).values()) == {1}


async def done(database: Database, wanted: int) -> bool:
    return len(await rows(database, schema.inbox)) == wanted


async def test_one_odd_recipient_is_parked_and_its_neighbours_get_their_mails(
    port: int, sqlite_database_url: str, broker_url: str
) -> None:
    # Given a server that takes every mail but those of two, one of which it blames on the session
    usual = answers(EHLO="250-hi\r\n250 PIPELINING")

    def answer(line: str) -> str | None:
        if line.startswith("RCPT TO:<nobody@"):
            return "550 5.1.1 no such user"
        return "554 5.7.1 policy" if line.startswith("RCPT TO:<odd@") else usual(line)

    app = program(sqlite_database_url, broker_url, port)
    await app.migrate()
    names = ["nobody", "odd", "jörg", *(f"a{number}" for number in range(20))]
    async with scripted(port, answer), app.working() as working:
        database = working.producer.database

        # When mails go to both, to an address that it cannot take, and to others, the others a few at a time
        for name in names:
            async with working.producer.transaction() as tx:
                tx.send(UserWelcomed(new_id(), Customer(f"{name}@example.com")))
        await wait_until(lambda: done(database, 20))
        await wait_until(lambda: attempted(database, 1))

        # Then two are parked, for their own reasons, and the odd one spends attempts
        letters = await rows(database, schema.dead_letters)
        assert sorted(letter.reason for letter in letters) == ["mail-refused", "mail-refused"]
        (attempt,) = {row.error for row in await rows(database, schema.attempts) if "5.7.1" in str(row.error)}
        assert "554 5.7.1 policy" in attempt


async def attempted(database: Database, wanted: int) -> bool:
    return sum("5.7.1" in str(row) for row in await rows(database, schema.attempts)) >= wanted
