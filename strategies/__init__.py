"""The built-in strategies, one file each. An outside package adds its own through ``continual.strategies``."""

from continual.strategies.ewc import EWC
from continual.strategies.finetune import Finetune
from continual.strategies.joint import Joint
from continual.strategies.l1 import L1
from continual.strategies.l2 import L2
from continual.strategies.replay import Replay
from continual.strategies.shared_trunk import SharedTrunk

from continual.learning.strategy import Chain, Strategy

__all__ = ["EWC", "L1", "L2", "Chain", "Finetune", "Joint", "Replay", "SharedTrunk", "Strategy"]
