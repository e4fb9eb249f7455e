"""The acceptance list of the flow critics' specification, section 10, line by line: T1 to T11.

T7 on a GPU, through the interpreter and compiled ahead of time: tests/kernels/test_gpu_kernels.py.
"""

import copy

import pytest
import torch

from supple.agents.critics import CriticSize
from supple.agents.flow_critics import FlowRange, PublishedFlowCritic
from supple.agents.flow_settings import FlowSettings
from supple.diagnostics.recovery import fixed_noise, injection_gain, stale_prefix, step_sweep
from supple.kernels.critic_integration import ValueEncoding, critic_integration, euler, integrate
from tests.agents.small_agents import generator
from tests.agents.small_flows import KINDS, ROWS, critic_of, inputs, uniform
from tests.kernels.fields import (
    FORMS,
    TINY,
    exact,
    gradients,
    plain,
    problem,
    random_field,
    require_as_good_as_plain_pytorch,
)

HLGAUSS = ValueEncoding(low=-101.0, high=1.0)


def by_quadrature(encoding, z, bin_number):
    """Mass of the truncated Gaussian in one bin, by the midpoint rule."""
    width = (encoding.high - encoding.low) / (encoding.edges - 1)
    sigma = encoding.sigma_bins * width

    def mass(low, high):
        x = torch.linspace(low, high, 200_001, dtype=torch.float64)
        x = (x[1:] + x[:-1]) / 2
        return (-0.5 * ((x - z) / sigma) ** 2).exp().mean() * (high - low)

    left = encoding.low + bin_number * width
    return mass(left, left + width) / mass(encoding.low, encoding.high)


@pytest.mark.parametrize("z", [-101.0, -60.0, -50.0, 0.5, 40.0])
def test_t1_the_encoding_is_the_mass_of_a_gaussian_in_each_bin(z):
    found = HLGAUSS(torch.tensor(z, dtype=torch.float64))
    assert found.shape == (50,)
    for number in (0, 17, 49):
        expected = by_quadrature(HLGAUSS, z, number).item()
        assert found[number].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_t1_the_encoding_sums_to_one_and_is_finite_ten_widths_outside(dtype):
    z = torch.linspace(-101 - 1020, 1 + 1020, 501).to(dtype)
    found = HLGAUSS(z)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert found.isfinite().all()
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[:, 0]), atol=1e-6, rtol=0)


def test_t1_a_symmetric_support_gives_mirrored_vectors():
    encoding = ValueEncoding(low=-5.1, high=5.1)
    z = torch.linspace(-6, 6, 25, dtype=torch.float64)
    torch.testing.assert_close(encoding(z), encoding(-z).flip(-1))


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 32])
def test_t2_a_field_towards_one_value_arrives_there_from_anywhere(steps):
    start = torch.tensor([-10.0, 0.0, 7.0], dtype=torch.float64)
    value = -42.0
    end = euler(lambda k, z: (value - z) / (1 - k / steps), start, steps)[-1]
    torch.testing.assert_close(end, torch.full_like(end, value), rtol=1e-6, atol=0)
    moved = euler(lambda k, z: torch.full_like(z, 3.0), start, steps)[-1]
    torch.testing.assert_close(moved, start + 3)


@pytest.mark.parametrize(("steps", "gain"), [(2, 0.200), (4, 0.341), (8, 0.415), (16, 0.456)])
def test_t2_the_gaussian_field_contracts_as_derived(steps, gain):
    ratio = 0.5

    def slope(k):
        t = k / steps
        return (t * ratio**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * ratio**2)

    start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    low, high = euler(lambda k, z: slope(k) * z, start, steps)[-1].tolist()
    assert high - low == pytest.approx(gain, abs=5e-4)


@pytest.mark.parametrize("steps", [2, 8])
def test_t3_an_error_put_in_early_vanishes_in_a_dirac_field_and_stays_in_a_constant_one(steps):
    start = torch.tensor([0.5], dtype=torch.float64)
    for at in range(steps):

        def dirac(k, z, at=at):
            return (3 - z) / (1 - k / steps) + steps * 0.7 * (k == at)

        def constant(k, z, at=at):
            return 1 + steps * 0.7 * (k == at) + 0 * z

        gain = (euler(dirac, start, steps)[-1] - 3).item() / 0.7
        assert gain == pytest.approx(0.0 if at < steps - 1 else 1.0, abs=1e-9)
        assert (euler(constant, start, steps)[-1] - 1.5).item() == pytest.approx(0.7)


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


def naive_velocity(field, form, z, condition, time):
    """One member, one sample at a time, with torch's own modules for the published form."""
    out = torch.empty_like(z)
    for e, b, m in torch.cartesian_prod(*(torch.arange(size) for size in z.shape)).tolist():
        x = form.encoding(z[e, b, m]) @ field.value_EHZ[e].T + condition[e, b] + time[e]
        depth = len(field.hidden_LEHH) + 1
        for layer in range(depth):
            if form.norm_first:
                x = x / (x.square().mean() + 1e-6).sqrt() * field.gain_LEH[layer, e]
                x = x.relu()
            else:
                x = torch.nn.functional.gelu(x, approximate="tanh")
                norm = torch.nn.LayerNorm(len(x), eps=1e-6, dtype=x.dtype)
                norm.load_state_dict(
                    {"weight": field.gain_LEH[layer, e], "bias": field.shift_LEH[layer, e]}
                )
                x = norm(x)
            if layer + 1 < depth:
                x = field.hidden_LEHH[layer, e] @ x + field.bias_LEH[layer, e]
        if form.norm_first:
            x = x / (x.square().mean() + 1e-6).sqrt() * field.gain_LEH[depth, e]
        out[e, b, m] = x @ field.out_EH[e] + field.out_bias_E[e]
    return out


@FORMS
@pytest.mark.parametrize(("samples", "steps"), [(1, 1), (3, 4)])
@torch.no_grad()
def test_t6_hoisting_changes_nothing(form, samples, steps):
    members, rows, width, depth = 2, 3, 6, 3
    field = random_field(
        1, members=members, width=width, depth=depth, features=50, norm_first=form.norm_first
    )
    random = torch.Generator().manual_seed(2)
    condition = torch.randn(members, rows, width, generator=random, dtype=torch.float64)
    time = torch.randn(steps, members, width, generator=random, dtype=torch.float64)
    start = torch.randn(1, rows, samples, generator=random, dtype=torch.float64)
    z = start.expand(members, -1, -1)
    for k in range(steps):
        z = z + naive_velocity(field, form, z, condition, time[k]) / steps
    torch.testing.assert_close(integrate(field, form, start, condition, time), z)
    own = condition[:, :, None].expand(-1, -1, samples, -1)
    torch.testing.assert_close(integrate(field, form, start, own, time), z)


@pytest.mark.slow
@FORMS
@pytest.mark.parametrize("rows", [63, 257])
@pytest.mark.parametrize(("width", "depth"), [(256, 2), (256, 3), (256, 4), (512, 2), (512, 4)])
def test_t7_the_kernel_agrees_with_the_reference_in_float64(form, rows, width, depth):
    sizes = {"members": 2, "rows": rows, "samples": 3, "steps": 4}
    require_as_good_as_plain_pytorch(form, sizes | {"width": width, "depth": depth})


@FORMS
@pytest.mark.parametrize("shared", [True, False])
def test_t8_its_gradient_is_that_of_the_plain_loop(form, shared):
    given = problem(form, **TINY, shared=shared)
    field, start, condition, time, weight = given
    end = exact(form, field, start, condition, time)
    expected = plain(form, *given)
    found = (end, *gradients(end, weight, start, condition))
    for each, true in zip(found, expected, strict=True):
        torch.testing.assert_close(each, true, rtol=1e-10, atol=1e-12)


@FORMS
def test_t8_its_gradient_is_the_slope_in_random_directions(form):
    field, start, condition, time, weight = problem(form, **TINY)
    end = exact(form, field, start, condition, time)
    (gradient,) = torch.autograd.grad((end * weight).sum(), condition)
    random, step = torch.Generator().manual_seed(5), 1e-6
    for _ in range(8):
        way = torch.randn(condition.shape, generator=random, dtype=torch.float64)
        ends = [
            (integrate(field, form, start, (condition + sign * step * way)[:, :, 0], time) * weight)
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]).sum() / (2 * step)
        torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-5, atol=1e-7)


@FORMS
def test_t9_weights_changed_in_place_change_the_next_result(form):
    field, start, condition, time, _ = problem(form, **TINY)
    with torch.no_grad():
        before = critic_integration(field, form, start, condition, time)
        for part in (field.value_EHZ, field.hidden_LEHH, field.gain_LEH, field.out_EH):
            part.mul_(1.1)
            after = critic_integration(field, form, start, condition, time)
            assert not torch.allclose(after, before, rtol=1e-6)
            torch.testing.assert_close(
                after, integrate(field, form, start, condition, time), rtol=1e-3, atol=1e-3
            )
            before = after


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
        draws = torch.rand(ROWS, critic.draws.value, generator=generator(0))
        value = critic.value(critic(x, train=False), draws)[0]
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
