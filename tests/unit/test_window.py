from __future__ import annotations

from hopline.window import GUESSED_BYTES, Window
from tests.support.engine import send_of

SENDS = [send_of(b"x" * 10) for _ in range(5)]


def test_room_is_for_so_many_messages() -> None:
    window = Window(messages=3, bytes_=1_000)

    assert window.take(SENDS) == 3
    assert window.take(SENDS) == 0
    window.give(SENDS[:1])
    assert window.take(SENDS) == 1


def test_room_is_for_so_many_bytes_and_the_last_message_may_go_beyond() -> None:
    window = Window(messages=100, bytes_=25)

    assert window.take(SENDS) == 3
    assert window.take(SENDS) == 0
    window.give(SENDS[:3])
    assert window.take(SENDS) == 3


def test_a_message_larger_than_all_the_room_goes_alone() -> None:
    window = Window(messages=100, bytes_=5)

    assert window.take([send_of(b"x" * 50), *SENDS]) == 1
    assert window.take(SENDS) == 0


def test_what_is_claimed_is_as_much_as_there_is_room_for_by_the_sizes_seen() -> None:
    window = Window(messages=100, bytes_=10 * GUESSED_BYTES)

    assert window.claimable(50) == 10
    window.hold(SENDS)
    assert window.claimable(50) == 50
    window.hold([send_of(b"x" * 4 * GUESSED_BYTES)])
    assert window.claimable(50) == 2
    window.hold([send_of(b"x" * 10 * GUESSED_BYTES)])
    assert window.claimable(50) == 0


def test_claims_beside_takes_may_exceed_the_window_and_then_nothing_is_taken() -> None:
    window = Window(messages=3, bytes_=1_000)

    window.hold(SENDS)

    assert window.claimable(50) == 0
    assert window.take(SENDS) == 0
