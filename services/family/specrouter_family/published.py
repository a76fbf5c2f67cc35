"""What the operator gives the routers of a family, in one hash in Redis.

    specrouter:family:{NAME}:policy     version    integer, only grows
                                        document   JSON: {"weights": {level: 0..100}, "chain": {...}, or null}

``chain`` is the chain section of the family file. Routers read it every second and take what is newer than they have.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from specrouter_family.family import ChainSpec, Name

MOST_BYTES = 65_536  # of a document

Weights = dict[Name, Annotated[float, Field(ge=0, le=100)]]
_weights = TypeAdapter(Weights)
_object = TypeAdapter(dict[str, object])


def policy_key(family: str) -> str:
    """The hash's key; the braces keep a family's keys on one node of a cluster."""
    return f"specrouter:family:{{{family}}}:policy"


def document(weights: dict[str, float], chain: ChainSpec | None) -> str:
    """The JSON of a document. Raises ValueError (pydantic's) when a weight is not 0 to 100."""
    part = "null" if chain is None else chain.model_dump_json(exclude_unset=True)
    return f'{{"weights": {_weights.dump_json(_weights.validate_python(weights)).decode()}, "chain": {part}}}'


def read(text: bytes | str) -> tuple[dict[str, float], ChainSpec | None, str]:
    """The weights, the chain if there is one, and what is wrong with the chain ("" = nothing).

    A chain that this version doesn't understand must not keep the weights back: so it is reported, not raised.
    Raises ValueError when the document or its weights can't be used.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"document: at most {MOST_BYTES} bytes, got {len(text)}")
    said = _object.validate_json(text)
    weights = _weights.validate_python(said.get("weights", {}))
    chain = said.get("chain")
    if chain is None:
        return weights, None, ""
    try:
        return weights, ChainSpec.model_validate(chain), ""
    except ValidationError as error:
        return weights, None, f"chain: {' '.join(str(error).split())}"
