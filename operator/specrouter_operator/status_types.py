"""Conditions, as metav1.Condition has them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, WithJsonSchema

from specrouter_family.family import Spec


class Condition(Spec):
    """One aspect of an object's state."""

    type: Annotated[str, StringConstraints(max_length=316)]
    """The aspect."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
    """Why, in one word."""
    message: Annotated[str, StringConstraints(max_length=32768)]
    """Why, in words."""
    last_transition_time: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
    """When status last changed."""
    observed_generation: Annotated[int, Field(ge=0)]
    """The metadata.generation that this condition is about."""
