import copy
import math

import pytest
import torch

from supple.agents.actor import Actor, FoldedPolicy, squashed_sample
from supple.agents.nets import Trunk, UnitBatchNorm, UnitLinear, UnitRMSNorm, project_
from tests.agents.small_agents import generator


def small_trunk(random):
    return Trunk(3, 4, 2, random)


def small_actor(random):
    return Actor(3, 2, hidden=8, blocks=1, generator=random)


def test_unit_batch_norm_by_hand():
    norm = UnitBatchNorm(1, torch.device("cpu"))
    with torch.no_grad():
        norm.scale.fill_(2.0)
        norm.shift.fill_(0.5)
    x = torch.tensor([[[1.0]], [[3.0]], [[5.0]]])  # mean 3, population variance 8/3, unbiased 4
    expected = 2 * (x - 3) / math.sqrt(8 / 3 + 1e-5) + 0.5
    torch.testing.assert_close(norm(x, train=True), expected)
    assert norm.running_mean.item() == pytest.approx(0.01 * 3)
    assert norm.running_var.item() == pytest.approx(0.99 + 0.01 * 4)


def test_eval_batch_norm_uses_the_running_statistics_and_leaves_them():
    norm = UnitBatchNorm(1, torch.device("cpu"))
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(9.0)
    y = norm(torch.tensor([[[5.0]]]), train=False)
    assert y.item() == pytest.approx(3 / math.sqrt(9 + 1e-5))
    assert (norm.running_mean.item(), norm.running_var.item()) == (2.0, 9.0)


def test_unit_rms_norm_by_hand():
    norm = UnitRMSNorm(2, torch.device("cpu"))
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([1.0, 3.0]))
    y = norm(torch.tensor([[[3.0, 4.0]]]))
    rms = math.sqrt(12.5 + 1e-6)
    torch.testing.assert_close(y, torch.tensor([[[3 / rms, 12 / rms]]]))


def test_projection_by_hand():
    linear = UnitLinear(2, 2, generator(0), members=2)
    norm = UnitBatchNorm(2, torch.device("cpu"), members=2)
    gain = UnitRMSNorm(2, torch.device("cpu"), members=2)
    other = linear.weight.detach()[1].clone()  # already has unit rows
    with torch.no_grad():
        linear.weight[0] = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        norm.scale[0] = torch.tensor([1.0, 5.0])
        norm.shift[0] = torch.tensor([5.0, 7.0])  # joint norm 10, wanted sqrt(2)
        gain.scale[0] = torch.tensor([3.0, 4.0])
    project_(torch.nn.ModuleList([linear, norm, gain]))
    rows = torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    torch.testing.assert_close(linear.weight.data, torch.stack((rows, other)))
    one, zero = torch.ones(2), torch.zeros(2)
    for found, first, second in (
        (norm.scale, math.sqrt(2) * torch.tensor([0.1, 0.5]), one),
        (norm.shift, math.sqrt(2) * torch.tensor([0.5, 0.7]), zero),
        (gain.scale, math.sqrt(2) * torch.tensor([0.6, 0.8]), one),
    ):
        torch.testing.assert_close(found.data, torch.stack((first, second)))


def test_trunk_is_the_published_stack():
    trunk = small_trunk(generator(1))
    x = torch.randn(10, 3, generator=generator(2))

    def standard(y):
        return (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()

    h = standard(x) @ trunk.input_linear.weight[0].T
    for block in trunk.block:
        wide = standard(h @ block.linear1.weight[0].T).relu()
        h = h + standard(wide @ block.linear2.weight[0].T).relu()
    expected = h / (h.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(trunk(x, train=True)[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_initial_weights_are_orthogonal_and_differ_between_layers():
    trunk = small_trunk(generator(3))
    wide, narrow = trunk.block[0].linear1.weight[0], trunk.block[0].linear2.weight[0]
    torch.testing.assert_close(wide.T @ wide, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(4), atol=1e-5, rtol=0)
    assert not torch.equal(wide, trunk.block[1].linear1.weight[0])


@pytest.mark.parametrize(("inputs", "actions", "expected"), [(310, 37, 314_678)])
def test_actor_has_the_published_parameter_count(inputs, actions, expected):
    actor = Actor(inputs, actions, hidden=128, blocks=2, generator=generator(4))
    assert sum(p.numel() for p in actor.parameters()) == expected


def test_log_std_is_squashed_into_its_range():
    actor = small_actor(generator(5))
    with torch.no_grad():
        actor.log_std.weight.zero_()
    x = torch.randn(4, 3, generator=generator(6))
    for raw, expected in ((0.0, -4.0), (1e3, 2.0), (-1e3, -10.0), (0.5, -10 + 6 * 1.46211716)):
        with torch.no_grad():
            actor.log_std.bias.fill_(raw)
        _, log_std = actor(x, train=False)
        torch.testing.assert_close(log_std, torch.full((4, 2), expected))


def test_heads_of_the_first_rows_still_use_statistics_of_all_rows():
    actor = small_actor(generator(7))
    twin = copy.deepcopy(actor)
    x = torch.randn(12, 3, generator=generator(8))
    mean, log_std = actor(x, train=True, rows=5)
    all_mean, all_log_std = twin(x, train=True)
    assert torch.equal(mean, all_mean[:5])
    assert torch.equal(log_std, all_log_std[:5])
    assert torch.equal(actor.trunk.input_norm.running_mean, twin.trunk.input_norm.running_mean)


def density_of_action(u, mean, std):
    """p(tanh(u)) in float64: Gaussian density over the numerical slope of tanh."""
    step = 1e-5
    slope = (torch.tanh(u + step) - torch.tanh(u - step)) / (2 * step)
    gaussian = torch.exp(-0.5 * ((u - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    return gaussian / slope


@pytest.mark.parametrize("log_std", [-1.0, 0.0, 1.5])
def test_log_prob_is_the_change_of_variables(log_std):
    u = torch.linspace(-6, 6, 49, dtype=torch.float64)
    mean = torch.linspace(-2, 2, 49, dtype=torch.float64)
    std = math.exp(log_std)
    expected = density_of_action(u, mean, std).log()
    noise = ((u - mean) / std).float()[:, None]
    action, log_prob = squashed_sample(mean.float()[:, None], torch.full((49, 1), log_std), noise)
    torch.testing.assert_close(action[:, 0].double(), u.tanh(), atol=1e-6, rtol=0)
    torch.testing.assert_close(log_prob.double(), expected, atol=2e-5, rtol=2e-5)


def test_log_prob_sums_over_actions():
    mean, noise = torch.randn(2, 5, 3, generator=generator(9))
    log_std = torch.linspace(-2, 1, 15).view(5, 3)
    _, joint = squashed_sample(mean, log_std, noise)
    single = [squashed_sample(mean[:, [a]], log_std[:, [a]], noise[:, [a]])[1] for a in range(3)]
    torch.testing.assert_close(joint, torch.stack(single).sum(0))


def test_gradient_of_log_prob_matches_finite_differences():
    inputs = torch.randn(3, 4, 2, dtype=torch.float64, generator=generator(10))
    mean, log_std, noise = (value.requires_grad_() for value in inputs.clone().unbind())
    assert torch.autograd.gradcheck(squashed_sample, (mean, log_std, noise.detach()))


@pytest.mark.parametrize("u", [-50.0, 50.0])
def test_log_prob_is_finite_far_out_and_right(u):
    action, log_prob = squashed_sample(torch.full((1, 1), u), torch.zeros(1, 1), torch.zeros(1, 1))
    assert action.abs().item() == 1.0
    # log(1 - tanh(u)^2) = 2 ln 2 - 2 |u| for large |u|
    expected = -0.5 * math.log(2 * math.pi) - (2 * math.log(2) - 100.0)
    assert log_prob.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("blocks", [0, 2])
def test_the_folded_policy_is_the_tanh_of_the_mean_and_stays_so(blocks):
    random = generator(11)
    actor = Actor(3, 2, hidden=8, blocks=blocks, generator=random)
    with torch.no_grad():
        for value in (*actor.parameters(), *actor.buffers()):
            value.copy_(torch.rand(value.shape, generator=random) + 0.1)
    x = torch.randn(4, 3, generator=random)
    expected = actor(x, train=False)[0].tanh()
    assert expected.abs().min() < 0.999
    policy = FoldedPolicy(actor)
    with torch.no_grad():
        for value in (*actor.parameters(), *actor.buffers()):
            value.add_(1.0)
    torch.testing.assert_close(policy(x), expected)
    assert not any(value.requires_grad for value in policy.parameters())
