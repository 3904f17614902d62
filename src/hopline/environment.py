"""Settings from environment variables: a prefix and the name in capitals, for each field of a struct.

A field's type says what it may be: `Annotated[float, msgspec.Meta(ge=0.01, le=60)]`, a Literal, a bool, or text. The
same checks hold for the text of a variable and for a value that a program passes by keyword, so no struct exists that
is out of its ranges. All faults are told at once; each names the variable, what it may be, and what was given.

Neither an error nor `repr` shows a Secret, or the password of a Url. A variable that begins with the prefix and that
nobody reads is refused: it is a name that was misspelt, and what it should have set would silently be something else.
"""

from __future__ import annotations

import difflib
import os
import re
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Final, Self

import msgspec

from hopline.errors import UsageError
from hopline.redaction import HIDDEN, redacted

TEXT_CHARACTERS: Final = 4096
"""The longest text of a setting."""
SHOWN_CHARACTERS: Final = 60
"""As much of a wrong value an error shows."""
SHOWN_BITS: Final = 128
"""Python refuses to write a number of thousands of digits; one of more bits than these is not written."""

Url = Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS, extra={"shown": redacted})]
"""A URL, which may have a password in it."""
Secret = Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS, extra={"shown": lambda text: HIDDEN if text else ""})]
"""A password or a key."""
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535, title="port")]

# Kubernetes puts these into every container of a namespace, for a service that is called as the prefix is
# (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables): nobody misspelt them.
_SERVICE_LINK = re.compile(
    r"\w+_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)", re.ASCII
)
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://.*")


class EnvironmentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of something; a subclass has PREFIX and fields with defaults."""

    PREFIX: ClassVar[str] = ""
    ALSO_KNOWN: ClassVar[frozenset[str]] = frozenset()
    """Names with the prefix that others read."""
    OTHERS: ClassVar[tuple[str, ...]] = ()
    """Longer prefixes whose names other settings check."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Reads the variable of every field. UsageError tells all that is wrong, with the names of the variables."""
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        faults = [*_unknown(cls, environment)]
        for field in _fields(cls):
            text = environment.get(field.variable)
            if text is None or _is_service_link(field.variable, text):
                continue
            try:
                value = field.parse(text)
            except msgspec.ValidationError:
                value = None
            if field.admits(value):
                values[field.name] = value
            else:
                faults.append(field.fault(text))
        if faults:
            raise UsageError("; ".join(faults))
        return cls(**values)

    def __post_init__(self) -> None:
        """UsageError if a value is out of its range, or two do not fit each other."""
        values = ((field, getattr(self, field.name)) for field in _fields(type(self)))
        faults = [field.fault(value) for field, value in values if not field.admits(value)]
        if faults:
            raise UsageError("; ".join(faults))
        self.check()

    def check(self) -> None:
        """UsageError if two values that are each in their range do not fit each other."""

    def __repr__(self) -> str:
        """Without passwords."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich."""
        return [(field.name, field.shown(getattr(self, field.name))) for field in _fields(type(self))]


@dataclass(frozen=True, slots=True)
class _Field:
    """One setting: what it may be, and how it is shown."""

    name: str
    variable: str
    type: Any
    """str, int, float, bool or a Literal of text."""
    meta: msgspec.Meta
    default: Any

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a Literal, else none."""
        return typing.get_args(self.type)

    @property
    def is_open(self) -> bool:
        """Whether an error may show the value."""
        return "shown" not in (self.meta.extra or {})

    def shown(self, value: Any) -> Any:
        """The value without what is secret in it."""
        return value if self.is_open else (self.meta.extra or {})["shown"](str(value))

    def parse(self, text: str) -> Any:
        """The value of a variable's text; msgspec.ValidationError if it is none. Its range is not looked at."""
        if self.choices:
            return text.lower()
        return msgspec.convert(text, self.type, strict=False)

    def admits(self, value: Any) -> bool:
        """Whether a value is of the field's type and in its range. A nan is in none."""
        if self.choices:
            return isinstance(value, str) and value in self.choices
        if self.type is bool:
            return isinstance(value, bool)
        if self.type is str:
            return isinstance(value, str) and self._admits_text(value)
        numbers = int if self.type is int else int | float
        if not isinstance(value, numbers) or isinstance(value, bool):
            return False
        least, most = self.meta.ge, self.meta.le
        return bool(least is None or value >= least) and bool(most is None or value <= most)

    def _admits_text(self, value: str) -> bool:
        least, most = self.meta.min_length or 0, self.meta.max_length or TEXT_CHARACTERS
        return least <= len(value) <= most and not any(unicodedata.category(one) in {"Cc", "Cs"} for one in value)

    def fault(self, value: Any) -> str:
        """What is wrong with a value, and what to do."""
        given = f"{self.variable}={_printable(value)}" if self.is_open else self.variable
        no = f" is no {self.meta.title}" if self.meta.title else ""
        return f"{given}{no}: {self.name} is {self._expected()}; correct it, or unset it for its default"

    def _expected(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.type is bool:
            return "true or false"
        if self.type is str:
            least = f"{self.meta.min_length} to " if self.meta.min_length else "at most "
            return f"text of {least}{self.meta.max_length} characters, without control characters"
        number = "a whole number" if self.type is int else "a number"
        bounds = [f"at least {_number(self.meta.ge)}"] if self.meta.ge is not None else []
        bounds += [f"at most {_number(self.meta.le)}"] if self.meta.le is not None else []
        return f"{number}, {' and '.join(bounds)}" if bounds else number


@cache
def _fields(settings: type[EnvironmentSettings]) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(settings, include_extras=True)
    return tuple(
        _field(name, settings.PREFIX + name.upper(), hints[name], default)
        for name, default in zip(settings.__struct_fields__, settings.__struct_defaults__, strict=True)
    )


def _field(name: str, variable: str, hint: Any, default: Any) -> _Field:
    if typing.get_origin(hint) is Annotated:
        return _Field(name, variable, hint.__origin__, hint.__metadata__[0], default)
    meta = msgspec.Meta(max_length=TEXT_CHARACTERS) if hint is str else msgspec.Meta()
    return _Field(name, variable, hint, meta, default)


def _unknown(settings: type[EnvironmentSettings], environment: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with each variable that has the prefix and that nobody reads."""
    known = {field.variable for field in _fields(settings)} | settings.ALSO_KNOWN
    for name, value in sorted(environment.items()):
        if not name.startswith(settings.PREFIX) or name.startswith(settings.OTHERS) or name in known:
            continue
        if not _is_service_link(name, value):
            meant = difflib.get_close_matches(name.upper(), sorted(known), n=1)
            advice = f"did you mean {meant[0]}?" if meant else "unset it; docs/reference/settings.md has them all"
            yield f"{name if name.isprintable() else ascii(name)} is no setting: {advice}"


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name)) or (name.endswith("_PORT") and bool(_SERVICE_URL.fullmatch(value)))


def _printable(value: Any) -> str:
    """A value as an error shows it: cut, and without what a terminal would obey."""
    if isinstance(value, str):
        return (value if value.isprintable() else ascii(value))[:SHOWN_CHARACTERS]
    if isinstance(value, int) and value.bit_length() > SHOWN_BITS:
        return "a number of far too many digits"
    if isinstance(value, int | float):
        return _number(value)
    return f"({type(value).__name__})"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
