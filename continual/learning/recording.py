"""What a function does on a processor, noted operation by operation and done again.

Python, autograd and the search for memory are left out of it, which take a third of the time of a small step. It is
what a CUDA graph is on a GPU, and asks the same of the function: what it reads and writes stays where it lies, nothing
depends on a value but by operations, and shapes are always the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from continual.learning.notes import ATEN, COPIES, NOTHING, Asking, CannotRecord, Done, Notes, into, parts, tensors
from continual.learning.seeds import storage_of
from continual.learning.spared import done_once, in_place, of_use

if TYPE_CHECKING:
    from torch import Tensor

IMPURE = "a step gives something else when it is done again"


class View(NamedTuple):
    """A tensor, and how it lies in its storage."""

    tensor: Tensor
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    def turn_to(self, storage: torch.UntypedStorage) -> None:
        """The tensor lies in another storage, in the same way."""
        self.tensor.set_(storage, self.offset, self.size, self.stride)


class Call(NamedTuple):
    """An operation to be done; ``moved``: which of its results come to lie elsewhere, and all that lies there."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moved: list[tuple[int, list[View]]]
    grad: bool
    """Whether gradients could be asked for, which some operations prepare for."""


class Recording:
    """What a function did, to be done again; ``result`` is what it gave, and is written over.

    An operation that can be told where to write writes where it wrote before; what others give comes to lie in the
    place of what they gave. Views are there already. What gives the same each time is done ``once``, and again only
    where the recording is ``stale``: what lies in the storages ``steady`` may have changed. ``draws``: whether random
    numbers are drawn from PyTorch's generator, which are other ones each time.
    """

    def __init__(self, done: list[Done], outside: list[Tensor], result: Tensor | None, steady: set[int]) -> None:
        self.once, self.calls, self.outside, self.stale = list[Call](), list[Call](), outside, True
        self.twins: dict[int, Tensor] = {}
        self.lying: dict[int, list[View]] = defaultdict(list)
        kept = set() if result is None else {storage_of(result)}
        done = of_use(done, kept)
        self.draws = any(one.draws for one in done)
        once = done_once(done, steady)
        left_out, self.placed = in_place(done, once, kept)
        self.result: Tensor | None = self._twins(result)
        pairs = zip(done, once, strict=True)
        made, moving = self._note_calls([pair for n, pair in enumerate(pairs) if n not in left_out])
        self._share_memory(made - moving - kept)
        del self.twins, self.lying, self.placed

    def _note_calls(self, done: list[tuple[Done, bool]]) -> tuple[set[int], set[int]]:
        """The calls; the storages that those of each time make, and those of them that are new then."""
        made, moving = set[int](), set[int]()
        moves: list[tuple[Call, list[tuple[int, int]]]] = []
        for one, once in done:
            name, fresh, calls = one.operation._schema.name, one.made, self.once if once else self.calls
            made |= set() if once else fresh
            if (one.pure and not (one.written or fresh)) or name in NOTHING:
                continue
            args, kwargs = self._twins((one.args, one.kwargs))
            writing = None if one.written else into(one.operation)
            if name in COPIES:
                calls.append(Call(ATEN.copy_.default._op, (self._twins(one.found), args[0]), {}, [], one.grad))
            elif writing is not None:
                function, names = writing
                kwargs |= dict(zip(names, self._twins(one.results), strict=True))
                calls.append(Call(function, args, kwargs, [], one.grad))
            else:
                calls.append(Call(one.operation._op, args, kwargs, [], one.grad))
                places = [(n, storage_of(part)) for n, part in enumerate(one.results) if part is not None]
                moves.append((calls[-1], [(n, place) for n, place in places if place in fresh]))
                moving |= fresh
        for call, new in moves:
            call.moved.extend((n, self.lying[place]) for n, place in new if place in self.lying)
        return made, moving

    def _twins(self, tree: Any) -> Any:
        """The same with tensors that know no gradients, in the same places."""
        if isinstance(tree, torch.Tensor):
            if id(tree) not in self.twins:
                self.twins[id(tree)] = self._twin(tree)
            return self.twins[id(tree)]
        if isinstance(tree, dict):
            return {name: self._twins(one) for name, one in tree.items()}
        return type(tree)(map(self._twins, tree)) if isinstance(tree, (tuple, list)) else tree

    def _twin(self, tensor: Tensor) -> Tensor:
        twin, storage = tensor.detach(), storage_of(tensor)
        if storage in self.placed:
            place = self.placed[storage].untyped_storage()
            twin.set_(place, tensor.storage_offset(), tensor.size(), tensor.stride())
            storage = storage_of(self.placed[storage])
        self.lying[storage].append(View(twin, int(twin.storage_offset()), twin.size(), twin.stride()))
        return twin

    def _share_memory(self, places: set[int]) -> None:
        """What lies in these storages comes to lie in fewer, which are used again when nobody reads them any more."""
        touched = [{storage_of(one) for one in tensors((call.args, call.kwargs))} & places for call in self.calls]
        last = {place: number for number, found in enumerate(touched) for place in found}
        free, taken = list[torch.UntypedStorage](), dict[int, torch.UntypedStorage]()
        for number, found in enumerate(touched):
            for place in found - taken.keys():
                size = self.lying[place][0].tensor.untyped_storage().nbytes()
                fits = [one for one in free if size <= one.nbytes() <= 2 * size]
                # of equals the one that was let go last, which is still near
                taken[place] = min(reversed(fits), key=lambda one: one.nbytes()) if fits else torch.UntypedStorage(size)
                free = [one for one in free if one is not taken[place]]
            free += [taken[place] for place in found if last[place] == number]
        for place, storage in taken.items():
            for view in self.lying[place]:
                view.turn_to(storage)

    def again(self) -> Tensor | None:
        """Do it again."""
        if self.stale:
            self._do(self.once)
            self.stale = False
        self._do(self.calls)
        return self.result

    @staticmethod
    def _do(calls: list[Call]) -> None:
        set_grad, before = torch._C._set_grad_enabled, torch.is_grad_enabled()
        now = before
        try:
            with torch._C._AutoDispatchBelowAutograd():
                for function, args, kwargs, moved, grad in calls:
                    if grad is not now:
                        set_grad(grad)
                        now = grad
                    found = function(*args, **kwargs)
                    for number, views in moved:
                        storage = parts(found)[number].untyped_storage()
                        for view in views:
                            view.turn_to(storage)
        finally:
            set_grad(before)

    def compared(self, function: Callable[[], Tensor | None]) -> tuple[bool, Tensor | None]:
        """Whether it does what the function does, by all bits that they write; and what that gives, which is done.

        Raises :class:`CannotRecord` where it cannot be done again; then nothing is done.
        """
        before, drawn = [one.clone() for one in self.outside], torch.get_rng_state()
        try:
            mine = [None if one is None else _bits(one).clone() for one in (self.again(), *self.outside)]
        except Exception as error:  # what is wrong with the function itself is raised when it is called
            raise CannotRecord(f"PyTorch cannot do it again ({type(error).__name__})") from error
        finally:
            torch.set_rng_state(drawn)
            for one, value in zip(self.outside, before, strict=True):
                one.copy_(value)
        wanted = function()
        pairs = zip(mine, (wanted, *self.outside), strict=True)
        return all(one is None or other is None or torch.equal(one, _bits(other)) for one, other in pairs), wanted


def recorded(function: Callable[[], Tensor | None], steady: Iterable[Tensor] = ()) -> tuple[Recording | None, str]:
    """What a function does, which is undone, or why it cannot be recorded.

    ``steady``: tensors that nobody else writes to, unless the recording is said to be stale.
    """
    notes, drawn = Notes(), torch.get_rng_state()
    try:
        with Asking(), notes:
            result = function()
        outside = [one for one, _ in notes.outside.values()]
        return Recording(notes.done, outside, result, set(map(storage_of, steady))), ""
    except CannotRecord as reason:
        return None, str(reason)
    except Exception as error:  # what is wrong with the function itself is raised when it is called next
        return None, f"PyTorch cannot record it ({type(error).__name__})"
    finally:
        notes.undo()
        torch.set_rng_state(drawn)


def _bits(value: Tensor) -> Tensor:
    """The bits of a tensor's numbers, as whole numbers of the same size, of which many are compared at once."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(value.element_size(), torch.int64)
    return value.resolve_conj().resolve_neg().reshape(-1).view(whole)
