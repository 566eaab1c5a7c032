"""Cards: complete for everything registered, and what they claim is so."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from continual import plugins
from continual.cards import card, papers
from continual.cli import main
from continual.conformance import TRAINING, learners_of, small_stream
from continual.errors import BadChain
from continual.learning.models import MLP
from continual.learning.train import Watch, train
from continual.options import Configured, options_of
from continual.results.metrics import METRICS
from continual.streams.sets import load
from continual.streams.stream import Stream, split

STRATEGIES = tuple(plugins.registered("strategies"))
BENCHMARKS = tuple(plugins.registered("benchmarks"))
SMALL = {"capacity": 6, "samples": 4}  # less than there is to store


def stream(tasks: int, scenario: str = "task", **options: Any) -> Stream:
    return split(small_stream(0).data, tasks=tasks, scenario=scenario, **options)


def strategy_of(name: str) -> Any:
    cls = plugins.find("strategies", name)
    # two exemplars of each of six classes are the least that BiC takes
    least = SMALL | ({"capacity": 12} if name == "bic" else {})
    return cls(**{option: value for option, value in least.items() if option in options_of(cls)})


# ---- complete


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_a_whole_card(name: str) -> None:
    one = card("strategies", name)
    assert one["name"] == name and 1 < len(one["title"]) < 40 and one["title"] in one["meaning"]
    assert one["papers"] or name in ("finetune", "joint", "cumulative", "from-scratch"), "it has been published"
    for paper in one["papers"]:
        assert paper["authors"] and paper["title"] and paper["venue"] and paper["link"].startswith("https://")
        assert str(paper["year"]) in paper["cite"] and paper["authors"].split(",")[0] in paper["cite"]
    for known in one["options"]:
        assert known["meaning"] and known["type"]
    assert one["hooks"] or name == "finetune"
    assert bool(one["keeps"]) == ("init" in one["hooks"]), "what init lays down is told"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_whole_card(name: str) -> None:
    one = card("benchmarks", name)
    assert one["tasks"] >= 1 and one["classes"] >= 10 and one["stream"] and "told" in one["labels"]
    assert one["scenario"] in one["scenarios"]
    for data in one["data"]:
        assert data["title"] and data["source"].startswith("http") and data["licence"] and len(data["shape"]) == 3
        assert data["train"] > data["test"] > 0
    for known in one["options"]:
        assert known["meaning"] and known["type"]


def test_what_a_strategy_keeps_is_said_of_it_alone() -> None:
    """A base's words count where its ``init`` is called: GSS has its own memory in place of that of online replay."""
    for name in ("gss", "gdumb", "er-ace", "icarl"):
        memory = learners_of(strategy_of(name), [0], [stream(3, "class")]).memory
        said = card("strategies", name)["keeps"]
        assert all(len(re.findall(rf"\b{one}\b", said)) >= 1 for one in memory)
        assert ("seen" in said) == ("seen" in memory) and said.count("untrained") <= 1


def test_two_papers_of_the_same_authors_and_year_are_told_apart() -> None:
    links = {name: card("strategies", name)["papers"][-1]["link"] for name in ("mir", "gss", "a-gem", "replay")}
    assert len(set(links.values())) == 4
    assert links["gss"].endswith("1903.08671") and links["replay"].endswith("1902.10486")


def test_a_paper_that_nobody_has_written_down_is_told_as_it_is_cited() -> None:
    class Mine:
        """Mine (Nobody and Someone 2031, "Some long title"): something. Choices: 1. as Kirkpatrick et al. 2017."""

    none = {"title": None, "venue": None, "link": None}
    assert papers(Mine) == [{"cite": "Nobody & Someone 2031", "authors": "Nobody & Someone", "year": 2031, **none}]


# ---- true


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_works_in_the_scenarios_that_it_claims_and_in_no_other(name: str) -> None:
    one, strategy = card("strategies", name), strategy_of(name)
    works = []
    for scenario in ("task", "domain", "class"):
        given = stream(3, scenario)
        try:
            strategy.suits(given, MLP(layers=(10,)).build(given.shape, given.units))
            works.append(scenario)
        except BadChain as refused:
            assert "scenario" in str(refused)
    assert works == one["scenarios"] and one["needs_task_at_test"] == (works == ["task"])


def held(strategy: Any, given: Stream) -> tuple[int, int]:
    """How many numbers a learner holds when it has learnt a stream, and how many samples it has stored."""
    learners = learners_of(strategy, [0], [given])
    arrays, stopped = train(learners, TRAINING, Watch())
    assert not stopped
    return learners.net.size + sum(v.numel() for v in learners.memory.values()), int(arrays["stored_samples"][-1])


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_it_says_of_its_memory_is_what_happens(name: str) -> None:
    one, strategy = card("strategies", name), strategy_of(name)
    size, stored = held(strategy, stream(3))
    assert one["stores_samples"] == (stored > 0)
    grows = {"tasks": held(strategy, stream(6))[0] != size, "data": held(strategy, stream(3, limit=6))[0] != size}
    if name in ("rehearsal", "gem"):  # a line of slots for each task, of which the capacity fills some
        grows["tasks"] = stored > 6
    assert [what for what, so in grows.items() if so] == [one["memory_grows_with"]] * (
        one["memory_grows_with"] != "nothing"
    )


def test_the_digits_are_as_their_card_says(tmp_path: Path) -> None:
    (told,) = card("benchmarks", "split-digits")["data"]
    data = load("digits", tmp_path)
    assert [list(data.x.shape[1:]), len(data.classes), len(data.x), len(data.x_test)] == [
        told[name] for name in ("shape", "classes", "train", "test")
    ]


def test_mnist_is_as_its_card_says(data_root: Path) -> None:
    (told,) = card("benchmarks", "split-mnist")["data"]
    data = load("mnist", data_root)
    assert [list(data.x.shape[1:]), len(data.classes), len(data.x), len(data.x_test)] == [
        told[name] for name in ("shape", "classes", "train", "test")
    ]


# ---- shown


def said(*words: str) -> Any:
    return CliRunner().invoke(main, ["list", *words])


def test_the_list_for_machines_has_the_cards() -> None:
    listed = json.loads(said("--json").stdout)
    assert [one["name"] for one in listed["strategies"]] == list(STRATEGIES)
    (ewc,) = (one for one in listed["strategies"] if one["name"] == "ewc")
    assert ewc == json.loads(json.dumps(card("strategies", "ewc")))
    (strength,) = (known for known in ewc["options"] if known["name"] == "strength")
    assert strength["range"] == {">=": 0} and strength["default"] == 100.0
    (label,) = (known for known in ewc["options"] if known["name"] == "label")
    assert label["choices"] == ["expected", "sampled", "true", "argmax"]


@pytest.mark.parametrize("words", [("ewc",), ("strategies", "ewc")])
def test_one_card_is_shown_readably(words: tuple[str, ...]) -> None:
    text = said(*words).stdout
    assert text.startswith("ewc (strategy): Elastic weight consolidation")
    assert "https://arxiv.org/abs/1612.00796" in text and "    decay: float >= 0 and <= 1 = 1   factor" in text
    assert "  stores samples: no\n" in text and "  scenarios: task, domain, class\n" in text
    assert json.loads(said(*words, "--json").stdout)["name"] == "ewc"


def test_the_card_of_a_benchmark_has_its_data() -> None:
    text = said("cifar10-imagenet").stdout
    assert "tasks: ints joined by '-' >= 1 = 1-1   " in text and "skip: bool = false   " in text
    assert "tasks: ints joined by '-' >= 1 = 1-1   " in said("benchmarks").stdout
    assert "data: cifar10 (title CIFAR-10; " in text and "data: imagenet (" in text and "\n  tasks: 2\n" in text
    assert "validation: float >= 0 and < 1 = 0   " in text


@pytest.mark.parametrize("words", [("ewcc",), ("strategies", "ewcc")])
def test_a_name_that_is_none_is_told(words: tuple[str, ...]) -> None:
    refused = said(*words)
    assert refused.exit_code == 2 and "did you mean 'ewc'?" in refused.stderr


def test_one_metric_is_shown_and_one_that_is_none_is_told() -> None:
    words = said("metrics", "forgetting").stdout.split()  # in lines of any width
    assert words == ["metrics", "forgetting", *METRICS["forgetting"].meaning.split()]
    assert "did you mean 'forgetting'?" in said("metrics", "forgeting").stderr


def test_a_plug_in_of_another_make_hides_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Bare(Configured):
        """Nothing but a stream."""

    monkeypatch.setattr(plugins, "find", lambda *_: Bare)
    for kind in ("benchmarks", "strategies"):
        assert card(kind, "bare") == {"name": "bare", "meaning": "Nothing but a stream.", "papers": [], "options": []}
