import copy
import io
import math

import pytest
import torch

from supple.agents.base import critic_groups
from supple.agents.exploration import NoiseSettings
from supple.agents.flashsac import FlashSAC
from supple.agents.flashsac_settings import FlashSACSettings
from supple.agents.flow_settings import FlowSettings
from supple.agents.nets import project_
from supple.agents.reward_scaling import RewardScalerSettings
from supple.envs.base import Discrete
from supple.errors import InputError
from supple.replay import AgeBias, ReplaySettings
from supple.replay.plan import plan_ring
from tests.agents.small_agents import (
    ACTIONS,
    NETWORKS,
    OBSERVATIONS,
    ROWS,
    RandomReplay,
    assert_same_bits,
    buffers_of,
    changed,
    generator,
    parameters_of,
    random_batch,
    random_noise,
    random_obs,
    random_step,
    small_agent,
    small_settings,
    small_spec,
    snapshot,
    spy_on_forwards,
    spy_on_steps,
    spy_on_target,
    train,
)

FAST = {"lr_init": 0.03, "lr_peak": 0.03, "lr_end": 0.03}
"""Steps so large that "before" and "after" cannot be confused."""


def one_update(agent, *, seed=20, **changes):
    random = generator(seed)
    batch = random_batch(agent, random)._replace(**changes)
    noise = random_noise(random)
    return batch, noise, agent.learn(batch, *noise)


# --- the equations, written out again -----------------------------------------------------------


def log_prob_of(mean, log_std, noise):
    u = mean + log_std.exp() * noise
    gaussian = torch.distributions.Normal(0.0, 1.0).log_prob(noise) - log_std
    log_cosh = torch.logaddexp(u, -u) - math.log(2)
    return u.tanh(), (gaussian + 2 * log_cosh).sum(-1)  # 1 - tanh^2 = 1 / cosh^2


def actor_loss(actor, critic, batch, noise, alpha, bc_alpha=0.0):
    mean, log_std = actor(batch.actor_obs_2BD, train=True)
    action, log_prob = log_prob_of(mean[:ROWS], log_std[:ROWS], noise)
    x = torch.cat((batch.critic_obs_2BD[:ROWS], action), dim=-1)
    values = [value_of(critic, critic(x, train=False)[e]) for e in range(critic.size.members)]
    value = torch.stack(values).amin(dim=0)
    cloning = value.abs().mean().detach() * ((action - batch.action_BA) ** 2).mean()
    return (alpha * log_prob - value).mean() + bc_alpha * cloning, log_prob, value, action


def value_of(critic, prediction):
    if prediction.dim() == 1:
        return prediction
    return (prediction.exp() * torch.linspace(-5, 5, 101)).sum(-1)


def critic_loss(critic, target_critic, actor, batch, reward, noise, alpha):
    with torch.no_grad():
        mean, log_std = actor(batch.actor_obs_2BD[ROWS:], train=False)
        action, log_prob = log_prob_of(mean, log_std, noise)
        x = torch.cat((batch.critic_obs_2BD, torch.cat((batch.action_BA, action))), dim=-1)
        following = target_critic(x, train=True)[:, ROWS:]
    losses = []
    prediction = critic(x, train=True)[:, :ROWS]
    for row in range(ROWS):
        values = [value_of(critic, following[e, row][None]).item() for e in range(len(following))]
        lowest = following[values.index(min(values)), row]
        discount = batch.discount_B[row] * (0.0 if batch.terminated_B[row] else 1.0)
        bonus = alpha * log_prob[row]
        if following.dim() == 2:
            target = reward[row] + discount * (lowest - bonus)
            losses.append(0.5 * (prediction[:, row] - target) ** 2)
            continue
        atoms = torch.linspace(-5, 5, 101)
        moved = (reward[row] + discount * (atoms - bonus)).clamp(-5, 5)
        share = (1 - (moved[:, None] - atoms).abs() / 0.1).clamp_min(0)
        target = lowest.exp() @ share
        losses.append(-(prediction[:, row] * target).sum(-1))
    return torch.stack(losses).mean()


def assert_same_gradients(ours, reference, loss):
    """``ours`` are the gradients an optimiser was given."""
    names = [name for name, _ in reference.named_parameters()]
    expected = torch.autograd.grad(loss, list(reference.parameters()))
    largest = max(g.abs().max().item() for g in expected)
    for name, mine, gradient in zip(names, ours, expected, strict=True):
        torch.testing.assert_close(
            mine, gradient, atol=2e-5 * largest, rtol=2e-4, msg=f"gradient of {name}"
        )


@pytest.mark.parametrize("bc_alpha", [0.0, 2.5])
@pytest.mark.parametrize(
    ("critic", "num_critics"),
    [("categorical", 2), ("categorical", 1), ("categorical", 3), ("scalar", 2), ("scalar", 1)],
)
def test_one_update_is_the_published_equations(critic, num_critics, bc_alpha):
    agent = small_agent(critic=critic, num_critics=num_critics, bc_alpha=bc_alpha, **FAST)
    train(agent, 4)  # an even number: the update under test has an actor step
    before = copy.deepcopy(agent)
    steps = {}
    spy_on_steps(agent, lambda name, gradients: steps.update({name: gradients}))
    batch, (actor_noise, next_noise), metrics = one_update(agent)
    alpha = before.log_alpha.exp().item()
    loss, log_prob, _, _ = actor_loss(
        before.actor, before.critic, batch, actor_noise, alpha, bc_alpha
    )
    assert metrics["actor/loss"].item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    assert metrics["actor/entropy"].item() == pytest.approx(-log_prob.mean().item(), rel=1e-4)
    assert_same_gradients(steps["actor"], before.actor, loss)

    loss = critic_loss(
        before.critic,
        before.target_critic,
        copy.deepcopy(agent.actor),  # stepped and projected
        batch,
        batch.reward_B / agent.reward_scaler.denominator(),
        next_noise,
        agent.log_alpha.exp().item(),  # stepped
    )
    assert metrics["critic/loss"].item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    assert_same_gradients(steps["critic"], before.critic, loss)


def test_cloning_weight_adds_the_weighted_distance_to_the_loss():
    agents = [small_agent(bc_alpha=weight) for weight in (0.0, 2.0)]
    before = copy.deepcopy(agents[0])
    batch, noise, plain = one_update(agents[0])
    _, _, cloned = one_update(agents[1])
    _, _, value, action = actor_loss(before.actor, before.critic, batch, noise[0], 0.01)
    expected = 2.0 * value.abs().mean() * (action - batch.action_BA).square().mean()
    difference = cloned["actor/loss"] - plain["actor/loss"]
    assert difference.item() == pytest.approx(expected.item(), rel=1e-4)


# --- batch-norm modes (table 2.6) ---------------------------------------------------------------


def statistics_of(network):
    return {name for name in buffers_of(network) if not name.startswith("atoms")}


def test_batch_norm_modes_of_acting():
    """Call 1: acting and evaluating."""
    agent = small_agent()
    agent.update(RandomReplay(small_spec()))
    calls = spy_on_forwards(agent)
    for explore in (True, False):
        agent.act(random_obs(generator(1), small_spec()), explore=explore)
    assert [(c.network, c.train, c.rows, c.buffers) for c in calls] == [
        ("actor", False, 4, set())
    ] * 2
    assert not any(call.output[0].requires_grad for call in calls)


@pytest.mark.parametrize("critic", ["categorical", "scalar"])
def test_batch_norm_modes_of_an_update(critic):
    """Calls 2 to 6, in order; the buffers each may change and no others."""
    agent = small_agent(critic=critic)
    calls = spy_on_forwards(agent)
    one_update(agent)
    statistics = {name: statistics_of(getattr(agent, name)) for name in NETWORKS}
    assert [(c.network, c.train, c.rows, c.buffers) for c in calls] == [
        ("actor", True, 2 * ROWS, statistics["actor"]),
        ("critic", False, ROWS, set()),
        ("actor", False, ROWS, set()),
        ("target_critic", True, 2 * ROWS, statistics["target_critic"]),
        ("critic", True, 2 * ROWS, statistics["critic"]),
    ]
    # Mean and variance of five norms; the two members share those of their common input.
    assert {n: len(names) for n, names in statistics.items()} == {
        "actor": 10,
        "critic": 18,
        "target_critic": 18,
    }
    calls.clear()
    one_update(agent)
    assert [c.network for c in calls] == ["actor", "target_critic", "critic"]


def test_networks_see_the_rows_of_the_table():
    agent = small_agent()
    calls = spy_on_forwards(agent)
    batch, _, _ = one_update(agent)
    policy, value, following, target, prediction = calls
    assert torch.equal(policy.input, batch.actor_obs_2BD)
    assert torch.equal(value.input[:, :OBSERVATIONS], batch.critic_obs_2BD[:ROWS])
    assert torch.equal(following.input, batch.actor_obs_2BD[ROWS:])
    assert torch.equal(target.input, prediction.input)
    assert torch.equal(target.input[:, :OBSERVATIONS], batch.critic_obs_2BD)
    assert torch.equal(target.input[:ROWS, OBSERVATIONS:], batch.action_BA)


def test_each_loss_reaches_its_own_parameters_only():
    agent = small_agent()
    values = {
        **{name: list(getattr(agent, name).parameters()) for name in NETWORKS},
        "temperature": [agent.log_alpha],
    }
    before = copy.deepcopy(values)
    order: list[str] = []

    def moved():
        return {
            name
            for name in values
            if not all(torch.equal(v, b) for v, b in zip(values[name], before[name], strict=True))
        }

    def look(name, gradients):
        # Since the last step only what that one steps has moved, projection included.
        assert moved() == set(order[-1:])
        order.append(name)
        before.update(copy.deepcopy(values))
        assert [g.shape for g in gradients] == [v.shape for v in values[name]]
        assert all(part.abs().max() > 0 for g in gradients for part in g)  # every member's

    spy_on_steps(agent, look)
    one_update(agent)
    assert moved() == {"critic", "target_critic"}
    assert order == ["actor", "temperature", "critic"]
    assert all(v.grad is None for each in values.values() for v in each)


def test_actor_learns_through_the_value_alone():
    """Gradient of call 3 flows into the action: without entropy the actor still gets one."""
    agent = small_agent()
    with torch.no_grad():
        agent.log_alpha.fill_(-200.0)
    steps = []
    spy_on_steps(agent, lambda name, gradients: steps.append((name, gradients)))
    one_update(agent)
    name, gradients = steps[0]
    assert name == "actor"
    by_name = dict(zip(dict(agent.actor.named_parameters()), gradients, strict=True))
    assert all(by_name[f"mean.{p}"].abs().max() > 0 for p in ("weight", "bias"))


# --- order --------------------------------------------------------------------------------------


def test_order_of_one_gradient_step(monkeypatch):
    agent = small_agent()
    events: list[str] = []
    calls = spy_on_forwards(agent)

    def note(event):
        events.extend(f"forward {call.network}" for call in calls)
        events.append(event)
        calls.clear()

    def project(network):
        note(f"project {next(n for n in NETWORKS if getattr(agent, n) is network)}")
        project_(network)

    monkeypatch.setattr("supple.agents.flashsac.project_", project)
    spy_on_steps(agent, lambda name, _: note(f"step {name}"))
    critic_part = [
        "forward actor",
        "forward target_critic",
        "forward critic",
        "step critic",
        "project critic",
    ]
    one_update(agent)
    assert events == [
        "forward actor",
        "forward critic",
        "step actor",
        "project actor",
        "step temperature",
        *critic_part,
    ]
    events.clear()
    one_update(agent)
    assert events == critic_part


def test_target_uses_the_actor_and_temperature_after_their_step():
    agent = small_agent(**FAST)
    calls = spy_on_target(agent)
    before = copy.deepcopy(agent)
    batch, (_, next_noise), _ = one_update(agent)

    def entropy(actor, log_alpha):
        mean, log_std = actor(batch.actor_obs_2BD[ROWS:], train=False)
        return (log_alpha.exp() * log_prob_of(mean, log_std, next_noise)[1]).detach()

    seen = calls[0]["entropy"]
    torch.testing.assert_close(seen, entropy(agent.actor, agent.log_alpha), rtol=1e-4, atol=1e-5)
    for actor, log_alpha in (
        (before.actor, agent.log_alpha),
        (agent.actor, before.log_alpha),
    ):
        assert (seen - entropy(actor, log_alpha)).abs().mean() > 1e-3


@pytest.mark.parametrize("critic", ["categorical", "scalar", "flow", "flow_official"])
def test_target_is_averaged_over_the_next_actions(critic, monkeypatch):
    flow = FlowSettings(width=8, target_samples=6, train_samples=6)
    agent = small_agent(critic=critic, next_actions=3, flow=flow)
    calls, targets = spy_on_target(agent), []
    loss = agent.critic.loss

    def losing(prediction, target, uniform):
        targets.append(target)
        return loss(prediction, target, uniform)

    monkeypatch.setattr(agent.critic, "loss", losing)
    found, call = agent.target_critic.target, agent._draw_noise()
    each = []

    def target(*arguments):
        each.append(found(*arguments)[0])
        return each[-1], torch.zeros(())

    agent.target_critic.target = target
    batch = random_batch(agent, generator(2))
    agent.learn(batch, *call)
    seen = calls[0]
    scaled = batch.reward_B / agent.reward_scaler.denominator()
    torch.testing.assert_close(seen["reward"], scaled.repeat(3))
    kept = batch.discount_B * (1 - batch.terminated_B)
    torch.testing.assert_close(seen["discount"], kept.repeat(3))
    # Three actions per state, so three entropies.
    assert len(seen["entropy"].unflatten(0, (3, ROWS))[:, 0].unique()) == 3
    torch.testing.assert_close(targets[0], each[0].unflatten(0, (3, ROWS)).mean(0))
    if critic.startswith("flow"):
        assert seen["uniform"].shape == (3 * ROWS, 2)
        own = call[3][:, agent.critic.draws.value :][:, :6]
        torch.testing.assert_close(seen["uniform"][ROWS : 2 * ROWS], own[:, 2:4])


def test_target_is_averaged_from_projected_parameters_every_update():
    agent = small_agent(tau=0.1, **FAST)
    for update in range(4):
        old = parameters_of(agent.target_critic)
        one_update(agent, seed=30 + update)
        new = parameters_of(agent.critic)
        for name, value in parameters_of(agent.target_critic).items():
            torch.testing.assert_close(value, 0.9 * old[name] + 0.1 * new[name], msg=name)


def test_averaging_leaves_buffers_to_the_targets_own_forward_pass():
    agent = small_agent(**FAST)
    for update in range(3):
        twin = copy.deepcopy(agent.target_critic)
        calls = spy_on_forwards(copy_of := copy.deepcopy(agent))
        one_update(copy_of, seed=40 + update)
        one_update(agent, seed=40 + update)
        (x,) = [call.input for call in calls if call.network == "target_critic"]
        twin(x, train=True)
        assert changed(buffers_of(twin), buffers_of(agent.target_critic)) == set()
    assert len(changed(buffers_of(agent.critic), buffers_of(agent.target_critic))) == 16


def test_target_starts_as_a_copy():
    agent = small_agent()
    assert not changed(parameters_of(agent.critic), parameters_of(agent.target_critic))
    assert not changed(buffers_of(agent.critic), buffers_of(agent.target_critic))
    assert not any(parameter.requires_grad for parameter in agent.target_critic.parameters())


@pytest.mark.parametrize("period", [1, 2, 3])
def test_actor_and_temperature_step_every_period_starting_with_the_first(period):
    agent = small_agent(actor_period=period)
    stepped = []
    for update in range(7):
        actor, alpha = parameters_of(agent.actor), agent.log_alpha.detach().clone()
        critic = parameters_of(agent.critic)
        one_update(agent, seed=50 + update)
        moved = bool(changed(actor, parameters_of(agent.actor)))
        assert moved == (not torch.equal(alpha, agent.log_alpha.detach()))
        assert changed(critic, parameters_of(agent.critic))
        if moved:
            stepped.append(update)
    assert stepped == list(range(0, 7, period))


def test_target_masks_terminations_and_scales_rewards():
    agent = small_agent()
    for _ in range(5):
        step = random_step(generator(23), small_spec())
        step["reward"] *= 40
        agent.observe(step)
    denominator = agent.reward_scaler.denominator()
    assert denominator > 2
    calls = spy_on_target(agent)
    terminated = (torch.arange(ROWS) % 2).float()
    discount = torch.linspace(0.5, 0.99, ROWS)
    batch, _, metrics = one_update(agent, terminated_B=terminated, discount_B=discount)
    torch.testing.assert_close(calls[0]["reward"], batch.reward_B / denominator)
    assert torch.equal(calls[0]["discount"][::2], discount[::2])
    assert (calls[0]["discount"][1::2] == 0).all()
    assert metrics["reward/denominator"] == denominator


# --- temperature --------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "falls"), [(-100.0, True), (100.0, False)])
def test_temperature_falls_when_entropy_exceeds_its_target(target, falls):
    agent = small_agent(target_entropy=target)
    alpha = agent.log_alpha.exp().item()
    steps = {}
    spy_on_steps(agent, lambda name, gradients: steps.update({name: gradients}))
    _, _, metrics = one_update(agent)
    excess = metrics["actor/entropy"].item() - target
    assert (excess > 0) == falls
    assert steps["temperature"][0].item() == pytest.approx(alpha * excess, rel=1e-5)
    assert (agent.log_alpha.exp().item() < alpha) == falls
    assert metrics["temperature/loss"].item() == pytest.approx(alpha * excess, rel=1e-5)


@pytest.mark.parametrize(("actions", "expected"), [(29, -13.8673), (6, -2.869), (37, -17.693)])
def test_target_entropy_is_that_of_the_target_deviation(actions, expected):
    bounds = (-1.0,) * actions
    spec = small_spec(action=type(small_spec().action)(low=bounds, high=bounds))
    assert small_agent(spec).target_entropy == pytest.approx(expected, abs=5e-4)
    if actions == 29:
        assert small_agent(spec).target_entropy == pytest.approx(expected, abs=5e-5)


def test_explicit_target_entropy_is_honoured():
    assert small_agent(target_entropy=-1.25).target_entropy == -1.25
    assert small_agent(target_entropy=0.0).target_entropy == 0.0


def test_initial_temperature():
    assert small_agent(initial_temperature=0.2).log_alpha.exp().item() == pytest.approx(0.2)


# --- learning rate ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_envs", "env_steps", "utd", "min_replay", "updates", "actor_end"),
    [
        (1024, 50_000_896, 2 / 1024, 100_000, 97_464, 2.252e-4),
        (1, 1_000_000, 1.0, 10_000, 990_001, 2.262e-4),
    ],
    ids=["gpu-simulators", "cpu-simulators"],
)
def test_learning_rate_over_the_published_runs(
    num_envs, env_steps, utd, min_replay, updates, actor_end
):
    vector_steps = env_steps // num_envs
    ready = math.ceil(min_replay / num_envs)
    # The step that makes the buffer ready already trains.
    assert (vector_steps - ready + 1) * round(utd * num_envs) == updates
    actor_updates = (updates + 1) // 2
    agent = small_agent(small_spec(num_envs=num_envs), total_env_steps=env_steps, utd=utd)
    assert agent.learning_rate(0) == pytest.approx(3e-4, rel=1e-9)
    schedule = env_steps * utd
    assert agent.learning_rate(int(schedule / 2)) == pytest.approx(2.25e-4, rel=1e-4)
    assert agent.learning_rate(updates - 1) == pytest.approx(1.5e-4, rel=1e-3)
    assert agent.learning_rate(actor_updates - 1) == pytest.approx(actor_end, abs=5e-8)
    middle = 1.5e-4 + 0.75e-4 * (1 + math.cos(math.pi * (updates // 2) / schedule))
    assert agent.learning_rate(updates // 2) == pytest.approx(middle, rel=1e-4)
    assert agent.learning_rate(10 * updates) == 1.5e-4


def test_learning_rate_warm_up_rises_linearly():
    agent = small_agent(
        total_env_steps=100, lr_init=0.0, lr_peak=1.0, lr_end=0.2, lr_warmup=0.1, lr_decay=0.5
    )
    rates = [agent.learning_rate(count) for count in (0, 5, 10, 30, 49, 50, 99)]
    assert rates[:4] == pytest.approx([0.0, 0.5, 1.0, 0.6])
    assert 0.2 < rates[4] < 0.21
    assert rates[5:] == [0.2, 0.2]


def test_each_optimiser_follows_the_schedule_by_its_own_steps():
    agent = small_agent(total_env_steps=8, lr_warmup=0.0)
    used = spy_on_steps(agent)
    train(agent, 8)
    expected = [1.5e-4 + 0.75e-4 * (1 + math.cos(math.pi * count / 8)) for count in range(8)]
    assert used["critic"] == pytest.approx(expected)
    assert used["actor"] == used["temperature"] == pytest.approx(expected[:4])
    for name, steps in (("actor", 4), ("critic", 8)):  # what a metrics row says
        said = agent.diagnostics()[f"{name}/learning_rate"]
        assert float(said) == pytest.approx(expected[steps - 1])


# --- replay, budget and warm-up -----------------------------------------------------------------


def test_nothing_is_learned_before_the_replay_is_ready():
    agent = small_agent(min_replay=100, n_step=3)
    before = snapshot(agent)
    replay = RandomReplay(small_spec(), size=99)
    assert len(agent.update(replay).keys()) == 0
    replay.size = 100
    replay.longest_window = 2
    assert len(agent.update(replay).keys()) == 0
    assert_same_bits(agent.state_dict(), before)
    assert replay.asked == []
    replay.longest_window = 3
    metrics = agent.update(replay)
    assert agent.updates == 4
    assert all(value.dim() == 0 and value.isfinite() for value in metrics.values())
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize(
    ("utd", "updates"),
    [(1.0, [4, 8, 12]), (0.5, [2, 4, 6]), (0.125, [0, 1, 1, 2]), (0.3, [1, 2, 3])],
)
def test_updates_follow_the_update_to_data_ratio(utd, updates):
    agent = small_agent(utd=utd)
    replay = RandomReplay(small_spec())
    done = []
    for _ in updates:
        agent.update(replay)
        done.append(agent.updates)
    assert done == updates


def test_replay_is_asked_for_the_settings_window():
    agent = small_agent(
        n_step=3, gamma=0.9, exact_discount=False, replay_age_decay=70, replay_age_floor=0.1
    )
    replay = RandomReplay(small_spec())
    agent.update(replay)
    for asked in replay.asked:
        index = asked.pop("index")
        assert len(index) == ROWS
        assert asked == {
            "batch_size": ROWS,
            "n_step": 3,
            "gamma": 0.9,
            "exact_discount": False,
            "age_bias": AgeBias(70, 0.1),
        }


def test_replay_columns_reach_the_update():
    agent = small_agent()
    replay = RandomReplay(small_spec())
    calls = spy_on_forwards(agent)
    targets = spy_on_target(agent)
    agent.update(replay)
    index = replay.asked[0]["index"]
    column = {name: values[index] for name, values in replay.columns.items()}
    both = torch.cat((column["policy"], column["next policy"]))
    assert torch.equal(calls[0].input, both)
    assert torch.equal(calls[3].input[:, :OBSERVATIONS], both)
    assert torch.equal(calls[3].input[:ROWS, OBSERVATIONS:], column["action"])
    ended = column["terminated"]
    assert ended.any()
    torch.testing.assert_close(targets[0]["reward"], column["reward"])
    torch.testing.assert_close(targets[0]["discount"], torch.where(ended, 0.0, column["discount"]))


def test_current_and_next_actions_use_different_noise():
    agent = small_agent()
    noise = agent._draw_noise()
    assert noise[0].shape == noise[1].shape == (ROWS, ACTIONS)
    assert not torch.equal(*noise)


def test_forgetting_episodes_clears_noise_and_reward_sums():
    agent = small_agent(noise=NoiseSettings(exponent=0.0, max_hold=1000))
    agent.update(RandomReplay(small_spec()))
    obs = random_obs(generator(24), small_spec())
    agent.observe(random_step(generator(25), small_spec()))
    first, _ = agent.act(obs, explore=True)
    assert torch.equal(agent.act(obs, explore=True)[0], first)
    agent.forget_episodes()
    assert (agent.reward_scaler.state_dict()["sum"] == 0).all()
    assert not torch.equal(agent.act(obs, explore=True)[0], first)


def test_observe_counts_time_outs_as_ends():
    agent = small_agent()
    step = random_step(generator(26), small_spec())
    step["valid"] = torch.ones(4, dtype=torch.bool)
    step["terminated"] = torch.tensor([True, False, False, False])
    step["truncated"] = torch.tensor([False, True, False, False])
    agent.observe(step)
    sums = agent.reward_scaler.state_dict()["sum"]
    assert torch.equal(sums == 0, torch.tensor([True, True, False, False]))


# --- observation groups -------------------------------------------------------------------------

GROUPS = [
    ({"policy": 6}, False, ("policy",), 6),
    ({"policy": 6, "critic": 9}, True, ("critic",), 9),
    ({"policy": 6, "critic": 9}, False, ("policy", "critic"), 15),
]


@pytest.mark.parametrize(("observation", "contains", "groups", "width"), GROUPS)
def test_critic_reads_privileged_groups_and_actor_only_policy(observation, contains, groups, width):
    spec = small_spec(observation=observation, critic_contains_policy=contains)
    assert critic_groups(spec) == groups
    agent = small_agent(spec)
    assert (agent.actor_groups, agent.critic_groups) == (("policy",), groups)
    replay = RandomReplay(spec)
    calls = spy_on_forwards(agent)
    agent.update(replay)
    index = replay.asked[0]["index"]
    policy = torch.cat([replay.columns[name][index] for name in ("policy", "next policy")])
    critic = torch.cat(
        [
            torch.cat([replay.columns[prefix + name][index] for name in groups], dim=1)
            for prefix in ("", "next ")
        ]
    )
    assert torch.equal(calls[0].input, policy)
    assert calls[4].input.shape == (2 * ROWS, width + ACTIONS)
    assert torch.equal(calls[4].input[:, :width], critic)

    obs = random_obs(generator(27), spec)
    action, _ = agent.act(obs, explore=False)
    if "critic" in observation:
        obs["critic"] = obs["critic"] + 1
    assert torch.equal(agent.act(obs, explore=False)[0], action)
    torch.testing.assert_close(agent.policy()(obs["policy"]), action)
    assert torch.equal(agent.greedy()(obs), agent.policy()(obs["policy"]))


# --- saving -------------------------------------------------------------------------------------


def live(agent, spec, steps, *, seed):
    """Act, observe and learn on random numbers; everything the agent gave back."""
    random, replay = generator(seed), RandomReplay(spec)
    given = []
    for _ in range(steps):
        given.append(agent.act(random_obs(random, spec), explore=True)[0])
        agent.observe(random_step(random, spec))
        given.append(dict(agent.update(replay).items()))
    return given


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("critic", ["categorical", "scalar"])
@pytest.mark.parametrize("schedule", ["shared", "per_env"])
def test_loaded_agent_continues_with_the_same_bits(critic, schedule):
    changes = {
        "critic": critic,
        "utd": 0.3,
        "noise": NoiseSettings(exponent=0.5, schedule=schedule),
    }
    spec = small_spec()
    first = small_agent(spec, **changes)
    live(first, spec, 8, seed=60)
    # Saved between an actor update and the next, inside a held noise, with budget left over.
    state = through_a_file(first.state_dict())
    second = small_agent(spec, seed=9, total_env_steps=77, **changes)
    second.load_state_dict(state)
    assert_same_bits(second.state_dict(), first.state_dict())
    assert state["counters"]["budget"] > 0
    expected = live(first, spec, 12, seed=61)
    for at, (theirs, ours) in enumerate(
        zip(expected, live(second, spec, 12, seed=61), strict=True)
    ):
        assert_same_bits({"given": ours}, {"given": theirs}, f"step {at // 2}")
    assert_same_bits(second.state_dict(), first.state_dict())


def test_loaded_agent_continues_the_exploration_noise():
    spec = small_spec()
    first = small_agent(spec)
    live(first, spec, 3, seed=62)
    second = small_agent(spec, seed=9)
    second.load_state_dict(snapshot(first))
    for _ in range(20):
        assert torch.equal(second.noise.next(), first.noise.next())


def test_agent_saved_during_warm_up_continues_with_the_same_bits():
    spec = small_spec()
    first = small_agent(spec)
    first.act(random_obs(generator(63), spec), explore=True)
    second = small_agent(spec, seed=9)
    second.load_state_dict(snapshot(first))
    for theirs, ours in zip(
        live(first, spec, 3, seed=64), live(second, spec, 3, seed=64), strict=True
    ):
        assert_same_bits({"given": ours}, {"given": theirs})


def test_a_loaded_agent_shares_no_memory_with_the_state():
    first = train(small_agent(), 3)
    state = through_a_file(first.state_dict())
    kept = copy.deepcopy(state)
    second = small_agent(seed=9)
    second.load_state_dict(state)
    live(second, small_spec(), 2, seed=65)
    assert_same_bits(state, kept)


def test_schedule_keeps_its_recorded_length():
    first, second = small_agent(total_env_steps=1000), small_agent(total_env_steps=10)
    second.load_state_dict(snapshot(first))
    assert second.learning_rate(500) == first.learning_rate(500)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"actor_hidden": 8}, "actor."),
        ({"critic_hidden": 8}, "critic."),
        ({"critic_blocks": 1}, "critic."),
        ({"num_critics": 3}, "critic."),
        ({"num_atoms": 11}, "critic."),
        ({"critic": "scalar"}, "critic."),
    ],
)
def test_another_architecture_is_refused_in_one_line(changes, names):
    state = snapshot(small_agent())
    with pytest.raises(InputError) as refused:
        small_agent(**changes).load_state_dict(state)
    text = str(refused.value)
    assert text.startswith(f"checkpoint does not fit this agent: {names}")
    assert "expected" in text
    assert "got" in text
    assert "\n" not in text


def small_flow(**changes):
    return FlowSettings(**{"width": 8, "depth": 2, **changes})


@pytest.mark.parametrize("critic", ["flow", "flow_official"])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kappa": 0.9}, r"noise \[-0.5, 0.5\], got \[-4.5, 4.5\]"),
        ({"sigma_bins": 30.0}, "encoding .*'sigma_bins': 16.0}, got .*'sigma_bins': 30.0}"),
        ({"support_margin": 0.5}, "encoding .*'high': 5.1, .* got .*'high': 7.5, "),
        ({"time_encoding": "cos_rep"}, "time_encoding fourier, got cos_rep"),
        ({"predict": "endpoint"}, "endpoint False, got True"),
    ],
)
def test_weights_of_a_flow_with_another_meaning_are_refused(critic, changes, text):
    other = small_agent(critic=critic, flow=small_flow(**changes))
    own = small_agent(critic=critic, flow=small_flow())
    with pytest.raises(InputError, match=f"does not fit this agent: critic expected {text}"):
        own.load_state_dict(snapshot(other))


@pytest.mark.parametrize("critic", ["categorical", "scalar", "flow"])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"value_max": 50.0}, "value_max 5.0, got 50.0"),
        ({"critic_norm": "layer"}, "critic_norm batch, got layer"),
    ],
)
def test_weights_that_other_settings_gave_their_meaning_are_refused(critic, changes, text):
    state = snapshot(small_agent(critic=critic, flow=small_flow(), **changes))
    own = small_agent(critic=critic, flow=small_flow())
    before = snapshot(own)
    for take in (own.load_state_dict, own.start_from):
        with pytest.raises(InputError, match=f"does not fit this agent: critic expected {text};"):
            take(state)
    assert_same_bits(snapshot(own), before)


@pytest.mark.parametrize("critic", ["categorical", "flow"])
@pytest.mark.parametrize("lacks", [("value_max", "critic_norm"), None])
def test_a_checkpoint_that_does_not_say_what_its_critic_means_still_loads(critic, lacks):
    first, second = (small_agent(critic=critic, seed=seed, flow=small_flow()) for seed in (0, 9))
    state = snapshot(first)
    for key in lacks or tuple(state["critic_facts"]):
        del state["critic_facts"][key]
    if not lacks:
        del state["critic_facts"]
    second.start_from(state)
    second.load_state_dict(state)
    assert_same_bits(snapshot(second), snapshot(first))


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        (small_spec(num_envs=7), {}),
        (small_spec(), {"noise": NoiseSettings(schedule="per_env")}),
    ],
    ids=["other-num-envs", "other-noise-schedule"],
)
def test_state_of_other_sizes_is_refused(spec, changes):
    state = snapshot(small_agent())
    with pytest.raises(InputError, match="checkpoint does not fit this agent"):
        small_agent(spec, **changes).load_state_dict(state)


# --- settings and refusals ----------------------------------------------------------------------


@pytest.mark.parametrize(("update_every", "rows"), [(1, 10), (5, 11), (4, 11)])
def test_a_ring_in_which_learning_hardly_ever_begins_is_refused(update_every, rows):
    """Full, it lacks the row being written; bouts of updates would seldom meet its very end."""
    agent = small_agent(min_replay=40, update_every=update_every)

    def ring(rows):
        settings = ReplaySettings(capacity=agent.spec.num_envs * rows)
        return plan_ring(agent.spec, agent.ring(settings), {})

    agent.check_room(ring(rows))
    with pytest.raises(InputError, match=r"raise --replay\.capacity"):
        agent.check_room(ring(rows - 1))


def test_a_run_that_ends_before_learning_begins_is_refused():
    agent = small_agent(min_replay=40)
    agent.check_length(40, 0)
    agent.check_length(1, 39)
    with pytest.raises(InputError, match=r"min-replay 40 transitions, .* --env-steps 39: raise"):
        agent.check_length(39, 0)
    with pytest.raises(InputError, match=r"ends at --env-steps 30 after 8 recorded ones: raise"):
        agent.check_length(30, 8)
    agent.check_length(42, 0, unseen=2)
    with pytest.raises(InputError, match=r"41, of which --overlap learns from all but 2: raise"):
        agent.check_length(41, 0, unseen=2)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"gamma": 1.0}, r"--agent.gamma must be in \(0, 1\), got 1.0"),
        ({"gamma": 0.0}, r"--agent.gamma must be in \(0, 1\), got 0.0"),
        ({"gamma": math.nan}, "--agent.gamma must be a finite number, got nan"),
        ({"value_max": math.inf}, "--agent.value-max must be a finite number, got inf"),
        ({"n_step": 0}, "--agent.n-step must be >= 1, got 0"),
        ({"batch_size": 1}, "--agent.batch-size must be >= 2 .batch norm needs two rows., got 1"),
        ({"utd": 0.0}, r"--agent.utd must be in \(0, 1e6\], got 0.0"),
        ({"utd": 1e308}, r"--agent.utd must be in \(0, 1e6\], got 1e\+308"),
        ({"min_replay": 0}, "--agent.min-replay must be >= 1, got 0"),
        ({"actor_hidden": 0}, "--agent.actor-hidden must be >= 1, got 0"),
        ({"actor_blocks": -1}, r"--agent.actor-blocks must be in \[0, 1000\], got -1"),
        ({"critic_hidden": 0}, "--agent.critic-hidden must be >= 1, got 0"),
        ({"critic_blocks": 2**40}, r"--agent.critic-blocks must be in \[0, 1000\], got 10995"),
        ({"num_critics": 0}, "--agent.num-critics must be >= 1, got 0"),
        ({"num_atoms": 1}, "--agent.num-atoms must be >= 2, got 1"),
        ({"value_max": 0.0}, "--agent.value-max must be > 0, got 0.0"),
        ({"actor_period": 0}, "--agent.actor-period must be >= 1, got 0"),
        ({"tau": 0.0}, r"--agent.tau must be in \(0, 1\], got 0.0"),
        ({"tau": 1.5}, r"--agent.tau must be in \(0, 1\], got 1.5"),
        ({"initial_temperature": 0.0}, "--agent.initial-temperature must be > 0, got 0.0"),
        ({"target_std": 0.0}, "--agent.target-std must be > 0, got 0.0"),
        ({"lr_init": -1e-4}, "--agent.lr-init must be >= 0, got -0.0001"),
        ({"lr_peak": 0.0}, "--agent.lr-peak must be > 0, got 0.0"),
        ({"lr_end": -1.0}, "--agent.lr-end must be >= 0, got -1.0"),
        ({"lr_warmup": 1.0}, r"--agent.lr-warmup must be in \[0, 1\), got 1.0"),
        ({"lr_decay": 0.0}, r"--agent.lr-decay must be in \(0, 1e6\], got 0.0"),
        ({"lr_decay": 1e308}, r"--agent.lr-decay must be in \(0, 1e6\], got 1e\+308"),
        ({"next_actions": 0}, "--agent.next-actions must be >= 1, got 0"),
        (
            {"critic": "flow", "next_actions": 3},
            "--agent.next-actions must divide --agent.flow.target-samples, got 3 and 8",
        ),
        ({"noise": NoiseSettings(max_hold=0)}, "--agent.noise.max-hold must be >= 1, got 0"),
        *(
            (
                {"reward_scaler": RewardScalerSettings(peak_decay=decay)},
                rf"--agent.reward-scaler.peak-decay must be in \(0, 1\], got {decay}",
            )
            for decay in (0.0, 1.1)
        ),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_flag(changes, text):
    with pytest.raises(InputError, match=text):
        small_settings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"tau": 1.0},
        {"batch_size": 2},
        {"num_atoms": 2},
        {"actor_blocks": 0},
        {"lr_decay": 1e6},
        {"target_std": 1e-200},
        {"target_std": 1e200},
    ],
    ids=str,
)
def test_a_setting_at_its_limit_trains(changes):
    agent = small_agent(**changes)
    agent.update(RandomReplay(small_spec()))
    assert agent.updates == 4


def test_defaults_are_the_published_ones():
    settings = FlashSACSettings()
    assert (settings.gamma, settings.n_step, settings.tau) == (0.99, 1, 0.01)
    assert (settings.batch_size, settings.utd, settings.min_replay) == (512, 1.0, 10_000)
    assert (settings.actor_hidden, settings.actor_blocks) == (128, 2)
    assert (settings.critic_hidden, settings.critic_blocks, settings.num_critics) == (256, 2, 2)
    assert (settings.num_atoms, settings.value_max) == (101, 5.0)
    assert (settings.actor_period, settings.bc_alpha) == (2, 0.0)
    assert (settings.initial_temperature, settings.target_std) == (0.01, 0.15)
    assert (settings.lr_init, settings.lr_peak, settings.lr_end) == (3e-4, 3e-4, 1.5e-4)
    assert (settings.noise.exponent, settings.noise.max_hold) == (2.0, 16)


def test_discrete_actions_are_refused():
    with pytest.raises(InputError, match=r"needs continuous actions, random/small has 5 discrete"):
        small_agent(small_spec(action=Discrete(n=5)))


def test_missing_final_observations_are_refused_unless_accepted():
    spec = small_spec(has_final_obs=False)
    with pytest.raises(InputError, match=r"random/small.*set --agent\.allow-missing-final-obs"):
        small_agent(spec)
    agent = small_agent(spec, allow_missing_final_obs=True)
    assert isinstance(agent, FlashSAC)


def test_the_seed_decides_everything():
    one, same, other = small_agent(seed=1), small_agent(seed=1), small_agent(seed=2)
    given = [live(agent, small_spec(), 3, seed=66) for agent in (one, same, other)]
    assert_same_bits(one.state_dict(), same.state_dict())
    assert torch.equal(given[0][0], given[1][0])
    assert not torch.equal(given[0][0], given[2][0])
    weights = [agent.actor.trunk.input_linear.weight for agent in (one, other)]
    assert not torch.equal(*weights)


def test_global_random_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    live(small_agent(), small_spec(), 2, seed=67)
    assert torch.equal(torch.get_rng_state(), before)
