"""Drawings as SVG: text stays text, and the colours follow the reader's light or dark mode.

Lengths are in user units, of which a page shows about one as a pixel; y grows downwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

Point = tuple[float, float]

# name of the colour -> on a light page, on a dark page. Text on each fill has a contrast of 4.5 : 1
# or more, and no fill carries a meaning that the text beside it does not have.
COLOURS = {
    "page": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "faint": ("#59636e", "#9198a1"),
    "line": ("#818b98", "#656c76"),
    "box": ("#f6f8fa", "#151b23"),
    "blue": ("#ddf4ff", "#12304f"),
    "green": ("#dafbe1", "#12361f"),
    "yellow": ("#fff8c5", "#3d2e00"),
    "red": ("#ffebe9", "#4c1416"),
    "violet": ("#fbefff", "#351c4d"),
}
# Names of classes; a variable per colour keeps the two modes in one place.
STYLE = """
svg { %(light)s; font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
@media (prefers-color-scheme: dark) { svg { %(dark)s; } }
text { fill: var(--ink); font-size: 14px; }
.faint { fill: var(--faint); }
.small { font-size: 12.5px; }
.strong { font-weight: 600; }
.code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12.5px; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.shape { stroke: var(--line); stroke-width: 1.2; }
.arrow { fill: none; stroke: var(--line); stroke-width: 1.6; marker-end: url(#head); }
.rule { stroke: var(--line); stroke-width: 1; stroke-dasharray: 3 4; }
"""
ARROW_HEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
    ' orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" style="fill: var(--line)"/></marker>'
)


class Drawing:
    """An SVG of a fixed size. `title` is its name, `description` what a screen reader says."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self.width, self.height = width, height
        self.title, self.description = title, description
        self.style = ""
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str = "box") -> None:
        """A rectangle; `fill` is a name in `COLOURS`."""
        self.add(
            f'<rect class="shape" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7"'
            f' style="fill: var(--{fill})"/>'
        )

    def text(self, x: float, y: float, text: str, classes: str = "") -> None:
        """One line; `y` is its baseline. `classes` are those of `STYLE`, with spaces between."""
        named = f' class="{classes}"' if classes else ""
        self.add(f'<text x="{x:g}" y="{y:g}"{named}>{escape(text, quote=False)}</text>')

    def lines(
        self, x: float, y: float, lines: Iterable[str], classes: str = "", step: float = 18
    ) -> None:
        """Several lines below each other."""
        for number, line in enumerate(lines):
            self.text(x, y + step * number, line, classes)

    def arrow(self, *points: Point) -> None:
        """A line through the points, with a head at the last one."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.add(f'<polyline class="arrow" points="{path}"/>')

    def rule(self, start: Point, end: Point) -> None:
        """A dashed line."""
        (x1, y1), (x2, y2) = start, end
        self.add(f'<line class="rule" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>')

    def add(self, element: str) -> None:
        """An element of SVG, as text."""
        self._parts.append(element)

    def svg(self) -> str:
        """The file."""
        light, dark = (
            "; ".join(f"--{name}: {pair[mode]}" for name, pair in COLOURS.items())
            for mode in (0, 1)
        )
        style = STYLE % {"light": light, "dark": dark} + self.style
        return "\n".join(
            [
                (
                    f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:g}"'
                    f' height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
                    ' role="img" aria-labelledby="title description">'
                ),
                f'<title id="title">{escape(self.title)}</title>',
                f'<desc id="description">{escape(self.description)}</desc>',
                f"<style>{style}</style>",
                f"<defs>{ARROW_HEAD}</defs>",
                '<rect width="100%" height="100%" rx="10" style="fill: var(--page)"/>',
                *self._parts,
                "</svg>\n",
            ]
        )
