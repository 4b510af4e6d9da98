"""Line plots as SVG inside the page: small, in the page's colours, readable without a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vdm.evaluation.report.markup import Markup, join, number, tag

WIDTH, HEIGHT = 460, 264
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 46
COLOURS, DASHES = 6, 4  # in page.css
TICKS = 5
LEAST_SPREAD = 0.1  # of an axis, in shares of its values


@dataclass(frozen=True)
class Series:
    """Points x y; `spans` are low and high at the same places. Those of others are grey."""

    name: str
    points: Sequence[tuple[float, float]]
    spans: Sequence[tuple[float, float] | None] = ()
    of_others: bool = False


def plot(
    series: Sequence[Series],
    *,
    title: str,
    labels: Sequence[tuple[str, str]] = (),
    x: str = "",
    bounds: tuple[float, ...] = (),
) -> Markup:
    """`labels` name whole x values, in one or two lines; without them x is a number, such as a step. `bounds` are shown too."""
    shown = [one for one in series if one.points]
    if not shown:
        return Markup()
    highs = [high for one in shown for span in one.spans if span for high in span]
    values = [*(y for one in shown for _, y in one.points), *highs, *bounds]
    axis = Axis(min(values), max(values))
    xs = [x for one in shown for x, _ in one.points]
    left, right = (-0.4, len(labels) - 0.6) if labels else (min(xs), max(max(xs), min(xs) + 1))

    def place(px: float, py: float) -> tuple[float, float]:
        across = LEFT + (px - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (1 - axis.share(py)) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid(axis, place, left)]
    parts.append(_names(labels, place, axis.low) if labels else _steps(left, right, place, axis.low))
    kinds = _kinds(shown)
    for one, kind in sorted(zip(shown, kinds, strict=True), key=lambda pair: not pair[0].of_others):
        parts.append(_line(one, kind, place, is_marked=bool(labels)))
    if x:
        parts.append(tag("text", x, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, class_="label", text_anchor="middle"))
    drawing = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    note = " (logarithmic)" if axis.is_logarithmic else ""
    return tag("figure", tag("figcaption", tag("code", title), note), drawing, _legend(shown, kinds), class_="plot")


class Axis:
    """Logarithmic where values differ by a factor that would flatten all but the largest."""

    def __init__(self, low: float, high: float):
        self.is_logarithmic = low > 0 and high / low > 30
        if self.is_logarithmic:
            self.low, self.high = low / 1.15, high * 1.15
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            all_ticks = [d * 10.0**e for e in range(first, last + 1) for d in (1, 2, 5)]
            inside = [tick for tick in all_ticks if self.low <= tick <= self.high]
            whole = [tick for tick in inside if abs(math.log10(tick) % 1) < 1e-9]
            self.ticks = inside if len(inside) <= TICKS + 2 or len(whole) < 2 else whole
            return
        if low >= 0 and low < 0.4 * high:
            low = 0.0
        least = LEAST_SPREAD * max(abs(low), abs(high)) or 1.0
        if high - low < least:  # so that next to nothing does not look like much
            low, high = (low + high - least) / 2, (low + high + least) / 2
        spread = high - low
        step = _round_step(spread / TICKS)
        self.low, self.high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        self.ticks = [self.low + i * step for i in range(round((self.high - self.low) / step) + 1)]

    def share(self, value: float) -> float:
        if self.is_logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _round_step(size: float) -> float:
    power = 10.0 ** math.floor(math.log10(size))
    return next((n * power for n in (1, 2, 5) if n * power >= size), 10 * power)


def _grid(axis: Axis, place, left: float) -> Markup:
    parts = []
    for tick in axis.ticks:
        _, y = place(left, tick)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        parts.append(tag("text", _short(tick), x=LEFT - 6, y=f"{y + 4:.1f}", class_="label", text_anchor="end"))
    return join(parts)


def _names(labels: Sequence[tuple[str, str]], place, low: float) -> Markup:
    parts = []
    for i, lines in enumerate(labels):
        x, y = place(i, low)
        for row, line in enumerate(lines):
            given = {"x": f"{x:.1f}", "y": f"{y + 16 + 13 * row:.1f}", "text_anchor": "middle"}
            parts.append(tag("text", line, class_="label" if row == 0 else "label count", **given))
    return join(parts)


def _steps(left: float, right: float, place, low: float) -> Markup:
    step = _round_step((right - left) / 4)
    first = math.ceil(left / step - 1e-9)
    parts = []
    for i in range(first, math.floor(right / step + 1e-9) + 1):
        x, y = place(i * step, low)
        end = "end" if x > WIDTH - RIGHT - 14 else "middle"
        parts.append(tag("text", _short(i * step), x=f"{x:.1f}", y=f"{y + 16:.1f}", class_="label", text_anchor=end))
    return join(parts)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _line(one: Series, kind: str, place, *, is_marked: bool) -> Markup:
    places = [place(*point) for point in one.points]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [tag("path", d=path, class_="line")]
    for point, (x, y), span in zip(one.points, places, one.spans or [None] * len(places), strict=True):
        if span is not None:
            low, high = (place(point[0], value)[1] for value in span)
            parts.append(tag("path", d=f"M{x:.1f},{low:.1f}V{high:.1f}", class_="span"))
        if is_marked:
            title = tag("title", f"{one.name}: {number(point[1])}")
            parts.append(tag("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.5))
    return tag("g", *parts, class_=kind)


def _kinds(shown: Sequence[Series]) -> list[str]:
    """Classes of page.css: a colour for each of ours, a pattern of dashes for each of others."""
    counts = {True: 0, False: 0}
    kinds = []
    for one in shown:
        count = counts[one.of_others]
        kinds.append(f"others dashes-{count % DASHES}" if one.of_others else f"series-{count % COLOURS}")
        counts[one.of_others] += 1
    return kinds


def _legend(shown: Sequence[Series], kinds: Sequence[str]) -> Markup:
    if len(shown) == 1 and not shown[0].of_others:
        return Markup()
    entries = []
    for one, kind in zip(shown, kinds, strict=True):
        sample = tag("svg", tag("path", d="M0,5H26", class_="line"), viewBox="0 0 26 10", aria_hidden="true")
        entries.append(tag("span", tag("span", sample, class_=f"sample {kind}"), one.name))
    return tag("div", *entries, class_="legend")
