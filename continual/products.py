"""Products of matrices by oneDNN, on processors of which PyTorch's own products use half.

PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 alone on AMD's processors. oneDNN, with which PyTorch
convolves, does not, and takes about half the time. Sums are of the same numbers, in another order.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 2**21
"""Multiplications from which on a product is oneDNN's: a smaller one is over before oneDNN has begun."""
APART = 128
"""Numbers of 32 bits: columns that lie a multiple of it apart share too few places of a processor's nearest memory."""
STEP = 10_000_000
"""Multiplications of a forward pass from which on it pays that Python is asked at every product, for some 5 µs."""


def used(multiplications: int, device: torch.device, precision: str) -> bool:
    """Whether steps are done with oneDNN's products, of so many multiplications in one seed's forward pass."""
    return device.type == "cpu" and precision != "float64" and multiplications >= STEP and faster()


@functools.cache
def faster() -> bool:
    """Whether oneDNN's are, where they are large: PyTorch has MKL, and the processor is one of AMD's with AVX-512."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available() or not can():
        return False
    return "AuthenticAMD" in processor()


def processor() -> str:
    """What the system says of it, its maker among it."""
    told = Path("/proc/cpuinfo")  # of Linux
    return told.read_text() if told.exists() else platform.processor()


def fast_products() -> contextlib.AbstractContextManager[None]:
    """Within it, products are oneDNN's where that is faster, whoever asks for them, backward passes too."""
    return by_onednn() if faster() else contextlib.nullcontext()


class _Here(threading.local):
    """How often this thread is within :func:`by_onednn`."""

    inside = 0


_lock, _inside, _held, _here = threading.Lock(), 0, contextlib.ExitStack(), _Here()


@contextlib.contextmanager
def by_onednn() -> Iterator[None]:
    """Within it, large products of float32 matrices on the CPU are oneDNN's, those of this thread.

    PyTorch's kernels are replaced for the whole process until the last that is within has left, and PyTorch does not
    guard that: another thread must not multiply in the very moment in which the first enters or the last leaves.
    """
    global _inside  # noqa: PLW0603  (so is what is replaced)
    with _lock:
        if not _inside:
            _held.enter_context(_replaced())
        _inside += 1
    _here.inside += 1
    try:
        yield
    finally:
        _here.inside -= 1
        with _lock:
            _inside -= 1
            if not _inside:
                _held.close()


@contextlib.contextmanager
def _replaced() -> Iterator[None]:
    made = _kernels()
    with torch.library._scoped_library("aten", "IMPL") as library:
        with warnings.catch_warnings():  # PyTorch 2.11 does
            warnings.filterwarnings("ignore", "Warning only once for all operators")
            for name, kernel in made.items():
                library.impl(name, kernel, "CPU", with_keyset=True)
        yield


def can() -> bool:
    """Whether this PyTorch has what :func:`by_onednn` needs."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.library, "get_kernel")
    )


@functools.cache
def _kernels() -> dict[str, Callable[..., Any]]:
    """What takes the place of PyTorch's own kernels, which do what is small, of another type, or a mistake."""
    return {name: _kernel(name) for name in ("mm", "addmm", "bmm")}


def _kernel(name: str) -> Callable[..., Any]:
    own, operation = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed, getattr(torch.ops.aten, name).default

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        def do(part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return own(keys, *args, **kwargs) if part is operation else part(*args, **kwargs)

        return performed(operation, args, kwargs, do)

    return kernel


Do = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Does an operation with what it is given."""


def performed(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], do: Do) -> Any:
    """What an operation gives, by ``do`` alone: where oneDNN multiplies, by operations that do not ask Python again."""
    aten = torch.ops.aten
    if operation is aten.bmm.default and _suits(args[0], args[1], 3):
        return _products(args[0], args[1], do)
    if operation in (aten.mm.default, aten.addmm.default):
        *bias, a, b = args
        if _suits(a, b, 2) and all(_adds(one, b, **kwargs) for one in bias):
            return _product(a, b, bias[0] if bias else None, do)
    return do(operation, args, kwargs)


def _product(a: Tensor, b: Tensor, bias: Tensor | None, do: Do) -> Any:
    """ab, with the bias added to each row."""
    if not a.is_contiguous() and a.stride(1) % APART and torch.get_num_threads() > 1:
        # oneDNN asks for a copy, which PyTorch makes by one thread where it is a matrix turned around
        a = do(torch.ops.aten.cat.default, ([a],), {})
    return do(torch.ops.mkldnn._linear_pointwise.default, (a, b.mT, bias, "none", [], ""), {})


def _products(a: Tensor, b: Tensor, do: Do) -> Any:
    """The product of each two matrices of many."""
    out = do(torch.ops.aten.new_empty.default, (a, [len(a), a.shape[1], b.shape[2]]), {})
    for place, one, other in zip(out, a, b, strict=True):  # each is copied while the processor still has it at hand
        do(torch.ops.aten.copy_.default, (place, _product(one, other, None, do)), {})
    return out


def _suits(a: Tensor, b: Tensor, dimensions: int) -> bool:
    """Whether oneDNN is to multiply here: matrices of float32 that match and are large, the second without gaps.

    Where there are gaps in the second, or its rows overlap, oneDNN takes a thousand times as long or refuses.
    """
    if not (_here.inside and a.ndim == b.ndim == dimensions and a.dtype is b.dtype is torch.float32):
        return False
    (*many, rows, inner), (*others, between, columns), (*_, down, along) = a.shape, b.shape, b.stride()
    if many != others or inner != between or rows * inner * columns < LEAST:
        return False
    return (along == 1 and down == columns) or (down == 1 and along == between)


def _adds(bias: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> bool:
    """Whether oneDNN can add it to each row of a product with b: it reads numbers that lie side by side."""
    return beta == alpha == 1 and bias.shape == b.shape[1:] and bias.dtype is b.dtype and bias.is_contiguous()
