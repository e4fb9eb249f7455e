"""Per-sample gradients, noise scale, weights and steps, on numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from supple.diagnostics import gradients
from supple.diagnostics.gradients import (
    alignment,
    epsilon_share,
    gradient_cosine,
    gradient_gram,
    kernel_ranks,
    noise_of,
    noise_scale,
    norm_ratio,
    spectral_norm,
    turned,
    weight_rms,
)
from supple.errors import InputError
from tests.agents.small_agents import generator
from tests.diagnostics.plain import PlainView, linear
from tests.diagnostics.subjects import EVERY_KIND, subject_with_data


def squared(module, x_ND, y_N):
    return 0.5 * (module(x_ND)[:, 0] - y_N).square().mean()


def test_one_hot_inputs_have_orthogonal_gradients():
    view = PlainView(linear([[0.0, 0, 0, 0]]))
    residual = torch.tensor([1.0, -1, 2, 3], dtype=torch.float64)
    found = alignment(
        gradient_gram(view, squared, (torch.eye(4, dtype=torch.float64), residual), is_mean=True)
    )
    assert found.mean_E == found.absolute_E == found.negative_E == 0
    assert found.rank_E * 4 == pytest.approx(4)


def test_equal_inputs_with_mixed_residuals_are_collinear():
    view = PlainView(linear([[0.0, 0]]))
    x = torch.ones(4, 2, dtype=torch.float64)
    found = alignment(
        gradient_gram(view, squared, (x, torch.tensor([1.0, -1, 2, -3]).double()), is_mean=True)
    )
    assert found.absolute_E == pytest.approx(1)
    assert found.rank_E * 4 == pytest.approx(1, abs=1e-6)
    assert found.negative_E == pytest.approx(8 / 12)


def test_samples_without_a_gradient_are_left_out_and_counted():
    view = PlainView(linear([[0.0, 0]]))
    x, y = torch.eye(2).double().repeat(2, 1), torch.tensor([1.0, 0, 1, 1]).double()
    assert alignment(gradient_gram(view, squared, (x, y), is_mean=True)).dropped == 1
    with pytest.raises(InputError, match="two samples whose gradient is not 0"):
        alignment(gradient_gram(view, squared, (x, 0 * y), is_mean=True))


@pytest.mark.parametrize("separable", [True, False], ids=["layer-wise", "by sample"])
def test_grams_equal_explicit_jacobians_of_a_relu_net(monkeypatch, separable):
    monkeypatch.setattr("supple.diagnostics.gradients.GROUP_NUMBERS", 1)  # a group per parameter
    if not separable:
        monkeypatch.setattr("supple.diagnostics.gradients.SEPARABLE", ())
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    x, y = (torch.randn(n, generator=generator(1), dtype=torch.float64) for n in ((6, 3), (6,)))
    rows = []
    for i in range(6):
        found = torch.autograd.grad(
            squared(net, x[i : i + 1], y[i : i + 1]), list(net.parameters())
        )
        rows.append(torch.cat([part.flatten() for part in found]))
    jacobian = torch.stack(rows)
    gram = gradient_gram(PlainView(net), squared, (x, y), is_mean=True)
    torch.testing.assert_close(gram[0], jacobian @ jacobian.mT, rtol=0, atol=1e-12)
    cross = gradient_gram(PlainView(net), squared, (x[:2], y[:2]), (x[2:], y[2:]), is_mean=True)
    torch.testing.assert_close(cross[0], jacobian[:2] @ jacobian[2:].mT, rtol=0, atol=1e-12)


@EVERY_KIND
def test_per_sample_gradients_of_every_agent_add_up_to_its_batchs(kind):
    subject, data = subject_with_data(kind, rows=12)
    for view in subject.learning_views():
        objective = subject.objective(view.role, data.recent)
        gram = gradient_gram(view, objective.loss, objective.rows, is_mean=True)
        parameters = [part for _, part in view.parameters()]
        with torch.enable_grad():
            loss = objective.loss(view.module, *objective.rows)
        whole = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        square_E = view.flat(whole).double().square().sum(-1)
        torch.testing.assert_close(gram.mean((1, 2)), square_E, rtol=1e-3, atol=1e-9)


@EVERY_KIND
def test_layer_wise_grams_are_those_of_single_samples(monkeypatch, kind):
    subject, data = subject_with_data(kind, rows=8)
    for view in subject.learning_views():
        objective = subject.objective(view.role, data.recent)
        rows, others = ([part[at] for part in objective.rows] for at in (slice(5), slice(5, 8)))

        def gram(view=view, loss=objective.loss, rows=rows, others=others):
            return gradient_gram(view, loss, rows, others, is_mean=True)

        found = gram()
        with monkeypatch.context() as by_sample:
            by_sample.setattr("supple.diagnostics.gradients.SEPARABLE", ())
            expected = gram()
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)


@EVERY_KIND
def test_most_of_a_network_needs_no_gradient_of_single_samples(monkeypatch, kind):
    """Else memory and time grow with samples times parameters."""
    subject, data = subject_with_data(kind, rows=4)
    differentiated: list[str] = []
    real = gradients._per_sample

    def record(view, scalar, names, rows):
        differentiated.extend(names)
        return real(view, scalar, names, rows)

    monkeypatch.setattr(gradients, "_per_sample", record)
    for view in subject.learning_views():
        differentiated.clear()
        objective = subject.objective(view.role, data.recent)
        gradient_gram(view, objective.loss, objective.rows, is_mean=True)
        assert {name.split(".")[0] for name in differentiated} <= {"net", "distilled"}  # a flow's


def test_gradients_of_two_losses_are_compared_by_direction():
    weight, unused = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(3, requires_grad=True)
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([4.0, -3.0])

    def cosine(first, second):
        return gradient_cosine(first, second, [weight, unused]).item()

    assert cosine(weight @ x, 7 * weight @ x) == pytest.approx(1)
    assert cosine(weight @ x, -(weight @ x)) == pytest.approx(-1)
    assert cosine(weight @ x, weight @ y) == pytest.approx(0)
    assert cosine(weight @ x, weight[0]) == pytest.approx(0.6)
    assert weight.grad is None
    with pytest.raises(InputError, match="is undefined"):
        cosine(weight @ x, 0 * weight[0])


def test_the_tangent_kernel_of_orthonormal_rows_has_full_rank():
    def output(module, x_ND):
        return module(x_ND).sum()

    view = PlainView(linear([[1.0, 2, 3]]))
    effective, counted = kernel_ranks(gradient_gram(view, output, (torch.eye(3).double(),)))
    assert effective * 3 == pytest.approx(3)
    assert counted == 1
    same = torch.ones(3, 3).double()
    effective, counted = kernel_ranks(gradient_gram(view, output, (same,)))
    assert effective * 3 == pytest.approx(1)
    assert counted == pytest.approx(1 / 3)


def test_noise_scale_of_two_samples_is_their_variance_over_the_squared_mean():
    # Gradients are 0 or 2: mean squares are 2 for one sample, 1.5 for two, in expectation.
    found = noise_of(torch.tensor([2.0]), torch.tensor([1.5]), 1, 2)
    assert found.signal_E == found.noise_E == 1
    # Averaged over the four batches of two that can be drawn, chunks give just that.
    drawn = [noise_scale(torch.tensor([[[a]], [[b]]]), 1) for a in (0.0, 2) for b in (0.0, 2)]
    assert sum(each.signal_E for each in drawn) / 4 == 1
    assert sum(each.noise_E for each in drawn) / 4 == 1
    # Opposite gradients: the signal's estimate is negative, as the noise leaves nothing of it.
    assert noise_scale(torch.tensor([[[-1.0]], [[1.0]]]), 1).signal_E == -1


def test_ratios_weigh_layers_by_their_size():
    weight, gradient = torch.eye(2)[None], 0.1 * torch.eye(2)[None]
    assert norm_ratio([gradient], [weight]) == pytest.approx(0.1)
    small, big = torch.ones(1, 1), torch.ones(1, 3)
    assert norm_ratio([small, 3 * big], [small, big]) == pytest.approx((1 + 9) / 4)
    assert norm_ratio([small, big], [small, 0 * big]) == 1
    assert weight_rms([torch.tensor([[3.0]]), torch.tensor([[4.0]])]) == pytest.approx(
        math.sqrt(12.5)
    )


def test_a_row_turns_by_the_angle_of_its_chord():
    before, after = torch.tensor([[[1.0, 0]]]), torch.tensor([[[0.0, 1]]])
    assert turned(before, after) == pytest.approx(math.pi / 2)
    assert turned(before, before) == 0
    tiny = torch.tensor([[[math.cos(1e-5), math.sin(1e-5)]]])
    assert turned(before, tiny) == pytest.approx(1e-5, rel=2e-3)


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 5)])
def test_the_largest_singular_value_is_exact(shape):
    weight = torch.randn(shape, generator=generator(3))
    exact = torch.linalg.matrix_norm(weight.double(), 2)
    torch.testing.assert_close(spectral_norm(weight), exact)
    assert spectral_norm(torch.tensor([[10.0, -10], [-10, 10]])) == pytest.approx(20)
    assert spectral_norm(torch.tensor([[1.0, math.inf], [0, 1]])).isnan()


def test_epsilon_dominates_where_second_moments_vanish():
    assert epsilon_share([torch.full((3,), 1e-20)], 10**6) == 1
    assert epsilon_share([torch.full((3,), 1e-10), torch.zeros(1)], 10**6) == 0.25
    with pytest.raises(InputError, match="not taken a step"):
        epsilon_share([torch.zeros(1)], 0)
