"""A curve with labelled points as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 50, 60
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class Point:
    """One point and what stands beside it."""

    x: float
    y: float
    label: str


def line(points: Sequence[Point], *, title: str, x: str, y: str) -> str:
    """An SVG picture of the points joined in their order; ``x`` and ``y`` name the axes. Raises ValueError if none."""
    if not points:
        raise ValueError("points: must not be empty")
    across = _ticks(max(p.x for p in points))
    up = _ticks(max(p.y for p in points))

    def at(px: float, py: float) -> tuple[float, float]:
        return (
            LEFT + px / across[-1] * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - py / up[-1] * (HEIGHT - TOP - BOTTOM),
        )

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 22, title, size=15),
        _text(WIDTH / 2, HEIGHT - 14, x),
        _text(18, HEIGHT / 2, y, turned=True),
    ]
    for tick in across:
        (px, py), (_, top) = at(tick, 0), at(tick, up[-1])
        out += [_rule(px, py, px, top), _text(px, py + 18, f"{tick:g}")]
    for tick in up:
        (px, py), (right, _) = at(0, tick), at(across[-1], tick)
        out += [_rule(px, py, right, py), _text(px - 8, py + 4, f"{tick:g}", anchor="end")]
    places = [at(p.x, p.y) for p in points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
    out.append(f'<polyline points="{path}" fill="none" stroke="#2563eb" stroke-width="2"/>')
    for (px, py), point in zip(places, points, strict=True):
        out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="#2563eb"/>')
        anchor = "start" if px < WIDTH * 0.6 else "end"
        out.append(_text(px + (8 if anchor == "start" else -8), py - 8, point.label, anchor=anchor, size=11))
    return "\n".join([*out, "</svg>", ""])


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to at least ``most``, at most seven of them."""
    if most <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(most / 5))
    step = next(s * power for s in STEPS if most / (s * power) <= 6)
    return [i * step for i in range(math.ceil(most / step - 1e-9) + 1)]


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{turn}>{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#e5e7eb"/>'
