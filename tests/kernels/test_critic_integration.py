"""Encodings, Euler integration and what the kernels are made of."""

import math

import pytest
import torch

from supple.errors import InputError
from supple.kernels.critic_integration import (
    Form,
    ValueEncoding,
    after_first_layer,
    first_layer,
    hidden_layers,
    integrate,
    path,
    time_features,
    velocity,
)
from tests.kernels.fields import BOUNDED, PUBLISHED, random_field


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


def encoding_of(**changes):
    return ValueEncoding(**{"low": -5.1, "high": 5.1, **changes})


def form_of(**changes):
    return Form(**{"encoding": PUBLISHED.encoding, **changes})


def narrow_form():
    return form_of(encoding=encoding_of(sigma_bins=2.0))


def features_of(kind, count):
    return time_features(torch.zeros(1), kind, count)


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (form_of, {"activation": "silu"}, "Form.activation must be one of gelu, relu, got silu"),
        (form_of, {"norm": "batch"}, "Form.norm must be one of layer, rms, got batch"),
        (narrow_form, {}, "sigma_bins must be >= 10, a fifth of the bins, .* got 2.0"),
        (encoding_of, {"kind": "HLGauss"}, "kind must be one of hlgauss, scalar, got HLGauss"),
        (encoding_of, {"low": 5.1}, "low must be below high, got 5.1, 5.1"),
        (encoding_of, {"edges": 1}, "edges >= 2 .* got edges=1, sigma_bins=16.0"),
        (encoding_of, {"sigma_bins": 0.0}, "sigma_bins > 0, got edges=51, sigma_bins=0.0"),
        (features_of, {"kind": "Fourier", "count": 64}, "fourier, cos_rep, .* got Fourier, 64"),
        (features_of, {"kind": "fourier", "count": 0}, "a count >= 1, got fourier, 0"),
    ],
)
def test_what_there_is_not_is_refused(make, wrong, message):
    with pytest.raises(InputError, match=message):
        make(**wrong)


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
