"""Line charts as SVG, readable on light and dark pages; the same data give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Series", "line_chart"]

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _BOTTOM = 84, 24, 56
_TOP, _LEGEND = 52, 22
_STYLE = """
  svg { background: #ffffff; font: 13px system-ui, sans-serif; }
  .back { fill: #ffffff; }
  text { fill: #3d4148; }
  .title { fill: #14171c; font-size: 15px; font-weight: 600; }
  .grid { stroke: #e2e5ea; stroke-width: 1; }
  .line { fill: none; stroke-width: 2; }
  .s0 { stroke: #1b6ec2; } .s1 { stroke: #c2570c; } .s2 { stroke: #157f55; }
  .s3 { stroke: #8a3fd0; } .s4 { stroke: #7a6a00; } .s5 { stroke: #b3246b; }
  .mark { fill: #ffffff; stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    svg { background: #16191f; }
    .back, .mark { fill: #16191f; }
    text { fill: #c3c8d0; }
    .title { fill: #f1f3f6; }
    .grid { stroke: #2c313a; }
    .s0 { stroke: #6bb1f5; } .s1 { stroke: #f2965a; } .s2 { stroke: #54c794; }
    .s3 { stroke: #bf95f2; } .s4 { stroke: #d6c34a; } .s5 { stroke: #f07fb4; }
  }
"""
_DASHES = ("", "7 4", "2 4")


@dataclass(frozen=True)
class Series:
    """A line: what it is, and its points from left to right, all greater than zero."""

    name: str
    points: tuple[tuple[float, float], ...]


def line_chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Draw lines over two logarithmic axes: what grows evenly is straight.

    Args:
        title: What is shown.
        x_label: What grows, with its unit.
        y_label: What is measured, with its unit.
        series: The lines, at most as many as there are colours: six.

    Raises:
        ValueError: There is nothing to draw, or too much, or a value that has no logarithm.
    """
    xs = sorted({x for line in series for x, _ in line.points})
    ys = [y for line in series for _, y in line.points]
    if not xs or not ys or min(*xs, *ys, math.inf) <= 0 or len(series) > 6:
        raise ValueError("a chart has one to six lines, of values greater than zero")
    top = _TOP + _LEGEND * len(series) + 12
    height = _HEIGHT + _LEGEND * len(series)
    across = _Axis(xs[0], xs[-1], _LEFT + 14, _WIDTH - _RIGHT - 14)
    up = _Axis(*_rounded(min(ys), max(ys)), height - _BOTTOM, top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="back" width="{_WIDTH}" height="{height}"/>',
        f'<text class="title" x="{_LEFT - 60}" y="30">{escape(title)}</text>',
        *_legend(series),
        *_grid(xs, across, up),
        f'<text x="{_WIDTH // 2}" y="{height - 14}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(20 {(top + height - _BOTTOM) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>',
    ]
    for number, line in enumerate(series):
        parts += _line(number, [(across.at(x), up.at(y)) for x, y in line.points])
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis: values, and where on the page the least and the greatest are."""

    least: float
    most: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        if self.most == self.least:
            return (self.begin + self.end) / 2
        part = math.log(value / self.least) / math.log(self.most / self.least)
        return self.begin + part * (self.end - self.begin)


def _rounded(least: float, most: float) -> tuple[float, float]:
    """The next values of the form 1, 2 or 5 times a power of ten that have these between them."""
    steps = _steps(least / 10, most * 10)
    return max(s for s in steps if s <= least), min(s for s in steps if s >= most)


def _steps(least: float, most: float) -> list[float]:
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    return [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]


def _grid(xs: Sequence[float], across: _Axis, up: _Axis) -> Iterable[str]:
    values = [step for step in _steps(up.least, up.most) if up.least <= step <= up.most]
    if len(values) > 8:
        values = [step for step in values if f"{step:e}".startswith("1")]
    for value in values:
        y = up.at(value)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        yield f'<text x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>'
    for value in xs:
        x = across.at(value)
        yield f'<path class="grid" d="M{x:.1f} {up.begin:.1f}V{up.end:.1f}"/>'
        middle = f'y="{up.begin + 20:.1f}" text-anchor="middle"'
        yield f'<text x="{x:.1f}" {middle}>{_number(value)}</text>'


def _legend(series: Sequence[Series]) -> Iterable[str]:
    for number, line in enumerate(series):
        y = _TOP + _LEGEND * number + 4
        yield from _line(number, [(_LEFT, y), (_LEFT + 44, y)], marks=[(_LEFT + 22, y)])
        yield f'<text x="{_LEFT + 56}" y="{y + 4}">{escape(line.name)}</text>'


def _line(
    number: int,
    points: Sequence[tuple[float, float]],
    marks: Sequence[tuple[float, float]] | None = None,
) -> Iterable[str]:
    dash = _DASHES[number % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline class="line s{number}"{dashed} points="{path}"/>'
    for x, y in points if marks is None else marks:
        yield f'<path class="mark s{number}" d="{_mark(number, x, y)}"/>'


def _mark(number: int, x: float, y: float) -> str:
    """A point of a line, of another shape in each: colour alone tells not everybody."""
    if number % 3 == 0:
        return f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z"
    if number % 3 == 1:
        return f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z"
    return f"M{x:.1f} {y - 5:.1f}l5 9h-10z"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
