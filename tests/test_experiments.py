import dataclasses
import itertools
import json
import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from benchmarks import diagnostics_overhead
from benchmarks.experiments import (
    command,
    critics,
    go1,
    high_utd_control,
    improvements,
    instability,
    learning_parity,
    maze,
    physics,
    policy_evaluation,
    reproduction,
    rounding,
)
from benchmarks.experiments.maze import ONE_WALL, THREE_WALLS, MazeEnv, moved, reached, towards
from supple import compare, machine
from supple.bench.table import append, read
from supple.cli import DONE, RESUMABLE
from supple.diagnostics import recovery
from supple.envs import EnvSettings, make
from supple.envs.check import check_env
from supple.errors import InputError
from supple.replay import Replay, ReplaySettings
from supple.replay.prefill import prefill
from supple.run import RESULT
from tests.small_runs import flags, result, run_until, run_whole, small_settings, stop_at_once

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("start", "by", "end"),
    [
        ((0.49, 0.5), (0.04, 0.0), (0.49, 0.5)),  # the wall
        ((0.49, 0.5), (0.04, 0.03), (0.49, 0.53)),  # along it
        ((0.51, 0.5), (-0.04, 0.0), (0.51, 0.5)),  # from the other side
        ((0.49, 0.9), (0.04, 0.0), (0.53, 0.9)),  # the gap
        ((0.49, 0.79), (0.04, 0.02), (0.53, 0.81)),  # where the step ends counts
        ((0.99, 0.01), (0.04, -0.04), (1.0, 0.0)),  # the edge
    ],
)
def test_a_wall_stops_what_does_not_take_the_gap(start, by, end):
    found = moved(ONE_WALL, torch.tensor(start), torch.tensor(by))
    torch.testing.assert_close(found, torch.tensor(end))


@pytest.mark.parametrize("walls", [ONE_WALL, THREE_WALLS])
@pytest.mark.parametrize("goal", [(0.9, 0.1), (0.1, 0.9)])
def test_the_way_leads_through_every_gap(walls, goal):
    at_N2 = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    goal_N2 = torch.tensor(goal)
    for _ in range(250):
        at_N2 = moved(walls, at_N2, 0.04 * towards(walls, at_N2, goal_N2))
    assert ((at_N2 - goal_N2).norm(dim=1) < 0.05).all()


def test_the_environment_keeps_the_contract():
    wrong = [finding for finding in check_env(lambda: MazeEnv(4, CPU)) if not finding.ok]
    assert not wrong


def test_prior_data_are_episodes_a_third_of_which_pass_the_wall():
    data = maze.prior_data(ONE_WALL, 5_000, seed=0)
    assert {len(column) for column in data.values()} == {5_000}
    before, after = data["observation/policy"], data["next_observation/policy"]
    ended = data["terminated"] | data["truncated"]
    episodes = torch.tensor_split(after[:, 0], torch.nonzero(ended)[:, 0] + 1)
    assert 0.2 < np.mean([bool((x > 0.5).any()) for x in episodes]) < 0.4
    assert torch.equal(after[:-1][~ended[:-1]], before[1:][~ended[:-1]])
    assert torch.equal(data["terminated"], reached(after))


def test_prior_data_are_what_prefill_reads(tmp_path):
    maze.write_prior_data(tmp_path / "prior.safetensors", ONE_WALL, 1_000, seed=0)
    replay = Replay(MazeEnv(1, CPU).spec, ReplaySettings(capacity=2_000))
    assert prefill(replay, tmp_path / "prior.safetensors") == 1_000


def small(updates=24):
    return dataclasses.replace(policy_evaluation.SETTINGS["utd 8"], updates=updates)


@pytest.fixture(scope="module")
def known():
    return policy_evaluation.truth()


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def test_true_values_are_those_of_the_pilot(known):
    assert known.value_N.std() == pytest.approx(8.5, abs=0.1)
    assert policy_evaluation.WORST < known.value_N.min() < -25
    near = reached(known.state_N2)
    assert known.value_N[near].mean() > -3


@pytest.mark.parametrize("critic", policy_evaluation.CRITICS)
def test_every_critic_learns_something(critic, known):
    setting = dataclasses.replace(small(), updates=160)
    (row,) = policy_evaluation.run_shard(setting, critic, [0], known)
    untrained = policy_evaluation.make_learner(critic, 1, torch.Generator().manual_seed(1))
    before = policy_evaluation.root_mean_square(untrained, known, 1)
    assert float(row["rmse final"]) < 0.9 * before.item()
    assert float(row["rmse final"]) <= float(row["rmse worst after 25 %"])


def test_a_seed_has_the_same_data_whatever_runs_beside_it():
    alone, beside = (policy_evaluation.collect(50, seeds) for seeds in ([3], [1, 3]))
    assert torch.equal(alone.state_ET2[0], beside.state_ET2[1])
    assert torch.equal(alone.next_ET2[0], beside.next_ET2[1])
    assert not torch.equal(beside.state_ET2[0], beside.state_ET2[1])


@pytest.mark.parametrize("critic", ["scalar", "categorical", "flow", "endpoint"])
def test_a_seed_learns_from_its_own_data_only(critic):
    learner = policy_evaluation.make_learner(critic, 2, torch.Generator().manual_seed(0))
    state = torch.rand(2, 16, 2, generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(16, 2 * learner.samples, generator=torch.Generator().manual_seed(2))
    target = -50 * state[..., 0]
    named = dict(learner.named_parameters())

    def gradients(state, target):
        """Of the first seed, and of the second."""
        loss = learner.loss(state, target, uniform)
        found = torch.autograd.grad(
            loss, list(named.values()), allow_unused=True, materialize_grads=True
        )
        members = [
            part.unbind(1 if "_L" in name else 0) for name, part in zip(named, found, strict=True)
        ]
        return list(zip(*members, strict=True))

    own = gradients(state, target)
    other_state = torch.stack((state[0], 0.3 * state[1]))
    other = gradients(other_state, torch.stack((target[0], state[1, :, 0])))
    for before, after in zip(own[0], other[0], strict=True):
        torch.testing.assert_close(before, after)
    assert any(not torch.equal(b, a) for b, a in zip(own[1], other[1], strict=True))


def test_what_a_file_has_is_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(policy_evaluation, "ROWS", tmp_path / "rows.csv")
    monkeypatch.setattr(policy_evaluation, "SETTINGS", {"utd 8": small()})
    asked = ["--settings", "utd 8", "--critics", "scalar", "--seeds"]
    monkeypatch.setattr("sys.argv", ["x", *asked, "0", "1"])
    policy_evaluation.main()
    first = read(policy_evaluation.ROWS)
    monkeypatch.setattr("sys.argv", ["x", *asked, "0", "1", "2"])
    policy_evaluation.main()
    rows = read(policy_evaluation.ROWS)
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    assert rows[:2] == first
    assert "final RMSE" in capsys.readouterr().out


def errors_of(*rows):
    """What is read from rows of setting, critic, seed and final error."""
    columns = ("setting", "critic", "seed", "rmse final")
    written = [dict(zip(columns, map(str, row), strict=True)) for row in rows]
    return policy_evaluation.grouped(written, "rmse final")


def test_the_verdict_can_be_no():
    few = [("utd 32", "flow", seed, 3 + seed) for seed in (0, 1)]
    few += [("utd 32", "scalar", seed, 1 + seed) for seed in (0, 1)]
    plenty = [("plenty", "scalar", seed, 1 + seed) for seed in (0, 1)]
    plenty += [("plenty", "flow", seed, 3 + seed) for seed in (0, 1)]
    lines = policy_evaluation.verdict(errors_of(*few, *plenty))
    assert "NOT reproduced" in lines[0] and "0 of 2 seeds" in lines[0]
    assert lines[1].endswith("not run")
    assert "reproduced, mean RMSE 1.50 against 3.50" in lines[2] and "NOT" not in lines[2]


def test_critics_are_compared_seed_by_seed_on_the_seeds_that_both_have():
    flow = [("utd 32", "flow", seed, error) for seed, error in ((0, 1), (1, 5), (2, 9))]
    scalar = [("utd 32", "scalar", seed, error) for seed, error in ((1, 6), (0, 2), (3, 0))]
    lines = policy_evaluation.verdict(errors_of(*flow, *scalar))
    assert "mean RMSE 3.00 against 4.00 (1.33x; 2 of 2 seeds)" in lines[0]


def test_a_blank_cell_of_a_measurement_is_reported_as_none(capsys, monkeypatch):
    committed = read(policy_evaluation.ROWS)
    rows = [row | {"recovery index K=8": ""} for row in committed if row["critic"] == "flow"]
    monkeypatch.setattr(policy_evaluation, "read", lambda path: rows)
    policy_evaluation.report()
    assert "nan" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [1, 8])
def test_a_flow_is_compared_with_more_steps_than_its_own(steps, known, monkeypatch):
    def asked(*given, counts):
        raise LookupError(counts)  # what comes after it takes seconds

    monkeypatch.setattr(recovery, "step_sweep", asked)
    later, earlier = (
        policy_evaluation.make_learner(f"flow K={steps}", 1, torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    )
    with pytest.raises(LookupError, match=rf"\({steps}, 64\)"):
        policy_evaluation.measure(later, earlier, known, 1)


def test_two_processes_that_train_one_shard_leave_its_rows_once(tmp_path, known, monkeypatch):
    monkeypatch.setattr(policy_evaluation, "truth", lambda: known)
    monkeypatch.setattr(policy_evaluation, "ROWS", tmp_path / "rows.csv")
    monkeypatch.setattr(policy_evaluation, "SETTINGS", {"utd 8": small()})
    monkeypatch.setattr("sys.argv", ["x", "--critics", "scalar", "--seeds", "0", "1"])
    alone = policy_evaluation.run_shard

    def beside_another(*given):
        monkeypatch.setattr(policy_evaluation, "run_shard", alone)
        policy_evaluation.main()
        return alone(*given)

    monkeypatch.setattr(policy_evaluation, "run_shard", beside_another)
    policy_evaluation.main()
    assert [row["seed"] for row in read(policy_evaluation.ROWS)] == ["0", "1"]


def curves_of(flow, scalar):
    """Three seeds of each, success by step."""
    return {(64, "flow"): [flow] * 3, (64, "scalar"): [scalar] * 3}


STEPS = range(500, 5001, 500)
EARLY = {step: float(step >= 1000) for step in STEPS}
LATE = {step: 0.5 * float(step >= 4000) for step in STEPS}


def test_what_was_said_before_any_run_is_applied_as_said():
    verdict = high_utd_control.verdict
    assert verdict({}) == "UTD 64: flow or scalar not run yet"
    assert verdict(curves_of(EARLY, LATE)).startswith("reproduced.")
    assert verdict(curves_of(LATE, EARLY)).startswith("not reproduced.")
    assert verdict(curves_of(EARLY, EARLY)).startswith("not reproduced.")
    fallen = {(16, "flow"): [LATE] * 3, (16, "scalar"): [EARLY] * 3}
    assert verdict(curves_of(LATE, LATE) | fallen).startswith("partially reproduced.")


def test_a_scalar_that_never_succeeds_proves_nothing():
    never = dict.fromkeys(STEPS, 0.0)
    assert high_utd_control.verdict(curves_of(EARLY, never)).startswith("not reproduced.")


def few_flags():
    """In place of the experiment's: runs of two seconds."""
    return (
        *("--env-steps", "40", "--agent.min-replay", "1", "--agent.update-every", "1"),
        *("--preset", "laptop", "--agent.batch-size", "8", "--compute.compile", "off"),
        *("--agent.next-actions", "4", "--replay.capacity", "20040", "--eval.every", "20"),
        *("--eval.episodes", "1", "--eval.no-video"),
    )


def test_finished_runs_become_rows_once(tmp_path, monkeypatch):
    monkeypatch.setattr(high_utd_control, "ROWS", tmp_path / "rows.csv")
    monkeypatch.setattr(high_utd_control, "COMMON", few_flags())
    asked = ["x", "--utd", "1", "--seeds", "0", "--critics", "scalar", "zero"]
    monkeypatch.setattr("sys.argv", [*asked, "--out", str(tmp_path / "runs")])
    for _ in range(2):
        high_utd_control.main()
        rows = read(high_utd_control.ROWS)
        assert {row["load"] for row in rows} == {""}  # of the run, not of who collects
        assert [(row["critic"], row["step"]) for row in rows] == [
            (critic, step) for critic in ("scalar", "zero") for step in ("20", "40")
        ]


def test_flow_q_learning_runs_with_each_alpha_beside_the_other_actor(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(high_utd_control, "ROWS", tmp_path / "rows.csv")
    monkeypatch.setattr(high_utd_control, "COMMON", few_flags())
    asked = ["x", "--utd", "1", "--seeds", "0", "--critics", "scalar"]
    asked += ["--out", str(tmp_path / "runs")]
    for more in ([], ["--actor", "FQL", "--alphas", "1", "3"], ["--actor", "FQL"]):
        assert "scalar: alpha 1" not in capsys.readouterr().out  # not before all three
        monkeypatch.setattr("sys.argv", [*asked, *more])
        high_utd_control.main()
    found = [row["actor"] for row in read(high_utd_control.ROWS) if row["step"] == "40"]
    assert found == ["SAC", "FQL 1", "FQL 3", "FQL 10"]
    assert "scalar: alpha 1" in capsys.readouterr().out  # all failed: the smallest


def test_each_critic_has_the_alpha_of_its_largest_area_at_one_update_a_step(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(high_utd_control, "ROWS", tmp_path / "rows.csv")
    rows = [
        {
            "maze": "one_wall",
            "actor": f"FQL {alpha}",
            "utd": utd,
            "critic": critic,
            "seed": str(seed),
            "step": "250",
            "success": success,
        }
        for critic, best in (("scalar", "1"), ("flow", "10"), ("zero", "3"))
        for alpha in ("1", "3", "10")
        for utd, success in (("1", 0.5 * (alpha == best)), ("64", 0.25 + (alpha == best) / 2))
        for seed in range(1 if (critic, alpha) == ("zero", "1") else 2)
    ]
    append(rows, high_utd_control.ROWS, "test")
    found = high_utd_control.tuned("one_wall")
    assert found[64, "scalar"] == found[64, "flow"] == [{250: 0.75}] * 2
    assert (64, "zero") not in found
    assert "zero: alpha not chosen yet" in capsys.readouterr().out


def test_a_switch_helps_only_where_its_interval_says_so():
    ends = {"default": (50, 60, 70), "better": (110, 120, 130), "like it": (40, 60, 80)}
    rows = [
        {"regime": "few", "task": task, "variant": variant, "seed": str(seed), "return": str(value)}
        for task in improvements.REGIMES["few"][0]
        for variant, values in ends.items()
        for seed, end in enumerate(values)
        for value in (0, end / 2, end)
    ]
    first, better, same = improvements.summary(rows)
    assert first["final return"] == "0.50"
    assert first["verdict, final return"] == "-"
    assert better["final return"] == "1.00"
    assert better["verdict, final return"] == better["verdict, over the run"] == "helps"
    assert same["difference, final return"][0] == "-"
    assert same["verdict, final return"] == "no difference"
    assert {line["seeds"] for line in (first, better, same)} == {"3"}
    _, better, _ = improvements.summary([row for row in rows if row["seed"] != "2"])
    assert better["verdict, final return"] == "too few seeds"


@pytest.mark.parametrize(
    ("theirs", "over_the_run", "at_its_end"),
    [
        ((12, 22, 32), "alike", "alike"),
        ((112, 122, 132), "apart", "apart"),
        ((12, 22, 232), "alike", "alike"),  # one seed far off decides nothing
    ],
)
def test_codes_learn_alike_where_the_interval_of_their_difference_holds_0(
    theirs, over_the_run, at_its_end
):
    rows = [
        {"variant": variant, "seed": str(seed), "return": str(value)}
        for variant, ends in (("published", theirs), ("supple", (10, 20, 30)))
        for seed, end in enumerate(ends)
        for value in (0, end)
    ]
    ours, published = learning_parity.summary(rows)
    assert (ours["code"], ours["over the run"], ours["at its end"]) == ("supple", "10", "20")
    assert ours["difference, over the run"].endswith(over_the_run)
    assert ours["difference, at its end"].endswith(at_its_end)
    assert (published["code"], published["difference, at its end"]) == ("published", "-")
    few, _ = learning_parity.summary([row for row in rows if row["seed"] != "2"])
    assert few["difference, at its end"].endswith("too few seeds")
    alone = learning_parity.summary([row for row in rows if row["variant"] == "supple"])
    assert [line["difference, over the run"] for line in alone] == ["-"]


def test_ours_is_planned_beside_the_published_agent(tmp_path):
    planned = compare.plan(
        learning_parity.TASK, [0], [f"{learning_parity.OURS}:"], learning_parity.FLAGS, tmp_path
    )
    assert [job.variant for job in planned] == ["supple"]


def test_the_published_agent_is_trained_as_its_own_loop_does(monkeypatch):
    class Recorder:
        def __init__(self):
            self.transitions, self.updates = [], 0

        def can_start_training(self):
            return len(self.transitions) >= 20

        def sample_actions(self, step, transition, training):
            assert transition["next_observation"].shape == (1, 17)
            return np.full((1, 6), 0.5 if training else -0.5, np.float32)

        def process_transition(self, transition):
            self.transitions.append(transition)

        def update(self):
            self.updates += 1

    agent = Recorder()
    monkeypatch.setattr(learning_parity, "official_agent", lambda *args, **changed: agent)
    for name, value in (("STEPS", 1002), ("EVERY", 501), ("EPISODES", 1)):
        monkeypatch.setattr(learning_parity, name, value)
    rows = list(learning_parity.published_run(None, seed=0))
    assert [row["step"] for row in rows] == [501, 1002]
    assert agent.updates == 1002 - 19  # from the step that made enough of them
    acted = [bool((each["action"] == 0.5).all()) for each in agent.transitions]
    assert acted == [False] * 20 + [True] * 982
    ends = [i for i, each in enumerate(agent.transitions) if each["truncated"][0]]
    assert ends == [999]
    for i, (before, after) in enumerate(itertools.pairwise(agent.transitions)):
        follows = np.array_equal(before["next_observation"], after["observation"])
        assert follows == (i not in ends), i


def test_critics_are_told_apart_only_by_an_interval_without_a_half():
    ends = {"categorical": (10, 20, 30), "scalar": (40, 50, 60), "flow": (5, 20, 35)}
    rows = [
        {"variant": critic, "seed": str(seed), "return": str(value)}
        for critic, values in ends.items()
        for seed, end in enumerate(values)
        for value in (0, end)
    ]
    first, better, same = critics.summary(rows)
    assert (first["final return"], first["over the run"], first["told apart"]) == ("20", "10", "-")
    assert (better["better than categorical"], better["told apart"]) == ("1.00", "yes")
    assert (same["better than categorical"], same["told apart"]) == ("0.50", "no")
    few = critics.summary([row for row in rows if row["seed"] != "2"])
    assert [line["told apart"] for line in few] == ["-", "too few seeds", "too few seeds"]


def test_equal_simulators_step_alike_and_a_python_without_one_is_named(monkeypatch):
    monkeypatch.setattr(physics, "STATES", 12)
    row = physics.compared("Hopper-v4", sys.executable)
    assert row["here"] == row["other"]
    assert {row[name] for name in ("median", "largest", "largest of reward")} == {"0.0e+00"}
    assert physics.summary([row, row]) == physics.summary([row])
    with pytest.raises(InputError, match="cannot step Hopper-v4: status 1"):
        physics.compared("Hopper-v4", "/bin/false")
    with pytest.raises(InputError, match="cannot run"):
        physics.compared("Hopper-v4", "/nowhere")


def test_a_curve_is_reproduced_by_what_was_said_before_any_run():
    ends = {"gym/HalfCheetah-v4": (8900, 9000), "gym/Hopper-v4": (1000,), "dmc/dog-stand": (400,)}
    rows = [
        {"task": task, "seed": str(seed), "step": str(step), "return": str(value)}
        for task, values in ends.items()
        for seed, end in enumerate(values)
        for step, value in ((10_000, 0), (100_000, end))
    ]
    cheetah, hopper, dog = reproduction.summary(rows)
    assert cheetah["said"] == "missed"  # 8950 of 9000
    assert hopper["said"] == "reached"  # 2120 - 1176 = 944
    assert dog["said"] == "missed"  # 537 - 72 = 465
    assert cheetah["published"] == "9815 ± 174 (5 seeds)"
    assert cheetah["of published"] == "0.91"
    assert all(reproduction.published(task)[0] > 0 for task in reproduction.TASKS)


def test_a_finished_run_is_recorded_once_with_where_it_ran(tmp_path):
    flags = "--preset laptop --env-steps 40 --replay.capacity 200 --agent.min-replay 40"
    flags += " --eval.every 20 --eval.episodes 2 --eval.no-video --device cpu"
    (job,) = compare.plan("toy/lqr", [3], [], flags.split(), tmp_path / "runs")
    rows = tmp_path / "rows.csv"
    command.record([job], rows, "it")
    assert not rows.exists()
    assert compare.run_queue([job], 1) == 0
    versions = job.folder / "versions.json"
    versions.write_text(json.dumps(json.loads(versions.read_text()) | {"commit": "abc"}))
    for _ in range(2):
        command.record([job], rows, "it", regime="few")
    found = read(rows)
    assert [row["step"] for row in found] == ["24", "40"]
    named = ("regime", "task", "variant", "seed", "threads", "commit", "command")
    said = {tuple(row[name] for name in named) for row in found}
    assert said == {("few", "toy/lqr", "default", "3", str(machine.cores()), "abc", "it")}


@pytest.mark.parametrize(
    ("ends", "said"),
    [(InputError("expected a run"), "expected a run"), (KeyboardInterrupt(), "stopped at once")],
)
def test_what_ends_a_command_early_is_one_line(ends, said):
    def main():
        raise ends

    with pytest.raises(SystemExit, match=said) as exit:
        command.start(main)
    assert isinstance(exit.value.code, str)  # which Python prints, and exits with 1


def test_the_go1_is_turned_as_its_gravity_says():
    pitch, yaw = 0.3, 0.5
    gravity = np.array([np.sin(pitch), 0, -np.cos(pitch)])  # nose down
    turn = go1.rotation(gravity, yaw)
    ahead = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
    np.testing.assert_allclose(turn @ [1, 0, 0], ahead, atol=1e-12)
    np.testing.assert_allclose(turn @ gravity, [0, 0, -1], atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)


def test_a_go1_is_measured_until_its_first_end():
    seen = np.zeros((4, 2, 123))
    seen[:, :, go1.COMMANDED] = 0.6, 0.8, 0.5
    seen[:, 0, go1.VELOCITY] = 0.6, 0.5, 9.0  # up and down does not count
    seen[2:, 1, go1.VELOCITY] = 99.0
    live = np.array([[1, 1], [1, 1], [1, 0], [1, 0]], dtype=bool)
    found = go1.tracking(go1.Episodes(seen, live, np.array([False, True])))
    assert found["velocity error [m/s]"] == pytest.approx(np.sqrt((4 * 0.09 + 2 * 1) / 6))
    assert found["standing still [m/s]"] == pytest.approx(1)
    assert found["yaw rate error [rad/s]"] == found["standing still [rad/s]"] == pytest.approx(0.5)
    assert found["fell"] == 0.5
    assert not go1.walks(found)
    assert go1.walks(found | {"velocity error [m/s]": 0.5, "fell": 0.1})


def test_the_go1s_critic_sees_what_the_film_replays(tmp_path):
    pytest.importorskip("envpool")
    compare.plan(go1.TASK, [0], [], go1.FLAGS, tmp_path)  # takes the flags
    seen = []
    with closing(make(go1.TASK, EnvSettings(num_envs=1), device=CPU, seed=0)) as env:
        obs = env.reset(0)["observation"]
        for _ in range(4):
            seen.append(obs["critic"][0].double().numpy().copy())
            obs = env.step(torch.zeros(1, 12))["observation"]
        commanded = obs["policy"][0, go1.COMMANDED].double().numpy()
    seen_TD = np.stack(seen)
    assert (seen_TD[:, go1.COMMANDED] == commanded).all()
    np.testing.assert_allclose(np.linalg.norm(seen_TD[:, go1.GRAVITY], axis=1), 1, atol=1e-5)
    assert (seen_TD[:, go1.GRAVITY][:, 2] < -0.9).all()
    assert (np.abs(seen_TD[:, go1.JOINTS]) < 0.5).all()
    np.save(tmp_path / "seen.npy", seen_TD)
    code = (
        "import sys; from pathlib import Path; import numpy as np;"
        " from benchmarks.experiments import go1;"
        " go1.film(np.load(sys.argv[1]), 0.02, Path(sys.argv[2]))"
    )
    # Alone: MuJoCo, once imported, keeps to the way of drawing that it found then.
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "seen.npy", tmp_path / "film.webp"],
        env=os.environ | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")},
        check=True,
    )
    assert len(list(ImageSequence.Iterator(Image.open(tmp_path / "film.webp")))) == 2


def test_noise_averages_out_and_bias_does_not():
    reference = torch.tensor([[3.0, 0.0], [5.0, 0.0]])  # mean length 4
    found = rounding.compared(reference, reference + torch.tensor([[0.0, 2.0], [0.0, -2.0]]))
    assert found["between minibatches"] == pytest.approx(2**0.5 / 4)
    assert found["rounding"] == pytest.approx(2 / 4)
    assert found["bias"] == 0 and found["cosine"] == pytest.approx(1)
    assert rounding.is_harmless(found)
    found = rounding.compared(reference, reference + torch.tensor([0.0, 3.0]))
    assert found["bias"] == pytest.approx(3 / 4) and found["cosine"] == pytest.approx(4 / 5)
    assert found["noise in the bias"] == 0 and not rounding.is_harmless(found)


def test_gradients_on_two_paths_come_from_the_same_minibatches(tmp_path, monkeypatch):
    monkeypatch.setattr(rounding, "MINIBATCHES", 2)
    monkeypatch.setattr(
        rounding, "PATHS", {"again": rounding.REFERENCE, "bfloat16": ("bfloat16", "off")}
    )
    run = run_whole(small_settings("toy/lqr", tmp_path / "run", env_steps=200))
    rows = rounding.measure(run.folder / "checkpoints" / "step_200")
    assert [(row["path"], row["network"]) for row in rows] == [
        (path, network) for path in ("again", "bfloat16") for network in ("actor", "critic")
    ]
    for row in rows:
        assert (float(row["rounding"]) == 0) == (row["path"] == "again")
        assert float(row["between minibatches"]) > 0


@pytest.fixture
def unstable(tmp_path, monkeypatch):
    """The instability experiment on a toy; its folder of runs."""
    monkeypatch.setattr(instability, "ROWS", tmp_path / "rows.csv")
    given = " ".join([*flags(), "--env-steps", "60", "--checkpoint.every", "60"])
    monkeypatch.setattr(instability, "TASKS", {"lqr": ("toy/lqr", given)})
    return tmp_path / "runs"


def test_a_run_that_was_stopped_is_trained_to_its_end_before_it_is_analysed(unstable):
    folder = unstable / "lqr"
    run_until(small_settings("toy/lqr", folder, env_steps=60), 20)
    assert not (folder / RESULT).exists()
    for _ in range(2):
        assert instability.train_missing(folder, "lqr") == DONE
        assert result(folder)["env_steps"] == 60


def test_a_run_that_is_stopped_is_not_analysed(unstable, monkeypatch):
    monkeypatch.setattr("supple.train.train", stop_at_once)
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(unstable)])
    assert instability.main() == RESUMABLE
    assert not instability.ROWS.exists()


def test_what_diagnostics_cost_is_not_told_from_a_stopped_run(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnostics_overhead, "RESULTS", tmp_path / "rows.csv")
    monkeypatch.setattr(diagnostics_overhead, "train", stop_at_once)
    monkeypatch.setattr(sys, "argv", ["x", "--task", "toy/lqr", "--env-steps", "2000"])
    with pytest.raises(SystemExit, match=f"^{RESUMABLE}$"):
        diagnostics_overhead.main()
    assert not diagnostics_overhead.RESULTS.exists()
