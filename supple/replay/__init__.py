"""Replay: one device-resident ring for off-policy and on-policy agents."""

from supple.replay.buffer import Minibatch, Replay
from supple.replay.plan import ReplayPlan, ReplaySettings
from supple.replay.prefill import prefill
from supple.replay.sampling import AgeBias
from supple.replay.segments import Segments

__all__ = ["AgeBias", "Minibatch", "Replay", "ReplayPlan", "ReplaySettings", "Segments", "prefill"]
