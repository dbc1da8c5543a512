"""How the figures of analyses look: colours that are told apart with any colour vision (Okabe and Ito), and a style."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ckdsnn.files import replacing

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
PINK, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
PALETTE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK, GREY)  # in the order of the lines of a figure
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.dpi": 150,
}


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, as a whole or not at all."""
    image = io.BytesIO()
    figure.savefig(image, format="png", bbox_inches="tight")
    with replacing(path) as file:
        file.write(image.getvalue())
