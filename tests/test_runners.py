import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rsl_rl.runners import OnPolicyRunner

from supple.errors import InputError, SimulatorError
from supple.runners import FlashSAC
from tests.envs import fake_isaac

FLAGS = (
    "--agent.min-replay 12 --agent.batch-size 8 --replay.capacity 200 --agent.utd 0.5"
    " --agent.actor-hidden 8 --agent.critic-hidden 8 --agent.num-atoms 11 --agent.n-step 1"
)
CONFIG: dict[str, Any] = {
    "num_steps_per_env": 4,
    "max_iterations": 6,
    "save_interval": 5,
    "seed": 3,
    "logger": "tensorboard",
    "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
    "algorithm": {"class_name": "supple.runners:FlashSAC", "gamma": 0.97, "flags": FLAGS},
}


class RslRlEnv(fake_isaac.VecEnv):
    """As rsl_rl wants it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.unwrapped = SimpleNamespace()


def runner(folder, *, flags=FLAGS, num_envs=3):
    config = copy.deepcopy(CONFIG)
    config["algorithm"]["flags"] = flags
    return OnPolicyRunner(RslRlEnv(num_envs=num_envs), config, str(folder), "cpu")


def test_rsl_rls_own_runner_picks_flashsac_by_name_and_trains_it(tmp_path):
    found = runner(tmp_path)
    assert type(found.alg) is FlashSAC
    obs = found.env.get_observations().clone()
    before = found.alg.get_policy()(obs)
    found.learn(6, init_at_random_ep_len=True)
    agent: Any = found.alg._agent
    assert agent.updates > 0
    assert 0 < found.alg.learning_rate < agent.settings.lr_peak  # past its warm-up
    assert agent.settings.gamma == 0.97
    assert found.alg._replay.size == 6 * 4 * 3
    assert not torch.equal(found.alg.get_policy()(obs), before)
    assert (tmp_path / "model_5.pt").exists()


def test_the_runner_exports_the_policy_as_rsl_rl_does(tmp_path):
    found = runner(tmp_path)
    found.export_policy_to_jit(str(tmp_path))
    obs = found.env.get_observations()
    loaded = torch.jit.load(tmp_path / "policy.pt")
    torch.testing.assert_close(loaded(obs["policy"]), found.alg.get_policy()(obs))


def test_a_checkpoint_of_the_runner_restores_the_policy(tmp_path):
    first = runner(tmp_path / "a")
    first.learn(6)
    first.save(str(tmp_path / "model.pt"))
    second = runner(tmp_path / "b")
    second.load(str(tmp_path / "model.pt"))
    obs = first.env.get_observations()
    expected = first.get_inference_policy("cpu")(obs)
    assert torch.equal(second.get_inference_policy("cpu")(obs), expected)
    assert expected.shape == (3, 2)


@pytest.mark.parametrize("asked", [None, {"actor": True}, {"actor": True, "iteration": True}])
def test_a_checkpoint_serves_another_number_of_environments(tmp_path, asked):
    first = runner(tmp_path / "a")
    first.learn(6)
    first.save(str(tmp_path / "model.pt"))
    second = runner(tmp_path / "b", num_envs=5)
    second.load(str(tmp_path / "model.pt"), load_cfg=asked)
    obs = first.env.get_observations()
    expected = first.get_inference_policy("cpu")(obs)
    assert torch.equal(second.get_inference_policy("cpu")(obs), expected)
    agent, trained = second.alg._agent, first.alg._agent
    # A part of it is the policy and what belongs to it: mjlab plays so. The rest is untrained.
    assert agent.updates == (trained.updates if asked is None else 0)
    moments = agent.state_dict()["optimizers"]["critic"]["mean"]
    assert any(part.any() for part in moments) == (asked is None)
    counts_on = asked is None or "iteration" in asked
    assert second.current_learning_iteration == (first.current_learning_iteration * counts_on)
    before = agent.updates
    second.learn(2)
    assert agent.updates > before


def test_a_resumed_training_fills_its_ring_before_it_learns_again(tmp_path):
    first = runner(tmp_path / "a")
    first.learn(6)
    first.save(str(tmp_path / "model.pt"))
    second = runner(tmp_path / "b", flags=f"{FLAGS} --agent.min-replay 20 --agent.n-step 5")
    second.load(str(tmp_path / "model.pt"))
    agent: Any = second.alg._agent
    assert not agent.reward_scaler.state_dict()["sum"].any()
    assert not agent.noise.state_dict()["left"].any()
    updates = agent.updates
    assert updates > 0
    second.learn(1)  # 12 transitions, in 4 rows
    assert agent.updates == updates
    second.learn(1)
    assert agent.updates > updates


@pytest.mark.parametrize("final", [False, True])
def test_a_time_out_bootstraps_from_the_final_observation_or_the_one_before_the_step(final):
    env = RslRlEnv(final=final)
    alg = FlashSAC.construct_algorithm(env.get_observations(), env, copy.deepcopy(CONFIG), "cpu")
    env.reset()
    kept = []
    alg._replay.add = lambda obs, action, step, extras=None: kept.append(step)  # type: ignore[method-assign]
    obs = env.get_observations().clone()
    for _ in range(fake_isaac.LIMIT):
        obs, reward, done, extras = env.step(alg.act(obs))
        alg.process_env_step(obs, reward, done, extras)
        obs = obs.clone()
    last = kept[-1]
    assert last["truncated"].tolist() == [True, False, True]
    steps = last["final_observation"]["policy"][0, 2]
    assert steps == (fake_isaac.LIMIT if final else fake_isaac.LIMIT - 1)
    failed = kept[fake_isaac.FAILS_AT - 1]
    assert failed["terminated"].tolist() == [False, True, False]


class Broken(RslRlEnv):
    """Once each, in environments 0 and 2: an infinite reward, and NaN in the observations."""

    def __init__(self):
        self.calls = 0
        super().__init__(final=True)

    def step(self, actions):
        obs, reward, done, extras = super().step(actions)
        self.calls += 1
        if self.calls == 2:
            reward = reward.clone().index_fill_(0, torch.tensor([0]), torch.inf)
        if self.calls == 5:
            obs["policy"] = obs["policy"].clone()
            obs["policy"][2] = torch.nan
        if self.calls == fake_isaac.LIMIT:
            extras["final_obs"]["policy"][0] = torch.nan
        return obs, reward, done, extras


def test_rows_of_a_broken_simulator_are_never_learned_from(capsys):
    env, config = Broken(), copy.deepcopy(CONFIG)
    alg = FlashSAC.construct_algorithm(env.get_observations(), env, config, "cpu")
    kept, add = [], alg._replay.add

    def noted(obs, action, step, extras=None):
        kept.append((obs, action, step))
        add(obs, action, step, extras)

    alg._replay.add = noted  # type: ignore[method-assign]
    env.reset()
    obs, metrics = env.get_observations().clone(), {}
    for number in range(1, 13):
        obs, reward, done, extras = env.step(alg.act(obs))
        alg.process_env_step(obs, reward, done, extras)
        obs = obs.clone()
        if number % 4 == 0:
            metrics = alg.update()
    agent: Any = alg._agent
    assert agent.updates > 0
    assert agent.skips.skipped() == 0
    assert agent.reward_scaler.denominator().isfinite()
    # The row after the NaN was acted on from made-up zeros.
    bad = [(step, env) for step, (*_, row) in enumerate(kept, 1) for env in range(3)
           if not row["valid"][env]]  # fmt: skip
    assert bad == [(2, 0), (5, 2), (6, 2), (8, 0)]
    for observed, action, row in kept:
        assert observed["policy"].isfinite().all()
        assert action.isfinite().all()
        assert row["reward"].isfinite().all()
    assert metrics["env/quarantined_rows"] == 4
    assert "agent/skipped_updates" not in metrics
    assert "supple: quarantined" in capsys.readouterr().err


def test_a_broken_simulator_ends_the_training_where_the_flags_say_so():
    env, config = Broken(), copy.deepcopy(CONFIG)
    config["algorithm"]["flags"] = f"{FLAGS} --env.on-bad fail"
    alg = FlashSAC.construct_algorithm(env.get_observations(), env, config, "cpu")
    env.reset()
    obs = env.get_observations().clone()
    for _ in range(2):
        obs, reward, done, extras = env.step(alg.act(obs))
        alg.process_env_step(obs, reward, done, extras)
    with pytest.raises(SimulatorError, match=r"NaN or infinity .* in reward at vector step 2"):
        alg.update()


def test_gradient_steps_that_were_left_out_are_logged(tmp_path):
    found = runner(tmp_path)
    found.learn(2)
    agent: Any = found.alg._agent
    agent.log_alpha.data.fill_(torch.nan)
    before = agent.updates
    found.learn(1)
    assert agent.updates > before
    assert found.alg.update()["agent/skipped_updates"] == agent.skips.skipped() > 0


def with_flags(flags):
    env, config = RslRlEnv(), copy.deepcopy(CONFIG)
    config["algorithm"]["flags"] = flags
    return FlashSAC.construct_algorithm(env.get_observations(), env, config, "cpu")


def test_flags_may_choose_preset_and_critic_as_supple_train_does():
    agent: Any = with_flags("--preset cpu --replay.capacity 200 --agent.critic flow")._agent
    assert agent.settings.batch_size == 512
    assert agent.settings.critic == "flow"


def test_the_ring_is_made_for_the_runners_length():
    env, config = RslRlEnv(), copy.deepcopy(CONFIG)
    config["max_iterations"] = 4_000
    config["algorithm"]["flags"] = "--agent.critic-hidden 8"
    alg = FlashSAC.construct_algorithm(env.get_observations(), env, config, "cpu")
    assert alg._replay.num_rows * 3 == 4_000 * 4 * 3


def test_no_iterations_build_what_only_plays():
    env, config = RslRlEnv(), copy.deepcopy(CONFIG)
    config["max_iterations"] = 0
    algorithm = FlashSAC.construct_algorithm(env.get_observations(), env, config, "cpu")
    assert algorithm.act(env.get_observations()).shape == (3, env.num_actions)


def test_unknown_flags_and_groups_are_refused():
    with pytest.raises(InputError, match=r"unknown flag --agent.gama; did you mean --agent.gamma"):
        with_flags("--agent.gama 0.9")
    with pytest.raises(InputError, match=r"learns with flashsac, got --agent ppo"):
        with_flags("--agent ppo")
    simulator = ("--env.history 3", "--env.action-delay 2", "--env.config a=b", "--env.num-envs 9")
    loop = ("--init-from a", "--overlap", "--max-minutes 1", "--checkpoint.every 5", "--seed 7")
    for flag in ("--replay.spill", "--replay.prefill a", *loop, *simulator):
        with pytest.raises(InputError, match=f"cannot follow {flag.split()[0]}, the runner's loop"):
            with_flags(flag)
    with_flags("--preset laptop --env.reward-limit 10 --replay.capacity 900 --compute.compile off")
    env, config = RslRlEnv(), copy.deepcopy(CONFIG)
    config["obs_groups"] = {"actor": ["camera"]}
    with pytest.raises(InputError, match=r"obs_groups names camera .* observes policy"):
        FlashSAC.construct_algorithm(env.get_observations(), env, config, "cpu")
