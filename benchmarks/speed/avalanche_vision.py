"""Split CIFAR-10 with replay in avalanche-lib, used the way its documentation shows, a step at a time.

Its ``SplitCIFAR10`` is made of torchvision's files; this is the same benchmark with the same transforms, from images in
memory, so that class folders will do. DataLoader, plug-in and training loop are its own. It evaluates nothing.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from avalanche.benchmarks import nc_benchmark  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin  # noqa: E402
from avalanche.training.supervised import Naive  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.datasets import CIFAR10  # noqa: E402
from turns import Place  # noqa: E402

from continual import config  # noqa: E402
from continual.learning.modules import ModuleNet  # noqa: E402
from continual.runner import choose_device  # noqa: E402
from continual.streams.sets import load  # noqa: E402

NORMALISE = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
TRAIN = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALISE]


def dataset(x: torch.Tensor, y: torch.Tensor) -> CIFAR10:
    """torchvision's data set of images (N, 3, 32, 32) that are there already."""
    made = CIFAR10.__new__(CIFAR10)
    made.data, made.targets = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy()), y.tolist()
    made.transform = made.target_transform = made.transforms = None
    return made


class Logits(torch.nn.Module):
    """The same network, which gives logits alone."""

    def __init__(self, model: str) -> None:
        super().__init__()
        net = config.make("models", model).build((3, 32, 32), 10)
        assert isinstance(net, ModuleNet)
        self.module = net.make()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.module(x).logits


class Pause(SupervisedPlugin):
    """Waits after each iteration until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.done = queue.Queue[None](), queue.Queue[None]()
        self.counts = False

    def before_training_iteration(self, strategy: Any, **named: Any) -> None:
        """Called when a batch is there."""

    def after_training_iteration(self, strategy: Any, **named: Any) -> None:
        """The next one is loaded when this returns."""
        if self.counts:
            self.done.put(None)
            self.go.get()


def steps(place: Place, model: str, batch: int, fused: bool | None) -> Iterator[None]:
    """Iterations of the second task, with Adam as its documentation makes it (none) or with Adam's fused kernel."""
    data, device = load("cifar10", Path(place.root)), choose_device(place.device)
    benchmark = nc_benchmark(
        dataset(data.x, data.y), dataset(data.x_test, data.y_test), 5, task_labels=False, shuffle=False,
        fixed_class_order=list(range(10)), train_transform=transforms.Compose(TRAIN),
        eval_transform=transforms.Compose(TRAIN[2:]),
    )  # fmt: skip
    return _run(benchmark, model, device, batch, fused)


def _run(benchmark: Any, model: str, device: torch.device, batch: int, fused: bool | None) -> Iterator[None]:
    torch.manual_seed(0)
    net, pause = Logits(model).to(device), Pause()
    strategy = Naive(
        model=net, optimizer=torch.optim.Adam(net.parameters(), lr=0.001, fused=fused),
        criterion=torch.nn.CrossEntropyLoss(), train_mb_size=batch, train_epochs=1, device=device,
        plugins=[ReplayPlugin(mem_size=500, batch_size=batch, batch_size_mem=batch), pause],
        evaluator=EvaluationPlugin(loggers=[]),
    )  # fmt: skip
    threads = torch.get_num_threads()

    def train() -> None:
        torch.set_num_threads(threads)
        strategy.train(benchmark.train_stream[0])
        pause.counts, strategy.train_epochs = True, 1000
        strategy.train(benchmark.train_stream[1])

    # its loop runs in a thread of its own, which waits while others take their turn
    threading.Thread(target=train, daemon=True).start()
    pause.done.get()
    while True:
        pause.go.put(None)
        pause.done.get()
        yield
