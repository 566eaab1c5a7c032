"""Products of matrices by oneDNN, on processors of which PyTorch's own products use half.

PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 alone on AMD's processors. oneDNN, with which PyTorch
convolves, does not, and takes about half the time. Sums are of the same numbers, in another order.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 2**21
"""Multiplications from which on a product is oneDNN's: a smaller one is over before oneDNN has begun."""
STEP = 10_000_000
"""Multiplications of a forward pass from which on it pays that Python is asked at every product, for some 5 µs."""


@functools.cache
def faster() -> bool:
    """Whether oneDNN's are, where they are large: PyTorch has MKL, and the processor is one of AMD's with AVX-512."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available() or not can():
        return False
    return "AuthenticAMD" in processor()


def processor() -> str:
    """What the system says of it, its maker among it."""
    return Path("/proc/cpuinfo").read_text() if sys.platform.startswith("linux") else platform.processor()


def fast_products(multiplications: int = STEP) -> contextlib.AbstractContextManager[None]:
    """Within it, products are oneDNN's where that is faster, whoever asks for them, backward passes too.

    ``multiplications``: those of one seed's forward pass in a step.
    """
    return by_onednn() if used(multiplications) else contextlib.nullcontext()


def used(multiplications: int) -> bool:
    """Whether steps of so many multiplications are done with oneDNN's products."""
    return multiplications >= STEP and faster()


@contextlib.contextmanager
def by_onednn() -> Iterator[None]:
    """Within it, large products of float32 matrices on the CPU are oneDNN's."""
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
    """What takes the place of PyTorch's own kernels, which do what is small or of another type."""
    own = {name: torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed for name in ("mm", "addmm", "bmm")}
    onednn = torch.ops.mkldnn._linear_pointwise.default

    def large(a: Tensor, b: Tensor) -> bool:
        (*many, rows, inner), (*others, between, columns) = a.shape, b.shape
        matched = many == others and inner == between and a.dtype is b.dtype is torch.float32
        return matched and rows * inner * columns >= LEAST

    def mm(keys: Any, a: Tensor, b: Tensor) -> Any:
        return onednn(a, b.mT, None, "none", [], "") if large(a, b) else own["mm"](keys, a, b)

    def addmm(keys: Any, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        if large(a, b) and beta == alpha == 1 and bias.shape == b.shape[1:] and bias.dtype is a.dtype:
            return onednn(a, b.mT, bias, "none", [], "")
        return own["addmm"](keys, bias, a, b, beta=beta, alpha=alpha)

    def bmm(keys: Any, a: Tensor, b: Tensor) -> Any:
        if large(a, b) and len(a):
            return torch.stack([onednn(x, y.mT, None, "none", [], "") for x, y in zip(a, b, strict=True)])
        return own["bmm"](keys, a, b)

    return {"mm": mm, "addmm": addmm, "bmm": bmm}
