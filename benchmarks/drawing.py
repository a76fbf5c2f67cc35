"""Bars as SVG, for results that people look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#2563eb", "#94a3b8", "#f59e0b", "#16a34a")
MARKS = 12  # on an axis, at most
HEIGHT, BAR, GAP, LEFT, TOP = 220, 18, 26, 46, 48


def bars(title: str, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """One group of bars per name in ``groups``, one bar in it per series."""
    most = max(max(values) for values in series.values())
    step = BAR * len(series) + GAP
    width, bottom = LEFT + step * len(groups) + 20, TOP + HEIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 60}" font-family="sans-serif" '
        'font-size="11"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for i, name in enumerate(series):
        x = LEFT + 170 * i
        out.append(f'<rect x="{x}" y="28" width="10" height="10" fill="{COLOURS[i % len(COLOURS)]}"/>')
        out.append(f'<text x="{x + 14}" y="37">{escape(name)}</text>')
    for g, group in enumerate(groups):
        left = LEFT + step * g
        for i, values in enumerate(series.values()):
            tall = HEIGHT * values[g] / most
            x, y = left + BAR * i, bottom - tall
            out.append(
                f'<rect x="{x}" y="{y:.1f}" width="{BAR - 2}" height="{tall:.1f}" fill="{COLOURS[i % len(COLOURS)]}"/>'
            )
            out.append(f'<text x="{x}" y="{y - 3:.1f}" font-size="8">{values[g]:.1f}</text>')
        out.append(f'<text x="{left}" y="{bottom + 16 + 14 * (g % 2)}">{escape(group)}</text>')
    out.append(f'<line x1="{LEFT - 4}" y1="{bottom}" x2="{width - 10}" y2="{bottom}" stroke="black"/></svg>')
    return "\n".join(out) + "\n"


def lines(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One line per series through its points (x, y), both from 0 on."""
    most_x = max(x for points in series.values() for x, _ in points)
    most_y = max(y for points in series.values() for _, y in points)
    wide, bottom = 520, TOP + HEIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + wide + 140}" height="{bottom + 40}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + wide * x / most_x, bottom - HEIGHT * y / most_y

    for i, (name, points) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = place(*points[-1])
        out.append(f'<text x="{x + 6:.1f}" y="{y + 4 - 3 * i:.1f}" fill="{colour}">{escape(name)}</text>')
    marks = sorted({x for points in series.values() for x, _ in points})
    for x in marks[:: -(-len(marks) // MARKS)]:
        out.append(f'<text x="{place(x, 0)[0] - 8:.1f}" y="{bottom + 16}">{x:g}</text>')
    for part in (0.0, 0.5, 1.0):
        y = bottom - HEIGHT * part
        out.append(f'<text x="4" y="{y + 4:.1f}">{most_y * part:.0f}</text>')
        out.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + wide}" y2="{y:.1f}" stroke="#e2e8f0"/>')
    return "\n".join([*out, "</svg>"]) + "\n"
