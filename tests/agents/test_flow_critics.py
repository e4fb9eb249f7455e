"""Flow critics; tests/test_flow_acceptance.py has the specification's own tests."""

import math

import pytest
import torch

from supple.agents.flow_critics import (
    BoundedFlowCritic,
    FlowRange,
    PublishedFlowCritic,
)
from supple.agents.flow_settings import FlowSettings, published
from supple.agents.nets import project_
from supple.agents.velocity import typical_norm
from supple.diagnostics.recovery import step_sweep
from supple.errors import InputError
from supple.kernels.critic_integration import ValueEncoding
from tests.agents.small_agents import generator
from tests.agents.small_flows import INPUTS, KINDS, ROWS, G, critic_of, inputs, settings_of, uniform


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
@pytest.mark.parametrize(("points", "error"), [(0, 1e-6), (257, 1e-4)])
@torch.no_grad()
def test_the_velocity_field_leads_where_the_critic_integrates(kind, points, error):
    critic = critic_of(kind, table_points=points)
    prediction = critic(inputs(), train=False)
    start, velocity = critic.noise(uniform(critic, "value")), critic.velocity_at(prediction)
    counts = (1, 3, 8)
    led = step_sweep(velocity, start[None], torch.zeros(ROWS), counts=counts).value_SEB
    integrated = [critic.integrated(prediction, start, steps).mean(-1) for steps in counts]
    torch.testing.assert_close(led, torch.stack(integrated), rtol=0, atol=error * 2 * G)
    assert not torch.allclose(velocity(0.0, start[None]), velocity(0.5, start[None]), rtol=1e-3)


def test_a_critic_that_says_end_points_has_no_velocity_field():
    critic = critic_of(predict="endpoint")
    with pytest.raises(InputError, match="predict=endpoint has no velocity field"):
        critic.velocity_at(critic(inputs(), train=False))


@torch.no_grad()
def test_only_the_bounded_critic_clips_its_target():
    reward, none = torch.tensor([9.0] * ROWS), torch.zeros(ROWS)
    for kind, most in ((BoundedFlowCritic, G), (PublishedFlowCritic, 9.0)):
        critic = critic_of(kind)
        found, outside = critic.target(
            critic(inputs(), train=False), reward, none, none, uniform(critic, "target")
        )
        assert found.tolist() == [most] * ROWS
        assert outside == 1


@KINDS
@pytest.mark.parametrize(("reward", "share"), [(5.05, (1, 0)), (5.15, (1, 1)), (-4.9, (0, 0))])
@torch.no_grad()
def test_targets_count_as_out_of_range_where_clipped_or_outside_the_support(kind, reward, share):
    """The range is [-5, 5], the support of the encoding [-5.1, 5.1]."""
    critic, none = critic_of(kind), torch.zeros(ROWS)
    prediction, draws = critic(inputs(), train=False), uniform(critic, "target")
    rewards = torch.full((ROWS,), reward)
    rewards[::2] = 0
    outside = critic.target(prediction, rewards, none, none, draws)[1]
    assert outside == share[kind is PublishedFlowCritic] / 2


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


@pytest.mark.parametrize(("edges", "sigma"), [(51, 16.0), (201, 64.0), (11, 16.0)])
@torch.no_grad()
def test_features_of_the_state_have_the_size_of_the_condition_in_any_encoding(edges, sigma):
    net = critic_of(edges=edges, sigma_bins=sigma).net
    features = net.form.encoding(torch.linspace(-G, G, 21)).norm(dim=-1)
    scale = net.first_layer().state_EHZ / net.first.weight.split(net._columns, dim=-1)[1]
    assert float((features * scale.mean()).mean()) == pytest.approx(math.sqrt(16), rel=0.1)


@pytest.mark.parametrize("support", [(-5.1, 5.1), (-101.0, 1.0), (-0.3, 7.7)])
def test_the_usual_encoding_is_scaled_by_one_number_to_the_last_bit(support):
    low, high = support
    assert typical_norm(ValueEncoding(low=low, high=high)) == 0.17


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
        critic_of(kind, readout=readout, read_samples=2, read_steps=steps, table_points=0)
        for readout, steps in (("one_step", 4), ("integrate", 1), ("last_step", 4))
    )
    torch.testing.assert_close(
        one.climbed(one(x, train=False), start), whole.climbed(whole(x, train=False), start)
    )
    through = critic_of(kind, readout="integrate", read_samples=2, table_points=0)
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
        ({"depth": 1}, r"depth must be in \[2, 1000\], got 1"),
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


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"readout": "intergrate"}, "readout must be one of distilled, integrate, one_step"),
        ({"aggregate": "max"}, "aggregate must be one of min, mean, got max"),
        ({"time_encoding": "Fourier"}, "time-encoding must be one of fourier, cos_rep, cos"),
        ({"sigma_bins": 8.0}, "sigma-bins must be >= 10, a fifth of the bins, got 8.0"),
        ({"edges": 101}, "sigma-bins must be >= 20"),
        ({"readout": "last_step", "predict": "endpoint"}, "readout must be distilled, integrate"),
    ],
)
def test_choices_that_are_none_and_encodings_that_would_divide_by_zero_are_refused(changes, text):
    with pytest.raises(InputError, match=text):
        FlowSettings(**changes)


@pytest.mark.parametrize("points", [257, 0])
@torch.no_grad()
def test_a_row_that_is_not_finite_spoils_no_other(points):
    critic = critic_of(table_points=points)
    x, draws = inputs(), uniform(critic, "value")
    clean = critic.value(critic(x, train=False), draws)
    x[0] = float("nan")
    found = critic.value(critic(x, train=False), draws)
    assert found[:, 0].isnan().all()
    torch.testing.assert_close(found[:, 1:], clean[:, 1:])
