"""Figures, drawn without a display. The only module that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mtrl.config import ConfigError

if TYPE_CHECKING:
    from mtrl.results.reading import Curve

Array = npt.NDArray[Any]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that pyplot knows nothing of: nothing to close, no global state."""
    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str, **options: Any) -> None:
    """``figure.savefig``.

    Raises:
        ConfigError: the place cannot be written, or the format is none.
    """
    try:
        figure.savefig(path, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None


def cosine_figure(panels: Mapping[str, Array], task_names: Sequence[str]) -> Figure:
    """Pairwise cosines ``[T, T]`` of the tasks' gradients, by name; one matrix per titled panel, in pairs."""
    size = 1.2 + 0.25 * len(task_names)
    short = [name.removesuffix("-v3") for name in task_names]
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(size * columns + 1.2, size * rows + 0.4)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (title, cosines) in zip(grid.flat, panels.items(), strict=False):
        scale = SymLogNorm(0.1, vmin=-1, vmax=1)  # half of its colours lie within ±.1
        image = axes.imshow(np.ma.masked_invalid(cosines), norm=scale, cmap="RdBu")
        axes.set_title(title)
        axes.set_xticks(range(len(short)), short, rotation=90)
        axes.set_yticks(range(len(short)), short)
        if len(short) <= 15:
            for i, j in zip(*np.where(~np.eye(len(cosines), dtype=bool)), strict=True):
                ink = "white" if abs(scale(cosines[i, j]) - 0.5) > 0.25 else "black"
                axes.text(j, i, short_number(cosines[i, j]), ha="center", va="center", fontsize=8, color=ink)
    marks = (-1, -0.3, -0.1, 0, 0.1, 0.3, 1)
    bar = figure.colorbar(image, ax=grid, label="cosine of gradients", ticks=marks)
    bar.ax.set_yticklabels([f"{mark:g}" for mark in marks])
    bar.ax.minorticks_off()
    return figure


def short_number(value: float) -> str:
    """A cosine in two digits: ``.05``, ``-.3``, ``0``; nothing where it is unknown."""
    if not np.isfinite(value):
        return ""
    text = f"{value:.2f}" if abs(value) < 0.095 else f"{value:.1f}"
    return "0" if float(text) == 0 else text.replace("0.", ".", 1)


def curves_figure(
    groups: Mapping[str, Sequence[Curve]], against: Literal["steps", "minutes"] = "steps"
) -> Figure:
    """Mean success over tasks against steps per task or minutes; a line per group, thin ones per seed."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    for number, (label, curves) in enumerate(groups.items()):
        colour = f"C{number}"
        for curve in curves:
            axes.plot(getattr(curve, against), curve.success.mean(1), color=colour, alpha=0.35, linewidth=1)
        length = min(len(curve.steps) for curve in curves)
        x = np.mean([getattr(curve, against)[:length] for curve in curves], axis=0)
        y = np.mean([curve.success[:length].mean(1) for curve in curves], axis=0)
        axes.plot(
            x, y, color=colour, linewidth=2, label=f"{label} ({len(curves)} seed{'s' * (len(curves) > 1)})"
        )
    axes.set_xlabel("environment steps per task" if against == "steps" else "minutes")
    axes.set_ylabel("mean success over tasks")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return figure


def tasks_figure(groups: Mapping[str, Sequence[Curve]]) -> Figure:
    """One small panel per task: success against steps, a line per run, a colour per label."""
    names = next(iter(groups.values()))[0].task_names
    columns = 5
    rows = -(-len(names) // columns)
    figure = new_figure(2.3 * columns, 1.8 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for t, axes in enumerate(panels):
        if t >= len(names):
            axes.set_visible(False)
            continue
        for number, (label, curves) in enumerate(groups.items()):
            lines = [axes.plot(c.steps, c.success[:, t], color=f"C{number}")[0] for c in curves]
            lines[0].set_label(label)
        axes.set_title(names[t], fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(-0.05, 1.05)
        axes.grid(alpha=0.3)
    figure.supxlabel("environment steps per task")
    figure.supylabel("success")
    if len(groups) > 1:
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(groups)
        )
    return figure
