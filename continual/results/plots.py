"""Results as pictures, drawn with Matplotlib (the extra ``plots``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from continual.errors import BadFolder, BadOption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from continual.results.store import Result

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's eight colours, which colour-blind people can tell apart."""
STYLES = {"test": "-", "training": ":", "validation": "--"}
MANY = 10  # more tasks than these are not told apart by colour


def curves(result: Result, axes: Axes | None = None) -> Axes:
    """Accuracy on each task over time, mean and standard deviation over the seeds, in percent.

    Where the run was measured between steps (``--evaluate-every``) time is steps, with training and validation beside
    the test where they were measured; else it is tasks, with the untrained network as 0.
    """
    axes = axes or _pyplot().gca()
    test, time, label = result.accuracy, np.arange(result.accuracy.shape[1]), "tasks learnt"
    others = {"training": result.training_accuracy if test.shape[2] == 1 else None}
    if result.trace is not None and result.trace_step is not None:
        test, time, label = result.trace, result.trace_step, "step"
        others = {"training": result.training_trace, "validation": result.validation_trace}
    tasks = test.shape[2]
    measured = {kind: values for kind, values in others.items() if values is not None}
    for kind, values in {"test": test, **measured}.items():
        for j in range(tasks):
            colour = _colour(list(STYLES).index(kind) if tasks == 1 else j, tasks)
            label_of = kind if tasks == 1 else f"task {j + 1}" if kind == "test" and tasks <= MANY else None
            _line(axes, time, values[:, :, j], colour, label_of, STYLES[kind])
    if tasks > 1:
        mean = np.nanmean(test, axis=(0, 2))
        axes.plot(time, 100 * mean, color="black", linewidth=2, label="mean")
        axes.set(ylim=(-2, 102))
    axes.set(xlabel=label, ylabel="accuracy in %", title=result.name)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize="small", frameon=False)
    return axes


def _colour(number: int, tasks: int) -> Any:
    return COLOURS[number] if tasks <= len(COLOURS) else _pyplot().get_cmap("viridis")(number / (tasks - 1))


def _line(axes: Axes, time: Any, values: Any, colour: Any, label: str | None, style: str) -> None:
    """Accuracies (R, E) as a line with a band."""
    there = np.isfinite(values).any(axis=0)
    mean = np.nanmean(values[:, there], axis=0)
    axes.plot(time[there], 100 * mean, style, color=colour, label=label, marker="o", markersize=3)
    if len(values) > 1:
        deviation = np.nanstd(values[:, there], axis=0, ddof=1)
        axes.fill_between(time[there], 100 * (mean - deviation), 100 * (mean + deviation), color=colour, alpha=0.15)


def picture(results: Sequence[Result], file: Path) -> None:
    """Write the curves of all results into one picture, in the format of the file's ending (.png, .svg, .pdf).

    Raises :class:`~continual.errors.BadOption` without Matplotlib or for another ending,
    :class:`~continual.errors.BadFolder` where it cannot be written.
    """
    plt = _pyplot()
    known = plt.gcf().canvas.get_supported_filetypes()
    if file.suffix.removeprefix(".") not in known:
        raise BadOption(f"--picture {file}: a picture's name ends in one of {', '.join(sorted(known))}")
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.8 * rows), squeeze=False, layout="constrained")
    for one, place in zip(results, axes.flat, strict=False):
        curves(one, place)
    for place in list(axes.flat)[len(results) :]:
        place.remove()
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise BadFolder(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        plt.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise BadOption("pictures need Matplotlib: pip install 'continual[plots]'") from error
    matplotlib.use("agg", force=False)
    import matplotlib.pyplot as plt

    return plt
