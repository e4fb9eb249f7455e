"""The operator and its public function."""

import dataclasses

import pytest
import torch

from supple.errors import InputError
from supple.kernels.critic_integration import Form, critic_integration, integrate
from supple.kernels.critic_integration.fused import integrate_fused
from supple.kernels.critic_integration.operator import integrate_by_operator
from tests.kernels.fields import BOUNDED, FORMS, PUBLISHED, TINY, exact, problem


@FORMS
def test_torch_finds_it_well_made(form):
    """Schema, fake implementation, autograd registration and tracing with unknown shapes."""
    field, start, condition, time, _ = problem(form, **TINY)
    encoding = form.encoding
    arguments = (
        *(start, condition, time, *field, encoding.low, encoding.high, encoding.kind),
        *(encoding.edges, encoding.sigma_bins, form.activation, form.norm, form.norm_first),
        *(9, torch.float64, True),
    )
    torch.library.opcheck(torch.ops.supple.critic_integration.default, arguments)
    # Noise of any layout gives what the fake implementation promises.
    turned = start.transpose(1, 2).contiguous().transpose(1, 2).detach()
    torch.library.opcheck(torch.ops.supple.critic_integration.default, (turned, *arguments[1:]))


@FORMS
@torch.no_grad()
def test_reductions_are_over_members_then_samples(form):
    field, start, condition, time, _ = problem(form, **TINY)
    each = critic_integration(field, form, start, condition, time)
    mean = critic_integration(field, form, start, condition, time, reduce="mean")
    smallest = critic_integration(field, form, start, condition, time, reduce="min")
    torch.testing.assert_close(mean, each.mean((0, 2)))
    torch.testing.assert_close(smallest, each.min(dim=0).values.mean(-1))
    assert mean.shape == smallest.shape == (TINY["rows"],)


@FORMS
def test_one_graph_with_and_without_the_operator(form):
    field, start, condition, time, _ = problem(form, **TINY)
    for how in (integrate_fused, integrate_by_operator):
        compiled = torch.compile(exact, fullgraph=True, backend="aot_eager")
        found = compiled(form, field, start, condition, time, how)
        torch.testing.assert_close(found, exact(form, field, start, condition, time, how))
        torch.autograd.grad(found.sum(), (start, condition))


def test_endpoint_networks_are_read_too():
    form = Form(encoding=PUBLISHED.encoding, endpoint=True)
    field, start, condition, time, _ = problem(form, **TINY)
    found = critic_integration(field, form, start, condition, time, table_points=0)
    torch.testing.assert_close(found, integrate(field, form, start, condition[:, :, 0], time))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("noise", r"noise must be \(1, 5, 3\) or \(2, 5, 3\), got \(3, 5, 3\)"),
        ("condition", r"condition must be \(2, 5, 16\) or .*, got \(2, 4, 1, 16\)"),
        ("time", r"time must be \(4, 2, 16\), got \(4, 1, 16\)"),
        ("table", "table_points must be 0 .exact. or >= 2, got 1"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(broken, message):
    field, start, condition, time, _ = problem(BOUNDED, **TINY)
    start = start.expand(3, -1, -1) if broken == "noise" else start
    condition = condition[:, :4] if broken == "condition" else condition
    time = time[:, :1] if broken == "time" else time
    points = 1 if broken == "table" else 9
    with pytest.raises(InputError, match=message):
        critic_integration(field, BOUNDED, start, condition, time, table_points=points)


@FORMS
@torch.no_grad()
def test_autocast_reaches_the_products_and_nothing_else(form):
    field, start, condition, time, _ = problem(form, **TINY)
    given = (field.map(torch.Tensor.float), form, start.float(), condition.float(), time.float())
    plain_end = critic_integration(*given)
    asked = critic_integration(*given, products=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(critic_integration(*given), asked)
        assert torch.equal(critic_integration(*given, products=torch.float32), plain_end)
    assert not torch.equal(plain_end, asked)


@FORMS
def test_no_gradient_reaches_weights_or_times(form):
    field, start, condition, time, _ = problem(form, **TINY)
    leaves = [x.detach().requires_grad_() for x in (*field, time) if x is not None]
    given = iter(leaves)
    field = field.map(lambda _: next(given))
    end = critic_integration(field, form, start, condition, leaves[-1])
    found = torch.autograd.grad(end.sum(), leaves, allow_unused=True)
    assert all(each is None for each in found)


def test_nothing_is_saved_where_no_gradient_is_wanted(monkeypatch):
    import supple.kernels.critic_integration.operator as operator

    field, start, condition, time, _ = problem(BOUNDED, **TINY)
    saved, forward = [], operator._forward

    def watched(*inputs):
        saved.append(inputs[-1])
        return forward(*inputs)

    monkeypatch.setattr(operator, "_forward", watched)
    exact(BOUNDED, field, start, condition, time)
    with torch.no_grad():
        exact(BOUNDED, field, start, condition, time)
    assert saved == [True, False]


def test_what_cannot_be_integrated_is_refused():
    field, start, condition, time, _ = problem(BOUNDED, **TINY)
    ends = dataclasses.replace(BOUNDED, endpoint=True)
    with pytest.raises(InputError, match="velocities, not end points"):
        exact(ends, field, start, condition, time)
    with pytest.raises(InputError, match="reduce=mean needs noise samples"):
        critic_integration(field, BOUNDED, start[..., :0], condition, time, reduce="mean")
