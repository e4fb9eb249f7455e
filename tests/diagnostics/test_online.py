"""Diagnostics while training: they change nothing, keep to their time, and say what they see."""

import contextlib
import json
import math
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from supple import checkpoint, launch
from supple.configs import default_settings
from supple.configs.base import flat
from supple.diagnostics import alarms, online
from supple.diagnostics.alarms import FEWER, LIMITS, LINES, Alarms, Line
from supple.diagnostics.context import Context
from supple.diagnostics.data import DataSets
from supple.diagnostics.online import Governor, stored_sets
from supple.diagnostics.online_groups import Group, flow_shape, movement_of_next_step
from supple.diagnostics.remedies import advice
from supple.diagnostics.settings import DiagnosticsSettings
from supple.errors import InputError
from supple.metrics import read_csv
from tests.agents.small_agents import assert_same_bits
from tests.diagnostics.subjects import subject_with_data
from tests.small_runs import (
    Spoilt,
    deterministic_rows,
    finish,
    newest_state,
    run_until,
    run_whole,
    small_settings,
)

TASK = "gym/Pendulum-v1"


def settings_of(folder, kind, *, period=10, env_steps=160, **changes):
    agent = "ppo" if kind.startswith("ppo") else "flashsac"
    task = "gym/CartPole-v1" if kind == "ppo_discrete" else TASK
    settings = small_settings(task, folder, env_steps=env_steps, agent=agent, **changes)
    if agent == "flashsac":
        settings.agent.critic = kind
        settings.agent.flow.width = 8
    settings.diagnostics = DiagnosticsSettings(
        enabled=period > 0,
        tier1_period=max(period, 1),
        tier2_period=max(2 * period, 1),
        max_overhead=1.0,
    )
    return settings


def agent_state(folder):
    return newest_state(folder)[1]["agent"]


def overlap(settings):
    settings.overlap = True


def compiled(settings):
    settings.compute.compile, settings.compute.precision = "on", "bfloat16"


def as_it_is(settings):
    pass


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("categorical", as_it_is),
        ("categorical", overlap),
        ("categorical", compiled),
        ("flow", as_it_is),
        ("ppo", as_it_is),
        ("ppo_discrete", as_it_is),
        ("ppo_discrete", compiled),
    ],
)
def test_training_is_the_same_with_and_without(tmp_path, kind, path, request):
    # Compiling takes a minute or two: graphs run as they were traced.
    graphs = request.getfixturevalue("traced_graphs") if path is compiled else []
    with_, without = tmp_path / "with", tmp_path / "without"
    for folder, period in ((with_, 10), (without, 0)):
        settings = settings_of(folder, kind, period=period)
        path(settings)
        run_whole(settings)
    assert bool(graphs) == (path is compiled)
    assert_same_bits(agent_state(with_), agent_state(without))
    rows, plain = deterministic_rows(with_), deterministic_rows(without)
    assert rows.keys() == plain.keys()
    assert repr(rows) == repr(plain)
    found = {name for name in read_csv(with_ / "metrics.csv") if name.startswith("diag/")}
    critic = "value" if kind.startswith("ppo") else "critic"
    for metric in ("grad_norm", "update_ratio", "hess_max"):
        assert f"diag/{critic}/all/mean/{metric}" in found, metric
    assert not any(name.startswith("diag/") for name in read_csv(without / "metrics.csv"))


@pytest.mark.parametrize(("kind", "calls"), [("categorical", 1), ("ppo", 10)])
def test_nothing_is_set_up_where_nothing_is_due(tmp_path, monkeypatch, kind, calls):
    """Keeping the random streams of a GPU waits for it; an anchor set is drawn once."""
    found = []

    def isolated(agent):
        found.append(agent.updates)
        return contextlib.nullcontext()

    monkeypatch.setattr(online, "isolated", isolated)
    settings = settings_of(tmp_path / "run", kind, env_steps=400)
    settings.diagnostics.tier1_period = settings.diagnostics.tier2_period = 10**6
    settings.diagnostics.anchor_size = 40
    run = run_whole(settings)
    assert len(found) == calls < run.agent.updates


def disturbed(context, memory):
    """Draws from the process's stream, moves a running statistic: what measuring must not do."""
    torch.rand(3)
    view = context.subject.views[context.subject.critic_role]
    view.module(context.subject.inputs("critic", context.data.current()), train=True)
    return iter(())


def test_a_measurement_that_moves_a_statistic_would_be_noticed(tmp_path, monkeypatch):
    run_whole(settings_of(tmp_path / "plain", "categorical", period=0))
    monkeypatch.setattr(online, "TIER1", (Group("disturbed", disturbed),))
    run_whole(settings_of(tmp_path / "moved", "categorical"))
    with pytest.raises(AssertionError):
        assert_same_bits(agent_state(tmp_path / "moved"), agent_state(tmp_path / "plain"))


def test_a_checkpoint_holds_the_transitions_for_later_and_a_resume_keeps_the_anchor(tmp_path):
    settings = settings_of(tmp_path / "run", "categorical")
    settings.diagnostics.anchor_size = settings.diagnostics.recent_size = 30
    run_until(settings, 100)
    found, _ = checkpoint.newest_intact(tmp_path / "run")
    sets = stored_sets(found.state["diagnostics"])
    assert sets.anchor is not None
    assert sets.recent is not None
    assert len(sets.anchor) == len(sets.recent) == 30
    assert sets.recent.observation["policy"].abs().max() > 1  # raw: Pendulum's speed
    finish(launch.resumed_run(tmp_path / "run"))
    later, _ = checkpoint.newest_intact(tmp_path / "run")
    assert_same_bits(later.state["diagnostics"]["anchor"], found.state["diagnostics"]["anchor"])


def test_a_small_ring_gives_an_anchor_set_too(tmp_path):
    settings = settings_of(tmp_path / "run", "categorical", env_steps=160)
    settings.replay.capacity = 64  # less than half of the run, and than the set's size
    run_whole(settings)
    anchor = stored_sets(newest_state(tmp_path / "run")[1]["diagnostics"]).anchor
    assert anchor is not None
    assert 62 <= len(anchor) <= 64


@pytest.mark.parametrize("kind", [RuntimeError, IndexError])
def test_a_measurement_that_fails_is_switched_off_and_training_goes_on(
    tmp_path, monkeypatch, capsys, kind
):
    def broken(context, memory):
        raise kind("out of memory")

    monkeypatch.setattr(online, "TIER1", (Group("drift", broken),))
    monkeypatch.setattr(online, "TIER2", ())
    run = run_whole(settings_of(tmp_path / "run", "categorical"))
    assert run.complete
    assert capsys.readouterr().out.count("diagnostics drift switched off: out of memory") == 1


def test_a_short_rollout_is_enough_to_count_units_and_a_shorter_one_is_said_once(tmp_path, capsys):
    for steps, counted in ((260, True), (250, False)):
        settings = settings_of(tmp_path / str(steps), "ppo", period=1, env_steps=6 * steps)
        settings.agent.rollout_steps = steps
        run_whole(settings)
        columns = read_csv(tmp_path / str(steps) / "metrics.csv")
        assert ("diag/value/all/mean/dormant_0.1" in columns) == counted
        said = "diagnostics cannot measure dormant of the value: counting inactive units needs 512"
        assert capsys.readouterr().out.count(said) == (not counted)


class Worthless(Spoilt):
    """The regulator, of which all rewards of some steps are NaN."""

    def spoil(self, step):
        if 20 < self.steps <= 26:
            step["reward"] = torch.full_like(step["reward"], math.nan)


def test_rollouts_without_a_valid_row_do_not_end_training(tmp_path, capsys):
    settings = settings_of(tmp_path / "run", "ppo", env_steps=400)
    settings.task, settings.diagnostics.tier1_period = f"{__name__}:Worthless", 1
    assert run_whole(settings).complete
    said = "diagnostics skipped a call: the replay ring holds no valid transition"
    assert capsys.readouterr().out.count(said) == 1
    skipped = read_csv(tmp_path / "run" / "metrics.csv")["diag/skipped"]
    assert max(value for value in skipped if value is not None) == 3
    with launch.resumed_run(tmp_path / "run", 500) as run:  # counts on, and says it no second time
        run.start()
        told = run._online.state_dict()
    assert told["skipped"] == 3
    assert "a call" in told["said"]


def governed(limit, cost, gap, calls):
    """Calls that cost so much, each ``gap`` seconds times the stretch after the last."""
    now = [0.0]
    governor = Governor(limit, lambda: now[0])
    stretches = []
    for _ in range(calls):
        now[0] += gap * governor.stretch + cost
        governor.charge(cost, (0,))
        stretches.append(governor.stretch)
    return stretches


def test_a_slow_measurement_stretches_the_periods_until_it_keeps_its_share():
    stretches = governed(0.03, cost=1.0, gap=4.0, calls=60)
    assert stretches[:3] == [1, 1, 1]  # the first call warms up, three must be over
    share = 1.0 / (4.0 * stretches[-1] + 1)
    assert share <= 0.03
    assert stretches[-1] == 16


def test_a_cheap_measurement_changes_nothing_and_a_stretched_one_comes_back():
    assert set(governed(0.03, cost=0.01, gap=4.0, calls=30)) == {1}
    now = [0.0]
    governor = Governor(0.03, lambda: now[0])
    governor.stretch = 4
    for _ in range(60):
        now[0] += 10.0
        governor.charge(0.01, (0,))
    assert governor.stretch == 1


@pytest.mark.parametrize("tier1", [0.5, 2.7])
def test_what_early_calls_cost_too_much_is_repaid(tier1):
    """Costs in seconds as seen; only a call whose cost is not known yet may go over the share."""
    now = [0.0]
    governor = Governor(0.03, lambda: now[0])
    periods = 1_000, 10_000
    calls = Counter[tuple[int, ...]]()
    due = list(periods)
    for update in range(200_000):
        now[0] += 0.02
        tiers = governor.affordable(tuple(tier for tier in (0, 1) if update >= due[tier]))
        if tiers:
            cost = 9.0 if not calls else tier1 + (4.0 if 1 in tiers else 0.0)
            now[0] += cost
            governor.charge(cost, tiers)
            for tier in tiers:
                due[tier] = update + periods[tier] * governor.stretch
            if calls[tiers] > 1:
                assert governor.spent <= 0.03 * now[0]
            calls[tiers] += 1
    assert calls.total() > 10
    assert sum(count for tiers, count in calls.items() if 1 in tiers) > 1
    assert governor.spent <= 0.03 * now[0]


def test_one_slow_call_silences_nothing_for_long():
    now = [0.0]
    governor = Governor(0.03, lambda: now[0])
    moments, due = list[float](), 1_000
    for update in range(200_000):
        now[0] += 0.01
        if update >= due and governor.affordable((0,)):
            cost = 30.0 if len(moments) == 3 else 0.3
            now[0] += cost
            governor.charge(cost, (0,))
            moments.append(now[0])
            due = update + 1_000 * governor.stretch
    assert moments[4] - moments[3] > 900  # it is repaid
    assert max(after - before for before, after in pairwise(moments[4:])) < 100


def test_settings_name_their_flag():
    with pytest.raises(InputError, match=r"--diagnostics.max-overhead must be in \(0, 1\], got 2"):
        DiagnosticsSettings(max_overhead=2)


def test_a_reading_above_its_line_is_said_once_after_it_stayed():
    alarms = Alarms()
    row = {"diag/critic/all/mean/dormant_0.1": 60.0, "diag/critic/all/worst/dormant_0.1": 99.0}
    said = [alarms.watch(1000 * k, row) for k in range(1, 6)]
    assert [len(each) for each in said] == [0, 0, 1, 0, 0]
    assert said[2][0].startswith(
        "early warning: critic dormant_0.1 is 60, above 50, 3 times running"
    )
    alarms = Alarms()
    for k in range(1, 9):  # interrupted: never three in a row
        assert alarms.watch(k, {"diag/critic/all/mean/dormant_0.1": 60.0 if k % 3 else 1.0}) == []


def test_curvature_beyond_the_limit_is_said_where_gradients_double_meanwhile():
    for growth, said in ((1.2, 0), (1.5, 1)):
        alarms, found = Alarms(), []
        for k in range(3):  # gradients are measured more often
            found += alarms.watch(2 * k, {"diag/critic/all/mean/grad_norm": growth**k})
            found += alarms.watch(2 * k + 1, {"diag/critic/all/mean/stab_adam": 5.0})
        assert len(found) == said


def test_growth_that_nobody_measured_is_no_growth():
    alarms = Alarms()
    for k in range(9):
        assert alarms.watch(k, {"diag/critic/all/mean/stab_adam": 5.0}) == []
    for size in (0.0, 0.0, 0.0, 2.0):  # nothing of nothing has not doubled either
        row = {"diag/critic/all/mean/grad_norm": size, "diag/critic/all/mean/stab_adam": 5.0}
        assert alarms.watch(k, row) == []


@pytest.mark.parametrize(
    ("updates", "chosen", "period"),
    [(10**6, 0, 20_000), (36_000, 0, 1_800), (5_000, 0, 1_000), (36_000, 7_000, 7_000)],
)
def test_curvature_is_measured_twenty_times_in_a_run_and_no_more_often_than_features(
    updates, chosen, period
):
    assert DiagnosticsSettings(tier2_period=chosen).periods(updates) == (1_000, period)


def test_a_run_plans_its_measurements_by_its_updates(tmp_path):
    settings = settings_of(tmp_path / "run", "categorical", env_steps=200)
    settings.diagnostics = DiagnosticsSettings(tier1_period=10, max_overhead=1.0)
    run_whole(settings)
    columns = read_csv(tmp_path / "run" / "metrics.csv")
    found = columns["diag/critic/all/mean/hess_max"]
    assert len([value for value in found if value is not None]) > 5


@pytest.mark.parametrize("backup", ["expected", "distributional"])
@pytest.mark.parametrize("kind", ["flow", "flow_official"])
def test_a_flow_critics_fit_is_measured_while_training(kind, backup):
    subject, data = subject_with_data(kind)
    for view in (subject.views["critic"], subject.views["target_critic"]):
        view.module.settings.backup = backup
    found = {e.name: e for e in flow_shape(Context(subject=subject, data=data), {})}
    assert all(each.status == "ok" for each in found.values())
    metrics = ["flow_straight", "flow_conv_4", "flow_sigma_res", "flow_outside"]
    metrics += [f"flow_loss_{k / 8:g}" for k in range(8)]
    assert {f"flow/all/mean/{metric}" for metric in metrics} <= found.keys()
    spans = subject.views["critic"].module.range
    sigma, ratio = (found[f"flow/all/mean/flow_sigma_{name}"].value for name in ("res", "ratio"))
    assert sigma is not None
    assert ratio is not None
    assert sigma / ratio == pytest.approx((spans.noise_high - spans.noise_low) / 12**0.5)


def test_churn_over_a_period_is_what_changed_since_the_last_call_on_the_anchor():
    subject, data = subject_with_data("ppo")
    memory = dict[str, Any]()

    def period():
        found = movement_of_next_step(Context(subject=subject, data=data), memory)
        return {each.metric: each.value for each in found if each.name.endswith("_period")}

    assert period() == {}
    assert period() == {"churn_flip": 0, "churn_kl": 0, "churn_mean": 0, "churn_q": 0}
    with torch.no_grad():
        for layer in (subject.agent.actor.layers[-1], subject.agent.critic.layers[-1]):
            layer.weight.zero_()
            layer.bias.fill_(0.1)
    memory["outputs actor"] = memory["outputs actor"] * 0
    found = period()
    # Every joint from 0 to 0.1 of a range of 2: a twentieth, which is not above it.
    assert found["churn_mean"] == pytest.approx(0.05)
    assert found["churn_q"] > 0
    data = DataSets(
        recent=data.recent
    )  # before there is an anchor other states are drawn each time
    assert period() == {}


@pytest.mark.parametrize("agent", ["flashsac", "ppo"])
def test_warnings_name_only_flags_that_the_agent_has(agent):
    settings = default_settings(TASK, agent=agent, preset="laptop")
    watching, said = Alarms(advice(settings)), list[str]()
    for k in range(1, 21):
        row = {f"diag/critic/all/mean/{line.metric}": 2.0 * line.above + k for line in LINES}
        row |= {f"diag/critic/all/mean/{limit.metric}": limit.at * k / 40 for limit in LIMITS}
        row |= {f"diag/critic/all/mean/{line.grows}": 4.0**k for line in LINES if line.grows}
        said += watching.watch(1000 * k, row)
    assert len(said) == len(LINES) + len(LIMITS)
    flags = {flag for text in said for flag in re.findall(r"--([\w.-]+)", text)}
    assert flags <= {name.replace("_", "-") for name in flat(settings)}
    assert ("agent.utd" in flags, "agent.epochs" in flags) == (agent != "ppo", agent == "ppo")


@pytest.mark.parametrize(("kind", "flag"), [("categorical", "agent.utd"), ("ppo", "agent.epochs")])
def test_a_run_says_its_own_flags(tmp_path, monkeypatch, capsys, kind, flag):
    monkeypatch.setattr(alarms, "LINES", (Line("grad_norm", -1, 2, FEWER),))
    run_whole(settings_of(tmp_path / "run", kind))
    told = [text for text in capsys.readouterr().out.splitlines() if "early warning" in text]
    assert told
    assert all(f"(--{flag}, now " in text for text in told)


def test_a_warning_is_said_once_over_a_resume_and_when_it_would_have_been():
    def row(k):
        sick = {name: 60.0 + k for name in ("dormant_0.1", "stab_adam", "seem_norm")}
        sick |= {"feat_norm": float(k) ** 0.6, "grad_norm": 1.5**k, "q_abs": 1.3**k}
        return {f"diag/critic/all/mean/{name}": value for name, value in sick.items()}

    whole = Alarms()
    said = [whole.watch(1000 * k, row(k)) for k in range(1, 21)]
    assert sum(map(len, said)) == 4
    for after in (1, 4, 12):  # in the middle of each count
        first, second = Alarms(), Alarms()
        again = [first.watch(1000 * k, row(k)) for k in range(1, after + 1)]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        again += [second.watch(1000 * k, row(k)) for k in range(after + 1, 21)]
        assert again == said


def test_a_resumed_run_repeats_no_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(alarms, "LINES", (Line("grad_norm", -1, 2, FEWER),))
    run_until(settings_of(tmp_path / "run", "categorical"), 100)
    assert capsys.readouterr().out.count("early warning: critic grad_norm") == 1
    state = newest_state(tmp_path / "run")[1]["diagnostics"]
    assert state["alarms"]["said"] == ["actor/grad_norm", "critic/grad_norm"]
    finish(launch.resumed_run(tmp_path / "run"))
    assert "early warning" not in capsys.readouterr().out


def test_features_that_grow_towards_ten_times_their_size_are_announced():
    alarms, said = Alarms(), []
    for k in range(1, 21):
        said += alarms.watch(1000 * k, {"diag/critic/all/mean/feat_norm": float(k) ** 0.6})
    assert len(said) == 1
    assert "feat_norm grows as updates^0.6" in said[0]


def test_growth_from_nothing_has_no_limit_to_reach():
    alarms = Alarms()
    for k in range(21):
        assert alarms.watch(1000 * (k + 1), {"diag/critic/all/mean/feat_norm": float(k)}) == []
