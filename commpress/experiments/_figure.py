"""A figure without pyplot, which keeps global state and picks a display. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commpress.experiments._plot import PlotError

_COLOURS = 256


@contextlib.contextmanager
def figure_to(path: Path, width: float, height: float, *, font: float = 11, dpi: int = 110) -> Iterator[Any]:
    """A figure of so many inches, which is written to `path` as a PNG when all went well.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from PIL import Image  # matplotlib needs it, too
    except ImportError as error:
        raise PlotError("matplotlib is not installed; `pip install 'commpress[plot]'` gets it") from error
    with matplotlib.rc_context({"font.size": font, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(width, height), dpi=dpi, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        FigureCanvasAgg(figure)
        yield figure
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
        # Pictures of a few colours: a palette makes them a third as large.
        Image.open(drawn).convert("RGB").quantize(_COLOURS).save(path, optimize=True)


def plain_log(axis: Any, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Ticks of a logarithmic axis in plain numbers: 0.1, 0.2, 0.5, 1, and so on."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(10, subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
