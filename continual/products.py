"""Products of matrices by oneDNN, on processors of which PyTorch's own products use half.

PyTorch multiplies matrices of float32 with MKL, which leaves AVX-512 alone on AMD's processors. oneDNN, with which PyTorch
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


@contextlib.contextmanager
def fast_products() -> Iterator[None]:
    """Within it, products of matrices are oneDNN's where that is faster; whoever asks for them, backward passes too."""
    if not _slow_without():
        yield
        return
    with by_onednn():
        yield


@contextlib.contextmanager
def by_onednn() -> Iterator[None]:
    """Within it, large products of float32 matrices on the CPU are oneDNN's."""
    made = _kernels()
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")  # older versions of PyTorch
            for name, kernel in made.items():
                library.impl(name, kernel, "CPU", with_keyset=True)
        yield
    finally:
        library._destroy()


def can() -> bool:
    """Whether this PyTorch has what :func:`by_onednn` needs."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.library, "get_kernel")
    )


@functools.cache
def _slow_without() -> bool:
    """Whether this processor has AVX-512 and is one of AMD's, and PyTorch multiplies with MKL."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available() or not can():
        return False
    if sys.platform.startswith("linux"):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    return "AuthenticAMD" in platform.processor()  # as Windows says it


@functools.cache
def _kernels() -> dict[str, Callable[..., Any]]:
    """What takes the place of PyTorch's own kernels, which do what is small or of another type."""
    own = {name: torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed for name in ("mm", "addmm", "bmm")}
    onednn, single = torch.ops.mkldnn._linear_pointwise.default, torch.float32

    def mm(keys: Any, a: Tensor, b: Tensor) -> Any:
        if a.dtype is not single or a.shape[0] * b.numel() < LEAST:
            return own["mm"](keys, a, b)
        return onednn(a, b.mT, None, "none", [], "")

    def addmm(keys: Any, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        plain = beta == alpha == 1 and bias.shape == b.shape[1:]
        if a.dtype is not single or a.shape[0] * b.numel() < LEAST or not plain:
            return own["addmm"](keys, bias, a, b, beta=beta, alpha=alpha)
        return onednn(a, b.mT, bias, "none", [], "")

    def bmm(keys: Any, a: Tensor, b: Tensor) -> Any:
        if a.dtype is not single or a.shape[1] * b[0].numel() < LEAST:
            return own["bmm"](keys, a, b)
        return torch.stack([onednn(x, y.mT, None, "none", [], "") for x, y in zip(a, b, strict=True)])

    return {"mm": mm, "addmm": addmm, "bmm": bmm}
