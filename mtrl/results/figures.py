"""Figures, drawn without a display. The only module that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mtrl.config import ConfigError
from mtrl.results.reading import NETWORKS

if TYPE_CHECKING:
    from mtrl.results.baselines import Baseline
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


# Okabe and Ito's, told apart by colour-blind readers too; then again with other dashes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)))
COLUMN = 5.0  # inches; narrower figures are set in smaller type
Size = tuple[float, float]


def style(number: int) -> dict[str, Any]:
    """Of the ``number``-th arm."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }


def type_for(size: Size | None) -> Any:
    """A context in which figures of a column's width are set in small type."""
    narrow = size is not None and size[0] < COLUMN
    return rc_context({"font.size": 7, "axes.titlesize": 7, "figure.labelsize": 7} if narrow else {})


def draw_band(
    axes: Axes, curves: Sequence[Curve], against: str, values: Sequence[Array], **named: Any
) -> None:
    """The mean over seeds of ``values [n]`` per run, with a band of one SD on both sides, as long as all go."""
    length = min(len(curve.steps) for curve in curves)
    times = np.ma.masked_invalid([getattr(curve, against)[:length] for curve in curves])
    x = times.mean(axis=0).filled(np.nan)  # a diverged run has no minutes after its end
    y = np.array([value[:length] for value in values])
    mean = y.mean(axis=0)
    if length == 1:  # a line of one point cannot be seen
        named = {"marker": "o", **named}
    axes.plot(x, mean, linewidth=1.5, **named)
    if len(y) > 1:
        sd = y.std(axis=0, ddof=1)
        low, high = np.clip(mean - sd, 0, 1), np.clip(mean + sd, 0, 1)
        axes.fill_between(x, low, high, color=named["color"], alpha=0.18, linewidth=0)


def curves_figure(
    groups: Mapping[str, Sequence[Curve]], against: Literal["steps", "minutes"] = "steps",
    size: Size = (7, 4.2), baselines: Sequence[Baseline] = (),
) -> Figure:  # fmt: skip
    """Mean success over tasks against steps per task or minutes: a line per arm, a band of one SD over its seeds.

    Baselines are grey: curves up to the runs' last step, numbers as level lines; their labels say what they are of.
    """
    figure = new_figure(*size)
    axes = figure.subplots()
    for number, (label, curves) in enumerate(groups.items()):
        named = {"label": f"{label} ({seeds_of(curves)})", **style(number)}
        draw_band(axes, curves, against, [curve.success.mean(1) for curve in curves], **named)
    most = max(curve.last_step for curves in groups.values() for curve in curves)
    for number, (label, curves) in enumerate((k, v) for b in baselines for k, v in b.curves.items()):
        cut = [curve.at(curve.steps[curve.steps <= most]) for curve in curves]
        grey = {"color": ("0.35", "0.6")[number % 2], "linestyle": DASHES[1], "marker": "o", "markersize": 3}
        draw_band(
            axes, cut, "steps", [c.success.mean(1) for c in cut], label=f"{label} ({seeds_of(cut)})", **grey
        )
    for number, baseline in enumerate(b for b in baselines if b.numbers):
        what = f"{len(baseline.numbers)} methods, {baseline.statistic} at {EngFormatter(sep='')(baseline.steps)} steps"
        for place, (mean, *_) in enumerate(baseline.numbers.values()):
            label = "_" if place else f"{baseline.title}: {what}"  # one entry for all
            axes.axhline(
                mean, color=("0.4", "0.65")[number % 2], linestyle=DASHES[2], linewidth=1, label=label
            )
    if against == "steps":
        axes.set_xlabel("environment steps per task")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes.set_xlabel("minutes")
    axes.set_ylabel("success, mean ± SD over seeds")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    entries = len(axes.get_legend_handles_labels()[0])
    if entries <= 5 and size[0] >= COLUMN:
        axes.legend(loc="upper left")
    else:
        figure.legend(loc="outside lower center", ncols=2 if size[0] >= COLUMN else 1, frameon=False)
    return figure


def conflict_curves(groups: Mapping[str, Sequence[Curve]], size: Size) -> Figure:
    """The share of pairs of tasks whose gradients point apart, against steps: a panel per network, a line per arm, a
    band of one SD over the seeds that measured it.

    Raises:
        ConfigError: an arm has no run that measured it.
    """
    figure = new_figure(*size)
    panels = figure.subplots(1, len(NETWORKS), sharey=True)
    for network, axes in zip(NETWORKS, panels, strict=True):
        for number, (label, curves) in enumerate(groups.items()):
            measured = [c for c in curves if np.isfinite(c.conflict.get(network, np.nan)).any()]
            if not measured:
                raise ConfigError(f"conflict_curves: no run of {label} has its conflict over training")
            shares = [curve.conflict[network] for curve in measured]
            draw_band(
                axes, measured, "steps", shares, label=f"{label} ({seeds_of(measured)})", **style(number)
            )
        axes.set_title(network)
        axes.set_xlabel("environment steps per task")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("pairs of tasks in conflict")
    handles, labels = panels[0].get_legend_handles_labels()
    fit = int(
        11 * size[0] // (max(map(len, labels)) + 6)
    )  # about eleven letters to the inch, six for a line's sample
    figure.legend(handles, labels, loc="outside upper center", ncols=max(1, min(len(labels), fit)))
    return figure


def seeds_of(curves: Sequence[Curve]) -> str:
    return f"{len(curves)} seed{'s' * (len(curves) > 1)}"


def tasks_figure(groups: Mapping[str, Sequence[Curve]], size: Size | None = None) -> Figure:
    """One small panel per task: success against steps, a line per arm, a band of one SD over its seeds."""
    names = next(iter(groups.values()))[0].task_names
    narrow = size is not None and size[0] < COLUMN
    columns = 2 if narrow else 5
    rows = -(-len(names) // columns)
    figure = new_figure(*(size or (2.3 * columns, 1.8 * rows + 0.4)))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for t, axes in enumerate(panels):
        if t >= len(names):
            axes.set_visible(False)
            continue
        for number, (label, curves) in enumerate(groups.items()):
            draw_band(axes, curves, "steps", [c.success[:, t] for c in curves], label=label, **style(number))
        axes.set_title(names[t], fontsize=None if narrow else 9)
        axes.xaxis.set_major_locator(MaxNLocator(3 if narrow else 4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(-0.05, 1.05)
        axes.grid(alpha=0.3)
    figure.supxlabel("environment steps per task")
    figure.supylabel("success, mean ± SD over seeds")
    if len(groups) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        ncols = min(len(groups), 2 if narrow else 6)
        figure.legend(handles, labels, loc="outside upper center", ncols=ncols)
    return figure
