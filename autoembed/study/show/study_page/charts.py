"""Charts as inline SVG whose marks tell their numbers when they are pointed at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoembed.frontier.picture import in_bytes
from autoembed.study.show.study_page.markup import Html, tag
from autoembed.study.show.tables import legible

COLOURS = 7
_WIDTH, _HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 12, 12, 46
# Drawn around (0, 0); more shapes than colours, so that arms with one colour have different shapes.
_SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-5.5L5.5,4.5H-5.5z",
    "M0,-6L6,0L0,6L-6,0z",
    "M0,5.5L5.5,-4.5H-5.5z",
    "M-2,-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
    "M-5,-5L0,-2L5,-5L2,0L5,5L0,2L-5,5L-2,0z",
    "M-5.5,-3h11v6h-11z",
)
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point of a chart: where it is, what it says, and whether it is drawn hollow."""

    x: float
    y: float
    says: str
    hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Numbers from `low` to `high` on the pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def at(self, value: float) -> float:
        low, high, here = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return round(self.start + (here - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if self.log:
            return _log_ticks(self.low, self.high)
        found = _even_ticks(self.low, self.high)
        return [value for value in found if not self.whole or abs(value - round(value)) < 1e-9]


def scatter(
    series: Mapping[str, Sequence[Mark]],
    front: Sequence[tuple[float, float]],
    x_title: str,
    y_title: str,
    *,
    bytes_: bool,
) -> Html:
    """Points by series over a logarithmic x, and the steps of a Pareto front; x values must be above 0."""
    marks = [mark for own in series.values() for mark in own]
    x = _padded([mark.x for mark in marks], _LEFT, _WIDTH - _RIGHT, log=True)
    y = _padded([mark.y for mark in marks], _HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(x, y, x_title, y_title, in_bytes if bytes_ else _short)]
    if len(front) > 1:
        steps = [f"M{x.at(front[0][0])},{y.at(front[0][1])}"]
        steps += [f"H{x.at(cost)}V{y.at(quality)}" for cost, quality in front[1:]]
        parts.append(tag("path", d="".join(steps), class_="front"))
    for number, own in enumerate(series.values()):
        parts += [_mark(mark, x, y, number) for mark in own]
    return _figure(parts, f"{y_title} over {x_title}", legend(series, lines=False))


def curves(series: Mapping[str, Sequence[Mark]], x_title: str, y_title: str) -> Html:
    """A line for each series, with its points; x are whole numbers."""
    marks = [mark for own in series.values() for mark in own]
    ends = [mark.x for mark in marks]
    x = Axis(low=min(ends) - 0.5, high=max(ends) + 0.5, start=_LEFT, end=_WIDTH - _RIGHT, whole=True)
    y = _padded([mark.y for mark in marks], _HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(x, y, x_title, y_title, _short)]
    for number, own in enumerate(series.values()):
        if not own:
            continue
        places = " ".join(f"{x.at(mark.x)},{y.at(mark.y)}" for mark in own)
        parts.append(
            tag("polyline", points=places, class_=f"line s{number % COLOURS}", stroke_dasharray=_dashes(number) or None)
        )
        parts += [_mark(mark, x, y, number) for mark in own]
    return _figure(parts, f"{y_title} over {x_title}", legend(series, lines=True))


def whisker(value: float, low: float, high: float, ends: tuple[float, float], says: str) -> Html:
    """A value with its interval, on the scale from the first to the second of `ends`."""
    axis = Axis(low=ends[0], high=ends[1] if ends[1] > ends[0] else ends[0] + 1e-9, start=6, end=114)
    line = tag("line", x1=axis.at(low), x2=axis.at(high), y1=9, y2=9, class_="axis")
    bars = (tag("line", x1=axis.at(end), x2=axis.at(end), y1=5, y2=13, class_="axis") for end in (low, high))
    dot = tag("circle", cx=axis.at(value), cy=9, r=4, class_="s1")
    return tag("svg", tag("title", says), line, *bars, dot, viewBox="0 0 120 18", width=120, role="img")


def bar(value: float, most: float, *, dim: bool = False) -> Html:
    """A bar of up to 8 em beside its number in a table."""
    share = max(0.0, min(1.0, value / most)) if most > 0 else 0.0
    return tag("span", class_="bar dim" if dim else "bar", style=f"width:{share * 8:.2f}em", aria_hidden="true")


def legend(series: Mapping[str, Sequence[Mark]], *, lines: bool) -> Html:
    """What the colours, shapes and dashes stand for; series without points keep theirs, and are left out."""
    items = []
    for number, (name, own) in enumerate(series.items()):
        if not own:
            continue
        line = None
        if lines:
            dashes = _dashes(number) or None
            line = tag("path", d="M0,7H26", class_=f"line s{number % COLOURS}", stroke_dasharray=dashes)
        shape = tag("path", d=_shape(number), transform="translate(13 7)", class_=f"mark s{number % COLOURS}")
        sign = tag("svg", line, shape, viewBox="0 0 26 14", width=26, aria_hidden="true")
        items.append(tag("li", sign, " ", legible(name, 60)))
    return tag("ul", *items, class_="legend")


def _figure(parts: Sequence[Html], label: str, key: Html) -> Html:
    image = tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", width=_WIDTH * 1.4, role="img", aria_label=label)
    return tag("figure", image, key)


def _mark(mark: Mark, x: Axis, y: Axis, number: int) -> Html:
    kind = f"mark s{number % COLOURS}{' open' if mark.hollow else ''}"
    place = f"translate({x.at(mark.x)} {y.at(mark.y)})"
    return tag("path", tag("title", mark.says), d=_shape(number), transform=place, class_=kind)


def _shape(number: int) -> str:
    return _SHAPES[number % len(_SHAPES)]


def _dashes(number: int) -> str:
    return _DASHES[number % len(_DASHES)]


def _frame(x: Axis, y: Axis, x_title: str, y_title: str, shown: object) -> list[Html]:
    """Axes, ticks, the grid and the titles."""
    assert callable(shown)
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    y_ticks = y.ticks()
    digits = _digits(y_ticks)
    for value in y_ticks:
        parts.append(tag("line", x1=_LEFT, x2=right, y1=y.at(value), y2=y.at(value), class_="grid"))
        parts.append(tag("text", f"{value:.{digits}f}", x=_LEFT - 6, y=y.at(value) + 4, text_anchor="end"))
    for value in x.ticks():
        parts.append(tag("line", x1=x.at(value), x2=x.at(value), y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(tag("text", shown(value), x=x.at(value), y=bottom + 18, text_anchor="middle"))
    parts.append(tag("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(tag("text", x_title, x=(_LEFT + right) / 2, y=_HEIGHT - 8, text_anchor="middle"))
    middle = (_TOP + bottom) / 2
    parts.append(tag("text", y_title, transform=f"translate(13 {middle}) rotate(-90)", text_anchor="middle"))
    return parts


def _padded(values: Sequence[float], start: float, end: float, *, log: bool = False) -> Axis:
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.08, 1.15)
        return Axis(low=low / room, high=high * room, start=start, end=end, log=True)
    room = (high - low) * 0.08 or abs(high) * 0.01 or 1.0
    return Axis(low=low - room, high=high + room, start=start, end=end)


def _even_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or those alone where there are many; on a short axis, evenly spaced ones."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(found) <= 7:
            break
    return found if len(found) > 1 else [one for one in _even_ticks(low, high) if one > 0][::2]


def _digits(ticks: Sequence[float]) -> int:
    """How many decimals tell ticks apart."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0
    return next((digits for digits in range(9) if abs(round(step, digits) - step) < step * 1e-6), 9)


def _short(value: float) -> str:
    return f"{value:,.6g}"
