"""The built-in strategies, one file each. An outside package adds its own through ``continual.strategies``."""

from continual.learning.strategy import Chain, Strategy
from continual.strategies.a_gem import AGEM
from continual.strategies.bic import BiC
from continual.strategies.cumulative import Cumulative
from continual.strategies.cwr import CWRStar
from continual.strategies.der import DER
from continual.strategies.der_pp import DERPlusPlus
from continual.strategies.er_ace import ERACE
from continual.strategies.ewc import EWC
from continual.strategies.fdr import FDR
from continual.strategies.finetune import Finetune
from continual.strategies.from_scratch import FromScratch
from continual.strategies.gdumb import GDumb
from continual.strategies.gem import GEM
from continual.strategies.generative_replay import GenerativeReplay
from continual.strategies.gss import GSS
from continual.strategies.hat import HAT
from continual.strategies.icarl import ICaRL
from continual.strategies.joint import Joint
from continual.strategies.l1 import L1
from continual.strategies.l2 import L2
from continual.strategies.lwf import LwF
from continual.strategies.mas import MAS
from continual.strategies.mir import MIR
from continual.strategies.ncm import NCM
from continual.strategies.online_ewc import OnlineEWC
from continual.strategies.owm import OWM
from continual.strategies.packnet import PackNet
from continual.strategies.rehearsal import Rehearsal
from continual.strategies.replay import Replay
from continual.strategies.rwalk import RWalk
from continual.strategies.shared_trunk import SharedTrunk
from continual.strategies.si import SI
from continual.strategies.slda import SLDA
from continual.strategies.xdg import XdG

__all__ = [
    "AGEM",
    "DER",
    "ERACE",
    "EWC",
    "FDR",
    "GEM",
    "GSS",
    "HAT",
    "L1",
    "L2",
    "MAS",
    "MIR",
    "NCM",
    "OWM",
    "SI",
    "SLDA",
    "BiC",
    "CWRStar",
    "Chain",
    "Cumulative",
    "DERPlusPlus",
    "Finetune",
    "FromScratch",
    "GDumb",
    "GenerativeReplay",
    "ICaRL",
    "Joint",
    "LwF",
    "OnlineEWC",
    "PackNet",
    "RWalk",
    "Rehearsal",
    "Replay",
    "SharedTrunk",
    "Strategy",
    "XdG",
]
