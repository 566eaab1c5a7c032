"""Tables: each format is read back, and says what its numbers mean."""

import csv
import io
import json
import re

import numpy as np
import pytest

from continual.errors import BadOption, UnknownName
from continual.results import content, differences, metrics, store, tables
from continual.results.store import Result

# two seeds, two tasks; rows: untrained, after task 1, 2
A = np.array([[[0.1, 0.1], [0.9, 0.3], [0.5, 0.8]], [[0.1, 0.1], [0.8, 0.2], [0.6, 0.9]]])


def result(name="ewc", accuracy=A, trace=False, strategy=None, benchmark="split-digits", **more):
    record = {
        "title": name,
        "strategy": [{"name": strategy or name}],
        "protocol": {
            "benchmark": {"name": benchmark, "scenario": "class", "tasks": 2, "validation": 0.0, "pad": 0},
            "model": {"name": "mlp", "layers": [100, 100]},
            "training": {"epochs": 20, "iterations": None, "batch": 32, "optimizer": {"name": "adam", "lr": 0.001}},
            "seeds": list(range(len(accuracy))),
        },
        **more,
    }
    arrays = {"accuracy": accuracy}
    if trace:
        arrays |= {
            "trace": accuracy[:, 1:].repeat(2, axis=1),
            "trace_task": np.arange(accuracy.shape[2]).repeat(2),
            "trace_step": np.arange(2 * accuracy.shape[2]),
        }
    return Result(record, arrays)


def stopped():
    accuracy = A.copy()
    accuracy[1, 2] = np.nan
    return result("si", accuracy, stopped=[{"seed": 1, "task": 2, "step": 17, "why": "loss not finite"}])


def rows(text):
    """The lines of a terminal's table as cells, the two lines of its heading left out."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    return [re.split(r"\s{2,}", line.strip()) for line in lines[rule + 1 : lines.index("", rule)]]


def test_the_terminal_shows_percent_and_error():
    # accuracies 0.65 and 0.75: mean 70 %, sd 7.07, se 5, t(0.975, 1) = 12.7062
    for interval, error in (("sd", "7.07"), ("se", "5.00"), ("ci95", "63.53")):
        text = tables.table([result()], ["average-accuracy"], interval=interval)
        assert rows(text) == [["ewc", f"70.00 ± {error}"]]
        assert f"{content.INTERVALS[interval]} over 2 seeds, in %" in " ".join(text.split())


def test_the_heading_states_the_protocol():
    heading = " ".join(tables.table([result()]).partition("\n\n")[0].split())
    expected = (
        "split-digits (scenario class, tasks 2); mlp (layers 100-100); epochs 20, batch 32, optimizer adam (lr 0.001)"
    )
    assert heading == f"{expected}; 2 seeds"
    assert tables.table([result(heading="my own")]).splitlines()[0] == "my own"


def other(*changes, **more):
    """A result of another protocol: what changes, by paths, from what it is otherwise."""
    made = result(**more)
    for path, value in changes:
        *folders, name = path.split(".")
        place = made.record["protocol"]
        for folder in folders:
            place = place[folder]
        place[name] = value
    return made


SHA = [f"{number:08x}" + 56 * "0" for number in range(1, 4)]


@pytest.mark.parametrize(
    ("path", "values", "words"),
    [
        ("benchmark.sha256", SHA, ["00000001", "00000002", "00000003"]),
        ("benchmark.subset_sha256", SHA[:2], ["00000001", "00000002"]),
        ("model.weights_sha256", SHA[:2], ["00000001", "00000002"]),
        ("training.evaluate_every", [0, 5], ["0", "5"]),
        ("training.optimizer.decay", [0.1, None], ["0.1", "none"]),
        ("seeds", [[0, 1], [5, 6]], ["0-1", "5-6"]),
    ],
)
@pytest.mark.parametrize("style", ["table", "markdown", "latex"])
def test_tables_of_one_heading_say_what_tells_them_apart(path, values, words, style):
    def text(group):
        return " ".join(tables.table(group, ["average-accuracy"], style).replace("\\", "").split())

    group = [other((path, value)) for value in values]
    assert [text(group).count(f"; {path} {word}") for word in words] == [1] * len(words)
    assert f"; {path} " not in text(group[:1])


def test_one_table_of_several_experiments_says_in_its_lines_what_they_differ_in():
    group = [
        result("ewc"),
        other(("training.epochs", 5), ("training.optimizer", {"name": "sgd", "lr": 0.1, "momentum": 0.9}), name="si"),
        other(("model", {"name": "cnn", "units": 5}), name="l2"),
    ]
    text = tables.table(group, ["average-accuracy"], together=True)
    assert [line[0] for line in rows(text)] == [
        "ewc (mlp (layers 100-100), optimizer adam (lr 0.001), epochs 20)",
        "si (mlp (layers 100-100), optimizer sgd (lr 0.1, momentum 0.9), epochs 5)",
        "l2 (cnn (units 5), optimizer adam (lr 0.001), epochs 20)",
    ]
    heading = " ".join(text.partition("\n\n")[0].split())
    assert heading == "split-digits (scenario class, tasks 2); batch 32; 2 seeds; other options as said"
    assert [line[1:] for line in rows(text)] == [["70.00 ± 7.07"]] * 3
    assert tables.table(group[:1], together=True) == tables.table(group[:1])
    for style in ("markdown", "latex", "csv"):
        assert tables.table(group, ["average-accuracy"], style, together=True).count("l2 (cnn (") == 1
    lines = list(csv.DictReader(io.StringIO(tables.table(group, format="csv", together=True))))
    assert {line["experiment"] for line in lines} == {store.experiment(one.record) for one in group}
    with pytest.raises(BadOption, match="together: json has each experiment"):
        tables.table(group, format="json", together=True)


def test_one_table_of_experiments_with_other_seeds_claims_no_number_of_them():
    group = [result(), other(("seeds", [3, 4])), other(("training.schedule", {"name": "cosine", "warmup": 0.1}))]
    text = tables.table(group, ["average-accuracy"], together=True)
    assert [line[0] for line in rows(text)] == [
        "ewc (seeds 0-1)", "ewc (seeds 3-4)", "ewc (schedule cosine (warmup 0.1), seeds 0-1)",
    ]  # fmt: skip
    heading = " ".join(text.partition("\n\n")[0].split())
    assert heading.endswith("optimizer adam (lr 0.001); other options as said") and "schedule" not in heading


def test_what_is_measured_in_steps_says_nothing_where_tasks_were_put_off():
    accuracy = A.copy()
    accuracy[:, 1] = np.nan
    one = Result(result().record, result(accuracy=accuracy, trace=True).arrays | {"trace": np.full((2, 4, 2), 0.5)})
    for name in ("minimum-accuracy", "worst-case-accuracy", "stability-gap", "windowed-forgetting-10"):
        assert np.isnan(metrics.metric(name)(one)).all()
    lost = stopped()
    arrays = lost.arrays | {name: result(trace=True).arrays[name] for name in ("trace", "trace_task", "trace_step")}
    assert np.isfinite(metrics.metric("minimum-accuracy")(Result(lost.record, arrays))).all(), "no task was put off"


@pytest.mark.parametrize("format", ["table", "markdown", "latex", "json"])
def test_a_published_table_may_be_of_another_matrix(format):
    assert "task-aware" in tables.reproduction("somebody", "task-aware:average-accuracy", [], format)


def test_options_that_some_do_not_have_are_said_where_nothing_else_tells_lines_apart():
    group = [result(), other(("training.shuffle", "yes"))]
    assert [line[0] for line in rows(tables.table(group, ["average-accuracy"], together=True))] == [
        "ewc", "ewc (shuffle yes)",
    ]  # fmt: skip
    group.append(other(("training.epochs", 3)))
    assert [line[0] for line in rows(tables.table(group, ["average-accuracy"], together=True))] == [
        "ewc (epochs 20)", "ewc (epochs 20, shuffle yes)", "ewc (epochs 3)",
    ]  # fmt: skip


def test_a_metric_may_be_given_itself():
    one = metrics.Metric("last", "the last task", "", lambda A: A[:, -1, -1])
    assert rows(tables.table([result()], [one, "forgetting"]))[0][1].startswith("85.00")


def test_joint_training_is_the_reference_of_its_own_experiment_alone():
    better = other(("training.epochs", 5), name="joint", accuracy=np.clip(A + 0.1, 0, 1))
    mine = other(("training.epochs", 5), name="si")
    found = tables.table([better, mine, result()], ["intransigence"], together=True)
    wanted = 100 * metrics.intransigence(A, np.diagonal(better.accuracy[:, 1:], axis1=1, axis2=2)).mean()
    assert [line[1].partition(" ")[0] for line in rows(found)] == ["0.00", f"{wanted:.2f}", "–"]


def test_every_accuracy_is_a_line_for_programs():
    one = Result(result().record, {"accuracy": A, "training_accuracy": A / 2})
    lines = one.lines()
    assert len(lines) == A.size and lines[0] == {
        "strategy": "ewc", "seed": 0, "learnt": 0, "task": 1, "accuracy": 0.1, "training_accuracy": 0.05,
    }  # fmt: skip
    assert all(line["accuracy"] == A[line["seed"], line["learnt"], line["task"] - 1] for line in lines)
    written = list(csv.DictReader(io.StringIO(tables.lines([one, stopped()]))))
    assert len(written) == 2 * A.size and set(written[0]) == {"experiment", *lines[0]}
    assert written[-1]["accuracy"] == "" == written[-1]["training_accuracy"] and float(written[0]["accuracy"]) == 0.1


def test_a_task_that_was_put_off_is_a_line_of_dashes_and_no_stopped_seed():
    accuracy = A.copy()
    accuracy[:, 1] = np.nan
    text = tables.matrix(result(accuracy=accuracy))
    assert rows(text)[1] == ["task 1", "–", "–"] and "not stopped" not in text


def test_what_the_task_aware_accuracy_is_measured_of_is_shown_unasked():
    one = Result(result().record, {"accuracy": A, "task_aware_accuracy": A})
    assert "task-aware" in tables.table([one]) and "task-aware" not in tables.table([one, result()])
    assert "task-aware" in tables.table([one], ["all"]) and "task-aware" not in tables.table([result()], ["all"])
    traced = Result(result().record, result(trace=True).arrays | {"task_aware_accuracy": A})
    assert "task-aware" in tables.table([traced]) and "worst" in tables.table([traced])


def test_what_differs_within_a_sequence_is_counted():
    group = [other(("benchmark.sequence", [{"sha256": SHA[0]}, {"sha256": one}])) for one in SHA[1:]]
    assert content.differing([one.record for one in group]) == {"benchmark.sequence.2.sha256": ["00000002", "00000003"]}


def test_headings_that_differ_stay_and_what_a_record_lacks_is_told():
    group = [result(), other(("benchmark.sha256", SHA[0])), result(benchmark="another")]
    usual = content.heading(group[0].record)
    assert content.headings([[one] for one in group]) == [
        f"{usual}; benchmark.sha256 not recorded", f"{usual}; benchmark.sha256 00000001",
        usual.replace("split-digits", "another"),
    ]  # fmt: skip


def test_headings_are_never_the_same_for_two_experiments():
    """Words do not tell 1 from 1.0, which are two experiments."""
    group = [other(("training.epochs", value)) for value in (1, 1.0)]
    usual, names = content.heading(group[0].record), [store.experiment(one.record) for one in group]
    assert content.headings([[one] for one in group]) == [f"{usual}; {name}" for name in names] and len(set(names)) == 2


def test_what_was_made_with_other_code_is_told():
    group = [result("a", code={"mine": SHA[0], "same": SHA[2]}), result("b", code={"mine": SHA[1], "same": SHA[2]}),
             result("c", code={"mine": SHA[1]}), result("d", code={"mine": None}), result("e")]  # fmt: skip
    said = "mine was not the same file for all (SHA-256): 00000001 for a; 00000002 for b, c; not known for d."
    for style in ("table", "markdown", "latex"):
        assert said in " ".join(tables.table(group, format=style).split())
        assert "the same file" not in tables.table(group[1:3], format=style)


def test_default_metrics_fit_what_is_there():
    def chosen(group):
        return list(json.loads(tables.table(group, format="json"))[0]["results"][0]["metrics"])

    usual = ["average-accuracy", "learning-accuracy", "forgetting", "backward-transfer"]
    worst = [*usual[:3], "minimum-accuracy", "worst-case-accuracy", "stability-gap"]
    assert chosen([result()]) == usual
    assert chosen([result(), result("joint")]) == [*usual, "intransigence"]
    assert chosen([result(trace=True)]) == worst
    assert chosen([result(trace=True), result("joint", trace=True)]) == worst
    assert chosen([result(trace=True), result("b")]) == usual
    chain = result("both", strategy="joint")
    chain.record["strategy"].append({"name": "l2"})
    assert chosen([chain]) == usual


@pytest.mark.parametrize("trace", [False, True])
def test_the_default_table_fits_into_a_hundred_columns(trace):
    group = [result("replay:capacity=50", trace=trace), result("joint", trace=trace)]
    assert max(map(len, tables.table(group).splitlines())) <= 100


def test_all_metrics_that_fit():
    (found,) = json.loads(tables.table([result(trace=True)], ["all"], "json"))
    names = set(found["results"][0]["metrics"])
    assert {"forgetting", "stability-gap", "remembering"} <= names
    assert not names & {"intransigence", "model-size-efficiency"}
    text = tables.table([result(trace=True), result("b", trace=True)], ["all"])
    # too many for columns: a metric a line, a strategy a column
    assert re.search(r"^ +ewc +b$", text, re.MULTILINE)
    assert ["average accuracy", "70.0 ± 7.1", "70.0 ± 7.1"] in rows(text)
    assert max(map(len, text.splitlines())) <= 100


def test_accuracy_by_task():
    text = tables.table([result()], ["tasks"])
    assert rows(text) == [["ewc", "55.00 ± 7.07", "85.00 ± 7.07"]]
    assert "task 1" in text
    assert "accuracy after the last task" in text


def test_intransigence_is_against_joint_training():
    group = [result(), result("joint", A + 0.04)]
    (found,) = json.loads(tables.table(group, ["intransigence"], "json"))
    assert found["results"][0]["metrics"]["intransigence"]["mean"] == pytest.approx(0.04)
    with pytest.raises(BadOption, match="joint"):
        tables.table([result()], ["intransigence"])


def test_a_stopped_seed_is_told_of_and_counted():
    text = tables.table([result(), stopped()], ["average-accuracy"])
    assert "seed 1 of si was stopped: loss not finite at task 2, step 17" in text
    assert rows(text) == [["ewc", "70.00 ± 7.07", "2"], ["si", "65.00", "1"]]
    assert "over 1–2 seeds" in text
    assert "over 2 seeds" in tables.table([result()], ["average-accuracy"])


def test_what_has_no_value_is_a_dash():
    one_task = result(accuracy=np.array([[[0.1], [0.9]]]))
    text = tables.table([one_task], ["average-accuracy", "forgetting"])
    assert rows(text) == [["ewc", "90.00", "–"]]
    assert "mean over 1 seed, in %" in text


def test_no_minus_before_a_zero():
    flat = np.array([[[0.1, 0.1], [0.9, 0.3], [0.9 - 1e-9, 0.8]]])
    assert rows(tables.table([result(accuracy=flat)], ["backward-transfer"])) == [["ewc", "0.00"]]


def test_experiments_have_tables_of_their_own():
    group = [result("a"), result("b", benchmark="other"), result("c")]
    text = tables.table(group, ["average-accuracy"])
    assert text.count("in %") == 2
    assert text.index("other") > text.index("c  ")
    found = json.loads(tables.table(group, format="json"))
    assert [[one["name"] for one in each["results"]] for each in found] == [["a", "c"], ["b"]]


@pytest.mark.parametrize("traced", [False, True])
def test_of_a_single_task_there_is_its_accuracy(traced):
    """It was learnt last, and nothing can have been forgotten since."""
    one = result("a", np.full((3, 2, 1), 0.5), trace=traced)
    found = list(csv.DictReader(io.StringIO(tables.table([one], format="csv"))))
    assert [line["metric"] for line in found] == ["average-accuracy"]


def test_csv_is_read_back_in_full_precision():
    third = np.full((3, 2, 1), 1 / 3)
    third[1] = 0.1
    text = tables.table([result('a,"b"\nc', third)], ["average-accuracy", "forgetting"], "csv")
    found = list(csv.DictReader(io.StringIO(text)))
    first = found[0]
    assert first["strategy"] == 'a,"b"\nc'
    assert first["metric"] == "average-accuracy"
    expected = metrics.summarise(third[:, -1, 0])
    for name in ("mean", "sd", "se", "low", "high"):
        assert float(first[name]) == getattr(expected, name)
    assert (first["n"], first["failed"]) == ("3", "0")
    forgetting = next(line for line in found if line["metric"] == "forgetting")
    assert (forgetting["mean"], forgetting["n"], forgetting["failed"]) == ("", "0", "3")


def test_json_is_read_back_with_null_for_nan():
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = tables.table([stopped()], ["average-accuracy"], "json")
    (found,) = json.loads(text, parse_constant=refuse)
    assert found["benchmark"]["name"] == "split-digits"
    assert found["seeds"] == [0, 1]
    (one,) = found["results"]
    assert one["stopped"][0]["step"] == 17
    expected = {"mean": 0.65, "sd": None, "se": None, "low": None, "high": None, "n": 1, "failed": 1}
    assert one["metrics"]["average-accuracy"] == pytest.approx(expected)


def test_latex_is_escaped_and_whole():
    name = r"a_b%c&d#e$f{g}h~i^j\k"
    text = tables.table([result(name, A - 0.1)], ["backward-transfer", "average-accuracy"], "latex")
    (line,) = [line for line in text.splitlines() if line.startswith("a")]
    escaped = r"a\_b\%c\&d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
    assert line == escaped + r" & $-$30.00 $\pm$ 14.14 & 60.00 $\pm$ 7.07 \\"
    for once in (r"\begin{table}", r"\begin{tabular}{lrr}", r"\toprule", r"\midrule", r"\bottomrule", r"\end{table}"):
        assert text.count(once) == 1
    assert r"in \%" in text
    assert text.isascii()


def test_markdown_is_escaped_and_has_cells_of_equal_number():
    text = tables.table([result("a|b*c_d"), result("e")], format="markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert r"| a\|b\*c\_d " in lines[2]
    assert "**70.00** ± 7.07" in lines[2]  # the two are the same, and so both are best
    assert text.startswith("**split-digits")
    assert "Chaudhry et al. 2018" in text


def test_the_matrix_of_a_result():
    text = tables.matrix(result())
    assert rows(text) == [["untrained", "10.00", "10.00"], ["task 1", "85.00", "25.00"], ["task 2", "55.00", "85.00"]]
    assert "mean over 2 seeds" in text
    # a stopped seed still counts for the rows that it reached
    assert rows(tables.matrix(stopped()))[1:] == [["task 1", "85.00", "25.00"], ["task 2", "50.00", "80.00"]]
    assert "was stopped" in tables.matrix(stopped())
    nobody = np.where(np.arange(3)[:, None] < 2, A, np.nan)
    assert rows(tables.matrix(result(accuracy=nobody)))[2] == ["task 2", "–", "–"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "latx"}, "did you mean 'latex'"),
        ({"interval": "std"}, "no interval is named 'std'"),
        ({"metrics": ["forgeting"]}, "did you mean 'forgetting'"),
    ],
)
def test_unknown_words_name_the_nearest(arguments, message):
    with pytest.raises(UnknownName, match=message):
        tables.table([result()], **arguments)


def test_a_metric_without_percent_is_not_scaled():
    size = {"parameters": [100, 200], "stored_samples_per_task": [0, 0], "train_samples_per_task": [5, 5]}
    text = tables.table([result(size=size)], ["model-size-efficiency"])
    assert rows(text) == [["ewc", "0.750 ± 0.000"]]
    assert "in %" not in text


def best(results, name="average-accuracy"):
    """The names of the lines whose mean is in bold."""
    text = tables.table(results, [name], "markdown")
    return {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|") and "**" in line}


def finals(name, values, **more):
    """A result whose average accuracy in each seed is one of the values."""
    return result(name, np.repeat(np.asarray(values, float), 6).reshape(-1, 3, 2), **more)


def test_bold_is_by_the_interval_of_the_paired_difference_and_not_by_the_mean():
    base = np.array([0.3, 0.5, 0.7, 0.9])
    top = finals("top", base)
    # a little less in every seed: overlapping spreads, and told apart all the same
    assert best([top, finals("below", base - [0.010, 0.011, 0.009, 0.010])]) == {"top"}
    # as much less on average, but more in one seed: not told apart
    assert best([top, finals("near", base - [0.06, -0.04, 0.03, -0.01])]) == {"top", "near"}
    assert best([finals("one", [0.9]), finals("two", [0.1])]) == set()
    assert "Nothing is in bold" in tables.table([finals("one", [0.9]), finals("two", [0.1])], format="latex")


def test_what_is_better_in_the_seeds_that_both_have_is_bold_too():
    some = finals("some", [0.90, 0.91, *[np.nan] * 4])
    every = finals("every", [0.95, 0.96, 0.30, 0.31, 0.32, 0.30])
    assert best([some, every]) == {"some", "every"}


def test_what_is_lower_is_better_where_it_is_and_bounds_do_not_compete():
    A2 = np.repeat(A, 2, axis=0) + np.array([0, 0.001, 0.002, 0.003])[:, None, None]
    worse = A2.copy()
    worse[:, -1, 0] -= np.array([0.2, 0.21, 0.2, 0.21])
    assert best([result("a", A2), result("b", worse)], "forgetting") == {"a"}
    assert best([result("joint", A2 + 0.01), result("a", A2), result("b", worse)]) == {"a"}
    theirs = result("avalanche:Cumulative", A2 + 0.01)  # another library's bound is one too
    assert best([theirs, result("a", A2), result("b", worse)]) == {"a"}
    text = tables.table([result("joint", A2), result("a", A2), result("b", worse)], format="latex")
    assert "so left out of this: joint." in text and r"\textbf{" in text


def test_footnotes_name_the_convention_of_each_column_once():
    text = tables.table([result(), result("b")], ["forgetting", "average-accuracy"], "latex")
    head = next(line for line in text.splitlines() if line.startswith("strategy"))
    assert head == r"strategy & forgetting$^{a}$ & average accuracy$^{b}$ \\"
    assert text.count(r"$^{a}$ forgetting: best after tasks 1 to T-1 minus final") == 1
    assert "lower is better (Chaudhry et al. 2018)" in text and text.count("{") == text.count("}")
    tasks = tables.table([result(), result("b")], ["tasks"], "markdown")
    assert tasks.count("<sup>a</sup> accuracy after the last task.") == 1 and "<sup>b</sup>" not in tasks


def test_what_is_no_percentage_is_named_beside_percentages():
    sizes = {"size": {"parameters": [5, 5], "stored_samples_per_task": 0, "train_samples_per_task": 9}}
    assert "seeds, in %." in " ".join(tables.table([result()], ["average-accuracy"]).split())
    names = ["average-accuracy", "model-size-efficiency"]
    made = [result(**sizes), result("si", A + 0.1, **sizes)]
    assert "in % (but for model size efficiency)" in " ".join(tables.table(made, names).split())
    assert "in %" not in tables.table(made, names[1:])
    text = " ".join(differences.table(differences.differences(made, names)).split())
    assert "In % (but for model size efficiency); differences in points" in text


def test_data_that_changed_between_two_runs_is_told_of():
    """Of a benchmark of one's own that does not say so itself."""
    group = [result(data={"sha256": "a" * 64}), result("si", A + 0.1, data={"sha256": "b" * 64})]
    text = " ".join(tables.table(group, ["average-accuracy"]).split())
    assert "the data of split-digits" in text and "were not the same for all (SHA-256): aaaaaaaa for ewc; bbb" in text
    assert "not the same" in differences.table(differences.differences(group, ["average-accuracy"]))
    assert "not the same" not in tables.table(group[:1] * 2, ["average-accuracy"])
    elsewhere = result("si", benchmark="split-mnist", data={"sha256": "b" * 64})
    assert "not the same" not in tables.table([group[0], elsewhere], ["average-accuracy"])


def test_an_experiment_without_joint_training_has_no_intransigence_beside_one_that_has():
    group = [result(), result("joint", A + 0.04), result("si", benchmark="split-mnist")]
    first, second = json.loads(tables.table(group, ["average-accuracy", "intransigence"], "json"))
    assert first["results"][0]["metrics"]["intransigence"]["mean"] == pytest.approx(0.04)
    assert second["results"][0]["metrics"]["intransigence"]["mean"] is None
    assert differences.differences(group, ["intransigence"])


def test_differences_can_stand_in_a_paper():
    group = [result("l2_a"), result("si", A - 0.1 + np.arange(2)[:, None, None] / 50)]
    text = differences.table(differences.differences(group, ["average-accuracy"]), "latex")
    row = next(line for line in text.splitlines() if line.startswith("si & "))
    assert row.startswith(r"si & l2\_a & 61.00 & 70.00 & $-$9.00 & $-$") and (" to +" in row or " to $-$" in row)
    assert row.endswith(r"paired, n = 2 \\") and r"\begin{tabular}{llrrrrrrr}" in text and "minipage" not in text
    assert (
        r"\caption{average accuracy" in text and "In \\%" in text and text.count(r"\begin") == text.count(r"\end") == 2
    )
