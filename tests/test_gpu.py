"""What a GPU does: the numbers of a CPU, recorded or one by one, the same bits again, and no step that waits for it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from torch import nn

import continual as cl
from continual import config, execution, plugins
from continual.cli import main
from continual.conformance import TRAINING, learners_of, suited_stream
from continual.learning.capture import Captured
from continual.learning.models import MLP
from continual.learning.modules import Headed, ModuleNet
from continual.learning.optimizers import AT_ONCE, Cosine
from continual.learning.seeds import Learners, Recipe, tensor_float
from continual.learning.step import Program
from continual.learning.strategy import Strategy
from continual.learning.train import State, Watch, schedule, steps_of, train
from continual.learning.training import Training
from continual.learning.vision import CNN, ReducedResNet18, Torchvision
from continual.streams.augment import Images
from continual.streams.placement import Where, laid_out, place
from continual.streams.stream import Stream

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

STRATEGIES = [
    *plugins.registered("strategies"), "ewc+replay", "si+replay:fill=reservoir,capacity=6", "ewc:terms=each+si+l2",
    "mas+shared-trunk:trunk=slowed,rate=0.5",
]  # fmt: skip
RATE = (1e-3, 1e-5)
"""Relative and absolute: a recorded step's learning rate is a number of 32 bits, and what comes of it adds up."""
SMALL = CNN(channels=(4, 6), units=8)
SHOWN = Images(crop=1, flip=True, brightness=0.2, cutout=2)


def on_gpu(text: str, seeds: list[int]) -> Learners:
    """The learners of the conformance suite, on a GPU."""
    strategy = config.make_strategy(text)
    there = place([suited_stream(strategy, seed) for seed in seeds], "cuda")
    return Learners(learners_of(strategy, seeds[:1]).recipe, there, seeds)


def outcome(learners: Learners, training: Training = TRAINING, watch: Watch | None = None) -> dict[str, torch.Tensor]:
    """Everything that training gave, on the CPU."""
    arrays, stopped = train(learners, training, watch or Watch())
    assert not stopped
    made = {"θ": learners.theta.detach()} | learners.memory
    return arrays | {name: value.cpu() for name, value in made.items()}


def compare(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], rtol: float, atol: float) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            got[name], value, rtol=rtol, atol=atol, equal_nan=True, msg=lambda said, name=name: f"{name}: {said}"
        )


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("seeds", [[0], [1, 2]], ids=["alone", "mapped"])
@pytest.mark.parametrize("text", STRATEGIES)
def test_a_gpu_gives_a_cpus_numbers_recorded_or_not(text: str, seeds: list[int]) -> None:
    """Batches of 7 leave a partial one in every epoch, and there are evaluations between steps."""
    training = replace(TRAINING, batch=7, evaluate_every=5)
    wanted = outcome(learners_of(config.make_strategy(text), seeds), training)
    compare(outcome(on_gpu(text, seeds), replace(training, program="eager")), wanted, 1e-4, 1e-5)
    compare(outcome(on_gpu(text, seeds), replace(training, program="captured")), wanted, *RATE)


@pytest.mark.parametrize("seeds", [[0], [1, 2]], ids=["alone", "mapped"])
@pytest.mark.parametrize("text", STRATEGIES)
def test_no_step_waits_for_the_gpu(text: str, seeds: list[int]) -> None:
    learners = on_gpu(text, seeds)
    if not learners.strategy.can_be_captured:
        pytest.skip("it says that it cannot be captured")
    recorder, program = Captured(learners), None
    losses = torch.zeros(*learners.theta.shape[:-1], 100, device="cuda", dtype=torch.float64)
    for index in range(len(learners.streams[0].tasks)):
        batches = schedule(learners.begin(index), TRAINING, learners.seed, index)
        program = Program(learners, index, batches, program.later if program else None)
        steps = list(steps_of(program, batches, losses, recorder))
        with waiting_is_an_error():
            for step in steps:
                step()
        learners.end(index)
        assert losses.isfinite().all()


@pytest.mark.parametrize("text", STRATEGIES)
def test_deterministic_gives_the_same_bits_twice(text: str) -> None:
    with execution.deterministic(True):
        first, second = (outcome(on_gpu(text, [0])) for _ in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value.nan_to_num(), second[name].nan_to_num()), name


@pytest.mark.parametrize("text", STRATEGIES)
def test_a_run_goes_on_with_the_same_bits(text: str) -> None:
    kept: list[State] = []

    def keep(state: State) -> None:
        kept.append(State({name: value.cpu().clone() for name, value in state.tensors.items()}, state.facts))

    with execution.deterministic(True):
        whole = outcome(on_gpu(text, [0]), watch=Watch(due=lambda done: done == 2, keep=keep))
        for state in kept[len(kept) // 2 :][:1]:
            again = outcome(on_gpu(text, [0]), watch=Watch(start=state))
            for name, value in whole.items():
                assert torch.equal(value.nan_to_num(), again[name].nan_to_num()), name


def dropping() -> Learners:
    """Learners, on a GPU, of a network that drops half of its units."""
    made = on_gpu("replay:capacity=5", [0])
    inputs, units = int(np.prod(made.streams[0].shape)), made.streams[0].units

    def make() -> Headed:
        return Headed(nn.Sequential(nn.Flatten(), nn.Linear(inputs, 10), nn.ReLU(), nn.Dropout(0.5)), 10, units)

    return Learners(replace(made.recipe, net=ModuleNet(make)), made.streams, [0])


def test_what_is_dropped_is_the_same_recorded_and_after_an_interruption() -> None:
    """And whoever draws from PyTorch's generator otherwise finds it as it was."""
    kept: list[State] = []

    def keep(state: State) -> None:
        kept.append(State({name: value.cpu().clone() for name, value in state.tensors.items()}, state.facts))

    before = torch.cuda.get_rng_state()
    wanted = outcome(dropping(), replace(TRAINING, program="eager"))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    watched = Watch(lambda *_: torch.rand(3, device="cuda"), due=lambda done: done == 2, keep=keep)
    compare(outcome(dropping(), replace(TRAINING, program="captured"), watched), wanted, *RATE)
    for state in kept:
        compare(outcome(dropping(), watch=Watch(start=state)), wanted, *RATE)


LONG = MLP(layers=(850, 850))
"""A θ that the optimiser follows in more pieces than a fused kernel takes at once."""


@pytest.mark.parametrize("seeds", [[0], [1, 2, 3]], ids=["alone", "mapped"])
@pytest.mark.parametrize("precision", ["float64", "tf32"])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd:momentum=0.9", "adam", "adamw", "adagrad"])
def test_a_long_theta_is_followed_in_pieces_side_by_side(optimizer: str, precision: str, seeds: list[int]) -> None:
    """Its rows lie apart: they begin where tensor cores like it."""

    def learners(device: str, precision: str) -> Learners:
        streams = place([suited_stream(Strategy(), seed) for seed in seeds], device)
        net = LONG.build(streams[0].shape, streams[0].units)
        recipe = Recipe(net, config.make_strategy("ewc:strength=10"), config.make("optimizers", optimizer), Cosine(),
                        keep_optimizer=True, precision=precision)  # fmt: skip
        return Learners(recipe, streams, seeds)

    wanted = outcome(learners("cpu", "float64"), TRAINING)
    for program in ("eager", "captured"):
        there = learners("cuda", precision)
        assert len(there.pieces) > AT_ONCE
        with tensor_float(precision == "tf32"):
            found = outcome(there, replace(TRAINING, precision=precision, program=program))  # type: ignore[arg-type]
        if precision == "float64":
            compare(found, wanted, *RATE)
        else:
            torch.testing.assert_close(found["loss"].double(), wanted["loss"], rtol=0.1, atol=0.1)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="PyTorch compiles with g++ or clang++")
@pytest.mark.parametrize("seeds", [1, 2], ids=["alone", "mapped"])
def test_compiled_steps_give_the_same_numbers(seeds: int) -> None:
    found = [
        cl.run("split-digits:limit=20,tasks=2", "ewc+replay:capacity=20", compile=compiled, seeds=seeds, seeds_as="map",
               epochs=2, batch=16, precision="float64", device="cuda")
        for compiled in (True, False)
    ]  # fmt: skip
    assert found[0].record["program"] == "captured; the forward pass is compiled"
    compare(*({name: torch.as_tensor(value) for name, value in one.arrays.items()} for one in found), *RATE)


@pytest.mark.parametrize("train", ["head", "block"])
def test_features_that_are_kept_are_those_of_a_cpu(train: Any, tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), file)
    x = np.random.default_rng(0).integers(0, 256, (2, 24, 3, 32, 32), dtype=np.uint8)
    y = np.arange(24) % 4
    stream = Stream.from_arrays(x[0], y, x[1], y, tasks=2)
    found = [
        cl.run(stream, "replay:capacity=8", model=Torchvision(weights=str(file), train=train), seeds=1, epochs=2,
               batch=8, precision="float64", device=device)
        for device in ("cuda", "cpu")
    ]  # fmt: skip
    assert all(one.record["features_once"] for one in found)
    compare(*({name: torch.as_tensor(value) for name, value in one.arrays.items()} for one in found), *RATE)


# ---- images


def photographs() -> Stream:
    """Noise around a colour of its own for each of six classes."""
    numbers = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 20)
    colours = numbers.integers(40, 216, (6, 3, 1, 1))
    parts = [np.clip(colours[y] + numbers.integers(-40, 40, (len(y), 3, 8, 8)), 0, 255).astype(np.uint8)
             for _ in range(2)]  # fmt: skip
    return Stream.from_arrays(parts[0], y, parts[1], y, tasks=2).stream(0)


def viewers(
    model: Any, text: str = "replay:capacity=12", precision: str = "float64", where: Where = "device", seeds: int = 1,
    device: str = "cuda", last: bool = False,
) -> Learners:  # fmt: skip
    """Learners that are shown images, with their channels ``last`` where a processor can be trusted with it."""
    streams = place([photographs()] * seeds, device, where)
    strategy: Strategy = config.make_strategy(text)
    net = model.build(streams[0].shape, streams[0].units, 2)
    assert isinstance(net, ModuleNet)
    streams = laid_out(streams, last and not (device == "cpu" and net.skips))
    recipe = Recipe(net, strategy, config.make("optimizers", "adam:lr=0.003"), Cosine(), keep_optimizer=True,
                    precision=precision, augmentation=SHOWN)  # fmt: skip
    return Learners(recipe, streams, list(range(seeds)))


PICTURES = replace(TRAINING, batch=8, train_samples=0)


@pytest.mark.parametrize("seeds", [1, 2], ids=["alone", "mapped"])
@pytest.mark.parametrize("model", [SMALL, ReducedResNet18(width=2), ReducedResNet18(width=4, statistics="task"),
                                   ReducedResNet18(width=4, norm="group")], ids=str)  # fmt: skip
@pytest.mark.parametrize("text", ["replay:capacity=12", "der++:capacity=12", "ewc:strength=10,label=true", "lwf"])
def test_networks_for_images_give_a_cpus_numbers(text: str, model: Any, seeds: int) -> None:
    wanted = outcome(viewers(model, text, device="cpu", seeds=seeds), PICTURES)
    compare(outcome(viewers(model, text, seeds=seeds), replace(PICTURES, program="eager")), wanted, 1e-5, 1e-7)
    compare(outcome(viewers(model, text, seeds=seeds), replace(PICTURES, program="captured")), wanted, *RATE)


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("model", [SMALL, ReducedResNet18(width=4)], ids=str)
def test_lower_precisions_learn_the_same_to_their_rounding(model: Any, precision: str, last: bool) -> None:
    training = replace(PICTURES, precision=precision)  # type: ignore[arg-type]
    full = outcome(viewers(model), PICTURES)
    with tensor_float(precision == "tf32"):
        low = outcome(viewers(model, precision=precision, last=last), training)
    assert low["loss"].isfinite().all()
    first = float((full["loss"][0] - low["loss"][0]).abs() / full["loss"][0])
    assert first < {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}[precision], first


@pytest.mark.parametrize("where", ["pinned", "mapped"])
def test_where_images_lie_changes_no_number(where: Where) -> None:
    training = replace(PICTURES, program="eager")
    compare(outcome(viewers(SMALL, where=where), training), outcome(viewers(SMALL), training), 1e-9, 1e-12)


# ---- whole runs


def invoke(*arguments: object) -> Any:
    said = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
    return said


def record_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.rglob("run.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_a_run_on_a_gpu_says_how_it_was_done(tmp_path: Path) -> None:
    said = invoke("run", "split-digits:limit=30", "replay:capacity=20", "--seeds", 3, "--epochs", 1, "--device", "cuda",
                  "--out", tmp_path)  # fmt: skip
    assert said.exit_code == 0 and "3 seeds" in said.stderr, said.output
    record = record_of(tmp_path)
    assert (
        record["program"] == "captured" and record["device"]["type"] == "cuda" and record["seeds_as"] in ("map", "loop")
    )
    assert record["device"]["name"] == torch.cuda.get_device_name()


def test_a_gpu_without_memory_names_two_settings_that_help(tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(200e6 / torch.cuda.get_device_properties(0).total_memory)
    try:
        said = invoke("run", "split-digits:limit=30", "finetune", "--seeds", 8, "--seeds-as", "map", "--model",
                      "mlp:layers=4000-4000", "--device", "cuda", "--out", tmp_path, "--quiet")  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said.exit_code == 2 and "finetune on cuda: not enough memory" in said.stderr
    assert "--batch" in said.stderr and "--seeds-as loop" in said.stderr
