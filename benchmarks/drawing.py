"""Bars as SVG, for results that people look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#2563eb", "#94a3b8", "#f59e0b", "#16a34a")
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
