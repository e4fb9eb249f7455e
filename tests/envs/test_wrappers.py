import dataclasses
import math
from typing import Any

import pytest
import torch

from supple.cli import main
from supple.envs import EnvSettings, make
from supple.envs.base import Channel, EnvSpec, LastAction
from supple.envs.check import check_env
from supple.envs.toy import Counter, make_toy
from supple.envs.toy_hidden import Asymmetric
from supple.envs.wrappers import Delay, History, Noise, Randomised
from supple.errors import InputError
from tests.small_runs import flags

CPU = torch.device("cpu")
ALL: dict[str, Any] = {
    "history": 3,
    "obs_noise": 0.1,
    "obs_bias": 0.2,
    "action_delay": 2,
    "action_scale": 0.1,
    "action_offset": 0.05,
}


def counter(**options):
    return Counter(3, CPU, **options)


def numbers(steps, num_envs=3):
    """Action ``t`` is ``t`` + 1 everywhere."""
    return [torch.full((num_envs, 1), float(step)) for step in range(1, steps + 1)]


def test_a_delayed_action_takes_effect_so_many_steps_later():
    """The counter's reward is the action that arrives; a new episode starts with nothing."""
    env = Delay(counter(), 2)
    env.reset()
    age = torch.zeros(3)
    for number, action in enumerate(numbers(12), start=1):
        step = env.step(action)
        age += 1
        expected = torch.where(age > 2, number - 2.0, 0.0)
        assert torch.equal(step["reward"], expected)
        age[step["terminated"] | step["truncated"]] = 0
    assert env.spec.added == {"action_delay": 2}
    assert env.spec.deployment is not None and env.spec.deployment.action_delay == 2


def test_a_simulator_that_shows_its_last_action_shows_delayed_ones_later():
    env, shown = counter(), LastAction(index=0)
    names = [f"c{index}" for index in range(env.spec.observation["policy"])]
    first, *rest = (Channel(name=name, group="policy") for name in names)
    seen = (dataclasses.replace(first, last_action=shown), *rest)
    env.spec = dataclasses.replace(env.spec, channels=seen)
    spec = History(Delay(env, 2), 3).spec
    late = [channel.last_action for channel in spec.channels or () if channel.name == "c0"]
    assert late == [LastAction(index=0, steps=3)] * 3
    assert all(
        channel.last_action is None for channel in spec.channels or () if channel.name != "c0"
    )
    assert EnvSpec.from_json(spec.to_json()) == spec


def test_history_holds_the_newest_frames_and_ends_with_its_episode():
    bare, env = counter(), History(counter(), 3)
    first = bare.reset()["observation", "policy"]
    assert torch.equal(env.reset()["observation", "policy"], first.repeat(1, 3))
    frames = [[row] * 3 for row in first]
    for action in numbers(12):
        plain, step = bare.step(action), env.step(action)
        ended = plain["terminated"] | plain["truncated"]
        for row in range(3):
            now, final = (plain[key, "policy"][row] for key in ("observation", "final_observation"))
            if ended[row]:
                seen = torch.cat([final, *frames[row][:2]])
                assert torch.equal(step["final_observation", "policy"][row], seen)
            frames[row] = [now] * 3 if ended[row] else [now, *frames[row][:2]]
            assert torch.equal(step["observation", "policy"][row], torch.cat(frames[row]))


def test_a_bridge_row_begins_the_history_too():
    env = History(counter(autoreset="next_step"), 2)
    env.reset()
    bridges = 0
    for action in numbers(12):
        step = env.step(action)
        newest, older = step["observation", "policy"].chunk(2, dim=1)
        bridge = ~step["valid"]
        bridges += int(bridge.sum())
        assert torch.equal(newest[bridge], older[bridge])
    assert bridges > 3


def test_noise_has_its_deviation_and_leaves_critic_and_reward_alone():
    plain, env = Asymmetric(500, CPU), Noise(Asymmetric(500, CPU), deviation=0.3, declared=0)
    before, noisy = plain.reset(1)["observation"], env.reset(1)["observation"]
    difference = noisy["policy"] - before["policy"]
    assert float(difference.std()) == pytest.approx(0.3, rel=0.1)
    assert float(difference.mean()) == pytest.approx(0, abs=0.05)
    assert torch.equal(noisy["critic"], before["critic"])
    action = torch.zeros(500, plain.spec.action.size)
    one, two = plain.step(action), env.step(action)
    assert torch.equal(one["reward"], two["reward"])
    again = two["observation", "policy"] - one["observation", "policy"]
    assert float((again - difference).std()) > 0.3, "new at every step"


def test_declared_noise_is_that_of_the_channels():
    env = make_toy("lqr", 400, CPU)
    channels = (Channel(name="x", group="policy", noise=0.5), Channel(name="v", group="policy"))
    env.spec = dataclasses.replace(env.spec, channels=channels)
    before = make_toy("lqr", 400, CPU).reset(2)["observation", "policy"]
    noisy = Noise(env, deviation=0, declared=2)
    difference = noisy.reset(2)["observation", "policy"] - before
    assert float(difference[:, 0].std()) == pytest.approx(1.0, rel=0.1)
    assert not difference[:, 1].any()
    assert noisy.spec.channels is not None
    assert [channel.noise for channel in noisy.spec.channels] == [1.0, 0.0]
    with pytest.raises(InputError, match=r"declares no channel noise: give --env.obs-noise"):
        Noise(counter(), deviation=0, declared=1)


def test_noise_comes_on_top_of_what_the_simulator_adds():
    env = make_toy("lqr", 3, CPU)
    channels = tuple(Channel(name=name, group="policy", noise=0.3) for name in ("x", "v"))
    env.spec = dataclasses.replace(env.spec, channels=channels)
    noisy = Noise(env, deviation=0.4, declared=0.0).spec.channels
    assert noisy is not None
    assert [channel.noise for channel in noisy] == [pytest.approx(0.5)] * 2


def test_a_history_of_a_history_is_refused():
    with pytest.raises(InputError, match="gives a history of its own"):
        History(History(counter(), 2), 2)


def test_parameters_stay_within_an_episode_and_change_between():
    env = Randomised(counter(), action_scale=0.5, action_offset=0.2, obs_bias=0.1)
    first = env.reset(3)["observation", "policy"] - counter().reset()["observation", "policy"]
    assert 0 < float(first.abs().max()) <= 0.1
    bare = counter()
    bare.reset()
    kept = first
    for action in numbers(10):
        scale, offset = env._memory["scale"].clone(), env._memory["offset"].clone()
        plain, step = bare.step(action), env.step(action)
        arrived = action * (1 + 0.5 * scale) + 0.2 * offset
        torch.testing.assert_close(step["reward"], arrived[:, 0])
        ended = plain["terminated"] | plain["truncated"]
        bias = step["observation", "policy"] - plain["observation", "policy"]
        final = step["final_observation", "policy"] - plain["final_observation", "policy"]
        torch.testing.assert_close(final[ended], kept[ended])
        torch.testing.assert_close(bias[~ended], kept[~ended])
        assert (bias[ended] != kept[ended]).any(1).all()
        kept = bias
    assert float(env._memory["scale"].abs().max()) <= 1


def test_the_spec_tells_what_an_exported_policy_needs():
    plain = make("gym/HalfCheetah-v5", EnvSettings()).spec
    spec = make("gym/HalfCheetah-v5", EnvSettings(**ALL)).spec
    assert spec.added == ALL
    assert spec.observation == {"policy": 3 * 17}
    assert spec.deployment is not None
    assert plain.deployment is not None
    assert (spec.deployment.history_length, spec.deployment.history_order) == (3, "newest_first")
    assert spec.deployment.joint_names == plain.deployment.joint_names
    assert spec.channels is not None
    assert plain.channels is not None
    assert [channel.history for channel in spec.channels] == [0] * 17 + [1] * 17 + [2] * 17
    assert spec.channels[20].name == plain.channels[3].name
    assert spec.channels[20].noise == pytest.approx(math.hypot(0.1, 0))
    assert EnvSpec.from_json(spec.to_json()) == spec


def test_a_changed_policy_group_is_no_part_of_the_critic_group():
    env = Asymmetric(2, CPU, critic_contains_policy=True)
    assert Delay(env, 1).spec.critic_contains_policy
    assert not Noise(env, deviation=0.1, declared=0).spec.critic_contains_policy
    assert not History(env, 2).spec.critic_contains_policy


@pytest.mark.parametrize("task", ["toy/counter", "toy/asymmetric", "mujoco/Hopper"])
def test_all_of_them_together_keep_the_contract_and_resume_exactly(task):
    findings = check_env(lambda: make(task, EnvSettings(num_envs=3, **ALL)), steps=40)
    assert [finding for finding in findings if not finding.ok] == []
    assert any("bit for bit" in finding.detail for finding in findings)


def test_what_is_forgotten_would_be_seen(monkeypatch):
    monkeypatch.setattr(History, "state_dict", lambda env: {**Noise.state_dict(env), "memory": {}})
    findings = check_env(lambda: History(make_toy("lqr", 2, CPU), 3), steps=40)
    assert [finding.name for finding in findings if not finding.ok] == ["exact resume"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"history": 0}, "--env.history must be >= 1, got 0"),
        ({"action_scale": 1.0}, r"--env.action-scale must be in \[0, 1\), got 1.0"),
        ({"obs_noise": -0.1}, "--env.obs-noise must be >= 0"),
    ],
)
def test_senseless_settings_name_their_flag(options, text):
    with pytest.raises(InputError, match=text):
        EnvSettings(**options)


def test_discrete_actions_are_not_delayed():
    with pytest.raises(InputError, match=r"--env.action-delay: gym/CartPole-v1 has discrete act"):
        make("gym/CartPole-v1", EnvSettings(action_delay=1))


def test_a_run_trains_through_them_and_records_them(tmp_path, capsys):
    folder = tmp_path / "run"
    more = ["--run-dir", str(folder)]
    given = ["--env.history", "2", "--env.obs-noise", "0.05", "--env.action-delay", "1"]
    assert main(["train", "toy/lqr", *flags(), "--env-steps", "120", *more, *given]) == 0
    assert '"history": 2' in (folder / "spec.json").read_text()
    assert main(["eval", str(folder), "--episodes", "2", "--json"]) == 0
    assert "return_mean" in capsys.readouterr().out
