"""What figures share: colours, the libraries that draw, and files.

matplotlib and pandas are imported when a function needs them: `pip install 'fwm_py[figures]'`.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwm_py.experiments.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which the colour-blind can tell apart, with grey for their yellow.
BLACK, GREY, ORANGE, RED, PINK = "#000000", "#7f7f7f", "#e69f00", "#d55e00", "#cc79a7"
SKY, BLUE, GREEN = "#56b4e9", "#0072b2", "#009e73"


def needed(module: str) -> Any:
    """A module of the extra `figures`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"figures need {module.split('.')[0]}: pip install 'fwm_py[figures]'") from error


def grid_behind(axes: Axes) -> None:
    axes.grid(which="major", color="0.8")
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)


def save_figures(figures: Mapping[str, Figure], out: str | os.PathLike[str]) -> list[Path]:
    """Write `<name>.png` and `<name>.svg` of every figure, the same bytes for the same figure.

    Parameters
    ----------
    figures : dict of Figure
    out : path
        Their folder; made if missing. A file is replaced only when the new one is whole.

    Raises
    ------
    OSError
        If a figure cannot be written.
    """
    os.makedirs(out, exist_ok=True)
    paths: list[Path] = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            paths.append(Path(out) / f"{name}.{kind}")
            write_file(paths[-1], _rendered(figure, kind))
    return paths


def _rendered(figure: Figure, kind: str) -> bytes:
    picture = io.BytesIO()
    with needed("matplotlib").rc_context({"svg.hashsalt": "fwm_py"}):
        figure.savefig(picture, format=kind, dpi=100, metadata={"Date": None} if kind == "svg" else None)
    return picture.getvalue()
