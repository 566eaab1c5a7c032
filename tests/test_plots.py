"""Pictures: what is drawn is what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import continual as cl
from continual.errors import BadFolder, BadOption
from continual.results import metrics, plots, tables
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
    assert set(lines) == {*(f"task {j}" for j in range(1, 6)), "mean so far"}
    assert np.allclose(lines["task 2"].get_ydata(), 100 * result.accuracy[:, :, 1].mean(0))
    mean = [result.accuracy[:, t, :t].mean() for t in range(1, 6)]  # A_t, over the tasks that were learnt by then
    assert np.allclose(lines["mean so far"].get_ydata()[1:], 100 * np.array(mean))
    assert np.isnan(lines["mean so far"].get_ydata()[0])
    assert list(lines["task 2"].get_xdata()) == list(range(6))


def test_accuracies_between_steps_are_drawn_from_when_a_task_is_there() -> None:
    result = run(evaluate_every=1)
    lines = drawn(result)
    assert result.trace is not None
    there = np.isfinite(result.trace[0, :, 2])
    first, second = (100 * np.nanmean(result.trace[:, e]) for e in (0, -1))
    assert np.allclose(lines["mean so far"].get_ydata()[[0, -1]], [first, second])
    assert len(lines["task 3"].get_xdata()) == there.sum() < result.trace.shape[1]
    assert np.allclose(lines["task 3"].get_ydata(), 100 * result.trace[:, there, 2].mean(0))


def test_training_and_validation_are_drawn_beside_the_test_of_one_task() -> None:
    result = run(benchmark="split-digits:limit=10,tasks=1,validation=0.2", evaluate_every="epoch", evaluate_rows="all")
    lines = drawn(result)
    assert set(lines) == {"test", "training", "validation"} and list(lines["test"].get_xdata()) == [1, 2]
    assert result.validation_trace is not None and result.training_trace is not None
    assert np.allclose(lines["validation"].get_ydata(), 100 * result.validation_trace[:, :, 0].mean(0))
    assert len({line.get_color() for line in lines.values()}) == 3


def test_the_trace_as_a_table() -> None:
    result = run(benchmark="split-digits:limit=10,tasks=1,validation=0.2", evaluate_every="epoch", evaluate_rows="all")
    lines = tables.trace(result).splitlines()
    assert lines[2].split() == ["epoch", "task", "test", "training", "validation"] and len(lines) == 8
    assert result.training_trace is not None
    epoch, _, _, training, _ = lines[5].split()
    assert epoch == "2"
    assert float(training) == pytest.approx(100 * result.training_trace[:, 1, 0].mean(), abs=0.01)
    with pytest.raises(BadOption, match="run it with --evaluate-every"):
        tables.trace(run())
    by_task = run(benchmark="split-digits:limit=10,tasks=2", evaluate_every="epoch")
    lines = tables.trace(by_task).splitlines()
    assert [line.split()[:2] for line in lines[4:8]] == [["1", "1"], ["2", "1"], ["1", "2"], ["2", "2"]]
    counted = run(benchmark="split-digits:limit=10,tasks=1", evaluate_every="epoch", epochs=1, iterations=13)
    lines = tables.trace(counted).splitlines()
    assert lines[2].split()[0] == "step" and counted.trace_step is not None
    assert counted.trace_step.tolist() == [10, 13], "the last evaluation is within an epoch"
    by_step = run(benchmark="split-digits:limit=10,tasks=2", evaluate_every=1)
    lines = tables.trace(by_step).splitlines()
    assert by_step.trace_step is not None and lines[2].split()[0] == "step"
    assert [line.split()[0] for line in lines[4 : 4 + len(by_step.trace_step)]] == [str(n) for n in by_step.trace_step]


def test_tasks_of_several_data_sets_are_called_by_their_names() -> None:
    def of(tasks: int) -> Result:
        members = [f"split-digits:tasks={tasks}", "split-digits:tasks=1"]
        benchmark = {"sequence": members, "size": 8, "limit": 5, "scenario": "task"}
        return run(benchmark=benchmark, epochs=1, evaluate_every=1)

    result = of(1)
    assert result.record["tasks"] == ["digits 1", "digits 2"] and "tasks" not in run().record
    assert of(2).record["tasks"][-1] == "digits 3"
    named = Result(result.record | {"tasks": ["digits", "$other\nset"]}, result.arrays)
    assert {"digits", r"\$other set", "mean so far"} == set(drawn(named))
    lines = tables.matrix(named).splitlines()
    assert lines[2].split() == ["after", "digits", "$other", "set"] and lines[5].split()[0] == "digits"
    assert tables.trace(named).splitlines()[2].split() == ["step", "task", "test", "digits", "test", "$other", "set"]
    short = Result(result.record | {"tasks": ["digits"]}, result.arrays)
    assert tables.matrix(short).splitlines()[2].split() == ["after", "task", "1", "task", "2"]


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


def test_the_pictures_of_a_result_are_axes() -> None:
    result, other = run(evaluate_every=1), run(strategy="l2", evaluate_every=1)
    plot = result.plot
    for axes in (plot.matrix(), plot.curves(), plot.trace(), plot.forgetting(), plot.compare(other)):
        assert isinstance(axes, plt.Axes) and axes.figure.axes == [axes]
        plt.close(axes.figure)
    figure, place = plt.subplots()
    assert plot.matrix(axes=place) is place
    plt.close(figure)
    with pytest.raises(BadOption, match="run it with --evaluate-every"):
        run().plot.trace()


def test_the_stepped_line_of_a_matrix_divides_what_was_learnt() -> None:
    axes = run().plot.matrix()
    (line,) = axes.get_lines()
    corners = set(zip(line.get_xdata(), line.get_ydata(), strict=True))
    # below the untrained network's row at the left; right of the last task at the bottom
    assert (-0.5, 0.5) in corners and (4.5, 5.5) in corners and (0.5, 1.5) in corners and (1.5, 0.5) not in corners
    plt.close(axes.figure)


def test_the_gap_at_each_switch_is_marked() -> None:
    result = run(evaluate_every=1)
    axes = result.plot.trace()
    assert result.trace is not None and result.trace_task is not None
    gaps = metrics.stability_gaps(result.trace, result.trace_task)
    assert gaps.mean(1) == pytest.approx(result.metric("stability-gap"))
    texts = [text.get_text() for text in axes.texts]
    assert [text for text in texts if text.startswith("gap")] == [
        f"gap {abs(round(100 * gap))}" for gap in gaps.mean(0)
    ]
    plt.close(axes.figure)


def test_a_comparison_shows_every_seed_and_the_interval() -> None:
    results = run(seeds=3), run(strategy="l2", seeds=3)
    axes = results[0].plot.compare(results[1], metric="forgetting")
    seeds, mean = axes.get_lines()[0], axes.containers[0]
    found = metrics.summarise(100 * results[0].forgetting)
    assert np.allclose(seeds.get_xdata(), 100 * results[0].forgetting)
    (bar,) = mean.lines[2]
    assert np.allclose(bar.get_segments()[0][:, 0], [found.low, found.high])
    plt.close(axes.figure)


def test_where_no_seed_has_a_value_the_axis_is_that_of_all_that_could_be() -> None:
    result = run()
    lost = Result(result.record, result.arrays | {"accuracy": np.full_like(result.accuracy, np.nan)})
    axes = lost.plot.compare(lost)
    assert axes.get_xlim() == (-3, 103)
    plt.close(axes.figure)


def test_only_results_are_compared() -> None:
    with pytest.raises(BadOption, match="takes results, and was given 'finetune'"):
        run().plot.compare("finetune")  # type: ignore[arg-type]


def test_a_result_is_shown_in_a_line() -> None:
    result = run(strategy="l2:strength=0.5", seeds=1)
    mean = f"{100 * result.average_accuracy[0]:.2f}"
    assert repr(result) == f"<Result of l2:strength=0.5 on split-digits: 1 seed, 5 tasks, average accuracy {mean} %>"
    several = run(strategy="l2", seeds=3)
    sd = 100 * several.average_accuracy.std(ddof=1)
    assert "3 seeds, 5 tasks" in repr(several) and f" ± {sd:.2f} %>" in repr(several)
    assert "1 seed, in %" in result._repr_html_() and "3 seeds, in %" in several._repr_html_()


def test_a_notebook_shows_a_result_and_escapes_its_name() -> None:
    result = run(strategy="l2:strength=0.5")
    record = result.record | {"title": "<b>&"}
    text = Result(record, result.arrays)._repr_html_()
    assert "<b>" not in text and "&lt;b&gt;&amp;" in text
    assert (
        f"{100 * result.average_accuracy.mean():.2f}" in text and f"{100 * result.accuracy[:, 3, 1].mean():.1f}" in text
    )


def test_a_name_with_the_signs_of_mathematics_is_drawn_as_it_is(tmp_path: Path) -> None:
    result = run()
    for name in ("$x^2$", r"\$x$", "a_{b", "$\\frac{$", "名前", "a\x07b"):
        plots.picture([Result(result.record | {"title": name}, result.arrays)], tmp_path / "a.svg")
        shown = name.replace("\x07", "\ufffd")
        assert f">{shown}<" in (tmp_path / "a.svg").read_text()
