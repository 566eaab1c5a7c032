"""The built-in strategies, one file each. An outside package adds its own through ``continual.strategies``."""

from continual.learning.strategy import Chain, Strategy
from continual.strategies.ewc import EWC
from continual.strategies.finetune import Finetune
from continual.strategies.joint import Joint
from continual.strategies.l1 import L1
from continual.strategies.l2 import L2
from continual.strategies.mas import MAS
from continual.strategies.online_ewc import OnlineEWC
from continual.strategies.replay import Replay
from continual.strategies.shared_trunk import SharedTrunk
from continual.strategies.si import SI

__all__ = [
    "EWC",
    "L1",
    "L2",
    "MAS",
    "SI",
    "Chain",
    "Finetune",
    "Joint",
    "OnlineEWC",
    "Replay",
    "SharedTrunk",
    "Strategy",
]
