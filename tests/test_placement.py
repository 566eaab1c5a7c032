"""Where images lie: what is chosen, that nothing is copied for it, and that no number depends on it."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import continual as cl
from continual import cli, config, execution
from continual.errors import BadOption, Notice
from continual.streams import placement, sets
from continual.streams.augment import Images, Shown
from continual.streams.data import Data
from continual.streams.pieces import channels_last
from continual.streams.rng import key
from continual.streams.sets import load
from continual.streams.stream import Samples, Stream, rotated, split

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def stream(seed: int = 0, packed: bool = True, **options: Any) -> Stream:
    numbers = np.random.default_rng(0)
    x, y = numbers.integers(0, 256, (2, 40, 3, 4, 4), dtype=np.uint8), np.repeat(np.arange(4), 10)
    return split(replace(Data.from_arrays(x[0], y, x[1], y), packed=packed), tasks=2, seed=seed, **options)


@pytest.mark.parametrize(
    ("device", "free", "chosen"),
    [
        (CPU, {"cpu": 4 * 2 * 40 * 48}, "device"),
        (CPU, {"cpu": 2 * 40 * 48}, "mapped"),
        (GPU, {"cpu": 0, "cuda": 4 * 2 * 40 * 48}, "device"),
        (GPU, {"cpu": 4 * 2 * 40 * 48, "cuda": 2 * 40 * 48}, "pinned"),
        (GPU, {"cpu": 2 * 40 * 48, "cuda": 2 * 40 * 48}, "mapped"),
    ],
)
def test_images_lie_where_half_of_the_free_memory_takes_them(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, free: dict[str, int], chosen: str
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda device: free[device.type])
    data = stream().data
    streams = [split(data, tasks=2, seed=seed) for seed in range(3)]  # which share their images
    assert placement.image_bytes(streams) == 2 * 40 * 48
    assert placement.choose(streams, device) == chosen
    assert placement.choose(streams, device, "mapped") == "mapped"


@pytest.mark.parametrize("made", [{"packed": False}, {"pad": 1}], ids=str)
def test_images_that_have_no_file_are_not_read_from_one(monkeypatch: pytest.MonkeyPatch, made: dict[str, Any]) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda device: 1)
    one = stream(**made)
    with pytest.raises(BadOption, match="pixels=mapped: the images of arrays are in memory, not in a packed file"):
        placement.choose([one], CPU, "mapped")
    assert placement.choose([one], CPU) == "device" and placement.choose([one], GPU) == "pinned"


def test_free_memory_is_that_of_the_machine() -> None:
    free = placement.free_memory(CPU)
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert abs(free / 1024 - int(lines["MemAvailable"].split()[0])) < 2**20  # within a GiB: others use it too


def test_a_run_on_the_cpu_pins_nothing(tmp_path: Path) -> None:
    words = ["run", "split-digits", "--pixels", "pinned", "--device", "cpu", "--out", str(tmp_path)]
    told = CliRunner().invoke(cli.main, words)
    assert told.exit_code == 2 and "pixels=pinned is memory that a GPU reads from" in told.output
    with pytest.raises(BadOption, match="pinned"):
        placement.choose([stream()], CPU, "pinned")


@pytest.mark.parametrize("strategy", ["finetune", "replay:capacity=8", "joint"])
@pytest.mark.parametrize("seeds_as", ["map", "loop"])
def test_numbers_do_not_depend_on_where_images_lie(strategy: str, seeds_as: str) -> None:
    made: dict[str, Any] = {"seeds": 2, "epochs": 2, "batch": 7, "seeds_as": seeds_as, "model": "mlp:layers=8"}
    kept, mapped = (cl.run(stream(), strategy, pixels=where, **made) for where in ("device", "mapped"))
    assert (kept.record["pixels"], mapped.record["pixels"]) == ("device", "mapped")
    for name, values in kept.arrays.items():
        assert np.array_equal(values, mapped.arrays[name]), name
    assert kept.record["protocol"] == mapped.record["protocol"]  # so the one is found where the other was stored


def test_where_images_lie_is_told_in_a_line(tmp_path: Path) -> None:
    asked = ["run", "split-digits", "finetune", "--epochs", "1", "--out", str(tmp_path), "--seeds"]
    told = CliRunner().invoke(cli.main, [*asked, "1"])
    assert told.exit_code == 0 and "digits: 0.1 MB of images, in memory (" in told.output
    told = CliRunner().invoke(cli.main, [*asked, "2", "--pixels", "mapped"])
    assert told.exit_code == 0 and "digits: 0.1 MB of images, read from their file as they are needed" in told.output


def test_a_packed_set_is_used_where_it_lies(tmp_path: Path) -> None:
    data = load("digits", tmp_path)
    (placed,) = placement.place([split(data, tasks=5)], CPU)
    assert placed.samples.pixels.data_ptr() == data.x.data_ptr()
    maps = Path("/proc/self/maps").read_text()
    assert "digits/original.safetensors" in maps  # a file's mapping, which takes no memory of its own


def packed(given: Data, folder: Path) -> Data:
    """The same data as it is read from a packed file."""
    sets._pack(given, folder / "images.safetensors", "")
    return sets._unpack(given.name, folder / "images.safetensors")[0]


def test_what_another_version_packed_is_packed_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pair = [load("digits", tmp_path)] * 2
    both = sets.load_joined(pair, 8, tmp_path)
    files = sorted((tmp_path / "packed").rglob("*.safetensors"))
    before = [file.read_bytes() for file in files]
    monkeypatch.setattr(sets, "FORMAT", "continual packed data 0")
    with pytest.warns(Notice, match="digits: it was packed by another version; it is read anew"):
        again = load("digits", tmp_path)
    assert torch.equal(again.x, pair[0].x) and again.sha256 == pair[0].sha256
    assert torch.equal(sets.load_joined(pair, 8, tmp_path).x_test, both.x_test)
    assert len(files) == 2 and all(file.read_bytes() != old for file, old in zip(files, before, strict=True))
    load("digits", tmp_path)  # which says nothing any more


@pytest.mark.parametrize("shown", [
    None, Images(crop=2), Images(flip=True), Images(crop=1, flip=True, brightness=0.4, contrast=0.4, cutout=2),
    Images(crop=3, flip=True, replayed=False),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("made", [partial(split, tasks=2), partial(rotated, angles=(0, 30))], ids=["split", "rotated"])
@pytest.mark.parametrize("normalize", ["unit", "standard", "channel"])
def test_images_are_the_same_with_their_channels_last(
    made: Any, normalize: str, shown: Images | None, tmp_path: Path
) -> None:
    given = stream().data
    data = packed(given, tmp_path)
    assert channels_last(data.x) and not channels_last(given.x) and data.sha256 == given.sha256
    assert Data.sha256.func(data) == given.sha256 and torch.equal(data.x_test, given.x_test)  # type: ignore[attr-defined]
    plain, read = (made(one, normalize=normalize) for one in (given, data))
    rows = torch.tensor([3, 1, 39, 3, 17, 26, 8])
    (last,) = placement.laid_out([plain], channels_last=True)
    (again,) = placement.laid_out([last], channels_last=False)
    show = {} if shown is None else {"shown": Shown(shown, key(3), number=torch.tensor(1))}
    (both,) = placement.laid_out([read], channels_last=True)
    one, *others = (
        replace(laid.samples, **show).images(rows, torch.float32) for laid in (plain, again, read, last, both)
    )
    assert all(torch.equal(one, other) for other in others)
    assert all(other.is_contiguous() for other in (one, *others[:2]))
    for other in others[2:]:
        assert other.is_contiguous(memory_format=torch.channels_last) and not other.is_contiguous()


def test_one_channel_lies_as_it_is_asked_for() -> None:
    """Both forms are the same numbers in a row, but kernels go by the strides, which are to be those of the form."""
    x = torch.randint(0, 256, (4, 6, 5), dtype=torch.uint8)
    data = Data.from_arrays(x[:, None], torch.arange(4), x[:, None], torch.arange(4))
    rows = torch.tensor([2, 0, 1])
    for pixels in (x[:, None], x[..., None].movedim(-1, 1)):  # as they are given, and as they are read
        made = split(replace(data, x=pixels, x_test=pixels), tasks=2)
        assert made.samples.pixels.stride() == pixels.stride()
        for last, strides in ((False, (30, 30, 5, 1)), (True, (30, 1, 5, 1))):
            (laid,) = placement.laid_out([made], last)
            for samples in (
                laid.samples,
                replace(laid.samples, shown=Shown(Images(crop=1), key(0), number=torch.tensor(0))),
            ):
                found = samples.images(rows, torch.float32)
                assert found.stride() == strides
            torch.testing.assert_close(laid.samples.images(rows, torch.float32), x[rows, None] / 255)


@pytest.mark.parametrize(
    ("model", "device", "precision", "last"),
    [
        ("cnn:channels=2,units=2", CPU, "float32", True),
        ("mlp:layers=2", CPU, "float32", False),
        ("reduced-resnet18:width=16", CPU, "float32", True),
        ("reduced-resnet18:width=15", CPU, "float32", False),
        ("cnn:channels=2,units=2", GPU, "float32", False),
        ("cnn:channels=2,units=2", GPU, "tf32", True),
        ("cnn:channels=2,units=2", GPU, "bfloat16", True),
    ],
)
def test_channels_are_last_where_convolutions_like_it(
    model: str, device: torch.device, precision: str, last: bool
) -> None:
    net = config.make("models", model).build((3, 8, 8), 4)
    assert execution.helps(net, (3, 8, 8), device, precision) == last
    assert not execution.helps(net, (64,), device, precision)


class Watched(Samples):
    """Samples that say which images were read, and by whom."""

    def taken(self, image: torch.Tensor) -> torch.Tensor:
        vars(self)["read"].append((threading.current_thread().name, image.tolist()))
        return super().taken(image)


def samples(mapped: bool) -> tuple[Watched, list[tuple[str, list[int]]]]:
    plain = stream().samples
    read = list[tuple[str, list[int]]]()
    watched = Watched(plain.pixels, plain.image, plain.y, plain.task, 1.0, 0.0, 1.0, in_file=mapped)
    vars(watched)["read"] = read
    return watched, read


def test_images_of_later_steps_are_read_ahead() -> None:
    table, read = samples(mapped=True)
    batches = list(torch.arange(40).flip(0).split(2))
    seen = []
    for number, rows in enumerate(placement.read_ahead(table, batches)):
        seen.append(rows)
        images = [rows for _, rows in read]
        assert images[: number + 1] == [table.image[rows].tolist() for rows in batches[: number + 1]]
        assert len(read) <= number + 1 + placement.AHEAD
    assert all(map(torch.equal, seen, batches)) and len(seen) == len(read) == len(batches)
    assert threading.current_thread().name not in {name for name, _ in read}


def test_reading_ahead_stops_with_the_task_and_tells_what_goes_wrong() -> None:
    table, read = samples(mapped=True)
    steps = placement.read_ahead(table, list(torch.arange(40).split(1)))
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert len(read) <= 1 + placement.AHEAD
    with pytest.raises(IndexError):
        list(placement.read_ahead(table, [torch.tensor([10_000])]))


def test_nothing_is_read_ahead_of_images_in_memory() -> None:
    table, read = samples(mapped=False)
    assert len(list(placement.read_ahead(table, list(torch.arange(40).split(2))))) == 20 and not read


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("where", ["pinned", "mapped"])
def test_a_gpu_reads_the_images_of_the_host(where: placement.Where, tmp_path: Path) -> None:
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0)).to("cuda")
    for data in (stream().data, packed(stream().data, tmp_path)):
        (there,), (here,) = (placement.place([split(data, tasks=2)], GPU, one) for one in ("device", where))
        assert channels_last(here.samples.pixels) == channels_last(data.x)
        shown = Shown(Images(crop=1, flip=True), key(3, device=GPU), number=torch.tensor(1, device=GPU))
        for show in ({}, {"shown": shown}, {"shown": replace(shown, ways=shown.augmentation.ways(data.x, GPU))}):
            found, wanted = (replace(one.samples, **show).images(rows, torch.float32) for one in (here, there))
            assert torch.equal(found, wanted)
    if where == "pinned":
        torch.cuda.set_sync_debug_mode("error")
        try:
            here.samples.images(rows, torch.float32)
        finally:
            torch.cuda.set_sync_debug_mode("default")
