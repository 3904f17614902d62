"""What is kept of an exception: its text, its stack and its cause, never the exception itself.

A live exception holds its frames, and these hold connections, cursors and messages; so it is turned into text where
it is caught. Total: any exception of any class gives a Failure, whatever its own code does.
"""

from __future__ import annotations

import traceback

import msgspec

from hopline.errors import TEXT_CHARACTERS, text_of
from hopline.fingerprint import Cause, cause_of

STACK_CHARACTERS = 16_000
"""Maximum length of a stack that is kept: its end, where the exception was raised."""


class Failure(msgspec.Struct, frozen=True):
    """One exception as text."""

    text: str
    """Class and text, such as `ValueError: no such customer`."""
    stack: str
    cause: Cause
    timed_out: bool = False
    """Whether it was a TimeoutError, such as a deadline that passed."""


def failure_of(error: BaseException) -> Failure:
    """Returns what is kept of an exception."""
    text = f"{type(error).__name__}: {text_of(error)}"[:TEXT_CHARACTERS]
    return Failure(text, _stack_of(error), cause_of(error), isinstance(error, TimeoutError))


def _stack_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))[-STACK_CHARACTERS:]
    except Exception as fault:  # noqa: BLE001 - a chain too deep, or an exception whose own code fails
        return f"the stack of a {type(error).__name__} cannot be made: {type(fault).__name__}"
