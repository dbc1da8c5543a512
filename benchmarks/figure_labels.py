"""Names at the points of a figure, each where nothing else is."""

from __future__ import annotations

import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

ANGLES = (0, 25, -25, 50, -50, 180, 155, -155, 130, -130, 90, -90)  # in degrees; the ones that read best first
AROUND = [
    (round(r * math.cos(math.radians(angle)), 3), round(r * math.sin(math.radians(angle)), 3))
    for r in range(9, 160, 4)
    for angle in ANGLES
]
NEAR = 12  # points between a place and its name, beyond which a line joins them


class Labels:
    """Writes into axes.

    Args:
        axis: with its limits, and laid out (`Figure.draw_without_rendering`).
    """

    def __init__(self, axis: Axes) -> None:
        self._axis = axis
        figure = axis.get_figure(root=True)
        assert figure is not None
        self._point = figure.dpi / 72  # in pixels
        self._inside = axis.get_window_extent()
        self._drawn: list[Bbox] = []
        self._written: list[Bbox] = []

    def avoid(self, low: tuple[float, float], high: tuple[float, float], margin: float) -> None:
        """Keeps names from what is drawn between two places (data), and from some points around it."""
        around = margin * self._point
        (x0, y0), (x1, y1) = self._axis.transData.transform([low, high])
        self._drawn.append(Bbox.from_extents(x0 - around, y0 - around, x1 + around, y1 + around))

    def write(
        self, text: str, at: tuple[float, float], offsets: Iterable[tuple[float, float]] = AROUND, **style: object
    ) -> None:
        """A name for a place (data), where it covers least, with a line to the place if it is not near.

        Args:
            text: the name.
            at: the place.
            offsets: of the name's nearer end, or of its middle where it is above or below, in points; of equally good
                ones the first.
            style: `fontsize`, and `color` of the line.
        """
        colour = style.pop("color", "black")
        measured = self._axis.text(0, 0, text, **style)  # type: ignore[arg-type]
        extent = measured.get_window_extent()
        measured.remove()
        x, y = self._axis.transData.transform(at)

        def box_at(offset: tuple[float, float]) -> Bbox:
            left = x + self._point * offset[0] - _side(offset) * extent.width
            return Bbox.from_bounds(left, y + self._point * offset[1] - extent.height / 2, *extent.size)

        def covers(offset: tuple[float, float]) -> float:
            box = box_at(offset)
            way = [(x + i / 20 * self._point * offset[0], y + i / 20 * self._point * offset[1]) for i in range(4, 20)]
            outside = not (self._inside.contains(*box.min) and self._inside.contains(*box.max))
            crossed = [box for box in self._written if any(box.contains(*place) for place in way)]
            passed = [box for box in self._drawn if any(box.contains(*place) for place in way)]
            # Outside it is cut off, over something it hides that; a line that passes others' points matters little.
            hidden = sum(box.overlaps(other) for other in [*self._written, *self._drawn])
            return 100 * outside + 10 * (hidden + len(crossed)) + 0.02 * max(0, len(passed) - 2) * math.hypot(*offset)

        least = math.inf
        for offset in offsets:
            if (found := covers(offset)) < least:
                best, least = offset, found
            if found == 0:
                break
        self._written.append(box_at(best))
        line = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 4, "color": colour}
        self._axis.annotate(
            text,
            at,
            best,
            textcoords="offset points",
            va="center",
            ha={0.0: "left", 0.5: "center", 1.0: "right"}[_side(best)],
            arrowprops={**line, "relpos": (_side(best), 0.5)} if math.hypot(*best) > NEAR else None,
            **style,  # type: ignore[arg-type]
        ).set_in_layout(False)


def _side(offset: tuple[float, float]) -> float:
    """Where the offset is measured to, as a share of the name's width."""
    return 0.5 if offset[0] == 0 else float(offset[0] < 0)
