"""Figures, drawn without a display. The only module that imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from mtrl.conflict import Conflict


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that pyplot knows nothing of: nothing to close, no global state."""
    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def cosine_figure(conflict: Conflict, task_names: Sequence[str]) -> Figure:
    """The pairwise cosines ``[T, T]`` of the tasks' gradients, by name."""
    cosines = conflict.cosines.cpu().numpy()
    size = 2.5 + 0.32 * len(task_names)
    figure = new_figure(size + 1, size)
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(cosines), vmin=-1, vmax=1, cmap="RdBu")
    axes.set_xticks(range(len(task_names)), task_names, rotation=90)
    axes.set_yticks(range(len(task_names)), task_names)
    if len(task_names) <= 15:
        for i, j in np.ndindex(cosines.shape):
            axes.text(j, i, f"{cosines[i, j]:.1f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, label="cosine of two tasks' gradients")
    return figure
