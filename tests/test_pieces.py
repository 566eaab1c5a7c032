"""Rows and runs of memory that are copied as pieces, against plain slices, also for seeds side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from continual.streams.pieces import taken

TABLES = torch.arange(3 * 7 * 2 * 5).reshape(3, 7, 2, 5)
INDEX = torch.tensor([[6, 0, 3, 3], [1, 1, 0, 6], [5, 4, 2, 0]])
MEMORY = torch.arange(3 * 24).reshape(3, 24)
START = torch.tensor([[0, 5, 2], [9, 9, 1], [3, 0, 10]])


class Called(TorchDispatchMode):
    """The names of the operations that are done within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_rows_and_runs_of_one_seed() -> None:
    assert torch.equal(taken(TABLES[0], INDEX[0]), TABLES[0][INDEX[0]])
    wanted = torch.stack([MEMORY[0, 2 * int(start) : 2 * int(start) + 4] for start in START[0]])
    assert torch.equal(taken(MEMORY[0], START[0], 4, 2), wanted)


@pytest.mark.parametrize(
    "dims", [(0, 0), (1, 0), (2, 1), (None, 0), (0, None), (-1, -1)], ids=str
)  # where the seeds lie in the table and in the index; None: all have the same
def test_seeds_side_by_side_get_each_its_rows(dims: tuple[int | None, int | None]) -> None:
    of_table, of_index = dims
    tables = TABLES[0] if of_table is None else TABLES.movedim(0, of_table)
    index = INDEX[0] if of_index is None else INDEX.movedim(0, of_index)
    with Called() as called:
        found = torch.vmap(taken, in_dims=dims)(tables, index)
    for seed in range(3):
        own = TABLES[0 if of_table is None else seed][INDEX[0 if of_index is None else seed]]
        assert torch.equal(found[seed], own)
    assert "aten::index_select" in called.names and not called.names & {"aten::gather", "aten::index"}


@pytest.mark.parametrize("dims", [(0, 0), (1, 1), (None, 0), (0, None)], ids=str)
def test_seeds_side_by_side_get_each_its_runs(dims: tuple[int | None, int | None]) -> None:
    of_memory, of_start = dims
    memory = MEMORY[0] if of_memory is None else MEMORY.movedim(0, of_memory)
    start = START[0] if of_start is None else START.movedim(0, of_start)
    found = torch.vmap(lambda memory, start: taken(memory, start, 4, 2), in_dims=dims)(memory, start)
    for seed in range(3):
        own = taken(MEMORY[0 if of_memory is None else seed], START[0 if of_start is None else seed], 4, 2)
        assert torch.equal(found[seed], own)


def test_seeds_within_seeds() -> None:
    tables = TABLES[:2, None].repeat(1, 3, 1, 1, 1)
    index = torch.stack([INDEX, INDEX.flip(1)])
    found = torch.vmap(torch.vmap(taken))(tables, index)
    assert all(torch.equal(found[a, b], TABLES[a][index[a, b]]) for a in range(2) for b in range(3))


def test_a_gradient_of_what_is_computed_from_them() -> None:
    tables = TABLES[..., 0].double()

    def gradient(weight: torch.Tensor, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        def loss(weight: torch.Tensor) -> torch.Tensor:
            return (weight * taken(table, index)).square().sum()

        return torch.func.grad(loss)(weight)

    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    with Called() as called:
        found = torch.vmap(gradient)(weights, tables, INDEX)
    assert "aten::index_select" in called.names and not called.names & {"aten::gather", "aten::index"}
    wanted = [2 * weights[seed] * tables[seed][INDEX[seed]].square().sum() for seed in range(3)]
    torch.testing.assert_close(found, torch.stack(wanted))
