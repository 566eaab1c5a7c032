"""Results as pictures: one function for each, which draws into Matplotlib axes and gives them back.

The report, ``--picture`` and ``result.plot`` all draw with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from continual.errors import BadOption, brief
from continual.results import canvas
from continual.results.canvas import colour, marker, shortened, titled
from continual.results.metrics import (
    Array,
    Measured,
    Metric,
    average_accuracy,
    epochs_of,
    forgetting_by_task,
    metric,
    over_seeds,
    stability_gaps,
    summarise,
    task_names,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

STYLES = {"test": "-", "training": ":", "validation": "--"}
FEW = 6  # of more tasks there is no room for words beside their numbers
MANY = 10  # more tasks than these are not told apart by colour
NUMBERS = 40  # of more tasks a heat map has no room for numbers
LOG = 15  # a greater ratio of the largest to the least is drawn on a logarithmic axis


class Drawn(Measured, Protocol):
    """What is drawn of a result."""

    @property
    def name(self) -> str:
        """The strategy, as a table names it."""

    @property
    def training_accuracy(self) -> Array | None:
        """(R, T+1, T)."""

    @property
    def training_trace(self) -> Array | None:
        """(R, E, T)."""

    @property
    def validation_trace(self) -> Array | None:
        """(R, E, T)."""

    @property
    def trace_step(self) -> NDArray[np.int64] | None:
        """(E,)."""


# ---- numbers


def seconds(result: Measured) -> float | None:
    """The time that all seeds of a run took together."""
    found: float | None = result.record.get("time", {}).get("seconds")
    return found


def held(result: Measured) -> float | None:
    """The bytes that one learner holds at most: network, what its strategy keeps, stored samples; None: unknown.

    The network counts with what of it is frozen, of which older records say nothing.
    """
    size = result.record.get("size", {})
    if not all(name in size for name in ("parameters", "memory_bytes", "stored_samples_per_task")):
        return None
    stored = int(np.max(result.arrays.get("stored_samples", size["stored_samples_per_task"]), initial=0))
    if stored and "sample_bytes" not in size:
        return None
    training = result.record["protocol"]["training"]
    width = 8 if isinstance(training, dict) and training.get("precision") == "float64" else 4
    samples = stored * size.get("sample_bytes", 0)
    numbers = np.max(size["parameters"]) + size.get("frozen_parameters", 0)
    return float(numbers * width + size["memory_bytes"] + samples)


# ---- heat maps


def matrix(result: Drawn, axes: Axes | None = None) -> Axes:
    """The accuracy matrix in percent, mean over the seeds; right of the stepped line a task was not learnt yet."""
    tasks = result.accuracy.shape[2]
    axes = axes or canvas.new_axes(*matrix_size(tasks))
    values = 100 * over_seeds(result.accuracy)[0]
    _heat(axes, values, "Blues", "{:.1f}" if tasks <= 6 else "{:.0f}")
    corners = np.repeat(np.arange(tasks + 1), 2)
    axes.plot(corners[1:] - 0.5, corners[:-1] + 0.5, color="black", linewidth=1.8, solid_capstyle="butt", zorder=3)
    axes.set(xlabel="accuracy on task", ylabel="after learning task")
    axes.set_title(titled(result.name), fontsize="medium")
    axes.set_xticks(range(tasks), [str(j + 1) for j in range(tasks)])
    axes.set_yticks(range(tasks + 1), ["none", *(str(i + 1) for i in range(tasks))])
    return axes


def matrix_size(tasks: int) -> tuple[float, float]:
    """Inches that an accuracy matrix takes."""
    side = max(2.9, 0.36 * tasks)
    return side + 0.9, max(2.6, 0.9 * side) + 0.9


def forgetting(results: Sequence[Drawn], axes: Axes | None = None) -> Axes:
    """Forgetting of each task but the last, in percent, mean and standard deviation over the seeds."""
    axes = axes or canvas.new_axes(*forgetting_size(results))
    each = [over_seeds(forgetting_by_task(one.accuracy)) for one in results]
    tasks = each[0][0].shape[0]
    _heat(axes, 100 * np.array([mean for mean, _, _ in each]), "Oranges", "{:.1f}" if tasks <= MANY else "{:.0f}")
    axes.set(xlabel="forgetting of task")
    axes.set_xticks(range(tasks), [str(j + 1) for j in range(tasks)])
    axes.set_yticks(range(len(results)), shortened([one.name for one in results], 26))
    return axes


def forgetting_size(results: Sequence[Drawn]) -> tuple[float, float]:
    """Inches that the forgetting of several results takes."""
    return 1.9 + max(2.6, 0.44 * (results[0].accuracy.shape[2] - 1)), 0.8 + 0.36 * len(results)


def _heat(axes: Axes, values: Array, colours: str, form: str) -> None:
    """Percentages as shades from white (0) to dark (100), with the numbers in them."""
    edges = [np.arange(count + 1) - 0.5 for count in values.shape]
    mesh = axes.pcolormesh(edges[1], edges[0], values, cmap=colours, vmin=0, vmax=100, edgecolors="white", linewidth=1)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if values.shape[1] > NUMBERS:
        return
    size = 9 if values.shape[1] <= MANY else 7.5
    for (i, j), value in np.ndenumerate(values):
        text = form.format(round(value, 1) + 0.0) if np.isfinite(value) else "–"
        shade = mesh.to_rgba(np.array([value]))[0] if np.isfinite(value) else "white"
        axes.text(j, i, text, ha="center", va="center", fontsize=size, color=canvas.ink_on(shade))


# ---- lines


def curves(result: Drawn, axes: Axes | None = None) -> Axes:
    """Accuracy on each task over time, mean and standard deviation over the seeds, in percent.

    The black line is their mean over the tasks that have begun by then, as the average accuracy A_t after task t is.
    Where the run was measured between steps (``--evaluate-every``) time is steps, or epochs of a single task, with
    training and validation beside the test where they were measured; else it is tasks, with the untrained network as 0.
    """
    if result.trace is None or result.trace_step is None:
        return by_task(result, axes)
    others = {"training": result.training_trace, "validation": result.validation_trace}
    epochs = epochs_of(result) if result.trace.shape[2] == 1 else None
    time, unit = (result.trace_step, "step") if epochs is None else (epochs, "epoch")
    return _curves(result, axes, result.trace, others, time, unit)


def by_task(result: Drawn, axes: Axes | None = None) -> Axes:
    """Accuracy on each task after each task, as :func:`curves`."""
    time = np.arange(result.accuracy.shape[1])
    others = {"training": result.training_accuracy if result.accuracy.shape[2] == 1 else None}
    learnt = time[:, None] > np.arange(result.accuracy.shape[2])
    begun = np.where(learnt, result.accuracy, np.nan)
    axes = _curves(result, axes, result.accuracy, others, time, "tasks learnt", begun)
    axes.set_xlim(-0.02 * time[-1], 1.02 * time[-1])
    return axes


def _curves(
    result: Drawn, axes: Axes | None, test: Array, others: dict[str, Array | None], time: NDArray[Any], label: str,
    begun: Array | None = None,
) -> Axes:  # fmt: skip
    """Lines of the accuracies (R, E, T); ``begun``: those of tasks that have begun, of which the mean is drawn."""
    axes, tasks, begun = axes or canvas.new_axes(), test.shape[2], test if begun is None else begun
    names = shortened(task_names(result), 24)
    measured = {kind: values for kind, values in others.items() if values is not None}
    for kind, values in {"test": test, **measured}.items():
        for j in range(tasks):
            number, count = (list(STYLES).index(kind), 1) if tasks == 1 else (j, tasks)
            label_of = kind if tasks == 1 else _task(names, j) if kind == "test" else None
            _line(axes, time, values[:, :, j], number, count, label_of, STYLES[kind])
    if tasks > 1:
        mean = over_seeds(begun.transpose(0, 2, 1).reshape(-1, test.shape[1]))[0]
        axes.plot(time, 100 * mean, color="black", linewidth=2, label="mean so far")
    _framed(axes, label, result.name, tasks)
    axes.locator_params(axis="x", integer=True)
    return axes


def _task(names: list[str], j: int) -> str | None:
    """A task's name in the legend; of many tasks only the first and the last have one, the shades between tell."""
    return names[j] if len(names) <= MANY or j in (0, len(names) - 1) else None


def _line(
    axes: Axes, time: NDArray[Any], values: Array, number: int, count: int, label: str | None, style: str
) -> None:  # fmt: skip
    """Accuracies (R, E) as a line with a band."""
    there = np.isfinite(values).any(axis=0)
    mean, deviation, _ = over_seeds(values[:, there])
    own = colour(number, count)
    if count > MANY:  # markers and bands would hide the lines
        axes.plot(time[there], 100 * mean, style, color=own, label=label, linewidth=1)
        return
    every = max(1, there.sum() // 10)
    axes.plot(time[there], 100 * mean, style, color=own, label=label, marker=marker(number), markersize=4,
              markevery=(number % every, every), linewidth=1.3)  # fmt: skip
    if len(values) > 1:
        axes.fill_between(time[there], 100 * (mean - deviation), 100 * (mean + deviation), color=own, alpha=0.15, lw=0)


def _framed(axes: Axes, label: str, name: str, tasks: int) -> None:
    """Axes in percent, with a legend below that hides no line; a phone shows its left part first."""
    if tasks > 1:
        axes.set(ylim=(-3, 103))
    axes.set(xlabel=label, ylabel="accuracy in %")
    axes.set_title(titled(name), fontsize="medium")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), ncols=4, columnspacing=1.2, handlelength=1.6,
                fontsize="small", frameon=False, borderaxespad=0)  # fmt: skip


def trace(result: Drawn, axes: Axes | None = None) -> Axes:
    """Accuracy on each task between updates, with the stability gap at each switch to another task.

    The black line is the mean over the tasks learnt before; an arrow spans what it loses after a switch, the mean over
    seeds of :func:`~continual.results.metrics.stability_gaps`. :class:`~continual.errors.BadOption` without a trace.
    """
    if result.trace is None or result.trace_step is None or result.trace_task is None:
        raise BadOption(f"{result.name}: nothing was measured between steps; run it with --evaluate-every")
    axes, tasks = axes or canvas.new_axes(9.6, 3.6), result.trace.shape[2]
    names = shortened(task_names(result), 24)
    for j in range(tasks):
        values = np.where(result.trace_task >= j, result.trace[:, :, j], np.nan)
        _line(axes, result.trace_step, values, j, tasks, _task(names, j), "-")
    last = result.trace_step[-1]
    axes.set_xlim(-0.01 * last, 1.01 * last)  # of a seed that was stopped, too, all of the stream
    _gaps(axes, result.trace, result.trace_step, result.trace_task)
    _framed(axes, "step", result.name, tasks)
    axes.set(ylim=(-3, 112 if tasks > 1 else 103), title="")
    axes.set_title(titled(result.name, 100), loc="left", fontsize="medium")  # a phone shows the left part first
    return axes


def _gaps(axes: Axes, values: Array, step: NDArray[np.int64], task: NDArray[np.int64]) -> None:
    """The switches between tasks, and after each the mean over the tasks before with the gap."""
    gaps = over_seeds(stability_gaps(values, task))[0]
    for k in range(values.shape[2]):
        here = np.flatnonzero(task == k)
        before = np.flatnonzero(task < k)[-1:]
        if not len(here):
            continue
        middle = (step[before[0]] if len(before) else 0) / 2 + step[here[-1]] / 2
        axes.text(middle, 104, f"learning {k + 1}" if values.shape[2] <= FEW else f"{k + 1}", ha="center", fontsize=8)
        if len(before):
            _gap(axes, values, step, np.concatenate([before, here]), k, gaps[k - 1])


def _gap(
    axes: Axes, values: Array, step: NDArray[np.int64], span: NDArray[np.int64], k: int, gap: float
) -> None:  # fmt: skip
    """One switch: a line across, the mean over the tasks before it, and an arrow over the gap."""
    old = 100 * over_seeds(values[:, span, :k].mean(axis=2))[0]
    axes.axvline(step[span[0]], color="0.6", linewidth=0.8, linestyle=(0, (4, 3)))
    label = "mean of the tasks before" if k == 1 else None
    axes.plot(step[span], old, color="black", linewidth=2, label=label)
    if not np.isfinite(gap) or not np.isfinite(old).any():
        return
    least = step[span[int(np.nanargmin(old))]]
    axes.plot([step[span[0]], least], [old[0], old[0]], color="black", linewidth=0.8, linestyle=":")
    if gap > 0:
        ends = {"arrowstyle": "<->", "color": "black", "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (least, old[0] - 100 * gap), (least, old[0]), arrowprops=ends)
    if values.shape[2] > MANY:
        return  # the numbers would hide each other; the figure's data has them
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "0.5", "linewidth": 0.5, "alpha": 0.9}
    word = "gap " if values.shape[2] <= FEW else ""
    away, side = (-6, "right") if least > 0.9 * axes.get_xlim()[1] else (6, "left")
    axes.annotate(f"{word}{round(100 * gap) + 0}", (least, old[0] - 50 * gap), (away, 0), ha=side, va="center",
                  textcoords="offset points", fontsize=8, bbox=box, zorder=5)  # fmt: skip


# ---- several results


def compare(results: Sequence[Drawn], name: str = "average-accuracy", axes: Axes | None = None) -> Axes:
    """A metric of several results: each seed, the mean, and its 95 % interval (Student's t)."""
    one = metric(name)
    axes = axes or canvas.new_axes(4.8, compare_height(results))
    found = [_scale(one) * one(result) for result in results]
    for line, values in enumerate(found):
        _point(axes, values, line, colour(line, len(results)), marker(line))
    axes.set(xlabel=f"{one.title}{' in %' if one.unit == '%' else ''}")
    if one.unit == "%":
        reached = axes.get_xlim() if any(np.isfinite(each).any() for each in found) else (-3, 103)
        axes.set_xlim(_possible(reached, [float(np.nanmin(each, initial=100)) for each in found]))
    axes.set_yticks(range(len(results)), shortened([result.name for result in results], 26))
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def compare_height(results: Sequence[Drawn]) -> float:
    """Inches that the comparison of so many results takes."""
    return 0.8 + 0.34 * len(results)


def _scale(one: Metric) -> float:
    return 100 if one.unit == "%" else 1


def _point(axes: Axes, values: Array, line: int, own: Any, sign: str) -> None:
    """Values of seeds in one line, with their mean and interval."""
    found = summarise(values)
    axes.plot(values, np.full(len(values), line), "|", color="0.5", markersize=9)
    reach = [[found.mean - found.low], [found.high - found.mean]] if found.n > 1 else None
    axes.errorbar(found.mean, line, xerr=reach, color=own, marker=sign, markersize=7, capsize=4, linewidth=1.6)


def against_time(results: Sequence[Drawn], axes: Axes | None = None) -> Axes:
    """Average accuracy against the time that all seeds of a run took together, for the runs that know it."""
    return _against(results, [seconds(one) for one in results], "seconds, all seeds together", axes)


def against_memory(results: Sequence[Drawn], axes: Axes | None = None) -> Axes:
    """Average accuracy against what a learner holds (:func:`held`), for the runs that know it."""
    known = [held(one) for one in results]
    unit, size = ("MB", 1e6) if max((one or 0 for one in known), default=0) >= 1e6 else ("kB", 1e3)
    costs = [None if one is None else one / size for one in known]
    return _against(results, costs, f"{unit} that a learner holds", axes)


def _against(results: Sequence[Drawn], costs: list[float | None], label: str, axes: Axes | None) -> Axes:
    """Means with their intervals, named from the best to the worst; a result without a cost or a value is left out."""
    axes = axes or canvas.new_axes()
    names = shortened([one.name for one in results], 24)
    means = [summarise(100 * average_accuracy(one.accuracy)) for one in results]
    there = {i: cost for i, cost in enumerate(costs) if cost is not None and np.isfinite(means[i].mean)}
    for i in sorted(there, key=lambda i: -means[i].mean):
        reach = means[i].high - means[i].mean if means[i].n > 1 else None
        axes.errorbar(there[i], means[i].mean, yerr=reach, color=colour(i, len(results)), marker=marker(i),
                      markersize=7, capsize=3, linestyle="", label=names[i])  # fmt: skip
    axes.set(xlabel=label, ylabel="average accuracy in %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if there and min(there.values()) > 0 and max(there.values()) > LOG * min(there.values()):
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, 1.08 * max(there.values(), default=1))
    axes.set_ylim(_possible(axes.get_ylim(), [means[i].mean for i in there]))
    if there:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize="small", frameon=False, borderaxespad=0)
    return axes


def _possible(limits: tuple[float, float], values: Sequence[float]) -> tuple[float, float]:
    """An axis in percent ends at what can be; an interval may reach farther and is cut there."""
    return max(limits[0], -3 if min(values, default=0) >= 0 else -103), min(limits[1], 103)


# ---- the doors


def picture(results: Sequence[Drawn], file: Path) -> None:
    """Write the curves of all results into one picture, in the format of the file's ending; see :func:`canvas.save`."""
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = canvas.new_figure(5.2 * columns, 3.8 * rows)
    for number, one in enumerate(results):
        curves(one, figure.add_subplot(rows, columns, number + 1))
    canvas.save(figure, file)


class Plot:
    """The pictures of a result: ``result.plot.matrix()`` and so on; each gives Matplotlib axes.

    ``axes`` are where to draw; without them it is a new figure.
    """

    def __init__(self, result: Drawn) -> None:
        self._result = result

    def matrix(self, axes: Axes | None = None) -> Axes:
        """See :func:`matrix`."""
        return matrix(self._result, axes)

    def curves(self, axes: Axes | None = None) -> Axes:
        """See :func:`curves`."""
        return curves(self._result, axes)

    def trace(self, axes: Axes | None = None) -> Axes:
        """See :func:`trace`."""
        return trace(self._result, axes)

    def forgetting(self, axes: Axes | None = None) -> Axes:
        """See :func:`forgetting`."""
        return forgetting([self._result], axes)

    def compare(self, *others: Drawn, metric: str = "average-accuracy", axes: Axes | None = None) -> Axes:
        """This result above others; see :func:`compare`. BadOption for what is no result."""
        strange = [other for other in others if not hasattr(other, "accuracy")]
        if strange:
            raise BadOption(f"plot.compare takes results, and was given {brief(strange[0])}")
        return compare([self._result, *others], metric, axes)
