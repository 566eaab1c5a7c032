"""Split Digits: scikit-learn's bundled handwritten digits, 8x8, in tasks of some classes each. Needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.streams.benchmark import SplitBenchmark


@dataclass(frozen=True)
class SplitDigits(SplitBenchmark):
    """Handwritten digits of 8x8 pixels (scikit-learn's bundled set), divided by class."""

    data: ClassVar[str] = "digits"


if __name__ == "__main__":
    import continual

    continual.script("split-digits")
