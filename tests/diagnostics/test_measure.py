"""The entry point: every suite of every agent, names, references, isolation, determinism."""

import dataclasses
import math

import pytest
import torch

from supple.diagnostics.data import DataSets
from supple.diagnostics.measure import GROUPS, compare, measure
from supple.diagnostics.movement import action_churn
from supple.diagnostics.reading import Reading, reading
from supple.diagnostics.step import next_step
from supple.diagnostics.subject import subject_of
from supple.diagnostics.suite.values import BY_DEVIATION
from supple.envs.base import Channel
from supple.errors import InputError
from tests.agents.small_agents import OBSERVATIONS, assert_same_bits, snapshot
from tests.diagnostics.subjects import EVERY_KIND, subject_with_data, transitions


def number(readings, name):
    value = readings[name].value
    assert value is not None, readings[name].reason
    return value


def timeless(readings):
    return {name: dataclasses.replace(each, cost_s=0.0) for name, each in readings.items()}


@EVERY_KIND
def test_the_quick_suite_measures_every_agent_and_changes_nothing(kind):
    subject, data = subject_with_data(kind)
    before, stream = snapshot(subject.agent), torch.get_rng_state()
    found = measure(subject, DataSets(recent=data.recent))
    assert_same_bits(snapshot(subject.agent), before)
    assert torch.equal(torch.get_rng_state(), stream)
    # Of these agents nobody took an optimiser step, and three joints are too few for a percentile.
    missing = {each.metric for each in found.readings.values() if each.status != "ok"}
    assert missing <= {"eps_frac", "logit_pre"}
    critic = "value" if kind.startswith("ppo") else "critic"
    dormant = found.readings[f"{critic}/all/mean/dormant_0.1_recent"]
    assert dormant.value is not None
    assert 0 <= dormant.value <= 100
    assert dormant.unit == "%"
    assert dormant.n == 2048
    assert {"fresh", "fresh_low", "fresh_high"} <= dormant.reference.keys()


def test_a_second_measurement_gives_the_same_numbers():
    subject, data = subject_with_data("flow")
    left, right = (measure(subject, data, groups=["unit_health"]) for _ in range(2))
    assert timeless(left.readings) == timeless(right.readings)


def test_small_data_are_undefined_in_one_line_not_wrong():
    subject, _ = subject_with_data("categorical")
    few = DataSets(recent=transitions("categorical", 31))
    found = measure(subject, few, groups=["unit_health", "dimensionality"]).readings
    reason = found["critic/all/mean/dormant_recent"].reason
    assert reason == "counting inactive units needs 2048 rows, got 31: store or draw more"
    reason = found["critic/penultimate/mean/srank_recent"].reason
    assert reason == "the rank of 16 features needs 32 rows, got 31: store or draw more"


def test_a_network_without_hidden_layers_hides_no_other():
    subject, data = subject_with_data("ppo", actor_hidden=())
    found = measure(subject, DataSets(recent=data.recent), groups=["unit_health"]).readings
    assert found["actor/all/mean/dormant_recent"].reason.startswith("no layer with a non-linearity")
    assert number(found, "value/all/mean/dormant_0.1_recent") >= 0


def test_ranks_of_fewer_rows_than_wanted_say_so_and_so_does_overwriting(monkeypatch):
    monkeypatch.setattr("supple.diagnostics.suite.pairs.trainability.linear_r2", lambda *_: 0.5)
    for rows, noted in ((127, True), (128, False)):
        subject, _ = subject_with_data("categorical", critic_hidden=16)
        data = DataSets(recent=transitions("categorical", rows))
        one = measure(subject, data, groups=["dimensionality"]).readings
        two = compare(subject, subject, data).readings
        for each in (
            one["critic/penultimate/mean/srank_0.01_recent"],
            one["critic/penultimate/mean/pca_rank_0.99_recent"],
            two["critic/all/mean/retention"],
        ):
            assert each.value is not None
            assert ("128 were better" in each.reason) == noted


def test_a_group_that_fails_leaves_the_others(monkeypatch):
    subject, data = subject_with_data("categorical", rows=2048)

    def broken(context):
        raise RuntimeError("out of memory\nmore")

    groups = [
        group._replace(measure=broken) if group.name == "consecutive" else group for group in GROUPS
    ]
    monkeypatch.setattr("supple.diagnostics.measure.GROUPS", tuple(groups))
    found = measure(subject, data, groups=["consecutive", "dimensionality"]).readings
    assert found["run/all/mean/consecutive"].status == "failed"
    assert found["run/all/mean/consecutive"].reason == "out of memory"
    assert "critic/penultimate/mean/erank_recent" in found


def test_without_transitions_every_group_says_what_is_missing():
    subject, _ = subject_with_data("categorical")
    with pytest.raises(InputError, match="no transitions to measure on"):
        measure(subject, DataSets())


def test_members_are_measured_apart_and_the_worst_is_named():
    subject, data = subject_with_data("categorical")
    with torch.no_grad():  # member 1: all units of the first layer dead
        norm = subject.agent.critic.trunk.block[0].norm1
        norm.scale[1], norm.shift[1] = 0, -1
    found = measure(subject, data, groups=["unit_health"]).readings
    own = {m: found[f"critic/block0.inner/{m}/dormant_0_recent"].value for m in ("0", "1", "worst")}
    assert own == {"0": 0, "1": 100, "worst": 100}
    assert found["critic/block0.inner/mean/dormant_0_recent"].value == 50


def test_names_follow_network_layer_member_metric():
    each = Reading(
        metric="dormant",
        network="critic",
        layer="block0.inner",
        member="1",
        params={"threshold": 0.1},
    )
    assert each.name == "critic/block0.inner/1/dormant_0.1"


@pytest.mark.parametrize("kind", ["categorical", "ppo"])
def test_permuting_samples_leaves_results_unchanged(kind):
    subject, data = subject_with_data(kind)
    order = torch.randperm(2048, generator=torch.Generator().manual_seed(0))
    moved = DataSets(recent=data.recent.rows(order))
    own = DataSets(recent=data.recent)
    groups = ["dimensionality", "consecutive"]
    left, right = (measure(subject, each, groups=groups).readings for each in (own, moved))
    for name, each in left.items():
        assert right[name].value == pytest.approx(each.value, rel=1e-3), name


def test_what_noise_does_to_the_geometry_has_an_interval_over_states():
    subject, data = subject_with_data("categorical")
    found = measure(subject, data, "standard", groups=["robustness"]).readings
    for name in ("actor/all/mean", "critic/all/0", "critic/all/1", "critic/all/worst"):
        each = found[f"{name}/rdm_noise"]
        assert each.ci95 is not None
        low, high = each.ci95
        assert low < number(found, f"{name}/rdm_noise") < high, name
        assert high - low < 0.1
    assert found["critic/all/worst/rdm_noise"].ci95 in [
        found[f"critic/all/{member}/rdm_noise"].ci95 for member in (0, 1)
    ]


def test_numbers_that_have_a_unit_say_it():
    subject, data = subject_with_data("ppo")
    groups = ["dimensionality", "weights", "support", "excitation", "curvature"]
    found = measure(subject, data, "standard", groups=groups).readings.values()
    units = {(each.metric, each.unit) for each in found if each.value is not None}
    assert {
        *((rank, "directions") for rank in ("srank", "erank", "pca_rank", "part_ratio")),
        ("w_rms", "parameter units"),
        ("grad_norm", "loss per parameter"),
        ("hess_max", "loss per parameter^2"),
        ("hess_trace", "loss per parameter^2"),
        ("q_abs", "scaled reward"),
        ("seem", "(scaled reward per parameter)^2"),
    } <= units
    assert len(dict(units)) == len(units)  # one each


def test_declared_noise_is_what_the_geometry_is_tried_with():
    found = []
    for noise in (None, 3.0):
        channels = [Channel(name=f"c{i}", group="policy", noise=noise) for i in range(OBSERVATIONS)]
        subject, data = subject_with_data("ppo")
        subject.channels = channels
        readings = measure(subject, data, "standard", groups=["robustness"]).readings
        found.append(number(readings, "actor/all/mean/rdm_noise"))
    assert found[0] > 0.99  # a hundredth of each channel's deviation
    assert found[1] < 0.5


@pytest.mark.parametrize("distribution", ["gaussian", "squashed"])
def test_a_standard_deviation_is_at_its_edge_where_its_own_range_ends(distribution):
    for std, expected in ((1e-3, 1.0), (0.1, 0.0)):
        settings = {"distribution": distribution, "initial_std": std}
        subject, data = subject_with_data("ppo", **settings)
        found = measure(subject, DataSets(recent=data.recent), groups=["saturation"]).readings
        assert number(found, "actor/all/mean/std_edge") == expected


@pytest.mark.parametrize("distribution", ["gaussian", "squashed"])
def test_a_deviation_that_the_network_says_is_no_decision(distribution):
    subject, data = subject_with_data("ppo", distribution=distribution, std="state")
    view, x_ND = subject.views["actor"], subject.inputs("actor", data.anchor)
    after = next_step(subject, "actor", data.recent)
    with torch.no_grad():
        now, later = (subject.squash(view.head(m, x_ND)[:, :3]) for m in (view.module, after))
    found = measure(subject, data, "standard", groups=["next_step"]).readings
    assert [each for each in found.values() if each.status != "ok"] == []
    expected = float(action_churn(now, later).mean)
    assert number(found, "actor/all/mean/churn_mean_1") == pytest.approx(expected)
    assert torch.equal(view.outputs(view.module, x_ND)[0], subject.policy_params(x_ND)[0])


STANDARD = ["next_step", "excitation", "robustness"]


@pytest.mark.parametrize("kind", ["categorical", "flow", "ppo_discrete"])
def test_the_standard_groups_measure_agents_and_change_nothing(kind):
    subject, data = subject_with_data(kind)
    before = snapshot(subject.agent)
    found = measure(subject, DataSets(recent=data.recent), "standard", groups=STANDARD).readings
    assert_same_bits(snapshot(subject.agent), before)
    assert [each for each in found.values() if each.status != "ok"] == []
    critic = subject.critic_role
    assert number(found, f"{critic}/all/mean/update_ratio") > 0
    assert -1 <= number(found, f"{critic}/all/mean/seem_norm") <= 1


def test_two_checkpoints_are_compared_on_the_same_states():
    subject, data = subject_with_data("ppo", rows=512)
    same = compare(subject, subject, data).readings
    assert number(same, "value/all/mean/rdm_drift") == pytest.approx(0, abs=1e-9)
    other, _ = subject_with_data("ppo", seed=1)
    moved = compare(subject, other, data).readings
    assert number(moved, "value/all/mean/rdm_drift") > 0.1


def test_value_bias_without_episodes_says_what_to_give():
    subject, data = subject_with_data("ppo")
    found = measure(subject, data, "standard", groups=["value_bias"]).readings
    reason = found["value/all/mean/value_bias"].reason
    assert reason == "value bias needs sampled episodes: give an environment"


@pytest.mark.parametrize(
    ("kind", "aggregate", "joins"),
    [
        ("scalar", "min", "min"),
        ("flow", "min", "min"),
        ("flow_official", "mean", "mean"),
        ("ppo", "", "mean"),
    ],
)
def test_values_are_judged_as_targets_join_the_members(kind, aggregate, joins):
    subject, _ = subject_with_data(kind)
    if kind != "ppo":
        for critic in (subject.agent.critic, subject.agent.target_critic):
            critic.joins = aggregate
        subject = subject_of(subject.agent, seed=0)
    data = transitions(kind, 160)
    # Cut, not ended: what follows is the critic's own soft value.
    cut = dataclasses.replace(data, terminated=data.truncated, truncated=data.terminated)
    sets = DataSets(recent=cut, sampled=cut)
    found = measure(subject, sets, "standard", groups=["value_bias"])
    role, last = subject.critic_role, data.terminated
    assert (f"{role}/all/min/value_bias_norm" in found.readings) == (joins == "min")
    assert found.readings[f"{role}/all/{joins}/value_bias_norm"].ci95 is not None
    view = subject.views[role]
    with torch.no_grad():
        value_EN = view.outputs(view.module, subject.inputs(role, cut))[..., 0]
    joined = value_EN.amin(0) if joins == "min" else value_EN.mean(0)
    torch.testing.assert_close(found.arrays[f"{role}/all/joined/value"], joined)
    expected = subject.scale_reward(cut.reward) + subject.gamma * subject.next_values(cut)
    torch.testing.assert_close(found.arrays[f"{role}/all/joined/return"][last], expected[last])


def test_bias_over_the_deviation_of_returns_says_so():
    for reward, said in ((1.0, False), (0.0, True)):
        subject, _ = subject_with_data("ppo")
        episodes = transitions("ppo", 320)
        own = episodes.reward - episodes.reward.mean() + reward
        sets = DataSets(sampled=dataclasses.replace(episodes, reward=own))
        found = measure(subject, sets, "standard", groups=["value_bias"]).readings
        for metric in ("value_bias_norm", "value_spread_norm"):
            assert (BY_DEVIATION in found[f"value/all/mean/{metric}"].reason) == said
        assert found["value/all/mean/value_rank"].reason == ""


def test_readings_of_a_recurrent_network_say_that_its_memory_was_empty():
    subject, data = subject_with_data("ppo", memory=8)
    episodes = transitions("ppo", 160)
    sets = DataSets(recent=data.recent, sampled=episodes)
    groups = ["unit_health", "weights", "value_bias"]
    found, arrays = measure(subject, sets, "standard", groups=groups)
    for name, reason in (
        ("value/all/mean/dormant_0.1_recent", "empty memory"),
        ("actor/all/mean/grad_norm", "empty memory"),
        ("actor/all/mean/w_rms", ""),
        ("value/all/mean/value_bias_norm", ""),
    ):
        assert found[name].reason == reason, name
    torch.testing.assert_close(arrays["value/all/joined/value"], subject.along(episodes)[0][0])


def test_gradients_of_single_samples_are_measured_with_their_untrained_twins():
    subject, data = subject_with_data("scalar")
    found = measure(subject, data, "standard", groups=["per_sample"]).readings
    rank = found["critic/all/mean/grad_erank"]
    assert rank.value is not None
    assert 1 / 256 <= rank.value <= 1
    assert "fresh" in rank.reference


def test_an_untrained_twin_has_no_optimiser_to_compare_with():
    subject, data = subject_with_data("ppo")
    subject.agent.updates = 1
    found = measure(subject, DataSets(recent=data.recent), groups=["weights"]).readings
    assert number(found, "value/all/mean/eps_frac") == 1
    assert "fresh" not in found["value/all/mean/eps_frac"].reference
    assert "fresh" in found["value/all/mean/grad_norm"].reference


def test_sets_of_transitions_move_to_a_device_as_far_as_there_are_any():
    there = DataSets(recent=transitions("categorical", 100)).to(torch.device("meta"))
    assert there.recent is not None
    assert there.recent.device.type == there.recent.obs(("policy",)).device.type == "meta"
    assert there.anchor is None


def test_a_number_that_is_not_finite_is_undefined_beside_the_doubt_it_came_with():
    found = reading(math.nan, metric="value_rank", network="critic", reason="coarse")
    assert found.status == "undefined" and found.value is None
    assert found.reason == "the result is nan, not a finite number; coarse"
