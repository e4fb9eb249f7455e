"""Planted illnesses: each shows in the metric that is meant to see it, not in a healthy twin."""

import dataclasses
import math

import pytest
import torch

from supple.agents.remedies import RemedySettings
from supple.diagnostics import curvature, gradients, movement, online_groups
from supple.diagnostics.context import Context
from supple.diagnostics.data import DataSets
from supple.diagnostics.flows import recovery, straightness
from supple.diagnostics.measure import measure
from supple.diagnostics.run_level import drawdown, noise_floor
from supple.diagnostics.step import next_step
from supple.diagnostics.subject import subject_of
from supple.diagnostics.suite.steps import changed_weights
from supple.diagnostics.values import self_excitation, soft_returns, value_bias
from tests.agents.small_agents import generator, random_batch, random_noise
from tests.diagnostics.subjects import hidden_layers, subject_with_data, transitions


def read(subject, data, group, name):
    found = measure(subject, DataSets(recent=data.recent), groups=[group]).readings
    assert found[name].value is not None, found[name].reason
    return found[name].value


def test_sixty_percent_of_hidden_units_zeroed():
    subject, data = subject_with_data("ppo")
    name = "value/all/mean/dormant_0.1_recent"
    healthy = read(subject, data, "unit_health", name)
    with torch.no_grad():
        for layer in hidden_layers(subject):
            layer.weight[:10], layer.bias[:10] = 0, 0
    assert healthy < 20
    assert read(subject, data, "unit_health", name) >= 60


def test_all_hidden_units_dead():
    subject, data = subject_with_data("ppo")
    with torch.no_grad():
        for layer in hidden_layers(subject):
            layer.bias.fill_(-1e4)
    # What the last layer's units would do to the value is still heard: half of them are deaf.
    for metric, share in (("dormant_0", 100), ("grad_dormant_0.01", 50)):
        assert read(subject, data, "unit_health", f"value/all/mean/{metric}_recent") == share
    while_training = Context(subject=subject, data=data)
    found = {each.name: each.value for each in online_groups.unit_health(while_training, {})}
    for metric, share in (("dormant_0.1", 100), ("dead_var", 100), ("grad_dormant_0.01", 50)):
        assert found[f"value/all/mean/{metric}"] == share


def test_behind_batch_norm_dead_units_show_too_when_their_shift_kills_them():
    subject, data = subject_with_data("categorical")
    with torch.no_grad():
        for block in subject.agent.critic.trunk.block:
            block.norm1.scale[:, :40], block.norm1.shift[:, :40] = 0, -1
    found = read(subject, data, "unit_health", "critic/block0.inner/mean/dormant_0_recent")
    assert found == pytest.approx(100 * 40 / 64)


def test_values_half_too_large():
    reward = torch.rand(200, generator=generator(0), dtype=torch.float64)
    ended = torch.arange(200) % 20 == 19
    found = soft_returns(reward, 0 * reward, torch.arange(200) // 20, ended, 0.9)
    assert value_bias(1.5 * found.return_T, found.return_T).norm == pytest.approx(0.5)
    assert value_bias(found.return_T, found.return_T).norm == 0


def test_rewards_ten_times_too_large_for_the_support():
    subject, data = subject_with_data("categorical")
    name = "critic/all/mean/support_clip"
    healthy = read(subject, data, "support", name)
    data.recent.reward.mul_(30)
    assert read(subject, data, "support", name) > max(0.1, 3 * healthy)


def test_a_chain_whose_next_feature_is_twice_as_large():
    found = self_excitation(torch.ones(1, 2, 2), 2 * torch.ones(1, 2, 2), 0.9, 1)
    assert found.norm_E == pytest.approx(1)


def trained(kind="categorical", steps=8, **changes):
    subject, data = subject_with_data(kind, **changes)
    random = generator(3)
    for _ in range(steps):
        subject.agent.learn(random_batch(subject.agent, random), *random_noise(random))
    return subject, data


def test_a_learning_rate_a_hundred_times_too_large():
    largest = []
    for rate in (1e-3, 1e-1):
        subject, data = trained("scalar", lr_init=rate, lr_peak=rate, lr_end=rate)
        view = subject.views["critic"]
        after = next_step(subject, "critic", data.recent)
        angle = next(
            e for e in changed_weights(view, after, True, rate) if e.metric == "angle_step"
        )
        assert angle.value is not None
        largest.append(angle.value)
    assert largest[1] > 0.05 > 10 * largest[0]
    # Adam's limit grows with the rate alone where the curvature is the same.
    top = torch.tensor(100.0)
    assert curvature.stability_of_adam(1e-1, top) == pytest.approx(
        100 * float(curvature.stability_of_adam(1e-3, top))
    )


def test_a_learning_rate_of_zero_moves_nothing():
    subject, data = trained("scalar", lr_init=0.0, lr_peak=1e-12, lr_end=0.0)
    view, rate = subject.views["critic"], subject.moments("critic").rate
    after = next_step(subject, "critic", data.recent)
    found = {each.metric: each.value for each in changed_weights(view, after, True, rate)}
    for metric in ("update_ratio", "angle_step"):
        value = found[metric]
        assert value is not None
        assert value < 1e-6


@pytest.mark.parametrize("kind", ["scalar", "ppo"])
def test_the_next_step_has_the_decay_of_training(kind):
    if kind == "ppo":
        subject, data = subject_with_data(kind, weight_decay=0.5)
        subject.agent._rate.fill_(0.1)
    else:
        remedy, rates = RemedySettings(weight_decay=0.5), dict.fromkeys(("lr_init", "lr_peak"), 0.1)
        subject, data = subject_with_data(kind, remedy=remedy, project_critic=False, **rates)
    view, rate = subject.views[subject.critic_role], subject.moments(subject.critic_role).rate
    assert rate == pytest.approx(0.1, rel=1e-2)
    whole = next_step(subject, view.role, data.recent)
    for adam in [subject.agent._optimizer] if kind == "ppo" else subject.agent._optimizers.values():
        adam._decay = 0.0
    without = next_step(subject, view.role, data.recent)
    shrunk = dict[str, bool]()
    pairs = zip(view.parameters(), whole.parameters(), without.parameters(), strict=True)
    for (name, before), own, other in pairs:
        expected = gradients.is_matrix(name, view.split(name, before)) * 0.5 * rate * before
        torch.testing.assert_close(other - own, expected, rtol=1e-3, atol=1e-6)
        shrunk[name] = bool(expected.any())
    assert 0 < sum(shrunk.values()) < len(shrunk)


def test_the_next_step_has_the_gradients_that_adam_knows():
    # Where all gradients so far were alike, each weight moves by the learning rate.
    subject, _ = subject_with_data("ppo", value_coef=0.25, max_grad_norm=0.0)
    subject.agent.updates = 1
    data, view = transitions("ppo", subject.batch_size), subject.views["value"]
    objective, moments = subject.objective("value", data), subject.moments("value")
    parameters = list(view.module.parameters())
    loss = 0.25 * objective.loss(view.module, *objective.rows)  # what training steps on
    found = torch.autograd.grad(loss, parameters)
    for gradient, mean, square in zip(found, moments.mean, moments.square, strict=True):
        mean.copy_(0.1 * gradient)
        square.copy_(0.001 * gradient.square())
    after = next_step(subject, "value", data)
    for gradient, old, new in zip(found, parameters, after.parameters(), strict=True):
        moved = (new - old)[gradient.abs() > 1e-5].abs()
        torch.testing.assert_close(moved, torch.full_like(moved, moments.rate), rtol=1e-2, atol=0)


def test_gradients_lost_behind_adams_epsilon():
    assert gradients.epsilon_share([torch.full((5,), 1e-20)], 10**5) == 1


def test_a_return_that_falls_by_seven_tenths():
    found = drawdown([0.0, 5, 3, 9, 2, 8, 10])
    assert found.depth / 10 > 0.3
    assert found.depth > noise_floor(7) * 0.5


def test_a_flow_of_constant_velocity():
    start = torch.linspace(-1, 1, 8, dtype=torch.float64).expand(1, 4, -1)

    def constant(t, z):
        return torch.full_like(z, 3.0)

    assert straightness(constant, start) == pytest.approx(0, abs=1e-12)
    assert recovery(constant, start, 0.1, steps=8, done=4) == pytest.approx(1)

    def ideal(t, z):
        return (2.0 - z) / (1 - t)

    assert straightness(ideal, start) == pytest.approx(0, abs=1e-12)
    assert recovery(ideal, start, 0.1, steps=8, done=4) == pytest.approx(0, abs=1e-12)


def test_means_five_units_beyond_tanh():
    mean = torch.randn(2000, 3, generator=generator(0))
    assert movement.saturated_share(mean.tanh()).mean() < 0.1
    assert movement.saturated_share((mean + 5).tanh()).mean() > 0.9
    subject, data = subject_with_data("categorical")
    with torch.no_grad():
        subject.agent.actor.mean.bias.fill_(5)
    assert read(subject, data, "saturation", "actor/all/mean/act_sat") > 0.9


def test_a_mean_beyond_the_bound_at_which_the_environment_clips():
    subject, data = subject_with_data("ppo")
    names = [f"actor/all/mean/{metric}_action[1]" for metric in ("act_sat", "act_pinned")]
    for name in names:
        assert read(subject, data, "saturation", name) < 0.1
    with torch.no_grad():
        subject.agent.actor.layers[-1].bias[1] = 5
    for name in names:
        assert read(subject, data, "saturation", name) > 0.9
    action = dataclasses.replace(subject.agent.spec.action, clip=False)
    subject.agent.spec = dataclasses.replace(subject.agent.spec, action=action)
    found = measure(subject_of(subject.agent, seed=0), data, groups=["saturation"]).readings
    assert not any("act_" in name for name in found)


def test_a_critic_that_cannot_tell_a_state_from_the_next():
    subject, _ = subject_with_data("scalar")
    data = transitions("scalar", 2048)
    name = "critic/all/mean/feat_cos_recent"
    healthy = read(subject, DataSets(recent=data), "consecutive", name)
    action = subject.action_means(data.obs(("policy",))).detach()
    same = dataclasses.replace(data, next_observation=data.observation, action=action)
    blind = DataSets(recent=same)
    assert healthy < 0.95
    assert read(subject, blind, "consecutive", name) > 0.99


def test_features_collapsed_onto_one_direction():
    subject, data = subject_with_data("ppo")
    name = "value/penultimate/mean/erank_recent"
    healthy = read(subject, data, "dimensionality", name)
    with torch.no_grad():
        last = hidden_layers(subject)[-1]
        last.weight.copy_(last.weight[:1].abs().expand_as(last.weight))
        last.bias.fill_(1)
    assert read(subject, data, "dimensionality", name) < 0.5 * healthy
    assert math.isfinite(healthy)
