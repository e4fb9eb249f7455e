"""The actor of flow Q-learning, which experiments put in place of FlashSAC's."""

import pytest
import torch
from torch import nn

from benchmarks.experiments.fql import FQL, Noiseless
from supple.agents.critics import ScalarCritic
from supple.agents.flashsac import Batch
from supple.cli import BAD_INPUT, DONE, main
from supple.errors import InputError
from tests.agents.small_agents import (
    ACTIONS,
    OBSERVATIONS,
    ROWS,
    generator,
    small_settings,
    small_spec,
)
from tests.small_runs import assert_resumes_with_the_same_bits, flags
from tests.small_runs import small_settings as small_run


class Slope(ScalarCritic):
    """Its value is the sum of the actions."""

    def forward(self, x_MD, *, train, rows=slice(None)):
        return x_MD[rows, -ACTIONS:].sum(-1).expand(2, -1) + 0 * self.heads(
            x_MD, train=train, rows=rows
        ).squeeze(-1)


class Climber(FQL):
    """FQL under a critic whose slope is known."""

    def build_critic(self, size, generator):
        return Slope(size, generator=generator)


def agent(kind=FQL, **changes):
    options = {"bc_alpha": 3.0, "actor_blocks": 2, "actor_period": 1, "actor_hidden": 64}
    settings = small_settings(**{**options, **changes})
    return kind(small_spec(), settings, total_env_steps=2000, seed=0)


def batch(random, action):
    """Rows of whom only the actions matter."""
    obs = torch.randn(2 * ROWS, OBSERVATIONS, generator=random)
    return Batch(obs, obs, action, torch.zeros(ROWS), torch.ones(ROWS), torch.ones(ROWS))


def learned(own, recorded, steps=600):
    """Its actions in new states, (2000, A), after it learned from actions of one kind."""
    random = generator(0)
    for _ in range(steps):
        own.learn(batch(random, recorded(random)), *own._draw_noise())
    obs = torch.randn(2000, OBSERVATIONS, generator=random)
    with torch.no_grad():
        noise = torch.randn(2000, ACTIONS, generator=random)
        return own.actor.recorded(obs, noise), own.actor(obs, noise).clamp(-1, 1)


def two_ways(random):
    """Around -0.5 or around 0.5, all coordinates alike."""
    side = (torch.rand(ROWS, 1, generator=random) < 0.5).float() - 0.5
    return side + 0.05 * torch.randn(ROWS, ACTIONS, generator=random)


def test_both_networks_take_the_recorded_actions_two_ways():
    recorded, action = learned(agent(Climber, bc_alpha=1000.0, lr_peak=3e-3, lr_end=3e-3), two_ways)
    for found in (recorded, action):
        far = found.mean(-1).abs()
        assert far.median() > 0.25
        assert 0.4 < (found.mean(-1) > 0).float().mean() < 0.6  # not both at 0


@pytest.mark.parametrize("alpha", [2.5, 5.0])
def test_alpha_says_how_far_the_policy_leaves_them(alpha):
    """Per coordinate the pull, 2 alpha / A a unit, balances the value's slope, which is 1."""

    def still(random):
        return -0.6 + 0.02 * torch.randn(ROWS, ACTIONS, generator=random)

    recorded, action = learned(agent(Climber, bc_alpha=alpha, lr_peak=3e-3, lr_end=3e-3), still)
    assert recorded.mean() == pytest.approx(-0.6, abs=0.05)
    assert float((action - recorded).mean()) == pytest.approx(ACTIONS / (2 * alpha), abs=0.1)


@pytest.mark.parametrize("size", [1.0, 10.0])
def test_the_weight_is_of_rewards_as_they_came(size):
    own = agent(Climber, bc_alpha=5.0)
    own.reward_scaler._var.fill_(size**2)
    given = batch(generator(1), torch.zeros(ROWS, ACTIONS))
    noise = torch.randn(ROWS, 2 * ACTIONS + 1, generator=generator(2))
    action = own.actor(given.actor_obs_2BD[:ROWS], noise[:, :ACTIONS]).detach()
    found = {name: float(value) for name, value in own._update_actor(*given[:3], noise).items()}
    pulled = found["actor/loss"] - found["actor/behaviour_loss"]
    pulled += float(action.clamp(-1, 1).sum(-1).mean())
    assert pulled == pytest.approx(5.0 / size * found["actor/distance"], rel=1e-3)


def test_only_flow_matching_moves_the_behaviour_network():
    weak, strong = agent(Climber, bc_alpha=0.1), agent(Climber, bc_alpha=10.0)
    for own in (weak, strong):
        own.learn(batch(generator(1), torch.zeros(ROWS, ACTIONS)), *own._draw_noise())
    for part, same in (("behaviour", True), ("one_step", False)):
        pairs = zip(
            getattr(weak.actor, part).parameters(),
            getattr(strong.actor, part).parameters(),
            strict=True,
        )
        assert all(torch.equal(*pair) for pair in pairs) == same


def test_it_acts_with_noise_at_once_and_a_robot_without():
    own = agent()
    obs = {"policy": torch.randn(4, OBSERVATIONS)}
    first, second = (own.act(obs, explore=True)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert float(first.abs().max()) <= 1
    one, other = own.greedy(), own.greedy()
    assert torch.equal(one(obs), other(obs))
    assert not torch.equal(one(obs), one(obs))
    own.updates += 1
    assert not torch.equal(own.greedy()(obs), other(obs))
    assert torch.equal(own.act(obs, explore=False)[0], own.policy()(obs["policy"]))
    policy = own.policy()
    assert isinstance(policy, Noiseless) and isinstance(policy, nn.Module)
    assert torch.equal(policy(obs["policy"]), policy(obs["policy"]))


def test_next_actions_are_the_policys_and_have_no_entropy():
    own = agent(next_actions=2)
    obs, noise = torch.randn(ROWS, OBSERVATIONS), torch.randn(2 * ROWS, ACTIONS)
    action, log_prob = own._next_actions(obs, noise)
    torch.testing.assert_close(action[ROWS:], own.actor(obs, noise[ROWS:]).clamp(-1, 1))
    assert not log_prob.any()


def test_it_wants_a_pull():
    with pytest.raises(InputError, match="bc-alpha, got 0"):
        agent(bc_alpha=0.0)


def test_a_run_of_it_resumes_with_the_same_bits_and_is_evaluated(tmp_path, capsys):
    def settings(folder):
        made = small_run(
            "toy/lqr", folder, env_steps=200, agent="benchmarks.experiments.fql:FQL", bc_alpha=3.0
        )
        made.diagnostics.enabled = False
        return made

    state = assert_resumes_with_the_same_bits(settings, tmp_path, at=130)
    assert "behaviour.0.weight" in state["agent"]["actor"]
    assert main(["eval", str(tmp_path / "parts"), "--episodes", "2"]) == DONE


def test_what_knows_gaussian_actors_alone_refuses_it_in_a_line(tmp_path, capsys):
    given = ["--agent", "benchmarks.experiments.fql:FQL", "--agent.bc-alpha", "3"]
    given += [*flags(), "--env-steps", "60", "--run-dir", str(tmp_path / "run")]
    assert main(["train", "toy/lqr", *given]) == BAD_INPUT
    assert not (tmp_path / "run").exists()
    assert main(["train", "toy/lqr", *given, "--diagnostics.no-enabled"]) == DONE
    assert main(["diagnose", str(tmp_path / "run")]) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.count("diagnostics look into Actor, got FQLActor: ") == 2
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]) == BAD_INPUT
    assert "cannot export Noiseless" in capsys.readouterr().err
