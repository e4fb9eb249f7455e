import copy

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.envs.utils import check_env_specs
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss, SACLoss, ValueEstimators

from supple.envs import EnvSettings, as_gymnasium, as_torchrl, make
from supple.envs.check import check_env
from supple.envs.gym import GymVector
from supple.envs.toy import Bandit, Counter, make_toy
from supple.envs.toy_hidden import Asymmetric
from supple.errors import InputError
from supple.replay import Replay, ReplaySettings

CPU = torch.device("cpu")
POLICY = ("observation", "policy")


def test_gymnasium_sees_the_same_steps():
    ours, theirs = Counter(4, CPU), as_gymnasium(Counter(4, CPU))
    first, _ = theirs.reset(seed=0)
    np.testing.assert_array_equal(first, ours.reset(0)["observation", "policy"])
    for number in range(12):
        action = np.full((4, 1), number, dtype=np.float32)
        obs, reward, terminated, truncated, info = theirs.step(action)
        step = ours.step(torch.from_numpy(action))
        np.testing.assert_array_equal(obs, step["observation", "policy"])
        np.testing.assert_array_equal(reward, step["reward"])
        np.testing.assert_array_equal(terminated, step["terminated"])
        ended = terminated | truncated
        assert ended.any() == ("final_obs" in info)
        for row in np.nonzero(ended)[0]:
            np.testing.assert_array_equal(
                info["final_obs"][row], step["final_observation", "policy"][row]
            )
    with pytest.raises(InputError, match="drop reset_mask"):
        theirs.reset(options={"reset_mask": np.ones(4, dtype=bool)})
    theirs.close()


@pytest.mark.parametrize("kind", [Bandit, Asymmetric])
def test_there_and_back_keeps_the_contract(kind):
    findings = check_env(
        lambda: GymVector(as_gymnasium(kind(3, CPU)), task_id="back", device=CPU), steps=30
    )
    assert [finding for finding in findings if not finding.ok] == []


def test_gymnasiums_own_wrappers_take_it():
    env = as_gymnasium(make("gym/CartPole-v1", EnvSettings(num_envs=2)))
    counted = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    counted.reset(seed=0)
    lengths = []
    for _ in range(100):
        *_, info = counted.step(np.zeros(2, dtype=np.int64))
        if "episode" in info:
            lengths += info["episode"]["l"][info["_episode"]].tolist()
    assert lengths
    assert max(lengths) < 15, "always to the left, the pole falls at once"
    counted.close()


@pytest.mark.parametrize(
    "task", ["toy/lqr", "toy/asymmetric", "toy/counter", "gym/CartPole-v1", "mujoco/Hopper"]
)
def test_torchrl_accepts_its_specs(task):
    env = as_torchrl(make(task, EnvSettings(num_envs=3)))
    check_env_specs(env, seed=0)
    env.close()


def test_torchrl_rolls_over_ends_with_the_true_next_observation():
    ours, env = Counter(3, CPU), as_torchrl(Counter(3, CPU))
    ours.reset()
    ones = torch.ones(3, 1)
    rolled = env.rollout(
        12, policy=lambda td: td.set("action", ones.clone()), break_when_any_done=False
    )
    for number in range(12):
        step, seen = ours.step(torch.ones(3, 1)), rolled[:, number]["next"]
        ended = step["terminated"] | step["truncated"]
        expected = step["final_observation", "policy"].where(
            ended[:, None], step["observation", "policy"]
        )
        assert torch.equal(seen["observation", "policy"], expected)
        assert torch.equal(seen["terminated"][:, 0], step["terminated"])
        if number < 11:
            later = rolled[:, number + 1]["observation", "policy"]
            assert torch.equal(later, step["observation", "policy"])
    assert rolled["next", "done"].sum() > 5


def filled(env, steps, policy=None):
    """A ring with ``steps`` vector steps of random actions, or a policy's."""
    replay = Replay(env.spec, ReplaySettings(capacity=steps * env.spec.num_envs))
    random = torch.Generator().manual_seed(0)
    obs = env.reset(0)["observation"]
    for _ in range(steps):
        size = (env.spec.num_envs, env.spec.action.size)
        action = torch.rand(size, generator=random) * 2 - 1 if policy is None else policy(obs)
        step = env.step(action)
        replay.add(obs, action, step, {})
        obs = step["observation"]
    return replay


def actor_of(env):
    actions, width = env.spec.action.size, env.spec.observation["policy"]
    layers = nn.Sequential(
        nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 2 * actions), NormalParamExtractor()
    )
    return ProbabilisticActor(
        TensorDictModule(layers, in_keys=[POLICY], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )


class Value(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, *parts):
        return self.layers(torch.cat(parts, dim=-1))


def regret(actor, env):
    """Mean distance of the mode's action to the best one."""
    obs = env.reset(99)["observation"]
    with torch.no_grad():
        action = actor.get_dist(env.reset(99)).deterministic_sample
    return float((action - Bandit.optimal_action(obs["policy"])).norm(dim=1).mean())


def test_torchrls_sac_learns_from_our_samples():
    torch.manual_seed(0)
    env = make_toy("bandit", 64, CPU)
    replay, actor = filled(env, 100), actor_of(env)
    critic = ValueOperator(Value(4), in_keys=[POLICY, "action"])
    loss = SACLoss(actor, critic, num_qvalue_nets=2, target_entropy=-2.0, alpha_init=0.01)
    loss.make_value_estimator(gamma=0.9)
    adam = torch.optim.Adam(loss.parameters(), lr=1e-2)
    random, before = torch.Generator().manual_seed(0), regret(actor, env)
    for _ in range(300):
        found = loss(replay.sample(256, generator=random))
        adam.zero_grad()
        (found["loss_actor"] + found["loss_qvalue"] + found["loss_alpha"]).backward()
        adam.step()
    assert before > 0.5
    assert regret(actor, env) < 0.5 * before


def test_torchrls_ppo_learns_from_our_samples():
    torch.manual_seed(0)
    env = make_toy("bandit", 256, CPU)
    actor, value = actor_of(env), ValueOperator(Value(2), in_keys=[POLICY])
    loss = ClipPPOLoss(actor, value, entropy_coeff=0.0)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    adam = torch.optim.Adam(loss.parameters(), lr=1e-2)
    random, before = torch.Generator().manual_seed(0), regret(actor, env)
    for _ in range(15):
        behaviour = copy.deepcopy(actor)

        def policy(obs, behaviour=behaviour):
            with torch.no_grad():
                seen = TensorDict({"observation": obs}, batch_size=obs.batch_size)
                return behaviour.get_dist(seen).sample()

        replay = filled(env, 4, policy)
        for _ in range(4):
            batch = replay.sample(512, generator=random)
            with torch.no_grad():
                log_prob = behaviour.get_dist(batch).log_prob(batch["action"])
            batch[loss.tensor_keys.sample_log_prob] = log_prob
            found = loss(batch)
            adam.zero_grad()
            (found["loss_objective"] + found["loss_critic"]).backward()
            adam.step()
    assert before > 0.5
    assert regret(actor, env) < 0.6 * before
