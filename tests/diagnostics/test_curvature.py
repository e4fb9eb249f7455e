"""Curvature of losses whose Hessian is known in closed form."""

import pytest
import torch
import torch.nn.functional as F

from supple.agents.nets import UnitLinear
from supple.diagnostics.curvature import (
    gauss_newton,
    hessian,
    on_spheres,
    preconditioned,
    stability_of_adam,
    stability_of_descent,
    stability_of_sgd,
)
from supple.diagnostics.linalg import hutchinson, lanczos
from supple.diagnostics.views import Objective
from tests.agents.small_agents import generator
from tests.diagnostics.plain import Parameters, PlainView, linear
from tests.diagnostics.subjects import EVERY_KIND, subject_with_data


def dense(product, width):
    return torch.stack([product(row[None])[0] for row in torch.eye(width, dtype=torch.float64)])


def eigenvalues(product, width):
    return torch.linalg.eigvalsh(dense(product, width)).tolist()


def test_linear_regression_has_its_inputs_second_moment_as_hessian():
    x = torch.randn(20, 4, generator=generator(0), dtype=torch.float64)
    y = torch.randn(20, generator=generator(1), dtype=torch.float64)
    view = PlainView(linear([[0.1, 0.2, 0.3, 0.4]]))

    def loss(module, x_ND, y_N):
        return 0.5 * (module(x_ND)[:, 0] - y_N).square().mean()

    product = hessian(view, Objective((x, y), loss)).product
    found = lanczos(product, torch.ones(1, 4, dtype=torch.float64), 30)
    sigma = torch.linalg.svdvals(x)
    assert found.high_E == pytest.approx(float(sigma[0] ** 2 / 20))
    assert found.low_E == pytest.approx(float(sigma[-1] ** 2 / 20))
    trace = hutchinson(
        product, torch.Size([1, 4]), generator=generator(2), dtype=torch.float64, tolerance=0
    )
    exact = float(x.square().sum() / 20)
    assert abs(float(trace.trace_E) - exact) < 4 * float(trace.error_E)
    newton = gauss_newton(
        view,
        lambda module, x, y: module(x),
        lambda out, x, y: 0.5 * (out[:, 0] - y).square().mean(),
        (x, y),
    )
    torch.testing.assert_close(dense(newton, 4), dense(product, 4))


@pytest.mark.parametrize(("a", "expected"), [(3.0, [0, 10]), (2.0, [0.6972, 4.3028])])
def test_a_product_of_two_weights(a, expected):
    view = PlainView(Parameters(a=[a], b=[1.0]))

    def loss(module):
        return 0.5 * (module.a * module.b - 3).square().sum()

    product = hessian(view, Objective((), loss)).product
    assert eigenvalues(product, 2) == pytest.approx(expected, abs=5e-5)
    assert dense(product, 2).trace() == pytest.approx(a * a + 1)


def test_cross_entropy_at_zero_weights():
    choices, x = 4, torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    view = PlainView(linear(torch.zeros(choices, 2)))

    def loss(module, x_ND):
        return F.cross_entropy(module(x_ND), torch.tensor([1]))

    values = eigenvalues(hessian(view, Objective((x,), loss)).product, 8)
    assert values[-3:] == pytest.approx([5 / choices] * 3)
    assert sum(values) == pytest.approx((choices - 1) / choices * 5)
    newton = gauss_newton(
        view,
        lambda module, x: module(x),
        lambda out, x: F.cross_entropy(out, torch.tensor([1])),
        (x,),
    )
    assert eigenvalues(newton, 8) == pytest.approx(values)


def test_a_saddle_has_no_negative_gauss_newton_eigenvalue():
    view = PlainView(Parameters(a=[1.0], b=[1.0]))
    plain = hessian(view, Objective((), lambda m: 0.5 * (m.a * m.b - 9).square().sum()))
    newton = gauss_newton(view, lambda m: m.a * m.b, lambda out: 0.5 * (out - 9).square().sum(), ())
    assert min(eigenvalues(plain.product, 2)) < -1
    assert eigenvalues(newton, 2) == pytest.approx([0, 2], abs=1e-9)


def test_on_a_sphere_its_own_bend_counts():
    layer = UnitLinear(3, 1, generator(0)).double()
    layer.weight.data.copy_(torch.tensor([[[1.0, 0, 0]]]))
    view = PlainView(layer)
    scale = torch.tensor([3.0, 2, 0.5], dtype=torch.float64)

    def loss(module):
        return 0.5 * (scale * module.weight[0, 0].square()).sum()

    curvature = hessian(view, Objective((), loss))
    assert eigenvalues(curvature.product, 3) == pytest.approx([0.5, 2, 3])
    assert eigenvalues(on_spheres(view, curvature), 3) == pytest.approx([-2.5, -1, 0], abs=1e-9)


@EVERY_KIND
def test_every_agents_hessian_is_symmetric_and_members_do_not_mix(kind):
    subject, data = subject_with_data(kind, rows=32)
    for view in subject.learning_views():
        curvature = hessian(view, subject.objective(view.role, data.recent))
        shape = curvature.gradient_EP.shape
        u, v = (torch.randn(shape, generator=generator(seed)) for seed in (0, 1))
        for product in (curvature.product, on_spheres(view, curvature)):
            left, right = (u * product(v)).sum(-1), (v * product(u)).sum(-1)
            torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-3 * float(left.abs().max()))
        if view.members > 1:
            v[1] = 0
            assert not curvature.product(v)[1].any()


def test_adams_preconditioner_is_its_own_second_moment():
    # sqrt(v / (1 - 0.999)) + eps = 2 for v = 0.004 after one step.
    product = preconditioned(lambda v: 8 * v, torch.full((1, 2), 0.004, dtype=torch.float64), 1)
    assert product(torch.ones(1, 2, dtype=torch.float64))[0].tolist() == pytest.approx([4, 4])


def test_stability_limits():
    one = torch.tensor(1.0)
    assert stability_of_descent(2.0, one) == 1
    assert stability_of_adam(38.0, one) == pytest.approx(1)
    # Three orthogonal gradients of length 2: H = 4/3 I, trace 4, squared norm 16/3.
    trace, square = torch.tensor(4.0), torch.tensor(16 / 3)
    assert stability_of_sgd(0.5, trace, square, 1) == pytest.approx(1)
    assert stability_of_sgd(1.0, trace, square, 4) == pytest.approx(1)
    assert stability_of_sgd(0.7, trace, square, 1) == pytest.approx(float(0.7 * trace / 2))
