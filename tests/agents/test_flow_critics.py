"""Flow critics; acceptance tests T4, T5, T10 and T11 of the method's specification."""

import copy
import math

import pytest
import torch

from supple.agents.critics import CriticSize
from supple.agents.flow_critics import (
    BoundedFlowCritic,
    FlowCritic,
    FlowRange,
    PublishedFlowCritic,
)
from supple.agents.flow_settings import FlowSettings, published
from supple.agents.nets import project_
from supple.diagnostics.recovery import fixed_noise, injection_gain, stale_prefix, step_sweep
from supple.errors import InputError
from tests.agents.small_agents import generator

G = 5.0
ROWS, INPUTS = 6, 4


def settings_of(**changes):
    small = {"width": 16, "depth": 2, "target_steps": 4, "read_steps": 4, "time_features": 8}
    return FlowSettings(**{**small, "target_samples": 3, "train_samples": 3, **changes})


def critic_of(kind=BoundedFlowCritic, *, members=2, seed=0, **changes):
    size = CriticSize(inputs=INPUTS, hidden=16, blocks=1, members=members)
    if kind is PublishedFlowCritic:
        changes = {"activation": "gelu", "norm": "layer", **changes}
    settings = settings_of(**changes)
    critic: FlowCritic
    if kind is BoundedFlowCritic:
        critic = BoundedFlowCritic(size, settings=settings, value_max=G, generator=generator(seed))
    else:
        spans = FlowRange.of(settings, G)
        critic = PublishedFlowCritic(
            size, settings=settings, spans=spans, generator=generator(seed)
        )
    project_(critic)
    return critic


KINDS = pytest.mark.parametrize(
    "kind", [BoundedFlowCritic, PublishedFlowCritic], ids=["flow", "official"]
)


def uniform(critic, use, seed=1):
    return torch.rand(ROWS, getattr(critic.draws, use), generator=generator(seed))


def inputs(seed=2):
    return torch.randn(ROWS, INPUTS, generator=generator(seed))


def test_noise_is_centred_or_ends_at_the_largest_value():
    scaled = FlowRange.of(settings_of(kappa=0.1), G)
    assert (scaled.noise_low, scaled.noise_high) == (-0.5, 0.5)
    assert (scaled.value_low, scaled.value_high) == pytest.approx((-5.1, 5.1))
    paper = FlowRange.of(settings_of(kappa=0.1, noise_rule="paper"), G)
    assert (paper.noise_low, paper.noise_high) == (4.0, 5.0)
    critic = critic_of()
    assert critic.noise(torch.tensor([[0.0, 0.5, 1.0]])).tolist() == [[-0.5, 0.0, 0.5]]


@KINDS
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_activation_and_norm_are_as_set(kind, activation, norm):
    critic = critic_of(kind, activation=activation, norm=norm)
    form = critic.net.form
    assert (form.activation, form.norm) == (activation, norm)
    assert form.norm_first == (kind is BoundedFlowCritic)
    draws = uniform(critic, "loss")
    loss = critic.loss(critic(inputs(), train=True), torch.linspace(-3, 3, ROWS), draws)
    assert all(g is not None for g in torch.autograd.grad(loss, list(critic.net.parameters())))


@KINDS
def test_t4_a_network_that_says_the_velocity_has_no_loss(kind, monkeypatch):
    critic = critic_of(kind)
    prediction, draws = critic(inputs(), train=True), uniform(critic, "loss")
    target = torch.linspace(-3, 3, ROWS)
    goal = target[:, None] - critic.noise(draws[:, :3])
    monkeypatch.setattr(
        "supple.agents.flow_critics.velocity", lambda *_: goal.expand(2, -1, -1).clone()
    )
    assert critic.loss(prediction, target, draws) == 0


@KINDS
@torch.no_grad()
def test_t4_transitions_may_be_permuted_together_but_not_their_targets_alone(kind):
    critic = critic_of(kind)
    x, draws, target = inputs(), uniform(critic, "loss"), torch.linspace(-3, 3, ROWS)
    order = torch.randperm(ROWS, generator=generator(5))

    def loss(x, target, draws):
        return critic.loss(critic(x, train=False), target, draws)

    before = loss(x, target, draws)
    torch.testing.assert_close(loss(x[order], target[order], draws[order]), before)
    assert not torch.allclose(loss(x, target[order], draws), before, rtol=1e-2)


@KINDS
@pytest.mark.parametrize("predict", ["velocity", "endpoint"])
@pytest.mark.parametrize("samples", [1, 3])
@torch.no_grad()
def test_members_may_regress_onto_targets_of_their_own(kind, predict, samples):
    critic = critic_of(kind, predict=predict)
    prediction, draws = critic(inputs(), train=False), uniform(critic, "loss")
    first, second = torch.randn(2, ROWS, samples, generator=generator(7))

    def loss(*targets):
        return critic.loss(prediction, torch.stack(targets), draws)

    # Each member meets each target once on either side.
    torch.testing.assert_close(
        loss(first, second) + loss(second, first), loss(first, first) + loss(second, second)
    )
    torch.testing.assert_close(loss(first, first), critic.loss(prediction, first, draws))
    assert not torch.allclose(loss(first, second), loss(second, first), rtol=1e-4)


@KINDS
@torch.no_grad()
def test_the_velocity_field_leads_where_the_critic_integrates(kind):
    critic = critic_of(kind)
    prediction = critic(inputs(), train=False)
    start, velocity = critic.noise(uniform(critic, "value")), critic.velocity_at(prediction)
    counts = (1, 3, 8)
    led = step_sweep(velocity, start[None], torch.zeros(ROWS), counts=counts).value_SEB
    integrated = [critic.integrated(prediction, start, steps).mean(-1) for steps in counts]
    torch.testing.assert_close(led, torch.stack(integrated))
    assert not torch.allclose(velocity(0.0, start[None]), velocity(0.5, start[None]), rtol=1e-3)


def test_a_critic_that_says_end_points_has_no_velocity_field():
    critic = critic_of(predict="endpoint")
    with pytest.raises(InputError, match="predict=endpoint has no velocity field"):
        critic.velocity_at(critic(inputs(), train=False))


@KINDS
@pytest.mark.parametrize("aggregate", ["min", "mean"])
@pytest.mark.parametrize("backup", ["expected", "distributional"])
@torch.no_grad()
def test_t5_the_target_joins_members_for_each_sample_then_averages(
    kind, aggregate, backup, monkeypatch
):
    critic = critic_of(kind, aggregate=aggregate, backup=backup)
    # Two transitions, two members, three samples; the second transition is terminal.
    value = torch.tensor([[[1.0, 2, 3], [4, 4, 4]], [[3, 0, 2], [5, 5, 5]]])
    monkeypatch.setattr(critic, "integrated", lambda *_: value)
    joined = [[1, 0, 2], [4, 4, 4]] if aggregate == "min" else [[2, 1, 2.5], [4.5, 4.5, 4.5]]
    samples = 0.5 + 0.9 * (torch.tensor(joined[0]) - 0.25)
    terminal = torch.full((3,), -2.0)
    expected = torch.stack((samples, terminal))
    if backup == "expected":
        expected = expected.mean(-1)
    found, clipped = critic.target(
        None,
        torch.tensor([0.5, -2.0]),
        torch.tensor([0.9, 0.0]),
        torch.tensor([0.25, 9.0]),
        torch.zeros(2, 3),
    )
    torch.testing.assert_close(found, expected)
    assert clipped == 0


@torch.no_grad()
def test_only_the_bounded_critic_clips_its_target():
    reward, none = torch.tensor([9.0] * ROWS), torch.zeros(ROWS)
    for kind, most in ((BoundedFlowCritic, G), (PublishedFlowCritic, 9.0)):
        critic = critic_of(kind)
        found, clipped = critic.target(
            critic(inputs(), train=False), reward, none, none, uniform(critic, "target")
        )
        assert found.tolist() == [most] * ROWS
        assert clipped == (kind is BoundedFlowCritic)


@pytest.mark.parametrize("scale", [1.0, 1e6])
@torch.no_grad()
def test_velocities_of_the_bounded_critic_stay_bounded_for_any_input(scale):
    critic = critic_of(width=32)
    x = scale * torch.randn(ROWS, INPUTS, generator=generator(3))
    x[0] = 0
    prediction = critic(x, train=False)
    draws = uniform(critic, "value")
    # |v| <= 2 G, so a flow of any length ends within 2 G of its noise.
    for steps in (1, 4, 16):
        start = critic.noise(draws)
        moved = critic.integrated(prediction, start, steps) - start
        assert moved.abs().max() <= 2 * G * (1 + 1e-5)


def test_every_norm_of_the_bounded_critic_is_restored():
    critic = critic_of(depth=3)
    with torch.no_grad():
        for value in critic.parameters():
            value.mul_(1.7)
    project_(critic)
    net = critic.net
    for weight in (net.first.weight, net.hidden.weight, net.out.weight):
        norms = weight.norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    gains = net.norm.scale.norm(dim=-1)
    torch.testing.assert_close(gains, torch.full_like(gains, math.sqrt(16)))


@KINDS
@pytest.mark.parametrize("readout", ["distilled", "integrate", "one_step", "last_step"])
def test_every_readout_gives_the_actor_a_gradient(kind, readout):
    critic = critic_of(kind, readout=readout)
    x = inputs().requires_grad_()
    prediction = critic(x, train=False)
    draws = uniform(critic, "value")
    climbed = critic.climbed(prediction, draws)
    assert climbed.shape == (ROWS,)
    (gradient,) = torch.autograd.grad(climbed.sum(), x)
    assert (gradient.abs().sum(1) > 0).all()
    assert critic.value(prediction, draws).shape == (2, ROWS)


@KINDS
def test_one_and_last_step_are_what_they_say(kind):
    x, start = inputs(), torch.rand(ROWS, 2, generator=generator(1))
    one, whole, last = (
        critic_of(kind, readout=readout, read_samples=2, read_steps=steps)
        for readout, steps in (("one_step", 4), ("integrate", 1), ("last_step", 4))
    )
    torch.testing.assert_close(
        one.climbed(one(x, train=False), start), whole.climbed(whole(x, train=False), start)
    )
    through = critic_of(kind, readout="integrate", read_samples=2)
    torch.testing.assert_close(
        last.climbed(last(x, train=False), start),
        through.climbed(through(x, train=False), start),
    )

    def gradient(critic):
        moving = x.clone().requires_grad_()
        value = critic.climbed(critic(moving, train=False), start).sum()
        return torch.autograd.grad(value, moving)[0]

    assert not torch.allclose(gradient(last), gradient(through), rtol=1e-3)


@KINDS
def test_distilling_teaches_the_members_the_mean_and_leaves_the_field_alone(kind):
    critic = critic_of(kind, readout="distilled")
    x, draws, target = inputs(), uniform(critic, "loss"), torch.linspace(-3, 3, ROWS)
    prediction = critic(x, train=False)
    field = {
        name: value for name, value in critic.named_parameters() if not name.startswith("distilled")
    }
    own = critic_of(kind, readout="integrate")
    own.load_state_dict(critic.state_dict(), strict=False)
    alone = own.loss(own(x, train=False), target, draws)
    both = critic.loss(prediction, target, draws)
    mean = critic.integrated(prediction, critic.noise(draws[:, :3]), 4).mean((0, 2))
    distilled = critic.distilled_value(prediction.features_EBH)
    torch.testing.assert_close(both - alone, (distilled - mean).square().mean())
    plain = torch.autograd.grad(alone, [dict(own.named_parameters())[name] for name in field])
    with_distilled = torch.autograd.grad(both, list(field.values()))
    for left, right in zip(plain, with_distilled, strict=True):
        torch.testing.assert_close(left, right)


def test_reductions_differ_by_the_number_of_samples():
    x, target = inputs(), torch.linspace(-3, 3, ROWS)
    losses = {}
    for reduction in ("mean", "sum"):
        critic = critic_of(reduction=reduction)
        draws = uniform(critic, "loss")
        losses[reduction] = critic.loss(critic(x, train=False), target, draws)
    torch.testing.assert_close(losses["sum"], 3 * losses["mean"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kappa": 0.0}, r"--agent\.flow\.kappa must be in \(0, 1\], got 0\.0"),
        ({"train_time": "zero"}, "zero with target_steps and read_steps 1, got zero"),
        (
            {"backup": "distributional", "target_samples": 2},
            "target_samples equal to train_samples",
        ),
        ({"depth": 1}, "depth must be >= 2, got 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        settings_of(**changes)


def test_the_published_settings_are_the_published_ones():
    found = published()
    assert (found.width, found.depth, found.target_samples, found.target_steps) == (512, 4, 8, 8)
    assert (found.activation, found.norm) == ("gelu", "layer")
    assert (found.aggregate, found.readout, found.reduction) == ("mean", "distilled", "sum")


@pytest.mark.slow
def test_t10_without_times_and_steps_it_is_a_regression_of_the_target():
    critic = critic_of(
        PublishedFlowCritic,
        members=1,
        train_time="zero",
        target_steps=1,
        read_steps=1,
        width=64,
        readout="integrate",
    )
    x = inputs()
    target = torch.linspace(-3, 3, ROWS)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    for step in range(2000):
        draws = torch.rand(ROWS, critic.draws.loss, generator=generator(step))
        optimizer.zero_grad()
        critic.loss(critic(x, train=True), target, draws).backward()
        optimizer.step()
    with torch.no_grad():
        value = critic.value(critic(x, train=False), torch.rand(ROWS, critic.draws.value))[0]
    torch.testing.assert_close(value, target, rtol=1e-2, atol=3e-2)


@pytest.mark.slow
def test_t11_a_learned_flow_is_accurate_contracts_and_recovers_from_a_stale_beginning():
    """The six-dimensional regression of the specification: range 100, kappa 0.1, 8 steps."""
    size = CriticSize(inputs=6, hidden=1, blocks=0, members=1)
    settings = FlowSettings(width=128, train_samples=4, activation="gelu", norm="layer")
    spans = FlowRange(value_low=-101, value_high=1, noise_low=-10, noise_high=0)
    random = generator(0)
    critic = PublishedFlowCritic(size, settings=settings, spans=spans, generator=random)
    mix = torch.randn(6, 6, generator=random)

    def value_of(x):
        return -50 + 40 * torch.sin(x @ mix).mean(-1)

    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    for step in range(4000):
        if step == 1000:
            early = copy.deepcopy(critic)
        x = torch.rand(128, 6, generator=random) * 2 - 1
        draws = torch.rand(128, critic.draws.loss, generator=random)
        optimizer.zero_grad()
        critic.loss(critic(x, train=True), value_of(x), draws).backward()
        optimizer.step()

    x = torch.rand(1024, 6, generator=random) * 2 - 1
    with torch.no_grad():
        velocity, stale = (which.velocity_at(which(x, train=False)) for which in (critic, early))
    start, truth = fixed_noise(critic, len(x)), value_of(x)
    error = step_sweep(velocity, start, truth, counts=[8]).error_SE
    gain = injection_gain(velocity, start, 5.0, steps=8).mean()
    recovery = stale_prefix(velocity, stale, start, steps=8)[[2, 4, 6], 0]
    assert error <= 0.08 * truth.std()
    assert 0.25 <= gain <= 0.5
    assert recovery.tolist() == pytest.approx([0.13, 0.35, 0.67], abs=0.06)
