"""Pictures: what is drawn is what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import continual as cl
from continual.errors import BadFolder, BadOption
from continual.results import plots, tables
from continual.results.store import Result

plt = pytest.importorskip("matplotlib.pyplot", reason="Matplotlib is not installed")


def run(**settings: Any) -> Result:
    benchmark = settings.pop("benchmark", "split-digits:limit=10")
    return cl.run(benchmark, **{"seeds": 2, "epochs": 2, "batch": 10, "model": "mlp:layers=10"} | settings)


def drawn(result: Result) -> dict[str, Any]:
    """The lines of a result's curves by their labels."""
    figure, axes = plt.subplots()
    assert plots.curves(result, axes) is axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    plt.close(figure)
    return lines


def test_accuracies_after_tasks_are_drawn() -> None:
    result = run()
    lines = drawn(result)
    assert set(lines) == {*(f"task {j}" for j in range(1, 6)), "mean"}
    assert np.allclose(lines["task 2"].get_ydata(), 100 * result.accuracy[:, :, 1].mean(0))
    assert np.allclose(lines["mean"].get_ydata(), 100 * result.accuracy.mean((0, 2)))
    assert list(lines["task 2"].get_xdata()) == list(range(6))


def test_accuracies_between_steps_are_drawn_from_when_a_task_is_there() -> None:
    result = run(evaluate_every=1)
    lines = drawn(result)
    assert result.trace is not None
    there = np.isfinite(result.trace[0, :, 2])
    assert len(lines["task 3"].get_xdata()) == there.sum() < result.trace.shape[1]
    assert np.allclose(lines["task 3"].get_ydata(), 100 * result.trace[:, there, 2].mean(0))


def test_training_and_validation_are_drawn_beside_the_test_of_one_task() -> None:
    result = run(benchmark="split-digits:limit=10,tasks=1,validation=0.2", evaluate_every="epoch", evaluate_rows="all")
    lines = drawn(result)
    assert set(lines) == {"test", "training", "validation"} and len(lines["test"].get_xdata()) == 2
    assert result.validation_trace is not None and result.training_trace is not None
    assert np.allclose(lines["validation"].get_ydata(), 100 * result.validation_trace[:, :, 0].mean(0))
    assert len({line.get_color() for line in lines.values()}) == 3


def test_the_trace_as_a_table() -> None:
    result = run(benchmark="split-digits:limit=10,tasks=1,validation=0.2", evaluate_every="epoch", evaluate_rows="all")
    lines = tables.trace(result).splitlines()
    assert lines[2].split() == ["step", "task", "test", "training", "validation"] and len(lines) == 8
    assert result.training_trace is not None and result.trace_step is not None
    step, _, _, training, _ = lines[5].split()
    assert int(step) == result.trace_step[1]
    assert float(training) == pytest.approx(100 * result.training_trace[:, 1, 0].mean(), abs=0.01)
    with pytest.raises(BadOption, match="run it with --evaluate-every"):
        tables.trace(run())


def test_a_picture_of_several_results(tmp_path: Path) -> None:
    results = [run(strategy=name) for name in ("finetune", "l2", "replay", "joint")]
    for ending in ("png", "svg"):
        plots.picture(results, tmp_path / f"all.{ending}")
        assert (tmp_path / f"all.{ending}").stat().st_size > 1000
    assert "finetune" in (tmp_path / "all.svg").read_text()
    with pytest.raises(BadOption, match=r"all\.doc: a picture's name ends in one of .*png"):
        plots.picture(results, tmp_path / "all.doc")
    with pytest.raises(BadFolder, match=r"nowhere/all\.png cannot be written"):
        plots.picture(results, tmp_path / "nowhere" / "all.png")
