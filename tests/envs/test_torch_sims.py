import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from supple.envs import EnvSettings, make
from supple.envs.base import Box
from supple.envs.check import check_env
from supple.envs.isaac_gym import LeggedGym, VecTask
from supple.envs.jax_sim import begins_with_policy, place_of
from supple.envs.mjlab import Mjlab
from supple.envs.rsl_rl import RslRl
from supple.envs.torch_sim import Groups, PhysicalActions, RandomStreams
from supple.envs.torchrl_env import TorchRL
from supple.errors import InputError, SimulatorError
from tests.envs import fake_isaac
from tests.envs.fake_isaac import FAILS_AT, LIMIT
from tests.envs.fake_mjlab import FakeMjlab

STEPS = 60
FAKES = {
    "vec_task_a": lambda: VecTask(fake_isaac.VecTask("A"), task_id="t"),
    "vec_task_b": lambda: VecTask(fake_isaac.VecTask("B"), task_id="t"),
    "vec_task_c": lambda: VecTask(fake_isaac.VecTask("C"), task_id="t"),
    "anymal": lambda: VecTask(fake_isaac.Anymal(), task_id="t"),
    "hand": lambda: VecTask(fake_isaac.Hand(), task_id="t"),
    "legged_gym": lambda: LeggedGym(fake_isaac.LeggedGym(), task_id="t"),
    "vec_env": lambda: RslRl(fake_isaac.VecEnv(), task_id="t"),
    "vec_env_final": lambda: RslRl(fake_isaac.VecEnv(final=True), task_id="t"),
    "torchrl": lambda: TorchRL(Line(), task_id="t"),
    "mjlab": lambda: Mjlab(FakeMjlab(), task_id="t"),
}


class Line(EnvBase):
    """torchrl's own kind, batched, with time-outs and ends."""

    def __init__(self, num_envs=3):
        super().__init__(batch_size=[num_envs])
        self.observation_spec = Composite(place=Unbounded([num_envs, 3]), shape=[num_envs])
        self.action_spec = Bounded(-2, 2, [num_envs, 2])
        self.reward_spec = Unbounded([num_envs, 1])
        flag = Binary(1, [num_envs, 1], dtype=torch.bool)
        names = ("done", "terminated", "truncated")
        self.done_spec = Composite({name: flag for name in names}, shape=[num_envs])
        self.steps = torch.zeros(num_envs)
        self.start = torch.zeros(num_envs)

    def _place(self, action):
        return torch.stack((self.start, self.steps, action), dim=1)

    def _reset(self, tensordict=None, **options):
        rows = torch.ones(self.batch_size, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            rows = tensordict["_reset"].reshape(-1)
        self.steps = torch.where(rows, 0, self.steps)
        self.start = torch.where(rows, torch.rand(self.batch_size), self.start)
        running = torch.zeros(*self.batch_size, 1, dtype=torch.bool)
        ends = {name: running.clone() for name in ("done", "terminated", "truncated")}
        return self._data({"place": self._place(torch.zeros(self.batch_size)), **ends})

    def _step(self, tensordict):
        self.steps = self.steps + 1
        action = tensordict["action"][:, 0]
        terminated = (self.steps >= FAILS_AT) & (torch.arange(len(action)) == 1)
        truncated = self.steps >= LIMIT
        return self._data(
            {
                "place": self._place(action),
                "reward": self.steps.unsqueeze(-1).clone(),
                "terminated": terminated.unsqueeze(-1),
                "truncated": truncated.unsqueeze(-1),
                "done": (terminated | truncated).unsqueeze(-1),
            }
        )

    def _data(self, values):
        return TensorDict(values, batch_size=self.batch_size)

    def _set_seed(self, seed):
        torch.manual_seed(seed)


@pytest.mark.parametrize("name", FAKES)
def test_every_adapter_keeps_the_whole_contract(name):
    failed = [finding for finding in check_env(FAKES[name], steps=STEPS) if not finding.ok]
    assert not failed


def rollout(env, steps=40):
    """Rows of each environment: (reward, terminated, truncated, valid, final steps or None)."""
    env.reset(0)
    column = env.spec.observation["policy"] - 2  # steps since the reset
    rows = []
    for _ in range(steps):
        step = env.step(torch.zeros(env.spec.num_envs, env.spec.action.size))
        ended = step["terminated"] | step["truncated"]
        final = step["final_observation", "policy"][:, column]
        rows.append((step, ended, final))
    return rows


@pytest.mark.parametrize(
    ("name", "final_steps"),
    [
        # Time is up at count LIMIT - 1, legged_gym's beyond LIMIT, the others' at LIMIT.
        ("vec_task_a", LIMIT - 1),
        ("vec_task_b", LIMIT - 1),
        ("vec_task_c", LIMIT - 1),
        ("anymal", LIMIT - 1),
        ("hand", LIMIT - 1),
        ("legged_gym", LIMIT + 1),
        ("vec_env_final", LIMIT),
        ("torchrl", LIMIT),
        ("mjlab", LIMIT),
    ],
)
def test_ends_carry_their_own_last_observation_and_their_true_kind(name, final_steps):
    seen: dict[str, set[tuple[int, int]]] = {"terminated": set(), "truncated": set()}
    for step, _ended, final in rollout(FAKES[name]()):
        for kind in seen:
            for row in step[kind].nonzero().squeeze(-1).tolist():
                seen[kind].add((row, int(final[row])))
    assert seen["terminated"] == {(1, FAILS_AT)}
    assert seen["truncated"] == {(0, final_steps), (2, final_steps)}


@pytest.mark.parametrize(("kind", "length"), [("a", LIMIT - 1), ("b", LIMIT - 2)])
def test_a_late_reset_becomes_one_empty_bridge_row(kind, length):
    rows = rollout(FAKES[f"vec_task_{kind}"](), steps=20)
    valid = torch.stack([step["valid"] for step, _, _ in rows])[:, 0]
    ended = torch.stack([ended for _, ended, _ in rows])[:, 0]
    reward = torch.stack([step["reward"] for step, _, _ in rows])[:, 0]
    assert ended.nonzero().squeeze(-1)[:2].tolist() == [length - 1, 2 * length]
    assert (~valid).nonzero().squeeze(-1)[:2].tolist() == [length, 2 * length + 1]
    assert (reward[~valid] == 0).all()


@pytest.mark.parametrize("task", [fake_isaac.WithHistory, fake_isaac.WithFrames])
def test_terrain_tasks_with_a_history_have_no_final_observation(task):
    env = VecTask(task(), task_id="t")
    assert not env.spec.has_final_obs


@pytest.mark.parametrize("name", ["vec_task_c", "legged_gym"])
def test_tasks_with_lists_of_handles_and_heights_have_final_observations(name):
    assert FAKES[name]().spec.has_final_obs


def test_a_task_that_ignores_its_time_limit_is_refused(monkeypatch):
    task = fake_isaac.VecTask("A")
    monkeypatch.setattr(task, "_judge", lambda: None)
    with pytest.raises(InputError, match="did not end within 4 steps of max_episode_length=8, or"):
        VecTask(task, task_id="t")


@pytest.mark.parametrize("kind", ["A", "B", "C"])
def test_copies_that_fail_while_the_time_limit_is_measured_do_not_hide_it(kind, monkeypatch):
    task = fake_isaac.VecTask(kind, num_envs=4)
    plain = VecTask(fake_isaac.VecTask(kind, num_envs=4), task_id="t").spec
    judge, steps = task._judge, []

    def fails_early():
        judge()
        steps.append(1)
        if len(steps) == 3:  # one step into the measurement or two
            task.reset_buf[0] = 1

    monkeypatch.setattr(task, "_judge", fails_early)
    assert VecTask(task, task_id="t").spec == plain


def test_a_task_that_its_caller_resets_is_refused():
    with pytest.raises(InputError, match="t ended at 7 steps and did not begin anew in the next"):
        VecTask(fake_isaac.ResetByCaller(), task_id="t")


@pytest.mark.parametrize("time_outs", ["always", "events"])
def test_a_stale_time_out_flag_does_not_turn_a_failure_into_a_time_out(time_outs):
    env = RslRl(fake_isaac.VecEnv(time_outs), task_id="t")
    for step, _, _ in rollout(env):
        assert not step["truncated"][1]
        assert not step["terminated"][0]


def test_without_time_out_flags_our_own_count_of_steps_tells():
    rows = rollout(RslRl(fake_isaac.VecEnv("never"), task_id="t"))
    assert sum(int(step["truncated"][0]) for step, _, _ in rows) == 40 // LIMIT
    assert not any(step["truncated"][1] for step, _, _ in rows)


def test_a_finite_horizon_is_an_end_of_the_task():
    rows = rollout(RslRl(fake_isaac.VecEnv("never", finite=True), task_id="t"))
    assert sum(int(step["terminated"][0]) for step, _, _ in rows) == 40 // LIMIT
    assert not any(step["truncated"].any() for step, _, _ in rows)


def test_a_final_observation_that_stayed_from_an_earlier_step_is_not_taken_again():
    fake = fake_isaac.VecEnv(final=True)
    env = RslRl(fake, task_id="t")
    env.reset(0)
    for _ in range(FAILS_AT):
        env.step(torch.zeros(3, 2))
    fake.final = False  # the next end writes none, yet extras would still hold the last one
    with pytest.raises(SimulatorError, match=r"without extras\['final_obs'\]"):
        for _ in range(FAILS_AT):
            env.step(torch.zeros(3, 2))


def test_privileged_observations_become_the_critic_group():
    assert dict(FAKES["legged_gym"]().spec.observation) == {"policy": 4, "critic": 5}


@pytest.mark.parametrize("name", FAKES)
def test_the_callers_action_is_never_written_to(name):
    env = FAKES[name]()
    action = torch.full((3, 2), 3.0)
    env.reset(0)
    env.step(action)
    assert (action == 3).all()


def made_by(simulator, **options):
    return lambda num_envs: simulator(num_envs=num_envs, **options)


@pytest.mark.parametrize(
    ("factory", "adapter"),
    [
        (made_by(fake_isaac.VecTask, kind="A"), VecTask),
        (made_by(fake_isaac.LeggedGym), LeggedGym),
        (made_by(fake_isaac.VecEnv), RslRl),
        (made_by(Line), TorchRL),
    ],
)
def test_what_a_users_callable_returns_is_recognised(monkeypatch, factory, adapter):
    monkeypatch.setitem(sys.modules, "own_torch_sim", sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "own", factory, raising=False)
    env = make("own_torch_sim:own", EnvSettings(num_envs=2))
    assert type(env) is adapter
    assert env.spec.num_envs == 2
    env.close()


def test_actions_are_scaled_to_bounds_and_clipped_only_where_told():
    clipped = TorchRL(Line(num_envs=1), task_id="t")
    assert clipped.spec.action == Box(low=(-2.0, -2.0), high=(2.0, 2.0), clip=True)
    physical = PhysicalActions(clipped.spec)
    assert physical(torch.tensor([[0.5, 3.0]])).tolist() == [[1.0, 2.0]]
    open_ended = PhysicalActions(
        RslRl(fake_isaac.VecEnv(num_envs=1), task_id="t", action_bound=3.0).spec
    )
    assert open_ended(torch.tensor([[0.5, -2.0]])).tolist() == [[1.5, -6.0]]
    with pytest.raises(InputError, match=r"t: action has shape \(2,\), expected \(1, 2\)"):
        physical(torch.zeros(2))


def test_actions_of_torchrl_are_bounded_all_or_none():
    env = Line(num_envs=1)
    env.action_spec = Bounded(-math.inf, math.inf, [1, 2])
    assert TorchRL(env, task_id="t").spec.action == Box(low=(-1, -1), high=(1, 1), clip=False)
    for odd in (Bounded(0.0, math.inf, [1, 2]), Bounded(0, 2, [1, 2], dtype=torch.int64)):
        env.action_spec = odd
        with pytest.raises(InputError, match="expected floating-point numbers that are bounded"):
            TorchRL(env, task_id="t")


def test_groups_without_one_for_the_policy_are_refused():
    with pytest.raises(InputError, match="observes the groups camera: expected one named policy"):
        Groups({"camera": torch.zeros(2, 3)}, "t")
    with pytest.raises(InputError, match="observes images"):
        Groups({"policy": torch.zeros(2, 3, 8, 8)}, "t")


def test_groups_that_nobody_learns_from_are_named_once(capsys):
    sample = {"actor": torch.zeros(2, 3), "teacher": torch.zeros(2, 4), "rgb": torch.zeros(2, 1)}
    for _ in range(2):
        Groups(sample, "named_once")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "named_once: nothing is learned from the observation groups teacher, rgb" in said
    Groups({"actor": torch.zeros(2, 3)}, "another")
    assert capsys.readouterr().err == ""


def test_groups_are_joined_as_the_tasks_own_trainer_joins_them(capsys):
    names = ("policy", "proprio", "privileged", "rgb")
    sample = {name: torch.full((2, 2), float(i)) for i, name in enumerate(names)}
    trainer = {"actor": ["policy", "proprio"], "critic": ["policy", "privileged", "proprio"]}
    groups = Groups(sample, "joined", trainer)
    assert groups.source == {"policy": ("policy", "proprio"), "critic": ("privileged",)}
    assert groups(sample)["policy"].tolist() == [[0, 0, 1, 1]] * 2
    said = capsys.readouterr().err
    assert "groups rgb; read are policy from policy and proprio, critic from privileged" in said
    same = {"actor": ("policy", "proprio"), "critic": ("policy", "proprio")}
    without = {name: rows for name, rows in sample.items() if name != "privileged"}
    assert Groups(without, "t", same).source == {"policy": ("policy", "proprio")}
    told: list[dict[str, list[str]]] = [{"actor": ["policy", "gone"]}, {"actor": []}, {}]
    for unknown in told:
        assert Groups(sample, "t", unknown).source == {
            "policy": ("policy",),
            "critic": ("privileged",),
        }
    sample["rgb"] = torch.zeros(2, 8, 8, 3)
    with pytest.raises(InputError, match="observes images"):
        Groups(sample, "t", {"actor": ["policy", "rgb"]})


def test_a_critic_that_begins_with_the_policys_numbers_is_recognised():
    policy, rest = torch.rand(3, 2), torch.rand(3, 4)
    assert begins_with_policy({"policy": policy, "critic": torch.cat((policy, rest), dim=1)})
    assert not begins_with_policy({"policy": policy, "critic": rest})
    assert not begins_with_policy({"policy": policy, "critic": policy[:, :1]})
    assert not begins_with_policy({"policy": policy})


def test_a_group_of_terms_is_joined_in_its_own_order():
    terms = {"actor": {"b": torch.ones(2, 1), "a": torch.zeros(2, 2, 2)}}
    groups = Groups(terms, "t")
    assert groups.widths == {"policy": 5}
    assert groups(terms)["policy"].tolist() == [[1, 0, 0, 0, 0]] * 2


def test_an_environments_random_stream_is_its_own():
    ours, others = RandomStreams(torch.device("cpu"), 1), RandomStreams(torch.device("cpu"), 2)
    with ours:
        first = torch.rand(3)
    with others:
        torch.rand(5)
    outside = torch.rand(2)
    with ours:
        second = torch.rand(3)
    ours.seed(1)
    with ours:
        assert torch.equal(torch.cat((first, second)), torch.rand(6))
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    with others:
        torch.rand(9)
    assert torch.equal(torch.rand(1), expected)
    assert outside.shape == (2,)


@pytest.mark.parametrize(
    ("device", "before", "after"),
    [("cuda", None, "cache/supple/jax"), ("cuda", "own", "own"), ("cpu", None, None)],
)
def test_what_jax_compiles_for_a_gpu_is_kept_where_nobody_said_where(
    monkeypatch, device, before, after
):
    config: Any = SimpleNamespace(jax_compilation_cache_dir=before)
    config.update = lambda name, value: setattr(config, name, value)
    jax = SimpleNamespace(config=config, devices=lambda kind: [kind])
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert place_of(torch.device(device), "brax/ant") == {"cuda": "gpu"}.get(device, device)
    assert config.jax_compilation_cache_dir == after
