"""The same protocol in avalanche-lib, used the way its documentation shows: its benchmark, DataLoader and plug-ins.

It evaluates accuracy, forgetting and backward transfer on the whole test stream after each task. Its outputs are all
active throughout, as by default.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
warnings.showwarning = lambda *_, **__: None  # what it calls deprecated it shows whatever filters say

import torch  # noqa: E402
from avalanche.benchmarks import nc_benchmark  # noqa: E402
from avalanche.benchmarks.classic import SplitMNIST  # noqa: E402
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin  # noqa: E402
from avalanche_methods import METHODS, TOLD, Flat  # noqa: E402
from hand import multiplying  # noqa: E402
from torchvision.datasets import MNIST  # noqa: E402
from torchvision.transforms import Compose, Normalize, ToTensor  # noqa: E402
from turns import Place, Work, seconds  # noqa: E402


def load(root: str, limit: int | None = None, told: bool = False) -> Any:
    """Its Split MNIST, natural order, from torchvision's files under a data root.

    ``limit``: so many training images of each class. ``told``: whether samples say which task they are of.
    """
    order = list(range(10))
    if limit is None:
        return SplitMNIST(n_experiences=5, return_task_id=told, fixed_class_order=order, dataset_root=Path(root))
    train, test = (MNIST(root, train=which) for which in (True, False))
    rows = torch.cat([(train.targets == label).nonzero()[:limit, 0] for label in order])
    train.data, train.targets = train.data[rows], train.targets[rows]
    shown = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])
    return nc_benchmark(train, test, 5, told, fixed_class_order=order, train_transform=shown, eval_transform=shown)


def run(
    method: str, benchmark: Any, seed: int, fused: bool = False, epochs: int = 1, layers: tuple[int, ...] = (400, 400),
    device: str = "cpu",
) -> float:  # fmt: skip
    """Train and evaluate: the mean accuracy at the end. ``fused``: Adam's fused kernel, which is not its default."""
    torch.manual_seed(seed)
    model = Flat(layers).to(device)
    kind, options = METHODS[method]
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        loggers=[],
    )
    strategy = kind(
        model=model,
        device=torch.device(device),
        optimizer=torch.optim.Adam(model.parameters(), lr=0.001, fused=fused or None),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=128,
        train_epochs=epochs,
        eval_mb_size=1000,
        evaluator=evaluator,
        **options,
    )
    found: dict[str, float] = {}
    for part in [benchmark.train_stream] if method == "joint" else benchmark.train_stream:
        strategy.train(part)
        found = strategy.eval(benchmark.test_stream)
    return next(value for name, value in found.items() if name.startswith("Top1_Acc_Stream"))


def pieces(place: Place) -> dict[str, Callable[..., Work]]:
    """``train``: Split MNIST; ``steps``: some steps of Split CIFAR-10 with replay."""

    @functools.cache
    def mnist(told: bool) -> Any:
        return load(place.root, place.limit, told)

    def train(
        method: str, layers: tuple[int, ...] = (400, 400), fused: bool = False, products: bool = False
    ) -> Work:  # fmt: skip
        benchmark = mnist(method in TOLD)

        def work() -> float:
            return seconds(lambda: run(method, benchmark, 0, fused, layers=layers, device=place.device), place.device)

        return multiplying(work, products)

    def steps(model: str, batch: int, count: int, fused: bool = False) -> Work:
        import avalanche_vision

        made = avalanche_vision.steps(place, model, batch, fused or None)
        next(made)
        return lambda: seconds(lambda: next(made), place.device, count, ahead=1)

    return {"train": train, "steps": steps}


def main() -> None:
    """Time one method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--data", required=True, help="data root with MNIST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="training images of a class [all]")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    benchmark = load(given.data, given.limit, given.method in TOLD)
    began = time.perf_counter()
    accuracy = run(given.method, benchmark, given.seed)
    print(f"{given.method}: {time.perf_counter() - began:.2f} s, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
