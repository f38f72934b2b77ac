"""The OpenAPI document is one, and names every path of the door and every code it can answer with."""

from __future__ import annotations

import json

from openapi_spec_validator import validate

from mesh.transport.http_door import OPERATIONS
from mesh.transport.openapi import document


def test_it_is_valid_and_whole() -> None:
    told = json.loads(document())
    validate(told)
    assert set(told["paths"]) == {
        *OPERATIONS,
        "/v1/models",
        "/v1/models/{model}",
        "/v1/route",
        "/openapi.json",
        "/livez",
    }


def test_every_schema_is_used() -> None:
    text = document().decode()
    for name in json.loads(text)["components"]["schemas"]:
        used = f"#/components/schemas/{name}" in text or f"{{{name}}}" in text
        assert used, name
