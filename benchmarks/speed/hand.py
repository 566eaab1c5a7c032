"""Hand-written loops over float32 pixels in memory: what an experienced person writes for one method, plainly.

Split MNIST, class-incremental, five tasks of two classes, an MLP 784-400-400-10, Adam 0.001, batch 128 with the last
partial batch kept, outputs of classes not yet seen cut off. After each task, and of the untrained network as if the
first task were learnt, the test sets of the tasks seen are evaluated and 200 training rows of each; on a task whose
classes are not among the outputs yet nothing can be right.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import Place, Work, seconds

TASKS = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
BATCH = 128


@dataclass
class Mnist:
    """Pixels in [0, 1] as float32 (N, 784), labels (N,), and the rows of each task."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def __post_init__(self) -> None:
        self.tasks, self.tasks_test = ([rows_of(y, classes) for classes in TASKS] for y in (self.y, self.y_test))


def load(root: str, limit: int | None = None, device: str = "cpu") -> Mnist:
    """MNIST from its published files under a data root; ``limit``: training images of each class."""

    def read(name: str, header: int) -> Tensor:
        file = Path(root, "MNIST", "raw", f"{name}.gz")
        if not file.exists():
            raise FileNotFoundError(f"{file} is not there; give a data root with MNIST's published files")
        with gzip.open(file) as unzipped:
            return torch.from_numpy(np.frombuffer(unzipped.read(), np.uint8, offset=header).copy())

    x, x_test = (read(f"{part}-images-idx3-ubyte", 16).view(-1, 784) for part in ("train", "t10k"))
    y, y_test = (read(f"{part}-labels-idx1-ubyte", 8).long() for part in ("train", "t10k"))
    if limit is not None:
        kept = torch.cat([(y == c).nonzero().squeeze(1)[:limit] for c in range(10)]).sort().values
        x, y = x[kept], y[kept]
    x, x_test = (pixels.to(device).float() / 255 for pixels in (x, x_test))
    return Mnist(x, y.to(device), x_test, y_test.to(device))


def mlp(layers: tuple[int, ...] = (400, 400)) -> nn.Sequential:
    """The network."""
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise((784, *layers)):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(layers[-1] if layers else 784, 10))


def rows_of(y: Tensor, classes: tuple[int, ...]) -> Tensor:
    """The rows of some classes."""
    return torch.isin(y, torch.tensor(classes, device=y.device)).nonzero().squeeze(1)


def cut(logits: Tensor, seen: int) -> Tensor:
    """The logits of the classes seen."""
    return logits[:, :seen]


@torch.no_grad()
def evaluate(net: nn.Module, data: Mnist, task: int, tests: list[Tensor], trains: list[Tensor]) -> list[list[float]]:
    """Accuracy on each task's test rows and on its training rows; 0 on those not seen."""
    seen = 2 * (task + 1)
    found = []
    for x, y, sets in ((data.x_test, data.y_test, tests), (data.x, data.y, trains)):
        right = [float((cut(net(x[rows]), seen).argmax(1) == y[rows]).float().mean()) for rows in sets[: task + 1]]
        found.append(right + [0.0] * (len(sets) - len(right)))
    return found


class Learner:
    """Fine-tuning; the other methods change a piece of it."""

    def __init__(self, data: Mnist, seed: int, layers: tuple[int, ...] = (400, 400)) -> None:
        torch.manual_seed(seed)
        self.data, self.net = data, mlp(layers).to(data.x.device)
        self.parameters = list(self.net.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.001, fused=True)
        self.memory = data.y[:0]

    def loss(self, rows: Tensor, task: int) -> Tensor:
        """The loss of a batch."""
        x, y = self.data.x[rows], self.data.y[rows]
        return F.cross_entropy(cut(self.net(x), 2 * (task + 1)), y)

    def step(self, rows: Tensor, task: int) -> None:
        """Learn from a batch."""
        self.loss(rows, task).backward()
        self.optimizer.step()

    def after(self, rows: Tensor, task: int) -> None:
        """A task ends."""

    def train(self, epochs: int = 1) -> Tensor:
        """All tasks: the accuracy matrix (T+1, T)."""
        trains, tests = self.data.tasks, self.data.tasks_test
        some = [rows[:: max(1, len(rows) // 200)][:200] for rows in trains]
        matrix = [evaluate(self.net, self.data, 0, tests, some)[0]]
        for task, rows in enumerate(trains):
            for _ in range(epochs):
                for batch in rows[torch.randperm(len(rows), device=rows.device)].split(BATCH):
                    self.optimizer.zero_grad()
                    self.step(batch, task)
            self.after(rows, task)
            matrix.append(evaluate(self.net, self.data, task, tests, some)[0])
        return torch.tensor(matrix)


class L2(Learner):
    """A quadratic pull to the last task's weights."""

    strength = 0.1

    def loss(self, rows: Tensor, task: int) -> Tensor:
        """With the penalty."""
        loss = super().loss(rows, task)
        if task:
            pairs = zip(self.parameters, self.anchors, strict=True)
            loss = loss + self.strength * sum((p - a).square().sum() for p, a in pairs)
        return loss

    def after(self, rows: Tensor, task: int) -> None:
        """Anchor the weights."""
        self.anchors = [p.detach().clone() for p in self.parameters]


class EWC(Learner):
    """EWC with the per-sample Fisher of the true labels; one sum of Fishers and one anchor."""

    strength = 100.0

    def loss(self, rows: Tensor, task: int) -> Tensor:
        """With the penalty."""
        loss = super().loss(rows, task)
        if task:
            triples = zip(self.parameters, self.anchors, self.fisher, strict=True)
            loss = loss + 0.5 * self.strength * sum((f * (p - a).square()).sum() for p, a, f in triples)
        return loss

    def after(self, rows: Tensor, task: int) -> None:
        """Add the task's Fisher: for a linear layer one product of squares."""
        found = [torch.zeros_like(p) for p in self.parameters]
        linears = [layer for layer in self.net if isinstance(layer, nn.Linear)]
        for chunk in rows.split(512):
            h, inputs, outputs = self.data.x[chunk], [], []
            for layer in linears:
                inputs.append(h)
                outputs.append(layer(h))
                h = F.relu(outputs[-1])
            loss = F.cross_entropy(cut(outputs[-1], 2 * (task + 1)), self.data.y[chunk], reduction="sum")
            deltas = torch.autograd.grad(loss, outputs)
            for number, (h, delta) in enumerate(zip(inputs, deltas, strict=True)):
                found[2 * number] += delta.square().T @ h.detach().square()
                found[2 * number + 1] += delta.square().sum(0)
        new = [f / len(rows) for f in found]
        self.fisher = [a + b for a, b in zip(self.fisher, new, strict=True)] if task else new
        self.anchors = [p.detach().clone() for p in self.parameters]


class Replay(Learner):
    """As many stored samples as new ones in each batch, from a memory balanced by class."""

    capacity = 500

    def loss(self, rows: Tensor, task: int) -> Tensor:
        """Over new and stored samples alike."""
        if task:
            rows = torch.cat([rows, self.memory[torch.randint(len(self.memory), (len(rows),), device=rows.device)]])
        return super().loss(rows, task)

    def after(self, rows: Tensor, task: int) -> None:
        """Share the memory out among the classes seen."""
        pool = torch.cat([self.memory, rows[torch.randperm(len(rows), device=rows.device)]])
        quota = self.capacity // (2 * (task + 1))
        self.memory = torch.cat([pool[self.data.y[pool] == c][:quota] for c in range(2 * (task + 1))])


class SI(Learner):
    """Synaptic intelligence: the path integral at every step, by the gradient of the data term."""

    strength, damping = 1.0, 0.1

    def __init__(self, data: Mnist, seed: int, layers: tuple[int, ...] = (400, 400)) -> None:
        super().__init__(data, seed, layers)
        self.path, self.importance = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.anchors = [p.detach().clone() for p in self.parameters]

    def step(self, rows: Tensor, task: int) -> None:
        """The penalty's gradient is known, so the data term's needs no second backward pass."""
        self.loss(rows, task).backward()
        before = [p.detach().clone() for p in self.parameters]
        data = [p.grad.clone() for p in self.parameters if p.grad is not None]
        with torch.no_grad():
            for p, i, a in zip(self.parameters, self.importance, self.anchors, strict=True):
                assert p.grad is not None
                p.grad.add_(i * (p - a), alpha=2 * self.strength)
            self.optimizer.step()
            for path, g, p, b in zip(self.path, data, self.parameters, before, strict=True):
                path.sub_(g * (p - b))

    def after(self, rows: Tensor, task: int) -> None:
        """The path becomes importance."""
        with torch.no_grad():
            for path, i, p, a in zip(self.path, self.importance, self.parameters, self.anchors, strict=True):
                i.add_(path / ((p - a).square() + self.damping))
                path.zero_()
                a.copy_(p)


class AGEM(Learner):
    """Averaged GEM: the gradient is projected where it opposes that of 256 stored samples."""

    capacity, samples = 1000, 256

    def step(self, rows: Tensor, task: int) -> None:
        """With the projection."""
        self.loss(rows, task).backward()
        if task:
            gradient = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
            drawn = self.memory[torch.randperm(len(self.memory), device=rows.device)[: self.samples]]
            self.optimizer.zero_grad()
            self.loss(drawn, task).backward()
            reference = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
            product = gradient @ reference
            if product < 0:
                gradient = gradient - product / (reference @ reference) * reference
            parts = gradient.split([p.numel() for p in self.parameters])
            for p, part in zip(self.parameters, parts, strict=True):
                p.grad = part.view_as(p)
        self.optimizer.step()

    def after(self, rows: Tensor, task: int) -> None:
        """Share the memory out among the classes seen."""
        pool = torch.cat([self.memory, rows[torch.randperm(len(rows), device=rows.device)]])
        quota = self.capacity // (2 * (task + 1))
        self.memory = torch.cat([pool[self.data.y[pool] == c][:quota] for c in range(2 * (task + 1))])


METHODS: dict[str, Callable[..., Learner]] = {
    "finetune": Learner, "l2": L2, "ewc": EWC, "replay": Replay, "si": SI, "a-gem": AGEM
}  # fmt: skip


def multiplying(work: Work, products: bool) -> Work:
    """The work, with this framework's products of matrices if asked."""

    def done() -> float:
        from continual.products import fast_products

        with fast_products():
            return work()

    return done if products else work


def pieces(place: Place) -> dict[str, Callable[..., Work]]:
    """``train``: Split MNIST."""
    data = load(place.root, place.limit, place.device)

    def train(method: str, layers: tuple[int, ...] = (400, 400), products: bool = False) -> Work:
        return multiplying(lambda: seconds(lambda: METHODS[method](data, 0, layers).train(), place.device), products)

    return {"train": train}


def main() -> None:
    """Time one method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--data", required=True, help="data root with MNIST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    try:
        data = load(given.data)
    except FileNotFoundError as error:
        parser.error(str(error))
    began = time.perf_counter()
    matrix = METHODS[given.method](data, given.seed).train()
    print(f"{given.method}: {time.perf_counter() - began:.2f} s, accuracy {matrix[-1].mean():.4f}")


if __name__ == "__main__":
    main()
