"""Rules on readings made by hand: the main evidence with a support, each alone, and neither."""

from typing import Any

import pytest

from supple.cli import train_settings
from supple.configs import default_settings
from supple.diagnostics import rules
from supple.diagnostics.evidence import Evidence, Hit
from supple.diagnostics.reading import reading
from supple.diagnostics.remedies import advice
from supple.diagnostics.suite.values import BY_DEVIATION

FLASHSAC = default_settings("gym/HalfCheetah-v5", preset="laptop")


def number(metric, value, network="critic", **facts):
    return reading(value, metric=metric, network=network, **facts)


def evidence(*found, earlier=(), **facts):
    hits = [Hit(place, each) for place, each in enumerate(found)]
    known: dict[str, Any] = {"label": "step 9", "target": len(earlier)}
    known |= {"advice": advice(FLASHSAC)} | facts
    return Evidence(env_steps=9, readings=hits, earlier=earlier, **known)


def judged(*found, **facts):
    return {each.rule: each for each in rules.judge([evidence(*found, **facts)])}


GAP = number("fit_gap", 0.6, ci95=(0.4, 0.8))
SILENT = number("grad_dormant", 40.0, params={"threshold": 0.01}, reference={"fresh": 5.0})
INACTIVE = number("dormant", 60.0, params={"threshold": 0.1}, reference={"fresh": 1.0})
HIGH = number("value_bias_norm", 0.5, ci95=(0.4, 0.6))
LOW = number("value_bias_norm", -0.4, ci95=(-0.5, -0.3))

CASES = [
    ("V1", "bad", [GAP, SILENT]),
    ("V2", "bad", [INACTIVE, number("fit_gap", 0.15, ci95=(0.0, 0.2))]),
    ("V3", "bad", [HIGH, number("seem_norm", 0.1)]),
    ("V4", "bad", [LOW, number("value_rank", 0.1)]),
    ("V5", "bad", [number("support_clip", 0.4), number("support_edge", 0.3)]),
    ("V8", "bad", [number("update_ratio", 0.0), number("eps_frac", 1.0)]),
    ("V9", "bad", [number("ret_mdd_share", 0.8, "run", reference={"noise_floor": 0.1})]),
    ("V13", "bad", [number("flow_straight", 0.0, "flow"), number("flow_recovery", 1.0, "flow")]),
    ("V14", "warn", [number("act_sat", 0.7, "actor"), number("std_edge", 0.5, "actor")]),
]


@pytest.mark.parametrize(("rule", "level", "found"), CASES, ids=[case[0] for case in CASES])
def test_an_illness_is_named_and_nothing_else(rule, level, found):
    verdicts = judged(*found)
    assert set(verdicts) == {rule}
    verdict = verdicts[rule]
    assert verdict.level == level
    assert verdict.evidence[0] == 0
    assert verdict.actions
    assert verdict.reconsider


@pytest.mark.parametrize(
    "found",
    [
        [number("fit_gap", 0.05, ci95=(-0.1, 0.2)), SILENT],
        [number("fit_gap", 0.3, ci95=(-0.2, 0.8)), SILENT],  # the interval holds no loss
        [INACTIVE],  # nothing else says so
        [number("dormant", 60.0, params={"threshold": 0.1}, reference={"fresh": 55.0}), SILENT],
        [number("srank", 3.0)],  # never a rank alone
        [number("value_bias_norm", 0.3, ci95=(-0.1, 0.7))],
        [LOW],  # a pessimistic ensemble
        [number("value_rank", 0.2), number("support_use", 0.01)],  # a steady gait
        [number("support_clip", 0.02)],
        [number("seem_norm", 0.3)],
        [number("stab_adam", 1.1)],
        [number("update_ratio", 1e-3)],
        [number("ret_mdd_share", 0.8, "run", reference={"noise_floor": 0.9})],
        [number("act_sat", 0.8, "actor")],  # bang-bang control
        [number("flow_straight", 0.3, "flow"), number("flow_conv", 0.01, "flow")],
    ],
)
def test_one_sign_alone_is_no_illness(found):
    assert judged(*found) == {}


def test_a_step_is_too_large_when_it_stays_so():
    ratio, slope = number("stab_adam", 3.0), number("grad_norm", 1.0)
    steps = [evidence(ratio, slope)]
    assert rules.judge(steps) == []
    for count in (1, 2):
        steps.append(evidence(ratio, number("grad_norm", 1.0 + count), earlier=tuple(steps)))
    (last, *_) = [v for v in rules.judge(steps) if v.target == 2]
    assert (last.rule, last.level) == ("V7", "bad")
    assert "in 3 measurements in a row" in last.sentence


def test_what_the_run_measured_while_training_counts_where_checkpoints_were_not_measured():
    # Slow measurements are made of the last checkpoint alone; which member is worst may change.
    ratios = [number("stab_adam", v, member=m) for m, v in (("mean", 2.5), ("0", 1.0), ("1", 4.0))]
    ratios.append(number("stab_adam", 4.0, member="worst"))
    first = evidence(number("grad_norm", 1.0), number("q_abs", 1.0))
    found = (*ratios, number("grad_norm", 2.0), number("q_abs", 2.0), number("seem_norm", 0.01))
    for stab, seem, expected in (
        ([9.0, 3.0, 3.0], [0.1] * 4, {"V7": "bad", "V6": "warn"}),
        ([9.0, 3.0, 1.0], [0.1, -0.1, 0.1, 0.1], {"V7": "warn"}),
        ([], [], {"V7": "warn"}),
    ):
        course = {"critic/all/worst/stab_adam": stab, "critic/all/mean/seem_norm": seem}
        last = evidence(*found, earlier=(first,), course={k: v for k, v in course.items() if v})
        assert {each.rule: each.level for each in rules.judge([last])} == expected


def test_a_curvature_beyond_the_limit_alone_and_values_that_creep_up_are_no_illness():
    first = evidence(number("grad_norm", 1.0), number("q_abs", 1.0))
    course = {"critic/all/mean/stab_adam": [9.0] * 9, "critic/all/mean/seem_norm": [0.1] * 9}
    for metric, other in (("stab_adam", "grad_norm"), ("seem_norm", "q_abs")):
        steady = 1.0 if other == "grad_norm" else 1.05
        found = (number(metric, 9.0), number(other, steady))
        last = evidence(*found, earlier=(first,), course=course)
        assert rules.judge([last]) == []


def test_one_layer_of_which_most_units_are_inactive_is_named():
    found: list[Any] = [number("fit_gap", 0.15, ci95=(0.0, 0.2))]
    facts: dict[str, Any] = {"params": {"threshold": 0.1}, "reference": {"fresh": 1.0}}
    for layer, value in (("all", 19.0), ("block0.inner", 3.0), ("block0.outer", 45.0)):
        found.append(number("dormant", value, layer=layer, **facts))
    assert judged(*found) == {}
    verdict = judged(*found, number("dormant", 70.0, layer="block1.outer", **facts))["V2"]
    assert verdict.level == "bad"
    assert verdict.sentence.startswith(
        "70 % of the units of the critic, layer block1.outer, are inactive at step 9"
    )


def joint(metric, value, name):
    return number(metric, value, "actor", params={"joint": name})


def test_one_joint_of_many_that_is_always_at_its_limit_is_named():
    twelve = [joint("act_sat", 0.0, f"joint{k}") for k in range(11)]
    twelve += [joint("act_sat", 0.98, "FL_hip"), number("act_sat", 0.98 / 12, "actor")]
    assert judged(*twelve, joint("act_pinned", 0.5, "FL_hip")) == {}  # bang-bang control
    verdict = judged(*twelve, joint("act_pinned", 0.97, "FL_hip"))["V14"]
    assert verdict.level == "warn"
    assert verdict.sentence.startswith("FL_hip is at its limits 98% of the time at step 9")
    edge = number("std_edge", 0.5, "actor")
    assert judged(*twelve, edge)["V14"].level == "bad"


def test_self_excitation_must_last_and_values_grow():
    steps: list[Evidence] = []
    for count in range(5):
        found = (number("seem_norm", 0.2), number("q_abs", 1.0 + count))
        steps.append(evidence(*found, earlier=tuple(steps)))
    verdicts = [v for v in rules.judge(steps) if v.target == 4]
    assert [v.rule for v in verdicts] == ["V6"]
    assert verdicts[0].confidence == "medium"


def test_two_checkpoints_say_self_excitation_only_where_it_is_clear():
    for value, rules_found in ((0.016, []), (0.5, ["V6"])):
        first = evidence(number("seem_norm", value), number("q_abs", 1.0))
        found = (number("seem_norm", value), number("q_abs", 2.0))
        last = evidence(*found, earlier=(first,))
        assert [verdict.rule for verdict in rules.judge([last])] == rules_found


def test_a_gap_that_may_be_chance_hides_none_that_is_sure():
    wide = number("fit_gap", 1.3, "actor", ci95=(-0.2, 2.8))
    verdict = judged(wide, GAP)["V1"]
    assert verdict.evidence == [1]
    assert verdict.sentence.startswith("The critic at step 9 closes 40% of the error")


def test_a_member_that_lost_plasticity_is_not_averaged_away():
    gaps = [("mean", 0.15), ("0", -0.1), ("1", 0.4), ("worst", 0.4)]
    found = [number("fit_gap", v, member=m, ci95=(v - 0.1, v + 0.1)) for m, v in gaps]
    verdict = judged(*found)["V1"]
    assert verdict.sentence.startswith("The critic's worst member at step 9 closes 60%")


def test_a_network_that_unlearns_closes_nothing_of_the_error():
    worse = number("fit_gap", 1.3, ci95=(0.9, 1.7))
    assert "closes 0% of the error" in judged(worse)["V1"].sentence


COARSE = "coarse: --suite full measures it wholly"


@pytest.mark.parametrize("member", ["1", "worst"])
def test_of_a_coarse_probe_the_mean_counts_alone(member):
    mean = number("fit_gap", 0.03, ci95=(-0.4, 0.3), reason=COARSE)
    own = number("fit_gap", 0.6, member=member, ci95=(0.4, 0.8), reason=COARSE)
    assert judged(mean, own, SILENT) == {}


def test_a_coarse_gap_needs_a_support_of_its_own_network_and_says_what_decides():
    reason = f"{COARSE}; targets shrunk to 0.50 of their size to fit the value range"
    coarse = number("fit_gap", 0.6, ci95=(0.4, 0.8), reason=reason)
    larger = number("fit_gap", 0.7, "actor", ci95=(0.5, 0.9), reason=reason)
    assert judged(coarse, larger) == {}
    cosine = number("grad_cos", 0.9, params={"of": "absolute"}, reference={"fresh": 0.1})
    verdict = judged(larger, coarse, SILENT, cosine)["V1"]
    assert verdict.confidence == "low"
    assert verdict.evidence == [1, 2, 3]
    assert verdict.sentence.endswith(
        "it may have lost part of its ability to learn. Measured coarsely: --suite full measures it"
        " wholly."
    )


def test_a_severe_gap_without_a_support_is_a_warning():
    assert judged(GAP)["V1"].level == "warn"


def test_clipping_without_mass_at_the_edge_is_a_warning():
    verdict = judged(number("support_clip", 0.4))["V5"]
    assert (verdict.level, verdict.confidence) == ("warn", "low")


def test_returns_completed_by_the_critic_itself_warn_only():
    reason = "bootstrapped tail: part of the bias is hidden"
    low = number("value_bias_norm", -1.3, ci95=(-2.0, -1.0), reason=reason)
    verdict = judged(low, number("value_rank", 0.3, reason=reason))["V4"]
    assert (verdict.level, verdict.confidence) == ("warn", "low")


def test_bias_is_said_to_be_of_the_returns_mean_or_of_their_deviation():
    for reason, said in (("", "of their mean."), (BY_DEVIATION, "of their standard deviation (")):
        high = number("value_bias_norm", 0.5, ci95=(0.4, 0.6), reason=reason)
        assert f"exceed achieved returns by 50% {said}" in judged(high)["V3"].sentence
        low = number("value_bias_norm", -0.4, ci95=(-0.5, -0.3), reason=reason)
        verdict = judged(low, number("value_rank", 0.1))["V4"]
        assert f"values them too low by 40% {said}" in verdict.sentence


def test_supports_make_a_verdict_surer():
    assert judged(GAP, SILENT)["V1"].confidence == "medium"
    cosine = number("grad_cos", 0.9, params={"of": "absolute"}, reference={"fresh": 0.1})
    assert judged(GAP, SILENT, cosine)["V1"].confidence == "high"


def test_gradients_must_be_nearly_parallel_to_say_why_plasticity_was_lost():
    # Their mean cosine is about 0 in every healthy network: twice that is nothing yet.
    for of, value, fresh in (("mean", 0.04, 0.01), ("absolute", 0.3, 0.1), ("absolute", 0.8, 0.6)):
        cosine = number("grad_cos", value, params={"of": of}, reference={"fresh": fresh})
        assert judged(GAP, cosine)["V1"].level == "warn"


def test_a_fall_within_noise_does_not_make_a_step_too_large():
    ratio = number("stab_adam", 3.0)
    fall = number("ret_mdd_share", 0.8, "run", reference={"noise_floor": 0.9})
    assert judged(ratio, fall) == {}
    beyond = number("ret_mdd_share", 0.8, "run", reference={"noise_floor": 0.1})
    assert "V7" in judged(ratio, beyond)


def test_steps_far_below_what_the_learning_rate_gives_are_no_steps():
    full = {"expected": 0.008}
    assert judged(number("angle_step", 0.002, reference=full)) == {}
    assert judged(number("angle_step", 0.00005, reference=full))["V8"].level == "bad"


def test_a_critic_that_stands_beside_an_actor_that_moves_is_named():
    moves = number("update_ratio", 1e-3, "actor"), number("angle_step", 1e-3, "actor")
    verdict = judged(*moves, number("update_ratio", 0.0))["V8"]
    assert verdict.level == "bad"
    assert verdict.evidence == [2]
    assert verdict.sentence == "At step 9 the parameters of the critic no longer move."
    eaten, still = number("eps_frac", 0.9), number("churn_q", 0.0)
    assert judged(*moves, eaten, still)["V8"].level == "warn"
    assert judged(*moves, eaten, number("churn_mean", 0.0, "actor")) == {}


def test_a_straight_flow_is_a_fault_only_where_it_keeps_an_error():
    straight = number("flow_straight", 0.0, "flow")
    assert judged(straight) == {}
    for left in (0.0, 0.8):  # it points straight at its target
        times = [number("flow_recovery", value, "flow") for value in (1.0, left)]
        assert judged(straight, *times) == {}
    verdict = judged(straight, number("flow_recovery", 0.95, "flow"))["V13"]
    assert (verdict.level, verdict.evidence) == ("bad", [0, 1])
    assert "is straight" in verdict.sentence


def test_the_straightness_of_one_member_is_read_against_its_own_recovery():
    curved = [number("flow_straight", v, "flow", member=m) for m, v in (("0", 0.0), ("1", 0.5))]
    left = [number("flow_recovery", v, "flow", member=m) for m, v in (("0", 0.0), ("1", 0.95))]
    assert judged(*curved, *left) == {}


def test_the_run_is_judged_at_its_end_only():
    fall = number("ret_mdd_share", 0.8, "run")
    assert judged(fall, last_of_run=False) == {}
    recovered = number("ret_recover", 4000.0, "run")
    verdict = judged(fall, recovered)["V9"]
    assert verdict.level == "warn"
    assert "needed 4,000 steps to recover" in verdict.sentence


@pytest.mark.parametrize(
    ("low", "level", "said"),
    [(1, "warn", "in the last evaluation"), (2, "bad", "and did not recover")],
)
def test_a_fall_in_the_last_evaluation_alone_may_yet_pass(low, level, said):
    facts = {"noise_floor": 0.1, "low_evaluations": float(low)}
    verdict = judged(number("ret_mdd_share", 0.8, "run", reference=facts))["V9"]
    assert verdict.level == level
    assert said in verdict.sentence


def test_advice_names_only_flags_that_exist():
    flashsac = advice(FLASHSAC)
    ppo = advice(default_settings("gym/CartPole-v1", agent="ppo", preset="laptop"))
    assert flashsac["fewer updates"].endswith("(--agent.utd, now 1.0)")
    assert "fewer updates" not in ppo
    assert ppo["fewer epochs"].endswith("(--agent.epochs, now 10)")
    assert flashsac["reset units"].endswith("(--agent.remedy.reset-dormant-every, now 0)")
    assert flashsac["weight decay"].endswith("(--agent.remedy.weight-decay, now 0.0)")
    assert "--" not in ppo["noise"]


def test_nothing_is_advised_that_the_run_does_already():
    flags = ["gym/HalfCheetah-v5", "--preset", "laptop"]
    assert "project" not in advice(FLASHSAC)
    assert "project" in advice(train_settings([*flags, "--agent.no-project-critic"]))
    assert "normalise" in advice(FLASHSAC)
    assert "normalise" not in advice(train_settings([*flags, "--agent.critic-norm", "layer"]))


def test_verdicts_are_ordered_worst_first():
    found = rules.judge([evidence(GAP), evidence(*CASES[4][2])])
    assert [v.level for v in found] == ["bad", "warn"]
