"""The acceptance list of the diagnostics' specification, section 17.

1. every metric has a known answer: the files beside this one, a file per module
2. measuring changes nothing: ``test_online.py``, ``test_measure.py``
3. overhead: ``benchmarks/diagnostics_overhead.py``; its governor in ``test_online.py``
4. the sick-agent zoo, from the planted illness to the verdict that names it: here; illnesses of
   the policy in ``test_zoo_policy.py``
5. reports: ``test_report.py``
6. invariance: ``test_measure.py``, ``test_directions.py``, ``test_instability.py``
7. the same seed, the same JSON: ``test_report.py``
"""

import csv
from pathlib import Path

import torch

from supple.configs import default_settings
from supple.diagnostics import rules
from supple.diagnostics.data import DataSets
from supple.diagnostics.document import Document
from supple.diagnostics.evidence import Evidence
from supple.diagnostics.measure import measure
from supple.diagnostics.reading import reading
from supple.diagnostics.remedies import advice
from supple.diagnostics.run_level import return_readings
from supple.diagnostics.values import self_excitation
from tests.agents.small_agents import generator, random_batch, random_noise
from tests.diagnostics.subjects import hidden_layers, subject_with_data, transitions

HEALTHY = Path(__file__).parents[2] / "benchmarks" / "results" / "healthy.csv"


def verdicts(*checkpoints):
    """Of the last of these checkpoints, each a list of readings, by rule."""
    document = Document(command="", suite="standard", device="cpu", seed=0)
    evidence = list[Evidence]()
    for number, readings in enumerate(checkpoints):
        for each in readings:
            document.add(number, each)
        evidence.append(
            Evidence(
                target=number,
                label=f"step {number}",
                env_steps=number,
                readings=document.hits[number],
                earlier=list(evidence),
                advice=advice(default_settings("gym/HalfCheetah-v5", preset="laptop")),
                last_of_run=number == len(checkpoints) - 1,
            )
        )
    last = len(checkpoints) - 1
    return {each.rule: each for each in rules.judge(evidence) if each.target == last}


def readings_of(subject, data, *groups):
    return list(measure(subject, data, "standard", groups=groups).readings.values())


def named(found, rule, *, level, besides=()):
    """The illness has its name, and no other fault but what it brings along."""
    assert found[rule].level == level, found
    assert {other for other, one in found.items() if one.level == "bad"} <= {rule, *besides}
    assert found[rule].sentence
    assert found[rule].actions
    assert found[rule].evidence


LEARNING = ("unit_health", "per_sample", "fit_gap")


def test_healthy_agents_of_every_kind_have_no_fault():
    for kind in ("categorical", "scalar", "flow", "ppo", "ppo_discrete"):
        subject, data = subject_with_data(kind)
        groups = (*LEARNING, "weights", "saturation", "support", "next_step", "flow")
        found = verdicts(readings_of(subject, data, *groups))
        assert not [one for one in found.values() if one.level == "bad"], kind


def test_ten_trained_healthy_runs_had_no_fault_and_one_warning_at_most():
    newest = {row["run"]: row for row in csv.DictReader(HEALTHY.open())}  # later rows judge anew
    assert len(newest) == 10
    for row in newest.values():
        assert (row["suite"], row["bad"]) == ("standard", "0"), row
        assert int(row["warn"]) <= 1, row


def test_sixty_percent_of_hidden_units_zeroed():
    subject, data = subject_with_data("ppo")
    with torch.no_grad():
        for layer in hidden_layers(subject):
            layer.weight[:10], layer.bias[:10] = 0, 0
    named(verdicts(readings_of(subject, data, *LEARNING)), "V2", level="bad", besides=("V1",))


def test_all_hidden_units_dead():
    subject, data = subject_with_data("ppo")
    with torch.no_grad():
        for layer in hidden_layers(subject):
            layer.bias.fill_(-1e4)
    found = verdicts(readings_of(subject, data, *LEARNING))
    named(found, "V1", level="bad", besides=("V2",))
    named(found, "V2", level="bad", besides=("V1",))


def with_true_values():
    """Rewards are what makes the critic's values right, to rounding."""
    subject, _ = subject_with_data("ppo")
    head = next(each for each in reversed(subject.agent.critic.layers) if hasattr(each, "bias"))
    with torch.no_grad():
        head.bias.fill_(5.0)
    data = transitions("ppo")
    view = subject.views[subject.critic_role]
    with torch.no_grad():
        value = view.outputs(view.module, subject.inputs(view.role, data))[0, :, 0]
    after = torch.cat((value[1:], value.new_zeros(1)))
    data.reward.copy_(value - subject.gamma * torch.where(data.terminated, 0, after))
    return subject, DataSets(recent=data, sampled=data), head


def test_values_half_too_large():
    subject, data, head = with_true_values()
    healthy = verdicts(readings_of(subject, data, "value_bias"))
    assert not healthy
    with torch.no_grad():
        head.weight.mul_(1.5)
        head.bias.mul_(1.5)
    named(verdicts(readings_of(subject, data, "value_bias")), "V3", level="bad")


def test_rewards_ten_times_too_large_for_the_support():
    subject, data = subject_with_data("categorical")
    assert "V5" not in verdicts(readings_of(subject, data, "support"))
    data.recent.reward.mul_(10 * subject.agent.settings.value_max)
    found = verdicts(readings_of(subject, data, "support"))
    named(found, "V5", level="warn")  # bad once the critic has followed to the edge


def test_rewards_too_large_for_a_flow_that_followed_them_to_its_edge():
    subject, data = subject_with_data("flow")
    assert "V5" not in verdicts(readings_of(subject, data, "support"))
    end = subject.agent.settings.value_max
    data.recent.reward.mul_(10 * end)
    found = verdicts(readings_of(subject, data, "support"))
    named(found, "V5", level="warn")
    assert f"outside the value range [-{end:g}, {end:g}]" in found["V5"].sentence
    with torch.no_grad():
        subject.agent.critic.net.out.weight.zero_()
        subject.agent.critic.net.out.bias.fill_(end)
    named(verdicts(readings_of(subject, data, "support")), "V5", level="bad")


def test_targets_outside_what_the_published_flow_encodes():
    subject, data = subject_with_data("flow_official")
    end = 1.02 * subject.agent.settings.value_max  # nothing clips them, at the range or beyond
    data.recent.reward.mul_(10 * end)
    found = verdicts(readings_of(subject, data, "support"))
    assert f"outside the value range [-{end:g}, {end:g}]" in found["V5"].sentence


def test_a_chain_whose_next_feature_is_twice_as_large():
    excited = self_excitation(torch.ones(1, 2, 2), 2 * torch.ones(1, 2, 2), 0.9, 1)
    checkpoints = [
        [
            reading(float(excited.norm_E), metric="seem_norm", network="critic"),
            reading(float(size), metric="q_abs", network="critic"),
        ]
        for size in range(1, 6)
    ]
    found = verdicts(*checkpoints)
    assert set(found) == {"V6"}


def trained(*groups, rate=1e-3, times=1.0):
    """Readings of three checkpoints of a critic that nearly fits a minibatch.

    They are taken with the next step's learning rate so many times as large.
    """
    subject, data = subject_with_data("scalar")
    settings, random, found = subject.agent.settings, generator(3), []
    batch, noise = random_batch(subject.agent, random), random_noise(random)
    for _ in range(3):
        settings.lr_init = settings.lr_peak = settings.lr_end = rate
        for _ in range(30):
            subject.agent.learn(batch, *noise)
        settings.lr_init = settings.lr_peak = settings.lr_end = rate * times
        found.append(readings_of(subject, data, *groups))
    return verdicts(*found)


def test_a_learning_rate_a_hundred_times_too_large():
    assert trained("weights", "curvature") == {}
    found = trained("weights", "curvature", times=100.0)
    assert set(found) == {"V7"}
    assert "measurements in a row" in found["V7"].sentence


def test_a_learning_rate_of_zero():
    assert trained("next_step") == {}
    named(trained("next_step", rate=0.0), "V8", level="bad")


def test_returns_that_fall_by_seven_tenths():
    returns = [0.0, 500, 900, 1000, 400, 300, 320, 310]
    steps = [1000.0 * n for n in range(8)]
    for each, expected in ((returns, {"V9"}), (sorted(returns), set())):
        found = verdicts(return_readings(each, steps, [20.0] * 8, random_return=0.0))
        assert set(found) == expected


def test_a_flow_of_constant_velocity():
    subject, data = subject_with_data("flow")
    untrained = verdicts(readings_of(subject, data, "flow"))
    assert all(one.level == "warn" for one in untrained.values())  # its four steps are too few
    with torch.no_grad():
        subject.agent.critic.net.out.weight.zero_()
        subject.agent.critic.net.out.bias.fill_(1.0)
    named(verdicts(readings_of(subject, data, "flow")), "V13", level="bad")


def test_means_far_beyond_tanh():
    subject, data = subject_with_data("categorical", rows=4096)
    assert "V14" not in verdicts(readings_of(subject, data, "saturation"))
    with torch.no_grad():
        subject.agent.actor.mean.bias.fill_(12)
    named(verdicts(readings_of(subject, data, "saturation")), "V14", level="bad")
