"""Exemplar memories: the reservoir against Vitter's loop, the balanced memory against counting."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from continual.conformance import Asked, small_stream
from continual.learning import exemplars
from continual.learning.exemplars import balanced, empty, reservoir
from continual.learning.strategy import Memory
from continual.strategies import Replay
from continual.streams.rng import Key, key
from continual.streams.stream import Samples, Stream


def none_seen() -> torch.Tensor:
    return torch.tensor(0)


def algorithm_r(stored: list[int], seen: int, rows: list[int], drawn: Key) -> tuple[list[int], int]:
    """Algorithm R (Vitter 1985), sample by sample: the n-th that comes by takes slot ⌊n u⌋, if there is such a slot."""
    words = drawn.bits("reservoir", len(rows)).tolist()
    stored = list(stored)
    for row, word in zip(rows, words, strict=True):
        seen += 1
        if seen <= len(stored):
            stored[seen - 1] = row
            continue
        slot = seen * word // 2**32
        if slot < len(stored):
            stored[slot] = row
    return stored, seen


# ---- the reservoir


BATCHES = {
    "one by one": [1] * 12,
    "fills in one batch": [10, 10, 10],
    "uneven": [3, 9, 1, 20, 2],
    "much larger than the memory": [40],
    "one empty": [4, 0, 4],
}


@pytest.mark.parametrize("capacity", [1, 2, 7, 10, 50])
@pytest.mark.parametrize("sizes", BATCHES.values(), ids=list(BATCHES))
@pytest.mark.parametrize("seed", range(3))
def test_the_reservoir_is_algorithm_r(seed: int, sizes: list[int], capacity: int) -> None:
    stored, seen = empty(capacity, torch.zeros(1)), none_seen()
    wanted, count = [-1] * capacity, 0
    for step, size in enumerate(sizes):
        rows = torch.arange(count, count + size) + 100
        drawn = key(seed, task=1, step=step)
        stored, seen = reservoir(stored, seen, rows, drawn)
        wanted, count = algorithm_r(wanted, count, rows.tolist(), drawn)
        assert stored.tolist() == wanted and int(seen) == count
        assert stored.dtype == torch.int64 and seen.shape == ()


@pytest.mark.parametrize("seed", range(5))
def test_a_row_that_comes_twice_in_a_batch_counts_twice(seed: int) -> None:
    stored, seen, wanted, count = empty(3, torch.zeros(1)), none_seen(), [-1] * 3, 0
    for step in range(6):
        rows, drawn = [5, 5, step, 5, step], key(seed, step=step)
        stored, seen = reservoir(stored, seen, torch.tensor(rows), drawn)
        wanted, count = algorithm_r(wanted, count, rows, drawn)
        assert stored.tolist() == wanted
    assert int(seen) == count == 30


def test_a_later_sample_of_a_batch_overwrites_an_earlier_one() -> None:
    """Into a memory of one, the last that was drawn for its slot stays."""
    overwritten = 0
    for seed in range(50):
        rows = torch.arange(6)
        stored, _ = reservoir(empty(1, torch.zeros(1)), none_seen(), rows, key(seed))
        slots = [(n + 1) * word // 2**32 for n, word in enumerate(key(seed).bits("reservoir", 6).tolist())]
        hits = [n for n, slot in enumerate(slots) if slot == 0 or n == 0]
        assert stored.tolist() == [hits[-1]]
        overwritten += len(hits) > 1
    assert overwritten > 20


def many(capacity: int, sizes: list[int], seeds: int) -> torch.Tensor:
    """The memories of many seeds, mapped, after batches of rows 0, 1, 2, ...: (seeds, capacity)."""
    stored = torch.full((seeds, capacity), -1)
    seen, start = torch.zeros(seeds, dtype=torch.int64), 0
    for step, size in enumerate(sizes):
        rows = torch.arange(start, start + size)

        def one(
            stored: torch.Tensor, seen: torch.Tensor, seed: torch.Tensor, rows: torch.Tensor = rows, step: int = step
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return reservoir(stored, seen, rows, Key(seed, 0, torch.tensor(step)))

        stored, seen = torch.vmap(one)(stored, seen, torch.arange(seeds))
        start += size
    return stored


def test_mapped_over_seeds_it_is_the_same() -> None:
    sizes = [3, 9, 1, 20]
    together = many(6, sizes, 8)
    for seed in range(8):
        wanted, count = [-1] * 6, 0
        for step, size in enumerate(sizes):
            wanted, count = algorithm_r(wanted, count, list(range(count, count + size)), key(seed, step=step))
        assert together[seed].tolist() == wanted
    assert len({tuple(stored) for stored in together.tolist()}) == 8


@pytest.mark.parametrize("sizes", [[24], [5, 1, 10, 8], [6, 6, 6, 6]], ids=str)
def test_every_sample_and_every_pair_is_stored_equally_often(sizes: list[int]) -> None:
    seeds, capacity, n = 20_000, 6, 24
    stored = many(capacity, sizes, seeds)
    inside = torch.nn.functional.one_hot(stored, n).sum(1).double()
    assert (inside <= 1).all() and (inside.sum(1) == capacity).all()
    p = capacity / n
    assert ((inside.mean(0) - p).abs() < 4.5 * (p * (1 - p) / seeds) ** 0.5).all(), inside.mean(0)
    pairs = (inside.T @ inside / seeds)[~torch.eye(n, dtype=torch.bool)]
    q = p * (capacity - 1) / (n - 1)
    assert ((pairs - q).abs() < 5 * (q * (1 - q) / seeds) ** 0.5).all(), (pairs.min(), pairs.max(), q)


def test_the_reservoir_never_asks_the_host() -> None:
    stored, seen = empty(4, torch.zeros(1)), none_seen()
    with Asked() as asked:
        for step in range(3):
            stored, seen = reservoir(stored, seen, torch.arange(5) + step, key(0, step=step))
    assert not asked.found and (stored >= 0).all()


def test_the_memory_given_is_left_as_it_was() -> None:
    stored, seen, rows = empty(4, torch.zeros(1)), none_seen(), torch.arange(9)
    reservoir(stored, seen, rows, key(0))
    assert stored.tolist() == [-1] * 4 and int(seen) == 0 and rows.tolist() == list(range(9))


# ---- the balanced memory


def uneven_stream(scenario: str = "class", seed: int = 0) -> Stream:
    """Six classes with 9, 2, 7, 8, 5 and 6 training rows in three tasks."""
    y = torch.tensor([k for k, count in enumerate((9, 2, 7, 8, 5, 6)) for _ in range(count)])
    x = torch.zeros(len(y), 1, 2, 2, dtype=torch.uint8)
    return Stream.from_arrays(x, y, x, y, tasks=3, scenario=scenario).stream(seed)


def kinds(rows: torch.Tensor, samples: Samples) -> Counter[tuple[int, int]]:
    """How many rows there are of each class of each task."""
    return Counter((int(samples.task[row]), int(samples.y[row])) for row in rows.tolist() if row >= 0)


def fill(stream: Stream, capacity: int, quota: int | None = None) -> list[torch.Tensor]:
    """The memory after each task."""
    stored, after = empty(capacity, torch.zeros(1)), []
    for task in stream.tasks:
        stored = balanced(stored, task.train, task.samples, task.key, quota)
        after.append(stored)
    return after


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("capacity", [6, 7, 12, 13, 24, 200])
def test_equally_many_of_each_class_of_each_task(capacity: int, scenario: str) -> None:
    stream = small_stream(0, scenario)
    for index, stored in enumerate(fill(stream, capacity)):
        seen = [(t, 2 * t + k if scenario != "domain" else k) for t in range(index + 1) for k in range(2)]
        each = min(12, capacity // len(seen))
        assert kinds(stored, stream.samples) == dict.fromkeys(seen, each)
        own = [row for row in stored.tolist() if row >= 0]
        assert len(set(own)) == len(own) == each * len(seen), "no row is stored twice"
        assert stored.tolist() == own + [-1] * (capacity - len(own)) and len(stored) == capacity


def test_a_class_with_fewer_rows_than_its_quota_leaves_its_slots_empty() -> None:
    stream = uneven_stream()
    first, _, last = fill(stream, 18)
    assert kinds(first, stream.samples) == {(0, 0): 9, (0, 1): 2}
    assert kinds(last, stream.samples) == {(0, 0): 3, (0, 1): 2, (1, 2): 3, (1, 3): 3, (2, 4): 3, (2, 5): 3}


@pytest.mark.parametrize("quota", [1, 3, 8])
def test_a_fixed_quota_of_each(quota: int) -> None:
    stream = uneven_stream()
    counts = {(0, 0): 9, (0, 1): 2, (1, 2): 7, (1, 3): 8, (2, 4): 5, (2, 5): 6}
    for index, stored in enumerate(fill(stream, 6 * quota, quota)):
        assert kinds(stored, stream.samples) == {
            kind: min(quota, count) for kind, count in counts.items() if kind[0] <= index
        }


@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_quota_keeps_some_of_what_was_kept(seed: int) -> None:
    stream = small_stream(seed)
    first, second, third = (set(stored.tolist()) - {-1} for stored in fill(stream, 13))
    own = [set(task.train.tolist()) for task in stream.tasks]
    assert (second & own[0]) < first, "what was dropped does not come back"
    assert (third & own[0]) < second & own[0] and (third & own[1]) < second & own[1]
    assert first < own[0] and len(first) == 12 and len(third) == 12


@pytest.mark.parametrize("capacity", [1, 2, 3, 5])
def test_fewer_slots_than_classes_hold_at_most_one_of_each(capacity: int) -> None:
    stream = small_stream(0)
    for index, stored in enumerate(fill(stream, capacity)):
        found = kinds(stored, stream.samples)
        assert set(found.values()) == {1} or capacity >= 2 * (index + 1)
        if capacity < 2 * (index + 1):
            assert len(found) == capacity, "no slot stays empty"


def test_of_more_classes_than_slots_those_of_each_task_have_one_equally_often() -> None:
    seeds, times, stream = 600, Counter[int](), small_stream(0)
    for seed in range(seeds):
        stored = empty(2, torch.zeros(1))
        for index, task in enumerate(stream.tasks):
            stored = balanced(stored, task.train, task.samples, key(seed, task=index))
        times.update(stream.samples.y[stored].tolist())
    p = 2 / 6
    assert all(abs(times[y] - seeds * p) < 4 * (seeds * p * (1 - p)) ** 0.5 for y in range(6)), times


def test_rows_are_chosen_at_random_and_equally_often() -> None:
    seeds, times = 1000, Counter[int]()
    later = Counter[int]()
    stream = small_stream(0)
    for seed in range(seeds):
        stored = empty(6, torch.zeros(1))
        for index, task in enumerate(stream.tasks[:2]):
            stored = balanced(stored, task.train, task.samples, key(seed, task=index))
            (later if index else times).update(stored.tolist())
    for row in stream.tasks[0].train.tolist():
        for count, each in ((times[row], 3), (later[row], 1)):  # of 12 rows of its class
            p = each / 12
            assert abs(count - seeds * p) < 4.5 * (seeds * p * (1 - p)) ** 0.5, (row, count)


def test_the_balanced_memory_given_is_left_as_it_was() -> None:
    task = small_stream(0).tasks[0]
    stored = torch.tensor([3, -1, -1, -1])
    got = balanced(stored, task.train, task.samples, task.key)
    assert stored.tolist() == [3, -1, -1, -1] and got is not stored


# ---- as replay uses them


def replayed(strategy: Replay, stream: Stream) -> list[Memory]:
    theta = torch.zeros(4)
    memory, after = strategy.init(None, theta, stream), []  # type: ignore[arg-type]
    for task in stream.tasks:
        _, memory = strategy.after_task(None, theta, memory, task)  # type: ignore[arg-type]
        after.append(memory)
    return after


@pytest.mark.parametrize("scenario", ["class", "domain"])
@pytest.mark.parametrize("capacity", [1, 4])
def test_replay_with_a_capacity_for_each_class(capacity: int, scenario: str) -> None:
    stream = small_stream(0, scenario)
    for index, memory in enumerate(replayed(Replay(capacity=capacity, per_class=True), stream)):
        assert memory["rows"].shape == (6 * capacity,)
        found = kinds(memory["rows"], stream.samples)
        assert len(found) == 2 * (index + 1) and set(found.values()) == {capacity}


def test_replay_with_a_capacity_in_all() -> None:
    stream = small_stream(0)
    counts = [sum(kinds(memory["rows"], stream.samples).values()) for memory in replayed(Replay(capacity=11), stream)]
    assert counts == [10, 8, 6], "slots that do not divide among the classes stay empty"


def test_an_empty_memory() -> None:
    assert exemplars.empty(3, torch.zeros(2)).tolist() == [-1] * 3
    assert exemplars.empty(3, torch.zeros(2)).dtype == torch.int64
