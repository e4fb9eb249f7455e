"""The official implementation, from a checkout the user has."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supple.agents import FlashSACSettings
from supple.bench.table import RING_ROWS, Shape
from supple.errors import InputError
from supple.region import float32_products, has_bfloat16


def reference_updates(
    checkout: Path, shape: Shape, *, compiled: str = "auto"
) -> dict[str, Callable[[], object]]:
    """Two updates of a checkout of Holiday-Robot/FlashSAC, in the ways it can run on a device.

    Eager in float32 everywhere. On a CPU with oneDNN's switch too, where it has bfloat16; on a GPU
    also compiled with float16 autocast, as its settings ship.

    Args:
        checkout: its folder.
        shape: of the batches.
        compiled: its ``compile_mode``; ``auto``, as shipped, is ``max-autotune`` on this torch, for
            which it compiles some minutes. ``off`` leaves that variant out.
    """
    official = load_official(checkout)
    plain = _updates(official, shape)
    found = {"official eager float32": plain}
    if shape.device.type == "cuda" and compiled != "off":
        how = "as shipped" if compiled == "auto" else compiled
        changed = {"use_compile": True, "compile_mode": compiled, "use_amp": True}
        found[f"official {how} float16"] = _updates(official, shape, **changed)
    if shape.device.type == "cpu" and has_bfloat16(shape.device):
        found["official eager bfloat16"] = partial(in_bfloat16, plain)
    return found


def load_official(checkout: Path) -> Any:
    """The module of its agent.

    Raises:
        InputError: the folder is not a checkout, or packages of it are missing.
    """
    # Its types name JAX arrays; nothing else of its PyTorch agent needs JAX.
    stand_in: dict[str, types.ModuleType] = {}
    if "jax" not in sys.modules and importlib.util.find_spec("jax") is None:
        jax, numpy = types.ModuleType("jax"), types.ModuleType("jax.numpy")
        numpy.ndarray = np.ndarray  # type: ignore[attr-defined]
        jax.numpy = numpy  # type: ignore[attr-defined]
        stand_in = {"jax": jax, "jax.numpy": numpy}
    sys.modules |= stand_in
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module("flash_rl.agents.flashSAC.agent")
    except ImportError as error:
        raise InputError(f"--reference {checkout} cannot be imported: {error}") from error
    finally:
        sys.path.remove(str(checkout))
        for name in stand_in:  # others must not take it for the real one
            del sys.modules[name]


def official_agent(official: Any, shape: Shape, **changed: Any) -> Any:
    """Its agent with the settings of its CPU scripts, eager in float32, but for what is changed."""
    from gymnasium.spaces import Box as Space

    ours = FlashSACSettings()
    config = official.FlashSACConfig(
        seed=0,
        normalize_reward=True,
        normalized_G_max=ours.value_max,
        asymmetric_observation=False,
        device_type=str(shape.device),
        buffer_max_length=RING_ROWS,
        buffer_min_length=1,
        buffer_device_type=str(shape.device),
        sample_batch_size=shape.batch_size,
        learning_rate_init=ours.lr_init,
        learning_rate_peak=ours.lr_peak,
        learning_rate_end=ours.lr_end,
        learning_rate_warmup_rate=0.0,
        learning_rate_warmup_step=1,
        learning_rate_decay_rate=1.0,
        learning_rate_decay_step=10**6,
        actor_num_blocks=ours.actor_blocks,
        actor_hidden_dim=ours.actor_hidden,
        actor_bc_alpha=0.0,
        actor_noise_zeta_mu=2.0,
        actor_noise_zeta_max=16,
        actor_update_period=ours.actor_period,
        critic_num_blocks=ours.critic_blocks,
        critic_hidden_dim=ours.critic_hidden,
        critic_num_bins=ours.num_atoms,
        critic_min_v=-ours.value_max,
        critic_max_v=ours.value_max,
        critic_target_update_tau=ours.tau,
        temp_initial_value=ours.initial_temperature,
        temp_target_sigma=ours.target_std,
        temp_target_entropy=0.0,  # it takes its own
        gamma=ours.gamma,
        n_step=1,
        use_compile=False,
        compile_mode="auto",
        use_amp=False,
        load_optimizer=False,
        load_reward_normalizer=False,
    )
    spaces = Space(-np.inf, np.inf, (1, shape.obs)), Space(-1, 1, (1, shape.act))
    return official.FlashSACAgent(*spaces, {}, dataclasses.replace(config, **changed))


def _updates(official: Any, shape: Shape, **changed: Any) -> Callable[[], object]:
    agent = official_agent(official, shape, **changed)
    random = np.random.default_rng(0)
    rows = RING_ROWS
    agent.process_transition(
        {
            "observation": random.normal(size=(rows, shape.obs)).astype(np.float32),
            "next_observation": random.normal(size=(rows, shape.obs)).astype(np.float32),
            "action": random.uniform(-1, 1, (rows, shape.act)).astype(np.float32),
            "reward": random.normal(size=rows).astype(np.float32),
            "terminated": np.zeros(rows, np.float32),
            "truncated": np.zeros(rows, np.float32),
        }
    )

    def step() -> None:
        agent.update()
        agent.update()

    return step


def in_bfloat16(step: Callable[[], object]) -> None:
    """Run with oneDNN's switch that takes float32 products in bfloat16."""
    with float32_products("bf16", torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
        step()
