"""Gradient steps that are not finite are left out, named, kept for replay, and cured."""

import copy
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from supple import checkpoint, distributed, launch
from supple.agents import PPO, FlashSAC, PPOSettings
from supple.agents.adam import Adam
from supple.agents.care import CareSettings, Caught, Skips, all_finite, undo_unless
from supple.cli import DONE, FAILED, main
from supple.divergence import DUMPS, Divergence, first_bad
from supple.errors import DivergedError
from tests.agents.small_agents import (
    assert_same_bits,
    generator,
    random_batch,
    random_noise,
    small_agent,
    small_spec,
    snapshot,
    step_inputs,
)
from tests.small_runs import finish, flags, run_whole, small_settings
from tests.small_worlds import in_processes, start, statuses

NAN = math.nan
REPROJECTED = 1.2e-7
"""One unit of float32 at 1: weights that a step left alone are still projected again."""


def parts(agent, *names):
    state = snapshot(agent)
    return {name: state[name] for name in names}


def steps_of_adam(masked):
    """Three steps, the second with NaN; by selection where ``masked``, else by a branch."""
    param = torch.ones(4)
    adam = Adam([param])
    state = {"param": param, **adam.state_dict()}
    kept = []
    for number, value in enumerate((0.5, NAN, -0.25), start=1):
        adam.begin(0.1, number)

        def step(gradient, flag):
            adam.step((gradient,), enabled=flag)
            return gradient

        gradient = torch.full((4,), value)
        good = all_finite(gradient.sum(), [gradient])
        (make_fx(step) if masked else step)(gradient, good)
        kept.append(copy.deepcopy(state))
    return kept


def test_a_bad_step_changes_nothing_by_branch_and_by_selection():
    first, second, third = steps_of_adam(masked=False)
    assert_same_bits(first, second)
    assert not torch.equal(second["param"], third["param"])
    # Tracing runs the step, too: by then the flag is a tensor nobody may read.
    assert_same_bits(steps_of_adam(masked=True)[1], second)


def test_scaling_by_zero_would_not_do():
    """The negative control: NaN times 0 is NaN."""
    param, gradient = torch.ones(2), torch.full((2,), NAN)
    assert (param - 0.0 * gradient).isnan().all()
    before = param.clone()
    param.copy_(param - gradient)
    undo_unless(torch.tensor(False), [param], [before])
    assert param.tolist() == [1, 1]


@pytest.mark.parametrize("gradient", [NAN, math.inf, 1e30])
def test_what_counts_as_not_finite(gradient):
    fine = torch.ones(3)
    assert all_finite(torch.tensor(1.0), [fine])
    assert not all_finite(torch.tensor(NAN), [fine])
    assert not all_finite(torch.tensor(1.0), [fine, torch.tensor([0.0, gradient])])


def test_flashsac_leaves_a_bad_minibatch_out():
    agent, random = small_agent(), generator(0)
    for _ in range(3):
        agent.learn(random_batch(agent, random), *random_noise(random))
    before = snapshot(agent)
    batch = random_batch(agent, random)
    batch.critic_obs_2BD[3, 2] = NAN
    agent.learn(batch, *random_noise(random))
    after = snapshot(agent)
    assert_same_bits(before["optimizers"], after["optimizers"])
    assert_same_bits(before["log_alpha"], after["log_alpha"])
    for name in ("actor", "critic", "target_critic"):
        for key, value in after[name].items():
            if "running" in key:
                assert torch.equal(value, before[name][key]), key
            elif name != "target_critic":  # which follows the critic all the same
                assert (value - before[name][key]).abs().max() <= REPROJECTED, key
            assert torch.isfinite(value).all()
    assert (agent.skips.skipped(), agent.skips.longest()) == (1, 1)
    agent.learn(random_batch(agent, random), *random_noise(random))
    assert (agent.skips.skipped(), agent.skips.longest()) == (1, 0)


@pytest.mark.parametrize(
    ("step", "critic"),
    [
        ("_update_actor", "categorical"),
        ("_update_critic", "categorical"),
        ("_update_critic", "flow"),
    ],
)
def test_a_traced_step_leaves_it_out_by_selection(step, critic):
    """What is compiled, run on a minibatch that is bad."""
    agent = small_agent(critic=critic)
    inputs = step_inputs(agent, step)
    function = getattr(agent, step)
    graph = make_fx(lambda *values: function(*values))(*inputs)
    before = snapshot(agent)
    inputs[0][0, 0] = NAN
    inputs[1][0, 0] = NAN
    with torch.no_grad():
        graph(*inputs)
    after = snapshot(agent)
    assert_same_bits(before["optimizers"], after["optimizers"])
    for name in ("actor", "critic", "target_critic"):
        assert all(torch.isfinite(value).all() for value in after[name].values())
    assert agent.skips.skipped() == 1
    good, others = snapshot(agent), small_agent(critic=critic)
    others.load_state_dict(good)
    inputs[0][0, 0] = inputs[1][0, 0] = 0.0
    with torch.no_grad():
        graph(*inputs)
    assert agent.skips.longest() == 0
    assert not torch.equal(
        agent.state_dict()["optimizers"]["actor" if "actor" in step else "critic"]["mean"][0],
        good["optimizers"]["actor" if "actor" in step else "critic"]["mean"][0],
    )


def small_ppo(**changes):
    sizes = {"rollout_steps": 4, "actor_hidden": (8,), "critic_hidden": (8,)}
    return PPO(small_spec(), PPOSettings(**{**sizes, **changes}), total_env_steps=1000)


@pytest.mark.parametrize("kl_stop", [0.0, 10.0])
def test_ppo_leaves_a_bad_minibatch_out(kl_stop):
    agent = small_ppo(kl_stop=kl_stop)
    rows = torch.rand(8, sum(agent._fields.values()))
    agent._learn_step(rows)
    before = parts(agent, "actor", "critic", "distribution", "optimizer", "rate")
    sums = agent._sums.clone()
    bad = rows.clone()
    bad[2, 0] = NAN
    agent._learn_step(bad)
    assert_same_bits(before, parts(agent, *before))
    assert torch.equal(agent._sums, sums), "means over the phase stay numbers"
    assert agent.skips.skipped() == 1


def caught(agent, batch=None):
    random = generator(5)
    agent.learn(batch or random_batch(agent, random), *random_noise(random))
    assert agent.skips.caught is not None
    return agent.skips.caught


def test_the_first_bad_tensor_is_named():
    agent = small_agent(critic="scalar")
    with torch.no_grad():
        agent.critic.head.bias.fill_(3e19)
    before = snapshot(agent)["critic"]
    found = first_bad(agent, caught(agent))
    assert found.startswith("pow.Tensor_Scalar after critic made the first one, from finite")
    assert_same_bits(before["head.bias"], agent.state_dict()["critic"]["head.bias"])

    agent = small_agent()
    with torch.no_grad():
        agent.critic.trunk.block[0].linear1.weight[0, 0, 0] = NAN
    expected = "critic.trunk.block.0.linear1.weight held NaN or infinity before the step"
    assert first_bad(agent, caught(agent)) == expected

    agent = small_agent()
    batch = random_batch(agent, generator(3))
    batch.reward_B[7] = NAN
    expected = "its minibatch held NaN or infinity (input 3, row 7)"
    assert first_bad(agent, caught(agent, batch)) == expected


def test_a_gpus_newest_step_is_caught_when_it_is_looked_for(monkeypatch):
    monkeypatch.setattr("supple.agents.care.is_readable", lambda flag: False)
    skips = Skips(("step",), torch.device("cpu"))
    given = (torch.ones(2),)
    skips.count("step", torch.tensor(False))
    skips.note(("step",), given, dict)
    before = skips.caught
    skips.catch(dict)
    assert before is None
    assert skips.caught is not None
    assert torch.equal(skips.caught.inputs[0], given[0])
    skips.forget()
    skips.count("step", torch.tensor(True))
    skips.catch(dict)
    assert not skips.caught


def test_a_step_is_not_caught_for_one_of_another_kind(tmp_path):
    """Every other step of FlashSAC moves the critic alone."""
    agent, random = small_agent(), generator(0)
    batch = random_batch(agent, random)
    batch.critic_obs_2BD[3, 2] = NAN
    assert caught(agent, batch).inputs[1].isnan().any()
    agent.skips.caught = None  # the host took it
    agent.learn(random_batch(agent, random), *random_noise(random))
    assert (agent.skips.in_a_row["actor"], agent.skips.in_a_row["critic"]) == (1, 0)
    assert agent.skips.caught is None
    # What a GPU would find: the bad step is not the newest.
    replay: Any = None
    care = Divergence(CareSettings(), agent=agent, replay=replay, folder=tmp_path, header={})
    (news,) = care.after_update(100)
    assert news.endswith("left out, 2 so far: not the newest one, which is all that a GPU keeps")
    assert care.after_update(200) == []
    assert not list(tmp_path.iterdir())


# --- whole runs ------------------------------------------------------------------------------


def poisoned(settings, at, *, lasting=False):
    """A run whose network gets a NaN at these environment steps, and after them where lasting."""
    run = launch.new_run(settings)
    record, agent = run.record, run.agent
    assert isinstance(agent, FlashSAC | PPO)
    left = list(at)

    def record_and_poison(*step):
        obs = record(*step)
        if left and run.env_steps >= left[0]:
            if not lasting:
                left.pop(0)
            with torch.no_grad():
                next(agent.critic.parameters()).view(-1)[0] = NAN
        return obs

    run.record = record_and_poison  # type: ignore[method-assign]
    return run


def settings_of(agent, folder, **care):
    settings = small_settings("toy/lqr", folder, env_steps=400, agent=agent)
    settings.checkpoint.every = 100
    if agent == "flashsac":
        settings.agent.utd = 1.0
    for name, value in care.items():
        setattr(settings.care, name, value)
    return settings


def test_many_bad_steps_in_a_row_go_back_to_the_checkpoint(agent, tmp_path, capsys):
    run = finish(poisoned(settings_of(agent, tmp_path / "run"), [210]))
    assert run.complete
    assert run.agent.rate_scale == 0.5
    assert all(torch.isfinite(value).all() for value in run.agent.critic.parameters())
    said = capsys.readouterr().out
    assert re.search(r"a gradient step was not finite and was left out, \d so far: critic\.", said)
    assert "held NaN or infinity before the step; to repeat it: supple doctor --nan-dump" in said
    assert "gradient steps in a row were not finite: the networks are those of step_200" in said
    row = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["agent/skipped_updates"] >= 10
    assert row["agent/rollbacks"] == 1
    again = launch.resumed_run(run.folder, 500)
    with again:
        again.start()
    assert again._divergence.state_dict() == run._divergence.state_dict()

    dump = checkpoint.list_checkpoints(run.folder / DUMPS)[0]
    assert main(["doctor", "--nan-dump", str(dump)]) == DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "held NaN or infinity before the step" in said
    assert "toy/lqr" in said
    (dump / "manifest.json").write_text("{}")
    assert main(["doctor", "--nan-dump", str(dump)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bad_row_and_a_bad_step_at_once_are_both_kept(agent, tmp_path):
    run = run_whole(settings_of(agent, tmp_path / "run"))
    step = run._divergence._dump(Caught((torch.ones(1),), {}), 400)
    said = run._divergence.keep({"reward": torch.ones(1)}, "said", 400)
    row = Path(said.rpartition(" ")[2])
    assert checkpoint.load(step).state.keys() == {"agent", "inputs", "steps"}
    assert checkpoint.load(row).state.keys() == {"row", "steps"}


def test_processes_go_back_together(agent, tmp_path, capfd):
    def work():
        at = [210] if distributed.world().rank == 1 else []
        run = finish(poisoned(settings_of(agent, tmp_path / "run"), at))
        assert run.complete
        weights = torch.cat([value.detach().flatten() for value in run.agent.critic.parameters()])
        return {"rate": torch.tensor(run.agent.rate_scale), "weights": weights}

    first, other = in_processes(2, work, tmp_path)
    assert first["rate"] == other["rate"] == 0.5
    assert torch.isfinite(first["weights"]).all()
    assert torch.equal(first["weights"], other["weights"])
    said = " ".join(capfd.readouterr().out.split())
    assert "this process's part of it is finite, those of the others are in ranks/*/nan" in said
    dump = checkpoint.list_checkpoints(tmp_path / "run" / "ranks" / "1" / DUMPS)[0]
    assert main(["doctor", "--nan-dump", str(dump)]) == DONE
    assert "held NaN or infinity before the step" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("at", [60, 210])
def test_what_does_not_get_better_ends_with_one_line(agent, tmp_path, at):
    run = poisoned(settings_of(agent, tmp_path / "run", rollbacks=1), [at], lasting=True)
    expected = "before the first checkpoint" if at == 60 else "after 1 returns to a checkpoint"
    with pytest.raises(DivergedError, match=expected) as caught:
        finish(run)
    assert "\n" not in str(caught.value)
    if at > 100:
        found, skipped = checkpoint.newest_intact(run.folder)
        assert found.header["env_steps"] == 200
        assert not skipped


def test_the_command_line_ends_with_status_1(tmp_path, monkeypatch, capsys):
    def diverge(run):
        raise DivergedError("11 gradient steps in a row were not finite")

    monkeypatch.setattr("supple.train.train", diverge)
    arguments = ["train", "toy/lqr", "--run-dir", str(tmp_path / "run"), *flags()]
    assert main(arguments) == FAILED
    assert capsys.readouterr().err == (
        "supple: error: 11 gradient steps in a row were not finite\n"
    )


def test_every_process_says_why_all_end(tmp_path, monkeypatch):
    """Whichever ends last has not lost the others: continuing would not help."""

    def diverge(run):
        time.sleep(0.3 * distributed.world().rank)
        raise DivergedError("11 gradient steps in a row were not finite")

    monkeypatch.setattr("supple.train.train", diverge)
    arguments = ["train", "toy/lqr", "--run-dir", str(tmp_path / "run"), *flags()]
    assert statuses(start(2, arguments, tmp_path / "out")) == [FAILED, FAILED]
    for rank in range(2):
        said = (tmp_path / "out" / f"{rank}.txt").read_text()
        assert said.endswith("supple: error: 11 gradient steps in a row were not finite\n")


def test_a_healthy_run_has_no_trace_of_it(agent, tmp_path):
    run = run_whole(small_settings("toy/lqr", tmp_path / "run", env_steps=100, agent=agent))
    assert "skipped_updates" not in (run.folder / "metrics.csv").read_text()
    assert not (run.folder / DUMPS).exists()
