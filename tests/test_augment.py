"""Augmentation against loops and torchvision's own functions; who is augmented, and when."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as theirs

import continual as cl
from continual.conformance import asks_nothing
from continual.errors import BadOption
from continual.learning.models import MLP
from continual.learning.optimizers import SGD, Constant
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.strategy import Batch, Memory, Strategy
from continual.learning.train import Watch, train
from continual.learning.training import Training
from continual.streams.augment import Augmentation, Images, Shown
from continual.streams.rng import key
from continual.streams.stream import Stream

ALL = Images(crop=2, flip=True, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, cutout=3)
TASKS = torch.tensor([0, 1, 2, 2, 1, 0, 2, 2] * 8)
FREE = torch.ones(64, dtype=torch.bool)


def pixels(n: int = 64, channels: int = 3, height: int = 6, width: int = 5) -> torch.Tensor:
    return key(1).integers("pixels", n * channels * height * width, 255).reshape(n, channels, height, width) + 1


def photographs(**options: Any) -> Stream:
    numbers = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 8)
    x = numbers.integers(1, 256, (2, len(y), 3, 6, 6), dtype=np.uint8)
    return Stream.from_arrays(x[0], y, x[1], y, **{"tasks": 3} | options)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.float32], ids=str)
def test_a_crop_is_a_cut_out_of_the_padded_image(kind: torch.dtype, last: bool) -> None:
    x = pixels().to(kind)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    got = Images(crop=2).moved(x, FREE, key(5))
    for image, moved in zip(x.numpy(), got.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        found = [(i, j) for i in range(5) for j in range(5) if (padded[:, i : i + 6, j : j + 5] == moved).all()]
        assert len(found) == 1
    assert got.stride() == x.stride(), "where and how it lies are two things"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("crop", [1, 2, 4])
def test_flips_go_with_crops(crop: int, last: bool) -> None:
    x = pixels(64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    got = Images(flip=True).moved(x, FREE, key(5))
    same, mirrored = (got == x).flatten(1).all(1), (got == x.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    both, crops = (Images(crop=crop, flip=flip).moved(x, FREE, key(5)) for flip in (True, False))
    wanted = torch.where(mirrored[:, None, None, None], crops.flip(3), crops)
    assert torch.equal(both, wanted)


def test_crops_and_flips_are_alike_often() -> None:
    n = 5000
    x = (torch.arange(30).reshape(1, 1, 6, 5) + 1).expand(n, 1, 6, 5)
    flipped = (Images(flip=True).moved(x, None, key(5)) != x).flatten(1).any(1)
    assert abs(int(flipped.sum()) - n / 2) < 4.5 * (n / 4) ** 0.5
    got, padded = Images(crop=2).moved(x, None, key(5)), torch.nn.functional.pad(x[0, 0], (2, 2, 2, 2))
    cuts = [padded[i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
    counts = torch.stack([(got[:, 0] == cut).flatten(1).all(1).sum() for cut in cuts])
    assert int(counts.sum()) == n and ((counts - n / 25).abs() < 4.5 * (n * 24 / 625) ** 0.5).all(), counts


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_are_torchvisions(name: str) -> None:
    x = pixels().double() / 255
    got = Images(**{name: 0.5}).coloured(x, FREE, key(3), 1.0)
    factors = 1 + 0.5 * (2 * key(3).uniform(name, 64).double() - 1)
    assert factors.min() < 0.6 and factors.max() > 1.4
    for image, changed, factor in zip(x, got, factors, strict=True):
        wanted = getattr(theirs, f"adjust_{name}")(image, float(factor))
        torch.testing.assert_close(changed, wanted, rtol=1e-3, atol=1e-3)  # torchvision rounds the weights of grey


@pytest.mark.parametrize("most", [1.0, 255.0])
def test_hues_are_torchvisions(most: float) -> None:
    x = pixels().double() / 255
    x[0], x[1, :, 0], x[2, 1] = 0.5, 0.0, x[2, 0]  # grey, black, and two colours alike
    got = Images(hue=0.5).coloured(x * most, FREE, key(3), most) / most
    angles = 0.5 * (2 * key(3).uniform("hue", 64).double() - 1)
    assert angles.min() < -0.4 and angles.max() > 0.4
    for image, changed, angle in zip(x, got, angles, strict=True):
        torch.testing.assert_close(changed, theirs.adjust_hue(image, float(angle)), rtol=1e-6, atol=1e-6)
    assert torch.equal(Images(hue=0.5).coloured(x, ~FREE, key(3), most), x)


def test_colours_follow_each_other_as_torchvisions_do() -> None:
    """Brightness, contrast, saturation and hue, in this order."""
    x, amounts = pixels(32).double() / 255, {"brightness": 0.5, "contrast": 0.6, "saturation": 0.7}
    got = Images(**amounts, hue=0.2).coloured(x, None, key(3), 1.0)  # type: ignore[arg-type]
    drawn = {name: 2 * key(3).uniform(name, 32).double() - 1 for name in (*amounts, "hue")}
    for n, image in enumerate(x):
        wanted = image
        for name, amount in amounts.items():
            wanted = getattr(theirs, f"adjust_{name}")(wanted, float(1 + amount * drawn[name][n]))
        wanted = theirs.adjust_hue(wanted, float(0.2 * drawn["hue"][n]))
        torch.testing.assert_close(got[n], wanted, rtol=5e-3, atol=5e-3)  # torchvision rounds the weights of grey


@pytest.mark.parametrize("normalize", ["unit", "standard", "channel"])
def test_colours_are_changed_between_black_and_what_stands_for_1(normalize: Any) -> None:
    """However images are normalised: what would be brighter than white is white, as torchvision has it."""
    stream, rows = photographs(normalize=normalize), torch.arange(48)
    samples = replace(stream.samples, shown=Shown(Images(brightness=0.9), key(3), torch.tensor(0)))
    factors, unit = 1 + 0.9 * (2 * key(3).uniform("brightness", 48).double() - 1), stream.samples.pixels / 255
    bright = torch.stack([theirs.adjust_brightness(unit[image], float(factor)).double()
                          for image, factor in zip(stream.samples.image, factors, strict=True)])  # fmt: skip
    sides = (0, 2, 3) if normalize == "channel" else (0, 1, 2, 3)
    mean, deviation = unit.double().mean(sides, keepdim=True), unit.double().std(sides, correction=0, keepdim=True)
    wanted = bright if normalize == "unit" else (bright - mean) / deviation
    torch.testing.assert_close(samples.images(rows, torch.float64), wanted, rtol=1e-4, atol=1e-5)
    assert float(factors.max()) > 1.5, "something is brighter than white"


@pytest.mark.parametrize("side", [1, 3, 4])
def test_cutout_hides_a_square_around_a_pixel_that_is_anywhere(side: int) -> None:
    x, free, centres = pixels(400, 1, 7, 9).double(), torch.arange(400) % 2 == 0, set()
    got = Images(cutout=side).covered(x, free, key(3))
    for n, (i, j) in enumerate(
        (key(3).uniform("cutout", 2, 400).double() * torch.tensor([[7], [9]])).long().T.tolist()
    ):
        wanted = x[n, 0].clone()
        if free[n]:
            for a in range(7):
                for b in range(9):
                    if 0 <= a - (i - side // 2) < side and 0 <= b - (j - side // 2) < side:
                        wanted[a, b] = 0
            centres.add((i, j))
        assert torch.equal(got[n, 0], wanted)
    assert len(centres) > 55, "of 63"


def test_what_is_not_free_keeps_its_colours_and_its_place() -> None:
    x, free = pixels().double() / 255, torch.arange(64) % 3 == 0
    for name in ("brightness", "contrast", "saturation", "hue"):
        got = Images(**{name: 0.5}).coloured(x, free, key(3), 1.0)
        torch.testing.assert_close(got[~free], x[~free], rtol=1e-12, atol=1e-15)
        assert (got[free] - x[free]).flatten(1).abs().amax(1).min() > 1e-4
    assert torch.equal(Images(crop=2, flip=True).moved(pixels(), free, key(3))[~free], pixels()[~free])


def test_replayed_samples_can_be_left_as_they_are() -> None:
    x = pixels()
    shown = Shown(replace(ALL, replayed=False), key(3), number=torch.tensor(2))
    moved = shown.moved(x, TASKS)
    through = shown.covered(shown.coloured(moved.double() / 255, TASKS, 1.0), TASKS)
    old = TASKS != 2
    assert torch.equal(through[old], x[old].double() / 255)
    assert (through[~old] != x[~old].double() / 255).flatten(1).any(1).all()
    again = Shown(ALL, key(3), number=torch.tensor(2))
    assert (again.moved(x, TASKS)[old] != x[old]).flatten(1).any(1).float().mean() > 0.8


def test_grey_images_and_nothing_to_do() -> None:
    grey = pixels(8, 1).double() / 255
    assert replace(ALL, hue=0.0).coloured(grey, FREE[:8], key(0), 1.0).shape == grey.shape
    assert not Images().active and not Augmentation().active and ALL.active and Images(cutout=1).active
    for one in (Images(), Augmentation()):
        assert one.moved(grey, FREE[:8], key(0)) is grey and one.covered(grey, FREE[:8], key(0)) is grey


class Looking(Strategy):
    """Replays the first rows, and keeps what it saw."""

    def init(self, net: Any, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"x": theta.new_zeros(2, 8, 3, 6, 6), "between": theta.new_zeros(8, 3, 6, 6)}

    def after_step(self, net: Any, theta: Any, memory: Memory, step: Any, task: Any) -> tuple[Any, Memory]:
        again = task.samples.images(step.batch.row, theta.dtype)
        return theta, memory | {"x": torch.stack([step.batch.images, again])}

    def after_task(self, net: Any, theta: Any, memory: Memory, task: Any) -> tuple[Any, Memory]:
        return theta, memory | {"between": task.samples.images(task.train[:8], theta.dtype)}


TRAINING = Training(seeds=1, epochs=1, batch=8, precision="float64", train_samples=0)


def learners(strategy: Strategy, augmentation: Augmentation, seeds: tuple[int, ...] = (0,), **options: Any) -> Learners:
    streams = [photographs(**options).stream(seed) for seed in seeds]
    net = MLP(layers=(5,)).build(streams[0].shape, streams[0].units)
    recipe = Recipe(net, strategy, SGD(lr=0.1), Constant(), True, "float64", augmentation)
    return Learners(recipe, streams, list(seeds))


def test_a_step_shows_augmented_images_and_nothing_else_does() -> None:
    group = learners(Looking(), ALL)
    train(group, TRAINING, Watch())
    stream = group.streams[0]
    seen, again = group.memory["x"]
    assert torch.equal(seen, again), "within a step a sample's view is one"
    plain = stream.samples.images(stream.tasks[2].train[:8], torch.float64)
    assert torch.equal(group.memory["between"], plain), "between tasks images are as they are"
    originals = stream.samples.images(stream.tasks[2].train, torch.float64)
    assert not any((originals == image).flatten(1).all(1).any() for image in seen)
    bare = learners(Looking(), Augmentation())
    train(bare, TRAINING, Watch())
    assert all((originals == image).flatten(1).all(1).any() for image in bare.memory["x"][0])


@pytest.mark.parametrize("options", [{}, {"normalize": "standard"}, {"normalize": "channel"}], ids=str)
def test_views_differ_from_step_to_step_and_seeds_side_by_side_are_the_same(options: dict[str, Any]) -> None:
    group = learners(Looking(), ALL, seeds=(0, 1), **options)
    train(group, replace(TRAINING, seeds=2), Watch())
    for r, seed in enumerate((0, 1)):
        alone = learners(Looking(), ALL, seeds=(seed,), **options)
        train(alone, TRAINING, Watch())
        torch.testing.assert_close(group.memory["x"][r], alone.memory["x"])
        torch.testing.assert_close(group.theta[r], alone.theta)
    assert not torch.equal(group.memory["x"][0], group.memory["x"][1])
    longer = learners(Looking(), ALL, **options)
    train(longer, replace(TRAINING, epochs=3), Watch())
    assert not torch.equal(longer.memory["x"], group.memory["x"][0])


def test_what_is_the_same_in_every_step_lies_where_the_step_is_done() -> None:
    group = learners(Looking(), Images(crop=1, flip=True))
    (stream,) = group.streams
    away = replace(stream.samples, pixels=stream.samples.pixels.to("meta"))  # as images that are read from their file
    tasks = tuple(replace(task, samples=away) for task in stream.tasks)
    group.streams[0] = replace(stream, samples=away, tasks=tasks)
    program = Program(group, 0, [])
    assert program.ways is not None and {one.device.type for one in program.ways} == {"cpu"}


def test_an_augmented_step_asks_the_device_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import continual.conformance as suite

    monkeypatch.setattr(suite, "learners_of", lambda strategy, seeds: learners(strategy, ALL, tuple(seeds)))
    asks_nothing(cl.strategies.Replay(capacity=8))


def test_black_is_what_a_crop_brings_in_and_cutout_is_zero_after_normalisation() -> None:
    stream = photographs(normalize="standard")
    samples = replace(stream.samples, shown=Shown(Images(crop=6), key(0), 0))
    shown = samples.images(torch.arange(48), torch.float64)
    assert float(shown.min()) == pytest.approx(stream.samples.shift)
    covered = replace(stream.samples, shown=Shown(Images(cutout=30), key(0), 0)).images(torch.arange(8), torch.float64)
    assert (covered == 0).flatten(1).float().mean() > 0.9


def test_a_run_names_its_augmentation() -> None:
    result = cl.run(photographs(), augment="images:crop=1,flip=true", seeds=1, epochs=1, batch=8)
    assert result.record["protocol"]["training"]["augment"] | {"crop": 1, "flip": True} == {
        "name": "images", "crop": 1, "flip": True, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0,
        "cutout": 0, "replayed": True, "flip_tests": False,
    }  # fmt: skip
    same = cl.run(photographs(), augment=Images(crop=1, flip=True), seeds=1, epochs=1, batch=8)
    assert np.array_equal(result.arrays["loss"], same.arrays["loss"])
    other = cl.run(photographs(), seeds=1, epochs=1, batch=8)
    assert not np.array_equal(result.arrays["loss"], other.arrays["loss"])


def test_a_batch_that_made_its_own_images_keeps_them() -> None:
    """Generated images are not augmented; the rows beside them are shown once."""
    stream = photographs()
    task = replace(stream.tasks[1], samples=replace(stream.samples, shown=Shown(ALL, key(0), 1)))
    rows = task.train[:4]
    batch = Batch(rows, task.samples.y[rows], task.samples.task[rows], key(0), own=4,
                  x=task.samples.images(rows, torch.float64))  # fmt: skip
    made = torch.full((2, 3, 6, 6), 0.5, dtype=torch.float64)
    joined = batch.join_images(made, torch.tensor([0, 1]), torch.tensor([0, 0]), task)
    assert torch.equal(joined.images[4:], made)


def test_scores_of_an_image_and_its_mirror_image_are_averaged_where_asked() -> None:
    """A network that looks at the left half alone answers by both halves."""
    x = np.zeros((4, 1, 2, 4), np.uint8)
    x[1, :, :, :2], x[2, :, :, 2:], x[3] = 200, 255, 255
    y = np.array([0, 0, 1, 1])

    @dataclass(frozen=True)
    class Left(Strategy):
        """Class 1 where the left half is brighter than a middle grey; on average of two views, the whole.

        Class 0 has no score but 0, so the larger one of two views says nothing of the other.
        """

        def predict(self, net: Any, theta: Any, memory: Any, x: torch.Tensor, tasks: Any) -> torch.Tensor:
            bright = x[..., :2].mean((1, 2, 3)) - 0.45
            return torch.stack([torch.zeros_like(bright), bright], 1)

    stream = Stream.from_arrays(x, y, x, y, tasks=1)
    plain = cl.run(stream, Left(), seeds=1, model="mlp:layers=2")
    both = cl.run(stream, Left(), seeds=1, model="mlp:layers=2", augment="images:flip_tests=true")
    assert plain.accuracy[0, -1].tolist() == [0.5]  # of 0, 200 | 0, 0 | 255 and all 255 the 2nd and 3rd are wrong
    assert both.accuracy[0, -1].tolist() == [1.0]  # whole images: 0, 100, 127.5 and 255 of 255 against 0.45


def test_samples_that_no_colour_or_crop_is_for() -> None:
    flat = Stream.from_arrays(np.zeros((4, 5), np.float32), [0, 0, 1, 1], np.zeros((4, 5), np.float32), [0, 0, 1, 1],
                              tasks=2)  # fmt: skip
    with pytest.raises(BadOption, match=r"augment: it is for images \(C, H, W\), and the samples of arrays are \(5,\)"):
        cl.run(flat, augment="images:crop=1", seeds=1)
    with pytest.raises(BadOption, match="augment: nothing is said of what is done; say it, as in images:crop=4"):
        cl.run(flat, augment="images:replayed=false", seeds=1, model="mlp:layers=2")
    grey = Stream.from_arrays(np.zeros((4, 1, 4, 4), np.uint8), [0, 0, 1, 1], np.zeros((4, 1, 4, 4), np.uint8),
                              [0, 0, 1, 1], tasks=2)  # fmt: skip
    with pytest.raises(BadOption, match=r"augment: hue=0.1 is for images of red, green and blue, .* have 1 channel"):
        cl.run(grey, augment="images:hue=0.1", seeds=1, model="mlp:layers=2")
    x = np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32)
    standardised = Stream.from_arrays(x, [0, 0, 1, 1], x, [0, 0, 1, 1], tasks=2)
    with pytest.raises(BadOption, match="are for pixels from 0 to 1; those of arrays go from -"):
        cl.run(standardised, augment="images:contrast=0.5", seeds=1)
    for given in ("crop=4", "cutout=9"):
        with pytest.raises(BadOption, match=f"augment: {given} is not less than the sides .* of arrays, 4x4"):
            cl.run(standardised, augment=f"images:{given}", seeds=1, model="mlp:layers=2")
    cl.run(standardised, augment="images:flip=true,crop=3,cutout=3", seeds=1, model="mlp:layers=2")
