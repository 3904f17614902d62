from __future__ import annotations

import msgspec
import pytest

from hopline.errors import UnknownType, UsageError
from hopline.message import Catalog, is_message, message, type_of


@message("thing.made", key="thing_id", version=2)
class Made(msgspec.Struct):
    thing_id: int


class Plain(msgspec.Struct):
    thing_id: int


def test_a_declared_type_knows_its_name_version_and_key() -> None:
    declared = type_of(Made(7))

    assert (declared.name, declared.version, declared.key_of(Made(7))) == ("thing.made", 2, "7")
    assert is_message(Made(7))
    assert not is_message(Plain(7))


def test_a_subclass_is_no_message_type_by_inheritance() -> None:
    class Special(Made):
        pass

    with pytest.raises(UsageError, match="no message type"):
        type_of(Special)


@pytest.mark.parametrize("name", ["", "with blank", "x" * 256])
def test_a_bad_wire_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="message name"):
        message(name, key="thing_id")


def test_a_key_that_is_no_field_is_refused() -> None:
    with pytest.raises(UsageError, match="no field"):
        message("thing.kept", key="absent")(Plain)


def test_a_class_that_is_no_struct_is_refused() -> None:
    with pytest.raises(UsageError, match="Struct"):
        message("thing.kept", key="x")(dict)  # type: ignore[type-var]


def test_the_catalog_is_an_allowlist() -> None:
    catalog = Catalog([type_of(Made)])

    assert catalog.find("thing.made", 2).cls is Made
    with pytest.raises(UnknownType, match="version 1"):
        catalog.find("thing.made", 1)


def test_two_classes_for_one_name_and_version_are_refused() -> None:
    catalog = Catalog([type_of(Made)])

    @message("thing.made", key="thing_id", version=2)
    class Other(msgspec.Struct):
        thing_id: int

    with pytest.raises(UsageError, match="declared twice"):
        catalog.add(type_of(Other))
