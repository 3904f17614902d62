from __future__ import annotations

import re
from typing import Any

import msgspec

from hopline import Hopline, Settings
from orders import docs
from orders.api import _KEY, CustomerBody, LineBody, OrderBody, create_app
from orders.problems import IDEMPOTENCY_KEY


def test_every_route_is_described_and_nothing_else() -> None:
    # Given the application's routes
    application = create_app(Hopline(settings=Settings()))
    routes = {
        (re.sub(r"\{\w+_id:str\}", "{id}", route.path), method.lower())
        for route in application.routes
        for method in getattr(route, "methods", ())
        if method not in ("OPTIONS", "HEAD") and not route.path.startswith("/docs")
    }

    # When the description is read
    described = {(path, method) for path, methods in docs.PATHS.items() for method in methods}

    # Then they are the same
    assert described == routes


def test_the_shapes_are_those_that_are_decoded() -> None:
    for name, shape in (("Customer", CustomerBody), ("Line", LineBody), ("NewOrder", OrderBody)):
        schema = docs.SCHEMAS[name]
        fields = msgspec.structs.fields(shape)
        assert list(schema["properties"]) == [field.name for field in fields]
        assert schema["required"] == [field.name for field in fields if field.required]
        assert schema["additionalProperties"] is False


def test_every_reference_leads_somewhere() -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            here = [value["$ref"]] if "$ref" in value else []
            return here + [reference for inner in value.values() for reference in references(inner)]
        if isinstance(value, list):
            return [reference for inner in value for reference in references(inner)]
        return []

    found = references(docs.description())

    assert found
    assert {reference.removeprefix("#/components/schemas/") for reference in found} <= set(docs.SCHEMAS)


def test_the_idempotency_key_is_described_as_it_is_checked() -> None:
    (schema,) = (one["schema"] for one in docs.PATHS["/orders"]["post"]["parameters"] if one["name"] == IDEMPOTENCY_KEY)
    lengths = range(schema["minLength"], schema["maxLength"] + 1)
    for text in ("", "k", "k" * 255, "k" * 256, "a b", "é", "a\n", *map(chr, range(0x80))):
        described = len(text) in lengths and re.fullmatch(schema["pattern"].strip("^$"), text) is not None
        assert described == (_KEY.fullmatch(text.encode()) is not None), text
