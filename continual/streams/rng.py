"""Randomness as a pure function of (seed, purpose, task, step): Philox 4x32-10 in tensor operations.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". A draw depends on nothing that was drawn before, so
it is the same on every device, for one seed or for a group, and a resumed run has no generator state to restore.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Draw = tuple[str, int, str, int]
"""What is asked for: its purpose, of how many words it is made, what it is (bits, uniform, integers or normal), and for
integers their bound."""
LOW32 = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
AT_ONCE, AT_ONCE_ON_GPU = 2**19, 2**24
"""Words that are drawn at once for several keys: those that a processor keeps near, or that keep a GPU at work."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words for each counter: int64 tensors that hold 32-bit words, of any shapes that broadcast.

    int64 products wrap modulo 2^64, which leaves the 64 bits of an unsigned product as they should be. The upper halves
    of the second and the fourth word stay as they come, until the end.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for number in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        h0, h1 = p0 >> 32, p1 >> 32
        if number < 3:
            c0, c2 = (h1 ^ c1 ^ k0) & LOW32, (h0 ^ c3 ^ k1) & LOW32
        else:  # all that is given has gone into c0 and c2 by now, which have the shape of the whole: no more memory
            c0, c2 = (h.bitwise_xor_(c).bitwise_xor_(k).bitwise_and_(LOW32) for h, c, k in ((h1, c1, k0), (h0, c3, k1)))
        c1, c3 = p1, p0
        k0, k1 = (k0 + WEYL[0]) & LOW32, (k1 + WEYL[1]) & LOW32
    return c0, c1 & LOW32, c2, c3 & LOW32


def draw(seed: Tensor, purpose: str, task: int | Tensor, step: Tensor, n: int) -> Tensor:
    """``n`` words of 32 random bits as int64, shape ``(*S, n)``, where ``seed`` and ``step`` broadcast to S."""
    return _words(seed, [(purpose, n)], task, step)[0]


def draws(seed: Tensor, wanted: Iterable[Draw], task: int | Tensor, step: Tensor) -> dict[Draw, Tensor]:
    """All that is wanted, shape ``(*S, m)`` each; at once it takes little longer than one."""
    asked = sorted(wanted)
    words = _words(seed, [(purpose, n) for purpose, n, *_ in asked], task, step) if asked else []
    return {one: made(one, found) for one, found in zip(asked, words, strict=True)}


def at_once(wanted: Iterable[Draw], seed: Tensor) -> int:
    """For how many keys, each of as many seeds as are given, all that is wanted is best drawn at once."""
    words = seed.numel() * sum(n for _, n, *_ in wanted)
    return max(1, (AT_ONCE_ON_GPU if seed.is_cuda else AT_ONCE) // max(1, words))


def _words(seed: Tensor, asked: Sequence[tuple[str, int]], task: int | Tensor, step: Tensor) -> list[Tensor]:
    """For each purpose its words (*S, n)."""
    zero, lengths = torch.zeros((), dtype=torch.int64, device=seed.device), [math.ceil(n / 4) for _, n in asked]
    blocks = torch.cat([torch.arange(length, device=seed.device) for length in lengths])
    keys = [zero + zlib.crc32(purpose.encode()) for purpose, _ in asked]
    # one number where all blocks have the same: a draw may be large
    key = keys[0] if len(keys) == 1 else torch.cat([one.expand(n) for one, n in zip(keys, lengths, strict=True)])
    words = philox((blocks, step[..., None], zero + task, zero), (seed[..., None], key))
    found = torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(-2).split([4 * n for n in lengths], dim=-1)
    return [part[..., :n] for part, (_, n) in zip(found, asked, strict=True)]


def made(asked: Draw, words: Tensor) -> Tensor:
    """The numbers (..., m) that are made of words (..., n); n is even where they are normal."""
    _, n, kind, high = asked
    if kind == "bits":
        return words.contiguous()
    if kind == "integers":
        return (words * high) >> 32
    uniform = (words >> 8).float().mul(2.0**-24)
    if kind == "uniform":
        return uniform
    first, second = uniform[..., : n // 2], uniform[..., n // 2 :]
    length, angle = torch.sqrt(-2 * torch.log1p(-first)), 2 * math.pi * second
    return torch.cat([length * torch.cos(angle), length * torch.sin(angle)], -1)


@dataclass(frozen=True)
class Key:
    """The counter of the generator for one learner at one step (or one task), from which a hook draws.

    ``seed`` and ``step`` are int64 tensors of shape () (or of the same batch shape), and in a step so is ``task``.
    ``pool`` may hold draws that were made in bulk, which cost less than one by one; what is asked for is noted in
    ``wanted``. The numbers are the same with and without a pool.
    """

    seed: Tensor
    task: int | Tensor
    step: Tensor
    path: str = ""
    pool: dict[Draw, Tensor] = field(default_factory=dict)
    wanted: set[Draw] = field(default_factory=set)

    def child(self, name: str) -> Key:
        """A key with draws of its own, so that two parts that ask for the same purpose get different numbers."""
        return replace(self, path=f"{self.path}{name}/")

    def _drawn(self, asked: Draw) -> Tensor:
        if asked in self.pool:
            return self.pool[asked]
        self.wanted.add(asked)
        return made(asked, draw(self.seed, asked[0], self.task, self.step, asked[1]))

    def bits(self, purpose: str, n: int) -> Tensor:
        """``n`` words of 32 random bits, int64."""
        return self._drawn((self.path + purpose, n, "bits", 0))

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Float32 numbers in [0, 1), of 24 random bits each."""
        found = self._drawn((self.path + purpose, math.prod(shape), "uniform", 0))
        return found.reshape(*found.shape[:-1], *shape)

    def integers(self, purpose: str, n: int, high: int | Tensor) -> Tensor:
        """``n`` integers in [0, high), with replacement; ``high`` is below 2^31 and may be a tensor (0 gives 0)."""
        if isinstance(high, int):
            return self._drawn((self.path + purpose, n, "integers", high))
        return (self.bits(purpose, n) * high) >> 32

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Float32 standard normal numbers, two for each two words (Box and Muller 1958)."""
        count = math.prod(shape)
        found = self._drawn((self.path + purpose, count + count % 2, "normal", 0))[..., :count]
        return found.reshape(*found.shape[:-1], *shape)

    def permutation(self, purpose: str, n: int) -> Tensor:
        """A random order of 0..n-1, int64: the ranks of ``n`` random words (ties stay in order)."""
        return torch.sort(self.bits(purpose, n), dim=-1, stable=True).indices


def key(seed: int | Tensor, task: int = 0, step: int | Tensor = 0, device: torch.device | str | None = None) -> Key:
    """A key from plain numbers."""
    return Key(torch.as_tensor(seed, device=device), task, torch.as_tensor(step, device=device))


def seed_pytorch(device: torch.device, *place: int | str) -> None:
    """Let PyTorch's generators, on the processor and on the device, go on with what is a function of the place alone.

    So it is with whatever draws from them and not from a key, such as ``nn.Dropout``.
    """
    words = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    for one in _generators(device):
        one.manual_seed(int.from_bytes(words, "little"))


def _generators(device: torch.device) -> list[torch.Generator]:
    if device.type != "cuda":
        return [torch.default_generator]
    number = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[number]]


def pytorch_left_alone(device: torch.device) -> AbstractContextManager[None]:
    """After it, PyTorch's generators are as they were before."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def drawn_together(keys: Sequence[Key]) -> Iterator[Key]:
    """Keys that differ in their seeds alone, each to be drawn from before the next is taken.

    What the first is asked for is drawn for the others together, which costs less where a draw is small.
    """
    first, *others = keys
    yield first
    size = at_once(first.wanted, first.seed)
    for group in (others[start : start + size] for start in range(0, len(others), size)):
        seeds = torch.stack([one.seed for one in group])
        drawn = draws(seeds, first.wanted, first.task, first.step)
        for number, one in enumerate(group):
            yield replace(one, pool={name: found[number] for name, found in drawn.items()})
