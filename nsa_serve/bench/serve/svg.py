"""Just enough plotting: scales, axes and marks as inline SVG, coloured by a style sheet."""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 14.0, 44.0
_TARGET_TICKS = 6
_LEAST_TICKS = 3

Tick = tuple[float, str]
Label = Callable[[float], str]


def short(value: float) -> str:
    """A number for a tick or a tile: 0.25, 1.5, 12, 3.4k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.3g}{letter}"
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


class Scale:
    """From values to [0, 1]."""

    def __init__(self, low: float, high: float, *, log: bool = False, label: Label = short) -> None:
        if log:
            low, high = _decades(low, high)
        elif not high > low:
            high = low + 1.0
        self.low, self.high, self._log, self._label = low, high, log, label

    def place(self, value: float) -> float:
        """0 at the low end; values beyond the ends are moved to them."""
        value = min(max(value, self.low), self.high)
        if self._log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[Tick]:
        """Places on the axis and what to write there."""
        values = self._log_ticks() if self._log else self._linear_ticks()
        return [(value, self._label(value)) for value in values]

    def _linear_ticks(self) -> list[float]:
        step = _round_step((self.high - self.low) / _TARGET_TICKS)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(decades) < 5 else (1,)
        values = (m * 10.0**d for d in decades for m in steps)
        inside = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
        # An axis with one or two numbers on it cannot be read.
        return inside if len(inside) >= _LEAST_TICKS else self._linear_ticks()


class Names(Scale):
    """Evenly spaced names, at the values 0, 1, 2 …"""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(-0.5, len(names) - 0.5)
        self._names = names

    def ticks(self) -> list[Tick]:
        """One for each name."""
        return [(float(i), name) for i, name in enumerate(self._names)]


class Blank(Scale):
    """Nothing is written beside it."""

    def ticks(self) -> list[Tick]:
        """None."""
        return []


class Plot:
    """Marks between two axes. `kind` names a class of the style sheet, its colour."""

    def __init__(
        self,
        x: Scale,
        y: Scale,
        x_label: str,
        y_label: str,
        *,
        width: float = 560.0,
        height: float = 300.0,
        y_grid: bool = True,
    ) -> None:
        self._x, self._y = x, y
        self._width, self._height = width, height
        self._marks: list[str] = []
        self._axes = self._draw_axes(x_label, y_label, y_grid)

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """A polyline."""
        path = " ".join(f"{self._px(x):.1f},{self._py(y):.1f}" for x, y in points)
        self._marks.append(f'<polyline class="line {kind}" points="{path}"/>')

    def area(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A filled line over the low end of the y axis."""
        if points:
            ends = [(points[-1][0], self._y.low), (points[0][0], self._y.low)]
            path = " ".join(f"{self._px(x):.1f},{self._py(y):.1f}" for x, y in [*points, *ends])
            self._marks.append(f'<polygon class="area {kind}" points="{path}"/>')

    def dots(
        self, points: Iterable[tuple[float, float, str]], kind: str, radius: float = 3.0
    ) -> None:
        """Circles with a text that shows under the pointer."""
        self._marks += [
            f'<circle class="dot {kind}" cx="{self._px(x):.1f}" cy="{self._py(y):.1f}" '
            f'r="{radius:g}">{_title(text)}</circle>'
            for x, y, text in points
        ]

    def box(
        self, x: tuple[float, float], y: tuple[float, float], kind: str, text: str = "",
        *, style: str = "",
    ) -> None:  # fmt: skip
        """A rectangle between two values on each axis."""
        left, right = sorted(map(self._px, x))
        top, bottom = sorted(map(self._py, y))
        self._marks.append(
            f'<rect class="box {kind}" x="{left:.2f}" y="{top:.2f}" '
            f'width="{max(right - left, 0.5):.2f}" height="{max(bottom - top, 0.5):.2f}"'
            f"{f' style={chr(34)}{style}{chr(34)}' if style else ''}>{_title(text)}</rect>"
        )

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Centred writing."""
        self._marks.append(
            f'<text class="mark {kind}" x="{self._px(x):.1f}" y="{self._py(y) + 4:.1f}">'
            f"{escape(text)}</text>"
        )

    def rule(self, x: float, text: str, row: int = 0) -> None:
        """A vertical line with a name at its top; `row` keeps names apart."""
        px = self._px(x)
        anchor, shift = ("end", -4) if px > self._width - 90.0 else ("start", 4)
        self._marks.append(
            f'<line class="rule" x1="{px:.1f}" x2="{px:.1f}" y1="{_TOP}" '
            f'y2="{self._height - _BOTTOM}"/>'
            f'<text class="note" text-anchor="{anchor}" x="{px + shift:.1f}" '
            f'y="{_TOP + 10 + 14 * row:.1f}">{escape(text)}</text>'
        )

    def svg(self, description: str) -> str:
        """The picture."""
        return (
            f'<svg viewBox="0 0 {self._width:g} {self._height:g}" role="img" '
            f'aria-label="{escape(description)}">{self._axes}{"".join(self._marks)}</svg>'
        )

    def _px(self, value: float) -> float:
        return _LEFT + self._x.place(value) * (self._width - _LEFT - _RIGHT)

    def _py(self, value: float) -> float:
        bottom = self._height - _BOTTOM
        return bottom - self._y.place(value) * (bottom - _TOP)

    def _draw_axes(self, x_label: str, y_label: str, y_grid: bool) -> str:
        bottom, right = self._height - _BOTTOM, self._width - _RIGHT
        parts = [f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>']
        for value, text in self._x.ticks():
            px = self._px(value)
            parts.append(
                f'<text class="tick" text-anchor="middle" x="{px:.1f}" y="{bottom + 16}">'
                f"{escape(text)}</text>"
            )
        for value, text in self._y.ticks():
            py = self._py(value)
            if y_grid:
                parts.append(
                    f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}"/>'
                )
            parts.append(
                f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{py + 4:.1f}">'
                f"{escape(text)}</text>"
            )
        middle = (_TOP + bottom) / 2
        parts.append(
            f'<text class="label" text-anchor="middle" x="{(_LEFT + right) / 2}" '
            f'y="{self._height - 8}">{escape(x_label)}</text>'
            f'<text class="label" text-anchor="middle" '
            f'transform="translate(13 {middle}) rotate(-90)">{escape(y_label)}</text>'
        )
        return "".join(parts)


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


def _decades(low: float, high: float) -> tuple[float, float]:
    """Ends of a logarithmic scale: positive, and at least a factor of two apart."""
    high = max(high, 1e-6)
    low = min(max(low, high * 1e-6), high)
    return (low, high) if high >= 2.0 * low else (low / 1.5, high * 1.5)
