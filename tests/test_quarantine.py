"""What a broken simulator returns reaches nothing that learns, and is named."""

import math
import multiprocessing
import os
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import TransformReward

from supple import checkpoint
from supple.cli import DONE, FAILED, main
from supple.envs import EnvSettings, make
from supple.envs.base import Box, EnvSpec, step_result
from supple.errors import SimulatorError
from supple.quarantine import Quarantine
from supple.region import Compute
from supple.replay import Replay, ReplaySettings
from supple.stillness import StillWatch
from tests.small_runs import Spoilt, flags, run_whole, small_settings

NAN, INF = math.nan, math.inf
PLAN: dict[int, dict[str, tuple[int, float]]] = {}
"""Vector step to what goes wrong there: field to environment and number."""


class Planted(Spoilt):
    """The regulator, with faults where the plan has them."""

    def spoil(self, step):
        for field, (env, value) in PLAN.get(self.steps, {}).items():
            if env < self.spec.num_envs:  # an evaluation has fewer
                step[tuple(field.split("/")) if "/" in field else field][env] = value


@pytest.fixture
def plan():
    yield PLAN
    PLAN.clear()


def spec_of(num_envs=3, device="cpu"):
    return EnvSpec(
        task_id="fake/sim",
        num_envs=num_envs,
        observation={"policy": 2, "critic": 1},
        action=Box(low=(-1.0,), high=(1.0,)),
        device=torch.device(device),
    )


def a_step(num_envs=3, **changes):
    obs = {"policy": torch.ones(num_envs, 2), "critic": torch.ones(num_envs, 1)}
    fields = {
        "observation": obs,
        "reward": torch.ones(num_envs),
        "terminated": torch.zeros(num_envs, dtype=torch.bool),
        "truncated": torch.zeros(num_envs, dtype=torch.bool),
        "final_observation": {name: value.clone() for name, value in obs.items()},
    }
    return step_result(**{**fields, **changes}).to_dict()


def watch(on_bad="quarantine", *, host=True, reward_limit=1e8, obs_dtype=torch.float32):
    given = {"on_bad": on_bad, "reward_limit": reward_limit, "obs_dtype": obs_dtype}
    made = Quarantine(spec_of(), compute=Compute(), **given)
    made._host = host  # False takes the path of a GPU
    return made


ACTION = torch.zeros(3, 1)
HOST = pytest.mark.parametrize("host", [True, False], ids=["host", "device"])


@HOST
def test_a_good_step_comes_back_as_it_was(host):
    quarantine, step = watch(host=host), a_step()
    action, found = quarantine.admit(ACTION, step)
    assert torch.equal(action, ACTION)
    for name in ("reward", "valid", "terminated", "truncated"):
        assert torch.equal(found[name], step[name])
    assert torch.equal(found["observation"]["policy"], step["observation"]["policy"])
    assert (found is step) == host, "a CPU makes no copy"
    assert quarantine.report() == ({}, [])


@HOST
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e16])
@pytest.mark.parametrize("field", ["policy", "critic"])
def test_a_bad_observation_costs_its_row_and_the_row_acted_on_from_it(host, field, value):
    quarantine, step = watch(host=host), a_step()
    step["observation"][field][1, 0] = value
    _, found = quarantine.admit(ACTION, step)
    assert found["valid"].tolist() == [True, False, True]
    assert found["observation"]["policy"].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert found["observation"]["critic"].tolist() == [[1], [0], [1]]
    _, after = quarantine.admit(ACTION, a_step())
    assert after["valid"].tolist() == [True, False, True]
    assert after["observation"]["policy"].tolist() == [[1, 1]] * 3
    assert quarantine.admit(ACTION, a_step())[1]["valid"].all()
    row, news = quarantine.report()
    assert row == {"env/quarantined_rows": 2.0}
    assert len(news) == 1
    assert news[0].startswith(
        "quarantined 2 of 9 rows: NaN or infinity in"
        f" observation/{field} at vector step 1, environment 1;"
    )


@HOST
@pytest.mark.parametrize("value", [NAN, INF, 2e8, -2e8])
def test_a_bad_reward_costs_one_row(host, value):
    quarantine, step = watch(host=host), a_step()
    step["reward"][2] = value
    _, found = quarantine.admit(ACTION, step)
    assert found["valid"].tolist() == [True, True, False]
    assert found["reward"].tolist() == [1, 1, 0]
    assert quarantine.admit(ACTION, a_step())[1]["valid"].all()
    assert "a size beyond 1e+08 in reward" in quarantine.report()[1][0]


@HOST
def test_no_limit_lets_nothing_pass_that_is_not_finite(host):
    quarantine, step = watch(host=host, reward_limit=INF), a_step()
    step["reward"][2] = INF
    assert quarantine.admit(ACTION, step)[1]["valid"].tolist() == [True, True, False]


@HOST
def test_a_bad_action_is_the_policys_and_named(host):
    quarantine = watch(host=host)
    action, found = quarantine.admit(torch.tensor([[0.5], [NAN], [0.5]]), a_step())
    assert action.tolist() == [[0.5], [0.0], [0.5]]
    assert found["valid"].tolist() == [True, False, True]
    assert "in action at vector step 1, environment 1" in quarantine.report()[1][0]


@HOST
def test_a_final_observation_counts_only_where_an_episode_ended(host):
    quarantine = watch(host=host)
    final = {"policy": torch.full((3, 2), NAN), "critic": torch.full((3, 1), NAN)}
    _, found = quarantine.admit(ACTION, a_step(final_observation=final))
    assert found["valid"].all()
    ended = torch.tensor([False, True, False])
    step = a_step(final_observation=final, terminated=ended)
    assert quarantine.admit(ACTION, step)[1]["valid"].tolist() == [True, False, True]
    assert "final_observation/policy, final_observation/critic" in quarantine.report()[1][0]


@HOST
def test_a_bridge_row_is_not_counted_but_its_observation_is_acted_on(host):
    quarantine = watch(host=host)
    step = a_step(valid=torch.tensor([True, False, True]))
    step["reward"][1] = NAN
    step["observation"]["policy"][1] = NAN
    _, found = quarantine.admit(ACTION, step)
    assert found["reward"].tolist() == [1, 0, 1]
    assert quarantine.report()[1] == []
    assert not found["observation"]["policy"][1].any()
    assert not quarantine.admit(ACTION, a_step())[1]["valid"][1]
    assert quarantine.report()[0] == {"env/quarantined_rows": 1.0}


def test_a_made_up_observation_is_remembered_by_a_resumed_run():
    quarantine, resumed = watch(), watch()
    step = a_step(valid=torch.tensor([True, False, True]))
    step["observation"]["policy"][1] = NAN
    quarantine.admit(ACTION, step)
    resumed.load_state_dict(quarantine.state_dict())
    resumed.start_from(1)
    assert resumed.admit(ACTION, a_step())[1]["valid"].tolist() == [True, False, True]


@HOST
def test_what_the_ring_cannot_hold_is_bad(host):
    step = a_step()
    step["observation"]["policy"][1, 0] = 1e5
    assert watch(host=host).admit(ACTION, step)[1]["valid"].all()
    half = watch(host=host, obs_dtype=torch.float16)
    assert half.admit(ACTION, step)[1]["valid"].tolist() == [True, False, True]


@HOST
def test_the_first_bad_row_is_kept_as_it_came(host):
    quarantine, step = watch(host=host), a_step()
    quarantine.admit(ACTION, a_step())
    assert quarantine.bad_row() == {}
    step["reward"][1], step["observation"]["policy"][1, 1] = 5.0, NAN
    quarantine.admit(torch.tensor([[0.0], [0.25], [0.0]]), step)
    step["reward"][1] = 6.0
    quarantine.admit(ACTION, step)
    row = quarantine.bad_row()
    assert row["reward"].item() == 5.0
    assert row["action"].tolist() == [0.25]
    assert row["observation/policy"][0].item() == 1.0
    assert row["observation/policy"][1].isnan()
    assert quarantine.bad_row() == {}


def test_the_observation_of_a_reset_is_looked_at_too():
    quarantine = watch()
    obs = {"policy": torch.tensor([[0.0, 1], [NAN, 1], [0, 1]]), "critic": torch.ones(3, 1)}
    assert torch.isfinite(quarantine.first(obs)["policy"]).all()
    assert quarantine.admit(ACTION, a_step())[1]["valid"].tolist() == [True, False, True]


@HOST
def test_fail_ends_at_the_first_bad_row_and_names_it(host):
    quarantine, step = watch("fail", host=host), a_step()
    quarantine.admit(ACTION, a_step())
    quarantine.judge()
    step["observation"]["critic"][2] = INF
    quarantine.admit(ACTION, step)
    expected = (
        "fake/sim returned NaN or infinity in observation/critic at vector step 2, environment 2"
    )
    with pytest.raises(SimulatorError, match=expected):
        quarantine.judge()


@HOST
def test_a_simulator_of_which_most_rows_are_bad_ends_the_run(host):
    quarantine = watch(host=host)
    step = a_step()
    step["reward"][:2] = NAN
    with pytest.raises(SimulatorError, match=r"668 of 1,002 rows were bad, NaN.*2 environments"):
        for _ in range(400):
            quarantine.admit(ACTION, step)
            quarantine.judge()
    one_of_three = watch(host=host)
    step["reward"][0] = 1.0
    for _ in range(400):
        one_of_three.admit(ACTION, step)
        one_of_three.judge()


@pytest.mark.parametrize("lacks", ["valid", "final_observation"])
def test_a_missing_field_is_refused_by_name(lacks):
    step = a_step()
    del step[lacks]
    with pytest.raises(SimulatorError, match=r"a step has .*, expected reward, .*supple doctor"):
        watch().admit(ACTION, step)
    with pytest.raises(SimulatorError, match="observation has state, expected the groups policy"):
        watch().first({"state": torch.zeros(3, 2)})


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("reward", torch.ones(3, 1), r"reward is torch\.float32 \(3, 1\), expected.*\(3,\)"),
        ("reward", torch.ones(3, dtype=torch.float64), r"reward is torch\.float64"),
        ("terminated", torch.zeros(3), r"terminated is torch\.float32 .* expected torch\.bool"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused_by_name(name, value, text):
    with pytest.raises(SimulatorError, match=text):
        watch().admit(ACTION, {**a_step(), name: value})


def test_exploding_rewards_are_said_once():
    quarantine = watch()
    for size in (1.0, 2.0):
        quarantine.admit(ACTION, a_step(reward=torch.full((3,), size)))
        assert quarantine.report()[1] == []
    quarantine.admit(ACTION, a_step(reward=torch.full((3,), 1e5)))
    assert quarantine.report()[1][0].startswith(
        "rewards exploded: their root mean square was 1e+05 since the last metric row, at most 2"
    )


@HOST
def test_a_bad_row_is_not_shown_with_other_news(host):
    quarantine, bad = watch(host=host), a_step(reward=torch.tensor([1.0, NAN, 1.0]))
    quarantine.admit(ACTION, bad)
    quarantine.admit(ACTION, bad)
    assert len(quarantine.report()[1]) == 1
    assert quarantine.bad_row()["reward"].isnan()
    quarantine.admit(ACTION, a_step(reward=torch.tensor([1e5, NAN, 1e5])))
    (news,) = quarantine.report()[1]
    assert news.startswith("rewards exploded")
    assert quarantine.bad_row() == {}


def test_frozen_environments_and_dead_channels_are_named_once():
    spec = spec_of(num_envs=4)
    replay = Replay(spec, ReplaySettings(capacity=4 * 300))
    random = torch.Generator().manual_seed(0)
    obs = {"policy": torch.zeros(4, 2), "critic": torch.zeros(4, 1)}
    for _ in range(280):
        after = {"policy": torch.randn(4, 2, generator=random), "critic": torch.zeros(4, 1)}
        after["policy"][3] = 7.0
        step = a_step(4, observation=after, final_observation=after)
        replay.add(obs, torch.zeros(4, 1), step)
        obs = after
    still = StillWatch()
    channel, frozen = sorted(still.news(replay))[::-1][:2][::-1]
    assert channel.startswith("channels of observation/critic 0 did not change over the newest 256")
    assert frozen.startswith("observation/policy of environments 3 did not change")
    assert still.news(replay) == []


def test_a_ring_nobody_wrote_to_is_not_looked_at():
    replay = Replay(spec_of(num_envs=4), ReplaySettings(capacity=4 * 300))
    assert len(replay.stored_rows()) == 0
    assert StillWatch().news(replay) == []
    obs = {"policy": torch.zeros(4, 2), "critic": torch.zeros(4, 1)}
    replay.add(obs, torch.zeros(4, 1), a_step(4, observation=obs, final_observation=obs))
    assert len(replay.stored_rows()) == 1
    replay.clear()
    assert len(replay.stored_rows()) == 300, "what was forgotten can still be looked at"


# --- whole runs ------------------------------------------------------------------------------


def test_a_run_without_faults_has_no_trace_of_the_watch(agent, tmp_path):
    run = run_whole(small_settings("toy/lqr", tmp_path / "run", env_steps=100, agent=agent))
    assert "quarantined" not in (run.folder / "metrics.csv").read_text()


def test_planted_faults_reach_no_statistic_and_no_sampled_row(agent, plan, tmp_path, capsys):
    plan |= {
        30: {"observation/policy": (1, NAN)},
        45: {"reward": (1, INF)},
        60: {"reward": (1, 1e30)},
        75: {"observation/policy": (1, 1e20)},
    }
    settings = small_settings(f"{__name__}:Planted", tmp_path / "run", env_steps=400, agent=agent)
    settings.checkpoint.every = 100
    run = run_whole(settings)
    assert run.complete
    lost = 6  # one row for a reward, two for an observation
    assert f'"env/quarantined_rows": {lost}.0' in (run.folder / "metrics.jsonl").read_text()
    found, _ = checkpoint.newest_intact(run.folder)
    for where, leaf in leaves(found.state):
        assert bool(torch.isfinite(leaf).all()), where
        assert leaf.abs().max() < 1e6 or "generators" in where or "random" in where, where
    said = capsys.readouterr().out
    assert "quarantined 1 of" in said
    dump = checkpoint.list_checkpoints(run.folder / "nan" / "rows")[0]
    assert f"the row: supple doctor --nan-dump {dump}" in said
    assert main(["doctor", "--nan-dump", str(dump)]) == DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "NaN or infinity in observation/policy at vector step 30, environment 1" in said
    assert "observation/policy nan" in said


def leaves(node, where="state"):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{where}.{key}")
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from leaves(value, f"{where}[{number}]")
    elif isinstance(node, torch.Tensor) and node.is_floating_point() and node.numel():
        yield where, node


def test_no_window_crosses_a_quarantined_row(plan):
    """Rows 0..9 of one environment; the reward of row 5 is bad, so 3-step windows end before it."""
    plan[6] = {"reward": (0, NAN)}
    env = Planted(1, torch.device("cpu"))
    quarantine = Quarantine(env.spec, on_bad="quarantine", reward_limit=1e8, compute=Compute())
    replay = Replay(env.spec, ReplaySettings(capacity=12))
    obs = env.reset(0)["observation"].to_dict()
    action = torch.zeros(1, env.spec.action.size)
    for _ in range(10):
        action, step = quarantine.admit(action, env.step(action).to_dict())
        replay.add(obs, action, step)
        obs = step["observation"]
    drawn = replay.draw(500, generator=torch.Generator().manual_seed(0), n_step=3)
    assert set(drawn.start.tolist()) == {0, 1, 2, 6, 7}
    one = replay.draw(500, generator=torch.Generator().manual_seed(0), n_step=1)
    assert set(one.start.tolist()) == {0, 1, 2, 3, 4, 6, 7, 8, 9}


def test_a_bad_end_still_ends_the_episode_in_every_sum():
    from supple.agents.reward_scaling import RewardScaler, RewardScalerSettings
    from supple.episodes import EpisodeStatistics

    ended, good = torch.tensor([True]), torch.tensor([False])
    episodes = EpisodeStatistics(1, torch.device("cpu"))
    scaler = RewardScaler(
        1,
        gamma=1.0,
        value_max=5.0,
        settings=RewardScalerSettings(),
        device=torch.device("cpu"),
    )
    for reward, end, valid in ((3.0, good, ~good), (0.0, ended, good), (5.0, ended, ~good)):
        episodes.observe(torch.tensor([reward]), end, valid)
        scaler.observe(torch.tensor([reward]), end, valid)
    assert episodes.report() == {
        "train/episodes": 1.0,
        "train/return_mean": 5.0,
        "train/length_mean": 1.0,
    }
    assert scaler.state_dict()["peak"].item() == 5.0, "not 8: the sum was forgotten"


def test_fail_ends_a_run_with_one_line_and_its_checkpoint_intact(plan, tmp_path, capsys):
    plan[150] = {"observation/policy": (1, NAN)}
    folder = tmp_path / "run"
    arguments = ["train", f"{__name__}:Planted", *flags(), "--env-steps", "800"]
    own = ["--checkpoint.every", "100", "--eval.every", "1000", "--run-dir", str(folder)]
    assert main([*arguments, *own, "--env.on-bad", "fail"]) == FAILED
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "NaN or infinity in observation/policy at vector step 150, environment 1" in error
    assert checkpoint.newest_intact(folder)[0].header["env_steps"] == 200
    assert main(["train", *arguments[1:], *own[:-1], str(tmp_path / "other")]) == DONE


def test_an_evaluation_without_numbers_costs_a_run_its_result_only(tmp_path, monkeypatch, capsys):
    from supple.errors import NotFiniteError

    def refuse(*_, **__):
        raise NotFiniteError("a return is not finite")

    monkeypatch.setattr("supple.run.evaluate", refuse)
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=100)
    assert run_whole(settings).complete
    assert "no evaluation at 100 env steps: a return is not finite" in capsys.readouterr().out
    settings = small_settings("toy/lqr", tmp_path / "strict", env_steps=100)
    settings.env.on_bad = "fail"
    with pytest.raises(NotFiniteError):
        run_whole(settings)


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_a_worker_process_that_hangs_or_dies_is_named(how):
    settings = EnvSettings(num_envs=2, vectorization="async", patience=1.0)
    env = make(f"{__name__}:{how.capitalize()}", settings)
    expected = {
        "hangs": r"no answer within --env\.patience 1 s from the worker of environment 0, 1",
        "dies": "a worker process died",
    }
    try:
        with pytest.raises(SimulatorError, match=expected[how]):
            for _ in range(3):
                env.step(torch.zeros(2, 1))
    finally:
        env.close()


def test_a_worker_process_that_hangs_in_a_reset_is_named():
    settings = EnvSettings(num_envs=2, vectorization="async", patience=1.0)
    with pytest.raises(SimulatorError, match=r"no answer within --env\.patience 1 s"):
        make(f"{__name__}:HangsInReset", settings)


@pytest.mark.parametrize("wrapped", [False, True])
def test_patience_is_that_of_a_users_own_vector_environment_too(monkeypatch, wrapped):
    def own():
        made = OwnWorkers()
        return TransformReward(made, lambda reward: reward) if wrapped else made

    monkeypatch.setattr("supple.envs.custom.load", lambda task: own)
    env: Any = make("own:workers", EnvSettings(num_envs=2, patience=1.0))
    workers = env._base.processes
    with pytest.raises(SimulatorError, match=r"no answer within --env\.patience 1 s"):
        for _ in range(4):
            env.step(torch.zeros(2, 1))
    env.close()
    assert not any(process.is_alive() for process in workers)


def _gym_env(trouble, at_reset=lambda: None):
    import gymnasium

    class Troubled(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,))
        action_space = gymnasium.spaces.Box(-1, 1, (1,))
        steps = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            at_reset()
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.steps += 1
            if self.steps > 2:  # the first is a look at what an environment tells
                trouble()
            return np.zeros(2, np.float32), 0.0, False, False, {}

    return Troubled()


def Hangs():  # noqa: N802
    """An environment whose third step never returns."""
    import time

    return _gym_env(lambda: time.sleep(3600))


def Dies():  # noqa: N802
    """An environment whose third step ends its process."""

    return _gym_env(lambda: os._exit(1))


def HangsInReset():  # noqa: N802
    """An environment whose reset in a worker process never returns."""
    import time

    return _gym_env(
        lambda: None, lambda: time.sleep(3600 * (multiprocessing.parent_process() is not None))
    )


def OwnWorkers():  # noqa: N802
    """A vector environment of the user's own, which hangs."""
    import gymnasium

    made = gymnasium.vector.AsyncVectorEnv([Hangs, Hangs])
    made.reset()
    return made
