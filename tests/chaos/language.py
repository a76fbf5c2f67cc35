"""What a stub target says, computed without any server: the text that every client must have got in the end."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from sighting import Ask
from specrouter_core.noise import key
from specrouter_level.stub import ALPHABET, target


@dataclass(frozen=True)
class Expected:
    """The whole answer to one request. ``text`` ends before the stop text; the tokens include it."""

    tokens: tuple[int, ...]
    text: str
    finish: str


def expected(ask: Ask) -> Expected:
    """The target alone, one token after the other."""
    ids = list(ask.prompt)
    for position in range(len(ids), len(ids) + ask.max_tokens):
        a, b, c = (ids[i] if i >= 0 else 0 for i in (position - 3, position - 2, position - 1))
        noise = key(ask.seed, position) if ask.temperature > 0 else 0
        ids.append(ALPHABET[target(a, b, c, noise)[0]])
        if ask.stop and bytes(ids[len(ask.prompt) :]).endswith(ask.stop.encode()):
            made = tuple(ids[len(ask.prompt) :])
            return Expected(made, bytes(made[: -len(ask.stop)]).decode(), "stop")
    made = tuple(ids[len(ask.prompt) :])
    return Expected(made, bytes(made).decode(), "length")


CHAINS = (("draft", "mid", "target"), ("draft", "target"), ("mid", "target"), ("target",))


def asks(seed: str, count: int, least: int = 20, most: int = 60) -> list[Ask]:
    """Requests of every sort: temperatures, modes, chains; some with a stop text, some that are cancelled."""
    dice = random.Random(seed)
    made = []
    for number in range(count):
        ask = Ask(
            name=f"{seed}:{number}",
            prompt=tuple(dice.choices(ALPHABET, k=dice.choice((1, 5, 20, 90)))),
            max_tokens=dice.randint(least, most),
            seed=dice.getrandbits(53),
            temperature=dice.choice((0.0, 0.8)),
            mode=dice.choice(("", "overlapped", "lockstep")),
            chain=dice.choice(CHAINS) if dice.random() < 0.4 else (),
        )
        if dice.random() < 0.15:
            text, at = expected(ask).text, dice.randint(10, least - 2)
            ask = replace(ask, stop=text[at : at + 2])
        elif dice.random() < 0.1:
            ask = replace(ask, cancel_after=dice.randint(1, least // 2))
        if not ask.cancel_after and dice.random() < 0.3:
            ask = replace(ask, interface="rest")
        made.append(ask)
    return made


def model_asks(seed: str, count: int) -> list[Ask]:
    """Requests for the small random models: prompts of one block of KV and more, both temperatures, all ways."""
    dice = random.Random(seed)
    return [
        Ask(
            name=f"{seed}:{number}",
            prompt=tuple(dice.choices(range(3, 96), k=dice.choice((5, 70, 140)))),
            max_tokens=dice.randint(20, 60),
            seed=dice.getrandbits(53),
            temperature=(0.0, 0.8)[number % 2],
            mode=dice.choice(("", "overlapped", "lockstep")),
            chain=dice.choice(((), ("draft", "target"), ("target",))),
            interface=dice.choice(("grpc", "grpc", "rest")),
        )
        for number in range(count)
    ]
