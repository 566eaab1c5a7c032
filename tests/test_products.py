"""Products of matrices by oneDNN: the same sums, whoever asks, and PyTorch's own when they are over."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import continual as cl
from continual import products
from continual.learning.recording import recorded
from continual.progress import Progress

pytestmark = pytest.mark.skipif(not products.can(), reason="this PyTorch has no oneDNN, or is older than get_kernel")

Made = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
WAYS: dict[str, Made] = {
    "linear": torch.nn.functional.linear,
    "linear of three dimensions": lambda x, w, b: torch.nn.functional.linear(x.unflatten(0, (2, -1)), w, b),
    "product": lambda x, w, b: x @ w.mT,
    "transposed": lambda x, w, b: (w @ x.mT).mT,
    "every second column": lambda x, w, b: x[:, ::2] @ w[:, ::2].mT,
    "a row of one number": lambda x, w, b: x[:1].expand(len(x), -1) @ w.mT,
    "added, by parts": lambda x, w, b: torch.addmm(b, x, w.mT, beta=0.5, alpha=2.0),
    "a matrix added": lambda x, w, b: torch.addmm(x[:, : len(b)], x, w.mT),
    "many": lambda x, w, b: torch.stack([x, 2 * x]) @ torch.stack([w, w]).mT,
    "mapped": lambda x, w, b: torch.vmap(lambda w, b: torch.nn.functional.linear(x, w, b))(
        torch.stack([w, 2 * w]), torch.stack([b, b])
    ),
    "a bias with gaps": lambda x, w, b: torch.nn.functional.linear(x, w, torch.stack([b, b], 1)[:, 0]),
    "a bias of one number": lambda x, w, b: torch.nn.functional.linear(x, w, b[:1].expand(len(b))),
    "rows with gaps": lambda x, w, b: x @ torch.cat([w, w], 1)[:, : w.shape[1]].mT,
    "columns with gaps": lambda x, w, b: x @ torch.stack([w.mT, w.mT], 2)[..., 0],
    "rows that overlap": lambda x, w, b: x @ x.flatten()[: len(b) + x.shape[1] - 1].unfold(0, x.shape[1], 1).mT,
    "one row for all": lambda x, w, b: x @ b.expand(x.shape[1], -1),
    "many with gaps": lambda x, w, b: (
        torch.stack([x, 2 * x]) @ torch.stack([torch.cat([w, w], 1)] * 2)[..., : w.shape[1]].mT
    ),
    "none": lambda x, w, b: x[:0] @ w.mT,
    "none of many": lambda x, w, b: torch.stack([x])[:0] @ torch.stack([w])[:0].mT,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [3, 130])
def test_a_product_and_its_gradients_are_those_of_float64(way: str, rows: int) -> None:
    """Small ones, which are left as they were, and large ones."""
    torch.manual_seed(0)
    given = [torch.randn(size, dtype=torch.float64) for size in ((2 * rows, 300), (200, 300), (200,))]

    def all_of(dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [one.to(dtype).requires_grad_() for one in given]
        out = WAYS[way](*leaves)
        grads = torch.autograd.grad(out.square().mean() + out.sum(), leaves, create_graph=True, materialize_grads=True)
        double = torch.autograd.grad(
            sum(one.square().sum() for one in grads), leaves, allow_unused=True, materialize_grads=True
        )
        return [out, *grads, *double]

    with products.by_onednn():
        found = all_of(torch.float32)
    for one, right in zip(found, all_of(torch.float64), strict=True):
        assert one.shape == right.shape
        if right.numel():
            torch.testing.assert_close(one.double(), right, rtol=1e-4, atol=1e-5 * float(right.detach().abs().max()))


def by_onednn(function: Callable[[], object]) -> bool:
    """Whether oneDNN multiplied in a function."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        function()
    return any(one.key == "mkldnn::_linear_pointwise" for one in seen.key_averages())


def test_within_it_large_products_of_float32_are_onednns_and_no_others() -> None:
    large, small, wide = torch.ones(200, 200), torch.ones(20, 20), torch.ones(200, 200, dtype=torch.float64)
    with products.by_onednn():
        assert by_onednn(lambda: large @ large)
        assert not by_onednn(lambda: small @ small) and not by_onednn(lambda: wide @ wide)
    assert not by_onednn(lambda: large @ large)
    with pytest.raises(ZeroDivisionError), products.by_onednn():
        _ = 1 / 0
    assert not by_onednn(lambda: large @ large)


def test_runs_in_two_threads_may_end_in_any_order() -> None:
    large = torch.ones(200, 200)
    one, two = products.by_onednn(), products.by_onednn()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert by_onednn(lambda: large @ large)
    two.__exit__(None, None, None)
    assert not by_onednn(lambda: large @ large)


def test_what_one_thread_does_is_not_what_another_does() -> None:
    """A run's numbers must not depend on whether another run, in another thread, is within at the time."""
    torch.manual_seed(0)
    x, w = torch.randn(300, 300, requires_grad=True), torch.randn(300, 300)

    def gradient() -> torch.Tensor:
        return torch.autograd.grad((x @ w @ torch.stack([w, w])).sin().sum(), x)[0]

    alone = gradient()
    with products.by_onednn():
        fast = gradient()
        recording, _ = recorded(gradient)
        with ThreadPoolExecutor(1) as other:
            theirs, (made, _) = other.submit(gradient).result(), other.submit(recorded, gradient).result()
            assert torch.equal(theirs, alone) and not torch.equal(fast, alone)
            assert made is not None and recording is not None
            assert torch.equal(other.submit(made.again).result(), alone) and torch.equal(recording.again(), fast)
    assert torch.equal(made.again(), alone)


def test_none_is_onednns_that_it_is_slow_at() -> None:
    """It takes a thousand times as long where the second factor has gaps, as the keys of an attention's heads do."""
    whole = torch.ones(400, 400)
    gaps = [whole[:, :300][:300], whole[::2, :], whole[:1].expand(300, 400), whole.unfold(1, 200, 1)[0]]
    with products.by_onednn():
        for one in gaps:
            assert by_onednn(lambda one=one: one @ torch.ones(one.shape[1], 300))
            assert not by_onednn(lambda one=one: torch.ones(300, len(one)) @ one)


WRONG: dict[str, Callable[[], object]] = {
    "sizes": lambda: torch.ones(300, 200) @ torch.ones(100, 300),
    "types": lambda: torch.ones(300, 200) @ torch.ones(200, 300, dtype=torch.float64),
    "three dimensions": lambda: torch.mm(torch.ones(1, 300, 200), torch.ones(1, 200, 300)),
    "one dimension": lambda: torch.mm(torch.ones(300), torch.ones(300)),
    "two dimensions": lambda: torch.bmm(torch.ones(300, 200), torch.ones(200, 300)),
    "how many": lambda: torch.ones(2, 300, 200) @ torch.ones(3, 200, 300),
    "sizes of many": lambda: torch.ones(2, 300, 200) @ torch.ones(2, 100, 300),
    "what is added": lambda: torch.addmm(torch.ones(200), torch.ones(300, 200), torch.ones(200, 300)),
    "its type": lambda: torch.addmm(torch.ones(300, dtype=torch.float64), torch.ones(300, 200), torch.ones(200, 300)),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_product_of_matrices_is_refused_as_ever(what: str) -> None:
    def said() -> str:
        with pytest.raises(RuntimeError) as error:
            WRONG[what]()
        return str(error.value)

    with products.by_onednn():
        within = said()
    assert within == said()


@pytest.mark.parametrize("seeds_as", ["loop", "map"])
def test_a_run_has_the_same_numbers_and_says_who_multiplied(seeds_as: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "STEP", products.LEAST)

    def run(fast: bool) -> cl.Result:
        monkeypatch.setattr(products, "faster", lambda: fast)
        asked = {"seeds": 2, "seeds_as": seeds_as, "epochs": 1, "batch": 128, "model": "mlp:layers=300-60"}
        found = None

        def work() -> None:
            nonlocal found
            found = cl.run("split-digits:limit=60", "ewc+replay:capacity=40", **asked)

        assert by_onednn(work) == fast
        assert found is not None
        return found

    own, other = run(False), run(True)
    assert own.record["products"] == "PyTorch" and other.record["products"] == "oneDNN"
    for name, values in own.arrays.items():
        np.testing.assert_allclose(values, other.arrays[name], rtol=1e-3, atol=1e-4, err_msg=name)


class Broken(Progress):
    """Ends a run before its n-th step, as Ctrl-C does, and keeps what is said."""

    def __init__(self, left: int) -> None:
        self.left, self.lines = left, list[str]()

    def say(self, line: str) -> None:
        self.lines.append(line)

    def step(self, task: int, step: int, steps: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.skipif(not products.faster(), reason="PyTorch's own products are as fast on this processor")
def test_a_run_that_goes_on_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "STEP", products.LEAST)
    settings: dict[str, Any] = {"seeds": 1, "epochs": 2, "batch": 128, "model": "mlp:layers=300-100",
                                "checkpoint_steps": 1}  # fmt: skip
    stream, strategy = "split-digits:limit=60", "ewc+replay:capacity=40"
    with pytest.raises(KeyboardInterrupt):
        cl.run(stream, strategy, out=tmp_path, progress=Broken(3), **settings)
    told = Broken(10**6)
    again = cl.run(stream, strategy, out=tmp_path, progress=told, **settings)
    whole = cl.run(stream, strategy, **settings)
    assert "goes on where it was interrupted" in told.lines[0] and again.record["products"] == "oneDNN"
    for name, values in whole.arrays.items():
        assert values.tobytes() == again.arrays[name].tobytes(), name


@pytest.mark.parametrize("asked", [{"model": "mlp:layers=10"}, {"model": "mlp:layers=900", "precision": "float64"}])
def test_it_is_left_alone_where_a_step_is_small_or_in_float64(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "faster", lambda: True)
    found = cl.run("split-digits:limit=200", "finetune", seeds=1, epochs=1, batch=256, **asked)
    assert found.record["products"] == "PyTorch"
    assert not products.used(10**9, torch.device("cuda"), "float32")
    assert products.used(256 * 64 * 900, torch.device("cpu"), "float32")


@pytest.mark.parametrize(
    ("processor", "instructions", "wanted"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_it_is_for_processors_whose_avx512_mkl_leaves_alone(
    processor: str, instructions: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(products, "processor", lambda: f"vendor_id : {processor}")
    assert products.faster.__wrapped__() is wanted


def test_recorded_products_are_done_without_asking_whose_they_are() -> None:
    """Large ones by oneDNN's own operation, of many one by one, small ones where they lay."""
    aten, onednn = torch.ops.aten, torch.ops.mkldnn._linear_pointwise.default._op
    x, w, b = torch.randn(128, 200), torch.randn(200, 200), torch.randn(200)
    ways: dict[str, tuple[Callable[[], torch.Tensor], list[object]]] = {
        "a product": (lambda: x @ w, [onednn]),
        "with a bias": (lambda: torch.nn.functional.linear(x, w, b), [onednn]),
        "another bias": (lambda: torch.addmm(b, x, w, beta=0.5), [aten.addmm.out._op]),
        "a small product": (lambda: x[:8] @ w, [aten.mm.out._op]),
        "a small one with a bias": (lambda: torch.nn.functional.linear(x[:8], w, b), [aten.addmm.out._op]),
        "many": (lambda: torch.bmm(x.expand(2, -1, -1), w.expand(2, -1, -1)), 2 * [onednn, aten.copy_.default._op]),
        "many small ones": (lambda: torch.bmm(x[:8].expand(2, -1, -1), w.expand(2, -1, -1)), [aten.bmm.out._op]),
    }
    for name, (way, operations) in ways.items():
        with products.by_onednn():
            noted, why = recorded(way)
            assert noted is not None, (name, why)
            assert [call.function for call in noted.calls] == operations, name
            x.add_(1)
            assert noted.compared(way)[0], name
        noted, _ = recorded(way)
        assert noted is not None and onednn not in [call.function for call in noted.calls], "PyTorch's own are back"


@pytest.mark.parametrize(("threads", "rows", "turned"), [(2, 200, True), (2, 256, False), (1, 200, False)])
def test_threads_share_the_turning_around_of_a_matrix(threads: int, rows: int, turned: bool) -> None:
    """Not where its columns lie so that each pushes the others out of the processor's memory; the bits are the same."""
    delta, h = torch.randn(150, rows), torch.randn(150, 100)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with products.by_onednn():
            noted, _ = recorded(lambda: delta.mT @ h)
            assert noted is not None
            assert [call.function for call in noted.calls].count(torch.ops.aten.cat.out._op) == turned
            delta.add_(1)
            same, found = noted.compared(lambda: delta.mT @ h)
            assert same and found is not None and torch.equal(found, delta.mT.contiguous() @ h)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, delta.mT @ h)
