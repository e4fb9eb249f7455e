"""What several processes learn together is what one learns from all their data."""

from functools import partial
from typing import Any

import pytest
import torch

from supple import distributed
from supple.agents import joint_norm
from supple.agents.flashsac import Batch, FlashSAC
from supple.agents.remedies import RemedySettings
from supple.distributed import in_step, together, world
from supple.errors import InputError
from supple.region import Compute
from tests.agents import small_agents, small_flows, test_ppo
from tests.agents.small_agents import ACTIONS, RandomReplay, generator, random_batch
from tests.small_worlds import in_processes

ROWS = 16
"""Of each process."""
CRITICS = ("categorical", "scalar", "flow", "flow_official")
SIZES = (2, 4)


pytestmark = pytest.mark.usefixtures("one_thread")


# --- FlashSAC ---------------------------------------------------------------------------------


def own_rows(value, rank, *, rows=ROWS):
    """A process's share of joined rows; observations are current ones, then as many next ones."""
    return value[rank * rows : (rank + 1) * rows]


def share(batch, rank):
    def both(obs):
        return torch.cat([own_rows(half, rank) for half in obs.chunk(2)])

    return Batch(
        both(batch.actor_obs_2BD),
        both(batch.critic_obs_2BD),
        *(own_rows(value, rank) for value in batch[2:]),
    )


def flashsac_gradients(size, rank=None, **changes):
    """Of the first gradient step on ``size * ROWS`` rows, or on one process's share of them."""
    agent = small_agents.small_agent(
        batch_size=ROWS if rank is not None else size * ROWS, **changes
    )
    random = generator(5)
    rows = size * ROWS
    batch = random_batch(agent, random, rows=rows)
    noise = torch.randn(1 + agent.settings.next_actions, rows, ACTIONS, generator=random)
    draws = agent.critic.draws
    own = draws.value + draws.target + draws.loss
    uniform = torch.rand(rows, draws.value + own, generator=random)
    if rank is not None:
        batch, uniform = share(batch, rank), own_rows(uniform, rank)
        noise = torch.stack([own_rows(each, rank) for each in noise])
    numbers = uniform.split((draws.value, own), dim=-1) if own else ()
    agent.learn(batch, noise[0], noise[1:].flatten(0, 1), *numbers)
    found = {}
    for name, optimizer in agent._optimizers.items():
        for index, mean in enumerate(optimizer.mean):  # a tenth of the first gradient
            found[f"{name}.{index}"] = 10 * mean
    for name in ("actor", "critic", "target_critic"):
        for key, buffer in getattr(agent, name).named_buffers():
            found[f"{name}.{key}"] = buffer
    return found


@in_step
def joint_flashsac(cases, size):
    found = {}
    for number, case in enumerate(cases):
        for name, value in flashsac_gradients(size, world().rank, **case).items():
            found[f"{number}.{name}"] = value
    return found


def assert_equal(found, expected, tolerance=1e-6):
    """To the tolerance in every element, and in the norm of all of them."""
    assert found.keys() == expected.keys()
    left, right = (
        torch.cat([each[name].flatten() for name in expected]) for each in (found, expected)
    )
    assert float((left - right).abs().max()) < tolerance
    assert float((left - right).norm() / right.norm()) < tolerance


# Rounding differs with the number of rows: without a table, whose pieces have slopes of their own,
# a gradient moves by no more than that.
FLOW = small_flows.settings_of(table_points=0, activation="gelu")
FLASHSAC_CASES = [
    *({"critic": critic, "flow": FLOW} for critic in CRITICS),
    {"critic": "categorical", "next_actions": 2, "bc_alpha": 0.5},
]


def flashsac_alone(size):
    return {
        f"{number}.{name}": value
        for number, case in enumerate(FLASHSAC_CASES)
        for name, value in flashsac_gradients(size, **case).items()
    }


@pytest.mark.parametrize("size", SIZES)
def test_flashsac_gradients_are_those_of_the_joined_batch(size, tmp_path):
    expected = flashsac_alone(size)
    ranks = in_processes(size, partial(joint_flashsac, FLASHSAC_CASES, size), tmp_path)
    for found in ranks:
        assert_equal(found, expected)
        assert all(torch.equal(value, ranks[0][name]) for name, value in found.items())


def test_a_traced_step_learns_what_an_eager_one_does(tmp_path, traced_graphs):
    def work():
        eager = trained_flashsac()
        traced = trained_flashsac(compute=Compute(compile=True))
        assert len(traced_graphs) >= 2, "actor and critic step"
        assert any("_c10d_functional" in graph.code for graph in traced_graphs)
        return dict(zip("et", (parameters(eager), parameters(traced)), strict=True))

    for found in in_processes(2, work, tmp_path):
        assert torch.equal(found["e"], found["t"])


def parameters(agent):
    return torch.cat([value.detach().flatten() for value in agent.critic.parameters()])


def own_statistics(monkeypatch):
    monkeypatch.setattr(joint_norm, "mean_over_ranks", lambda x: x)


def test_averaged_gradients_alone_are_others_than_those_of_the_joined_batch(tmp_path, monkeypatch):
    own_statistics(monkeypatch)
    found, _ = in_processes(2, partial(joint_flashsac, FLASHSAC_CASES, 2), tmp_path)
    with pytest.raises(AssertionError):
        assert_equal(found, flashsac_alone(2), tolerance=1e-3)


def test_a_step_that_is_not_together_waits_for_nobody(tmp_path):
    def work():
        if world().first:
            small_agents.train(small_agents.small_agent(), 1)
        return {"rank": torch.tensor(world().rank)}

    assert [int(found["rank"]) for found in in_processes(2, work, tmp_path)] == [0, 1]


# --- PPO --------------------------------------------------------------------------------------

ENVS = 3
"""Of each process."""


def ppo_agent(envs, **changes):
    spec = small_agents.small_spec(num_envs=envs)
    changes = {"normalise_obs": True, "rollout_steps": 6, **changes}
    return test_ppo.small_agent(spec, minibatches=1, **changes)


def ppo_update(size, rank=None, **changes):
    """Of a rollout of ``size * ENVS`` environments, or of one process's share of them."""
    whole, own = ppo_agent(size * ENVS, **changes), ppo_agent(ENVS, **changes)
    agent = whole if rank is None else own
    part = slice(None) if rank is None else slice(rank * ENVS, (rank + 1) * ENVS)
    random, replay = generator(11), test_ppo.ring_of(agent)
    for _ in range(agent.horizon):
        obs = test_ppo.random_groups(random, whole.spec)
        noise = torch.randn(whole.spec.num_envs, ACTIONS, generator=random)
        action, extras = whole._explore(obs["policy"], noise)
        step = test_ppo.random_step(random, whole.spec, invalid=0.2)
        agent.observe(sliced(step, part))
        replay.add(sliced(obs, part), action[part], sliced(step, part), sliced(extras, part))
    agent.update(replay)
    found = {f"gradient.{index}": 10 * mean for index, mean in enumerate(agent._optimizer.mean)}
    found |= {f"normaliser.{name}": value for name, value in agent.actor.normaliser.named_buffers()}
    found |= {name: agent.metrics[name] for name in ("actor/kl", "critic/explained_variance")}
    return found | {"rate": agent._rate, "taken": agent._taken, "seen": agent._seen}


def sliced(tree, part):
    return {
        name: sliced(value, part) if isinstance(value, dict) else value[part]
        for name, value in tree.items()
    }


PPO_CASES = [
    {"epochs": 1, "normalise_advantage": "minibatch"},
    {"epochs": 1, "normalise_advantage": "rollout", "lr_schedule": "linear"},
]
STOPPING: dict[str, Any] = {"epochs": 8, "lr": 1e-2, "kl_stop": 0.02}


def joint_ppo(size, cases):
    rank = world().rank if world().size > 1 else None
    return {
        f"{number}.{name}": value.double()
        for number, case in enumerate(cases)
        for name, value in ppo_update(size, rank, **case).items()
    }


@pytest.mark.parametrize("size", SIZES)
def test_ppo_gradients_are_those_of_the_joined_rollout(size, tmp_path):
    expected = joint_ppo(size, PPO_CASES)
    for found in in_processes(size, partial(joint_ppo, size, PPO_CASES), tmp_path):
        assert_equal(found, expected)


def test_ppo_stops_early_in_all_processes_after_the_same_step(tmp_path):
    expected = joint_ppo(2, [STOPPING])
    assert 1 < float(expected["0.taken"]) < 8, "the early stop must bite, or it is not tested"
    first, second = in_processes(2, partial(joint_ppo, 2, [STOPPING]), tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("0.taken", "0.rate", "0.seen"):
        assert torch.equal(first[name], expected[name])


# --- over many updates ------------------------------------------------------------------------


def trained_flashsac(compute=None, **changes):
    remedy = RemedySettings(shrink_every=7, reset_dormant_every=5, dormant_threshold=0.5)
    spec = small_agents.small_spec()
    settings = small_agents.small_settings(
        batch_size=ROWS, flow=small_flows.settings_of(), remedy=remedy, **changes
    )
    agent = FlashSAC(spec, settings, total_env_steps=2000, compute=compute)
    random = generator(world().rank)
    replay: Any = RandomReplay(spec, seed=world().rank)
    for _ in range(5):
        agent.observe(small_agents.random_step(random, spec))
        agent.update(replay)
    return agent


def trained_ppo():
    agent = test_ppo.small_agent(normalise_obs=True, normalise_reward=True, kl_stop=0.02)
    random, replay = generator(world().rank), test_ppo.ring_of(agent)
    for _ in range(4):
        test_ppo.collect(agent, replay, random, invalid=0.1)
        agent.update(replay)
    return agent


def test_networks_and_optimisers_stay_the_same_bits_in_all_processes(tmp_path):
    def work():
        agents = [trained_flashsac(critic=critic) for critic in ("categorical", "flow")]
        for agent in (*agents, trained_ppo()):
            assert agent.updates > 20
            distributed.require_same(agent.shared_state(), "networks", "that is a mistake")
        return {"exploration": agent.generators["exploration"].get_state()}

    first, second = in_processes(2, work, tmp_path)
    assert not torch.equal(first["exploration"], second["exploration"])


def test_other_networks_are_noticed(tmp_path):
    def work():
        agent = small_agents.small_agent()
        with torch.no_grad():
            agent.critic.head.weight[0, 0, 0] += 1e-7 * world().rank
        expected = "process 1 of 2 has other networks than process 0: resume the run"
        with pytest.raises(InputError, match=expected):
            distributed.require_same(agent.shared_state(), "networks", "resume the run")
        return {}

    in_processes(2, work, tmp_path)


def test_reward_moments_are_those_of_all_rewards(tmp_path):
    """All but the moments' start with a variance of 1, whose weight is that of 1e-4 rewards."""

    def denominator(rank):
        spec = small_agents.small_spec(num_envs=8 if rank is None else 4)
        scaler = small_agents.small_agent(spec).reward_scaler
        random = generator(4)
        for _ in range(50):
            reward = 3 * torch.randn(8, generator=random) + 2
            ended = torch.rand(8, generator=random) < 0.05
            part = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
            scaler.observe(reward[part], ended[part], torch.ones_like(ended[part]))
        with together():
            scaler.share()
        return {"denominator": scaler.denominator()}

    expected = denominator(None)["denominator"]
    for found in in_processes(2, lambda: denominator(world().rank), tmp_path):
        assert torch.allclose(found["denominator"], expected, rtol=1e-5)
