"""Streams against what numpy and loops say of the same arrays."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import continual as cl
from continual import plugins
from continual.errors import BadData, BadOption, BadStream
from continual.learning.models import MLP
from continual.streams.benchmark import Benchmark, Sequence
from continual.streams.data import Data, joined
from continual.streams.given import Given
from continual.streams.placement import place
from continual.streams.rng import key
from continual.streams.stream import (
    Permuted,
    Split,
    Stream,
    Task,
    _some,
    class_order,
    permuted,
    rotated,
    set_aside,
    split,
)
from continual.streams.transforms import Permute, Transform

LABELS = (2, 3, 5, 7, 11)  # named so, and numbered 0..4
COUNTS, TEST_COUNTS = (9, 4, 12, 7, 5), (3, 2, 4, 1, 3)
SCENARIOS = ("task", "domain", "class")


def arrays(seed: int = 0) -> tuple[np.ndarray[Any, Any], ...]:
    """Shuffled images of 3x4 pixels, all different, and their labels: x, y, x_test, y_test."""
    numbers = np.random.default_rng(seed)
    parts = []
    for counts in (COUNTS, TEST_COUNTS):
        y = numbers.permutation(np.repeat(LABELS, counts))
        parts += [numbers.integers(0, 256, (len(y), 1, 3, 4), dtype=np.uint8), y]
    return tuple(parts)


X, Y, X_TEST, Y_TEST = arrays()


def data(classes: int = 5, size: int = 4, each: int = 6, pixels: int = 0) -> Data:
    """Square images, ``each`` of every class."""
    numbers = np.random.default_rng(pixels)
    y = np.repeat(np.arange(classes), each)
    x, x_test = numbers.integers(0, 256, (2, len(y), 1, size, size), dtype=np.uint8)
    return Data.from_arrays(x, y, x_test, y, name="squares")


def made(**options: Any) -> Stream:
    return Stream.from_arrays(X, Y, X_TEST, Y_TEST, **options)


def classes_of(task: Task) -> list[int]:
    return [int(name) for name in task.classes]


def pictures(stream: Stream, rows: torch.Tensor, test: bool = False) -> np.ndarray[Any, Any]:
    samples = stream.test_samples if test else stream.samples
    return samples.images(rows, torch.float64).numpy()


# ---- rows, labels, units


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"order": "seed"}, {"order": (4, 2, 0, 1, 3)}, {"validation": 0.3}], ids=str)
def test_every_sample_is_in_one_place_with_its_image_and_its_unit(
    scenario: str, tasks: int, options: dict[str, Any]
) -> None:
    stream = made(scenario=scenario, tasks=tasks, seed=3, **options)
    assert [task.index for task in stream.tasks] == list(range(tasks)) == list(range(stream.tasks[0].count))
    names = list(itertools.chain(*(classes_of(task) for task in stream.tasks)))
    assert sorted(names) == sorted(LABELS)
    for x, y, samples, groups in (
        (X, Y, stream.samples, [(task.train, task.validation) for task in stream.tasks]),
        (X_TEST, Y_TEST, stream.test_samples, [(task.test,) for task in stream.tasks]),
    ):
        used: Counter[int] = Counter()
        for task, parts in zip(stream.tasks, groups, strict=True):
            rows = torch.cat(parts)
            shown = samples.images(rows, torch.float64).numpy()
            np.testing.assert_allclose(shown, x[samples.image[rows].numpy()] / 255, rtol=1e-12)
            for row in rows.tolist():
                image = int(samples.image[row])
                used[image] += 1
                own = classes_of(task)
                unit = own.index(y[image]) if scenario == "domain" else names.index(y[image])
                assert int(samples.y[row]) == unit and int(samples.task[row]) == task.index
        assert used == Counter(range(len(y))), "disjoint and complete"


@pytest.mark.parametrize(("tasks", "sizes"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (4, [2, 1, 1, 1]), (5, [1] * 5)])
def test_classes_that_do_not_divide_evenly(tasks: int, sizes: list[int]) -> None:
    stream = made(tasks=tasks)
    assert [len(task.classes) for task in stream.tasks] == sizes
    assert list(itertools.chain(*(classes_of(task) for task in stream.tasks))) == list(LABELS), "in natural order"
    assert stream.units == 5 and made(tasks=tasks, scenario="domain").units == sizes[0]
    for task in stream.tasks:
        assert len(task.train) == sum(COUNTS[LABELS.index(label)] for label in classes_of(task))
        assert len(task.test) == sum(TEST_COUNTS[LABELS.index(label)] for label in classes_of(task))
        assert len(task.validation) == 0


@pytest.mark.parametrize(("tasks", "first", "sizes"), [
    (1, 5, [5]), (2, 1, [1, 4]), (2, 4, [4, 1]), (3, 1, [1, 2, 2]), (3, 2, [2, 2, 1]), (3, 3, [3, 1, 1]),
    (5, 1, [1] * 5),
])  # fmt: skip
def test_the_first_task_may_have_more(tasks: int, first: int, sizes: list[int]) -> None:
    for order in ("natural", (4, 2, 0, 1, 3)):
        stream = made(tasks=tasks, first=first, order=order)
        found = [classes_of(task) for task in stream.tasks]
        assert list(map(len, found)) == sizes
        assert list(itertools.chain(*found)) == [LABELS[n] for n in (order if order != "natural" else range(5))]


def test_icarls_order_is_the_one_that_its_successors_print() -> None:
    """The first classes of CIFAR-100, as FACIL and PyCIL have them."""
    assert class_order("icarl", 100, 3)[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    assert sorted(class_order("icarl", 10, 0)) == list(range(10)) != class_order("icarl", 10, 0)
    tasks = made(tasks=5, order="icarl").tasks
    assert [classes_of(task) for task in tasks] == [[LABELS[place]] for place in class_order("icarl", 5, 0)]


@dataclass(frozen=True)
class HalfThenOne(Split):
    """Half of the classes, and then one by one."""

    def groups(self, classes: int, seed: int, name: str) -> list[list[int]]:
        return [list(range(classes // 2)), *([place] for place in range(classes // 2, classes))]


def test_classes_that_are_divided_in_another_way_come_in_the_order_that_is_asked_for() -> None:
    asked: list[tuple[Any, list[int]]] = [("natural", [0, 1, 2, 3, 4]), ((4, 2, 0, 1, 3), [4, 2, 0, 1, 3])]
    asked.append(("seed", class_order("seed", 5, 6)))
    assert asked[2][1] != asked[0][1]
    for order, places in asked:
        tasks = HalfThenOne(tasks=4, order=order).build(data(), 6).tasks
        groups = [places[:2], *([place] for place in places[2:])]
        assert [task.classes for task in tasks] == [tuple(map(str, group)) for group in groups]
    with pytest.raises(BadStream, match=r"HalfThenOne\.groups divides its classes into 4 tasks, and tasks is 5; give"):
        HalfThenOne(tasks=5).build(data())


@dataclass(frozen=True)
class Beyond(Split):
    """A class that is not there."""

    def groups(self, classes: int, seed: int, name: str) -> list[list[int]]:
        return [[0, 1, 2], [3, classes]]


@pytest.mark.parametrize("wrong", [5, -1, 2.0, True, "1", None])
def test_places_that_are_none_are_refused(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [[0, 1, 2], [] if wrong is None else [3, wrong]]
    monkeypatch.setattr(Beyond, "groups", lambda *given: groups)
    with pytest.raises(
        BadStream, match=r"Beyond\.groups gives .*; it takes a list for each task of one number or more f"
    ):
        Beyond(tasks=2).build(data())


def test_a_first_task_that_groups_of_ones_own_do_not_have_is_refused() -> None:
    with pytest.raises(BadStream, match=r"HalfThenOne\.groups has a first task of 2 classes, and first is 3; leave it"):
        HalfThenOne(tasks=4, first=3).build(data())
    assert len(HalfThenOne(tasks=4, first=2).build(data()).tasks[0].classes) == 2


def test_places_may_be_numpy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Beyond, "groups", lambda *given: [np.arange(3).tolist(), list(np.arange(3, 5))])
    assert [len(task.classes) for task in Beyond(tasks=2).build(data()).tasks] == [3, 2]


def test_a_given_order() -> None:
    stream = made(tasks=2, order=(4, 2, 0, 1, 3))
    assert [classes_of(task) for task in stream.tasks] == [[11, 5, 2], [3, 7]]


def test_an_order_drawn_by_the_seed() -> None:
    def order(seed: int) -> tuple[int, ...]:
        return tuple(itertools.chain(*(classes_of(task) for task in made(tasks=2, order="seed", seed=seed).tasks)))

    orders = [order(seed) for seed in range(20)]
    assert orders == [order(seed) for seed in range(20)]
    assert all(sorted(one) == sorted(LABELS) for one in orders) and len(set(orders)) > 12


@pytest.mark.parametrize("active", ["default", "task", "seen", "all"])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("tasks", [2, 3])
def test_active_outputs(scenario: str, active: str, tasks: int) -> None:
    stream = made(scenario=scenario, tasks=tasks, train_outputs=active)
    kind = {"task": "task", "class": "seen", "domain": "all"}[scenario] if active == "default" else active
    sizes = [len(task.classes) for task in stream.tasks]
    own = [
        set(range(n)) if scenario == "domain" else {sum(sizes[:t]) + i for i in range(n)} for t, n in enumerate(sizes)
    ]
    samples = torch.tensor([0, tasks - 1, 0, 1])
    scores = key(0).normal("s", 4, stream.units).double()
    for task in stream.tasks:
        seen = set.union(*own[: task.index + 1])
        assert set(task.own_units.nonzero().flatten().tolist()) == own[task.index]
        assert set(task.seen_units.nonzero().flatten().tolist()) == seen
        got = task.outputs.apply(scores, task.index, samples)
        for b, sample_task in enumerate(samples.tolist()):
            allowed = {"task": own[sample_task], "seen": seen, "all": set(range(stream.units))}[kind]
            for k in range(stream.units):
                assert got[b, k] == (scores[b, k] if k in allowed else torch.finfo(torch.float64).min)
        assert (task.outputs.mask(task.index, samples) is None) == (kind == "all")


def test_outputs_in_training_and_in_evaluation_are_chosen_apart() -> None:
    stream = made(scenario="class", train_outputs="task")
    assert (stream.tasks[0].outputs.active, stream.test_outputs.active) == ("task", "seen")
    stream = made(scenario="class", test_outputs="all")
    assert (stream.tasks[0].outputs.active, stream.test_outputs.active) == ("seen", "all")


# ---- validation, limit


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_a_fraction_of_every_class_is_set_aside(fraction: float) -> None:
    stream = made(tasks=2, validation=fraction)
    held = np.concatenate([Y[stream.samples.image[task.validation].numpy()] for task in stream.tasks])
    assert Counter(held.tolist()) == +Counter({a: int(fraction * n) for a, n in zip(LABELS, COUNTS, strict=True)})


def test_which_rows_are_set_aside_depends_on_their_own_seed_only() -> None:
    def held(**options: Any) -> set[int]:
        stream = made(tasks=5, validation=0.5, **options)
        return {int(stream.samples.image[row]) for task in stream.tasks for row in task.validation}

    one = held(validation_seed=0)
    assert one == held(validation_seed=0, seed=7) == held(validation_seed=0, scenario="task", order="seed", seed=2)
    assert len({frozenset(held(validation_seed=seed)) for seed in range(8)}) == 8


@pytest.mark.parametrize("validation", [0.0, 0.5])
@pytest.mark.parametrize("limit", [1, 4, 5, 100])
def test_at_most_so_many_training_rows_of_each_class(limit: int, validation: float) -> None:
    stream, full = (made(tasks=2, validation=validation, limit=given) for given in (limit, None))
    for task, whole in zip(stream.tasks, full.tasks, strict=True):
        assert torch.equal(task.test, whole.test)
        # half of the rows are set aside, so as many are left of those as of the others
        for got, rows in ((task.train, whole.train), (task.validation, whole.validation)):
            images = full.samples.image[rows].tolist()  # a task's rows are in the data's order
            labels = Y[images].tolist()
            wanted = [image for n, image in enumerate(images) if labels[:n].count(labels[n]) < limit]
            assert stream.samples.image[got].tolist() == wanted


@pytest.mark.parametrize("scenario", ["domain", "class"])
@pytest.mark.parametrize("validation", [0.0, 0.5])
def test_what_a_limit_leaves_may_be_drawn(scenario: str, validation: float) -> None:
    """By the seed alike in all tasks, or in each task anew; of each class as many as the limit says."""
    given = Data.from_arrays(X, Y, X_TEST, Y_TEST)

    def kept(seed: int, **options: Any) -> list[tuple[int, ...]]:
        whole = Permuted(scenario=scenario, tasks=3, validation=validation, limit=2, **options)  # type: ignore[arg-type]
        stream, found = whole.build(given, seed), []
        for task in stream.tasks:
            for rows in (task.train, task.validation):
                images = stream.samples.image[rows].tolist()
                assert not len(rows) or Counter(Y[images].tolist()) == Counter(dict.fromkeys(LABELS, 2))
            found.append(tuple(sorted(stream.samples.image[task.train].tolist())))
        return found

    first, by_seed, by_task = ([kept(seed, **how) for seed in range(6)]
                               for how in ({}, {"limit_by": "seed"}, {"limit_by": "task"}))  # fmt: skip
    assert len({images for one in first for images in one}) == 1
    assert all(len(set(one)) == 1 for one in by_seed) and len({one[0] for one in by_seed}) == 6
    assert len({images for one in by_task for images in one}) == 18
    assert by_task == [kept(seed, limit_by="task") for seed in range(6)]


@pytest.mark.parametrize("name", plugins.registered("benchmarks"))
def test_what_a_limit_leaves_needs_one(name: str) -> None:
    with pytest.raises(BadOption, match="without limit"):
        plugins.find("benchmarks", name).read({"limit_by": "task"}, owner=name)
    with pytest.raises(BadOption, match="without limit"):
        made(limit_by="task")


@pytest.mark.parametrize(
    ("fraction", "limit", "wanted"), [(0.2, 20, 5), (0.2, 10, 2), (0.1, 3, 1), (0.75, 5, 15), (0.2, 172, 43)]
)
def test_as_many_validation_rows_as_belong_to_the_training_rows(fraction: float, limit: int, wanted: int) -> None:
    y = np.arange(600) % 2
    stream = Stream.from_arrays(np.zeros((600, 3)), y, np.zeros((2, 3)), [0, 1], tasks=2, validation=fraction,
                                limit=limit)  # fmt: skip
    assert [(len(task.train), len(task.validation)) for task in stream.tasks] == [(limit, wanted)] * 2


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("test_limit", [1, 3, 100])
def test_at_most_so_many_test_rows_of_each_class(test_limit: int, scenario: str) -> None:
    stream, full = (made(tasks=2, scenario=scenario, limit=2, test_limit=given) for given in (test_limit, None))
    for task, whole in zip(stream.tasks, full.tasks, strict=True):
        assert torch.equal(task.train, whole.train)
        images = full.test_samples.image[whole.test].tolist()  # a task's rows are in the data's order
        labels = Y_TEST[images].tolist()
        wanted = [image for n, image in enumerate(images) if labels[:n].count(labels[n]) < test_limit]
        assert stream.test_samples.image[task.test].tolist() == wanted


# ---- pixels


@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("normalize", ["unit", "standard"])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_normalisation_and_padding_against_numpy(kind: str, normalize: str, pad: int) -> None:
    x, x_test = (X, X_TEST) if kind == "uint8" else ((X / 100).astype(np.float32), (X_TEST / 100).astype(np.float32))
    stream = Stream.from_arrays(x, Y, x_test, Y_TEST, tasks=1, normalize=normalize, pad=pad)
    around = ((0, 0), (0, 0), (pad, pad), (pad, pad))
    wide, wide_test = (np.pad(part.astype(np.float64), around) for part in (x, x_test))
    top = 255 if kind == "uint8" else 1
    shift, scale = (0.0, top) if normalize == "unit" else (wide.mean(), wide.std())
    (task,) = stream.tasks
    assert stream.shape == (1, 3 + 2 * pad, 4 + 2 * pad)
    for shown, raw, image in (
        (pictures(stream, task.train), wide, stream.samples.image[task.train]),
        (pictures(stream, task.test, test=True), wide_test, stream.test_samples.image[task.test]),
    ):
        np.testing.assert_allclose(shown, (raw[image.numpy()] - shift) / scale, rtol=1e-6, atol=1e-9)
    single = stream.samples.images(task.train, torch.float32)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), pictures(stream, task.train), rtol=1e-5, atol=1e-6)


def test_standardised_pixels_have_mean_0_and_deviation_1() -> None:
    stream = made(tasks=1, normalize="standard")
    shown = pictures(stream, stream.tasks[0].train)
    assert abs(shown.mean()) < 1e-9 and abs(shown.std() - 1) < 1e-9


# ---- permuted


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_permuted_tasks_have_all_classes_and_the_first_shows_images_as_they_are(scenario: str) -> None:
    source = data()
    stream = permuted(source, tasks=3, scenario=scenario, seed=1)
    assert stream.units == (5 if scenario == "domain" else 15)
    flat, orders = source.x.flatten(1).double() / 255, []
    for task in stream.tasks:
        assert task.classes == source.classes and len(task.train) == len(source.y) == len(task.test)
        image = stream.samples.image[task.train]
        assert torch.equal(image, torch.arange(len(source.y)))
        offset = 0 if scenario == "domain" else 5 * task.index
        assert torch.equal(stream.samples.y[task.train], source.y + offset)
        shown = torch.from_numpy(pictures(stream, task.train)).flatten(1)
        # brute force: the source of a pixel is the column that equals it in every image
        equal = (shown[:, :, None] - flat[:, None, :]).abs().amax(0) < 1e-9
        assert (equal.sum(0) == 1).all() and (equal.sum(1) == 1).all(), "one order of the pixels for all images"
        orders.append(tuple(equal.int().argmax(1).tolist()))
        shown_test = torch.from_numpy(pictures(stream, task.test, test=True)).flatten(1)
        wanted = source.x_test.flatten(1).double()[:, list(orders[-1])] / 255
        torch.testing.assert_close(shown_test, wanted, rtol=1e-12, atol=1e-12)
    assert orders[0] == tuple(range(16)) and len(set(orders)) == 3


def test_the_orders_of_pixels_come_from_the_seed_or_from_one_of_their_own() -> None:
    def table(**options: Any) -> torch.Tensor:
        return permuted(data(), tasks=3, **options).samples.transforms[0].table

    assert torch.equal(table(seed=1), table(seed=1)) and not torch.equal(table(seed=1), table(seed=2))
    assert torch.equal(table(seed=1, permutation_seed=5), table(seed=2, permutation_seed=5))
    assert torch.equal(table(seed=1, permutation_seed=5), table(seed=5))


def test_a_table_of_pixels_has_the_source_of_each() -> None:
    """For all channels of an image together."""
    x, tasks = key(0).normal("x", 4, 2, 3, 3), torch.tensor([1, 0, 2, 1])
    table = torch.stack([key(1, task=t).permutation("pixels", 18) for t in range(3)])
    for image, task, got in zip(x, tasks, Permute(table)(x, tasks), strict=True):
        assert got.flatten().tolist() == [float(image.flatten()[source]) for source in table[task]]


@pytest.mark.parametrize("normalize", ["unit", "standard"])
def test_padded_images_are_permuted_with_their_padding(normalize: str) -> None:
    source = data()
    stream = permuted(source, tasks=2, pad=1, normalize=normalize)
    assert stream.shape == (1, 6, 6)
    first, second = (pictures(stream, task.train) for task in stream.tasks)
    assert first.shape == second.shape == (30, 1, 6, 6)
    assert not np.allclose(first, second)
    np.testing.assert_allclose(np.sort(first.reshape(30, -1)), np.sort(second.reshape(30, -1)), atol=1e-9)
    moved = (second == first.min()).all((0, 1))
    assert moved.sum() == 20 and not np.array_equal(moved, (first == first.min()).all((0, 1))), "the border moves too"


# ---- rotated


def test_quarter_turns_are_those_of_rot90() -> None:
    source = data()
    stream = rotated(source, angles=(0, 90, 180, 270))
    wanted = source.x.double() / 255
    for quarters, task in enumerate(stream.tasks):
        shown = torch.from_numpy(pictures(stream, task.train))
        torch.testing.assert_close(shown, torch.rot90(wanted, quarters, (2, 3)), rtol=1e-5, atol=1e-5)
        shown_test = torch.from_numpy(pictures(stream, task.test, test=True))
        torch.testing.assert_close(
            shown_test, torch.rot90(source.x_test.double() / 255, quarters, (2, 3)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (6, 4)])
@pytest.mark.parametrize("angle", [30, 45, 200])
def test_a_turn_by_any_angle_is_bilinear_with_black_outside(angle: int, shape: tuple[int, int]) -> None:
    y, (height, width) = np.repeat(np.arange(2), 3), shape
    x, x_test = np.random.default_rng(0).integers(0, 256, (2, len(y), 1, height, width), dtype=np.uint8)
    source = Data.from_arrays(x, y, x_test, y)
    stream = rotated(source, angles=(0, angle))
    shown = pictures(stream, stream.tasks[1].train)
    image, a = source.x.numpy() / 255, np.deg2rad(angle)

    def pixel(n: int, i: int, j: int) -> float:
        return float(image[n, 0, i, j]) if 0 <= i < height and 0 <= j < width else 0.0

    for n, i, j in itertools.product(range(3), range(height), range(width)):
        # counter-clockwise with y upwards: the source of a place is the place turned back
        right, up = j - (width - 1) / 2, (height - 1) / 2 - i
        u = np.cos(a) * right + np.sin(a) * up + (width - 1) / 2
        v = (height - 1) / 2 - (-np.sin(a) * right + np.cos(a) * up)
        left, top = int(np.floor(u)), int(np.floor(v))
        wanted = sum(
            pixel(n, top + di, left + dj) * (1 - abs(v - top - di)) * (1 - abs(u - left - dj))
            for di, dj in itertools.product((0, 1), (0, 1))
        )
        assert shown[n, 0, i, j] == pytest.approx(wanted, abs=1e-5)


def test_outside_of_a_turned_image_it_is_black_also_when_standardised() -> None:
    bright = np.full((10, 1, 8, 8), 255, dtype=np.uint8)
    bright[5:] = 155
    source = Data.from_arrays(bright, np.arange(10) % 2, bright, np.arange(10) % 2)
    stream = rotated(source, angles=(0, 45), normalize="standard")
    shown = pictures(stream, stream.tasks[1].train)
    mean, deviation = bright.mean(), bright.std()
    np.testing.assert_allclose(shown[:, 0, 0, 0], -mean / deviation, rtol=1e-6)
    np.testing.assert_allclose(shown[:, 0, 4, 4], (bright[:, 0, 4, 4] - mean) / deviation, atol=1e-5)
    assert shown.min() >= -mean / deviation - 1e-6


def test_padded_images_are_turned_with_their_padding() -> None:
    source = data()
    stream = rotated(source, angles=(0, 90), pad=2)
    assert stream.shape == (1, 8, 8)
    wanted = torch.nn.functional.pad(source.x.double() / 255, (2, 2, 2, 2))
    for quarters, task in enumerate(stream.tasks):
        shown = torch.from_numpy(pictures(stream, task.train))
        torch.testing.assert_close(shown, torch.rot90(wanted, quarters, (2, 3)), rtol=1e-5, atol=1e-5)


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tasks": 6}, "arrays has 5 classes, too few for 6 tasks; give it 5 tasks or fewer"),
        ({"tasks": 2, "first": 5}, "arrays has 5 classes, of which first=5 leaves 0 to 1 further task, each"),
        ({"tasks": 2, "first": 7}, "first=7 leaves 0 to 1 further task, each of which takes one at least"),
        ({"tasks": 4, "first": 3}, "first=3 leaves 2 to 3 further tasks"),
        ({"tasks": 1, "first": 3}, "first=3 leaves 2 to no further task"),
        ({"order": (0, 1, 2, 3)}, "class order 0-1-2-3: give each of the 5 classes 0 to 4 once"),
        ({"order": (0, 1, 2, 3, 3)}, "class order 0-1-2-3-3"),
        ({"order": (1, 2, 3, 4, 5)}, "class order 1-2-3-4-5"),
    ],
)
def test_streams_that_cannot_be_made(options: dict[str, Any], told: str) -> None:
    with pytest.raises(BadStream, match=told):
        made(**{"tasks": 5} | options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"taks": 2}, r"a split stream has no option 'taks'; did you mean 'tasks'\?"),
        ({"tasks": 0}, "tasks was given 0; it takes int >= 1"),
        ({"tasks": 2.5}, "tasks was given 2.5"),
        ({"order": "abc"}, r"order was given 'abc'; it takes natural\|seed\|icarl\|ints joined by '-'"),
        ({"scenario": "clas"}, r"scenario was given 'clas'; it takes task\|domain\|class; did you mean 'class'\?"),
        ({"train_outputs": "some"}, "train_outputs was given 'some'; it takes"),
        ({"test_outputs": "none"}, "test_outputs was given 'none'; it takes"),
        ({"normalize": "zscore"}, r"normalize was given 'zscore'; it takes unit\|standard"),
        ({"validation": 1.0}, "validation was given 1.0; it takes float >= 0 and < 1"),
        ({"validation": -0.5}, "validation"),
        ({"limit": 0}, "limit was given 0"),
        ({"test_limit": 0}, "test_limit was given 0"),
        ({"pad": -1}, "pad was given -1"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], told: str) -> None:
    with pytest.raises(BadOption, match=told):
        made(**options)


def test_arrays_and_padding_that_do_not_fit_are_the_datas_fault() -> None:
    with pytest.raises(BadData, match="arrays: 37 training samples, but 36 training labels"):
        Stream.from_arrays(X, Y[1:], X_TEST, Y_TEST)
    with pytest.raises(BadData, match="cannot be padded"):
        Stream.from_arrays(X.reshape(-1, 12), Y, X_TEST.reshape(-1, 12), Y_TEST, pad=1)


def test_samples_without_height_and_width_cannot_be_turned() -> None:
    with pytest.raises((BadStream, BadData)):
        rotated(Data.from_arrays(X.reshape(-1, 12), Y, X_TEST.reshape(-1, 12), Y_TEST))


def test_a_task_without_rows_is_refused_and_named() -> None:
    named = ["a", "b", "c"]
    ten, test = torch.zeros(10, 1, 1, 1, dtype=torch.uint8), torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    y = torch.arange(10) % 2
    with pytest.raises(BadStream, match=r"task 3 \(c\) has 0 training and 0 test rows"):
        split(Data.from_arrays(ten, y, test, y[:4], classes=named), tasks=3)
    without_test = Data.from_arrays(ten, y, test, torch.zeros(4, dtype=torch.int64), classes=named[:2])
    with pytest.raises(BadStream, match=r"task 2 \(b\) has 5 training and 0 test rows"):
        split(without_test, tasks=2)
    assert [len(task.test) for task in split(without_test, tasks=1).tasks] == [4]


def test_equal_pixels_cannot_be_standardised() -> None:
    grey = np.full((4, 1, 2, 2), 7, dtype=np.uint8)
    with pytest.raises(BadStream, match="use normalize=unit"):
        Stream.from_arrays(grey, [0, 1, 0, 1], grey, [0, 1, 0, 1], tasks=2, normalize="standard")


# ---- seeds, devices, sources


def test_a_stream_takes_the_random_numbers_of_a_seed() -> None:
    stream = made(tasks=2)
    one, two = stream.stream(4), stream.stream(5)
    assert [int(task.key.seed) for task in one.tasks] == [4, 4] and [task.key.task for task in one.tasks] == [0, 1]
    assert not torch.equal(one.tasks[0].key.uniform("a", 9), two.tasks[0].key.uniform("a", 9))
    assert torch.equal(one.tasks[1].key.uniform("a", 9), key(4, 1).uniform("a", 9))
    assert one.samples.pixels is stream.samples.pixels and int(stream.tasks[0].key.seed) == 0


def test_a_stream_draws_anew_for_each_seed_what_is_drawn_by_the_seed() -> None:
    by_seed, given = made(tasks=5, order="seed"), made(tasks=5, order=(4, 2, 0, 1, 3))
    assert len({tuple(task.classes for task in by_seed.stream(seed).tasks) for seed in range(9)}) > 5
    assert [task.classes for task in by_seed.stream(3).tasks] == [
        task.classes for task in made(tasks=5, order="seed", seed=3).tasks
    ]
    assert [task.classes for task in given.stream(3).tasks] == [task.classes for task in given.tasks]
    shown = [permuted(data(), tasks=2).stream(seed) for seed in range(2)]
    assert not torch.equal(*(stream.samples.transforms[0].table for stream in shown))
    fixed = [permuted(data(), tasks=2, permutation_seed=1).stream(seed) for seed in range(2)]
    assert torch.equal(*(stream.samples.transforms[0].table for stream in fixed))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_streams_on_a_device_share_their_pixels_there(device: str) -> None:
    source = data()
    streams = [permuted(source, tasks=2, seed=seed) for seed in range(2)]
    placed = place(streams, device)
    assert placed[0].samples.pixels is placed[1].samples.pixels
    assert placed[0].test_samples.pixels is placed[1].test_samples.pixels
    for before, after in zip(streams, placed, strict=True):
        tensors = [after.samples.pixels, *after.samples.tables, *after.test_samples.tables, after.test_outputs.units]
        for task in after.tasks:
            tensors += [task.train, task.validation, task.test, task.outputs.units, task.key.seed, task.key.step]
            tensors += list(task.samples.tables)
        assert {tensor.device.type for tensor in tensors} == {device}
        assert after.record == before.record and after.shape == before.shape
        for task, old in zip(after.tasks, before.tasks, strict=True):
            assert task.samples is after.samples and task.classes == old.classes
            if device == "cpu":
                assert torch.equal(task.train, old.train) and torch.equal(task.key.seed, old.key.seed)
                shown = after.samples.images(task.train, torch.float64)
                assert torch.equal(shown, before.samples.images(old.train, torch.float64))


def test_other_tables_over_the_same_pixels() -> None:
    one, two = (permuted(data(), tasks=2, seed=seed).samples for seed in range(2))
    swapped = one.with_tables(two.tables)
    rows = torch.arange(60)
    assert torch.equal(swapped.images(rows, torch.float64), two.images(rows, torch.float64))
    assert not torch.equal(swapped.images(rows, torch.float64), one.images(rows, torch.float64))


def test_a_stream_from_datasets_is_the_one_from_arrays() -> None:
    train, test = (TensorDataset(torch.from_numpy(x), torch.from_numpy(y)) for x, y in ((X, Y), (X_TEST, Y_TEST)))
    one, two = Stream.from_datasets(train, test, tasks=2, scenario="task"), made(tasks=2, scenario="task")
    for a, b in zip(one.tasks, two.tasks, strict=True):
        assert a.classes == b.classes and torch.equal(a.train, b.train) and torch.equal(a.test, b.test)
    assert torch.equal(one.samples.pixels, two.samples.pixels) and torch.equal(one.samples.y, two.samples.y)
    assert one.record["name"] == "datasets" and one.record["sha256"] == two.record["sha256"]


def test_the_record_tells_data_and_options() -> None:
    stream = made(tasks=2, order=(4, 3, 2, 1, 0), name="mine")
    assert {name: stream.record[name] for name in ("name", "tasks", "order")} == {
        "name": "mine", "tasks": 2, "order": [4, 3, 2, 1, 0],
    }  # fmt: skip
    other = Stream.from_arrays(255 - X, Y, X_TEST, Y_TEST, tasks=2)
    assert len(stream.record["sha256"]) == 64 and stream.record["sha256"] != other.record["sha256"]
    records = [make(data(), tasks=2).record for make in (split, permuted)] + [rotated(data()).record]
    assert [record["stream"] for record in records] == ["split", "permuted", "rotated"]
    assert records[2]["angles"] == [0, 36, 72, 108, 144] and all(len(record["sha256"]) == 64 for record in records)


def test_names_and_top_of_arrays() -> None:
    stream = Stream.from_arrays(X // 16, Y // 3 % 2, X_TEST // 16, Y_TEST // 3 % 2, tasks=2, classes=["a", "b"], top=15)
    assert [task.classes for task in stream.tasks] == [("a",), ("b",)]
    assert stream.samples.top == 15 and float(stream.samples.images(torch.arange(9), torch.float64).max()) == 1.0


def test_a_fraction_is_taken_as_it_is_written() -> None:
    """0.29 * 100 is 28.999999999999996 in binary."""
    y = torch.zeros(100, dtype=torch.int64)
    assert int(set_aside(y, 0.29, 0).sum()) == 29 and int(set_aside(y, 0.295, 0).sum()) == 29


# ---- benchmarks


def registered() -> list[type[Any]]:
    return [plugins.find("benchmarks", name) for name in plugins.registered("benchmarks")]


def suited(cls: type[Benchmark]) -> Data:
    """Data of ten classes, for a sequence in two parts."""
    if issubclass(cls, Sequence):
        return joined((data(classes=5), data(classes=5, pixels=1)), 4)
    return data(classes=10)


@pytest.mark.parametrize("cls", registered(), ids=lambda cls: str(cls.__name__))
def test_every_registered_benchmark_makes_streams_with_its_defaults(cls: type[Benchmark]) -> None:
    benchmark = cls()
    stream = benchmark.build(suited(cls), seed=2)
    assert len(stream.tasks) >= 2 or getattr(benchmark, "tasks", None) == 1
    assert stream.scenario == benchmark.scenario
    assert all(len(task.train) and len(task.test) for task in stream.tasks)
    assert all(bool(len(task.validation)) == (benchmark.validation > 0) for task in stream.tasks)
    assert {int(task.key.seed) for task in stream.tasks} == {2}
    shown = torch.cat([stream.samples.images(task.train, torch.float32) for task in stream.tasks])
    assert shown.shape[1:] == stream.shape
    if benchmark.normalize == "unit":
        assert shown.min() >= 0 and shown.max() <= 1 + 1e-5
    else:  # each channel over all classes, of which no task has all
        assert float(shown.mean((0, 2, 3)).abs().max()) < 0.3 and 0.7 < float(shown.std()) < 1.3
    assert cls.read(benchmark.values()) == benchmark


@pytest.mark.parametrize("cls", registered(), ids=lambda cls: str(cls.__name__))
def test_every_registered_benchmark_takes_all_common_options(cls: type[Benchmark]) -> None:
    benchmark = cls.read({
        "scenario": "task", "train_outputs": "seen", "test_outputs": "all", "validation": "0.5", "validation_seed": "3",
        "normalize": "standard", "pad": "1", "limit": "2", "test_limit": "1",
    })  # fmt: skip
    stream = benchmark.build(suited(cls), seed=2)
    net = MLP(layers=()).build(stream.shape, stream.units)
    for task in stream.tasks:
        rows = [len(part) for part in (task.train, task.validation, task.test)]
        assert rows == [count * len(task.classes) for count in (2, 2, 1)]
        assert (task.outputs.active, stream.test_outputs.active) == ("seen", "all")
        shown = stream.samples.images(task.train, torch.float32)
        assert stream.shape == shown.shape[1:] and stream.shape[1:] == (6, 6)
        assert net.logits(net.initial(key(0), torch.float32), shown).shape == (len(shown), stream.units)


def test_split_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    stream = cl.benchmarks.SplitDigits().stream(3, tmp_path)
    assert [task.classes for task in stream.tasks] == [(str(a), str(a + 1)) for a in range(0, 10, 2)]
    assert stream.shape == (1, 8, 8) and stream.units == 10
    images = {image.tobytes(): int(label) for image, label in zip(bunch.images, bunch.target, strict=True)}
    found: list[bytes] = []
    for task in stream.tasks:
        for samples, rows in ((stream.samples, task.train), (stream.test_samples, task.test)):
            shown = (samples.images(rows, torch.float64) * 16).round().squeeze(1).numpy()
            for image, y in zip(shown, samples.y[rows].tolist(), strict=True):
                assert images[image.tobytes()] == y
                found.append(image.tobytes())
    assert Counter(found) == Counter(image.tobytes() for image in bunch.images)
    assert sum(len(task.test) for task in stream.tasks) == 355


def test_the_seed_of_a_benchmark_draws_what_is_drawn_by_the_seed(tmp_path: Path) -> None:
    benchmark = cl.benchmarks.SplitDigits(order="seed", validation=0.1, validation_seed=3)
    one, again, two = (benchmark.stream(seed, tmp_path) for seed in (0, 0, 1))
    assert [task.classes for task in one.tasks] == [task.classes for task in again.tasks]
    assert [task.classes for task in one.tasks] != [task.classes for task in two.tasks]
    assert one.samples.pixels is two.samples.pixels, "all seeds share their pixels"
    held = [{int(s.samples.image[row]) for task in s.tasks for row in task.validation} for s in (one, two)]
    assert held[0] == held[1] and dataclasses.asdict(benchmark)["validation"] == 0.1


TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_split_mnist_has_the_published_counts(data_root: Path) -> None:
    stream = cl.benchmarks.SplitMNIST(scenario="domain", order=(3, 1, 4, 0, 5, 9, 2, 6, 8, 7)).stream(0, data_root)
    assert [task.classes for task in stream.tasks] == [("3", "1"), ("4", "0"), ("5", "9"), ("2", "6"), ("8", "7")]
    assert stream.units == 2 and stream.shape == (1, 28, 28)
    for task in stream.tasks:
        for samples, rows, counts in ((stream.samples, task.train, TRAIN), (stream.test_samples, task.test, TEST)):
            got = torch.bincount(samples.y[rows]).tolist()
            assert got == [counts[int(name)] for name in task.classes]
    shown = torch.cat([stream.samples.images(task.train, torch.float32) for task in stream.tasks])
    assert abs(float(shown.mean()) - 0.1307) < 1e-4 and abs(float(shown.std()) - 0.3081) < 1e-4


def test_permuted_mnist_on_the_real_data(data_root: Path) -> None:
    stream = cl.benchmarks.PermutedMNIST(tasks=2, limit=100).stream(1, data_root)
    assert [len(task.train) for task in stream.tasks] == [1000, 1000]
    assert [len(task.test) for task in stream.tasks] == [10_000, 10_000]
    first, second = (stream.test_samples.images(task.test, torch.float32).flatten(1) for task in stream.tasks)
    assert not torch.equal(first, second) and torch.equal(first.sort(1).values, second.sort(1).values)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_first_rows_of_a_class_are_those_that_a_loop_finds(limit: int) -> None:
    numbers = np.random.default_rng(limit)
    y, held = torch.from_numpy(numbers.integers(0, 7, 60)), torch.from_numpy(numbers.random(60) < 0.3)
    seen: dict[int, int] = {}
    wanted = []
    for label, out in zip(y.tolist(), held.tolist(), strict=True):
        wanted.append(not out and seen.get(label, 0) < limit)
        seen[label] = seen.get(label, 0) + (not out)
    assert _some(y, held, limit).tolist() == wanted


def test_what_a_prompt_shows_of_a_stream_is_short() -> None:
    stream = Stream.from_arrays(*(np.zeros((24, 1, 2, 3), np.uint8), np.arange(24) % 8) * 2, name="eight", tasks=2)
    assert repr(stream) == "<Stream eight: 2 tasks, class scenario, 8 outputs, images of 1x2x3>"
    assert repr(stream.tasks[1]) == "<Task 2 of 2: 4, 5, 6, 7; rows: 12 training, 12 test>"
    assert repr(stream.samples) == "<Samples: 24 rows, 24 images of 1x2x3 uint8 on cpu>"
    assert repr(stream.test_outputs) == "<Outputs: seen of 8>"
    (whole,) = Stream.from_arrays(*(np.zeros((24, 1, 2, 3), np.uint8), np.arange(24) % 8) * 2, tasks=1).tasks
    assert repr(whole) == "<Task 1 of 1: 0, 1, 2, 3, 4, 5 and 2 more; rows: 24 training, 24 test>"


def test_a_benchmark_gives_a_stream_from_the_usual_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTINUAL_DATA", str(tmp_path / "usual"))
    stream = cl.benchmarks.SplitDigits().stream(0)
    assert len(stream.tasks) == 5 and (tmp_path / "usual").exists()


class Kept(Transform):
    """Shows the images that lie in its table as they lie there."""

    def __call__(self, x: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        return self.table[: len(x)]


@pytest.mark.parametrize("normalize", ["unit", "standard", "channel"])
def test_what_a_transform_returns_is_not_written_over(normalize: str) -> None:
    numbers = np.random.default_rng(0)
    x, y = numbers.integers(0, 256, (12, 3, 4, 4), dtype=np.uint8), np.repeat(np.arange(2), 6)
    stream = Split(tasks=2, normalize=normalize).build(Data.from_arrays(x, y, x, y))
    table = torch.rand(12, 3, 4, 4)
    samples, before = dataclasses.replace(stream.samples, transforms=(Kept(table),)), table.clone()
    first, again = (samples.images(torch.arange(5), torch.float32) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(table, before)


# ---- classes that come again, and what is refused


@dataclass(frozen=True)
class Again(Split):
    """Tasks that share a class, as whatever ``given`` says."""

    def groups(self, classes: int, seed: int, name: str) -> Any:
        return GIVEN[0]


GIVEN: list[Any] = [None]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_class_of_two_tasks_has_one_unit_where_classes_have_units(scenario: str) -> None:
    GIVEN[0] = [[0, 1], [1, 2, 3]]
    source = data()
    stream = Again(tasks=2, scenario=scenario).build(source)
    units = {"class": {0: [0, 1], 1: [1, 2, 3]}, "task": {0: [0, 1], 1: [2, 3, 4]}, "domain": {0: [0, 1], 1: [0, 1, 2]}}
    for task in stream.tasks:
        assert task.own_units.nonzero().flatten().tolist() == units[scenario][task.index]
        labels = source.y[stream.samples.image[task.train]].tolist()
        of = dict(zip(GIVEN[0][task.index], units[scenario][task.index], strict=True))
        assert stream.samples.y[task.train].tolist() == [of[label] for label in labels]
    for made_anew in (permuted(source, tasks=2, scenario=scenario), rotated(source, angles=(0, 90), scenario=scenario)):
        assert made_anew.units == (5 if scenario == "domain" else 10), (
            "of an image that is shown otherwise it is another"
        )


def test_groups_may_be_anything_that_is_gone_through() -> None:
    wanted = [[0, 1, 2], [3, 4]]
    for given in (np.array_split(np.arange(5), 2), (part for part in wanted), [range(3), torch.arange(3, 5)]):
        GIVEN[0] = given
        assert [classes_of(task) for task in Again(tasks=2).build(data()).tasks] == wanted
    with pytest.raises(TypeError, match="can only concatenate"):
        GIVEN[0] = (["a" + place] for place in [1])  # type: ignore[operator]
        Again(tasks=1).build(data())
    for wrong in (None, 5, [], [[0, 0], [1]], [[0], ["1"]], [[0, 1], 3]):
        GIVEN[0] = wrong
        with pytest.raises(BadStream, match=r"Again\.groups gives .*; it takes a list for each task"):
            Again(tasks=2).build(data())


def test_a_stream_in_which_something_was_replaced_is_not_made_anew_in_silence() -> None:
    stream = made(tasks=2)
    assert len(cl.run(stream, epochs=1, model="mlp:layers=4").accuracy[0, 0]) == 2
    with pytest.raises(BadStream, match="something was replaced in this stream after it was made"):
        cl.run(dataclasses.replace(stream, tasks=stream.tasks[:1]), epochs=1, model="mlp:layers=4")
    for same in (stream.with_samples(stream.samples, stream.test_samples), Half(tasks=4).build(data(8))):
        made_anew = same.stream(3)
        assert len(made_anew.tasks) == len(same.tasks) and made_anew.as_built


@dataclass(frozen=True)
class Half(Split):
    """The first half of the tasks."""

    def build(self, data: Data, seed: int = 0) -> Stream:
        whole = super().build(data, seed)
        return dataclasses.replace(whole, tasks=whole.tasks[: len(whole.tasks) // 2])


def test_pixels_of_colours_are_not_permuted_where_each_channel_has_its_own_factor() -> None:
    y = np.arange(8) % 2
    x = np.random.default_rng(0).integers(0, 256, (8, 3, 4, 4), dtype=np.uint8)
    source = Data.from_arrays(x, y, x, y)
    for normalize in ("channel", "imagenet"):
        with pytest.raises(BadStream, match="permuted tasks take pixels of one channel to another's place"):
            permuted(source, tasks=2, normalize=normalize)
    stream = permuted(source, tasks=2, normalize="standard")
    shown = [np.sort(pictures(stream, task.train).reshape(8, -1)) for task in stream.tasks]
    np.testing.assert_array_equal(*shown)


def test_a_channel_of_one_level_is_refused_whatever_rounding_leaves() -> None:
    y, x = np.arange(6) % 2, np.random.default_rng(0).integers(0, 256, (6, 3, 5, 5), dtype=np.uint8)
    for level in range(0, 256, 5):
        x[:, 1] = level
        with pytest.raises(BadStream, match="all pixels of a channel are equal"):
            split(Data.from_arrays(x, y, x, y), tasks=2, normalize="channel")
    near = np.full((6, 1, 5, 5), 0.7, np.float32)
    near[0, 0, 0, 0] += 1.2e-7  # what is left of its square is less than double precision has
    with pytest.raises(BadStream, match="all pixels of a channel are equal"):
        split(Data.from_arrays(near, y, near, y), tasks=2, normalize="channel")
    x[0, 1, 0, 0] = 0
    assert split(Data.from_arrays(x, y, x, y), tasks=2, normalize="channel").samples.channel is not None


@pytest.mark.parametrize(
    ("task", "task_test", "told"),
    [
        ([0, 0, 1, 1], [0, 0, 2, 1], "task_test has numbers from 0 to 2; it takes those of tasks that are learnt, 0 "),
        ([0, 0, 1, 1], [0, 0, -2, 1], "task_test has numbers from -2 to 1"),
        ([0, -1, 1, 1], [0, 0, 1, 1], "task has numbers from -1 to 1"),
        ([0, 0, 1, 1], [0], "task_test has 1 number for 4 samples"),
        ([0, 0, 1], [0, 0, 1, 1], "task has 3 numbers for 4 samples"),
    ],
)  # fmt: skip
def test_given_tasks_are_looked_at(task: Any, task_test: Any, told: str) -> None:
    x, y = np.zeros((4, 1, 2, 2), np.uint8), [0, 1, 0, 1]
    source = Data.from_arrays(x, y, x, y)
    with pytest.raises(BadStream, match=told):
        Given.of(task, task_test).build(source)
    assert len(Given.of(np.array([0, 0, 1, 1]), [-1] * 4).build(source).tasks) == 2


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_given_tasks_have_the_samples_that_they_are_given(scenario: str) -> None:
    """Classes 0 and 1, the same again, then 2 and 3; some test samples are of all tasks with their class."""
    x, x_test = np.random.default_rng(0).integers(0, 256, (2, 24, 1, 2, 2), dtype=np.uint8)
    y, task = np.arange(24) % 2 + 2 * (np.arange(24) >= 16), np.arange(24) // 8
    task_test = np.where(np.arange(24) % 5 == 0, -1, task)
    given = Given.of(task, task_test, scenario=scenario, validation=0.25)
    one, other = (given.build(Data.from_arrays(x, y, x_test, y), seed=seed) for seed in (0, 5))
    for t, part in enumerate(one.tasks):
        rows = one.samples.image[torch.cat([part.train, part.validation])]
        assert sorted(rows.tolist()) == np.flatnonzero(task == t).tolist()
        assert len(part.validation) > 0 and torch.equal(part.validation, other.tasks[t].validation)
        tested = [n for n in range(24) if task_test[n] == t or (task_test[n] == -1 and y[n] in y[task == t])]
        assert one.test_samples.image[part.test].tolist() == tested
        np.testing.assert_allclose(pictures(one, part.test, test=True), x_test[tested] / 255, rtol=1e-6)
        first = (0, 2, 2)[t] if scenario == "task" else 0  # there each task has outputs of its own
        assert one.test_samples.y[part.test].tolist() == [int(y[n]) + first for n in tested]
    told = [Given.of(task, where).checksums() for where in (task_test, task, task_test)]
    assert told[0] == told[2] != told[1]


def test_a_limit_that_leaves_a_task_without_rows_is_named() -> None:
    x, y = np.zeros((6, 1, 2, 2), np.uint8), [0, 0, 0, 0, 0, 0]
    with pytest.raises(BadStream, match=r"task 2 .* has 0 training and 6 test rows with limit=2"):
        Given.of([0, 0, 0, 1, 1, 1], [-1] * 6, limit=2).build(Data.from_arrays(x, y, x, y))
