"""Networks for images that a run can name. The modules themselves are imported when one is built."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from continual.errors import BadData, BadOption, listed
from continual.options import Configured, option
from continual.streams.stream import MOST_PADDED

if TYPE_CHECKING:
    from continual.learning.models import Net

WIDEST = 65536
"""So many channels or units a layer has at most."""


def _needs_images(name: str, shape: tuple[int, ...], least: int, most: int | None = None) -> None:
    """:class:`BadOption` where images have not as many pixels on each side as a network takes."""
    given = "x".join(map(str, shape))
    if len(shape) != 3:
        grey = "; grey images of floats are (N, 1, height, width)" if len(shape) == 2 else ""
        raise BadOption(f"{name} takes images of (channels, height, width), not samples of {given}; use model=mlp"
                        f"{grey}")  # fmt: skip
    if min(shape[1:]) < least or max(shape[1:]) > (most or max(shape[1:])):
        more, lacks = "" if most == least else " or more", (least - min(shape[1:]) + 1) // 2
        pad = f" or pad={lacks}" if 0 < lacks <= MOST_PADDED else ""
        raise BadOption(f"{name} takes images of (channels, height, width) with {least}{more} pixels on each side, "
                        f"not {given}; use model=mlp, or give the benchmark size={least}{pad}, where it has that option"
                        )  # fmt: skip


@dataclass(frozen=True)
class CNN(Configured):
    """3x3 convolutions, by default two, each with ReLU and 2x2 max-pooling, and one hidden layer.

    They are padded, to keep the resolution.
    """

    channels: tuple[int, ...] = option((64, 128), "channels of each convolution", ge=1, le=WIDEST)
    units: int = option(1024, "units of the hidden layer", ge=1, le=WIDEST)

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> Net:
        """See :meth:`continual.learning.models.MLP.build`."""
        from continual.learning import modules

        _needs_images("cnn", shape, 2 ** len(self.channels))

        def made() -> modules.Headed:
            return modules.Headed(modules.CNNBody(shape, self.channels, self.units), self.units, units)

        return modules.ModuleNet(modules.small_enough(made))


@dataclass(frozen=True)
class Normalised(Configured):
    """What networks with normalisation layers share."""

    norm: Literal["batch", "group", "layer", "none"] = option("batch", "how activations are normalised")
    statistics: Literal["running", "task", "frozen"] = option(
        "running",
        "BatchNorm's: one running average; one for each task, whose samples are normalised among themselves; or fixed "
        "after the first task (from the start, for weights that were learnt elsewhere)",
    )

    def check(self) -> None:
        """Statistics are those of BatchNorm."""
        if self.norm != "batch" and self.statistics != "running":
            raise BadOption(f"statistics={self.statistics} is for norm=batch; norm={self.norm} has none")


@dataclass(frozen=True)
class ResNet18(Normalised):
    """ResNet-18 in the form for small images (He et al. 2016): no pooling in front, stages of 64, 128, 256, 512."""

    width: int = option(64, "channels of the first stage", ge=1, le=WIDEST // 8)

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> Net:
        """See :meth:`continual.learning.models.MLP.build`."""
        from continual.learning import modules, norms

        _needs_images("a residual network", shape, 8)
        own = tasks if self.statistics == "task" else None

        def made() -> Any:
            body = modules.ResNetBody(shape[0], self.width, lambda channels: norms.norm(self.norm, channels, own))
            return modules.Headed(body, 8 * self.width, units)

        return modules.ModuleNet(modules.small_enough(made), statistics=self.statistics)


@dataclass(frozen=True)
class ReducedResNet18(ResNet18):
    """ResNet-18 with 20 channels in the first stage (Lopez-Paz & Ranzato 2017), about a tenth of the parameters."""

    width: int = option(20, "channels of the first stage", ge=1, le=WIDEST // 8)


ARCHITECTURES = {
    "resnet18": ("ResNet18_Weights", "fc", "layer4."),
    "resnet50": ("ResNet50_Weights", "fc", "layer4."),
    "vit_b_16": ("ViT_B_16_Weights", "heads", "encoder_layer_11."),
}
"""torchvision's networks: the name of their weights, of their head and of their last block."""


@dataclass(frozen=True)
class Torchvision(Normalised):
    """A network of torchvision, with weights learnt on ImageNet, from a file, or new ones.

    Grey images are seen as coloured ones whose three channels are alike.
    """

    arch: Literal["resnet18", "resnet50", "vit_b_16"] = option("resnet18", "which network")
    weights: str = option("imagenet", "imagenet: torchvision's newest, from its cache; new; or the path of a file")
    train: Literal["all", "block", "head"] = option("all", "what is trained: all, the last block and the head, or that")

    @property
    def normalize(self) -> str | None:
        """How images were shown to the network when its weights were learnt; none: nobody knows."""
        return None if self.weights == "new" else "imagenet"

    def check(self) -> None:
        """What is not trained has to have been learnt."""
        super().check()
        if self.weights == "new" and self.train != "all":
            raise BadOption(f"train={self.train} leaves the rest as it is, so weights=new makes no sense; give weights")
        if self.train != "all" and self.norm != "batch":
            raise BadOption(f"norm={self.norm} does not suit train={self.train}: what is not trained was learnt with "
                            "BatchNorm; leave norm out, or give train=all")  # fmt: skip
        if self.train == "head" and self.statistics != "running":
            raise BadOption(f"statistics={self.statistics} does nothing with train=head, which trains no BatchNorm: "
                            "those of the network keep the statistics that they have; leave it out")  # fmt: skip
        if self.arch == "vit_b_16" and (self.norm, self.statistics) != ("batch", "running"):
            raise BadOption("vit_b_16 has LayerNorm throughout: norm and statistics do nothing there; leave them out")

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> Net:
        """See :meth:`continual.learning.models.MLP.build`."""
        from continual.learning import modules, norms

        name, sides = f"torchvision's {self.arch}", (224, 224) if self.arch == "vit_b_16" else (32, None)
        _needs_images(name, shape, *sides)
        if shape[0] not in (1, 3):
            raise BadOption(f"{name} takes images of 3 channels (or 1), not {'x'.join(map(str, shape))}; use model=mlp")
        *_, last = ARCHITECTURES[self.arch]
        given = None if self.weights == "new" else self.state()
        own = tasks if self.statistics == "task" else None

        def made() -> Any:
            body, features = self.body()
            if given is not None:
                body.load_state_dict(given, assign=True)  # nothing writes to them, so nothing is copied
            if shape[0] == 1:
                modules.see_grey(body)
            chain = modules.chain(norms.replaced(body, self.norm, own))
            return modules.Headed(chain, features, units)

        def trained(name: str) -> bool:
            in_head = name.startswith("head.")
            return self.train == "all" or in_head or (self.train == "block" and name.startswith(f"body.{last}"))

        return modules.ModuleNet(modules.small_enough(made), trained, self.statistics, given=given is not None)

    def body(self) -> tuple[Any, int]:
        """torchvision's network, with new weights and no head, and how many features it gives."""
        import torch
        import torchvision

        body, head = getattr(torchvision.models, self.arch)(weights=None), ARCHITECTURES[self.arch][1]
        features = next(one for one in getattr(body, head).modules() if isinstance(one, torch.nn.Linear))
        setattr(body, head, torch.nn.Identity())
        return body, features.in_features

    def facts(self) -> dict[str, Any]:
        """The checksum of the weights' file, by which a run is recognised: other weights are another run."""
        if self.weights == "new":
            return {}
        with open(self.file(), "rb") as file:
            return {"weights_sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def file(self) -> Path:
        """The file of the weights; :class:`~continual.errors.BadData` where it is not there."""
        import torch
        import torchvision

        path = Path(self.weights).expanduser()
        where = f"weights={self.weights}: there is no file {path}"
        if self.weights == "imagenet":
            source = getattr(torchvision.models, ARCHITECTURES[self.arch][0]).DEFAULT
            path = Path(torch.hub.get_dir()) / "checkpoints" / source.url.rpartition("/")[2]
            where = f"{self.arch}'s weights are not there; download {source.url} to {path}, or give weights=FILE"
        if not path.is_file():
            raise BadData(where)
        return path

    def state(self) -> dict[str, Any]:
        """The weights by name, without a head; :class:`~continual.errors.BadData` where there are none or others'."""
        import torch

        path = self.file()
        fault = f"{path} has no weights of torchvision's {self.arch}"
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                found: dict[str, Any] = load_file(path)
            else:
                found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged or foreign file may raise anything; PyTorch's advice is not for here
            raise BadData(f"{fault}: it cannot be read ({type(error).__name__}); it takes what "
                          "torch.save(network.state_dict(), FILE) writes, or safetensors") from None  # fmt: skip
        head = ARCHITECTURES[self.arch][1]
        try:
            body, _ = self.body()
            lacks, more = body.load_state_dict(found, strict=False)
        except (RuntimeError, TypeError, AttributeError) as error:  # other shapes, or no tensors by name
            heading, *others = str(error).split("\n\t")  # PyTorch's heading, and a line for each that does not fit
            first, *others = others or [heading]
            more = f"; and {len(others)} more like it" if others else ""
            raise BadData(f"{fault}: {' '.join(first.split()).rstrip('.')}{more}") from None
        heads = [name for name in more if name.startswith(f"{head}.")]  # it is thrown away, whatever it knows
        more = [name for name in more if name not in heads]
        if lacks or more:
            told = [f"it {verb} {listed(names, 3)}" for verb, names in (("lacks", lacks), ("has", more)) if names]
            raise BadData(f"{fault}: {' and '.join(told)}")
        # a parameter would be all seeds' own
        found = {name: value.detach() for name, value in found.items() if name not in heads}
        for name, own in body.state_dict().items():
            value = found.get(name, own)
            if own.is_floating_point() and not value.is_floating_point():
                raise BadData(f"{fault}: {name} is of {str(value.dtype).removeprefix('torch.')}")
            if not value.isfinite().all():
                raise BadData(f"{fault}: {name} has values that are not finite")
        return found
