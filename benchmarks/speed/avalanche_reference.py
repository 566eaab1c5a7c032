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
from avalanche.benchmarks import benchmark_from_datasets  # noqa: E402
from avalanche.benchmarks.classic import SplitMNIST  # noqa: E402
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin  # noqa: E402
from avalanche.training.supervised import (  # noqa: E402
    AGEM,
    DER,
    ER_ACE,
    EWC,
    GEM,
    MAS,
    MIR,
    Cumulative,
    GDumb,
    LwF,
    Naive,
    Replay,
    SynapticIntelligence,
)  # fmt: skip
from hand import mlp, multiplying  # noqa: E402
from turns import Place, Work, seconds  # noqa: E402

METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "finetune": (Naive, {}),
    "ewc": (EWC, {"ewc_lambda": 100.0}),
    "replay": (Replay, {"mem_size": 500}),
    "si": (SynapticIntelligence, {"si_lambda": 1.0}),
    "mas": (MAS, {}),
    "lwf": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "a-gem": (AGEM, {"patterns_per_exp": 200, "sample_size": 256}),
    "gem": (GEM, {"patterns_per_exp": 200, "memory_strength": 0.5}),
    "der": (DER, {"mem_size": 500, "batch_size_mem": 128, "alpha": 0.1, "beta": 0.0}),
    "er-ace": (ER_ACE, {"mem_size": 500, "batch_size_mem": 128}),
    "mir": (MIR, {"mem_size": 500, "subsample": 500, "batch_size_mem": 128}),
    "gdumb": (GDumb, {"mem_size": 500}),
    "cumulative": (Cumulative, {}),
}


class Flat(torch.nn.Module):
    """The MLP for images."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.net = mlp(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.net(x.flatten(1))


def load(root: str, limit: int | None = None) -> Any:
    """Its Split MNIST, natural order, from torchvision's files under a data root.

    ``limit``: about so many training images of each class, the first of each task.
    """
    made = SplitMNIST(n_experiences=5, return_task_id=False, fixed_class_order=list(range(10)), dataset_root=Path(root))
    if limit is None:
        return made
    train = [one.dataset.subset(range(2 * limit)) for one in made.train_stream]
    return benchmark_from_datasets(train=train, test=[one.dataset for one in made.test_stream])


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
    for experience in benchmark.train_stream:
        strategy.train(experience)
        found = strategy.eval(benchmark.test_stream)
    return next(value for name, value in found.items() if name.startswith("Top1_Acc_Stream"))


def pieces(place: Place) -> dict[str, Callable[..., Work]]:
    """``train``: Split MNIST; ``steps``: some steps of Split CIFAR-10 with replay."""

    @functools.cache
    def mnist() -> Any:
        return load(place.root, place.limit)

    def train(
        method: str, layers: tuple[int, ...] = (400, 400), fused: bool = False, products: bool = False
    ) -> Work:  # fmt: skip
        def work() -> float:
            return seconds(lambda: run(method, mnist(), 0, fused, layers=layers, device=place.device), place.device)

        return multiplying(work, products)

    def steps(model: str, batch: int, count: int, fused: bool = False) -> Work:
        import avalanche_vision

        made = avalanche_vision.steps(place, model, batch, fused or None)
        next(made)
        return lambda: seconds(lambda: next(made), place.device, count)

    return {"train": train, "steps": steps}


def main() -> None:
    """Time one method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--data", required=True, help="data root with MNIST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    benchmark = load(given.data)
    began = time.perf_counter()
    accuracy = run(given.method, benchmark, given.seed)
    print(f"{given.method}: {time.perf_counter() - began:.2f} s, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
