"""A ring in host memory for a learner on the GPU, where the GPU's memory would not hold it.

Rows are gathered on the host straight into a page-locked buffer, and copied from there on a stream
of their own. Launching a gradient step returns at once, so the next minibatch is gathered and on
its way while the GPU still works on this one. Only the buffers are page-locked: nothing else is
copied to the GPU, and locked memory is scarce.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from supple.envs.base import EnvSpec, Groups, Step
from supple.region import Compute, has_compiler
from supple.replay.buffer import Minibatch, Replay, Selection
from supple.replay.plan import ReplaySettings

HOST = torch.device("cpu")
IN_FLIGHT = 2
"""Buffers: one is filled while the other's copy may still be under way."""
OBS = "observation/"
ALIGNMENT = 64
"""Bytes each tensor in a buffer starts at a multiple of."""


class SpilledReplay(Replay):
    """``Replay`` in host memory whose minibatches arrive on another device.

    ``add`` waits for the step it stores, which is the price; ``draw`` waits for nothing. Generators
    handed to ``draw`` live on the host.

    Args:
        spec: the environment's facts.
        settings: size and storage.
        extra_spec: further float32 columns, name to shape per environment.
        device: where minibatches and metrics go; the environment's by default.
        compute: whether adding and sampling are compiled, where the host has a compiler.

    Raises:
        InputError: it does not fit the host's memory, or is too small; nothing was allocated.
    """

    def __init__(
        self,
        spec: EnvSpec,
        settings: ReplaySettings | None = None,
        *,
        extra_spec: Mapping[str, tuple[int, ...]] | None = None,
        device: torch.device | str | None = None,
        compute: Compute | None = None,
    ) -> None:
        compute = compute or Compute()
        on_host = replace(
            compute, compile=compute.compile and has_compiler(HOST), cuda_graphs=False
        )
        super().__init__(spec, settings, extra_spec=extra_spec, device=HOST, compute=on_host)
        self._target = torch.device(device or spec.device)
        self._staging: dict[int, Staging] = {}

    def add(
        self,
        obs: Groups,
        action: Tensor,
        step: Step,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Append one vector step, as ``Replay.add``; copies it to the host first."""
        given = (dict(obs.items()), action, dict(step.items()), extras or {})
        super().add(*pytree.tree_map(lambda value: value.to(HOST), given))

    def _gather(self, selection: Selection) -> Minibatch:
        start, _ = selection.both.chunk(2)
        rows = {f"{OBS}{group}": (each, selection.both) for group, each in self.storage.items()}
        rows["action"] = (self._flat["action"], start)
        rest = {**selection._asdict(), "start": start}
        del rest["both"]
        if len(start) not in self._staging:
            layout = {
                name: ((len(index), *source.shape[1:]), source.dtype)
                for name, (source, index) in rows.items()
            }
            layout |= {name: (tuple(value.shape), value.dtype) for name, value in rest.items()}
            self._staging[len(start)] = Staging(layout, self._target)
        staging = self._staging[len(start)]
        buffer = staging.begin()
        for name, (source, index) in rows.items():
            torch.index_select(source, 0, index, out=buffer[name])
        for name, value in rest.items():
            buffer[name].copy_(value)
        sent = staging.send()
        observation = {group: sent.pop(f"{OBS}{group}").float() for group in self.storage}
        return Minibatch(observation=observation, **sent)

    def metrics(self) -> dict[str, Tensor]:
        """0-d numbers on the learner's device."""
        return {name: value.to(self._target) for name, value in super().metrics().items()}


class Staging:
    """Sends one set of tensors after another to a device, without waiting for the copy.

    Args:
        layout: name to shape and dtype, the same for all sets.
        device: where to.
    """

    def __init__(
        self, layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device
    ) -> None:
        self._device = device
        self._layout: dict[str, tuple[slice, tuple[int, ...], torch.dtype]] = {}
        end = 0
        for name, (shape, dtype) in layout.items():
            begin = -(-end // ALIGNMENT) * ALIGNMENT
            end = begin + math.prod(shape) * dtype.itemsize
            self._layout[name] = (slice(begin, end), shape, dtype)
        on_gpu = device.type == "cuda"
        self._buffers = [
            torch.empty(end, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(IN_FLIGHT)
        ]
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._copied: list[torch.cuda.Event | None] = [None] * IN_FLIGHT
        self._slot = 0

    def begin(self) -> dict[str, Tensor]:
        """Host tensors to fill, once the copy of what they held has been made."""
        copied = self._copied[self._slot]
        if copied is not None:
            copied.synchronize()
        return self._views(self._buffers[self._slot])

    def send(self) -> dict[str, Tensor]:
        """The filled tensors on the device: kernels launched from now on wait for them."""
        slot, self._slot = self._slot, (self._slot + 1) % IN_FLIGHT
        buffer = self._buffers[slot]
        if self._stream is None:
            return self._views(buffer.to(self._device, copy=True))
        with torch.cuda.stream(self._stream):
            arrived = buffer.to(self._device, non_blocking=True, copy=True)
        self._copied[slot] = self._stream.record_event()
        user = torch.cuda.current_stream(self._device)
        user.wait_stream(self._stream)
        # The allocator must not hand the memory to the next copy while kernels still read it.
        arrived.record_stream(user)
        return self._views(arrived)

    def _views(self, buffer: Tensor) -> dict[str, Tensor]:
        return {
            name: buffer[place].view(dtype).view(shape)
            for name, (place, shape, dtype) in self._layout.items()
        }
