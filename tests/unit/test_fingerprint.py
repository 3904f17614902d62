from __future__ import annotations

import json

import pytest

from hopline.errors import Undecodable
from hopline.fingerprint import CHARACTERS, Cause, cause_of, fingerprint


def parse(text: str) -> object:
    return json.loads(text)


def caught(text: str) -> Exception:
    with pytest.raises(ValueError, match="Expecting") as info:
        parse(text)
    return info.value


def test_the_frame_is_the_innermost_one_of_the_programs_own_code() -> None:
    assert cause_of(caught("nonsense")) == Cause("json.decoder.JSONDecodeError", f"{__name__}:parse")


def test_the_same_failure_of_other_data_has_the_same_fingerprint() -> None:
    one, other = (fingerprint(cause_of(caught(text)), "exhausted", "thing.made") for text in ("nonsense", "[1,"))

    assert one == other
    assert len(one) == CHARACTERS


def test_an_exception_that_never_passed_the_program_has_no_frame() -> None:
    assert cause_of(Undecodable("bad bytes")) == Cause("hopline.errors.Undecodable", "")


def test_without_an_exception_the_reason_and_the_type_tell_groups_apart() -> None:
    fingerprints = {fingerprint(cause_of(None), reason, kind) for reason in ("refused", "late") for kind in "ab"}

    assert len(fingerprints) == 4
