"""Replay: one ring for off-policy and on-policy agents, on the device or spilled to the host."""

from supple.replay.buffer import Minibatch, Replay
from supple.replay.plan import ReplayPlan, ReplaySettings
from supple.replay.prefill import prefill
from supple.replay.sampling import AgeBias
from supple.replay.segments import Segments
from supple.replay.spill import SpilledReplay

__all__ = [
    "AgeBias",
    "Minibatch",
    "Replay",
    "ReplayPlan",
    "ReplaySettings",
    "Segments",
    "SpilledReplay",
    "prefill",
]
