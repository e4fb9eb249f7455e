"""PPO against hand-worked numbers and plain loops."""

import copy
from typing import Any

import pytest
import torch

from supple.agents import PPO, PPOSettings
from supple.envs.base import Discrete, step_result
from supple.errors import InputError
from supple.region import Compute
from supple.replay import Replay, ReplaySettings
from supple.replay.plan import plan_ring
from tests.agents.small_agents import assert_same_bits, generator, small_spec


def small_settings(**changes):
    sizes: dict[str, Any] = {
        "rollout_steps": 6,
        "epochs": 2,
        "minibatches": 3,
        "actor_hidden": (16,),
        "critic_hidden": (12,),
    }
    return PPOSettings(**{**sizes, **changes})


def small_agent(spec=None, *, seed=0, total_env_steps=2000, compute=None, **changes):
    return PPO(
        spec or small_spec(),
        small_settings(**changes),
        total_env_steps=total_env_steps,
        seed=seed,
        compute=compute,
    )


def ring_of(agent):
    return Replay(agent.spec, agent.ring(ReplaySettings()), extra_spec=agent.extra_spec)


def random_groups(random, spec):
    return {
        name: torch.randn(spec.num_envs, width, generator=random)
        for name, width in spec.observation.items()
    }


def random_step(random, spec, *, end=0.15, invalid=0.0):
    terminated, truncated, holes = torch.rand(3, spec.num_envs, generator=random)
    valid = holes >= invalid
    return step_result(
        observation=random_groups(random, spec),
        final_observation=random_groups(random, spec),
        reward=torch.randn(spec.num_envs, generator=random),
        terminated=(terminated < end) & valid,
        truncated=(truncated < end) & valid,
        valid=valid,
    ).to_dict()


def collect(agent, replay, random, obs=None, **chances):
    obs = random_groups(random, agent.spec) if obs is None else obs
    for _ in range(agent.horizon):
        action, extras = agent.act(obs, explore=True)
        step = random_step(random, agent.spec, **chances)
        agent.observe(step)
        replay.add(obs, action, step, extras)
        obs = step["observation"]
    return obs


def packed(agent, replay):
    rows = agent._pack(agent._rollout(replay))
    parts = rows.split(list(agent._fields.values()), dim=-1)
    return dict(zip(agent._fields, parts, strict=True))


def column(*values):
    return torch.tensor(values)[:, None]


def test_advantages_worked_by_hand():
    agent = small_agent(gamma=0.5, gae_lambda=0.5)
    # Step 1 terminates; step 3 is cut by time, its final state worth 8; step 4 goes on, worth 2.
    advantage, target = agent.advantages(
        reward=column(1.0, 2.0, 3.0, 4.0, 5.0),
        value=column(1.0, 1.0, 2.0, 2.0, 1.0),
        next_value=column(1.0, 99.0, 2.0, 8.0, 2.0),
        terminated=column(False, True, False, False, False),
        truncated=column(False, False, False, True, False),
        valid=column(True, True, True, True, True),
    )
    # Errors: 1 + .5*1 - 1 = .5, 2 - 1 = 1, 3 + .5*2 - 2 = 2, 4 + .5*8 - 2 = 6, 5 + .5*2 - 1 = 5.
    # Each adds a quarter of the next advantage, within an episode.
    assert advantage.flatten().tolist() == [0.75, 1.0, 3.5, 6.0, 5.0]
    assert target.flatten().tolist() == [1.75, 2.0, 5.5, 8.0, 6.0]


def test_time_outs_can_bootstrap_as_rsl_rl_does():
    agent = small_agent(gamma=0.5, gae_lambda=0.5, timeout_bootstrap="pre_step")
    advantage, _ = agent.advantages(
        reward=column(3.0, 4.0),
        value=column(2.0, 2.0),
        next_value=column(2.0, 8.0),
        terminated=column(False, False),
        truncated=column(False, True),
        valid=column(True, True),
    )
    # 4 + .5 * V(before the step) 2 - 2 = 3;  3 + .5 * 2 - 2 + .25 * 3 = 2.75.
    assert advantage.flatten().tolist() == [2.75, 3.0]


def test_rows_that_are_no_steps_cut_and_count_nothing():
    agent = small_agent(gamma=0.5, gae_lambda=0.5)
    nan = float("nan")
    advantage, target = agent.advantages(
        reward=column(1.0, nan, 3.0),
        value=column(1.0, nan, 2.0),
        next_value=column(1.0, nan, 2.0),
        terminated=column(False, False, False),
        truncated=column(False, False, False),
        valid=column(True, False, True),
    )
    assert advantage.flatten().tolist() == [0.5, 0.0, 2.0]
    assert target.flatten()[[0, 2]].tolist() == [1.5, 4.0]


def test_advantages_equal_a_plain_loop():
    agent = small_agent()
    random = generator(3)
    shape = (20, 5)
    reward, value, next_value = torch.randn(3, *shape, generator=random)
    terminated, truncated, valid = torch.rand(3, *shape, generator=random) < torch.tensor(
        [0.1, 0.2, 0.9]
    ).view(3, 1, 1)
    found, _ = agent.advantages(
        reward=reward,
        value=value,
        next_value=next_value,
        terminated=terminated,
        truncated=truncated,
        valid=valid,
    )
    gamma, decay = agent.settings.gamma, agent.settings.gae_lambda
    for env in range(shape[1]):
        after = 0.0
        for t in reversed(range(shape[0])):
            if not valid[t, env]:
                after = 0.0
                continue
            stop = bool(terminated[t, env])
            delta = reward[t, env] + gamma * next_value[t, env] * (not stop) - value[t, env]
            ended = stop or bool(truncated[t, env])
            follows = not ended and t + 1 < shape[0] and bool(valid[t + 1, env])
            after = float(delta) + (gamma * decay * after if follows else 0.0)
            assert float(found[t, env]) == pytest.approx(after, abs=1e-5)


def test_the_rollout_is_a_view_of_the_ring_and_forgotten_afterwards():
    agent = small_agent()
    replay = ring_of(agent)
    assert (replay.num_rows, replay.num_envs) == (6, 4)
    obs = collect(agent, replay, generator(1))
    rollout = agent._rollout(replay)
    own = replay.ring("policy")
    assert rollout["actor_obs"].data_ptr() == own.data_ptr()
    assert agent.update(replay)
    assert replay.size == 0
    collect(agent, replay, generator(2), obs)
    assert agent.update(replay)
    assert agent.updates == 2 * 2 * 3


def test_next_observations_are_the_final_ones_where_an_episode_ended():
    agent = small_agent()
    replay, random = ring_of(agent), generator(4)
    obs = random_groups(random, agent.spec)
    expected = []
    for _ in range(agent.horizon):
        action, extras = agent.act(obs, explore=True)
        step = random_step(random, agent.spec, end=0.3)
        replay.add(obs, action, step, extras)
        ended = (step["terminated"] | step["truncated"])[:, None]
        final, after = step["final_observation"]["policy"], step["observation"]["policy"]
        expected.append(torch.where(ended, final, after))
        obs = step["observation"]
    found = replay.next_observations()["policy"]
    assert torch.equal(found, torch.cat(expected))


@pytest.mark.parametrize("memory", [0, 5])
def test_before_the_first_step_learning_sees_what_acting_saw(memory):
    agent = small_agent(memory=memory, normalise_reward=True)
    replay, random = ring_of(agent), generator(1)
    obs = collect(agent, replay, random)
    agent.update(replay)
    collect(agent, replay, random, obs)
    rows = packed(agent, replay)
    for index in agent._shuffle():
        row = {name: part[index] for name, part in rows.items()}
        params = agent.distribution.params(agent._unroll(agent.actor, row, "actor"))
        torch.testing.assert_close(params, row["params"], atol=1e-6, rtol=1e-5)
        value = agent._unroll(agent.critic, row, "critic")
        torch.testing.assert_close(value, row["value"], atol=1e-6, rtol=1e-5)


def test_minibatches_are_drawn_anew_for_each_pass_and_cover_every_row_once():
    agent = small_agent(minibatches=5)  # 24 rows: 4 sit out
    first, second = agent._shuffle(), agent._shuffle()
    for batches in (first, second):
        rows = torch.cat(batches)
        assert len(batches) == 5
        assert len(rows) == len(rows.unique()) == 20
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_sequences_of_a_minibatch_are_consecutive_rows_of_one_environment():
    agent = small_agent(memory=3, sequence_steps=2, minibatches=3)
    batches = agent._shuffle()
    assert len(torch.cat(batches).unique()) == 24
    for rows in batches:
        step, env = (rows // 4).view(2, -1), (rows % 4).view(2, -1)
        assert torch.equal(step[1], step[0] + 1)
        assert (step[0] % 2 == 0).all()
        assert torch.equal(env[0], env[1])


def test_invalid_rows_change_nothing_that_is_learned():
    spec = small_spec()
    first, second = small_agent(spec), small_agent(spec)
    for agent, poison in ((first, 0.0), (second, float("nan"))):
        replay, random = ring_of(agent), generator(1)
        obs = random_groups(random, spec)
        for _ in range(agent.horizon):
            action, extras = agent.act(obs, explore=True)
            step = random_step(random, spec, invalid=0.3)
            step["reward"] = torch.where(step["valid"], step["reward"], poison)
            agent.observe(step)
            replay.add(obs, action, step, extras)
            obs = step["observation"]
        agent.update(replay)
    assert_same_bits(first.state_dict()["actor"], second.state_dict()["actor"])
    assert_same_bits(first.state_dict()["critic"], second.state_dict()["critic"])


def test_early_stop_leaves_the_rest_of_a_phase_out():
    agent = small_agent(kl_stop=1e-3, epochs=8, lr=1e-2, lr_schedule="fixed")
    replay = ring_of(agent)
    collect(agent, replay, generator(1))
    seen = []
    learn = agent._learn_step

    def watch(*inputs):
        learn(*inputs)
        seen.append((bool(agent._going), copy.deepcopy(agent._optimizer.state_dict())))
        return {}

    agent._learn_step = watch
    metrics = agent.update(replay)
    going = [on for on, _ in seen]
    stop = going.index(False)
    assert 0 < stop < len(going) - 1
    assert not any(going[stop:])
    for _, state in seen[stop:]:
        assert_same_bits(state, seen[stop - 1][1])
    assert int(agent._taken) == stop
    assert float(metrics["actor/steps_taken"]) == stop
    assert float(agent._sums[-1]) == stop + 1  # means are over what was looked at, the stop too
    collect(agent, replay, generator(2))
    agent._learn_step = learn
    agent.update(replay)
    assert int(agent._taken) > stop


def test_an_early_stop_that_never_comes_changes_nothing():
    agents = [small_agent(kl_stop=stop) for stop in (0.0, 1e9)]
    for agent in agents:
        replay = ring_of(agent)
        collect(agent, replay, generator(1))
        agent.update(replay)
    for left, right in zip(*(agent._optimizer.params for agent in agents), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_the_rate_follows_the_divergence_or_the_run():
    agent = small_agent(desired_kl=0.01, lr=1e-3)
    agent._sums.fill_(1)  # a step of this phase was taken
    for kl, expected in ((0.021, 1e-3 / 1.5), (0.004, 1e-3), (0.0, 1e-3), (0.01, 1e-3)):
        agent._adapt_rate(torch.tensor(kl))
        assert float(agent._rate) == pytest.approx(expected)
    for _ in range(50):
        agent._adapt_rate(torch.tensor(1.0))
    assert float(agent._rate) == pytest.approx(1e-5)
    for _ in range(50):
        agent._adapt_rate(torch.tensor(1e-4))
    assert float(agent._rate) == pytest.approx(1e-2)

    # 24 steps a rollout: of 106 steps the last rollout has 10, and still learns.
    agent = small_agent(lr_schedule="linear", lr=1e-3, total_env_steps=106)
    assert rates_of(agent, 6) == pytest.approx(
        [1e-3 * max(0.0, 1 - 24 * k / 106) for k in range(6)]
    )
    agent = small_agent(lr_schedule="linear", lr=1e-3, total_env_steps=24)
    assert rates_of(agent, 1) == pytest.approx([1e-3])


@pytest.mark.parametrize(
    ("lr", "kl", "expected"),
    [
        (3e-6, 1.0, 3e-6),
        (3e-6, 1e-4, 4.5e-6),
        (1.2e-5, 1.0, 1e-5),
        (8e-3, 1e-4, 1e-2),
        (0.05, 1e-4, 0.05),
        (0.05, 1.0, 0.05 / 1.5),
    ],
)
def test_an_adaptive_rate_beyond_its_bounds_never_moves_the_wrong_way(lr, kl, expected):
    agent = small_agent(lr=lr)
    agent._sums.fill_(1)
    agent._adapt_rate(torch.tensor(kl))
    assert float(agent._rate) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("moved_by", "steps", "factor"), [(1e-3, 1, 1.0), (1e-3, 2, 1.5), (1.0, 1, 1 / 1.5)]
)
def test_the_first_step_of_a_phase_never_raises_the_rate(moved_by, steps, factor):
    """What a categorical policy's KL is then is rounding, of either sign: here of one sign."""
    agent = small_agent(minibatches=steps, epochs=1)
    replay = ring_of(agent)
    collect(agent, replay, generator(1))
    agent.actor.layers[-1].bias.data.add_(moved_by)
    metrics = agent.update(replay)
    assert float(metrics["actor/kl"]) > 0
    assert float(metrics["actor/learning_rate"]) == pytest.approx(factor * agent.settings.lr)


def rates_of(agent, phases, **chances):
    replay, random, rates = ring_of(agent), generator(1), []
    for _ in range(phases):
        collect(agent, replay, random, **chances)
        rates.append(float(agent.update(replay)["actor/learning_rate"]))
    return rates


def test_a_linear_rate_counts_the_steps_that_were_steps():
    agent = small_agent(lr_schedule="linear", total_env_steps=100)
    rates = rates_of(agent, 2, invalid=0.5)
    seen = 100 * (1 - rates[1] / rates[0])
    assert 0 < seen < 24
    assert seen == pytest.approx(round(seen), abs=1e-3)


def test_a_linear_rate_goes_on_to_the_end_of_an_extended_run():
    agent = small_agent(lr_schedule="linear", lr=1e-3, total_env_steps=48)
    rates_of(agent, 2)
    longer = small_agent(lr_schedule="linear", lr=1e-3, total_env_steps=96)
    longer.load_state_dict(agent.state_dict())
    assert rates_of(longer, 2) == pytest.approx([5e-4, 2.5e-4])


def test_an_adaptive_rate_stands_still_over_steps_that_are_left_out():
    agent = small_agent(kl_stop=1e-6, desired_kl=1e-9, lr=1e-3, epochs=10)
    replay = ring_of(agent)
    collect(agent, replay, generator(1))
    rate = float(agent.update(replay)["actor/learning_rate"])
    looked_at = float(agent._sums[-1])
    assert looked_at < 5  # of 30
    assert rate >= 1e-3 / 1.5**looked_at * 0.999


def test_a_phase_that_stops_at_once_still_says_why():
    agent = small_agent(kl_stop=1e-12, lr_schedule="fixed", epochs=3)
    replay = ring_of(agent)
    collect(agent, replay, generator(1))
    agent._actor_params[0].data.add_(0.3)  # the policy has moved since it acted
    metrics = agent.update(replay)
    assert float(metrics["actor/steps_taken"]) == 0
    assert float(metrics["actor/kl"]) > 1e-6
    assert float(metrics["critic/loss"]) > 0


def test_the_first_phase_learns_from_the_observations_that_acting_saw():
    agent = small_agent(lr_schedule="fixed", lr=1e-9)
    replay, random = ring_of(agent), generator(1)
    obs = random_groups(random, agent.spec)
    for _ in range(agent.horizon):
        action, extras = agent.act(obs, explore=True)
        step = random_step(random, agent.spec)
        replay.add(obs, action, step, extras)
        obs = {"policy": 1000 * step["observation"]["policy"]}
    assert float(agent.update(replay)["actor/kl"]) < 1e-6
    assert float(agent.actor.normaliser.std.min()) > 1


def test_a_ratio_that_would_overflow_gives_finite_gradients():
    agent = small_agent()
    replay = ring_of(agent)
    collect(agent, replay, generator(1))
    replay.columns["log_prob"].sub_(1000.0)  # e^1000 times likelier now
    agent.update(replay)
    assert all(torch.isfinite(param).all() for param in agent._optimizer.params)


def test_the_entropy_of_squashed_actions_is_that_of_fresh_draws():
    agents = [
        small_agent(distribution="squashed", entropy_coef=weight, lr=1e-9, lr_schedule="fixed")
        for weight in (0.0, 1e-9)
    ]
    found = []
    for agent in agents:
        replay = ring_of(agent)
        collect(agent, replay, generator(1))
        found.append(float(agent.update(replay)["actor/entropy"]))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_recurrent_policy_without_a_memory_begins_an_episode():
    agent = small_agent(memory=4)
    obs = random_groups(generator(1), agent.spec)["policy"]
    policy = agent.policy()
    action = policy(obs)
    assert torch.equal(action, policy(obs, torch.zeros(len(obs), 4))[0])


def test_long_sequences_are_not_compiled():
    compute = Compute(compile=True)
    agent = small_agent(memory=3, rollout_steps=33, compute=compute)
    assert not agent._learn_step._compute.compile
    assert agent.compute.compile
    agent = small_agent(memory=3, rollout_steps=33, sequence_steps=11, compute=compute)
    assert agent._learn_step._compute.compile


def test_a_rollout_that_memory_does_not_hold_names_ppos_own_flags(monkeypatch):
    import supple.replay.plan

    monkeypatch.setattr(supple.replay.plan, "free_memory", lambda device: 100)
    agent = small_agent()
    ring = plan_ring(agent.spec, agent.ring(ReplaySettings()), agent.extra_spec)
    with pytest.raises(InputError, match=r"lower --env\.num-envs or --agent\.rollout-steps"):
        agent.check_room(ring)


@pytest.mark.parametrize("limit", [0.0, 0.1])
def test_gradients_are_clipped_for_each_network(limit):
    from supple.agents.ppo import _clipped

    gradients = (torch.full((3,), 2.0), torch.full((4,), -1.0))
    norm = torch.cat(gradients).norm()
    found, reported = _clipped(gradients, limit)
    assert float(reported) == pytest.approx(float(norm))
    expected = limit or float(norm)
    assert float(torch.cat(found).norm()) == pytest.approx(expected, rel=1e-4)


def discrete_spec():
    return small_spec(action=Discrete(n=3))


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        (small_spec(), {}),
        (small_spec(observation={"policy": 6, "critic": 4}), {"std": "state"}),
        (small_spec(), {"distribution": "squashed", "entropy_coef": 0.01}),
        (discrete_spec(), {"normalise_advantage": "minibatch"}),
        (small_spec(), {"memory": 4, "sequence_steps": 3, "lr_schedule": "linear"}),
        (small_spec(), {"kl_stop": 1e-3, "normalise_reward": True}),
    ],
    ids=["gaussian", "asymmetric", "squashed", "discrete", "memory", "kl_stop"],
)
def test_every_form_updates_saves_and_continues_with_the_same_bits(spec, changes):
    def run(agent, phases, replay, random, obs):
        for _ in range(phases):
            obs = collect(agent, replay, random, obs, invalid=0.1)
            metrics = agent.update(replay)
            assert all(torch.isfinite(value) for value in metrics.values())
        return obs

    agent = small_agent(spec, **changes)
    before = copy.deepcopy(agent.actor.state_dict())
    replay, random = ring_of(agent), generator(1)
    obs = run(agent, 2, replay, random, random_groups(random, spec))
    assert not torch.equal(before["layers.0.weight"], agent.actor.state_dict()["layers.0.weight"])
    other = small_agent(spec, seed=9, **changes)
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    again = generator(0)
    again.set_state(random.get_state())
    run(agent, 2, replay, random, obs)
    run(other, 2, ring_of(other), again, obs)
    assert_same_bits(agent.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    "changes", [{}, {"memory": 4, "sequence_steps": 3}, {"kl_stop": 1e-3}], ids=str
)
def test_compiled_updates_agree_with_eager_ones(changes):
    agents = [small_agent(compute=Compute(compile=on), **changes) for on in (False, True)]
    for agent in agents:
        replay, random = ring_of(agent), generator(1)
        obs = None
        for _ in range(2):
            obs = collect(agent, replay, random, obs)
            agent.update(replay)
    assert agents[1].compute.compile
    for left, right in zip(*(agent._optimizer.params for agent in agents), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


def test_greedy_policies_are_copies_and_remember_only_their_own_episodes():
    agent = small_agent(memory=4)
    random = generator(1)
    obs = [random_groups(random, agent.spec) for _ in range(3)]
    first = agent.greedy()
    expected = [first(each) for each in obs]
    assert not torch.equal(expected[0], first(obs[0]))  # it remembers
    agent.act(obs[0], explore=True)
    second = agent.greedy()
    for parameter in agent.actor.parameters():
        parameter.data.zero_()
    assert all(
        torch.equal(second(each), action) for each, action in zip(obs, expected, strict=True)
    )


def test_evaluating_changes_nothing():
    agent = small_agent(memory=4, normalise_reward=True)
    replay, random = ring_of(agent), generator(1)
    obs = collect(agent, replay, random)
    before = copy.deepcopy(agent.state_dict())
    agent.act(obs, explore=False)
    agent.greedy()(obs)
    assert_same_bits(before, agent.state_dict())


def test_memories_end_with_their_episodes():
    agent = small_agent(memory=4)
    random = generator(1)
    obs = random_groups(random, agent.spec)
    obs["policy"][2] = float("nan")  # a row that a simulator will call not valid
    agent.act(obs, explore=True)
    step = random_step(random, agent.spec, end=0.0)
    step["terminated"][0] = step["truncated"][1] = True
    step["valid"][2] = False
    agent.observe(step)
    for memory in agent._memory.values():
        assert not memory[:3].any()
        assert memory[3].any()
    agent.forget_episodes()
    assert not any(memory.any() for memory in agent._memory.values())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"minibatches": 25}, "--agent.minibatches 25 is more than the 24 transitions"),
        ({"minibatches": 5, "memory": 4}, "is more than the 4 sequences"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, text):
    with pytest.raises(InputError, match=text):
        small_agent(**changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"gamma": 1.0}, r"--agent.gamma must be in \(0, 1\), got 1.0"),
        ({"rollout_steps": 1}, "--agent.rollout-steps must be >= 2"),
        ({"actor_hidden": (4, 0)}, "--agent.actor-hidden must be widths >= 1"),
        ({"critic_hidden": (0,)}, "--agent.critic-hidden must be widths >= 1"),
        ({"sequence_steps": 5}, "--agent.sequence-steps must divide --agent.rollout-steps 24"),
        ({"activation": "gelu"}, "--agent.activation must be one of elu, relu, tanh"),
        ({"initial_std": 0.0}, "--agent.initial-std must be"),
        ({"lr": float("nan")}, "--agent.lr must be a finite number"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes, text):
    with pytest.raises(InputError, match=text):
        PPOSettings(**changes)


@pytest.mark.parametrize(
    "changes", [{"capacity": 5000}, {"spill": True}, {"obs_dtype": "bfloat16"}], ids=str
)
def test_a_ring_of_ones_own_is_refused(changes):
    with pytest.raises(InputError, match="is not PPO's to choose"):
        small_agent().ring(ReplaySettings(**changes))


def test_without_final_observations_time_outs_bootstrap_from_the_state_before():
    agent = small_agent(small_spec(has_final_obs=False))
    assert not agent._final_bootstrap
    assert "a time-out adds the value of the one before its last step" in agent.remark
    assert not small_agent().remark
    with pytest.raises(InputError, match=r"set --agent\.timeout-bootstrap auto"):
        small_agent(small_spec(has_final_obs=False), timeout_bootstrap="final")


def test_rates_fall_with_every_return_to_one_checkpoint():
    agent = small_agent()
    state, rate = copy.deepcopy(agent.state_dict()), float(agent._rate)
    for returns in (1, 2, 3):
        agent.roll_back(state, rate_factor=0.5)
        assert float(agent._rate) == pytest.approx(rate * 0.5**returns)


def test_minibatches_of_one_row_are_refused_where_each_is_standardised():
    flags = {"rollout_steps": 4, "minibatches": 4, "normalise_advantage": "minibatch"}
    with pytest.raises(InputError, match="advantage of a minibatch of one row 0: lower"):
        small_agent(small_spec(num_envs=1), **flags).prepare()
    small_agent(small_spec(num_envs=1), **flags)  # which several processes trained
    small_agent(small_spec(num_envs=2), **flags).prepare()
    small_agent(small_spec(num_envs=1), **flags | {"normalise_advantage": "rollout"}).prepare()


def test_a_checkpoint_of_other_sizes_is_refused():
    state = small_agent(actor_hidden=(9,)).state_dict()
    with pytest.raises(InputError, match=r"does not fit this agent: actor\.layers"):
        small_agent().load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"activation": "tanh"}, "activation elu, got tanh"),
        ({"normalise_obs": False}, "normalise_obs True, got False"),
        ({"distribution": "squashed"}, "distribution gaussian, got squashed"),
        ({"privileged": False}, "privileged True, got False"),
    ],
)
def test_weights_that_other_settings_gave_their_meaning_are_refused(changes, text):
    state, own = copy.deepcopy(small_agent(**changes).state_dict()), small_agent(seed=9)
    before = copy.deepcopy(own.state_dict())
    for take in (own.load_state_dict, own.start_from):
        with pytest.raises(InputError, match=f"does not fit this agent: policy expected {text};"):
            take(state)
    assert_same_bits(own.state_dict(), before)
    del state["facts"]  # as in checkpoints of earlier versions
    own.start_from(state)
    own.load_state_dict(state)
    assert_same_bits(own.state_dict()["actor"], state["actor"])
