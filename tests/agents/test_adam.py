import pytest
import torch

from supple.agents.adam import BETA2, EPS, Adam

SHAPES = [(3, 5, 4), (7,), (1,)]


def gradients(steps, dtype=torch.float32):
    random = torch.Generator().manual_seed(1)
    scale = torch.tensor([1.0, 1e-3, 1e3])
    return [
        tuple(
            (scale[at] * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype)
            for at, shape in enumerate(SHAPES)
        )
        for _ in range(steps)
    ]


def start(dtype=torch.float32):
    random = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in SHAPES]


def rate(step):
    return 3e-4 * (1 + step % 7)


def ours(steps):
    adam = Adam(start())
    for step, found in enumerate(gradients(steps)):
        adam.begin(rate(step), step + 1)
        adam.step(found)
    return adam.params


def torchs(steps, dtype, **options):
    params = [torch.nn.Parameter(value) for value in start(dtype)]
    adam = torch.optim.Adam(params, **options)
    for step, found in enumerate(gradients(steps, dtype)):
        for param, gradient in zip(params, found, strict=True):
            param.grad = gradient
        adam.param_groups[0]["lr"] = rate(step)
        adam.step()
    return [param.detach() for param in params]


def error(params, exact):
    return max((p.double() - e).abs().max().item() for p, e in zip(params, exact, strict=True))


@pytest.mark.parametrize("steps", [1, 2, 60])
def test_steps_are_those_of_torch(steps):
    exact = torchs(steps, torch.float64)
    assert error(ours(steps), exact) <= 2 * error(torchs(steps, torch.float32), exact) + 1e-7


@pytest.mark.parametrize("wrong", [{"betas": (0.9, 0.99)}, {"betas": (0.91, 0.999)}, {"eps": 1e-5}])
def test_another_adam_is_told_apart(wrong):
    """Negative control: the comparison above fails for every other Adam."""
    other = torchs(60, torch.float64, **wrong)
    assert error(ours(60), other) > 2 * error(torchs(60, torch.float32, **wrong), other) + 1e-7


def first_move(root=None):
    """Largest relative error of the first step from 0, where its own digits are seen."""
    found = (torch.tensor([1e-6, -0.3, 7.0, 1e4]),)
    adam = Adam([torch.zeros(4)])
    adam.begin(3e-4, 1)
    if root is not None:
        adam._root.fill_(root)
    adam.step(found)
    exact = found[0].double()
    expected = -3e-4 * exact / (exact.abs() + EPS)
    return (adam.params[0].double() / expected - 1).abs().max().item()


def test_first_step_is_exact_to_float32():
    assert first_move() < 1e-6
    # Negative control: in float32 the correction has four digits less.
    assert first_move(root=(1 - torch.tensor(BETA2)).rsqrt()) > 5e-6


def test_saved_and_loaded_it_continues_with_the_same_bits_in_the_same_tensors():
    one, other = Adam(start()), Adam(start())
    *before, last = gradients(5)
    for number, found in enumerate(before, 1):
        one.begin(1e-3, number)
        one.step(found)
    with torch.no_grad():
        for mine, theirs in zip(other.params, one.params, strict=True):
            mine.copy_(theirs)
    kept = other.tensors()
    other.load_state_dict(one.state_dict())
    assert all(a is b for a, b in zip(kept, other.tensors(), strict=True))
    for adam in (one, other):
        adam.begin(1e-3, 5)
        adam.step(last)
    for mine, theirs in zip(one.tensors(), other.tensors(), strict=True):
        assert torch.equal(mine, theirs)


def test_mean_gradient_norm_of_a_constant_gradient_is_its_norm():
    adam = Adam(start())
    assert adam.mean_gradient_norm(0) == 0
    (found,) = gradients(1)
    for number in range(1, 4):
        adam.begin(1e-3, number)
        adam.step(found)
    norm = torch.cat([gradient.flatten() for gradient in found]).norm()
    assert adam.mean_gradient_norm(3).item() == pytest.approx(norm.item(), rel=1e-5)
