"""Returns, bias, self-excitation and support on episodes worked out by hand."""

import math

import pytest
import torch

from supple.diagnostics.values import (
    horizon_of,
    self_excitation,
    soft_returns,
    support_use,
    value_bias,
)
from supple.errors import InputError


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def episode(reward, *, cost=None, terminated=True, gamma=0.9, tail=None):
    steps = len(reward)
    ended = torch.zeros(steps, dtype=torch.bool)
    ended[-1] = terminated
    cost = tensor(*(cost or [0.0] * steps))
    tail = None if tail is None else tensor(*tail)
    return soft_returns(tensor(*reward), cost, torch.zeros(steps), ended, gamma, tail)


@pytest.mark.parametrize(("gamma", "steps"), [(0.9, 44), (0.97, 152), (0.99, 459), (0.995, 919)])
def test_one_percent_is_left_after_so_many_steps(gamma, steps):
    assert horizon_of(gamma) == steps


def test_the_first_actions_entropy_does_not_count_the_seconds_does():
    found = episode([1.0, 1.0], cost=[5.0, -0.2])
    assert found.return_T.tolist() == pytest.approx([1 + 0.9 * 1.2, 1])
    assert found.usable_T.all()


def test_targets_of_two_steps_pay_for_every_second_action():
    reward, cost, same = [1.0, 2.0, 4.0, 8.0, 16.0], tensor(1, 2, 3, 5, 7), torch.zeros(5)
    ended = torch.tensor([False] * 4 + [True])
    found = soft_returns(tensor(*reward), cost, same, ended, 0.5, n_step=2)
    # By hand: 1 + 2/2 + 4/4 + 8/8 + 16/16, less 3/4 and 7/16 for the third and the fifth action.
    assert found.return_T.tolist() == [5 - 3 / 4 - 7 / 16, 8 - 5 / 4, 12 - 7 / 4, 16, 16]


def test_a_truncated_episode_counts_only_while_enough_of_it_is_left():
    found = episode([1.0] * 50, terminated=False)
    assert found.usable_T.sum() == 50 - 44 + 1
    assert not found.bootstrapped


def test_episodes_truncated_early_borrow_the_critics_tail_and_say_so():
    found = episode([1.0, 1.0], terminated=False, tail=[7.0, 2.0])
    assert found.bootstrapped
    assert found.return_T.tolist() == pytest.approx([1 + 0.9 * 2.8, 1 + 0.9 * 2])
    with pytest.raises(InputError, match="truncated within 44 steps"):
        episode([1.0, 1.0], terminated=False)


def test_one_complete_episode_among_many_cut_ones_is_not_enough():
    episode, done = torch.arange(12) // 2, torch.zeros(12, dtype=torch.bool)
    done[1] = True
    given = (torch.ones(12), torch.zeros(12), episode, done, 0.99, torch.full((12,), 50.0))
    alone, found = soft_returns(*given), soft_returns(*given, least_episodes=2)
    assert alone.usable_T.sum() == 2 and not alone.bootstrapped
    assert found.usable_T.all() and found.bootstrapped


def test_episodes_do_not_run_into_each_other():
    ended = torch.tensor([False, True, True])
    found = soft_returns(tensor(1, 1, 5), tensor(0, 0, 0), tensor(0, 0, 1), ended, 0.9)
    assert found.return_T.tolist() == pytest.approx([1.9, 1, 5])


def test_bias_of_half_on_returns_of_one():
    found = value_bias(tensor(1.5, 1.5), tensor(1.0, 1.0))
    assert found.bias == found.norm == 0.5
    assert math.isnan(found.rank)
    scaled = value_bias(tensor(1.5, 3, 4.5), tensor(1, 2, 3))
    assert scaled.slope == pytest.approx(1 / 1.5)
    assert scaled.rank == pytest.approx(1)
    assert scaled.norm == pytest.approx(0.5)


def test_predictions_of_several_members_are_not_ranked_as_one():
    with pytest.raises(InputError, match=r"got \(2, 3\) and \(3,\)"):
        value_bias(torch.stack((tensor(1, 2, 3), tensor(3, 2, 1))), tensor(1, 2, 3))


def test_returns_around_zero_are_compared_with_their_deviation():
    returns = tensor(-1, 1)
    found = value_bias(returns + 0.5, returns)
    assert found.norm == pytest.approx(0.5 / math.sqrt(2))
    assert found.by_deviation
    assert not value_bias(returns + 0.5, returns + 1).by_deviation
    # Episodes drawn again are read against the same: their mean may be anywhere.
    drawn = value_bias(returns + 1.5, returns + 1, by_deviation=True)
    assert drawn.norm == pytest.approx(0.5 / math.sqrt(2))


@pytest.mark.parametrize(("gamma", "expected"), [(0.4, -0.2), (0.5, 0), (0.9, 0.8)])
def test_a_next_feature_twice_as_large_excites_itself_beyond_gamma_one_half(gamma, expected):
    own, cross = torch.ones(1, 1, 1), torch.full((1, 1, 1), 2.0)
    if expected == 0:
        with pytest.raises(InputError, match="undefined"):
            self_excitation(own, cross, gamma, 1)
        return
    found = self_excitation(own, cross, gamma, 1)
    assert found.seem_E.item() == pytest.approx(expected)
    assert found.norm_E.item() == pytest.approx(math.copysign(1, expected))


def test_gradients_that_are_not_finite_excite_nothing():
    """LAPACK ends the process on some such matrices, and answers with a number on others."""
    own = torch.eye(256)[None].clone()
    own[0, 3, 7] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        self_excitation(own, torch.zeros(1, 256, 256), 0.9, 1)


def test_identical_samples_and_swapped_states():
    three = torch.ones(1, 3, 3)
    found = self_excitation(three, 2 * three, 0.9, 1)
    assert found.seem_E.item() == pytest.approx(2.4)
    assert found.norm_E.item() == pytest.approx(1)
    swap = torch.tensor([[[0.0, 1], [1, 0]]])
    assert self_excitation(torch.eye(2)[None], swap, 0.9, 1).seem_E.item() == pytest.approx(-0.1)


def test_support_edges_use_and_resolution():
    atoms = torch.linspace(-5, 5, 11)
    certain = torch.zeros(21, 11)
    certain[:, 5] = 1
    found = support_use(certain, certain, atoms)
    assert found.edge == found.use == found.resolution == 0
    wide = torch.zeros(2, 11)
    wide[0, 0] = wide[1, 10] = 1
    spread = torch.zeros(2, 11)
    spread[:, 4] = spread[:, 6] = 0.5
    found = support_use(wide, spread, atoms)
    assert found.edge == 1
    assert found.use == pytest.approx(0.9)
    assert found.resolution == pytest.approx(1)
