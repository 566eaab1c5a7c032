"""avalanche-lib's methods on Split MNIST: how each is made, with what the other contenders have."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from avalanche.models import MlpVAE, NCMClassifier, TrainEvalModel
from avalanche.models.generator import VAE_loss
from avalanche.models.packnet import PackNetModel
from avalanche.training.plugins import (
    BiCPlugin,
    CurrentDataNCMUpdate,
    EvaluationPlugin,
    GenerativeReplayPlugin,
    RWalkPlugin,
)
from avalanche.training.plugins import bic as plugin
from avalanche.training.supervised import (
    AGEM,
    DER,
    ER_ACE,
    EWC,
    GEM,
    MAS,
    MIR,
    Cumulative,
    CWRStar,
    FromScratchTraining,
    GDumb,
    GenerativeReplay,
    GSS_greedy,
    ICaRL,
    JointTraining,
    LwF,
    Naive,
    PackNet,
    Replay,
    StreamingLDA,
    SynapticIntelligence,
    VAETraining,
)  # fmt: skip
from hand import mlp
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR


class Flat(nn.Module):
    """The MLP for images."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.net = mlp(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.net(x.flatten(1))

    def trunk(self) -> nn.Module:
        """All but the last layer."""
        return nn.Sequential(nn.Flatten(), *self.net[:-1])


def rwalk(**given: Any) -> Any:
    """RWalk, which is a plug-in only."""
    return Naive(plugins=[RWalkPlugin(ewc_lambda=1.0, ewc_alpha=0.9, delta_t=10)], **given)


def ncm(model: Flat, **given: Any) -> Any:
    """The nearest class mean, of features that every task trains."""
    whole = TrainEvalModel(model.trunk(), model.net[-1], NCMClassifier(normalize=False))
    return Naive(model=whole, plugins=[CurrentDataNCMUpdate()], **given)


def icarl(model: Flat, criterion: Any, **given: Any) -> Any:
    """ICaRL, which has a loss of its own."""
    return ICaRL(feature_extractor=model.trunk(), classifier=model.net[-1], **given)


def quiet(*given: Any, verbose: bool, **more: Any) -> Any:
    """The schedule that its BiC asks for, without an argument that PyTorch does not have any more."""
    return MultiStepLR(*given, **more)


def bic(**given: Any) -> Any:
    """BiC with batches of 128 in all, of which 5 are stored: so an epoch has all of both once, as ours has."""
    plugin.MultiStepLR = quiet
    return Naive(plugins=[BiCPlugin(mem_size=500, batch_size=123, batch_size_mem=5)], **given)


def slda(model: Flat, optimizer: Any, **given: Any) -> Any:
    """Streaming LDA, on the features of a network that nobody trains."""
    return StreamingLDA(slda_model=model.trunk(), input_size=model.net[-1].in_features, num_classes=10, **given)


def packnet(model: Flat, train_epochs: int, **given: Any) -> Any:
    """PackNet, with as many epochs after it prunes as before."""
    return PackNet(
        model=PackNetModel(model), train_epochs=2 * train_epochs, post_prune_epochs=train_epochs, prune_proportion=0.5,
        **given,
    )  # fmt: skip


def generative_replay(model: Flat, optimizer: Any, **given: Any) -> Any:
    """Generative replay whose generator has the MLP's hidden layers either way, as ours has."""
    *sizes, last = (layer.in_features for layer in model.net if isinstance(layer, nn.Linear))
    generator = MlpVAE((1, 28, 28), nhid=100, device=given["device"])
    generator.encoder.encode = nn.Sequential(nn.Flatten(), *layers(*sizes, last), nn.ReLU())
    generator.calc_mean, generator.calc_logvar = nn.Linear(last, 100), nn.Linear(last, 100)
    generator.decoder.decode = nn.Sequential(*layers(100, last, *reversed(sizes)), nn.Sigmoid())
    generator.to(given["device"])
    trained = VAETraining(
        model=generator,
        optimizer=type(optimizer)(generator.parameters(), **optimizer.defaults),
        criterion=VAE_loss,
        plugins=[GenerativeReplayPlugin()],
        **{name: given[name] for name in ("device", "train_mb_size", "train_epochs", "eval_mb_size")},
        evaluator=EvaluationPlugin(loggers=[]),
    )
    return GenerativeReplay(model=model, optimizer=optimizer, generator_strategy=trained, **given)


def layers(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLUs between them."""
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "finetune": (Naive, {}),
    "ewc": (EWC, {"ewc_lambda": 100.0}),
    "replay": (Replay, {"mem_size": 500}),
    "si": (SynapticIntelligence, {"si_lambda": 1.0}),
    "mas": (MAS, {}),
    "lwf": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "a-gem": (AGEM, {"patterns_per_exp": 200, "sample_size": 256}),
    "gem": (GEM, {"patterns_per_exp": 200, "memory_strength": 0.5}),
    "der": (DER, {"mem_size": 500, "batch_size_mem": 128, "alpha": 0.1, "beta": 0.0}),
    "er-ace": (ER_ACE, {"mem_size": 500, "batch_size_mem": 128}),
    "mir": (MIR, {"mem_size": 500, "subsample": 500, "batch_size_mem": 128}),
    "gdumb": (GDumb, {"mem_size": 500}),
    "cumulative": (Cumulative, {}),
    "joint": (JointTraining, {}),
    "from-scratch": (FromScratchTraining, {}),
    "online-ewc": (EWC, {"ewc_lambda": 100.0, "mode": "online", "decay_factor": 0.9}),
    "rwalk": (rwalk, {}),
    "der++": (DER, {"mem_size": 500, "batch_size_mem": 256, "alpha": 0.1, "beta": 0.5}),
    "gss": (GSS_greedy, {"mem_size": 500, "mem_strength": 10, "input_size": [1, 28, 28]}),
    "generative-replay": (generative_replay, {}),
    "icarl": (icarl, {"memory_size": 500, "buffer_transform": None, "fixed_memory": True}),
    "bic": (bic, {}),
    "ncm": (ncm, {}),
    "cwr*": (CWRStar, {"cwr_layer_name": None}),
    "slda": (slda, {}),
    "packnet": (packnet, {}),
}
"""What each method is, with the options of the other contenders."""
TOLD = ("packnet",)
"""Methods that are told the task."""
