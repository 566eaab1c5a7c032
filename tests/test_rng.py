"""The counter-based generator: published vectors, an implementation in Python's integers, and what draws look like."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import zlib

import pytest
import torch
from scipy import stats

from continual.streams import rng
from continual.streams.rng import LOW32, Key, draw, drawn_together, draws, key, made, philox

VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
"""Random123's known answers for philox4x32-10: counter, key, output."""


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def reference(counter: list[int], two: list[int]) -> list[int]:
    """Philox 4x32-10 in Python's integers."""
    c, (k0, k1) = list(counter), two
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def tensors(numbers: list[int]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(number) for number in numbers)


@pytest.mark.parametrize(("counter", "two", "wanted"), VECTORS)
def test_published_vectors(counter: str, two: str, wanted: str) -> None:
    c0, c1, c2, c3 = tensors(words(counter))
    k0, k1 = tensors(words(two))
    assert [int(word) for word in philox((c0, c1, c2, c3), (k0, k1))] == words(wanted)
    assert reference(words(counter), words(two)) == words(wanted)


def test_random_counters_against_integers() -> None:
    numbers = random.Random(0)
    given = [[numbers.getrandbits(32) for _ in range(6)] for _ in range(200)]
    c0, c1, c2, c3, k0, k1 = torch.tensor(given).T
    got = torch.stack(philox((c0, c1, c2, c3), (k0, k1)), dim=-1)
    assert got.tolist() == [reference(row[:4], row[4:]) for row in given]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("many", range(6))
def test_whatever_has_a_shape_gives_it_to_all_words(many: int, mapped: bool) -> None:
    """One of counter and key is a row of numbers, or mapped, and the others are one number each."""
    numbers = random.Random(many)
    given = [torch.tensor(numbers.getrandbits(32)) for _ in range(6)]
    row = [numbers.getrandbits(32) for _ in range(7)]

    def found(one: torch.Tensor) -> torch.Tensor:
        c0, c1, c2, c3, k0, k1 = (*given[:many], one, *given[many + 1 :])
        return torch.stack(torch.broadcast_tensors(*philox((c0, c1, c2, c3), (k0, k1))), dim=-1)

    got = torch.vmap(found)(torch.tensor(row)) if mapped else found(torch.tensor(row))
    wanted = [[int(one) for one in (*given[:many], number, *given[many + 1 :])] for number in row]
    assert got.tolist() == [reference(one[:4], one[4:]) for one in wanted]


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 13])
@pytest.mark.parametrize(
    ("seed", "purpose", "task", "step"), [(0, "", 0, 0), (7, "shuffle", 3, 11), (2**31 - 1, "θ", 9, 10**9)]
)
def test_a_draw_is_the_blocks_of_its_counter(seed: int, purpose: str, task: int, step: int, n: int) -> None:
    blocks = [reference([block, step, task, 0], [seed, zlib.crc32(purpose.encode())]) for block in range(4)]
    assert draw(torch.tensor(seed), purpose, task, torch.tensor(step), n).tolist() == list(itertools.chain(*blocks))[:n]


KINDS = {
    "bits": lambda k: k.bits("a", 7),
    "uniform": lambda k: k.uniform("a", 2, 3),
    "integers": lambda k: k.integers("a", 5, 10),
    "normal": lambda k: k.normal("a", 3, 2),
    "an odd number of them": lambda k: k.normal("a", 3, 3),
    "permutation": lambda k: k.permutation("a", 9),
    "child": lambda k: k.child("x").child("y").uniform("a", 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_seeds_draws_what_each_seed_draws_alone(kind: str) -> None:
    seeds = [0, 1, 5, 2**31 - 1]
    alone = torch.stack([KINDS[kind](key(seed, 2, 3)) for seed in seeds])
    group = Key(torch.tensor(seeds), 2, torch.tensor(3))
    assert torch.equal(KINDS[kind](group), alone)
    mapped = torch.vmap(lambda seed: KINDS[kind](Key(seed, 2, torch.tensor(3))))(torch.tensor(seeds))
    assert torch.equal(mapped, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_drawn_at_once_are_the_steps_one_by_one(kind: str) -> None:
    alone = torch.stack([KINDS[kind](key(4, 1, step)) for step in range(6)])
    assert torch.equal(KINDS[kind](Key(torch.tensor(4), 1, torch.arange(6))), alone)
    mapped = torch.vmap(lambda step: KINDS[kind](Key(torch.tensor(4), 1, step)))(torch.arange(6))
    assert torch.equal(mapped, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_changes_no_number(kind: str) -> None:
    asked = key(4, 1, 2)
    wanted = KINDS[kind](asked)
    assert len(asked.wanted) == 1
    seeds, steps = torch.tensor([3, 4])[:, None], torch.arange(5)
    block = draws(seeds, asked.wanted, 1, steps)
    pooled = dataclasses.replace(asked, pool={name: drawn[1, 2] for name, drawn in block.items()}, wanted=set())
    assert torch.equal(KINDS[kind](pooled), wanted)
    assert not pooled.wanted, "what the pool has is drawn once"


def test_what_is_drawn_at_once_is_what_each_purpose_draws_by_itself() -> None:
    wanted = [(name, n, kind, 10) for n in (0, 1, 4, 14) for kind in ("bits", "uniform", "integers") for name in "ab"]
    wanted.append(("a", 6, "normal", 0))
    seeds, steps = torch.tensor([3, 4])[:, None], torch.arange(5)
    found = draws(seeds, wanted, 1, steps)
    assert found.keys() == set(wanted)
    for one, drawn in found.items():
        assert torch.equal(drawn, made(one, draw(seeds, one[0], 1, steps, one[1])))
        assert drawn.is_contiguous(), "a step takes one row of it"
    assert draws(seeds, [], 1, steps) == {}


@pytest.mark.parametrize("words", [1, 50, 2**17])
def test_keys_that_are_alike_draw_what_each_draws_by_itself(monkeypatch: pytest.MonkeyPatch, words: int) -> None:
    monkeypatch.setattr(rng, "AT_ONCE", words)  # one key at a time, two, all
    drawn: list[int] = []
    monkeypatch.setattr(rng, "draws", lambda seed, *rest: drawn.append(seed.numel()) or draws(seed, *rest))

    def numbers(one: Key) -> torch.Tensor:
        return torch.cat([one.uniform("a", 3, 4), one.child("x").normal("a", 6).expand(3, 6)], dim=1)

    seeds = [5, 3, 2**31 - 1, 0, 5]
    found = [numbers(one) for one in drawn_together([key(seed, 2).child("θ") for seed in seeds])]
    monkeypatch.undo()
    assert torch.equal(torch.stack(found), torch.stack([numbers(key(seed, 2).child("θ")) for seed in seeds]))
    assert max(drawn) == {1: 1, 50: 2, 2**17: 4}[words]
    assert len(list(drawn_together([key(1)]))) == 1


def test_what_the_pool_lacks_is_drawn_and_noted() -> None:
    pooled = dataclasses.replace(key(4), pool={("a", 5, "bits", 0): torch.zeros(5, dtype=torch.int64)})
    assert pooled.bits("a", 5).tolist() == [0] * 5
    assert torch.equal(pooled.bits("a", 4), key(4).bits("a", 4))
    assert torch.equal(pooled.child("x").bits("a", 5), key(4).child("x").bits("a", 5))
    assert pooled.wanted == {("a", 4, "bits", 0), ("x/a", 5, "bits", 0)}


def test_whatever_differs_in_a_key_gives_unrelated_numbers() -> None:
    n = 4000
    base = key(3, 1, 2)
    draws = {
        "base": base.uniform("a", n),
        "purpose": base.uniform("b", n),
        "task": key(3, 2, 2).uniform("a", n),
        "step": key(3, 1, 3).uniform("a", n),
        "seed": key(4, 1, 2).uniform("a", n),
        "task and step swapped": key(3, 2, 1).uniform("a", n),
        "child": base.child("x").uniform("a", n),
        "another child": base.child("y").uniform("a", n),
        "child's child": base.child("x").child("x").uniform("a", n),
    }
    for one, two in itertools.combinations(draws, 2):
        correlation = torch.corrcoef(torch.stack([draws[one], draws[two]]))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(n), (one, two)
    assert torch.equal(draws["child"], base.child("x").uniform("a", n))
    assert torch.equal(draws["base"], key(3, 1, 2).uniform("a", n)), "a draw leaves no trace"


def test_uniform_numbers() -> None:
    u = key(0).uniform("u", 100, 1000)
    assert u.dtype == torch.float32 and u.shape == (100, 1000)
    assert u.min() >= 0 and u.max() < 1
    n = u.numel()
    assert abs(u.double().mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / n)
    assert abs(u.double().var() - 1 / 12) < 4 * math.sqrt((1 / 80 - 1 / 144) / n)
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3


def test_the_extreme_words_stay_in_range() -> None:
    ends = torch.tensor([0, LOW32, LOW32 - 1, 0])
    assert made(("e", 4, "uniform", 0), ends).tolist() == [0.0, 1 - 2.0**-24, 1 - 2.0**-24, 0.0]
    assert made(("e", 4, "integers", 2**31 - 1), ends).tolist() == [0, 2**31 - 2, 2**31 - 2, 0]
    normal = made(("e", 4, "normal", 0), ends)
    assert normal.isfinite().all()
    assert normal.tolist() == [0, pytest.approx(math.sqrt(2 * 24 * math.log(2)), rel=1e-5), 0, 0]


@pytest.mark.parametrize("high", [1, 2, 6, 10])
def test_integers_are_alike_often(high: int) -> None:
    drawn = key(0).integers("i", 30_000, high)
    counts = torch.bincount(drawn, minlength=high)
    assert drawn.min() >= 0 and len(counts) == high
    assert high == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_the_bound_of_integers_may_be_a_tensor() -> None:
    high = torch.tensor([0, 1, 2, 1000, 2**31 - 1])
    drawn = torch.stack([key(seed).integers("i", 5, high) for seed in range(200)])
    assert (drawn[:, 0] == 0).all() and (drawn[:, 1] == 0).all()
    assert (drawn >= 0).all() and (drawn < high.clamp_min(1)).all()
    assert set(drawn[:, 2].tolist()) == {0, 1} and drawn[:, 4].max() > 2**30
    wanted = [[word * int(bound) // 2**32 for word, bound in zip(row, high, strict=True)]
              for row in (key(seed).bits("i", 5).tolist() for seed in range(200))]  # fmt: skip
    assert drawn.tolist() == wanted


def test_normal_numbers() -> None:
    z = key(0).normal("z", 200, 500)
    assert z.shape == (200, 500) and z.dtype == torch.float32
    n, flat = z.numel(), z.double().flatten()
    # the variances of the sample moments of a standard normal are 1, 2, 15, 96 over n
    for power, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs((flat**power).mean() - moment) < 4 * math.sqrt(variance / n), power
    assert stats.kstest(flat.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("n", [0, 1, 5, 6])
def test_normal_numbers_are_those_of_box_and_muller(n: int) -> None:
    """Of as many words, or one more; the second half of them are angles, which serve for a cosine and a sine."""
    words = key(2).bits("z", n + n % 2).tolist()
    first, second = (
        [(word >> 8) / 2**24 for word in part] for part in (words[: len(words) // 2], words[len(words) // 2 :])
    )
    wanted = [math.sqrt(-2 * math.log1p(-a)) * wave(2 * math.pi * b)
              for wave in (math.cos, math.sin) for a, b in zip(first, second, strict=True)][:n]  # fmt: skip
    torch.testing.assert_close(key(2).normal("z", n), torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_both_numbers_of_two_words_are_independent() -> None:
    a, b = key(0).normal("z", 2, 50_000).double()
    assert all(abs((a**i * b**j).mean() - (a**i).mean() * (b**j).mean()) < 0.03 for i in (1, 2) for j in (1, 2))


@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_a_permutation_has_every_number_once(n: int) -> None:
    for seed in range(3):
        assert sorted(key(seed).permutation("p", n).tolist()) == list(range(n))


def test_a_permutation_is_the_order_of_its_words() -> None:
    words = key(3).bits("p", 50).tolist()
    assert key(3).permutation("p", 50).tolist() == sorted(range(50), key=words.__getitem__)


def test_all_orders_of_three_are_alike_often() -> None:
    orders = Key(torch.tensor(0), 0, torch.arange(6000)).permutation("p", 3)
    counts = torch.bincount((orders * torch.tensor([9, 3, 1])).sum(-1))
    counts = counts[counts > 0]
    assert len(counts) == 6 and stats.chisquare(counts.numpy()).pvalue > 1e-3
