"""The referee, and what old and new features serve, on models whose answers are known."""

import math

import pytest
import torch
from torch import nn

from supple.agents.flow_critics import PublishedFlowCritic
from supple.agents.mlp import Network
from supple.diagnostics.context import Context
from supple.diagnostics.data import DataSets
from supple.diagnostics.suite import learning
from supple.diagnostics.trainability import (
    Probe,
    fit,
    fit_gap,
    linear_r2,
    new_targets,
    overwriting,
    room_for,
)
from supple.errors import InputError
from tests.agents.small_agents import generator
from tests.diagnostics.plain import PlainView
from tests.diagnostics.subjects import subject_with_data


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


@pytest.mark.parametrize("family", ["smooth", "hash"])
def test_targets_have_mean_zero_and_variance_one(family):
    found = new_targets(normal(500, 2), family)
    torch.testing.assert_close(found.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(0, correction=0), torch.ones(2))


def test_hashed_targets_are_unrelated_to_their_smooth_ones():
    value = normal(2000, 1)
    pair = torch.cat((new_targets(value, "smooth"), new_targets(value, "hash")), dim=-1)
    assert abs(torch.corrcoef(pair.mT)[0, 1]) < 0.1


def test_targets_stay_within_four_fifths_of_the_value_range():
    output, target = torch.full((1, 4, 1), 2.0), torch.tensor([[2.0], [-1], [0], [1]])
    assert room_for(output, target, torch.ones(1), None) == 1
    assert room_for(output, target, torch.ones(1), 5.0) == 1
    assert room_for(output, target, torch.ones(1), 3.0) == pytest.approx((2.4 - 2) / 2)
    with pytest.raises(InputError, match="no room for new targets"):
        room_for(output, target, torch.ones(1), 2.0)


def test_a_gap_is_the_part_of_the_fresh_networks_gain_that_is_missing():
    found = fit_gap(torch.tensor([0.6, 0.6]), torch.tensor([[0.2, 0.2], [0.2, 0.2]]), generator(0))
    assert found.gap == pytest.approx(0.5)
    assert found.ci95 == pytest.approx((0.5, 0.5))
    wide = fit_gap(torch.tensor([0.4, 0.8]), torch.tensor([[0.1, 0.3], [0.2, 0.2]]), generator(0))
    assert wide.ci95[0] < 0.5 < wide.ci95[1]
    with pytest.raises(InputError, match="probe is too hard"):
        fit_gap(torch.tensor([0.99]), torch.tensor([[0.95]]), generator(0))


def deaden(view):
    """Every hidden ReLU far below 0: only the last bias still reaches the output."""
    layers = [layer for layer in view.module.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in layers[:-1]:
            layer.bias.fill_(-1e4)


def gap_of(subject, data, role, probe, *, functions=2, twins=1):
    x_ND = subject.inputs(role, data)
    view = subject.views[role]
    fresh = [subject.fresh(number, data).views[role] for number in range(twins)]
    targets = []
    for j in range(functions):
        twin = subject.fresh(100 + j, data).views[role]
        with torch.no_grad():
            targets.append(new_targets(twin.outputs(twin.module, x_ND)[0], "smooth"))
    target_JNW = torch.stack(targets)
    scale_JW = torch.full((functions, target_JNW.shape[-1]), 0.5)
    random = [generator(j) for j in range(functions)]
    error_JC = fit((view, *fresh), x_ND, target_JNW, scale_JW, probe, generators=random)[0].mean(-1)
    return fit_gap(error_JC[:, 0], error_JC[:, 1:], generator(0))


def test_a_network_whose_units_are_all_dead_has_a_gap_of_one():
    subject, data = subject_with_data("ppo", rows=512)
    deaden(subject.views["value"])
    found = gap_of(subject, data.recent, "value", Probe(steps=150, batch_size=128, rate=3e-3))
    assert found.gap == pytest.approx(1, abs=0.02)
    assert found.fresh_error < 0.6


# The actors of all FlashSAC kinds are the same; flows take several passes a step.
COLLAPSIBLE = [
    ("categorical", "critic"),
    ("scalar", "critic"),
    ("scalar", "actor"),
    pytest.param("flow", "critic", marks=pytest.mark.slow),
    pytest.param("flow_official", "critic", marks=pytest.mark.slow),
    ("ppo", "value"),
]
ROLES = [*COLLAPSIBLE, ("ppo", "actor"), ("ppo_discrete", "actor")]


def measured_gap(kind, role, monkeypatch, damage=None):
    """What the coarse suite says of a small untrained agent's network, as it is or damaged."""
    monkeypatch.setattr(learning, "COARSE", {"functions": 2, "twins": 1, "steps": 100})
    rates = ("lr",) if kind[:3] == "ppo" else ("lr_init", "lr_peak", "lr_end")
    subject, data = subject_with_data(kind, **dict.fromkeys(rates, 3e-3))
    view = subject.views[role]
    if damage is not None:
        damage(view.module)
    before = [part.clone() for _, part in view.parameters()]
    context = Context(subject=subject, data=DataSets(recent=data.recent), suite="standard")
    found = list(learning.gap(context, view, "smooth", coarse=True))
    assert all(map(torch.equal, before, (part for _, part in view.parameters())))
    return {each.member: each for each in found}


@pytest.mark.parametrize(("kind", "role"), ROLES)
def test_an_untrained_network_has_no_gap(kind, role, monkeypatch):
    assert abs(measured_gap(kind, role, monkeypatch)["mean"].value) < 0.05


@torch.no_grad()
def collapse(module):
    """Hidden units silent, out of reach of any gradient, and what is left of them all alike."""
    if isinstance(module, Network):
        for layer in [*module.layers][:-1]:
            if isinstance(layer, nn.Linear):
                layer.bias[2:] = -1e4
        return
    if isinstance(module, PublishedFlowCritic):  # what has no trunk to collapse says one velocity
        for name in ("gain_LEH", "shift_LEH", "out_E1H"):
            module.get_parameter(f"net.{name}").zero_()
        return
    module.trunk.input_linear.weight[:] = module.trunk.input_linear.weight[:, :1]
    for block in module.trunk.block:
        for norm in (block.norm1, block.norm2):
            norm.scale[:], norm.shift[:] = 0, -1


@pytest.mark.parametrize(("kind", "role"), COLLAPSIBLE)
def test_a_collapsed_network_has_a_gap(kind, role, monkeypatch):
    assert measured_gap(kind, role, monkeypatch, collapse)["mean"].value > 0.2


def test_one_collapsed_member_has_a_gap_of_its_own(monkeypatch):
    @torch.no_grad()
    def damage(module):
        weight = module.trunk.input_linear.weight
        weight[1] = weight[1, :1]
        for block in module.trunk.block:
            for norm in (block.norm1, block.norm2):
                norm.scale[1], norm.shift[1] = 0, -1

    found = measured_gap("scalar", "critic", monkeypatch, damage)
    gaps = {member: each.value for member, each in found.items()}
    assert gaps["0"] < 0.1 < 0.2 < gaps["1"] == gaps["worst"]
    assert gaps["mean"] == pytest.approx((gaps["0"] + gaps["1"]) / 2)
    assert found["1"].ci95 == found["worst"].ci95 != found["0"].ci95
    assert found["1"].reference["error"] > found["0"].reference["error"]


def test_targets_no_network_can_express_are_left_whole():
    # A linear readout of one feature, and targets along another: nothing of them can be learned.
    random = generator(0)
    x_ND = torch.randn(1024, 2, generator=random)
    view = PlainView(nn.Linear(1, 1))
    view.module.weight.data.fill_(0.7)
    target_NW = new_targets(x_ND[:, 1:], "smooth")
    target_NW = target_NW - x_ND[:, :1] * (x_ND[:, :1] * target_NW).mean() / x_ND[:, :1].var()
    reachable = new_targets(x_ND[:, :1], "smooth")
    targets, scales = torch.stack((target_NW, reachable)), torch.tensor([[2.0], [0.1]])
    probe = Probe(steps=200, batch_size=256, rate=1e-2)
    found = fit([view], x_ND[:, :1], targets, scales, probe, generators=[random, generator(1)])
    hopeless, easy = found.error_JCE.flatten().tolist()
    assert hopeless == pytest.approx(1, abs=0.03)
    assert easy < 0.01


@pytest.mark.parametrize(
    ("kind", "role"), [("categorical", "critic"), ("flow", "critic"), ("ppo", "actor")]
)
def test_networks_side_by_side_learn_what_each_learns_alone(kind, role):
    subject, data = subject_with_data(kind)
    x_ND = subject.inputs(role, data.recent)
    views = [subject.views[role], subject.fresh(0, data.recent).views[role]]
    width = views[0].outputs(views[0].module, x_ND[:2]).shape[-1]
    targets = torch.stack([new_targets(normal(len(x_ND), width, seed=j), "smooth") for j in (0, 1)])
    scales = torch.tensor([[0.5], [0.2]]).expand(2, width)
    probe = Probe(steps=10, batch_size=32, rate=3e-3, project=kind == "categorical")

    def errors(views, functions):
        random = [generator(j) for j in functions]
        sizes = (targets[functions], scales[functions])
        return fit(views, x_ND, *sizes, probe, generators=random).error_JCE

    together = errors(views, [0, 1])
    alone = [[errors([view], [j])[0, 0] for view in views] for j in (0, 1)]
    torch.testing.assert_close(together, torch.stack([torch.stack(row) for row in alone]))
    assert not torch.allclose(together[0], together[1])
    assert not torch.allclose(together[:, 0], together[:, 1])


def episodes(rows, length=8):
    return torch.arange(rows) // length


def test_features_that_hold_the_values_explain_them_and_others_do_not():
    x = normal(800, 4)
    y = x @ torch.tensor([1.0, 2, 0, 0])
    assert linear_r2(x, y, episodes(800)) > 0.999
    assert abs(linear_r2(x[:, 2:], y, episodes(800))) < 0.05


def test_a_readout_is_shrunk_where_there_is_nothing_to_learn():
    x, noise, fold = normal(200, 40), normal(200, seed=1), episodes(200) % 5
    missed = [
        noise[fold == k] - x[fold == k] @ torch.linalg.lstsq(x[fold != k], noise[fold != k])[0]
        for k in range(5)
    ]
    plain = 1 - torch.cat(missed).square().mean() / noise.var(correction=0)
    assert plain + 0.05 < linear_r2(x, noise, episodes(200)) < 0.05


def test_an_invertible_change_keeps_everything_another_coordinate_nothing():
    x = normal(400, 2).double()
    y = x[:, 0]
    own = linear_r2(x, y, episodes(400))
    kept = linear_r2(x @ torch.tensor([[1.0, 2], [0, 1]]).double(), y, episodes(400))
    assert overwriting(own, 0.0, kept).retention == pytest.approx(1, abs=1e-4)
    old, new = x[:, :1], x[:, 1:]
    found = overwriting(linear_r2(old, y, episodes(400)), 0.0, linear_r2(new, y, episodes(400)))
    assert found.overwriting == pytest.approx(1, abs=0.02)


def test_a_probe_needs_rows_episodes_and_something_to_explain():
    x = normal(80, 4)
    with pytest.raises(InputError, match="needs 8 rows, got 7"):
        linear_r2(x[:7], x[:7, 0], episodes(7))
    with pytest.raises(InputError, match="needs 10 episodes"):
        linear_r2(x, x[:, 0], episodes(80, 20))
    with pytest.raises(InputError, match=r"below 0\.2 nothing follows"):
        overwriting(0.1, 0.1, 0.1)
    assert math.isfinite(linear_r2(x, x[:, 0], episodes(80)))


@pytest.mark.parametrize(("rows", "coarse"), [(2048, False), (2047, True)])
def test_the_full_suite_probes_coarsely_where_rows_are_few_and_says_so(monkeypatch, rows, coarse):
    sizes = {"functions": 2, "twins": 1, "steps": 100}
    monkeypatch.setattr(learning, "COARSE", sizes)
    monkeypatch.setattr(learning, "WHOLE", sizes | {"steps": 101})
    subject, data = subject_with_data("ppo", lr=3e-3)
    few = DataSets(recent=data.recent.rows(slice(rows)), anchor=data.anchor)
    found = list(learning.fit_gap(Context(subject=subject, data=few, suite="full")))
    smooth = [each for each in found if each.params["family"] == "smooth"]
    assert len(smooth) == 2
    assert (len(found) == 2) == coarse  # or hashed targets, too
    for each in smooth:
        assert each.value is not None
        assert each.params["steps"] == ("100" if coarse else "101")
        said = "coarse: the whole probe (--suite full) needs 4096 rows, got 4095"
        assert each.reason == (said if coarse else "")
