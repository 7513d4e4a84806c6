"""Bar charts as PNG, since e-mail programs do not show SVG.

pygal draws the SVG, resvg renders it, with a font that is installed as a wheel:
together 5 MB, without system packages. The import is slow, so only a report imports
this.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import font_lato
import pygal
import resvg_py
from pygal.style import Style

# For its maps, which are not used here, pygal adds an import finder of a deprecated
# kind, of which Python would warn at every later import.
sys.meta_path[:] = [
    finder
    for finder in sys.meta_path
    if not isinstance(finder, pygal.PluginImportFixer)
]

WIDTH, HEIGHT = 520, 260  # shown up to 608 wide; the text is still legible on a phone
SCALE = 2  # pixels per unit, for screens with a high resolution
MOST_VALUES_PRINTED = 8  # in a series; more would overlap
_FONT = "Lato"
_FONT_FILES = [
    str(Path(font_lato.font_directory) / f"Lato-{face}.ttf")
    for face in ("Regular", "Bold")
]
_STYLE = Style(
    background="#ffffff",
    plot_background="#ffffff",
    foreground="#57606a",
    foreground_strong="#57606a",
    foreground_subtle="#d8dee4",
    guide_stroke_color="#d8dee4",
    guide_stroke_dasharray="1,0",
    major_guide_stroke_color="#d8dee4",
    major_guide_stroke_dasharray="1,0",
    colors=("#0969da", "#b6c2cf"),
    value_colors=("#1f2328", "#1f2328"),
    opacity="1",
    font_family=_FONT,
    label_font_size=14,
    major_label_font_size=14,
    legend_font_size=15,
    value_font_size=13,
)


@dataclass(frozen=True)
class Chart:
    """One picture; `alt` is the text for readers who cannot see it."""

    name: str
    title: str
    png: bytes
    alt: str

    @property
    def content_id(self) -> str:
        """The picture's name in the HTML, unique within one mail."""
        return f"{self.name}@starview"


def bar_chart(
    *,
    name: str,
    title: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[int]]],
) -> Chart:
    """Draw bars side by side: for each label, one of each series."""
    most = max((value for _, values in series for value in values), default=0)
    prints = len(labels) <= MOST_VALUES_PRINTED
    chart = pygal.Bar(
        style=_STYLE,
        width=WIDTH,
        height=HEIGHT,
        explicit_size=True,
        js=[],
        margin=6,
        legend_at_bottom=True,
        legend_at_bottom_columns=len(series),
        legend_box_size=11,
        print_values=prints,
        print_values_position="top",
        print_zeroes=False,
        truncate_label=-1,
        # At least 0 to 4, so that the axis has whole numbers only.
        range=(0, max(most * 1.08, 4)),
        min_scale=2,
        max_scale=4,
        value_formatter=lambda value: f"{value:.0f}" if value == int(value) else "",
        show_minor_x_labels=prints,
        x_labels_major_every=None if prints else 5,
    )
    chart.x_labels = list(labels)
    for label, values in series:
        chart.add(label, list(values))
    svg = chart.render(is_unicode=True)
    png = resvg_py.svg_to_bytes(
        svg_string=svg,
        skip_system_fonts=True,
        font_files=_FONT_FILES,
        font_family=_FONT,
        sans_serif_family=_FONT,
        background="#ffffff",
        zoom=SCALE,
    )
    return Chart(name, title, bytes(png), _alt(title, labels, series))


def _alt(
    title: str, labels: Sequence[str], series: Sequence[tuple[str, Sequence[int]]]
) -> str:
    numbers = "; ".join(
        f"{name}: "
        + ", ".join(
            f"{label} {value}" for label, value in zip(labels, values, strict=False)
        )
        for name, values in series
    )
    return f"{title}. {numbers}."
