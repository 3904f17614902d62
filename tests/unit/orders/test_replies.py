"""What the replies of real servers mean, and that every reply means something."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orders.replies import TEXT_CHARACTERS, Step, Verdict, judge, parse

MAIL, RCPT, DATA, CONTENT = Step
DOWN, REFUSED, UNCLEAR, LATER = Verdict.DOWN, Verdict.REFUSED, Verdict.UNCLEAR, Verdict.LATER

SESSION = [
    (MAIL, "530 Must issue a STARTTLS command first"),
    (MAIL, "530 5.7.0 Must issue a STARTTLS command first"),
    (MAIL, "530 Authentication required"),
    (MAIL, "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM"),
    (MAIL, "535 5.7.8 Authentication credentials invalid"),
    (MAIL, "534 5.7.9 Authentication mechanism is too weak"),
    (MAIL, "538 5.7.11 Encryption required for requested authentication mechanism"),
    (MAIL, "550 5.7.60 SMTP; Client does not have permissions to send as this sender"),
    (MAIL, "503 Bad sequence of commands"),
    (MAIL, "503 5.5.1 Error: send HELO/EHLO first"),
    (MAIL, "550 5.1.8 <shop@example.com>: Sender address rejected: Domain not found"),
    (MAIL, "550 mailbox unavailable"),
    (MAIL, "501 5.1.7 Bad sender address syntax"),
    (MAIL, "552 5.2.2 over the sender's quota"),
    (MAIL, "554 not you"),
    (MAIL, "555 5.5.4 Unsupported option: SMTPUTF8"),
    (MAIL, "421 4.3.2 Service shutting down"),
    (MAIL, "454 4.7.0 Temporary authentication failure"),
    (MAIL, "432 4.7.12 A password transition is needed"),
    (MAIL, "452 4.3.1 Insufficient system storage"),
    (MAIL, "450 4.1.8 <shop@example.com>: Sender address rejected: Domain not found"),
    (RCPT, "530 5.7.1 Authentication required"),
    (RCPT, "554 Client host blocked"),
    (RCPT, "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org"),
    (RCPT, "554 5.7.1 <mail[192.0.2.1]>: Client host rejected: Access denied"),
    (RCPT, "553 5.7.1 <shop@example.com>: Sender address rejected: not owned by user shop"),
    (RCPT, "550 5.1.8 <shop@example.com>: Sender address rejected: Domain not found"),
    (RCPT, "554 5.7.1 <ann@example.com>: Relay access denied"),
    (RCPT, "550 5.7.1 Unable to relay"),
    (RCPT, "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain"),
    (RCPT, "550 relay not permitted"),
    (RCPT, "550-Verification failed for <shop@example.com>\r\n550 Sender verify failed"),
    (RCPT, "550 5.7.606 Access denied, banned sending IP [192.0.2.1]"),
    (RCPT, "550 5.7.1 policy"),
    (RCPT, "503 5.5.1 Error: need MAIL command"),
    (RCPT, "521 5.3.2 mail.example.com does not accept mail"),
    (RCPT, "550 5.3.5 System incorrectly configured"),
    (RCPT, "450 4.7.1 Client host rejected: cannot find your hostname"),
    (RCPT, "451 4.3.0 <ann@example.com>: Temporary lookup failure"),
    (RCPT, "421 4.7.0 Too many errors"),
    (DATA, "503 5.5.1 RCPT first"),
    (DATA, "530 5.7.1 Client was not authenticated"),
    (CONTENT, "550 5.7.60 SMTP; Client does not have permissions to send as this sender"),
    (CONTENT, "550 5.7.26 This mail is unauthenticated, which poses a security risk"),
    (
        CONTENT,
        "550-5.7.1 [192.0.2.1] Our system has detected an unusual rate of mail originating from\r\n550 5.7.1 your IP",
    ),
    (CONTENT, "452 4.3.1 Insufficient system storage"),
    (CONTENT, "550 5.5.2 what"),
]
THIS_MAIL = [
    (RCPT, "550 5.1.1 <relay@example.com>: Recipient address rejected: User unknown in relay recipient table"),
    (RCPT, "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup"),
    (RCPT, "556 5.1.10 Recipient address has null MX"),
    (RCPT, "501 5.1.3 Bad recipient address syntax"),
    (RCPT, "550 no such user"),
    (RCPT, "550 Requested action not taken: mailbox unavailable"),
    (RCPT, "550 No such user: <relay@example.com>"),
    (RCPT, "550 no such user client.host.blocked@example.com"),
    (RCPT, "552 5.2.2 Mailbox full"),
    (RCPT, "550 5.2.1 The email account that you tried to reach is disabled"),
    (RCPT, "550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup"),
    (RCPT, "550 5.7.17 Mailbox owner has changed"),
    (MAIL, "550 5.6.7 Addresses outside ASCII are not permitted for that sender/recipient"),
    (RCPT, "553 5.6.7 Non-ASCII addresses not permitted"),
    (CONTENT, "552 5.3.4 Message size exceeds fixed limit"),
    (CONTENT, "552 5.2.3 Message is too long for this mailbox"),
    (CONTENT, "554 5.6.0 Message content rejected"),
    (RCPT, "552 5.3.4 Message too big for system"),
]
UNCLEAR_ONES = [
    (RCPT, "550 nobody"),
    (RCPT, "553 not allowed"),
    (RCPT, "554 no"),
    (RCPT, "550 5.4.1 All recipient addresses rejected : Access denied"),
    (RCPT, "554 5.7.1 <ann@example.com>: Recipient address rejected: Access denied"),
    (DATA, "554 no valid recipients"),
    (CONTENT, "554 spam"),
    (CONTENT, "554 5.7.1 Spam message rejected"),
    (CONTENT, "552 too big"),
    (RCPT, "550 4.1.1 of another class"),
    (RCPT, "599 5.9.9 a subject that nobody knows"),
]
NOT_NOW = [
    (RCPT, "450 4.2.0 <ann@example.com>: Recipient address rejected: Greylisted"),
    (RCPT, "451 4.7.1 Greylisting in action, please come back later"),
    (RCPT, "450 4.7.1 <ann@example.com>: Recipient address rejected: Grey-listed"),
    (RCPT, "450 later"),
    (RCPT, "451 4.2.1 mailbox busy"),
    (RCPT, "452 4.2.2 mailbox full"),
    (RCPT, "450 4.1.1 unverified"),
    (RCPT, "452 4.5.3 too many recipients"),
    (MAIL, "451 later"),
    (CONTENT, "451 4.4.1 no answer from host"),
    (CONTENT, "354 go on"),
    (DATA, "250 what"),
    (RCPT, "354 go on"),
    (RCPT, "hello"),
    (RCPT, ""),
    (RCPT, "5501 four digits"),
    (RCPT, "250-of two\r\n550 minds"),
]


@pytest.mark.parametrize(
    ("step", "text", "verdict"),
    [
        (step, text, verdict)
        for verdict, replies in ((DOWN, SESSION), (REFUSED, THIS_MAIL), (UNCLEAR, UNCLEAR_ONES), (LATER, NOT_NOW))
        for step, text in replies
    ],
)
def test_what_servers_say(step: Step, text: str, verdict: Verdict) -> None:
    assert judge(step, parse(text.encode() + b"\r\n")) is verdict


codes = st.integers(0, 999).map("{:03}".format)
enhanced = st.builds("{}.{}.{}".format, st.integers(2, 6), st.integers(0, 9), st.integers(0, 999)) | st.just("")
words = st.sampled_from(["", "client host", "recipient", "greylisted"]) | st.text(max_size=12)


@given(st.sampled_from(Step), codes, enhanced, words)
def test_every_code_has_a_verdict_that_fits_its_first_digit(step: Step, code: str, detail: str, said: str) -> None:
    verdict = judge(step, parse(f"{code} {detail} {said}\r\n".encode(errors="replace")))

    if code[0] != "5":
        assert verdict in (LATER, DOWN)
    if code[0] not in "45":
        assert verdict is LATER
    if step is MAIL and code[0] == "5" and not detail.startswith("5.6."):
        assert verdict is DOWN


@given(st.sampled_from(Step), st.binary(max_size=200))
@example(RCPT, b"550-\xff\r\n550 \x00\x1b[2J\r\n")
@example(RCPT, b"250 " + b"x" * 100_000)
@example(RCPT, b"\n")
@example(RCPT, b"")
def test_any_bytes_are_a_reply_with_a_verdict_and_a_text_that_can_be_stored(step: Step, raw: bytes) -> None:
    reply = parse(raw)

    assert judge(step, reply) in Verdict
    assert 0 <= reply.code <= 999
    assert reply.text.isprintable()
    assert len(reply.text) <= TEXT_CHARACTERS
    assert reply.text.encode()


def test_a_reply_of_many_lines_is_read_in_a_blink() -> None:
    assert judge(RCPT, parse(b"550-<" * 6_000 + b"@" * 2_000 + b"\r\n" + b"550 x\r\n")) in Verdict
