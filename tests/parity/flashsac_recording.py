"""Replays a recording of the reference implementation's updates through our FlashSAC.

The recordings come from Holiday-Robot/FlashSAC@87edc90 (CPU, float32, eager); the header of each
file says with which sizes and hyper-parameters.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from supple.agents.exploration import zeta_cdf
from supple.agents.flashsac import Batch, FlashSAC
from supple.agents.flashsac_settings import FlashSACSettings
from supple.agents.reward_scaling import RewardScaler, RewardScalerSettings
from supple.envs.base import Box, EnvSpec

NETWORKS = ("actor", "critic", "target_critic")
HEADS = {"mean", "log_std", "value_logits"}


@dataclass
class Recording:
    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @staticmethod
    def read(path: Path) -> "Recording":
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return Recording(json.loads(file.metadata()["meta"]), tensors)

    def section(self, prefix: str) -> dict[str, torch.Tensor]:
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}


def our_names(recorded: dict[str, torch.Tensor], network: str) -> dict[str, torch.Tensor]:
    """The recording's `critic.block.0...` -> our state dict's keys and leading member axis."""
    renamed = {}
    for key, value in recorded.items():
        owner, _, rest = key.partition(".")
        if owner != network:
            continue
        head = rest.split(".")[0] in HEADS
        ours = rest.replace("value_logits", "head") if head else f"trunk.{rest}"
        if network == "actor":
            value = value.unsqueeze(0)
        elif "input_norm.running" in key:
            # The reference keeps one copy per member of what is the same for all.
            assert all(torch.equal(value[0], each) for each in value), key
            value = value[:1]
        renamed[ours] = value
    return renamed


def build_agent(recording: Recording) -> FlashSAC:
    meta = recording.meta
    spec = EnvSpec(
        task_id="recording",
        num_envs=1,
        observation={"policy": meta["obs_dim"]},
        action=Box(low=(-1.0,) * meta["action_dim"], high=(1.0,) * meta["action_dim"]),
        device=torch.device("cpu"),
    )
    settings = FlashSACSettings(
        gamma=meta["gamma"],
        n_step=meta["n_step"],
        exact_discount=False,
        batch_size=meta["batch"],
        actor_hidden=meta["actor_hidden"],
        actor_blocks=meta["actor_blocks"],
        critic_hidden=meta["critic_hidden"],
        critic_blocks=meta["critic_blocks"],
        num_atoms=meta["num_bins"],
        value_max=meta["v_max"],
        actor_period=meta["actor_update_period"],
        tau=meta["tau"],
        initial_temperature=meta["initial_temperature"],
        target_std=meta["target_sigma"],
        lr_init=meta["lr_init"],
        lr_peak=meta["lr_peak"],
        lr_end=meta["lr_end"],
        lr_warmup=meta["lr_warmup_steps"] / meta["lr_decay_steps"],
        reward_scaler=RewardScalerSettings(enabled=False),  # recorded rewards are already scaled
    )
    agent = FlashSAC(spec, settings, total_env_steps=meta["lr_decay_steps"])
    initial = recording.section("init/")
    for network in NETWORKS:
        getattr(agent, network).load_state_dict(our_names(initial, network))
    with torch.no_grad():
        agent.log_alpha.copy_(initial["temperature.log_alpha"])
    return agent


def replay_update(agent: FlashSAC, recording: Recording, update: int) -> dict[str, float]:
    meta = recording.meta
    data = recording.section(f"batch{update}/")
    rows = meta["batch"]
    obs = torch.cat((data["observation"], data["next_observation"]))
    batch = Batch(
        actor_obs_2BD=obs,
        critic_obs_2BD=obs,
        action_BA=data["action"],
        reward_B=data["reward"],
        terminated_B=data["terminated"],
        discount_B=torch.full((rows,), meta["gamma"] ** meta["n_step"]),
    )
    # The reference also draws noise for the next rows' actions and discards those actions.
    actor_noise = data.get("actor_noise", torch.zeros(2 * rows, meta["action_dim"]))[:rows]
    metrics = agent.learn(batch, actor_noise, data["next_action_noise"])
    return {name: float(value) for name, value in metrics.items()}


def check(path: Path) -> None:
    """Assert every recorded number; the tolerances are those an independent port reached."""
    recording = Recording.read(path)
    meta = recording.meta
    agent = build_agent(recording)
    assert abs(agent.target_entropy - meta["target_entropy"]) < 1e-5

    for update in range(meta["updates"]):
        metrics = replay_update(agent, recording, update)
        for name, expected in meta["losses"][update].items():
            difference = abs(metrics[name] - expected)
            # Entropy is a mean of large log-densities; the reference forms (u - mean)/std again
            # from rounded numbers, which costs it a digit.
            tolerance = 2e-4 if name == "actor/entropy" else 1e-5
            assert difference <= tolerance, f"{name} of update {update} is off by {difference}"
        check_state(agent, recording.section(f"after{update}/"), update)
    check_evaluation(agent, recording.section("eval/"))
    check_reward_scaling(recording)
    cdf = recording.tensors["exploration/zeta_cdf"]
    torch.testing.assert_close(zeta_cdf(meta["zeta_mu"], meta["zeta_max"]), cdf, atol=1e-6, rtol=0)


def check_state(agent: FlashSAC, recorded: dict[str, torch.Tensor], update: int) -> None:
    for network in NETWORKS:
        ours = getattr(agent, network).state_dict()
        expected = our_names(recorded, network)
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            difference = (ours[key] - value).abs()
            if "running" in key:
                assert difference.max() <= 2e-5, f"{network}.{key} after update {update}"
            else:
                assert difference.max() <= 2e-3, f"{network}.{key} after update {update}"
        parameters = torch.cat(
            [(ours[k] - v).abs().flatten() for k, v in expected.items() if "running" not in k]
        )
        close = (parameters <= 2e-5).double().mean()
        assert close >= 0.999, (update, network, float(close))
    alpha = recorded["temperature.log_alpha"]
    torch.testing.assert_close(agent.log_alpha.detach(), alpha, atol=2e-5, rtol=0)


def check_evaluation(agent: FlashSAC, recorded: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        mean, log_std = agent.actor(recorded["observation"], train=False)
        x = torch.cat((recorded["observation"], recorded["action"]), dim=-1)
        value = agent.critic.value(agent.critic(x, train=False))
    for name, ours in (("mean", mean), ("std", log_std.exp()), ("q", value)):
        difference = (ours - recorded[name]).abs().max()
        assert difference <= 5e-4, f"{name}: off by {float(difference)}"


def check_reward_scaling(recording: Recording) -> None:
    recorded = recording.section("reward_normalizer/")
    scaler = RewardScaler(
        recorded["reward"].shape[1],
        gamma=recording.meta["gamma"],
        value_max=recording.meta["v_max"],
        settings=RewardScalerSettings(reset="before"),
        device=torch.device("cpu"),
    )
    valid = torch.ones(recorded["reward"].shape[1], dtype=torch.bool)
    for step, reward in enumerate(recorded["reward"]):
        done = (recorded["terminated"][step] + recorded["truncated"][step]) > 0
        scaler.observe(reward, done, valid)
        ours = recorded["probe"] / scaler.denominator()
        torch.testing.assert_close(ours, recorded["normalized_probe"][step], atol=1e-5, rtol=1e-5)
