"""The operator and its public function."""

import dataclasses
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import supple.kernels.critic_integration.operator as operator
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


def changed(field, name, change):
    return field._replace(**{name: change(getattr(field, name))})


def short(x):
    return x[..., :-1]


def half(x):
    return x.half()


@pytest.mark.parametrize(
    ("broken", "change", "message"),
    [
        ("start", lambda x: x.expand(3, -1, -1), r"noise must be \(1, 5, 3\) or \(2, 5, 3\), got"),
        ("start", lambda x: x[0], r"noise must have 3 axes, got \(5, 3\)"),
        ("condition", lambda x: x[:, :4], r"condition must be \(2, 5, 16\) or .*\(2, 4, 1, 16\)"),
        ("time", lambda x: x[:, :1], r"time must be \(4, 2, 16\), got \(4, 1, 16\)"),
        ("value_EHZ", short, r"value_EHZ must be \(2, 16, 50\), got \(2, 16, 49\)"),
        ("hidden_LEHH", short, r"hidden_LEHH must be \(1, 2, 16, 16\), got \(1, 2, 16, 15\)"),
        ("hidden_LEHH", lambda x: x[0], r"hidden_LEHH must have 4 axes, got \(2, 16, 16\)"),
        ("bias_LEH", short, r"bias_LEH must be \(1, 2, 16\), got \(1, 2, 15\)"),
        ("gain_LEH", lambda x: x[:2], r"gain_LEH must be \(3, 2, 16\), got \(2, 2, 16\)"),
        ("out_EH", lambda x: x[0], r"out_EH must have 2 axes, got \(16,\)"),
        ("out_bias_E", short, r"out_bias_E must be \(2,\), got \(1,\)"),
        ("start", half, r"noise must be torch.float64 on cpu, .* got torch.float16 on cpu"),
        ("bias_LEH", half, r"bias_LEH must be torch.float64 on cpu, .* got torch.float16 on cpu"),
        ("time", lambda x: x.to("meta"), r"time must be torch.float64 on cpu, .* on meta"),
    ],
)
def test_what_does_not_belong_together_is_refused(broken, change, message):
    field, start, condition, time, _ = problem(BOUNDED, **TINY)
    inputs = {"start": start, "condition": condition, "time": time}
    if broken in inputs:
        inputs[broken] = change(inputs[broken])
    else:
        field = changed(field, broken, change)
    with pytest.raises(InputError, match=f"critic_integration: .*{message}"):
        critic_integration(field, BOUNDED, *inputs.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table_points": 1}, "table_points must be 0 .exact. or >= 2, got 1"),
        ({"products": torch.int8}, "products must be a floating dtype, got torch.int8"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    field, start, condition, time, _ = problem(BOUNDED, **TINY)
    with pytest.raises(InputError, match=message):
        critic_integration(field, BOUNDED, start, condition, time, **options)


def test_on_cuda_weights_are_float32():
    field, start, condition, time, _ = problem(BOUNDED, **TINY)

    def there(part):
        return torch.empty(part.shape, dtype=part.dtype, device="cuda")

    with FakeTensorMode():  # needs no GPU
        given = (there(start), there(condition), there(time))
        with pytest.raises(InputError, match=r"on cuda:0 must be float32, got torch.float64"):
            critic_integration(field.map(there), BOUNDED, *given)


@FORMS
@torch.no_grad()
def test_an_autocast_around_it_changes_nothing(form):
    field, start, condition, time, _ = problem(form, **TINY)
    given = (field.map(torch.Tensor.float), form, start.float(), condition.float(), time.float())
    end = critic_integration(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(critic_integration(*given), end)
    asked = critic_integration(*given, products=torch.bfloat16)
    assert asked.dtype == torch.float32
    assert not torch.equal(asked, end)


@pytest.fixture
def operator_calls(monkeypatch):
    """The public function takes the operator here, too; the inputs of every call of it."""
    calls, forward = [], operator._forward

    def watched(*inputs):
        calls.append(inputs)
        return forward(*inputs)

    monkeypatch.setattr(operator, "OPERATOR_DEVICES", ("cpu",))
    monkeypatch.setattr(operator, "_forward", watched)
    return calls


@pytest.mark.parametrize("width", [operator.WIDEST, operator.WIDEST + 2])
def test_a_network_wider_than_the_shipped_tiles_takes_the_plain_form(operator_calls, width):
    sizes = TINY | {"width": width, "rows": 1, "samples": 1, "steps": 1, "members": 1}
    field, start, condition, time, _ = problem(BOUNDED, **sizes)
    critic_integration(field, BOUNDED, start, condition, time)
    assert len(operator_calls) == (width <= operator.WIDEST)


def of_condition(form, how=critic_integration):
    """z_K as a function of the condition, a condition and a direction."""
    field, start, condition, time, _ = problem(form, **TINY)

    def end(c):
        return how(field, form, start.detach(), c, time, table_points=0)

    condition = condition.detach()
    return end, condition, condition.flip(0)


def by_dual_numbers(function, x, direction):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction))).tangent


DERIVATIVES = {
    "jvp": lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1],
    "dual": by_dual_numbers,
    "grad": lambda f, x, v: torch.func.grad(lambda c: f(c).sum())(x),
    "vmap of grad": lambda f, x, v: torch.func.vmap(torch.func.grad(lambda c: f(c).sum()))(
        torch.stack((x, v))
    ),
}


@FORMS
@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
def test_derivatives_that_the_operator_does_not_know_take_the_plain_form(
    operator_calls, form, derivative
):
    found = derivative(*of_condition(form))
    torch.testing.assert_close(found, derivative(*of_condition(form, integrate_fused)))
    assert found.abs().sum() > 0
    assert not operator_calls


def test_the_operator_itself_refuses_derivatives_that_it_does_not_know():
    end, condition, direction = of_condition(BOUNDED, partial(integrate_by_operator, products=None))
    with pytest.raises(InputError, match=r"knows no torch.func transforms .* integrate_fused does"):
        torch.func.jvp(end, (condition,), (direction,))


@FORMS
def test_a_second_derivative_through_the_operator_is_refused_in_one_line(operator_calls, form):
    end, condition, direction = of_condition(form)
    condition.requires_grad_()
    (slope,) = torch.autograd.grad(end(condition).sum(), condition, create_graph=True)
    assert len(operator_calls) == 1
    with pytest.raises(InputError, match="is differentiated once: take integrate, the definition"):
        torch.autograd.grad((slope * direction).sum(), condition)


@FORMS
def test_no_gradient_reaches_weights_or_times(form):
    field, start, condition, time, _ = problem(form, **TINY)
    leaves = [x.detach().requires_grad_() for x in (*field, time) if x is not None]
    given = iter(leaves)
    field = field.map(lambda _: next(given))
    end = critic_integration(field, form, start, condition, leaves[-1])
    found = torch.autograd.grad(end.sum(), leaves, allow_unused=True)
    assert all(each is None for each in found)


def test_nothing_is_saved_where_no_gradient_is_wanted(operator_calls):
    field, start, condition, time, _ = problem(BOUNDED, **TINY)
    exact(BOUNDED, field, start, condition, time)
    with torch.no_grad():
        exact(BOUNDED, field, start, condition, time)
    assert [inputs[-1] for inputs in operator_calls] == [True, False]


def test_end_points_are_none_of_the_operators():
    field, start, condition, time, _ = problem(BOUNDED, **TINY)
    ends = dataclasses.replace(BOUNDED, endpoint=True)
    with pytest.raises(InputError, match="knows no end points: integrate_fused does"):
        exact(ends, field, start, condition, time)
