from __future__ import annotations

import gc
import weakref

import pytest

from hopline.errors import TEXT_CHARACTERS, text_of
from hopline.failure import STACK_CHARACTERS, failure_of


class WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Leaving(BaseException):
    def __str__(self) -> str:
        raise SystemExit(1)


def raised(error: BaseException) -> BaseException:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x" * 100_000),
        ValueError("half \ud800 and NUL \x00"),
        WithoutText(),
        Leaving(),
        ExceptionGroup("several", [WithoutText(), ValueError("a")]),
        BaseExceptionGroup("several", [Leaving()]),
        type("Odd", (Exception,), {"__qualname__": "odd\ud800name"})("x"),
        SystemExit(3),
    ],
)
def test_any_exception_is_kept_as_bounded_text(error: BaseException) -> None:
    failure = failure_of(raised(error))

    assert failure.text.startswith(type(error).__name__)
    assert len(failure.text) <= TEXT_CHARACTERS
    assert 0 < len(failure.stack) <= STACK_CHARACTERS
    failure.cause.error_type.encode()
    failure.cause.frame.encode()


def test_a_long_chain_of_exceptions_is_kept_from_its_end() -> None:
    error: BaseException = ValueError("at the bottom")
    for number in range(2_000):
        outer = ValueError(f"number {number}")
        outer.__cause__ = error
        error = outer

    assert failure_of(raised(error)).stack.rstrip().endswith("number 1999")


def test_what_is_kept_does_not_hold_the_exception_nor_its_frames() -> None:
    class Held:
        pass

    def fail() -> None:
        held = Held()
        alive.append(weakref.ref(held))
        raise ValueError("x")

    alive: list[weakref.ref[Held]] = []
    try:
        fail()
    except ValueError as error:
        failure = failure_of(error)
    gc.collect()

    assert failure.cause.frame.endswith("fail")
    assert alive[0]() is None


def test_the_text_of_an_exception_without_one_names_its_class() -> None:
    assert text_of(WithoutText()) == "WithoutText, whose text cannot be made"
    assert text_of(Leaving()) == "Leaving, whose text cannot be made"
