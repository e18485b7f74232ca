"""The notebook of the docs runs, and shows what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
NOTEBOOK = Path(__file__).parents[1] / "docs/notebook.ipynb"


def test_the_notebook_trains_compares_and_shows_figures_and_a_video(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("STEPS = 3000", "STEPS = 600")
    nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(str(output) for output in outputs)
    assert text.count("'DONE'") == 4
    assert "mean success" in text
    kinds = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    assert kinds == ["image/png", "image/png", "image/gif"]
