"""Networks that are PyTorch modules: a body that gives features, and a linear head."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.func import functional_call

from continual.errors import BadChain, BadOption, choices
from continual.learning import layers
from continual.learning.models import LinearNet, Net, Out, check_size
from continual.learning.norms import OF_PYTORCH, BatchNorm, replaced
from continual.streams.rng import pytorch_left_alone

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.models import VisionTransformer

    from continual.learning.norms import Statistics
    from continual.streams.rng import Key


OF_TORCH = ("torch.nn.", "continual.", "torchvision.")
"""Where the layers are written of which it is known what they do in training mode, and by which name they say how much
they drop."""


def small_enough(make: Callable[[], Headed]) -> Callable[[], Headed]:
    """The same function, if what it makes fits into memory, which is found out before any of it is made.

    Raises :class:`~continual.errors.OutOfMemory`.
    """
    with torch.device("meta"):
        check_size(sum(one.numel() for one in make().parameters()))
    return make


class Headed(nn.Module):
    """A body, which gives features (B, D), and the head.

    Where a body is an ``nn.Sequential``, those of its parts in front that are not trained are computed once.
    """

    def __init__(self, body: nn.Module, features: int, units: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(features, units)

    def forward(self, x: Tensor) -> Out:
        """Logits and features."""
        features = self.body(x).flatten(1)
        return Out(self.head(features), features)


class ModuleNet(Net):
    """A module as a pure function of θ: its trained parameters, and behind them the running statistics of BatchNorm.

    ``make`` gives the module with new random parameters (drawn by PyTorch's generator, which is seeded for it), or with
    those that were learnt elsewhere. ``trained`` says by name which parameters θ has, of those that want a gradient
    (``requires_grad``); the others stay as they are, for all seeds the same, and so do the statistics of a BatchNorm
    that is not trained. PyTorch's BatchNorm is replaced by one whose statistics θ has. The module is in training mode
    in :meth:`learn`, but for parts of which nothing is trained, and else in evaluation mode.
    ``statistics``: ``running``, or ``task`` (see :class:`~continual.learning.norms.BatchNorm`), where a task that was
    not learnt yet has those of the last that was; with ``frozen`` they stay as the first task left them that was learnt
    from a new network, or as they were ``given``, learnt elsewhere.

    Raises :class:`~continual.errors.BadOption` for a module without a linear head, with lazy layers, of which nothing
    is trained, that is the same one each time, with a BatchNorm that cannot be replaced, with complex parameters, with
    embeddings of sparse gradients or of norms that are held, or compiled by TorchScript.
    """

    def __init__(
        self, make: Callable[[], Headed], trained: Callable[[str], bool] = lambda name: True,
        statistics: Statistics = "running", given: bool = False,
    ) -> None:  # fmt: skip
        self.make = functools.partial(_with_our_norms, make, statistics)
        self.module = self._made(0)
        parameters = dict(self.module.named_parameters())
        self.trained = [name for name, one in parameters.items() if one.requires_grad and trained(name)]
        if not self.trained:
            raise BadOption(f"none of the network's parameters is trained; it has {choices(list(parameters)[:10])}"
                            f"{', ...' if len(parameters) > 10 else ''}")  # fmt: skip
        for name in self.trained:
            if parameters[name].is_complex():
                raise BadOption(f"{name} is complex, and θ is of real numbers; make real and imaginary parts "
                                "parameters of their own, joined by torch.complex")  # fmt: skip
        self._resting = _resting(self.module, {id(parameters[name]) for name in self.trained})
        self.module.requires_grad_(False)
        moving = [one for one in self.module.modules() if one not in self._resting]
        self.changes = any(map(_may_change, moving))
        self.modes = [one for one in moving if _may_change(one)]
        for one in self.module.modules():
            # PyTorch's attention goes another way out of training, which seeds side by side cannot
            one.training = not _may_change(one)
        self.how = statistics
        self.tied = len(parameters) < len(list(self.module.named_parameters(remove_duplicate=False)))
        convolutions = [one for one in self.module.modules() if isinstance(one, nn.Conv2d)]
        self.convolves, self.skips = bool(convolutions), any(map(skips, convolutions))
        norms = {name: one for name, one in self.module.named_modules() if isinstance(one, BatchNorm)}
        self.by_task = [one for one in norms.values() if one.count is not None]
        # a layer of which nothing is trained keeps its statistics too
        self.norms = {name: one for name, one in norms.items() if one not in self._resting}
        whole = {**parameters, **dict(self.module.named_buffers())}
        self.buffers = [f"{name}.{statistic}" for name in self.norms for statistic in ("running_mean", "running_var")]
        super().__init__({name: tuple(whole[name].shape) for name in (*self.trained, *self.buffers)})
        self.head = tuple(name for name in Net.head if name in self.shapes)
        self.own = [name for name in self.buffers if len(self.shapes[name]) > 1]  # (T, C): each task has its own
        self.kept = {name: value for name, value in whole.items() if name not in self.shapes}
        self.frozen = sum(value.numel() for value in self.kept.values())
        self._kept_as: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
        self._versions: dict[tuple[torch.device, torch.dtype], dict[str, int]] = {}
        self.statistics = sum(math.prod(self.shapes[name]) for name in self.buffers)
        self.given = given
        self._by_layers: bool | None = None

    def initial(self, key: Key, dtype: torch.dtype) -> Tensor:
        """See :meth:`Net.initial`."""
        module = self._made(int(key.bits("network", 1)))
        own = set(map(id, self.module.parameters()))
        if any(id(one) in own for one in module.parameters()):
            raise BadOption("make gives the same parameters each time, so all seeds would begin alike, and what one "
                            "learns would be in the other; it makes a new module at each call, by copy.deepcopy where "
                            "weights were learnt elsewhere")  # fmt: skip
        values = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        whole = torch.cat([values[name].detach().to(dtype).flatten() for name in self.shapes])
        return whole.to(key.seed.device)

    def _made(self, seed: int) -> Headed:
        """A module whose random parameters are drawn from a seed."""
        with pytorch_left_alone(torch.device("cpu")):
            torch.default_generator.manual_seed(seed)
            return self.make()

    def forward(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Out:
        """See :meth:`Net.forward`: by the running statistics, through which no gradient goes."""
        return self._called(theta, x, tasks, batch_statistics=False)

    def learn(self, theta: Tensor, x: Tensor, tasks: Tensor, fixed: bool = False) -> tuple[Out, Tensor | None]:
        """See :meth:`Net.learn`."""
        for one in self.modes:
            one.training = True
        try:
            return self._learnt(theta, x, tasks, fixed)
        finally:
            for one in self.modes:
                one.training = False

    def _learnt(self, theta: Tensor, x: Tensor, tasks: Tensor, fixed: bool) -> tuple[Out, Tensor | None]:
        if not self.statistics:
            return self.forward(theta, x, tasks), None
        if fixed:
            # a copy: the optimiser changes θ before they are put back
            return self.forward(theta, x, tasks), theta[..., -self.statistics :].detach().clone()
        out, before = self._called(theta, x, tasks, batch_statistics=True), self.parameters(theta)
        parts: list[Tensor] = []
        for name, one in self.norms.items():
            # a layer that was not called has those that it had
            parts += one.fresh or (before[f"{name}.running_mean"].detach(), before[f"{name}.running_var"].detach())
            one.fresh = None
        return out, torch.cat([part.flatten() for part in parts])

    def fixed(self, theta: Tensor) -> bool:
        """See :meth:`Net.fixed`: frozen ones, once they were learnt; of a new network all means are 0."""
        if self.how != "frozen" or not self.statistics:
            return False
        means = [part for name, part in self.parameters(theta).items() if name.endswith(".running_mean")]
        return self.given or bool(torch.stack([mean.any() for mean in means]).any())

    def hand_on(self, theta: Tensor, index: int) -> None:
        """See :meth:`Net.hand_on`."""
        for name in self.own:
            table = self.parameters(theta)[name]
            table[..., index + 1 :, :] = table[..., index : index + 1, :]

    @property
    def mixes(self) -> bool:
        """See :meth:`Net.mixes`: where it normalises by the batch, or drops units."""
        return type(self).learn is not ModuleNet.learn or bool(self.statistics) or self.changes

    def check_kept(self) -> None:
        """See :meth:`Net.check_kept`: none of the module's buffers that are not part of θ."""
        for kind, versions in self._versions.items():
            for name, version in versions.items():
                if self._kept_as[kind][name]._version != version:
                    raise BadChain(f"the network writes to its {name}, which is not part of θ: a seed would begin with "
                                   "what another one left there, and a run that goes on without it")  # fmt: skip

    def still(self) -> Still | None:
        """The parts that never change, from the images on; None where none of them has a parameter.

        None, too, where a module has hooks, which want to see every pass of the network as it is.
        """
        mine = (type(self).forward, type(self).learn, type(self.module).forward)
        if mine != (ModuleNet.forward, ModuleNet.learn, Headed.forward) or any(map(_watched, self.module.modules())):
            return None
        body = self.module.body
        parts = _parts(body) if type(body).forward is nn.Sequential.forward else [("", body)]
        theirs = {id(value) for name, value in self.module.named_parameters() if name in self.shapes}

        def stays(part: nn.Module) -> bool:
            moving = [one for one in part.modules() if one not in self._resting]
            return not (any(id(one) in theirs for one in part.parameters()) or any(map(_changes, moving)))

        kept = list(itertools.takewhile(lambda one: stays(one[1]), parts))
        front, behind = ({id(one) for _, part in some for one in part.parameters()}
                         for some in (kept, parts[len(kept) :]))  # fmt: skip
        if not front or front & behind:  # a layer may be called twice
            return None
        whole = len(kept) == len(parts)
        return Still(self, body if whole else nn.Sequential(OrderedDict(kept)), len(kept), whole)

    @property
    def through_its_parts(self) -> bool:
        """Whether a batch goes through body and head and nothing else; a class of a user's own may say otherwise."""
        return self._goes_as(ModuleNet) and type(self.module).forward is Headed.forward

    @property
    def trains_a_linear_head(self) -> bool:
        """Whether a linear layer at the end, of no kind of its own, is all that is trained."""
        return set(self.shapes) == set(Net.head) and type(self.module.head) is nn.Linear

    def linear_layers(
        self, theta: Tensor, x: Tensor, tasks: Tensor | None = None
    ) -> list[tuple[str, Tensor, Tensor]] | None:
        """See :meth:`Net.linear_layers`: the head, where nothing else is trained."""
        if not (self.through_its_parts and self.trains_a_linear_head):
            return None
        logits, features = self.forward(theta, x, tasks)
        return [("head", features, logits)]

    def layered(
        self, theta: Tensor, x: Tensor, tasks: Tensor | None = None
    ) -> tuple[Tensor, list[layers.Layer]] | None:
        """See :meth:`Net.layered`."""
        found: dict[str, layers.Layer | None] = {}
        own = {name: self.module.get_submodule(name) for name in {one.rpartition(".")[0] for one in self.trained}}

        dimensions = {name: _dimensions(module) for name, module in own.items()}

        def watch(name: str, module: nn.Module) -> Callable[..., Tensor]:
            def hook(_: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
                known = name not in found and given and given[0].dim() in dimensions[name]
                known = known and len(given[0]) == len(x)
                found[name] = _layer(name, module, given[0], output) if known else None
                return output.clone()  # a layer behind it may write over what it is given

            return hook

        if self.tied or not all(dimensions.values()) or not self._acts_through(own, theta, x, tasks):
            return None
        with _hooked((module, watch(name, module)) for name, module in own.items()):
            logits = self.logits(theta, x, tasks)
        each = [one for one in found.values() if one is not None]
        return (logits, each) if len(each) == len(own) else None

    def _acts_through(self, own: dict[str, nn.Module], theta: Tensor, x: Tensor, tasks: Tensor | None) -> bool:
        """Whether parameters act on the logits through these layers alone, as far as one image shows; found out once.

        A weight may also be used elsewhere, by its name. Then the gradient is not what the layers' outputs say.
        """
        if self._by_layers is None:
            live, one = theta.detach().requires_grad_(), None if tasks is None else tasks[:1]
            outputs: list[Tensor] = []

            def keep(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
                outputs.append(output)
                return output.clone()

            with _hooked((module, keep) for module in own.values()), torch.enable_grad():
                logits = self.logits(live, x[:1], one)
                first = list(outputs)
                whole, *deltas = torch.autograd.grad(logits[0] @ _slope(logits[0]), [live, *first], allow_unused=True)
                # once more, with layers that know nothing of each other
                outputs.clear()
                with contextlib.ExitStack() as stack:
                    for module in own.values():
                        stack.callback(module.register_forward_pre_hook(_alone).remove)
                    self.logits(live, x[:1], one)
                used = [(output, delta) for output, delta in zip(outputs, deltas, strict=True) if delta is not None]
                (parts,) = torch.autograd.grad([one for one, _ in used], live, [delta for _, delta in used])
            self._by_layers = bool((whole - parts).abs().max() <= 1e-4 * whole.abs().max())
        return self._by_layers

    def work(self, shape: tuple[int, ...]) -> int:
        """See :meth:`Net.work`: those of convolutions, linear layers and attention."""
        return sum(_work(module, given, output) for module, given, output in self._calls(shape))

    def widest(self, shape: tuple[int, ...]) -> int:
        """See :meth:`Net.widest`."""
        return max(math.prod(shape), *(output.numel() for _, _, output in self._calls(shape)))

    def _calls(self, shape: tuple[int, ...]) -> list[tuple[nn.Module, Tensor, Tensor]]:
        """Each module with what goes in and comes out for one image (C, H, W)."""
        found: list[tuple[nn.Module, Tensor, Tensor]] = []

        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output  # logits; what attention makes, not its weights
            if given and isinstance(given[0], torch.Tensor) and isinstance(first, torch.Tensor):
                found.append((module, given[0], first))

        # not on PyTorch's device "meta", which imports its compiler for a convolution
        with _hooked((module, hook) for module in self.module.modules()), torch.no_grad():
            self.forward(torch.zeros(self.size), torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64))
        return found

    def _called(self, theta: Tensor, x: Tensor, tasks: Tensor | None, batch_statistics: bool) -> Out:
        p = self.parameters(theta)
        given = {name: p[name] for name in self.trained} | {name: p[name].detach() for name in self.buffers}
        given |= self._kept_like(x)
        for one in self.by_task:
            one.tasks = tasks
        for one in self.norms.values():
            one.batch_statistics, one.fresh = batch_statistics, None
        out: Out = functional_call(self.module, given, (x,))
        return out

    def _kept_like(self, x: Tensor) -> dict[str, Tensor]:
        """What is not trained, on the device and, if it is real numbers, in the type of the images; moved once."""
        kind = (x.device, x.dtype)
        if kind not in self._kept_as:
            self._kept_as[kind] = {
                name: value.to(x.device, x.dtype if value.is_floating_point() else value.dtype)
                for name, value in self.kept.items()
            }
            self._versions[kind] = {name: value._version for name, value in self._kept_as[kind].items()}
        return self._kept_as[kind]


def _parts(body: Any) -> list[tuple[str, nn.Module]]:
    """The parts of an ``nn.Sequential`` with their names, also one that is there twice."""
    return list(body._modules.items())


def _may_change(module: nn.Module) -> bool:
    """Whether a module may do something else as it learns: of one that somebody wrote that cannot be known."""
    return _changes(module) or not type(module).__module__.startswith(OF_TORCH)


def _changes(module: nn.Module) -> bool:
    """Whether a module does something else as it learns, such as dropping units: its class reads ``training``."""
    kind = type(module)
    if kind in (nn.TransformerEncoder, nn.TransformerEncoderLayer):
        return False  # they read it to go a faster way
    dropped = getattr(module, "p", getattr(module, "dropout", None))
    if kind.__module__.startswith(OF_TORCH) and isinstance(dropped, int | float) and dropped == 0:
        return False
    own = [vars(base) for base in kind.__mro__ if base is not nn.Module]
    return any(_reads_training(one) for names in own for one in names.values())


def _reads_training(function: Any) -> bool:
    """Whether a function, one that it is wrapped around, or one within it, reads ``training``."""
    code = getattr(function, "__code__", function)
    if not isinstance(code, types.CodeType):
        return False
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if cell != types.CellType()]
    return "training" in code.co_names or any(map(_reads_training, (*code.co_consts, *cells)))


def _resting(module: nn.Module, trained: set[int]) -> set[nn.Module]:
    """The modules that lie in one of whose parameters none is ``trained``: they are never in training mode."""
    rest = set[nn.Module]()
    for one in module.modules():
        own = set(map(id, one.parameters()))
        if own and not own & trained:
            rest.update(one.modules())
    return rest


def _with_our_norms(make: Callable[[], Headed], statistics: Statistics) -> Headed:
    """A module with our BatchNorm in place of PyTorch's."""
    module = make()
    if not isinstance(module, nn.Module) or not isinstance(getattr(module, "head", None), nn.Linear):
        raise BadOption(f"make gives a {type(module).__name__}; it gives a module with a body and a linear head: "
                        "continual.learning.modules.Headed(body, features, units)")  # fmt: skip
    if any(isinstance(one, nn.parameter.UninitializedParameter) for one in module.parameters()):
        raise BadOption("the network has lazy layers, whose sizes are not known before images come; give the sizes")
    for name, one in module.named_modules():
        if isinstance(one, torch.jit.ScriptModule):
            raise BadOption(f"{name} was compiled by TorchScript, whose parameters cannot be given at a call; give the "
                            "module that was compiled")  # fmt: skip
        if isinstance(one, nn.Embedding | nn.EmbeddingBag) and (one.sparse or one.max_norm is not None):
            raise BadOption(f"{name} is an {type(one).__name__} with sparse=True, whose gradient has not θ's form, or "
                            "with max_norm, which writes to θ in a forward pass; leave both out")  # fmt: skip
    if any(type(one) in OF_PYTORCH for one in module.modules()):
        if statistics == "task":
            raise BadOption("statistics=task: PyTorch's BatchNorm knows of no tasks; give the network "
                            "continual.learning.norms.BatchNorm(channels, tasks)")  # fmt: skip
        replaced(module, "batch", None)
    return module


def _slope(logits: Tensor) -> Tensor:
    """Weights of logits (K,), no two alike."""
    return torch.arange(1, len(logits) + 1, device=logits.device, dtype=logits.dtype)


def _alone(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.detach() if isinstance(one, torch.Tensor) else one for one in given)


def _watched(module: nn.Module) -> bool:
    """Whether somebody else's functions are called when a module is."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks)


class Still:
    """The parts of a network's body in front that never change, and the network that is behind them.

    θ of the network behind is that of the whole one, number by number; and so is what is counted as frozen.
    """

    def __init__(self, whole: ModuleNet, front: nn.Module, count: int, all_of_it: bool) -> None:
        self.whole, self.front, self.count, self.all_of_it = whole, front, count, all_of_it
        values = {**dict(front.named_parameters()), **dict(front.named_buffers())}
        self.kept = {name: whole.kept[f"body.{name}"] for name in values}

    def __call__(self, x: Tensor, tasks: Tensor) -> Tensor:
        """What images (B, C, H, W) of ``tasks`` (B,) are behind these parts: (B, ...)."""
        like = self.whole._kept_like(x)
        for one in self.whole.by_task:
            one.tasks = tasks
        out: Tensor = functional_call(self.front, {name: like[f"body.{name}"] for name in self.kept}, (x,))
        return out.flatten(1) if self.all_of_it else out

    def behind(self) -> Net:
        """The network behind, which takes what these parts give."""
        whole = self.whole
        if self.all_of_it and whole.trains_a_linear_head:
            return Head(whole)

        def make() -> Headed:
            made = whole.make()
            made.body = nn.Sequential(OrderedDict([] if self.all_of_it else _parts(made.body)[self.count :]))
            return made

        net = ModuleNet(make, lambda name: name in whole.shapes, whole.how, whole.given)
        net.kept, net.frozen = {name: whole.kept[name] for name in net.kept}, whole.frozen
        return net


class Head(LinearNet):
    """The head of a network alone, with the untrained head that the whole network has."""

    def __init__(self, whole: ModuleNet) -> None:
        units, features = whole.shapes["head.weight"]
        super().__init__((features, units))
        self.whole, self.frozen = whole, whole.frozen

    def initial(self, key: Key, dtype: torch.dtype) -> Tensor:
        """See :meth:`Net.initial`."""
        return self.whole.initial(key, dtype)


@contextlib.contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within it, each function is told what goes in and comes out of its module."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for one in handles:
            one.remove()


class Tokens(nn.Module):
    """What a vision transformer makes of images (B, C, H, W) before its layers: the tokens (B, 1 + patches, D)."""

    def __init__(self, transformer: VisionTransformer) -> None:
        super().__init__()
        self.class_token, self.conv_proj = transformer.class_token, transformer.conv_proj
        self.pos_embedding, self.dropout = transformer.encoder.pos_embedding, transformer.encoder.dropout

    def forward(self, x: Tensor) -> Tensor:
        """The class token and the patches, each with its place."""
        patches = self.conv_proj(x).flatten(2).mT
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], 1)
        out: Tensor = self.dropout(tokens + self.pos_embedding)
        return out


class First(nn.Module):
    """The first of the tokens (B, T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """That of each sample, (B, D)."""
        return x[:, 0]


def chain(body: Any) -> nn.Sequential:
    """A network of torchvision's without its head, as the parts that images go through one after the other."""
    if hasattr(body, "encoder"):
        layers = [*body.encoder.layers.named_children(), ("ln", body.encoder.ln)]
        return nn.Sequential(OrderedDict([("tokens", Tokens(body)), *layers, ("first", First())]))
    return nn.Sequential(OrderedDict([*body.named_children()][:-1]))


def see_grey(module: nn.Module) -> None:
    """Let a network of coloured images take grey ones: its first convolution adds up what it did with each channel."""
    first = next(one for one in module.modules() if isinstance(one, nn.Conv2d))
    first.weight, first.in_channels = nn.Parameter(first.weight.detach().sum(1, keepdim=True)), 1


def skips(layer: nn.Conv2d) -> bool:
    """Whether it takes single pixels, not each of them, of less channels than a processor's register holds.

    Where channels are last, oneDNN without AVX-512 writes behind the gradient of such a layer's weights
    (https://github.com/uxlfoundation/oneDNN/issues/6035; seen with PyTorch 2.14): it is wrong, or the process dies.
    """
    one_by_one = all(size == 1 for size in layer.kernel_size)
    return one_by_one and any(step > 1 for step in layer.stride) and layer.in_channels // layer.groups < 16


def _work(module: nn.Module, given: Tensor, output: Tensor) -> int:
    """The multiplications of a module itself, without those in it."""
    if isinstance(module, nn.Conv2d):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, nn.MultiheadAttention):  # four maps of each place, and each place with each
        places, width = given.shape[-2:]
        return len(given) * places * width * (4 * width + 2 * places)
    return 0


def _dimensions(module: nn.Module) -> tuple[int, ...]:
    """How many dimensions that may have of which a layer's gradients of single samples are known."""
    if _watched(module):  # somebody may change what goes in, comes out, or multiplies
        return ()
    if type(module) is nn.Conv2d:
        return (4,) if module.padding_mode == "zeros" and not isinstance(module.padding, str) else ()
    if type(module) is nn.Linear:
        return (2,)
    return (2, 3, 4, 5) if type(module) in (BatchNorm, nn.GroupNorm) else ()


def _layer(name: str, module: nn.Module, h: Tensor, output: Tensor) -> layers.Layer:
    if isinstance(module, nn.Linear):
        return layers.linear(name, h, output, module.bias is not None)
    if isinstance(module, nn.Conv2d):
        return layers.convolution(name, module, h, output)
    return layers.normalisation(name, module, h, output)


class Flatten(nn.Module):
    """Images (B, C, H, W) as vectors (B, C·H·W); their gradient lies in memory as they do.

    Where channels are last it would come with them first, and what is elementwise is thirty times slower on two tensors
    that lie differently than on two that lie alike.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The vectors."""
        if x.ndim == 4 and x.stride(1) == 1:
            x = _GradientAlike.apply(x)
        return x.flatten(1)


class _GradientAlike(torch.autograd.Function):
    """Images with their channels last, as they are, whose gradient has its channels last."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # vmap knows no memory formats

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.view_as(tangent)


class CNNBody(nn.Sequential):
    """3x3 convolutions of so many channels, each with ReLU and 2x2 max-pooling, and a layer of so many units."""

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...], units: int) -> None:
        layers: list[nn.Module] = []
        before, height, width = shape
        for number in channels:
            # ReLU of the largest is the largest of ReLU, of a quarter of the numbers
            layers += [nn.Conv2d(before, number, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
            before, height, width = number, height // 2, width // 2
        super().__init__(*layers, Flatten(), nn.Linear(before * height * width, units), nn.ReLU())


class Block(nn.Module):
    """A basic block of a residual network (He et al. 2016), with a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, channels: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm(channels)
        changes = stride != 1 or before != channels
        self.shortcut = (
            nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), norm(channels))
            if changes
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) and what the two convolutions make of it."""
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ResNetBody(nn.Sequential):
    """ResNet-18 in the form for small images: a 3x3 convolution at full resolution, four stages of two blocks."""

    def __init__(self, channels: int, width: int, norm: Callable[[int], nn.Module]) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), norm(width), nn.ReLU()]
        before = width
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Block(before, width << stage, stride, norm))
                before = width << stage
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
