import pytest
import torch
from torch import nn

from supple.agents.mlp import NORMALISER_EPS, Network, ObservationNormaliser

WIDTH, MEMORY, OUTPUTS, STEPS, SEQUENCES = 5, 6, 3, 9, 4


def network(memory=MEMORY, **changes):
    options = {
        "hidden": (8,),
        "activation": "tanh",
        "memory": memory,
        "normalise": False,
        "output_gain": 1.0,
        "generator": torch.Generator().manual_seed(1),
    }
    return Network(WIDTH, OUTPUTS, **{**options, **changes})


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_memory_advances_as_torchs_gru():
    net = network()
    gru = nn.GRU(WIDTH, MEMORY)
    assert net.cell is not None
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        net_bias = getattr(net.cell, name)
        net_bias.data.add_(0.1 * torch.randn_like(net_bias))
        getattr(gru, f"{name}_l0").data.copy_(net_bias)
    obs, state = numbers(2, STEPS, SEQUENCES, WIDTH), numbers(3, SEQUENCES, MEMORY)
    expected, last = gru(obs, state[None])
    fresh = torch.zeros(STEPS * SEQUENCES, 1)
    found = net.unroll(obs.flatten(0, 1), state, fresh)
    torch.testing.assert_close(found, net.layers(expected.flatten(0, 1)))
    step = state
    for t in range(STEPS):
        out, step = net.step(obs[t], step)
        torch.testing.assert_close(out, found.view(STEPS, SEQUENCES, -1)[t])
    torch.testing.assert_close(step, last[0])


def test_an_episode_begins_with_an_empty_memory():
    net = network()
    obs = numbers(2, STEPS, SEQUENCES, WIDTH)
    fresh = torch.zeros(STEPS, SEQUENCES, 1)
    fresh[4, 2] = 1
    found = net.unroll(obs.flatten(0, 1), numbers(3, SEQUENCES, MEMORY), fresh.flatten(0, 1))
    alone = net.unroll(obs[4:, 2], torch.zeros(1, MEMORY), torch.zeros(STEPS - 4, 1))
    torch.testing.assert_close(found.view(STEPS, SEQUENCES, -1)[4:, 2], alone)
    # No gradient reaches back over the episode's end.
    leaf = obs.clone().requires_grad_(True)
    found = net.unroll(leaf.flatten(0, 1), torch.zeros(SEQUENCES, MEMORY), fresh.flatten(0, 1))
    (gradient,) = torch.autograd.grad(found.view(STEPS, SEQUENCES, -1)[8].sum(), leaf)
    assert not gradient[:4, 2].any()
    assert gradient[:4, 1].any()


def test_weights_start_orthogonal_with_zero_bias():
    net = network(memory=0, output_gain=0.01)
    first, last = net.layers[0], net.layers[-1]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    torch.testing.assert_close(first.weight.T @ first.weight, 2 * torch.eye(WIDTH))
    torch.testing.assert_close(last.weight @ last.weight.T, 1e-4 * torch.eye(OUTPUTS))
    assert not first.bias.any()


@pytest.mark.parametrize("batches", [1, 5])
def test_normaliser_has_the_moments_of_all_valid_rows(batches):
    normaliser = ObservationNormaliser(WIDTH, enabled=True)
    rows = 1000 + 3 * numbers(1, 60, WIDTH) * torch.arange(WIDTH)
    valid = torch.rand(60, generator=torch.Generator().manual_seed(2)) < 0.7
    rows[~valid] = float("nan")
    for part, mask in zip(rows.chunk(batches), valid.chunk(batches), strict=True):
        normaliser.observe(part, mask)
    kept = rows[valid].double()
    torch.testing.assert_close(normaliser.mean, kept.mean(0).float())
    std = kept.std(0, unbiased=False).float()
    torch.testing.assert_close(normaliser.std, std)
    torch.testing.assert_close(
        normaliser(rows[valid]), (rows[valid] - normaliser.mean) / (std + NORMALISER_EPS)
    )


def test_a_normaliser_that_is_off_or_saw_nothing_changes_nothing():
    x = numbers(1, 4, WIDTH)
    off = ObservationNormaliser(WIDTH, enabled=False)
    off.observe(x, torch.ones(4, dtype=torch.bool))
    assert torch.equal(off(x), x)
    empty = ObservationNormaliser(WIDTH, enabled=True)
    empty.observe(x, torch.zeros(4, dtype=torch.bool))
    assert torch.isfinite(empty(x)).all()
