import copy
import math

import pytest
import torch

from supple.agents import FlashSAC, critics
from supple.agents.critics import CategoricalCritic, CriticSize, ScalarCritic, project_to_atoms
from supple.errors import InputError
from tests.agents.small_agents import generator, small_settings, small_spec

ATOMS = torch.linspace(-5, 5, 101)


def size(members=2, inputs=4):
    return CriticSize(inputs=inputs, hidden=8, blocks=1, members=members)


def categorical(members=2, num_atoms=101, value_max=5.0):
    return CategoricalCritic(
        size(members), num_atoms=num_atoms, value_max=value_max, generator=generator(1)
    )


def scalar(members=2):
    return ScalarCritic(size(members), generator=generator(1))


BUILDERS = [categorical, scalar]


def log_probabilities(*rows):
    return torch.tensor(rows).clamp_min(1e-30).log()


def random_distributions(rows, seed=2, atoms=101, dtype=torch.float32):
    logits = torch.randn(rows, atoms, generator=generator(seed), dtype=dtype)
    return logits.softmax(-1)


@pytest.mark.parametrize(("atoms", "end"), [(0, 5.0), (1, 5.0), (11, 0.0), (11, -5.0)])
def test_a_support_that_holds_no_value_is_refused(atoms, end):
    with pytest.raises(InputError, match=f"got {atoms} and {end}"):
        CategoricalCritic(size(2), num_atoms=atoms, value_max=end, generator=generator(1))


# --- projection ---------------------------------------------------------------------------------


def projected(reward, discount, entropy, probability):
    """The target of an ensemble whose only member predicts ``probability``."""
    critic = categorical(members=1)
    return critic.target(
        probability.log()[None],
        torch.tensor([reward]),
        torch.tensor([discount]),
        torch.tensor([entropy]),
    )


def test_terminal_reward_between_two_atoms_splits_linearly():
    target, clipped = projected(0.03, 0.0, 0.0, random_distributions(1))
    expected = torch.zeros(1, 101)
    expected[0, 50], expected[0, 51] = 0.7, 0.3
    torch.testing.assert_close(target, expected, atol=2e-5, rtol=0)
    assert clipped == 0


@pytest.mark.parametrize(("reward", "atom"), [(100.0, 100), (-100.0, 0), (5.0, 100), (-5.0, 0)])
def test_reward_at_or_beyond_the_support_lands_on_the_end_atom(reward, atom):
    target, clipped = projected(
        reward, 0.9 if abs(reward) == 100 else 0.0, 0.0, random_distributions(1)
    )
    expected = torch.zeros(1, 101)
    expected[0, atom] = 1.0
    torch.testing.assert_close(target, expected, atol=1e-5, rtol=0)
    assert clipped.item() == pytest.approx(1.0 if abs(reward) == 100 else 0.0, abs=1e-5)


def test_identity_backup_returns_the_distribution_unchanged():
    probability = random_distributions(1)
    target, _ = projected(0.0, 1.0, 0.0, probability)
    torch.testing.assert_close(target, probability, atol=2e-6, rtol=0)


def test_shift_by_whole_atoms_moves_every_mass():
    probability = torch.zeros(1, 101)
    probability[0, 10], probability[0, 50] = 0.25, 0.75
    moved = project_to_atoms(probability, ATOMS[None] + 0.3, 5.0)
    expected = torch.zeros(1, 101)
    expected[0, 13], expected[0, 53] = 0.25, 0.75
    torch.testing.assert_close(moved, expected, atol=2e-5, rtol=0)


def test_entropy_is_discounted_with_the_value():
    """r + gamma (Q - alpha log pi) with Q = 1, gamma = 0.5, alpha log pi = 0.4, r = 0.2: 0.5."""
    probability = torch.zeros(1, 101)
    probability[0, 60] = 1.0  # value 1
    target, _ = projected(0.2, 0.5, 0.4, probability.clamp_min(1e-30))
    assert (target @ ATOMS).item() == pytest.approx(0.5, abs=1e-5)


def test_clipped_mass_counts_only_what_left_the_support():
    probability = torch.zeros(1, 101).clamp_min(1e-30)
    probability[0, 0], probability[0, 50], probability[0, 95] = 0.2, 0.5, 0.3
    _, clipped = projected(1.0, 1.0, 0.0, probability)  # -4, 1, 5.5
    assert clipped.item() == pytest.approx(0.3, abs=1e-5)


def dense_projection(probability, position, value_max):
    """t_j = sum_k p_k max(0, 1 - |z_k - z_j| / spacing), in float64."""
    atoms = torch.linspace(-value_max, value_max, position.shape[1], dtype=torch.float64)
    position = position.double().clamp(-value_max, value_max)
    distance = (position[:, :, None] - atoms).abs() / (atoms[1] - atoms[0])
    return (probability.double()[:, :, None] * (1 - distance).clamp_min(0)).sum(1)


@pytest.mark.parametrize(("atoms", "value_max"), [(101, 5.0), (51, 20.0), (2, 1.0), (64, 3.7)])
def test_projection_agrees_with_the_dense_form(atoms, value_max):
    random = generator(3)
    # The largest single mass stays small, as a rounding of the position is multiplied by it.
    probability = random_distributions(64, atoms=atoms)
    grid = torch.linspace(-value_max, value_max, atoms)
    reward = 0.3 * value_max * torch.randn(64, 1, generator=random)
    position = reward + torch.rand(64, 1, generator=random) * grid
    ours = project_to_atoms(probability, position, value_max)
    torch.testing.assert_close(
        ours.double(), dense_projection(probability, position, value_max), atol=1e-6, rtol=1e-5
    )
    exact = project_to_atoms(probability.double(), position.double(), value_max)
    torch.testing.assert_close(
        exact, dense_projection(probability, position, value_max), atol=1e-12, rtol=0
    )


def test_a_gpu_adds_the_same_masses_in_a_fixed_order():
    probability = random_distributions(64)
    position = 9 * torch.rand(64, 101, generator=generator(5)) - 3  # many beyond the top end
    position[0, 3] = float("nan")
    lower = position.clamp(-5, 5).add(5).mul(10).floor().nan_to_num(0).long()
    given = (probability * 0.7, lower, probability * 0.3, (lower + 1).clamp(max=100))
    given[0][0, 3] = float("nan")
    torch.testing.assert_close(
        critics._added_in_order(*given), critics._scattered(*given), equal_nan=True
    )


def test_dense_form_with_another_spacing_disagrees():
    """Negative control: the comparison above notices a grid that is one per cent wider."""
    probability, position = random_distributions(8), 0.7 * ATOMS.expand(8, -1) + 0.2
    ours = project_to_atoms(probability, position, 5.0).double()
    assert (ours - dense_projection(probability, position, 5.05)).abs().max() > 1e-4


def test_projection_conserves_mass_and_unclipped_mean():
    random = generator(4)
    probability = random_distributions(200).double()
    reward = 0.5 * torch.randn(200, 1, generator=random, dtype=torch.float64)
    position = reward + 0.6 * ATOMS.double()
    assert position.abs().max() <= 5
    result = project_to_atoms(probability, position, 5.0)
    torch.testing.assert_close(result.sum(1), torch.ones(200, dtype=torch.float64))
    mean = (probability * position).sum(1)
    torch.testing.assert_close(
        result @ torch.linspace(-5, 5, 101, dtype=torch.float64), mean, atol=1e-12, rtol=0
    )


# --- ensemble -----------------------------------------------------------------------------------


def test_target_takes_the_whole_distribution_of_the_lower_member_per_row():
    critic = categorical(num_atoms=3, value_max=1.0)
    wide, right, left = (0.5, 0.0, 0.5), (0.0, 0.5, 0.5), (0.6, 0.3, 0.1)
    prediction = log_probabilities([wide, right], [right, left])  # means 0, .5 and .5, -.5
    target, _ = critic.target(prediction, torch.zeros(2), torch.ones(2), torch.zeros(2))
    torch.testing.assert_close(target, torch.tensor([wide, left]), atol=1e-6, rtol=0)


def test_ties_go_to_the_first_member():
    critic = categorical(num_atoms=3, value_max=1.0)
    prediction = log_probabilities([(0.5, 0.0, 0.5)], [(0.25, 0.5, 0.25)])
    target, _ = critic.target(prediction, torch.zeros(1), torch.ones(1), torch.zeros(1))
    torch.testing.assert_close(target, torch.tensor([[0.5, 0.0, 0.5]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("members", [1, 3])
def test_target_looks_at_every_member(members):
    critic = categorical(members=members, num_atoms=3, value_max=1.0)
    rows = torch.eye(3)[:members].flip(0)  # the last member is the lowest
    target, _ = critic.target(
        rows.clamp_min(1e-30).log()[:, None], torch.zeros(1), torch.ones(1), torch.zeros(1)
    )
    torch.testing.assert_close(target, torch.tensor([[1.0, 0.0, 0.0]]), atol=1e-6, rtol=0)


def part_of(value, member):
    """What belongs to one member; statistics of the common input belong to all."""
    return value if len(value) == 1 else value[member : member + 1]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("train", [True, False])
def test_ensemble_equals_independent_single_critics(build, train):
    ensemble = build(2)
    assert not torch.equal(*ensemble.head.weight)
    singles = []
    for at in range(2):
        single = build(1)
        single.load_state_dict({key: part_of(v, at) for key, v in ensemble.state_dict().items()})
        singles.append(single)
    x = torch.randn(10, 4, generator=generator(5))
    prediction = ensemble(x, train=train)
    target = torch.full_like(prediction[0], 1 / 101)
    loss = ensemble.loss(prediction, target)
    loss.backward()
    total = 0.0
    for at, single in enumerate(singles):
        alone = single(x, train=train)
        torch.testing.assert_close(prediction[at], alone[0])
        own = single.loss(alone, target)
        own.backward()
        total += own.item() / 2
        for (name, mine), theirs in zip(
            ensemble.named_parameters(), single.parameters(), strict=True
        ):
            torch.testing.assert_close(
                2 * part_of(mine.grad, at), theirs.grad, atol=1e-6, rtol=1e-5, msg=name
            )
        for mine, theirs in zip(ensemble.trunk.buffers(), single.trunk.buffers(), strict=True):
            torch.testing.assert_close(part_of(mine, at), theirs, atol=1e-7, rtol=1e-6)
            assert train or torch.equal(part_of(mine, at), theirs)
    assert loss.item() == pytest.approx(total, rel=1e-6)


def test_both_critics_have_the_published_parameter_count():
    critic = CategoricalCritic(
        CriticSize(inputs=310 + 37, hidden=256, blocks=2, members=2),
        num_atoms=101,
        value_max=5.0,
        generator=generator(6),
    )
    assert sum(p.numel() for p in critic.parameters()) == 2_338_870


# --- values and losses --------------------------------------------------------------------------


def test_categorical_value_is_the_mean_over_evenly_spaced_atoms():
    critic = categorical()
    torch.testing.assert_close(critic.atoms, ATOMS)
    probability = torch.zeros(1, 1, 101)
    probability[..., 0], probability[..., 100], probability[..., 70] = 0.25, 0.25, 0.5
    assert critic.value(probability.clamp_min(1e-30).log()).item() == pytest.approx(1.0, abs=1e-5)


def test_cross_entropy_by_hand():
    critic = categorical(num_atoms=3, value_max=1.0)
    prediction = log_probabilities([(0.5, 0.25, 0.25)], [(0.2, 0.2, 0.6)])
    loss = critic.loss(prediction, torch.tensor([[0.5, 0.0, 0.5]]))
    members = -0.5 * (math.log(0.5) + math.log(0.25)), -0.5 * (math.log(0.2) + math.log(0.6))
    assert loss.item() == pytest.approx(sum(members) / 2, rel=1e-6)


def test_initial_categorical_predictions_come_from_logits_plus_bias():
    critic = categorical(num_atoms=3, value_max=1.0)
    with torch.no_grad():
        critic.head.weight.zero_()
        critic.head.bias.copy_(torch.tensor([0.0, math.log(2), 0.0]))
    prediction = critic(torch.randn(5, 4, generator=generator(7)), train=True)
    expected = torch.tensor([0.25, 0.5, 0.25]).log().expand(2, 5, 3)
    torch.testing.assert_close(prediction, expected)


def test_scalar_target_by_hand():
    critic = scalar()
    prediction = torch.tensor([[1.0, 4.0], [2.0, 3.0]])
    target, clipped = critic.target(
        prediction, torch.tensor([0.5, -1.0]), torch.tensor([0.9, 0.0]), torch.tensor([0.1, 7.0])
    )
    torch.testing.assert_close(target, torch.tensor([0.5 + 0.9 * (1.0 - 0.1), -1.0]))
    assert clipped == 0
    beyond, _ = critic.target(prediction, torch.tensor([1e3, 0]), torch.ones(2), torch.zeros(2))
    torch.testing.assert_close(beyond, torch.tensor([1001.0, 3.0]))


def test_scalar_loss_by_hand():
    loss = scalar().loss(torch.tensor([[1.0, 4.0], [2.0, 3.0]]), torch.tensor([1.0, 2.0]))
    assert loss.item() == pytest.approx(0.5 * (0 + 4 + 1 + 1) / 4)


def test_scalar_value_is_the_prediction():
    critic = scalar()
    prediction = critic(torch.randn(5, 4, generator=generator(8)), train=True)
    assert prediction.shape == (2, 5)
    assert torch.equal(critic.value(prediction), prediction)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("rows", [slice(4), slice(4, None)])
def test_predictions_for_some_rows_use_statistics_of_all(build, rows):
    critic = build()
    twin = copy.deepcopy(critic)
    x = torch.randn(10, 4, generator=generator(9))
    torch.testing.assert_close(critic(x, train=True, rows=rows), twin(x, train=True)[:, rows])
    for mine, theirs in zip(critic.buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_mass_at_no_place_spoils_no_other_row():
    probability = torch.full((2, 5), 0.2)
    position = torch.linspace(-1, 1, 5).repeat(2, 1)
    position[0, 2] = float("nan")
    found = project_to_atoms(probability, position, 1.0)
    assert found[0].isnan().any()
    torch.testing.assert_close(found[1], probability[1])


class Odd(ScalarCritic):
    """Right but for one function."""

    wrong = ""

    def climbed(self, prediction, uniform_BR=None):
        good = super().climbed(prediction, uniform_BR)
        return prediction if self.wrong == "climbed" else good

    def target(self, *inputs):
        target_B, outside = super().target(*inputs)
        changed = {
            "pair": target_B,
            "target": (target_B[:, None] + target_B, outside),
            "outside": (target_B, outside.expand(len(target_B))),
        }
        return changed.get(self.wrong, (target_B, outside))

    def loss(self, prediction, target, uniform_BR=None):
        if self.wrong == "gradient":
            return torch.tensor(prediction.mean().item())
        return (prediction - target) ** 2 if self.wrong == "loss" else prediction.mean()


class OddSAC(FlashSAC):
    wrong = ""

    def build_critic(self, size, generator):
        if self.wrong == "nothing":
            return None
        critic = Odd(size, generator=generator)
        critic.wrong = self.wrong
        if self.wrong == "joins":
            critic.joins = "avg"  # type: ignore[assignment]
        return critic


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("nothing", "OddSAC.build_critic returned NoneType, expected a supple.agents.critics"),
        ("climbed", r"Odd.climbed gave \(2, 4\), expected \(4,\), rows"),
        ("pair", r"Odd.target gave \(4,\), expected a pair"),
        ("target", r"Odd.target gave \(5, 5\), expected \(5, 4\) as before"),
        ("outside", r"Odd.target gave .*, expected a fraction out of range that is 0-d"),
        ("loss", r"Odd.loss gave \(2, 4\), expected one number, 0-d"),
        ("gradient", r"Odd.loss gave .*, expected one with a gradient: read no value back"),
        ("joins", "Odd.joins is 'avg', expected 'min' or 'mean'"),
    ],
)
def test_a_critic_of_ones_own_with_other_shapes_is_refused(monkeypatch, wrong, text):
    monkeypatch.setattr(OddSAC, "wrong", wrong)
    with pytest.raises(InputError, match=text):
        OddSAC(small_spec(), small_settings(), total_env_steps=100)


class Frozen(ScalarCritic):
    """Takes no gradients where batch norm does not train."""

    def forward(self, x_MD, *, train, rows=slice(None)):
        with torch.set_grad_enabled(train and torch.is_grad_enabled()):
            return super().forward(x_MD, train=train, rows=rows)


class FrozenSAC(FlashSAC):
    def build_critic(self, size, generator):
        return Frozen(size, generator=generator)


def test_a_critic_of_ones_own_is_tried_as_it_trains_and_left_as_it_was():
    agent = FrozenSAC(small_spec(), small_settings(), total_env_steps=100)
    plain = FlashSAC(small_spec(), small_settings(critic="scalar"), total_env_steps=100)
    for own, other in zip(agent.critic.buffers(), plain.critic.buffers(), strict=True):
        assert torch.equal(own, other)
    with torch.inference_mode():  # as a policy is loaded
        FrozenSAC(small_spec(), small_settings(), total_env_steps=100)


def test_an_agent_that_builds_its_critic_says_that_the_flag_chooses_none():
    assert not OddSAC(small_spec(), small_settings(), total_env_steps=100).remark
    agent = OddSAC(small_spec(), small_settings(critic="scalar"), total_env_steps=100)
    assert agent.remark.startswith("OddSAC builds its critic itself: --agent.critic scalar")
