"""The OpenAPI description beyond what the framework derives."""

from typing import Any

from fastapi import FastAPI

PROBLEM: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "A problem document (RFC 9457). Further members may tell more, e.g. `minimum_bits`.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "What kind of problem it is."},
        "title": {"type": "string", "description": "The same for every problem of this type."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What failed here, and what to do about it."},
        "instance": {"type": "string", "description": "What it happened to."},
        "field": {"type": "string", "description": "The input at fault."},
        "value": {"description": "The value received."},
        "allowed": {"description": "What is accepted, in words or values."},
    },
    "additionalProperties": True,
    "examples": [
        {
            "type": "urn:bitwright:problem:budget-below-minimum",
            "title": "The budget is below the smallest possible plan",
            "status": 409,
            "detail": "budget '1 bits' is 4652008 bits; the smallest possible plan takes 9304016 bits",
            "instance": "/v1/jobs",
            "field": "budgets.0",
            "value": "1 bits",
            "allowed": "9304016 bits total or more",
            "minimum_bits": 9304016,
        }
    ],
}


def describe(app: FastAPI) -> None:
    """Add the problem document's schema, to which `app.kit.http.problem_responses` refers."""
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        schema = derive()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = PROBLEM
        # Ours is answered in their place.
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign] # the documented way to extend the schema
