import math

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution
from torch.distributions import kl_divergence as torch_kl

from supple.agents.distributions import Categorical, Gaussian, SquashedGaussian, bounded

ROWS, ACTIONS = 7, 3


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(kind=Gaussian, *, state_dependent=True):
    return kind(ACTIONS, initial_std=0.5, state_dependent=state_dependent)


def as_torch(params):
    mean, log_std = params.chunk(2, dim=-1)
    return Independent(Normal(mean, log_std.exp()), 1)


def test_gaussian_equals_torchs():
    family = gaussian()
    old, new = (family.params(numbers(seed, ROWS, 2 * ACTIONS)) for seed in (1, 2))
    draw = family.sample(new, numbers(3, ROWS, ACTIONS))
    torch.testing.assert_close(family.log_prob(new, draw), as_torch(new).log_prob(draw))
    torch.testing.assert_close(family.entropy(new, draw), as_torch(new).entropy())
    torch.testing.assert_close(family.divergence(old, new), torch_kl(as_torch(old), as_torch(new)))
    assert torch.equal(family.draw_of(family.action(draw)), draw)


def test_categorical_equals_torchs():
    family = Categorical(5)
    old, new = (family.params(numbers(seed, ROWS, 5)) for seed in (1, 2))
    theirs = [TorchCategorical(logits=params) for params in (old, new)]
    choice = torch.arange(ROWS) % 5
    draw = family.draw_of(choice)
    assert torch.equal(family.action(draw), choice)
    torch.testing.assert_close(family.log_prob(new, draw), theirs[1].log_prob(choice))
    torch.testing.assert_close(family.entropy(new, draw), theirs[1].entropy())
    torch.testing.assert_close(family.divergence(old, new), torch_kl(*theirs))


def test_categorical_draws_have_their_probabilities():
    family = Categorical(3)
    params = family.params(torch.tensor([0.6, 0.3, 0.1]).log()).expand(100_000, 3)
    uniform = torch.rand(100_000, 3, generator=torch.Generator().manual_seed(1))
    uniform[0], uniform[1, 0] = 0.0, 1 - 2**-24  # what torch.rand may return
    drawn = family.action(family.sample(params, uniform))
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(share, torch.tensor([0.6, 0.3, 0.1]), atol=0.005, rtol=0)


def test_squashed_probability_ratio_and_divergence_are_those_of_the_actions():
    family = gaussian(SquashedGaussian)
    old, new = (family.params(numbers(seed, ROWS, 2 * ACTIONS)) for seed in (1, 2))
    draw = family.sample(old, numbers(3, ROWS, ACTIONS))
    action = family.action(draw)
    assert (action.abs() < 1).all()
    theirs = [TransformedDistribution(as_torch(p), [TanhTransform()]) for p in (old, new)]
    expected = theirs[1].log_prob(action) - theirs[0].log_prob(action)
    ours = family.log_prob(new, draw) - family.log_prob(old, draw)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)  # theirs inverts tanh


def test_squashed_entropy_is_unbiased():
    family = gaussian(SquashedGaussian)
    params = family.params(numbers(1, 1, 2 * ACTIONS)).expand(200_000, -1)
    noise = numbers(4, 200_000, ACTIONS)
    theirs = TransformedDistribution(as_torch(params), [TanhTransform(cache_size=1)])
    torch.manual_seed(0)
    expected = -theirs.log_prob(theirs.sample()).mean()
    torch.testing.assert_close(family.entropy(params, noise).mean(), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("state_dependent", [True, False])
def test_a_standard_deviation_cannot_leave_its_bounds(state_dependent):
    family = gaussian(state_dependent=state_dependent)
    for push in (-1e9, 1e9):
        if not state_dependent:
            family.log_std.data.fill_(push)
        head = torch.full((ROWS, family.head_width), push)
        std = family.params(head).chunk(2, dim=-1)[1].exp()
        assert (std >= 0.999e-3).all()
        assert (std <= 10.001).all()


def test_standard_deviation_begins_where_it_was_asked_to():
    for state_dependent in (True, False):
        family = gaussian(state_dependent=state_dependent)
        params = family.params(torch.zeros(1, family.head_width))
        assert params[0, ACTIONS:].tolist() == pytest.approx([math.log(0.5)] * ACTIONS)
        assert float(family.spread(params)) == pytest.approx(0.5)


def test_modes():
    head = numbers(1, ROWS, 2 * ACTIONS)
    assert torch.equal(gaussian().mode(head), head[:, :ACTIONS])
    assert torch.equal(gaussian(SquashedGaussian).mode(head), head[:, :ACTIONS].tanh())
    assert torch.equal(Categorical(6).mode(head), head.argmax(-1))


def test_a_standard_deviation_finds_back_from_beyond_its_bounds():
    low, high = -1.0, 2.0
    x = torch.tensor([-3.0, -3.0, 0.5, 2.0, 5.0, 5.0], requires_grad=True)
    found = bounded(x, low, high)
    assert found.tolist() == [-1.0, -1.0, 0.5, 2.0, 2.0, 2.0]
    # Descent moves against the gradient: what leads further out is dropped, what leads back stays.
    found.backward(torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0, -1.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [-1.0, 0.0, 1.0, -1.0, 1.0, 0.0]
