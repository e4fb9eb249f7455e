"""One interface to every agent: taps, members, losses, untrained twins."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from supple.agents.actor import squashed_sample
from supple.agents.remedies import linear_weights
from supple.diagnostics.context import Context
from supple.diagnostics.gradients import is_matrix
from supple.diagnostics.subject import subject_of
from supple.diagnostics.suite.steps import changed_weights
from supple.envs.base import Channel
from tests.agents.small_agents import OBSERVATIONS, generator, random_batch, snapshot
from tests.agents.small_agents import assert_same_bits as same_bits
from tests.diagnostics.subjects import EVERY_KIND, agent_of, subject_with_data, transitions


@EVERY_KIND
def test_taps_see_every_layer_and_one_row_per_sample(kind):
    subject, data = subject_with_data(kind, rows=64)
    for view in subject.learning_views():
        found = Context(subject=subject, data=data).run(view.role, data.recent)
        assert tuple(found.units) == view.layers != ()
        for name, units in found.units.items():
            members, rows, _ = units.shape
            assert members == view.members, name
            assert rows % 64 == 0, name
            assert found.unit_gradients[name].shape == units.shape
            assert found.unit_gradients[name].any(), name


@EVERY_KIND
def test_parameters_flatten_by_member_and_back(kind):
    subject, _ = subject_with_data(kind, rows=64)
    for view in subject.learning_views():
        values = [torch.randn_like(part) for _, part in view.parameters()]
        flat_EP = view.flat(values)
        assert flat_EP.shape == (view.members, sum(part.numel() for part in values) // view.members)
        same_bits(view.unflat(flat_EP), values)


@EVERY_KIND
def test_sizes_of_steps_are_of_linear_layers_alone(kind):
    subject, _ = subject_with_data(kind, rows=64)
    for view in subject.learning_views():
        layers = [m.weight for m in view.module.modules() if isinstance(m, nn.Linear)]
        weights = {id(part) for part in (*layers, *linear_weights(view.module))}
        found = {
            id(part) for n, part in view.parameters() if is_matrix(n, view.split(n, part.detach()))
        }
        assert found == weights
        after = copy.deepcopy(view.module)
        with torch.no_grad():
            pairs = list(zip(after.parameters(), view.module.parameters(), strict=True))
            for own, before in pairs:
                own += id(before) not in weights
        (moved, *_) = changed_weights(view, after, projected=False, rate=1e-3)
        assert (moved.metric, moved.value) == ("update_ratio", 0)


@pytest.mark.parametrize("kind", ["categorical", "scalar", "flow", "flow_official"])
def test_a_member_is_what_its_own_loss_depends_on(kind):
    # Gradients of the output of member 0 must vanish on the part that ``flat`` gives member 1.
    subject, data = subject_with_data(kind, rows=32)
    view = subject.views["critic"]
    x_ND = subject.inputs("critic", data.recent)
    value = view.outputs(view.module, x_ND)[0].sum()
    parameters = [part for _, part in view.parameters()]
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    flat_EP = view.flat(found)
    assert flat_EP[0].any()
    assert not flat_EP[1].any()


@pytest.mark.parametrize("kind", ["categorical", "scalar", "flow"])
def test_the_critics_loss_is_the_training_loss_but_for_the_mode_of_norms(kind):
    agent = agent_of(kind)
    subject = subject_of(agent, seed=0)
    data = transitions(kind, 32)
    objective = subject.objective("critic", data)
    x_ND, target, *uniform = objective.rows
    expected = agent.critic.loss(agent.critic(x_ND, train=False), target, *uniform)
    found = objective.loss(subject.views["critic"].module, *objective.rows)
    torch.testing.assert_close(found, 2 * expected)
    # Adam's moments are of the smaller loss; so is the curvature that it meets.
    torch.testing.assert_close(subject.moments("critic").share * found, expected)
    agent.rate_scale = 0.25
    moments = subject.moments("critic")
    assert moments.rate == pytest.approx(agent.learning_rate(0) / 4)
    assert moments.step_size == pytest.approx(moments.rate / 2)
    before = subject.targets(data)
    assert before.shape == (32,)


def test_terminated_rows_have_no_next_value():
    subject, _ = subject_with_data("scalar", rows=64)
    data = transitions("scalar", 64, episode_length=1)
    torch.testing.assert_close(subject.targets(data), subject.scale_reward(data.reward))


@pytest.mark.parametrize("kind", ["scalar", "ppo"])
def test_values_of_what_follows_are_those_that_targets_bootstrap_on(kind):
    subject, data = subject_with_data(kind, rows=64)
    after = (~data.recent.terminated) * subject.next_values(data.recent)
    expected = subject.scale_reward(data.recent.reward) + subject.gamma * after
    torch.testing.assert_close(subject.targets(data.recent), expected)


def test_a_recurrent_critic_remembers_its_episodes():
    subject, data = subject_with_data("ppo", rows=48, memory=8)
    critic, episodes = subject.agent.critic, data.recent  # three of 16 steps
    obs = episodes.obs(("policy",))
    with torch.no_grad():
        whole = [critic.unroll(x, x.new_zeros(1, 8), torch.zeros(16))[:, 0] for x in obs.split(16)]
    value_EN, next_N = subject.along(episodes)
    torch.testing.assert_close(value_EN, torch.cat(whole)[None])
    assert not torch.allclose(value_EN, subject._values(obs)[None])
    chain = replace(episodes, next_observation={"policy": obs.roll(-1, 0)})
    _, next_N = subject.along(chain)
    inner = episodes.step < 15
    torch.testing.assert_close(next_N[inner], value_EN[0].roll(-1)[inner])


def test_twins_share_every_tensor_and_no_hook():
    agent = agent_of("categorical")
    subject = subject_of(agent, seed=0)
    module = subject.views["critic"].module
    assert module is not agent.critic
    for own, shared in zip(agent.critic.parameters(), module.parameters(), strict=True):
        assert own is shared
    agent.learn(random_batch(agent, generator(0)), *torch.zeros(2, 32, 3).unbind())
    torch.testing.assert_close(module.head.weight, agent.critic.head.weight)


@EVERY_KIND
def test_fresh_networks_are_untrained_calibrated_and_always_the_same(kind):
    subject, data = subject_with_data(kind)
    before = snapshot(subject.agent)
    one, again, other = (subject.fresh(number, data.recent) for number in (0, 0, 1))
    for role, view in one.views.items():
        weights = [
            each.views[role].flat([p for _, p in each.views[role].parameters()])
            for each in (one, again, other)
        ]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert view.members == subject.views[role].members
    if not kind.startswith("ppo") and kind != "flow_official":
        hidden = Context(subject=one, data=data).features("critic", data.recent).before_norm
        raw = subject.views["critic"].module.trunk.input_norm.running_mean
        fresh = one.views["critic"].module.trunk.input_norm.running_mean
        seen = slice(OBSERVATIONS)  # next actions are another policy's
        torch.testing.assert_close(fresh[:, seen], raw[:, seen], rtol=0, atol=1e-5)
        assert hidden.isfinite().all()
    same_bits(snapshot(subject.agent), before)


def test_declared_sensor_noise_finds_its_place_in_the_input():
    channels = [
        Channel(name="a", group="critic", noise=9.0),
        Channel(name="b", group="policy"),
        Channel(name="c", group="policy", noise=0.2),
    ]
    subject = subject_of(agent_of("ppo"), seed=0, channels=channels)
    assert subject.channel_noise("actor") == {1: 0.2}
    assert subject_of(agent_of("ppo"), seed=0).channel_noise("actor") == {}


def test_a_policy_that_pushes_against_a_bound_is_no_unlikely_one(monkeypatch):
    subject, data = subject_with_data("categorical", rows=64)
    shape = data.recent.action.shape
    log_std = torch.full(shape, -2.0)
    for mean, noise in ((0.3, 0.7), (-12.0, 0.0), (12.0, 0.0)):
        before = torch.full(shape, mean) + log_std.exp() * noise
        monkeypatch.setattr(
            subject, "_actor", lambda *_, m=mean, **__: (torch.full(shape, m), log_std)
        )
        taken = replace(data.recent, action=torch.tanh(before))
        expected = squashed_sample(torch.full(shape, mean), log_std, torch.full(shape, noise))[1]
        found = subject.entropy_cost(taken)
        assert torch.allclose(found, subject.alpha * expected, rtol=1e-3)
