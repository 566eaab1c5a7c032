"""What is computed from accuracies: pure functions of the accuracy matrix and of the trace, each with its source.

``A`` is the accuracy matrix, shape (R, T+1, T), fractions in [0, 1]: A[r, i, j] is the accuracy of seed r on task j
after learning task i. Rows count from 0, which is the untrained network, to T; columns, which Python counts from 0, are
the papers' tasks 1 to T. The formulas below count both from 1 and leave the seed out, as the papers do.

``trace`` holds accuracies measured while learning, shape (R, E, T) for E evaluations in the order of time, and
``task``, shape (E,), the task (counted from 0) that was being learnt at each. What a trace holds of a task before the
task has begun does not matter and may be NaN.

A metric gives one value per seed, shape (R,); functions of sizes give one number. NaN, in a seed that was stopped,
spreads within that seed only. A mean over nothing, such as forgetting when there is one task, is NaN: it is
undefined, and 0 would claim a perfect memory.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from continual.errors import BadOption, brief, choices, unknown

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = "NDArray[np.float64]"
Rows = Literal["untrained", "all", "since", "learnt"]
Needs = Literal["matrix", "trace", "joint", "size", "tests", "task-aware", "validation", "training"]
Unit = Literal["%", ""]


# ---- the metrics by name


class Measured(Protocol):
    """What a metric needs of a result."""

    @property
    def record(self) -> dict[str, Any]:
        """What was run."""

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """All that was measured."""

    @property
    def accuracy(self) -> Array:
        """(R, T+1, T)."""

    @property
    def trace(self) -> Array | None:
        """(R, E, T)."""

    @property
    def trace_task(self) -> NDArray[np.int64] | None:
        """(E,)."""


@dataclass(frozen=True)
class Metric:
    """A metric under its name, computed by calling it with a result.

    ``unit`` is "%" for what is printed a hundredfold. ``needs`` tells what beyond the accuracy matrix must be there: a
    trace, the sizes that a run records, how many test samples tasks have, another matrix (:data:`MATRICES`), or the
    result of joint training in the same experiment.
    """

    name: str
    meaning: str
    citation: str
    function: Callable[..., Any]
    higher_is_better: bool | None = True
    unit: Unit = "%"
    needs: Needs = "matrix"

    @property
    def title(self) -> str:
        """The name as a column's heading has it."""
        which, _, name = self.name.rpartition(":")
        return f"{which if which in MATRICES else ''} {name.replace('-', ' ').replace('_', ' ')}".strip()

    def __call__(self, result: Measured, joint: Measured | None = None) -> Array:
        """The value of each seed, (R,); BadOption where the result lacks what the metric needs."""
        given = _GIVEN[self.needs](result, joint)
        if given is None:
            raise BadOption(f"the metric {self.name} needs {_LACKING[self.needs]}")
        values = self.function(*given)
        if self.needs == "trace":  # what was measured while all was learnt at once says nothing of one task
            values = np.where(put_off(result.accuracy), np.nan, values)
        if self.needs == "size":
            reached = np.isfinite(result.accuracy[:, -1]).any(axis=1)  # of a seed that was stopped nothing is known
            values = np.where(reached, values, np.nan)
        return np.asarray(values, np.float64)

    def fits(self, result: Measured, joint: Measured | None = None) -> bool:
        """Whether what the metric needs is there."""
        return _GIVEN[self.needs](result, joint) is not None


MATRICES: dict[Needs, str] = {
    "task-aware": "task_aware_accuracy", "validation": "validation_accuracy", "training": "training_accuracy",
}  # fmt: skip
"""Matrices beside that of the tests' accuracies, which a metric can be of: ``validation:forgetting``."""
ACCURACIES = ("accuracy", *MATRICES.values())
"""The names of all arrays that are such a matrix."""
SIZES = ("parameters", "stored_samples_per_task", "train_samples_per_task")


def _of_matrix(array: str, one: Measured, _: Measured | None) -> tuple[Any, ...] | None:
    return (one.arrays[array],) if array in one.arrays else None


_GIVEN: dict[Needs, Callable[[Measured, Measured | None], tuple[Any, ...] | None]] = {
    "matrix": lambda one, _: (one.accuracy,),
    "trace": lambda one, _: None if one.trace is None else (one.trace, one.trace_task),
    "joint": lambda one, joint: None if joint is None else (one.accuracy, _learnt(_matrix(joint.accuracy))),
    "tests": lambda one, _: (one.accuracy, one.arrays["test_samples"]) if "test_samples" in one.arrays else None,
    "size": lambda one, _: (one,) if all(name in one.record.get("size", {}) for name in SIZES) else None,
    **{which: functools.partial(_of_matrix, array) for which, array in MATRICES.items()},
}
"""What a function takes of a result, and of that of joint training, by what it needs; none where that is not there."""
_LACKING = {
    "trace": "accuracies measured while learning, and the run was evaluated only between tasks",
    "joint": "a run of the strategy 'joint' of the same experiment among those that are shown, and there is none",
    "task-aware": "accuracies with the task told, and the run did not measure them (--task-aware)",
    "validation": "rows that are set aside, and the run had none (the benchmark's option validation)",
    "training": "accuracies on training rows, and the run did not measure them (--train-samples)",
    "tests": "the number of each task's test samples, which results of an earlier version do not have",
    "size": f"a record of the sizes {', '.join(SIZES)}, and this run has none",
}


LOPEZ_PAZ = "Lopez-Paz & Ranzato 2017"
CHAUDHRY = "Chaudhry et al. 2018"
DIAZ = "Díaz-Rodríguez et al. 2018"
DE_LANGE = "De Lange et al. 2023"

METRICS: dict[str, Metric] = {}
DEFAULT = ("average-accuracy", "learning-accuracy", "forgetting", "backward-transfer")
"""What is shown where nothing is asked for."""


def metric(name: str | Metric) -> Metric:
    """The metric of this name, or of another matrix than the tests' accuracies, as in ``validation:forgetting``.

    A metric itself is that one.

    Raises:
        UnknownName: where there is none.
        BadOption: where it is of more than the accuracy matrix.
    """
    if isinstance(name, Metric):
        return name
    which, _, plain = name.rpartition(":")
    if name in METRICS:
        return METRICS[name]
    if plain not in METRICS:
        raise unknown("metric", name, METRICS)
    found = METRICS[plain]
    if which not in MATRICES:
        raise BadOption(f"the metric '{name}': before the colon it takes {choices(MATRICES)}")
    if found.needs != "matrix":
        raise BadOption(f"the metric '{name}': {plain} is not of an accuracy matrix alone, so it takes no {which}")
    return replace(found, name=name, meaning=f"{found.meaning}; {which}", needs=which)


def put_off(A: Array) -> NDArray[np.bool_]:
    """Which seeds have learnt nothing of a task when it ended, but something later, (R,)."""
    none = np.asarray(np.isnan(A[:, 1:]).all(axis=2))
    return np.asarray(none.any(axis=1) & ~none[:, -1])


def own(name: str, given: Any) -> Metric:
    """A metric of somebody's own: a function of the accuracy matrix (R, T+1, T) that gives a value for each seed (R,).

    Its meaning is the first line of its docstring. A :class:`Metric` can say more, such as what else it needs.
    """
    if isinstance(given, Metric):
        return replace(given, name=name)
    if not callable(given):
        raise BadOption(f"the metric '{name}' is {brief(given)}; it takes a function of an accuracy matrix")

    def function(A: Array) -> Array:
        found = np.asarray(given(A), np.float64)
        if found.shape != A.shape[:1]:
            raise BadOption(f"the metric '{name}' gives an array of shape {found.shape}, not a value for each of "
                            f"{len(A)} seeds")  # fmt: skip
        return found

    said = (given.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return Metric(name, said or name, "", function)


Function = TypeVar("Function", bound=Callable[..., Any])


def _named(
    name: str, meaning: str, citation: str, up: bool = True, needs: Needs = "matrix", unit: Unit = "%", **options: Any
) -> Callable[[Function], Function]:
    """Registers the function that follows, with these options, as the metric ``name``."""

    def register(function: Function) -> Function:
        METRICS[name] = Metric(name, meaning, citation, functools.partial(function, **options), up, unit, needs)
        return function

    return register


# ---- the accuracy matrix


@_named(
    "validation-accuracy", "as average accuracy, of training rows set aside", f"after {LOPEZ_PAZ}", needs="validation"
)
@_named("average-accuracy", "mean over tasks after the last", LOPEZ_PAZ)
def average_accuracy(A: ArrayLike) -> Array:
    """ACC = 1/T Σ_j A[T, j]: mean over tasks after the last one (Lopez-Paz & Ranzato 2017, eq. 2)."""
    return _mean(_matrix(A)[:, -1])


@_named("average-incremental-accuracy", "mean over time of the mean over tasks learnt so far",
        "after Rebuffi et al. 2017")  # fmt: skip
def average_incremental_accuracy(A: ArrayLike) -> Array:
    """1/T Σ_i (1/i Σ_{j≤i} A[i, j]): mean over time of the mean over tasks learnt so far (Rebuffi et al. 2017, iCaRL).

    iCaRL has the accuracy over all samples in place of the inner mean, the same where tasks have equally many; see
    :func:`overall_incremental_accuracy`.
    """
    A = _matrix(A)
    return _mean_of([A[:, i, :i].mean(axis=1) for i in range(1, A.shape[1])], len(A))


@_named("overall-accuracy", "over all test samples after the last task", "Rebuffi et al. 2017", needs="tests")
def overall_accuracy(A: ArrayLike, n: ArrayLike) -> Array:
    """Σ_j n_j A[T, j] / Σ_j n_j, with the ``n`` (R, T) test samples of each task: over all samples (Rebuffi 2017)."""
    A = _matrix(A)
    return _over_samples(A[:, -1], n)


@_named("overall-incremental-accuracy", "mean over time of that over all test samples of tasks learnt so far",
        "Rebuffi et al. 2017", needs="tests")  # fmt: skip
def overall_incremental_accuracy(A: ArrayLike, n: ArrayLike) -> Array:
    """1/T Σ_i (Σ_{j≤i} n_j A[i, j] / Σ_{j≤i} n_j): iCaRL's average incremental accuracy (Rebuffi et al. 2017).

    ``n``, (R, T), are the test samples of each task.
    """
    A, n = _matrix(A), np.asarray(n, np.float64)
    return _mean_of([_over_samples(A[:, i, :i], n[:, :i]) for i in range(1, A.shape[1])], len(A))


@_named("learning-accuracy", "just after learning each task, mean over tasks", "Riemer et al. 2019")
def learning_accuracy(A: ArrayLike) -> Array:
    """LA = 1/T Σ_j A[j, j]: accuracy on each task just after learning it (Riemer et al. 2019, MER)."""
    return _mean(_learnt(_matrix(A)))


@_named(
    "forgetting-from-peak",
    "as forgetting, best after tasks 1 to T, so never negative",
    f"after {CHAUDHRY}",
    up=False,
    last=True,
)
@_named(
    "forgetting-since-learnt",
    "as forgetting, best since the task was learnt",
    f"after {CHAUDHRY}",
    up=False,
    rows="since",
)
@_named("forgetting", "best after tasks 1 to T-1 minus final, mean over the first T-1 tasks", CHAUDHRY, up=False)
def forgetting(A: ArrayLike, *, rows: Rows = "all", last: bool = False, average: Literal["T-1", "T"] = "T-1") -> Array:
    """F = 1/(T-1) Σ_{j<T} (max_l A[l, j] - A[T, j]): known once and lost (Chaudhry et al. 2018, RWalk).

    Arguments:
        A: (R, T+1, T).
        rows: the rows l of the maximum. ``"all"``: 1 to T-1, as in the paper, the rows before task j is learnt too;
            ``"untrained"``: row 0 as well; ``"since"``: j to T-1; ``"learnt"``: only j, so that F is minus BWT.
        last: whether the last row, T, takes part in the maximum too, so that F is never negative.
        average: ``"T-1"`` as in the paper, or ``"T"``: the same sum over T, the last task counting as not forgotten.

    Raises:
        BadOption: where ``rows`` or ``average`` is none of these.
    """
    A = _matrix(A)
    T = A.shape[2]
    if average not in ("T-1", "T"):
        raise BadOption(f"forgetting: option average was given {average!r}; it takes T-1|T")
    mean = _mean(forgetting_by_task(A, rows=rows, last=last))
    return mean * (T - 1) / T if average == "T" else mean


def forgetting_by_task(A: ArrayLike, *, rows: Rows = "all", last: bool = False) -> Array:
    """f_j = max_l A[l, j] - A[T, j] of each of the first T-1 tasks, (R, T-1); see :func:`forgetting`."""
    A = _matrix(A)
    drops = [_best(A, j, rows, last) - A[:, -1, j - 1] for j in range(1, A.shape[2])]
    return np.reshape(np.asarray(drops, np.float64), (len(drops), len(A))).T


@_named("backward-transfer", "final minus just after learning, mean over the first T-1 tasks", LOPEZ_PAZ)
def backward_transfer(A: ArrayLike) -> Array:
    """BWT = 1/(T-1) Σ_{j<T} (A[T, j] - A[j, j]) (Lopez-Paz & Ranzato 2017, eq. 3)."""
    A = _matrix(A)
    return _mean((A[:, -1] - _learnt(A))[:, :-1])


@_named("forward-transfer", "just before learning minus untrained, mean over tasks 2 to T", LOPEZ_PAZ)
def forward_transfer(A: ArrayLike) -> Array:
    """FWT = 1/(T-1) Σ_{j>1} (A[j-1, j] - b_j), b_j = A[0, j] (Lopez-Paz & Ranzato 2017, eq. 4).

    b is the untrained network of the same seed. In a class-incremental stream, where outputs of classes not yet seen
    take no part or are never the largest, this says little.
    """
    A = _matrix(A)
    before = np.diagonal(A[:, :-1], axis1=1, axis2=2)  # A[j-1, j]
    return _mean((before - A[:, 0])[:, 1:])


@_named("intransigence", "joint training minus just after learning, mean over tasks", CHAUDHRY, up=False, needs="joint")
def intransigence(A: ArrayLike, reference: ArrayLike) -> Array:
    """I = 1/T Σ_k (a*_k - A[k, k]): what the strategy fails to learn (Chaudhry et al. 2018, RWalk).

    The paper defines I_k for each k; this is the mean over k. ``reference`` holds a*_k, shape (R, T) seed by seed or
    (T,) for all: the accuracy on task k of a model trained on the data of the tasks 1 to k together.
    """
    learnt = _learnt(_matrix(A))
    return _mean(np.broadcast_to(np.asarray(reference, np.float64), learnt.shape) - learnt)


def _matrix(A: ArrayLike) -> Array:
    """``A`` in double precision; ValueError where it is no accuracy matrix."""
    A = np.asarray(A, np.float64)
    if A.ndim != 3 or A.shape[2] < 1 or A.shape[1] != A.shape[2] + 1:
        raise ValueError(f"an accuracy matrix has shape (R, T+1, T), not {A.shape}")
    return A


def _learnt(A: Array) -> Array:
    """A[j, j] of each task, (R, T)."""
    return np.diagonal(A[:, 1:], axis1=1, axis2=2)


def _mean(values: Array) -> Array:
    """Mean over the second axis; NaN, without numpy's warning, where it is empty."""
    return values.mean(axis=1) if values.shape[1] else np.full(values.shape[0], np.nan)


def _over_samples(values: Array, n: ArrayLike) -> Array:
    """Mean of accuracies (R, T) weighed by numbers of samples (R, T)."""
    n = np.asarray(n, np.float64)
    return np.asarray((n * values).sum(axis=1) / n.sum(axis=1), np.float64)


def _mean_of(terms: list[Array], R: int) -> Array:
    """Mean of terms that are (R,) each; NaN where there are none."""
    return _mean(np.reshape(np.asarray(terms, np.float64), (len(terms), R)).T)


def _best(A: Array, j: int, rows: Rows, last: bool) -> Array:
    """The largest accuracy on task j (counted from 1) over the rows that are asked for, (R,)."""
    T = A.shape[2]
    spans = {"untrained": (0, T), "all": (1, T), "since": (j, T), "learnt": (j, j + 1)}
    if rows not in spans:
        raise BadOption(f"forgetting: option rows was given {rows!r}; it takes untrained|all|since|learnt")
    best: Array = A[:, slice(*spans[rows]), j - 1].max(axis=1)
    return np.maximum(best, A[:, -1, j - 1]) if last else best


# ---- Díaz-Rodríguez et al. 2018, "Don't forget, there is more than forgetting"


@_named("dr-accuracy", "mean of the lower triangle with the diagonal", DIAZ)
def dr_accuracy(A: ArrayLike) -> Array:
    """A = Σ_{i≥j} A[i, j] / (T(T+1)/2): mean of the lower triangle with its diagonal (Díaz-Rodríguez et al. 2018)."""
    return _mean(_triangle(_matrix(A)[:, 1:], np.tril_indices, 0))


@_named("dr-backward-transfer", "accuracy minus just after learning, mean below the diagonal", DIAZ)
def dr_backward_transfer(A: ArrayLike) -> Array:
    """BWT = Σ_{i≥2} Σ_{j<i} (A[i, j] - A[j, j]) / (T(T-1)/2): over all times, not the last alone (Díaz-Rodríguez)."""
    A = _matrix(A)
    return _mean(_triangle(A[:, 1:] - _learnt(A)[:, None, :], np.tril_indices, -1))


@_named("dr-forward-transfer", "mean above the diagonal", DIAZ)
def dr_forward_transfer(A: ArrayLike) -> Array:
    """FWT = Σ_{i<j} A[i, j] / (T(T-1)/2): mean of the upper triangle, no baseline taken off (Díaz-Rodríguez)."""
    return _mean(_triangle(_matrix(A)[:, 1:], np.triu_indices, 1))


@_named("remembering", "1 - |min(dr-backward-transfer, 0)|", DIAZ)
def remembering(A: ArrayLike) -> Array:
    """REM = 1 - |min(BWT, 0)|, of :func:`dr_backward_transfer` (Díaz-Rodríguez et al. 2018)."""
    return 1 - np.abs(np.minimum(dr_backward_transfer(A), 0))


@_named("positive-backward-transfer", "max(dr-backward-transfer, 0)", DIAZ)
def positive_backward_transfer(A: ArrayLike) -> Array:
    """BWT+ = max(BWT, 0), of :func:`dr_backward_transfer` (Díaz-Rodríguez et al. 2018)."""
    return np.maximum(dr_backward_transfer(A), 0)


def model_size_efficiency(parameters: ArrayLike) -> float:
    """MS = min(1, 1/T Σ_i Mem(θ_1)/Mem(θ_i)); ``parameters``, (T,), counts them after each task (Díaz-Rodríguez)."""
    sizes = np.asarray(parameters, np.float64)
    return min(1.0, float((sizes[0] / sizes).mean()))


def samples_storage_efficiency(stored: ArrayLike, total: float) -> float:
    """SSS = 1 - min(1, 1/T Σ_i Mem(M_i)/Mem(D)) (Díaz-Rodríguez et al. 2018).

    ``stored``, (T,), is what the strategy keeps of the samples after each task and ``total`` all the training data
    of the stream, both in samples or both in bytes.
    """
    return 1 - min(1.0, float((np.asarray(stored, np.float64) / total).mean()))


def computational_efficiency(once: ArrayLike, used: ArrayLike, epsilon: float = 1.0) -> float:
    """CE = min(1, 1/T Σ_i Ops↑↓(Tr_i) ε / Ops(Tr_i)) (Díaz-Rodríguez et al. 2018).

    ``once``, (T,), counts the multiply-adds of one forward and backward pass over each task's data, ``used``, (T,),
    those that learning the task took. ``epsilon`` is the paper's scale, of the order of the number of epochs.
    """
    return min(1.0, float((np.asarray(once, np.float64) * epsilon / np.asarray(used, np.float64)).mean()))


def cl_score(criteria: Mapping[str, ArrayLike], weights: Mapping[str, float] | None = None) -> Array:
    """CL_score = Σ_i w_i c_i of each seed (Díaz-Rodríguez et al. 2018); its mean over seeds is the paper's score.

    ``criteria`` are named values in [0, 1], each (R,) or one number; ``weights`` add up to 1 (default: all equal).
    """
    shares = _weights(criteria, weights)
    terms = [shares[name] * np.atleast_1d(np.asarray(value, np.float64)) for name, value in criteria.items()]
    total: Array = np.sum(np.broadcast_arrays(*terms), axis=0)
    return total


def cl_stability(criteria: Mapping[str, ArrayLike], weights: Mapping[str, float] | None = None) -> float:
    """CL_stability = 1 - Σ_i w_i stddev(c_i), over the seeds, with R-1 (Díaz-Rodríguez et al. 2018).

    As :func:`cl_score`. A criterion given as one number does not vary; NaN where another has fewer than two seeds.
    """
    shares = _weights(criteria, weights)
    spreads = {name: summarise(value).sd if np.ndim(value) else 0.0 for name, value in criteria.items()}
    return 1 - sum(shares[name] * spread for name, spread in spreads.items())


@_named("model-size-efficiency", "parameters at first over now, mean over tasks", DIAZ, needs="size", unit="")
def _model_size(result: Measured) -> float:
    size, T = result.record["size"], result.accuracy.shape[2]
    return model_size_efficiency(np.broadcast_to(np.add(size["parameters"], size.get("frozen_parameters", 0)), T))


@_named("samples-storage-efficiency", "1 - stored over all samples, mean over tasks", DIAZ, needs="size", unit="")
def _samples_storage(result: Measured) -> Array:
    size, R = result.record["size"], len(result.accuracy)
    each = result.arrays.get("stored_samples", [size["stored_samples_per_task"]] * R)
    return np.asarray([samples_storage_efficiency(stored, sum(size["train_samples_per_task"])) for stored in each])


def _triangle(A: Array, indices: Callable[[int, int], Any], offset: int) -> Array:
    """The entries of one triangle of each (T, T) matrix, (R, number of entries)."""
    i, j = indices(A.shape[2], offset)
    return A[:, i, j]


def _weights(criteria: Mapping[str, ArrayLike], weights: Mapping[str, float] | None) -> dict[str, float]:
    """A weight for each criterion, adding up to 1."""
    if weights is None:
        return dict.fromkeys(criteria, 1 / len(criteria))
    if set(weights) != set(criteria) or not math.isclose(sum(weights.values()), 1, rel_tol=1e-9):
        raise BadOption(f"weights must name {', '.join(criteria)} and add up to 1, not {dict(weights)}")
    return dict(weights)


def task_names(result: Measured, word: str = "task ") -> list[str]:
    """What the tasks of a result are called: as its record has it, else ``task 1`` and so on."""
    names, tasks = result.record.get("tasks", []), result.accuracy.shape[2]
    return list(names) if len(names) == tasks else [f"{word}{j}" for j in range(1, tasks + 1)]


# ---- the trace: De Lange et al. 2023, "Continual evaluation for lifelong learning: identifying the stability gap"


def epochs_of(result: Measured) -> NDArray[np.int64] | None:
    """The epoch of its task, from 1, after which each evaluation was made (E,); None unless one was made after each."""
    training, task = result.record.get("protocol", {}).get("training", {}), result.trace_task
    # of iterations the last may end within an epoch
    if training.get("evaluate_every") != "epoch" or training.get("iterations") is not None or task is None:
        return None
    found: NDArray[np.int64] = 1 + np.arange(len(task)) - np.searchsorted(task, task)  # tasks are in order
    return found


@_named("minimum-accuracy", "least while later tasks are learnt, mean over the first T-1", DE_LANGE, needs="trace")
def minimum_accuracy(trace: ArrayLike, task: ArrayLike) -> Array:
    """min-ACC = 1/(T-1) Σ_{j<T} min_n A(E_j, f_n) over evaluations n while a later task is learnt (De Lange 2023)."""
    trace, task = _trace(trace, task)
    return _mean_of([_worst(trace, task > j, j) for j in range(trace.shape[2] - 1)], len(trace))


@_named("worst-case-accuracy", "last task final, others least, mean over tasks", DE_LANGE, needs="trace")
def worst_case_accuracy(trace: ArrayLike, task: ArrayLike) -> Array:
    """WC-ACC = 1/T A(E_T, f) + (1 - 1/T) min-ACC, f the network of the last evaluation (De Lange et al. 2023).

    With one task it is the accuracy on it.
    """
    values, _ = _trace(trace, task)
    T = values.shape[2]
    final: Array = values[:, -1, -1]
    return final if T == 1 else final / T + (1 - 1 / T) * minimum_accuracy(trace, task)


@_named("windowed-forgetting-100", "largest drop in 100 evaluations", DE_LANGE, up=False, needs="trace", window=100)
@_named("windowed-forgetting-10", "largest drop in 10 evaluations", DE_LANGE, up=False, needs="trace", window=10)
def windowed_forgetting(trace: ArrayLike, task: ArrayLike, *, window: int = 10) -> Array:
    """WF^Δ: the largest drop within ``window`` (Δ) successive evaluations, mean over tasks (De Lange et al. 2023).

    Of task j count the evaluations from when it begins to be learnt; of each pair m < n in one window, that is with
    n - m < Δ, the drop is A(E_j, f_m) - A(E_j, f_n). 0 for a task that never drops. A window counts evaluations, not
    steps, so values compare only between traces that were evaluated equally often.
    """
    return _largest_change(trace, task, window, -1)


@_named("windowed-plasticity-100", "largest rise in 100 evaluations", DE_LANGE, needs="trace", window=100)
@_named("windowed-plasticity-10", "largest rise in 10 evaluations", DE_LANGE, needs="trace", window=10)
def windowed_plasticity(trace: ArrayLike, task: ArrayLike, *, window: int = 10) -> Array:
    """WP^Δ: as :func:`windowed_forgetting`, with the largest rise in place of the drop (De Lange et al. 2023)."""
    return _largest_change(trace, task, window, 1)


@_named(
    "stability-gap",
    "drop on old tasks after a switch, mean over switches",
    f"after {DE_LANGE}",
    up=False,
    needs="trace",
)
def stability_gap(trace: ArrayLike, task: ArrayLike) -> Array:
    """Mean over the switches between tasks of the drop that follows; the gap described by De Lange et al. (2023).

    With a(n) the mean accuracy at evaluation n on the tasks before k, the gap at the switch to task k ≥ 2 is a(the last
    evaluation before k) - min of a(n) over the evaluations while k is learnt. The paper names and shows the gap but
    gives no formula; this one is ours. Where evaluations begin after the first step, a gap can be negative.
    """
    return _mean(stability_gaps(trace, task))


def stability_gaps(trace: ArrayLike, task: ArrayLike) -> Array:
    """The gap at each of the T-1 switches, (R, T-1); see :func:`stability_gap`."""
    trace, task = _trace(trace, task)
    gaps = [_gap(trace, task, k) for k in range(1, trace.shape[2])]
    return np.reshape(np.asarray(gaps, np.float64), (len(gaps), len(trace))).T


def _trace(trace: ArrayLike, task: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    """Both as arrays; ValueError where their shapes are wrong, or the tasks do not follow one another."""
    trace, task = np.asarray(trace, np.float64), np.asarray(task, np.int64)
    if trace.ndim != 3 or trace.shape[1] < 1 or trace.shape[2] < 1 or task.shape != trace.shape[1:2]:
        raise ValueError(f"a trace has shape (R, E, T) and its tasks (E,), not {trace.shape} and {task.shape}")
    if np.any(np.diff(task) < 0):
        raise ValueError("the evaluations of a trace must be in the order of time, so the tasks must not decrease")
    return trace, task


def _worst(trace: Array, when: NDArray[np.bool_], j: int) -> Array:
    """The least accuracy on task j over some evaluations, NaN where there are none, (R,)."""
    return trace[:, when, j].min(axis=1) if when.any() else np.full(trace.shape[0], np.nan)


def _gap(trace: Array, task: NDArray[np.int64], k: int) -> Array:
    """The drop at the switch to task k (counted from 0), NaN where either side was not evaluated, (R,)."""
    if not (np.any(task < k) and np.any(task == k)):
        return np.full(trace.shape[0], np.nan)
    old: Array = trace[:, :, :k].mean(axis=2)
    before: Array = old[:, task < k][:, -1]
    least: Array = old[:, task == k].min(axis=1)
    return before - least


def _largest_change(trace: ArrayLike, task: ArrayLike, window: int, sign: int) -> Array:
    """Mean over tasks of the largest ``sign`` times (later - earlier accuracy) within a window, (R,)."""
    trace, task = _trace(trace, task)
    if window < 2:
        raise BadOption(f"a window takes 2 evaluations at least, not {window}")
    R, _, T = trace.shape
    changes = np.full((R, T), np.nan)
    for j in range(T):
        seen = sign * trace[:, task >= j, j]
        if seen.shape[1]:
            # the first value repeated in front belongs to each of those shorter windows anyway
            padded = np.concatenate([np.repeat(seen[:, :1], window - 1, axis=1), seen], axis=1)
            earlier = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1).min(axis=2)
            changes[:, j] = (seen - earlier).max(axis=1)
    return _mean(changes)


# ---- over the seeds


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n-1), standard error and 95 % interval of ``n`` seeds; ``failed`` gave no value."""

    mean: float
    sd: float
    se: float
    n: int
    failed: int

    @property
    def low(self) -> float:
        """Where the interval begins."""
        return self.mean - self._half

    @property
    def high(self) -> float:
        """Where it ends."""
        return self.mean + self._half

    def values(self) -> dict[str, float | int]:
        """All of it by name."""
        return {name: getattr(self, name) for name in ("mean", "sd", "se", "low", "high", "n", "failed")}

    @property
    def _half(self) -> float:
        return _student(self.n - 1) * self.se if self.n > 1 else math.nan


def number(value: float, decimals: int) -> str:
    """A number as a table has it, or a dash."""
    # a value that rounds to zero from below would print as -0.00
    return f"{round(value, decimals) + 0.0:.{decimals}f}" if math.isfinite(value) else "–"


def over_seeds(values: Array) -> tuple[Array, Array, NDArray[np.int64]]:
    """Mean, standard deviation (n-1) and number of the finite values along the first axis; NaN where there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns of a mean over nothing
        finite = np.where(np.isfinite(values), values, np.nan)
        return np.nanmean(finite, axis=0), np.nanstd(finite, axis=0, ddof=1), np.isfinite(values).sum(axis=0)


def summarise(values: ArrayLike) -> Summary:
    """The summary of one value per seed, shape (R,), over the seeds where it is finite.

    The interval is Student's: mean ± t(0.975, n-1) · sd / √n. It is not cut at 0 or 1. With one seed there is no sd, se
    or interval (NaN), with none no mean either.
    """
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    n, failed = finite.size, values.size - finite.size
    mean = float(finite.mean()) if n else math.nan
    if n < 2:
        return Summary(mean, math.nan, math.nan, n, failed)
    sd = float(finite.std(ddof=1))
    return Summary(mean, sd, sd / math.sqrt(n), n, failed)


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t."""
    from scipy.special import stdtrit  # takes half as long to import as scipy.stats, and is left out of most tables

    return float(stdtrit(freedom, 0.975))
