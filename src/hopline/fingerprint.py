"""What a failure has in common with others of the same cause: the exception's type and where it left the program.

The frame is the innermost one of the program's own code (neither Hopline, nor an installed package, nor Python
itself), as `module:function`: a line number would change with every edit. Pure.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import FrameType

CHARACTERS = 12
PLACE_CHARACTERS = 255

_OTHERS = tuple(
    {
        str(Path(__file__).parent),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        "<",  # frozen modules, and code made by exec
    }
)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something failed, as far as it can be compared with other failures."""

    error_type: str = ""
    """The exception's class with its module, such as aiosmtplib.errors.SMTPServerDisconnected; empty without one."""
    frame: str = ""
    """module:function of the program's own code; empty if the exception never passed through it."""


NO_CAUSE = Cause()
"""Of what failed without an exception."""


def cause_of(error: BaseException | None) -> Cause:
    """The cause of an exception."""
    if error is None:
        return NO_CAUSE
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if _is_own(frame)]
    return Cause(_name(name), _name(_place(frames[-1])) if frames else "")


def fingerprint(cause: Cause, reason: str, type_name: str) -> str:
    """Equal for what failed of the same cause; without an exception, by reason and message type."""
    parts = (cause.error_type, cause.frame) if cause.error_type else (reason, type_name)
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:CHARACTERS]


def _name(text: str) -> str:
    """A name that a program made up at run time may hold anything: cut, and without half characters."""
    return text[:PLACE_CHARACTERS].encode("utf-8", "replace").decode()


def _is_own(frame: FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(_OTHERS)


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_code.co_qualname}"
