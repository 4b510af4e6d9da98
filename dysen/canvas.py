"""A small drawing surface that writes SVG by hand and, through Pillow, the same picture as PNG.

Text widths are estimated from above, per character, for any usual sans-serif font, so what fits here fits in a viewer.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from vdm.errors import DataError

FONTS = "DejaVu Sans, Verdana, Arial, sans-serif"
INK = "#222222"
PNG_SCALE = 2
MAX_PIXELS = 50_000_000
NARROW = frozenset("iljtfrI.,:;'|!()[] -")
BROAD = frozenset("mwMW@%")


@dataclass(frozen=True)
class Polygon:
    points: tuple[tuple[float, float], ...]
    fill: str
    stroke: str
    is_dashed: bool = False


@dataclass(frozen=True)
class Line:
    start: tuple[float, float]
    end: tuple[float, float]
    colour: str
    width: float = 1.0


@dataclass(frozen=True)
class Label:
    """`x` is where the text begins, or its middle; `y` is the middle of the line."""

    x: float
    y: float
    text: str
    size: int
    colour: str = INK
    is_centred: bool = False
    is_bold: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom: no viewer draws outside of it."""
        width = text_width(self.text, self.size)
        left = self.x - width / 2 if self.is_centred else self.x
        return left, self.y - 0.6 * self.size, left + width, self.y + 0.6 * self.size


def text_width(text: str, size: int) -> float:
    """Estimated from above, in pixels."""
    return size * sum(map(_share, text))


def _share(character: str) -> float:
    """Width of a character as a share of the font size."""
    if character in NARROW:
        return 0.44
    if character in BROAD:
        return 1.02
    if character.isascii():
        return 0.76 if character.isupper() else 0.65
    if unicodedata.combining(character):
        return 0.0
    return 1.05 if unicodedata.east_asian_width(character) in "WF" else 0.85


def wrapped(text: str, size: int, width: float) -> list[str]:
    """The text in lines of at most this width, broken between words and, where one is too long, inside it."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined, size) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and text_width(lines[-1] + character, size) > width:
                lines.append("")
            lines[-1] += character
    return lines


@dataclass
class Canvas:
    """Shapes in the order in which they are painted."""

    width: float
    height: float
    shapes: list[Polygon | Line | Label] = field(default_factory=list)

    def rectangle(
        self, left: float, top: float, width: float, height: float, fill: str, stroke: str, *, is_dashed: bool = False
    ) -> None:
        right, bottom = left + width, top + height
        self.shapes.append(
            Polygon(((left, top), (right, top), (right, bottom), (left, bottom)), fill, stroke, is_dashed)
        )

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        """A line with a head at its end."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = max((dx * dx + dy * dy) ** 0.5, 1e-6)
        dx, dy = dx / length, dy / length
        foot = end[0] - 7 * dx, end[1] - 7 * dy
        self.shapes.append(Line(start, foot, colour, 1.2))
        wings = ((foot[0] - 3 * dy, foot[1] + 3 * dx), (foot[0] + 3 * dy, foot[1] - 3 * dx))
        self.shapes.append(Polygon((end, *wings), colour, colour))

    def lines(self, x: float, middle: float, texts: list[str], size: int, **look: bool | str) -> None:
        """Lines of text around a height."""
        step = line_height(size)
        top = middle - step * (len(texts) - 1) / 2
        self.shapes += [Label(x, top + i * step, text, size, **look) for i, text in enumerate(texts)]

    def labels(self) -> list[Label]:
        return [shape for shape in self.shapes if isinstance(shape, Label)]

    def save(self, path: Path) -> None:
        """As SVG or PNG, by the suffix; written beside its place and renamed."""
        partial = path.with_name(f".{path.name}.part")
        try:
            if path.suffix == ".svg":
                partial.write_text(self.to_svg(), encoding="utf-8")
            else:
                self.to_image().save(partial, format="png")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def to_svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:.0f}" height="{self.height:.0f}" '
            f'viewBox="0 0 {self.width:.0f} {self.height:.0f}" font-family="{FONTS}">'
        )
        ground = f'<rect width="{self.width:.0f}" height="{self.height:.0f}" fill="#ffffff"/>'
        return "\n".join([head, ground, *map(_svg, self.shapes), "</svg>\n"])

    def to_image(self):
        """A Pillow image at twice the size. Its built-in font knows Latin letters; SVG shows every script."""
        from PIL import Image, ImageDraw, ImageFont

        scale = PNG_SCALE if self.width * self.height * PNG_SCALE**2 <= MAX_PIXELS else 1
        if self.width * self.height > MAX_PIXELS:
            got = f"{self.width:.0f} x {self.height:.0f} pixels"
            raise DataError("the drawing is too large for a PNG", got=got, remedy="ask for .svg")

        def scaled(*points: tuple[float, float]) -> list[tuple[float, float]]:
            return [(x * scale, y * scale) for x, y in points]

        image = Image.new("RGB", (round(self.width * scale), round(self.height * scale)), "#ffffff")
        draw = ImageDraw.Draw(image)
        for shape in self.shapes:
            if isinstance(shape, Polygon):
                draw.polygon(scaled(*shape.points), fill=shape.fill, outline=shape.stroke, width=scale)
            elif isinstance(shape, Line):
                draw.line(scaled(shape.start, shape.end), fill=shape.colour, width=round(shape.width * scale))
            else:
                font = ImageFont.load_default(shape.size * scale)
                anchor = "mm" if shape.is_centred else "lm"
                bold = 1 if shape.is_bold else 0
                where = scaled((shape.x, shape.y))[0]
                draw.text(where, shape.text, fill=shape.colour, font=font, anchor=anchor, stroke_width=bold)
        return image


def line_height(size: int) -> float:
    return 1.3 * size


def stacked(canvases: list[Canvas], gap: float = 12) -> Canvas:
    """One below the other."""
    found = Canvas(max(c.width for c in canvases), sum(c.height for c in canvases) + gap * (len(canvases) - 1))
    top = 0.0
    for canvas in canvases:
        found.shapes += [_moved(shape, top) for shape in canvas.shapes]
        top += canvas.height + gap
    return found


def _moved(shape: Polygon | Line | Label, down: float) -> Polygon | Line | Label:
    if isinstance(shape, Polygon):
        points = tuple((x, y + down) for x, y in shape.points)
        return Polygon(points, shape.fill, shape.stroke, shape.is_dashed)
    if isinstance(shape, Line):
        (a, b), (c, d) = shape.start, shape.end
        return Line((a, b + down), (c, d + down), shape.colour, shape.width)
    return Label(shape.x, shape.y + down, shape.text, shape.size, shape.colour, shape.is_centred, shape.is_bold)


def _svg(shape: Polygon | Line | Label) -> str:
    if isinstance(shape, Polygon):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        dashes = ' stroke-dasharray="4 2"' if shape.is_dashed else ""
        return f'<polygon points="{points}" fill="{shape.fill}" stroke="{shape.stroke}"{dashes}/>'
    if isinstance(shape, Line):
        (a, b), (c, d) = shape.start, shape.end
        ends = f'x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"'
        return f'<line {ends} stroke="{shape.colour}" stroke-width="{shape.width:.1f}"/>'
    look = ' text-anchor="middle"' if shape.is_centred else ""
    look += ' font-weight="bold"' if shape.is_bold else ""
    where = f'x="{shape.x:.1f}" y="{shape.y + 0.35 * shape.size:.1f}" font-size="{shape.size}" fill="{shape.colour}"'
    return f"<text {where}{look}>{escape(shape.text)}</text>"
