"""Interleaved A/B: two targets under the same load in one run, in short blocks that take turns.

A machine that is noisy for seconds or minutes is noisy for both, and pairs of neighbouring blocks
are compared, so that the noise cancels.
"""

from harness.ab.blocks import ARMS, Arm, Block, arm_plan, interleave
from harness.ab.play import ArmResult, Compared, play
from harness.ab.settings import Turns, limited, plans, turns

__all__ = [
    "ARMS",
    "Arm",
    "ArmResult",
    "Block",
    "Compared",
    "Turns",
    "arm_plan",
    "interleave",
    "limited",
    "plans",
    "play",
    "turns",
]
