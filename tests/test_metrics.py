"""Each metric against loops in plain Python that follow its paper, and against numbers worked out by hand."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from continual.errors import BadOption, UnknownName
from continual.results import metrics as m

# one seed, three tasks; rows: untrained, after task 1, 2, 3
A = np.array([[[0.1, 0.2, 0.3], [0.9, 0.3, 0.2], [0.6, 0.8, 0.5], [0.5, 0.9, 0.7]]])


@st.composite
def matrices(draw, least=1, seeds=3):
    R, T = draw(st.integers(1, seeds)), draw(st.integers(least, 5))
    return draw(arrays(np.float64, (R, T + 1, T), elements=st.floats(0, 1)))


@st.composite
def traces(draw, least=1):
    R, T = draw(st.integers(1, 2)), draw(st.integers(least, 4))
    lengths = draw(st.lists(st.integers(1, 6), min_size=T, max_size=T))
    task = np.repeat(np.arange(T), lengths)
    return draw(arrays(np.float64, (R, len(task), T), elements=st.floats(0, 1))), task


def mean(values):
    return sum(values) / len(values) if values else math.nan


def same(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-12)


def per_seed(A, formula):
    """``formula(a, T)`` of each seed, where a(i, j) counts rows from 0 (untrained) and tasks from 1, as papers do."""
    T = A.shape[2]
    return [formula(lambda i, j, one=one: one[i][j - 1], T) for one in A.tolist()]


LOOPS = {
    m.average_accuracy: lambda a, T: mean([a(T, j) for j in range(1, T + 1)]),
    m.average_incremental_accuracy: lambda a, T: mean(
        [mean([a(i, j) for j in range(1, i + 1)]) for i in range(1, T + 1)]
    ),
    m.learning_accuracy: lambda a, T: mean([a(j, j) for j in range(1, T + 1)]),
    m.forgetting: lambda a, T: mean([max(a(l, j) for l in range(1, T)) - a(T, j) for j in range(1, T)]),
    m.backward_transfer: lambda a, T: mean([a(T, j) - a(j, j) for j in range(1, T)]),
    m.forward_transfer: lambda a, T: mean([a(j - 1, j) - a(0, j) for j in range(2, T + 1)]),
    m.dr_accuracy: lambda a, T: (
        sum(a(i, j) for i in range(1, T + 1) for j in range(1, T + 1) if i >= j) / (T * (T + 1) / 2)
    ),
    m.dr_backward_transfer: lambda a, T: mean([a(i, j) - a(j, j) for i in range(2, T + 1) for j in range(1, i)]),
    m.dr_forward_transfer: lambda a, T: mean([a(i, j) for i in range(1, T + 1) for j in range(i + 1, T + 1)]),
}


@pytest.mark.parametrize("function", LOOPS, ids=lambda function: function.__name__)
@settings(max_examples=40, deadline=None)
@given(A=matrices())
def test_matrix_metrics_equal_loops(function, A):
    found = function(A)
    assert found.shape == (len(A),)
    same(found, per_seed(A, LOOPS[function]))


SPANS = {
    "untrained": lambda j, T: range(T),
    "all": lambda j, T: range(1, T),
    "since": range,
    "learnt": lambda j, T: range(j, j + 1),
}


@pytest.mark.parametrize("average", ["T-1", "T"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("rows", SPANS)
@settings(max_examples=20, deadline=None)
@given(A=matrices(least=2))
def test_every_convention_of_forgetting_equals_loops(rows, last, average, A):
    def loops(a, T):
        total = 0.0
        for j in range(1, T):
            span = [*SPANS[rows](j, T), *([T] if last else [])]
            total += max(a(l, j) for l in span) - a(T, j)
        return total / (T if average == "T" else T - 1)

    same(m.forgetting(A, rows=rows, last=last, average=average), per_seed(A, loops))


def test_matrix_metrics_by_hand():
    same(m.average_accuracy(A), [0.7])
    same(m.average_incremental_accuracy(A), [(0.9 + 0.7 + 0.7) / 3])
    same(m.learning_accuracy(A), [0.8])
    same(m.backward_transfer(A), [(-0.4 + 0.1) / 2])
    same(m.forward_transfer(A), [(0.1 + 0.2) / 2])
    same(m.forgetting(A), [(0.4 - 0.1) / 2])
    same(m.forgetting(A, last=True), [0.2])
    same(m.forgetting(A, average="T"), [0.1])
    same(m.dr_accuracy(A), [(0.9 + 0.6 + 0.8 + 0.5 + 0.9 + 0.7) / 6])
    same(m.dr_backward_transfer(A), [(-0.3 - 0.4 + 0.1) / 3])
    same(m.remembering(A), [0.8])
    same(m.positive_backward_transfer(A), [0.0])
    same(m.dr_forward_transfer(A), [(0.3 + 0.2 + 0.5) / 3])
    same(m.intransigence(A, [1.0, 0.9, 0.6]), [(0.1 + 0.1 - 0.1) / 3])
    same(m.intransigence(A, [[1.0, 0.9, 0.6]]), m.intransigence(A, [1.0, 0.9, 0.6]))


def test_nothing_is_lost_where_later_tasks_help():
    helped = np.array([[[0.1, 0.1, 0.1], [0.5, 0.2, 0.1], [0.7, 0.6, 0.2], [0.9, 0.8, 0.7]]])
    same(m.dr_backward_transfer(helped), [(0.2 + 0.4 + 0.2) / 3])
    same(m.positive_backward_transfer(helped), [0.8 / 3])
    same(m.remembering(helped), [1.0])


def test_rows_of_forgetting_differ_where_they_should():
    # task 2 is best before anything is learnt, then before it is learnt, then after
    A = np.array([[[0.0, 0.9, 0.0], [0.8, 0.7, 0.0], [0.8, 0.5, 0.0], [0.8, 0.1, 0.5]]])
    found = [float(m.forgetting(A, rows=rows)[0]) for rows in ("untrained", "all", "since")]
    same(found, [0.4, 0.3, 0.2])
    with pytest.raises(BadOption, match="sinse"):
        m.forgetting(A, rows="sinse")
    with pytest.raises(BadOption, match="N"):
        m.forgetting(A, average="N")


def test_one_task_has_no_forgetting_and_no_transfer():
    one = np.array([[[0.1], [0.9]]])
    for function in (m.forgetting, m.backward_transfer, m.forward_transfer, m.dr_backward_transfer, m.remembering):
        assert np.isnan(function(one)).all()
    for function in (m.average_accuracy, m.learning_accuracy, m.average_incremental_accuracy, m.dr_accuracy):
        same(function(one), [0.9])


@settings(max_examples=40, deadline=None)
@given(A=matrices(least=2))
def test_properties_of_matrix_metrics(A):
    assert np.all((m.average_accuracy(A) >= 0) & (m.average_accuracy(A) <= 1))
    assert np.all(np.abs(m.backward_transfer(A)) <= 1)
    assert np.all(m.forgetting(A, last=True) >= -1e-12)
    assert np.all(m.forgetting(A) >= m.forgetting(A, rows="since") - 1e-12)
    assert np.all(m.forgetting(A, rows="since") >= m.forgetting(A, rows="learnt") - 1e-12)
    same(m.forgetting(A, rows="learnt"), -m.backward_transfer(A))
    same(m.intransigence(A, np.ones(A.shape[2])), 1 - m.learning_accuracy(A))
    T = A.shape[2]
    peaked = A.copy()
    for j in range(T):
        peaked[:, j + 1, j] = 1.0  # nothing exceeds the diagonal
    same(m.forgetting(peaked), -m.backward_transfer(peaked))


def test_a_stopped_seed_is_nan_alone():
    both = np.concatenate([A, A])
    both[1, 2:] = np.nan
    for function in LOOPS:
        found = function(both)
        same(found[:1], function(A))
        assert np.isnan(found[1]), function.__name__


@pytest.mark.parametrize("shape", [(3, 3), (1, 3, 3), (1, 2, 3), (1, 1, 0)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(R, T\+1, T\)"):
        m.average_accuracy(np.zeros(shape))


def test_efficiencies_by_hand():
    assert m.model_size_efficiency([100, 100, 100]) == 1
    assert m.model_size_efficiency([100, 200, 400]) == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert m.model_size_efficiency([100, 50]) == 1  # cut at 1
    assert m.samples_storage_efficiency([10, 20, 30], 100) == pytest.approx(0.8)
    assert m.samples_storage_efficiency([200], 100) == 0
    assert m.computational_efficiency([10, 10], [100, 50]) == pytest.approx(0.15)
    assert m.computational_efficiency([10, 10], [100, 50], epsilon=5) == pytest.approx(0.75)
    assert m.computational_efficiency([10], [5]) == 1


def test_cl_score_and_stability_by_hand():
    criteria = {"A": [0.4, 0.6], "MS": 1.0}
    same(m.cl_score(criteria), [0.7, 0.8])
    same(m.cl_score(criteria, {"A": 0.75, "MS": 0.25}), [0.55, 0.7])
    assert m.cl_stability(criteria) == pytest.approx(1 - 0.5 * math.sqrt(0.02))
    assert math.isnan(m.cl_stability({"A": [0.4]}))
    for wrong in ({"A": 1.0}, {"A": 0.5, "MS": 0.6}):
        with pytest.raises(BadOption, match="add up to 1"):
            m.cl_score(criteria, wrong)


# ---- the trace


def loop_minimum(trace, task, T):
    return mean([min(trace[e][j] for e in range(len(task)) if task[e] > j) for j in range(T - 1)])


def loop_change(trace, task, T, window, sign):
    largest = []
    for j in range(T):
        when = [e for e in range(len(task)) if task[e] >= j]
        changes = [
            sign * (trace[when[n]][j] - trace[when[k]][j])
            for n in range(len(when))
            for k in range(len(when))
            if k < n and n - k < window
        ]
        largest.append(max([0.0, *changes]))
    return mean(largest)


def loop_gap(trace, task, T):
    gaps = []
    for k in range(1, T):
        before = mean([trace[max(e for e in range(len(task)) if task[e] < k)][j] for j in range(k)])
        gaps.append(before - min(mean([trace[e][j] for j in range(k)]) for e in range(len(task)) if task[e] == k))
    return mean(gaps)


@settings(max_examples=60, deadline=None)
@given(given_trace=traces(), window=st.integers(2, 12))
def test_trace_metrics_equal_loops(given_trace, window):
    trace, task = given_trace
    T, seeds, tasks = trace.shape[2], trace.tolist(), task.tolist()
    same(m.minimum_accuracy(trace, task), [loop_minimum(one, tasks, T) for one in seeds])
    worst = [one[-1][-1] / T + (0 if T == 1 else (1 - 1 / T) * loop_minimum(one, tasks, T)) for one in seeds]
    same(m.worst_case_accuracy(trace, task), worst)
    found = m.windowed_forgetting(trace, task, window=window)
    same(found, [loop_change(one, tasks, T, window, -1) for one in seeds])
    found = m.windowed_plasticity(trace, task, window=window)
    same(found, [loop_change(one, tasks, T, window, 1) for one in seeds])
    same(m.stability_gap(trace, task), [loop_gap(one, tasks, T) for one in seeds])


TRACE = np.array([[[0.5, np.nan], [0.9, np.nan], [0.2, 0.3], [0.4, 0.8], [0.7, 0.6]]])
TASK = np.array([0, 0, 1, 1, 1])


def test_trace_metrics_by_hand():
    same(m.minimum_accuracy(TRACE, TASK), [0.2])
    same(m.worst_case_accuracy(TRACE, TASK), [0.6 / 2 + 0.2 / 2])
    same(m.stability_gap(TRACE, TASK), [0.7])
    same(m.windowed_forgetting(TRACE, TASK, window=2), [(0.7 + 0.2) / 2])
    same(m.windowed_plasticity(TRACE, TASK, window=2), [(0.4 + 0.5) / 2])
    same(m.windowed_plasticity(TRACE, TASK, window=3), [(0.5 + 0.5) / 2])


def test_a_drop_outside_the_window_does_not_count():
    trace = np.array([[[0.9], [0.6], [0.3], [0.0]]])
    task = np.zeros(4, int)
    same([m.windowed_forgetting(trace, task, window=w)[0] for w in (2, 3, 4, 100)], [0.3, 0.6, 0.9, 0.9])
    same(m.windowed_plasticity(trace, task, window=4), [0.0])


def test_a_stopped_seed_is_nan_alone_in_a_trace():
    both = np.concatenate([TRACE, TRACE])
    both[1, 3:] = np.nan
    for function in (
        m.minimum_accuracy,
        m.worst_case_accuracy,
        m.windowed_forgetting,
        m.windowed_plasticity,
        m.stability_gap,
    ):
        found = function(both, TASK)
        same(found[:1], function(TRACE, TASK))
        assert np.isnan(found[1]), function.__name__


def test_a_trace_that_lacks_a_task_gives_nan():
    assert np.isnan(m.minimum_accuracy(TRACE[:, :2], TASK[:2])).all()
    assert np.isnan(m.stability_gap(TRACE[:, :2], TASK[:2])).all()


def test_a_switch_before_which_nothing_was_evaluated_has_no_gap():
    trace = np.array([[[0.5, 0.9, 0.1], [0.4, 0.8, 0.7]]])
    same(m.stability_gaps(trace, [1, 2]), [[np.nan, (0.5 + 0.9 - 0.4 - 0.8) / 2]])


def test_what_is_no_trace_is_refused():
    with pytest.raises(ValueError, match=r"\(R, E, T\)"):
        m.minimum_accuracy(TRACE, TASK[:3])
    with pytest.raises(ValueError, match="order of time"):
        m.minimum_accuracy(TRACE, TASK[::-1])
    with pytest.raises(BadOption, match="2 evaluations"):
        m.windowed_forgetting(TRACE, TASK, window=1)


# ---- over the seeds


def test_summary_by_hand():
    # t(0.975, 3) = 3.182446 from a printed table
    found = m.summarise([0.1, 0.2, 0.3, 0.4, np.nan])
    assert (found.n, found.failed) == (4, 1)
    assert found.mean == pytest.approx(0.25)
    assert found.sd == pytest.approx(0.12909944, abs=1e-8)
    assert found.se == pytest.approx(0.06454972, abs=1e-8)
    assert found.low == pytest.approx(0.25 - 3.182446 * 0.06454972, abs=1e-6)
    assert found.high == pytest.approx(0.25 + 3.182446 * 0.06454972, abs=1e-6)


def test_summary_of_one_seed_and_of_none():
    one = m.summarise([0.5])
    assert (one.mean, one.n, one.failed) == (0.5, 1, 0)
    assert all(math.isnan(value) for value in (one.sd, one.se, one.low, one.high))
    none = m.summarise([np.nan, np.nan])
    assert math.isnan(none.mean)
    assert (none.n, none.failed) == (0, 2)


def test_over_seeds_is_the_summary_of_each_place():
    values = np.random.default_rng(0).random((5, 2, 3))
    values[1, 0, 2] = values[:4, 1, 1] = values[:, 1, 0] = np.nan
    found = m.over_seeds(values)
    for place in np.ndindex(2, 3):
        one = m.summarise(values[:, *place])
        same([part[place] for part in found], [one.mean, one.sd, one.n])


# ---- by name


class Measured:
    def __init__(self, accuracy, trace=None, task=None, stored=None, **record):
        self.accuracy, self.trace, self.trace_task, self.record = accuracy, trace, task, record
        self.arrays = {} if stored is None else {"stored_samples": np.asarray(stored)}


def test_metrics_by_name_are_the_functions():
    result = Measured(A, TRACE, TASK)
    same(m.metric("forgetting")(result), m.forgetting(A))
    same(m.metric("forgetting-since-learnt")(result), m.forgetting(A, rows="since"))
    same(m.metric("forgetting-from-peak")(result), m.forgetting(A, last=True))
    same(m.metric("stability-gap")(result), m.stability_gap(TRACE, TASK))
    for window in (10, 100):
        long = Measured(A, *_long_trace())
        expected = m.windowed_forgetting(*_long_trace(), window=window)
        same(m.metric(f"windowed-forgetting-{window}")(long), expected)
    assert m.metric("forgetting").higher_is_better is False
    assert m.metric("average-accuracy").higher_is_better is True


def _long_trace():
    # falls by 0.01 at each evaluation: 0.09 in a window of 10 and 0.49 in the whole
    return 1 - 0.01 * np.arange(50.0).reshape(1, 50, 1), np.zeros(50, int)


def test_intransigence_takes_the_diagonal_of_joint_training():
    joint = A + 0.05
    same(m.metric("intransigence")(Measured(A), Measured(joint)), [0.05])


def test_sizes_come_from_the_record():
    two = np.concatenate([A, A])
    size = {"parameters": 7, "stored_samples_per_task": [10, 20, 30], "train_samples_per_task": [50, 30, 20]}
    same(m.metric("samples-storage-efficiency")(Measured(two, size=size)), [0.8, 0.8])
    same(m.metric("model-size-efficiency")(Measured(two, size=size)), [1, 1])
    grown = size | {"parameters": [100, 200, 400]}
    same(m.metric("model-size-efficiency")(Measured(two, size=grown)), [1.75 / 3] * 2)
    # each seed has stored its own; of one that was stopped nothing is known
    lost = np.concatenate([A, A, A])
    lost[1, 1:] = np.nan
    three = Measured(lost, size=grown, stored=[[10, 20, 30], [10, 0, 0], [0, 0, 30]])
    same(m.metric("samples-storage-efficiency")(three), [0.8, np.nan, 0.9])
    same(m.metric("model-size-efficiency")(three), [1.75 / 3, np.nan, 1.75 / 3])
    frozen = size | {"parameters": [0, 100, 300], "frozen_parameters": 100}
    same(m.metric("model-size-efficiency")(Measured(two, size=frozen)), [1.75 / 3] * 2)


@settings(max_examples=50)
@given(matrices(), st.data())
def test_accuracies_over_samples(A, data):
    R, T = A.shape[0], A.shape[2]
    n = data.draw(arrays(np.int64, (R, T), elements=st.integers(1, 50)))
    last, over_time = [], []
    for one, counts in zip(A.tolist(), n.tolist(), strict=True):
        rights = [[a * k for a, k in zip(row, counts, strict=True)] for row in one]
        so_far = [sum(rights[i][:i]) / sum(counts[:i]) for i in range(1, T + 1)]
        last.append(so_far[-1])
        over_time.append(mean(so_far))
    result = Measured(A)
    result.arrays = {"test_samples": n}
    same(m.metric("overall-accuracy")(result), last)
    same(m.metric("overall-incremental-accuracy")(result), over_time)
    result.arrays = {"test_samples": np.full((R, T), 7)}
    same(m.metric("overall-accuracy")(result), m.average_accuracy(A))
    same(m.metric("overall-incremental-accuracy")(result), m.average_incremental_accuracy(A))


def test_validation_accuracy_is_that_of_rows_set_aside():
    result = Measured(A)
    result.arrays = {"validation_accuracy": A / 2}
    same(m.metric("validation-accuracy")(result), m.average_accuracy(A) / 2)


@pytest.mark.parametrize("which", m.MATRICES)
def test_a_metric_may_be_of_another_matrix(which):
    result, other = Measured(A), A**2
    result.arrays = {f"{which.replace('-', '_')}_accuracy": other}
    for name, one in m.METRICS.items():
        if one.needs == "matrix":
            found = m.metric(f"{which}:{name}")
            same(found(result), m.METRICS[name](Measured(other)))
            assert found.title == f"{which} {one.title}" and found.higher_is_better == one.higher_is_better
        elif one.needs != "joint":
            with pytest.raises(BadOption, match=f"'{which}:{name}': {name} is not of an accuracy matrix alone"):
                m.metric(f"{which}:{name}")


def test_a_metric_of_ones_own_is_a_function_of_the_matrix():
    def worst_task(A):
        """The worst task after the last.

        And more.
        """
        return A[:, -1].min(axis=1)

    found = m.own("mine:worst_task", worst_task)
    assert (found.title, found.meaning, found.unit) == ("worst task", "The worst task after the last", "%")
    same(found(Measured(A)), [0.5])
    told = m.own("mine:other", m.Metric("x", "of a trace", "me", m.stability_gap, False, "", "trace"))
    assert told.name == "mine:other" and not told.fits(Measured(A)) and told.fits(Measured(A, TRACE, TASK))
    with pytest.raises(
        BadOption, match=r"'mine:all' gives an array of shape \(1, 4, 3\), not a value for each of 1 seed"
    ):
        m.own("mine:all", lambda A: A)(Measured(A))
    with pytest.raises(BadOption, match="'mine:x' is 3; it takes a function"):
        m.own("mine:x", 3)


def test_what_stands_before_a_metric_is_a_matrix():
    with pytest.raises(BadOption, match="before the colon it takes task-aware, training, validation"):
        m.metric("tests:forgetting")
    with pytest.raises(UnknownName, match="did you mean 'forgetting'"):
        m.metric("validation:forgeting")


@pytest.mark.parametrize("name", ["stability-gap", "intransigence", "model-size-efficiency", "overall-accuracy",
                                  "validation-accuracy", "task-aware:forgetting", "validation:forgetting",
                                  "training:learning-accuracy"])  # fmt: skip
def test_a_metric_says_what_it_lacks(name):
    assert not m.metric(name).fits(Measured(A))
    with pytest.raises(BadOption, match=f"the metric {name} needs"):
        m.metric(name)(Measured(A))


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'forgetting'"):
        m.metric("forgeting")


def test_every_metric_is_in_the_documentation():
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in m.METRICS if f"`{name}`" not in text] == []


def test_the_wing_loads_neither_torch_nor_scipy():
    code = (
        "import sys, continual.results.tables;"
        "print([n for n in ('torch', 'scipy', 'tabulate', 'continual.streams', 'continual.learning')"
        " if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
