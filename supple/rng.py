"""Named random generators: every draw of a run comes from one of them, and all are checkpointed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

SHARED = ("weights", "remedy")
"""Names whose numbers are the same in every process of a run: they make networks."""


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one named purpose, statistically independent of every other name's."""
    words = [seed, *(zlib.crc32(str(name).encode()) for name in names)]
    low, high = np.random.SeedSequence(words).generate_state(2, np.uint32)
    return int(low) | (int(high) & 0x7FFFFFFF) << 32


class Generators:
    """A ``torch.Generator`` per name, created on first use from the run's seed.

    Args:
        seed: the run's seed, >= 0.
        device: where the numbers are drawn.
        elsewhere: names whose numbers are drawn on another device.
        own: what tells this process of a run from the others (``World.seed_words``).
    """

    def __init__(
        self,
        seed: int,
        device: torch.device,
        elsewhere: Mapping[str, torch.device] | None = None,
        own: Sequence[str | int] = (),
    ) -> None:
        self._seed = seed
        self._own = tuple(own)
        self._device = device
        self._elsewhere = dict(elsewhere or {})
        self._generators: dict[str, torch.Generator] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        """The generator for one purpose, for example ``"exploration"``."""
        if name not in self._generators:
            generator = torch.Generator(self._elsewhere.get(name, self._device))
            generator.manual_seed(self._derived(name))
            self._generators[name] = generator
        return self._generators[name]

    def state_dict(self) -> dict[str, Any]:
        """The seed, and each generator's state, a uint8 tensor on the CPU."""
        streams = {name: generator.get_state() for name, generator in self._generators.items()}
        return {"seed": self._seed, "streams": streams}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue every stream where ``state_dict`` left it.

        Generators already handed out stay the same objects; streams not yet begun when the state
        was taken begin from its seed.
        """
        self._seed = state["seed"]
        streams = state["streams"]
        for name in self._generators.keys() | streams.keys():
            if name in streams:
                restore(self[name], streams[name])
            else:
                self[name].manual_seed(self._derived(name))

    def _derived(self, name: str) -> int:
        return derive_seed(self._seed, name, *(() if name in SHARED else self._own))


def restore(generator: torch.Generator, state: torch.Tensor) -> None:
    """Continue a stream; another kind of device cannot, and begins one seeded by where it was."""
    state = state.cpu()
    if state.numel() == generator.get_state().numel():
        generator.set_state(state)
    else:
        generator.manual_seed(derive_seed(0, state.numpy().tobytes().hex()))
