"""What the types of custom resources share: CEL rules beside fields, and small Kubernetes types."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import StringConstraints, WithJsonSchema

GROUP = "specrouter.dev"
VERSION = "v1alpha1"

QUANTITY = r"^([+-]?[0-9.]{1,20})([eEinumkKMGTP]{0,3}[+-]?[0-9]{0,3})$"

Quantity = Annotated[
    int | str,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY,
            "maxLength": 32,
        }
    ),
]
# A DNS label, as most names of Kubernetes objects; and a label's key and value.
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][-A-Za-z0-9_./]*$")]
Value = Annotated[str, StringConstraints(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """``json_schema_extra`` of a type: CEL rules, each with the message that a refused object gets."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}
