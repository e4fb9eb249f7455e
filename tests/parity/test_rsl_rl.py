"""PPO against rsl_rl's own code: same rollout, same weights, same shuffles, same numbers.

rsl_rl 5.5.1 or newer. Its choices that are not ours by default are switched on: time-outs bootstrap
from the state before the last step, and every pass goes through the same minibatches.
"""

from functools import partial
from typing import Any

import pytest
import torch

from supple.agents import PPO, PPOSettings
from supple.envs.base import Box, EnvSpec, step_result
from supple.replay import Replay, ReplaySettings

pytestmark = pytest.mark.sim("rsl_rl")

ENVS, STEPS, ACTIONS = 6, 8, 3
GROUPS = {"policy": 5, "critic": 4}
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)


def our_agent(**changes):
    spec = EnvSpec(
        task_id="parity/random",
        num_envs=ENVS,
        observation=GROUPS,
        action=Box(low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS),
        device=torch.device("cpu"),
    )
    options = {
        "rollout_steps": STEPS,
        "epochs": 3,
        "minibatches": 4,
        "actor_hidden": (16, 8),
        "critic_hidden": (12, 8),
        "timeout_bootstrap": "pre_step",
        "reshuffle": False,
        "initial_std": 0.7,
    }
    settings = PPOSettings(**{**options, **changes})
    return PPO(spec, settings, total_env_steps=10_000, seed=1)


def their_algorithm(agent):
    from rsl_rl import algorithms
    from rsl_rl.models import MLPModel
    from rsl_rl.storage import RolloutStorage
    from tensordict import TensorDict

    settings = agent.settings
    zeros = {name: torch.zeros(ENVS, width) for name, width in GROUPS.items()}
    obs = TensorDict(zeros, batch_size=[ENVS])
    sets = {"actor": ["policy"], "critic": ["policy", "critic"]}
    kind = (
        "HeteroscedasticGaussianDistribution" if settings.std == "state" else "GaussianDistribution"
    )
    common = {"activation": "elu", "obs_normalization": settings.normalise_obs}
    actor = MLPModel(
        obs,
        sets,
        "actor",
        ACTIONS,
        settings.actor_hidden,
        distribution_cfg={
            "class_name": f"rsl_rl.modules.distribution:{kind}",
            "init_std": settings.initial_std,
            "std_type": "log",
        },
        **common,
    )
    critic = MLPModel(obs, sets, "critic", 1, settings.critic_hidden, **common)
    algorithm = algorithms.PPO(
        actor,
        critic,
        RolloutStorage("rl", ENVS, STEPS, obs, [ACTIONS]),
        num_learning_epochs=settings.epochs,
        num_mini_batches=settings.minibatches,
        clip_param=settings.clip,
        gamma=settings.gamma,
        lam=settings.gae_lambda,
        value_loss_coef=settings.value_coef,
        entropy_coef=settings.entropy_coef,
        learning_rate=settings.lr,
        max_grad_norm=settings.max_grad_norm,
        use_clipped_value_loss=settings.clip_value,
        schedule=settings.lr_schedule,
        desired_kl=settings.desired_kl,
        normalize_advantage_per_mini_batch=settings.normalise_advantage == "minibatch",
    )
    layers = {name: value for name, value in agent.actor.layers.state_dict().items()}
    if settings.std == "state":  # ours adds to a constant, theirs holds it in the bias
        last = [name for name in layers if name.endswith("bias")][-1]
        layers[last] = layers[last].clone()
        layers[last][ACTIONS:] += agent.distribution.log_std
        weight = last.replace("bias", "weight")
        layers[last.replace("bias", "weight")] = layers[weight]
        actor.mlp.load_state_dict(layers)
    else:
        actor.mlp.load_state_dict(layers)
        actor.distribution.log_std_param.data.copy_(agent.distribution.log_std)
    critic.mlp.load_state_dict(agent.critic.layers.state_dict())
    return algorithm


def random_step(random):
    terminated = torch.rand(ENVS, generator=random) < 0.1
    truncated = torch.rand(ENVS, generator=random) < 0.15
    groups: Any = {
        which: {name: torch.randn(ENVS, width, generator=random) for name, width in GROUPS.items()}
        for which in ("observation", "final_observation")
    }
    reward = torch.randn(ENVS, generator=random)
    return step_result(reward=reward, terminated=terminated, truncated=truncated, **groups)


def collect(agent, algorithm, replay, obs, random):
    """One rollout for both; theirs is told our actions."""
    for _ in range(STEPS):
        action, extras = agent.act(obs, explore=True)
        algorithm.act(obs)
        algorithm.transition.actions = action
        algorithm.transition.actions_log_prob = algorithm.actor.get_output_log_prob(action).detach()
        step = random_step(random)
        agent.observe(step)
        replay.add(obs, action, step, extras)
        ended = step["terminated"] | step["truncated"]
        extra = {"time_outs": step["truncated"] & ~step["terminated"]}
        obs = step["observation"]
        algorithm.process_env_step(obs, step["reward"], ended, extra)
    algorithm.compute_returns(obs)
    return obs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalise_obs": False, "normalise_advantage": "minibatch", "lr": 5e-3},
        {"clip_value": False, "lr_schedule": "fixed", "entropy_coef": 0.02},
        {"std": "state", "max_grad_norm": 0.05, "desired_kl": 1e-4},
    ],
    ids=["default", "per_minibatch", "unclipped_values", "state_std"],
)
def test_updates_equal_rsl_rl(changes, monkeypatch):
    agent = our_agent(**changes)
    algorithm = their_algorithm(agent)
    random = torch.Generator().manual_seed(5)
    obs = random_step(random)["observation"]
    for model, groups in ((agent.actor, ["policy"]), (agent.critic, ["policy", "critic"])):
        seen = torch.cat([3 * obs[name] + 1 for name in groups], dim=-1)
        model.normaliser.observe(seen, torch.ones(ENVS, dtype=torch.bool))
    algorithm.actor.update_normalization(3 * obs + 1)
    algorithm.critic.update_normalization(3 * obs + 1)

    replay = Replay(agent.spec, agent.ring(ReplaySettings()), extra_spec=agent.extra_spec)
    for _ in range(3):
        obs = collect(agent, algorithm, replay, obs, random)
        order = torch.randperm(ENVS * STEPS, generator=random)
        monkeypatch.setattr(torch, "randperm", lambda *_, order=order, **__: order)

        packed = agent._pack(agent._rollout(replay))
        ours = dict(zip(agent._fields, packed.split(list(agent._fields.values()), -1), strict=True))
        storage = algorithm.storage
        for name, theirs in (
            ("value", storage.values),
            ("target", storage.returns),
            ("advantage", storage.advantages),
            ("log_prob", storage.actions_log_prob),
        ):
            close(ours[name], theirs.view(-1, 1))

        metrics = agent.update(replay)
        losses = algorithm.update()
        monkeypatch.undo()
        for name, theirs in (
            ("actor/loss", losses["surrogate"]),
            ("critic/loss", losses["value"]),
            ("actor/entropy", losses["entropy"]),
            ("actor/learning_rate", algorithm.learning_rate),
        ):
            assert metrics[name].item() == pytest.approx(theirs, rel=1e-5, abs=1e-6), name
        for mine, theirs in (
            (agent.actor.layers, algorithm.actor.mlp),
            (agent.critic.layers, algorithm.critic.mlp),
        ):
            pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
            for number, (own, other) in enumerate(pairs):
                if changes.get("std") == "state" and own.shape == (2 * ACTIONS,):
                    own = own + torch.cat((torch.zeros(ACTIONS), agent.distribution.log_std))
                close(own, other, msg=f"parameter {number}")
        if agent.settings.normalise_obs:
            normaliser = algorithm.critic.obs_normalizer
            close(agent.critic.normaliser.mean, normaliser.mean)
            close(agent.critic.normaliser.std, normaliser.std)
    if agent.settings.std == "shared":
        log_std = algorithm.actor.distribution.log_std_param
        close(agent.distribution.log_std, log_std)


def test_the_divergence_equals_rsl_rl():
    agent = our_agent()
    algorithm = their_algorithm(agent)
    random = torch.Generator().manual_seed(2)
    mean, log_std = torch.randn(2, 2, 50, ACTIONS, generator=random).unbind()
    ours = agent.distribution.divergence(
        *(torch.cat(pair, -1) for pair in zip(mean, log_std, strict=True))
    )
    theirs = algorithm.actor.distribution.kl_divergence(*zip(mean, log_std.exp(), strict=True))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_our_own_defaults_differ_from_rsl_rl_where_we_say_so(monkeypatch):
    agent = our_agent(timeout_bootstrap="final")
    algorithm = their_algorithm(agent)
    random = torch.Generator().manual_seed(5)
    replay = Replay(agent.spec, agent.ring(ReplaySettings()), extra_spec=agent.extra_spec)
    collect(agent, algorithm, replay, random_step(random)["observation"], random)
    packed = agent._pack(agent._rollout(replay))
    ours = dict(zip(agent._fields, packed.split(list(agent._fields.values()), -1), strict=True))
    theirs = algorithm.storage.returns.view(-1, 1)
    differs = ((ours["target"] - theirs).abs() > 1e-5).view(STEPS, ENVS)
    timeouts = replay.columns["truncated"] & ~replay.columns["terminated"]
    assert timeouts.any()
    assert differs[timeouts].all()
    assert not differs[-1][~timeouts[-1]].any()
