from __future__ import annotations

import base64

import msgspec
import pytest

from hopline.console.sessions import NAME_CHARACTERS, SIGNED_OUT, Flash, Session, Sessions, Signer

SECRET = "s" * 32


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(Signer(SECRET), seconds=60, clock=clock)


def test_a_cookie_proves_its_session_until_it_ends(sessions: Sessions, clock: Clock) -> None:
    session, cookie = sessions.begin("viewer", "ann")

    assert sessions.find(cookie) == session
    clock.now += 59.9
    assert sessions.find(cookie) == session
    clock.now += 0.1
    assert sessions.find(cookie) is None


def test_a_cookie_is_of_no_use_after_the_sign_out_nor_to_another_secret(sessions: Sessions, clock: Clock) -> None:
    session, cookie = sessions.begin("operator", "")
    _, other = sessions.begin("operator", "")

    sessions.end(session)

    assert sessions.find(cookie) is None
    assert sessions.find(other) is not None
    assert Sessions(Signer("t" * 32), seconds=60, clock=clock).find(other) is None
    assert Sessions(Signer(), seconds=60, clock=clock).find(other) is None


def test_nobody_makes_themselves_an_operator(sessions: Sessions) -> None:
    session, cookie = sessions.begin("viewer", "ann")
    _, _, signature = cookie.rpartition(".")
    raised = msgspec.structs.replace(session, role="operator")
    payload = base64.urlsafe_b64encode(msgspec.json.encode(raised)).decode().rstrip("=")

    for forged in (f"{payload}.{signature}", f"{payload}.", payload, "", ".", "a.b", "é.ü", cookie[:-1], cookie + "0"):
        assert sessions.find(forged) is None, forged
    assert sessions.find(None) is None


def test_what_is_signed_for_one_purpose_is_nothing_for_another() -> None:
    signer = Signer(SECRET)
    session = Session("1", "operator", "", 1e12)

    assert signer.read("session", Session, signer.sign("session", session)) == session
    assert signer.read("session", Session, signer.sign("flash", session)) is None
    assert signer.read("flash", Flash, signer.sign("flash", session)) is None  # signed, and no Flash


def test_a_forms_token_is_of_its_session_only(sessions: Sessions) -> None:
    mine, _ = sessions.begin("operator", "")
    other, cookie = sessions.begin("operator", "")

    assert sessions.has_csrf(mine, sessions.csrf(mine))
    for token in (sessions.csrf(other), "", cookie, sessions.csrf(mine)[:-1], "ü"):
        assert not sessions.has_csrf(mine, token), token


@pytest.mark.parametrize(
    ("given", "name"),
    [("  ann \n lee\x00 ", "ann lee"), ("x" * 100, "x" * NAME_CHARACTERS), ("\u202eann", "ann"), ("", "")],
)
def test_a_name_is_one_short_line_that_shows_itself(sessions: Sessions, given: str, name: str) -> None:
    assert sessions.begin("viewer", given)[0].name == name


def test_what_the_audit_log_calls_somebody() -> None:
    assert Session("1", "operator", "ann", 0).who("192.0.2.1") == "ann (operator, 192.0.2.1)"
    assert Session("1", "viewer", "", 0).who("192.0.2.1") == "viewer (192.0.2.1)"


def test_only_so_many_ends_are_remembered_and_none_longer_than_its_session(sessions: Sessions, clock: Clock) -> None:
    early, cookie = sessions.begin("viewer", "")
    sessions.end(early)
    clock.now += 61
    late, _ = sessions.begin("viewer", "")
    sessions.end(late)
    assert list(sessions._ended) == [late.id]
    assert sessions.find(cookie) is None

    sessions._ended = {str(number): clock.now + 60 for number in range(SIGNED_OUT)}
    sessions.end(late)
    assert len(sessions._ended) == SIGNED_OUT
    assert late.id in sessions._ended
