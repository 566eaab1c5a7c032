"""What a seed has learnt is kept, and answers as it did: in memory, on the disk, after a kill, from processes."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import continual as cl
from continual import cli, plugins, resume, runner
from continual.errors import BadChain, BadFolder, BadOption, Mistake, Notice
from continual.learning.models import Net
from continual.learning.modules import Headed, ModuleNet
from continual.learning.strategy import Memory
from continual.options import Configured
from continual.progress import Progress
from continual.results import metrics, store
from continual.streams.stream import Stream

STRATEGIES = [*plugins.registered("strategies"), "ewc+replay:capacity=9", "hat+replay:capacity=9"]
SHORT: dict[str, Any] = {"epochs": 1, "batch": 16, "train_samples": 0, "model": "mlp:layers=12-8"}


def benchmark(strategy: str, scenario: str | None = None) -> str:
    """A short stream that the strategy works on."""
    each = [plugins.find("strategies", part.partition(":")[0]).scenarios for part in re.split(r"\+(?=[a-z])", strategy)]  # type: ignore[attr-defined]
    possible = [one for one in ("class", "domain", "task") if all(one in scenarios for scenarios in each)]
    return f"split-digits:tasks=2,limit=8,test_limit=12,scenario={scenario or possible[0]}"


def images(channels: int = 3, size: int = 8) -> Stream:
    """Images of noise with a colour for each of four classes."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat(10)
    x = torch.randint(0, 120, (40, channels, size, size), generator=draw, dtype=torch.uint8)
    x[torch.arange(40), y % channels] += (60 * (1 + y // channels)).to(torch.uint8)[:, None, None]
    return Stream.from_arrays(x, y, x, y, tasks=2, normalize="channel")


class Lines(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def answers(result: store.Result, but: int = 0, **given: Any) -> None:
    """Every learner that was kept has the accuracies that were measured when it had learnt so much.

    ``but`` for so many samples of a task, where it is asked in another way than it was measured, which may round.
    """
    places = {tuple(map(int, name.split("/")[:2])) for name in result.learners}
    assert places
    for seed, learnt in places:
        one = cl.learner(result, seed, learnt, **given)
        measured = result.accuracy[result.seeds.index(seed), learnt]
        counts = np.asarray([len(task.test) for task in one.stream.tasks])
        assert (np.abs(one.accuracy().numpy() - measured) * counts <= but + 1e-6).all(), (seed, learnt)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_answers_as_it_did(strategy: str) -> None:
    for seeds_as in ("loop", "map"):
        result = cl.run(benchmark(strategy), strategy, seeds=2, seeds_as=seeds_as, keep_learners="all", **SHORT)
        assert {name.rpartition("/theta")[0] for name in result.learners if name.endswith("/theta")} == {
            f"{seed}/{learnt}" for seed in (0, 1) for learnt in (0, 1, 2)
        }  # fmt: skip
        answers(result, but=seeds_as == "map")


def test_scores_give_the_accuracy() -> None:
    """Counted by hand from what the learner says of each image, in all scenarios."""
    for scenario in ("task", "domain", "class"):
        result = cl.run(benchmark("ewc", scenario), "ewc", seeds=[3], keep_learners="all", **SHORT)
        for learnt in (0, 1, 2):
            one = cl.learner(result, learnt=learnt)
            for task in range(2):
                x, y = one.samples(task)
                told = torch.full((len(x),), task) if scenario == "task" else None
                right = (one.scores(x, told).argmax(1) == y).double().mean()
                assert float(right) == result.accuracy[0, learnt, task]
                logits = one.net.logits(one.theta, x)
                assert torch.equal(one.logits(x, told), logits)
                head, bias = (one.parameters[f"head.{name}"] for name in ("weight", "bias"))
                torch.testing.assert_close(one.features(x, told) @ head.T + bias, logits)
    one = cl.learner(cl.run(benchmark("ewc", "task"), "ewc", seeds=1, keep_learners="last", **SHORT))
    with pytest.raises(BadOption, match=r"tasks .* have to be told"):
        one.scores(one.samples(0)[0])


def test_images_of_ones_own_are_shown_as_the_streams_are() -> None:
    for made in ("permuted-digits:tasks=2", "rotated-digits:angles=0-90", "split-digits:tasks=2,normalize=standard"):
        if made.partition(":")[0] not in plugins.registered("benchmarks"):
            continue
        one = cl.learner(cl.run(f"{made},limit=4,test_limit=4", seeds=1, keep_learners="last", **SHORT))
        for task in range(2):
            rows = one.stream.tasks[task].test
            pixels = one.stream.test_samples.pixels[one.stream.test_samples.image[rows]]
            assert torch.equal(one.show(pixels, task), one.samples(task)[0])
    with pytest.raises(BadOption, match=r"images \(2, 3, 9, 9\).*the data's are \(B, 1, 8, 8\)"):
        one.show(torch.zeros(2, 3, 9, 9, dtype=torch.uint8), 0)
    for wrong in (2, -1, 0.0, "0"):
        with pytest.raises(BadOption, match="there are 0 to 1"):
            one.samples(wrong)  # type: ignore[arg-type]
    with pytest.raises(BadOption, match="it takes test, train or validation"):
        one.samples(0, "tests")
    padded = cl.learner(cl.run("split-digits:tasks=2,limit=4,pad=2", seeds=1, keep_learners="last", **SHORT))
    rows = padded.stream.tasks[1].test
    pixels = padded.stream.data.x_test[padded.stream.test_samples.image[rows]]
    assert pixels.shape[1:] == (1, 8, 8)
    assert torch.equal(padded.show(pixels, 1), padded.samples(1)[0])


@pytest.mark.parametrize("options", [
    {"model": "reduced-resnet18:width=2"},
    {"model": "reduced-resnet18:width=2,statistics=task"},
    {"model": "cnn", "precision": "float64"},
    {"model": "cnn", "strategy": "icarl:capacity=8"},
    {"model": "reduced-resnet18:width=2", "precision": "bfloat16", "evaluate_precision": "training"},
    {"model": "cnn", "augment": "images:crop=1,flip=true"},
], ids=str)  # fmt: skip
def test_networks_of_images(options: dict[str, Any]) -> None:
    given = {"strategy": "replay:capacity=8"} | options
    result = cl.run(images(), **{**SHORT, **given}, seeds=1, keep_learners="all")
    answers(result, benchmark=images(), but=2 * (options.get("precision") == "bfloat16"))
    assert {"head.weight", "head.bias"} <= set(cl.learner(result, benchmark=images()).parameters)


@dataclass(frozen=True)
class HeadAlone(Configured):
    """Convolutions that are not trained, and a head that is."""

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> Net:
        def make() -> Headed:
            return Headed(torch.nn.Conv2d(shape[0], 4, 3, stride=2), 4 * 3 * 3, units)

        return ModuleNet(make, lambda name: name.startswith("head"))


@pytest.mark.parametrize("strategy", ["slda", "replay:capacity=8", "ewc"])
def test_features_that_were_computed_once_are_images_again(strategy: str) -> None:
    result = cl.run(images(), strategy, **SHORT | {"model": HeadAlone()}, seeds=2, keep_learners="all")
    assert result.record["features_once"]
    answers(result, but=1, benchmark=images())
    one = cl.learner(result, benchmark=images())
    x, _ = one.samples(0)
    assert x.shape == (20, 3, 8, 8)
    assert one.parameters["body.weight"].shape == (4, 3, 3, 3)


@pytest.mark.parametrize("model", [
    "mlp:layers=9", "cnn", *(f"reduced-resnet18:width=2{more}" for more in ("", ",statistics=frozen", ",norm=group"))
])  # fmt: skip
def test_an_ordinary_module_gives_the_same_logits(model: str) -> None:
    result = cl.run(images(), "ewc", **SHORT | {"model": model}, seeds=1, keep_learners="last")
    one = cl.learner(result, benchmark=images())
    module, x = one.module(), one.samples(1)[0]
    assert not module.training
    torch.testing.assert_close(module(x), one.logits(x), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()  # they are its own
    assert one.logits(x).any()


def test_no_ordinary_module_differs_by_task() -> None:
    result = cl.run(images(), "ewc", **SHORT | {"model": "reduced-resnet18:width=2,statistics=task"}, seeds=1,
                    keep_learners="last")  # fmt: skip
    with pytest.raises(BadChain, match="differ by task"):
        cl.learner(result, benchmark=images()).module()
    gated = cl.learner(cl.run(benchmark("hat"), "hat", seeds=1, keep_learners="last", **SHORT))
    with pytest.raises(BadChain, match="differ by task"):
        gated.module()
    x, y = gated.samples(1)
    assert gated.logits(x, torch.ones_like(y)).shape == (len(x), gated.stream.units)


def test_one_runs_network_is_where_another_begins(tmp_path: Path) -> None:
    """Weights that were learnt in one run are a file of weights for the next, by torchvision's names."""
    short = SHORT | {"seeds": 1, "keep_learners": "last"}
    first = cl.run(images(size=32), **short | {"model": "torchvision:weights=new"})
    learnt = cl.learner(first, benchmark=images(size=32))
    torch.save(learnt.module().body.state_dict(), tmp_path / "learnt.pt")
    head = f"torchvision:weights={tmp_path / 'learnt.pt'},train=head"
    second = cl.learner(cl.run(images(size=32), **short | {"model": head}), benchmark=images(size=32))
    x, _ = learnt.samples(0)
    assert torch.equal(second.features(x), learnt.features(x))
    torch.save({}, tmp_path / "learnt.pt")
    with pytest.raises(Mistake):
        cl.learner(first, benchmark=images(size=32), model=head)


def test_it_is_stored_and_read_again(tmp_path: Path) -> None:
    result = cl.run(benchmark("ncm"), "ncm", seeds=2, keep_learners="last", out=tmp_path, **SHORT)
    (folder,) = [path.parent for path in tmp_path.rglob("learners.safetensors")]
    stored = store.load(folder)
    assert set(stored.learners) == set(result.learners)
    assert all(torch.equal(stored.learners[name], result.learners[name]) for name in result.learners)
    answers(stored)
    assert torch.equal(cl.learner(folder).theta, cl.learner(result).theta)
    copied = store.load(store.save(stored, tmp_path / "copy"))
    assert torch.equal(copied.learners["1/2/theta"], result.learners["1/2/theta"])


def test_a_stored_run_without_them_is_run_again(tmp_path: Path) -> None:
    """And one with more than is asked for is not; one without is as it was before there were any."""
    told = Lines()
    asked: dict[str, Any] = {"seeds": 2, "out": tmp_path, "progress": told, **SHORT}
    first = cl.run(benchmark("ewc"), "ewc", **asked)
    assert not first.learners
    assert not list(tmp_path.rglob("learners.safetensors"))
    for keep, said in (
        ("last", "without the learners of keep_learners=last; run again"),
        ("last", "not run again"),
        ("none", "not run again"),
        ("all", "keep_learners=all; run again"),
        ("last", "not run again"),
    ):
        told.lines.clear()
        again = cl.run(benchmark("ewc"), "ewc", keep_learners=keep, **asked)
        assert said in told.lines[-1]
        assert np.array_equal(again.accuracy, first.accuracy)
        assert again.record["protocol"] == first.record["protocol"]
    assert {name.split("/")[1] for name in again.learners} == {"0", "1", "2"}


def test_where_they_were_deleted_the_run_is_run_again(tmp_path: Path) -> None:
    told = Lines()
    asked: dict[str, Any] = {"seeds": 1, "out": tmp_path, "progress": told, **SHORT}
    first = cl.run(benchmark("ewc"), "ewc", keep_learners="last", **asked)
    (file,) = tmp_path.rglob("learners.safetensors")
    stored = store.load(file.parent)
    cl.learner(stored)
    file.unlink()
    with pytest.raises(BadFolder, match=r"there is no file .*, which had what was learnt"):
        cl.learner(stored)  # which was read before
    with pytest.raises(BadOption, match="no learners of the run are there"):
        cl.learner(file.parent)
    cl.run(benchmark("ewc"), "ewc", **asked)
    assert "not run again" in told.lines[-1]
    again = cl.run(benchmark("ewc"), "ewc", keep_learners="last", **asked)
    assert "without the learners of keep_learners=last; run again" in told.lines[-1]
    assert torch.equal(again.learners["0/2/theta"], first.learners["0/2/theta"])
    told.lines.clear()
    cl.run(benchmark("ewc"), "ewc", again=True, **asked)
    assert told.lines == ["ewc: what its seeds had learnt was kept before, and now is not (--keep-learners)"]
    assert not file.exists()


def test_a_folder_of_several_runs_is_none(tmp_path: Path) -> None:
    for strategy in ("ewc", "l2"):
        cl.run(benchmark("ewc"), strategy, seeds=1, keep_learners="last", out=tmp_path, **SHORT)
    with pytest.raises(BadOption, match="holds 2 runs; give the folder of one"):
        cl.learner(tmp_path)


def test_a_learners_tensors_are_its_own() -> None:
    """What is changed in one is not in the result, nor in the next one."""
    result = cl.run(benchmark("ncm"), "ncm", seeds=1, keep_learners="all", **SHORT)
    one = cl.learner(result)
    for value in (one.theta, *one.memory.values()):
        value.zero_()
    answers(result)
    one = cl.learner(result)
    with pytest.raises(AttributeError):
        one.theta = one.theta * 0  # type: ignore[misc]
    first = cl.learner(result, learnt=1)
    mixed = one.changed(theta=first.theta, memory=first.memory)
    assert mixed.learnt == 2
    x, y = mixed.samples(0)
    assert torch.equal(mixed.features(x), first.features(x))
    assert float(mixed.accuracy()[0]) == float((mixed.scores(x).argmax(1) == y).double().mean())
    assert np.array_equal(one.accuracy().numpy(), result.accuracy[0, 2])
    mixed.theta.zero_()
    assert first.theta.any()
    with pytest.raises(BadOption, match=r"θ \(3,\)"):
        one.changed(theta=torch.zeros(3))


@pytest.mark.parametrize("options", [
    {"augment": "images:crop=1,flip=true,flip_tests=true"},
    {"precision": "bfloat16", "evaluate_precision": "training"},
], ids=str)  # fmt: skip
def test_scores_are_those_that_were_measured(options: dict[str, Any]) -> None:
    result = cl.run(images(), "ewc", **SHORT | {"model": "cnn:channels=4,units=9"} | options, seeds=1,
                    keep_learners="last")  # fmt: skip
    one = cl.learner(result, benchmark=images())
    for task in range(2):
        x, y = one.samples(task)
        right = int((one.scores(x).argmax(1) == y).sum())
        assert abs(right - len(y) * result.accuracy[0, 2, task]) <= 1 + 1e-6  # in another batch, which may round


@pytest.mark.parametrize("how", ["cut", "changed", "pipe"])
def test_what_is_damaged_is_refused_and_tables_do_without(tmp_path: Path, how: str) -> None:
    cl.run(benchmark("ewc"), "ewc", seeds=1, keep_learners="last", out=tmp_path, **SHORT)
    (file,) = tmp_path.rglob("learners.safetensors")
    content = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(content[:-1])
    elif how == "changed":
        content[-3] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
        file.mkdir()
    with pytest.raises(BadFolder, match=r"learners\.safetensors"):
        cl.learner(file.parent)
    assert CliRunner().invoke(cli.main, ["show", str(tmp_path)]).exit_code == 0


def test_processes_give_the_same(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("processes begin slowly")
    words = ["run", benchmark("replay"), "replay:capacity=9", "--seeds", "3", "--keep-learners", "all", "--quiet",
             "--model", "mlp:layers=12-8", "--epochs", "1", "--batch", "16"]  # fmt: skip
    found = {}
    for how in ("loop", "processes"):
        said = CliRunner().invoke(cli.main, [*words, "--seeds-as", how, "--out", str(tmp_path / how)])
        assert said.exit_code == 0, said.output
        (found[how],) = store.find(tmp_path / how)
        answers(found[how])
    one, other = (found[how].learners for how in ("loop", "processes"))
    assert sorted(one) == sorted(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


class Killed(BaseException):
    """Where the process would be gone."""


@pytest.mark.parametrize("seeds_as", ["loop", "map"])
def test_a_run_that_goes_on_has_those_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds_as: str) -> None:
    asked: dict[str, Any] = {"seeds": 2, "seeds_as": seeds_as, "keep_learners": "all", "checkpoint_steps": 1, **SHORT}
    whole = cl.run(benchmark("si"), "si", **asked)

    class Ends(Lines):
        left = 9 if seeds_as == "loop" else 5  # in the second seed, or in the second task of both

        def step(self, task: int, step: int, steps: int) -> None:
            self.left -= 1
            if not self.left:
                raise Killed

    monkeypatch.setattr(resume, "SHARE", 0)
    with pytest.raises(Killed):
        cl.run(benchmark("si"), "si", out=tmp_path, progress=Ends(), **asked)
    other = Lines()
    with pytest.raises(Killed):  # what was kept under another word is no part of this one
        cl.run(benchmark("si"), "si", out=tmp_path, progress=Ends(), **asked | {"keep_learners": "none"})
    told = Lines()
    again = cl.run(benchmark("si"), "si", out=tmp_path, progress=told, **asked)
    assert any("goes on where it was interrupted" in line for line in told.lines), (told.lines, other.lines)
    assert sorted(again.learners) == sorted(whole.learners)
    assert all(torch.equal(again.learners[name], whole.learners[name]) for name in whole.learners)


def test_a_seed_that_was_stopped() -> None:
    result = cl.run(benchmark("finetune"), seeds=1, optimizer="sgd:lr=1e30", keep_learners="all", **SHORT)
    assert result.record["stopped"]
    assert list(result.learners) == ["0/0/theta"]
    answers(result)
    with pytest.raises(BadOption, match=r"seed 0 was stopped: .* at task 1, step .*; kept is .* learnt after 0$"):
        cl.learner(result)
    result = cl.run(benchmark("finetune"), seeds=1, optimizer="sgd:lr=1e30", keep_learners="last", **SHORT)
    assert not result.learners
    with pytest.raises(BadOption, match=r"seed 0 was stopped: .* at task 1, step .*; nothing of it was kept"):
        cl.learner(result)


def test_what_was_not_kept_is_said() -> None:
    result = cl.run(benchmark("ewc"), "ewc", seeds=[4, 7], **SHORT)
    with pytest.raises(BadOption, match="no learners of the run are there; run it with keep_learners=last"):
        cl.learner(result)
    result = cl.run(benchmark("ewc"), "ewc", seeds=[4, 7], keep_learners="last", **SHORT)
    assert cl.learner(result).seed == 4
    assert cl.learner(result, 7).learnt == 2
    assert cl.learner(result, np.int64(7), np.int64(2)).seed == 7  # type: ignore[arg-type]
    for wrong in (7.0, "7"):
        with pytest.raises(BadOption, match="these are whole numbers"):
            cl.learner(result, wrong)  # type: ignore[arg-type]
    with pytest.raises(BadOption, match="no seed 0; there are 4, 7"):
        cl.learner(result, 0)
    with pytest.raises(BadOption, match="seed 7 after 1 task: kept is what it had learnt after 2; keep_learners=all"):
        cl.learner(result, 7, 1)


def test_avalanche_keeps_none() -> None:
    pytest.importorskip("avalanche")
    with pytest.raises(BadChain, match="leave keep_learners"):
        cl.run("split-digits", "avalanche:Naive", seeds=1, keep_learners="last", epochs=1)


@dataclass(frozen=True)
class Offset(cl.Strategy):
    """Fine-tuning that answers by what it keeps in memory."""

    by: float = cl.option(0.5, "how much")
    first_task_like_finetuning = False

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"offset": torch.zeros(stream.units, dtype=torch.bfloat16)}

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Any) -> tuple[torch.Tensor, Memory]:
        return theta, {"offset": memory["offset"] + self.by}

    def predict(
        self, net: Net, theta: torch.Tensor, memory: Memory, x: torch.Tensor, tasks: torch.Tensor
    ) -> torch.Tensor:
        scores = net.logits(theta, x)
        return scores + memory["offset"].to(scores.dtype) * torch.arange(scores.shape[1]).flip(0)


def test_objects_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class within a function cannot be named by a record, so the object is given; it has to be the same."""

    class Within(Offset):
        pass

    result = cl.run(benchmark("ewc"), Within(by=2.0), seeds=1, keep_learners="all", **SHORT)
    with pytest.raises(BadOption, match="cannot be made here from its record"):
        cl.learner(result)
    answers(result, strategy=Within(by=2.0))
    assert cl.learner(result, strategy=Within(by=2.0)).memory["offset"].dtype == torch.bfloat16
    with pytest.raises(BadOption, match=r"strategy.1.by is 3.0 and was 2.0"):
        cl.learner(result, strategy=Within(by=3.0))
    named = cl.run(benchmark("ewc"), Offset(by=2.0), seeds=1, keep_learners="all", **SHORT)
    answers(named)
    monkeypatch.setattr(plugins, "code_of", lambda cls: {"mine": "other"})
    named.record["code"]["mine"] = "one"
    with pytest.warns(Notice, match="mine may have changed since the run"):
        cl.learner(named)


def test_the_chain_has_to_be_whole() -> None:
    result = cl.run(benchmark("ncm"), "replay:capacity=9+ncm", seeds=1, keep_learners="last", **SHORT)
    for other in ("replay:capacity=9", "replay:capacity=9+ncm+l2"):
        with pytest.raises(BadOption, match=r"this is not what the run was of: strategies is . and was 2"):
            cl.learner(result, strategy=other)


def test_other_data_is_refused_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that has a registered benchmark's name, and images that have changed in the data root."""
    own = images(channels=1)
    own = Stream.from_arrays(own.data.x, own.data.y, own.data.x, own.data.y, tasks=2, name="split-digits")
    result = cl.run(own, "replay:capacity=8", seeds=1, keep_learners="last", **SHORT)
    with pytest.raises(BadOption, match=r"not what the run was of: protocol.benchmark.sha256 is not there"):
        cl.learner(result)
    answers(result, benchmark=own)
    result = cl.run(benchmark("ewc"), "ewc", seeds=1, keep_learners="last", **SHORT)
    result.record["data"]["sha256"] = "0" * 64
    with pytest.raises(BadOption, match=r"not what the run was of: data.sha256 is [0-9a-f]* and was 000"):
        cl.learner(result)


@dataclass(frozen=True)
class Drawn(Configured):
    """Images that are drawn by the seed."""

    scenario: str = "class"

    def stream(self, seed: int, root: Path | None = None) -> Stream:
        found = images(channels=1).data
        return Stream.from_arrays(found.x + seed, found.y, found.x, found.y, tasks=2, seed=seed)


def test_each_seed_has_its_own_data() -> None:
    result = cl.run(Drawn(), "icarl:capacity=8", seeds=[1, 5], seeds_as="loop", keep_learners="last", **SHORT)
    answers(result)
    one, other = (cl.learner(result, seed).samples(0, "train")[0] for seed in (1, 5))
    assert not torch.equal(one, other)


def test_another_stream_is_refused() -> None:
    result = cl.run(images(), "replay:capacity=8", seeds=1, keep_learners="last", **SHORT)
    with pytest.raises(Mistake, match="cannot be made here from its record"):
        cl.learner(result)
    with pytest.raises(BadOption, match=r"this is not what the run was of: protocol\.benchmark\.sha256"):
        cl.learner(result, benchmark=images(size=9))


def test_gradients_reach_images_and_parameters() -> None:
    one = cl.learner(cl.run(benchmark("ewc"), "ewc", seeds=1, keep_learners="last", **SHORT))
    x, y = one.samples(1)
    x.requires_grad_()
    torch.nn.functional.cross_entropy(one.logits(x), y).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    found = torch.func.grad(lambda theta: one.net.logits(theta, x.detach())[:, 0].sum())(one.theta)
    assert found.abs().sum() > 0


def test_the_record_is_as_without(tmp_path: Path) -> None:
    """Keeping changes no number, and nothing that a run is recognised by."""
    results = [cl.run(benchmark("ewc"), "ewc", seeds=2, seeds_as="loop", keep_learners=keep, **SHORT)
               for keep in ("none", "all")]  # fmt: skip
    one, other = results
    assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    assert one.record["protocol"] == other.record["protocol"]
    assert runner.store.folder(tmp_path, one.record) == runner.store.folder(tmp_path, other.record)
    assert "learners" not in json.dumps(store.plain(one.record))


@pytest.mark.parametrize("seeds_as", ["loop", "map"])
def test_the_overall_accuracy_is_that_of_all_test_samples(seeds_as: str) -> None:
    """Where tasks differ in size, which they do by the seed, it is not the mean over tasks."""
    asked = SHORT | {"epochs": 4}
    result = cl.run("split-digits:tasks=2,first=7,order=seed,limit=40,validation=0.2", "replay:capacity=20", seeds=2,
                    seeds_as=seeds_as, keep_learners="all", **asked)  # fmt: skip
    for r, seed in enumerate(result.seeds):
        over_time = []
        for learnt in (1, 2):
            one = cl.learner(result, seed, learnt)
            tasks = one.stream.tasks[:learnt]
            x, y = (torch.cat(parts) for parts in zip(*map(one.samples, range(learnt)), strict=True))
            right = one.scores(x).argmax(-1) == y
            assert len(right) == sum(len(task.test) for task in tasks)
            over_time.append(float(right.double().mean()))
        assert metrics.METRICS["overall-accuracy"](result)[r] == pytest.approx(over_time[-1], abs=1e-9)
        assert metrics.METRICS["overall-incremental-accuracy"](result)[r] == pytest.approx(np.mean(over_time), abs=1e-9)
    assert abs(metrics.METRICS["overall-accuracy"](result) - result.average_accuracy).min() > 1e-3
