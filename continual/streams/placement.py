"""Where the images of a run lie, and how a step gets at them; the numbers are the same wherever that is."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import torch

from continual.errors import BadOption
from continual.streams.pieces import channels_last
from continual.streams.rng import key
from continual.streams.stream import Samples, Stream

if TYPE_CHECKING:
    from torch import Tensor

Where = Literal["device", "pinned", "mapped"]

SHARE = 0.5
"""Of the memory that is free, images take so much at most; the rest is for learning."""
AHEAD = 8
"""So many steps before they are needed, images are read from their file."""


def choose(streams: Sequence[Stream], device: torch.device, asked: Literal["auto"] | Where = "auto") -> Where:
    """Where the images will lie: as asked, else by the memory that is free.

    ``device``: in the device's memory (on a CPU: where they are). ``pinned``: in the host's memory, from which a GPU
    reads the images of a step by itself. ``mapped``: in their file, from which they are read as they are needed.
    Raises :class:`~continual.errors.BadOption` for ``pinned`` without a GPU, and for ``mapped`` without a file.
    """
    if asked == "pinned" and device.type != "cuda":
        raise BadOption(
            "pixels=pinned is memory that a GPU reads from, and this run is on the CPU; use device or mapped"
        )
    if asked == "mapped" and not on_disk(streams):
        raise BadOption(f"pixels=mapped: the images of {streams[0].data.name} are in memory, not in a packed file "
                        "(they were given as arrays, padded, or could not be packed); use device")  # fmt: skip
    if asked != "auto":
        return asked
    needed = image_bytes(streams)
    if needed <= SHARE * free_memory(device):
        return "device"
    if not on_disk(streams):  # they take the host's memory already
        return "device" if device.type == "cpu" else "pinned"
    on_gpu = device.type == "cuda"
    return "pinned" if on_gpu and needed <= SHARE * free_memory(torch.device("cpu")) else "mapped"


def on_disk(streams: Sequence[Stream]) -> bool:
    """Whether all images are mapped from packed files, and take no memory of their own."""
    return all(one.data.packed and one.samples.pixels is one.data.x for one in streams)


def image_bytes(streams: Sequence[Stream]) -> int:
    """The bytes that the streams' images take."""
    held = {id(part.pixels): part.pixels for one in streams for part in (one.samples, one.test_samples)}
    return sum(pixels.nbytes for pixels in held.values())


def free_memory(device: torch.device) -> int:
    """The bytes that are free on a device; of a CPU's memory, what can be had without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def place(streams: Sequence[Stream], device: torch.device | str, where: Where = "device") -> list[Stream]:
    """The streams on a device, their images as :func:`choose` says; those that share their pixels there do so here."""
    device, moved = torch.device(device), dict[int, torch.Tensor]()

    def samples(old: Samples) -> Samples:
        if id(old.pixels) not in moved:
            moved[id(old.pixels)] = _placed(old.pixels, device, where)
        tables = tuple(table.to(device) for table in old.tables)
        channel = None if old.channel is None else old.channel.to(device)
        pixels, in_file = moved[id(old.pixels)], where == "mapped"
        return dataclasses.replace(old, pixels=pixels, channel=channel, in_file=in_file).with_tables(tables)

    def one(stream: Stream) -> Stream:
        train, outputs = samples(stream.samples), stream.tasks[0].outputs.to(device)
        tasks = tuple(
            dataclasses.replace(
                task,
                samples=train,
                outputs=outputs,
                train=task.train.to(device),
                validation=task.validation.to(device),
                test=task.test.to(device),
                key=key(task.key.seed, task.index, 0, device),
            )
            for task in stream.tasks
        )
        return dataclasses.replace(
            stream,
            samples=train,
            tasks=tasks,
            test_samples=samples(stream.test_samples),
            test_outputs=stream.test_outputs.to(device),
        )

    return [one(stream) for stream in streams]


def laid_out(streams: Sequence[Stream], channels_last: bool) -> list[Stream]:
    """The streams with batches of images laid out in memory as kernels for convolutions like them, or as usual."""

    def samples(part: Samples) -> Samples:
        channel = part.channel
        if channel is not None:
            channel = channel[..., :1, :1]
            if channels_last:  # a number for each pixel, for what lies in another way is multiplied slowly
                whole = channel.expand(-1, *part.pixels.shape[1:])
                channel = whole.contiguous(memory_format=torch.channels_last)
        return dataclasses.replace(part, channel=channel, channels_last=channels_last)

    def one(stream: Stream) -> Stream:
        return stream.with_samples(samples(stream.samples), samples(stream.test_samples))

    return [one(stream) for stream in streams]


def _placed(pixels: Tensor, device: torch.device, where: Where) -> Tensor:
    if where == "device":
        return pixels.to(device)
    return _pinned(pixels, device) if where == "pinned" else pixels


class _Seen:
    """Pinned memory as a GPU sees it, by the protocol that PyTorch makes a tensor from without copying."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.__cuda_array_interface__ = {
            "shape": tuple(memory.shape),
            "typestr": {torch.uint8: "|u1", torch.float32: "<f4"}[memory.dtype],
            "data": (memory.data_ptr(), False),
            "version": 3,
        }


def _pinned(pixels: Tensor, device: torch.device) -> Tensor:
    """A tensor of the GPU's whose memory is the host's: an index into it moves the rows asked for, and no others."""
    last = channels_last(pixels)
    # a file's mapping cannot be pinned; PyTorch's own pinned memory wastes half
    memory = (pixels.movedim(1, -1) if last else pixels).contiguous().clone()
    error = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if int(error) != 0:
        raise BadOption(f"pixels=pinned: {memory.nbytes:,} bytes of memory cannot be pinned ({error}); use mapped")
    seen: Tensor = torch.as_tensor(_Seen(memory), device=device)
    return seen.movedim(-1, 1) if last else seen


def read_ahead(samples: Samples, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The rows of each step, while the images of later steps are read from their file, if they are still there.

    What is read goes into the system's cache. Images that a strategy replays are left to the step: they are few, and
    were read not long ago.
    """
    if not samples.in_file:
        yield from batches
        return

    def read(rows: Tensor) -> None:
        index = samples.image[rows.flatten()].to(samples.pixels.device)
        samples.taken(index)

    with ThreadPoolExecutor(1) as pool:
        begun: deque[Future[None]] = deque()
        upcoming = iter(batches)
        try:
            for rows in batches:
                begun.extend(pool.submit(read, one) for one in itertools.islice(upcoming, AHEAD + 1 - len(begun)))
                begun.popleft().result()
                yield rows
        finally:
            pool.shutdown(cancel_futures=True)
