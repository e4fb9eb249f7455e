"""Encodings and Euler integration; acceptance tests T1 to T3 of the method's specification."""

import math

import pytest
import torch

from supple.kernels.critic_integration import (
    Form,
    ValueEncoding,
    after_first_layer,
    euler,
    first_layer,
    hidden_layers,
    integrate,
    path,
    time_features,
    velocity,
)
from tests.kernels.fields import BOUNDED, PUBLISHED, random_field

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


def test_the_scalar_encoding_is_the_place_in_the_support():
    encoding = ValueEncoding(low=-1.0, high=3.0, kind="scalar")
    assert encoding(torch.tensor([-1.0, 0.0, 3.0, 5.0])).tolist() == [[0], [0.25], [1], [1.5]]


@pytest.mark.parametrize("kind", ["hlgauss", "scalar"])
def test_the_slope_of_the_features_is_their_derivative(kind):
    encoding = ValueEncoding(low=-5.1, high=5.1, kind=kind)
    z = torch.tensor([-40.0, -6.0, 0.0, 0.3, 5.0, 15.0], dtype=torch.float64)
    expected = torch.func.vmap(torch.func.jacrev(encoding))(z)
    torch.testing.assert_close(encoding.slope(z), expected, rtol=1e-9, atol=1e-12)


def test_time_features():
    t = torch.tensor([0.0, 0.5, 1.0])
    fourier = time_features(t, "fourier", 3)
    expected = torch.tensor([[1.0, 1, 1], [0, -1, 0], [-1, 1, -1]])
    torch.testing.assert_close(fourier, expected, atol=1e-6, rtol=0)
    assert torch.equal(time_features(t, "cos", 64), t.cos()[:, None])
    assert torch.equal(time_features(t, "cos_rep", 2), t.cos()[:, None].expand(3, 2))


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


@pytest.mark.parametrize("form", [PUBLISHED, BOUNDED], ids=["published", "bounded"])
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


@torch.no_grad()
def test_an_endpoint_field_is_read_along_the_line_to_what_it_last_said():
    form = Form(encoding=PUBLISHED.encoding, endpoint=True)
    field = random_field(3, members=2, width=4, depth=2, features=50, norm_first=False)
    condition = torch.randn(2, 5, 4, dtype=torch.float64)
    time = torch.randn(4, 2, 4, dtype=torch.float64)
    start = torch.randn(2, 5, 3, dtype=torch.float64)
    z = start
    for k in range(4):
        end = velocity(field, form, z, condition[:, :, None], time[k][:, None, None])
        z = start + (k + 1) / 4 * (end - start)
    torch.testing.assert_close(integrate(field, form, start, condition, time), end)
    states = path(field, form, start, condition, time)
    assert len(states) == 5
    assert torch.equal(states[0], start)
    assert math.isfinite(float(end.sum()))


@pytest.mark.parametrize("form", [PUBLISHED, BOUNDED], ids=["published", "bounded"])
@torch.no_grad()
def test_hidden_layers_end_in_what_the_output_reads_and_the_same_before_its_norm(form):
    width, depth = 6, 3
    field = random_field(
        4, members=2, width=width, depth=depth, features=50, norm_first=form.norm_first
    )
    random = torch.Generator().manual_seed(5)
    z, condition, time = torch.randn(3, 2, 5, 4, 1, generator=random, dtype=torch.float64)
    sums = first_layer(field, form, z[..., 0], condition, time)
    before, after = hidden_layers(field, form, sums)
    assert before.shape == after.shape == (2, 5, 4, width)
    gain = field.gain_LEH[-1][:, None, None]
    if form.norm_first:
        assert before.min() == 0  # straight behind a ReLU
        normal = before * (before.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        expected = gain * normal
    else:
        assert before.min() >= -0.1701  # the least value of GELU
        centred = before - before.mean(-1, keepdim=True)
        normal = centred * (centred.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        expected = gain * normal + field.shift_LEH[-1][:, None, None]
    torch.testing.assert_close(after, expected)
    out = torch.einsum("ebmh,eh->ebm", after, field.out_EH) + field.out_bias_E[:, None, None]
    torch.testing.assert_close(after_first_layer(field, form, sums), out)
    torch.testing.assert_close(velocity(field, form, z[..., 0], condition, time), out)
