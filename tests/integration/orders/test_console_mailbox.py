"""The console's mailbox on a ledger of the orders system: mails as text, and as their reader sees them in a sandbox."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
from typer.testing import CliRunner

from orders.cli import app
from orders.console import LedgerMailbox
from orders.mailbox import Mail
from tests.support.console import OPERATOR_PASSWORD, VIEWER_PASSWORD, console

AT = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
HOSTILE = '<p style="color:red">Hello</p><script>alert(1)</script><img src="http://evil.test/x"> ann@example.com'


def mail(number: int, html: str) -> Mail:
    raw = (
        f"From: shop@example.com\r\nTo: ann@example.com\r\nSubject: Order {number}\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/alternative; boundary="b"\r\n\r\n'
        "--b\r\nContent-Type: text/plain\r\n\r\nHello ann@example.com\r\n"
        f"--b\r\nContent-Type: text/html\r\n\r\n{html}\r\n--b--\r\n"
    )
    return Mail(f"<{number}@example.com>", ["ann@example.com"], f"Order {number}", AT, raw)


def ledger(folder: Path, *mails: Mail) -> LedgerMailbox:
    file = folder / "mail.ndjson"
    file.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in mails))
    return LedgerMailbox(file)


async def test_mails_are_listed_newest_first_page_by_page(sqlite_database_url: str, tmp_path: Path) -> None:
    mails = ledger(tmp_path, *(mail(number, "<p>Hello</p>") for number in range(60)))
    async with console(sqlite_database_url, mailbox=mails) as made, made.person(OPERATOR_PASSWORD) as ann:
        first = await ann.json("/api/mailbox")
        second = await ann.json("/api/mailbox", before=first["before"])

    assert [one["subject"] for one in first["mails"]] == [f"Order {number}" for number in range(59, 9, -1)]
    assert [one["subject"] for one in second["mails"]] == [f"Order {number}" for number in range(9, -1, -1)]
    assert second["before"] == ""


async def test_a_mails_html_is_a_document_without_origin_that_runs_and_fetches_nothing(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    async with (
        console(sqlite_database_url, mailbox=ledger(tmp_path, mail(1, HOSTILE))) as made,
        made.person(OPERATOR_PASSWORD) as ann,
        made.person(VIEWER_PASSWORD) as vera,
        made.person() as stranger,
    ):
        page, frame = await ann.page("/mailbox/0"), await ann.get("/mailbox/0/html")
        masked = [(await vera.get(path)).text for path in ("/mailbox/0", "/mailbox/0/html")]
        unknown = await stranger.get("/mailbox/0/html")

    assert 'sandbox title="The mail as its reader sees it" src="/mailbox/0/html"' in page
    assert "<script>alert" not in page
    assert frame.text == HOSTILE
    policy = frame.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'; ")
    assert "script-src" not in policy
    assert frame.headers["x-frame-options"] == "SAMEORIGIN"
    assert frame.headers["cache-control"] == "no-store"
    assert all("ann@example.com" not in text for text in masked)
    assert unknown.status_code == 303


async def test_a_mail_that_is_not_there_is_not_found(sqlite_database_url: str, tmp_path: Path) -> None:
    mails = ledger(tmp_path, mail(1, "<p>Hello</p>"))
    async with console(sqlite_database_url, mailbox=mails) as made, made.person(OPERATOR_PASSWORD) as ann:
        answers = [(await ann.get(f"/mailbox/{name}")).status_code for name in ("1", "999999", "x", "1/html")]

    assert answers == [404] * 4


def test_the_command_line_lists_mails_and_shows_one_without_what_a_terminal_would_obey(tmp_path: Path) -> None:
    ledger(tmp_path, mail(1, "<p>Hello</p>"), msgspec.structs.replace(mail(2, "<p>2</p>"), subject="a\x1b[31mb"))
    place = ["--ledger", str(tmp_path / "mail.ndjson")]

    listed = CliRunner().invoke(app, ["mails", *place])
    told = CliRunner().invoke(app, ["mails", "--json", *place])
    shown = CliRunner().invoke(app, ["mails", "0", *place])
    missing = CliRunner().invoke(app, ["mails", "7", *place])

    assert [line.split()[-1] for line in listed.output.splitlines()] == ["a\ufffd[31mb", "1"]
    assert [one["subject"] for one in msgspec.json.decode(told.output)["mails"]] == ["a\x1b[31mb", "Order 1"]
    assert "Subject: Order 1" in shown.output
    assert "Hello ann@example.com" in shown.output
    assert (missing.exit_code, missing.output.strip()) == (1, "There is no mail 7.")
