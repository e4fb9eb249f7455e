import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from supple.envs.base import (
    Box,
    Channel,
    Deployment,
    Discrete,
    Env,
    EnvSpec,
    reset_result,
    step_result,
)
from supple.envs.check import check_env
from supple.envs.toy import TOY_TASKS, Bandit, Counter, make_toy
from supple.envs.toy_base import ToyEnv
from supple.envs.toy_hidden import Asymmetric
from supple.errors import InputError

CPU = torch.device("cpu")
A_LIST: Any = ["hip"]  # where the spec asks for a tuple
STEPS = 45


def failures(make, steps=STEPS):
    return {item.name: item.detail for item in check_env(make, steps=steps) if not item.ok}


def notes(make, steps=STEPS):
    found = check_env(make, steps=steps)
    assert all(item.ok for item in found), found
    return {item.name: item.detail for item in found if item.detail.startswith("note:")}


SOUND: dict[str, Callable[[], Env]] = {
    **{name: partial(make_toy, name, 4, CPU) for name in TOY_TASKS},
    "one environment": lambda: make_toy("lqr", 1, CPU),
    "next_step": lambda: Counter(4, CPU, autoreset="next_step"),
    "noisy bandit": lambda: Bandit(4, CPU, reward_noise=0.1),
    "privileged": lambda: Asymmetric(4, CPU, critic_contains_policy=True),
    "poisoned": lambda: Poisoned(),
}


@pytest.mark.parametrize("name", SOUND)
def test_every_toy_keeps_the_contract(name):
    assert failures(SOUND[name]) == {}


def test_unusual_but_legal_is_noted():
    assert "right only where the task is deterministic" in notes(SOUND["counter"])["other seed"]
    short = notes(SOUND["lqr"], steps=10)
    assert "no episode ended early enough in 10 steps" in short["final observation"]
    assert "no episode reached the limit of 50 steps" in short["time limit"]


class Creep(ToyEnv):
    """Walks slowly away from where it starts; the limit is 20 steps."""

    def __init__(self, num_envs, device):
        super().__init__(
            "creep",
            num_envs,
            device,
            observation={"policy": 2},
            bounds=(1.0,),
            max_episode_steps=20,
        )

    def _start(self):
        return {"x": 0.01 * self._uniform(2), "step": self._zeros(torch.int64)}

    def _advance(self, state, action):
        step = state["step"] + 1
        outcome = {
            "reward": state["x"].sum(1),
            "terminated": self._zeros(torch.bool),
            "truncated": step == 20,
        }
        return {"x": state["x"] + 0.1 + 0.01 * action, "step": step}, outcome

    def _observe(self, state):
        return {"policy": state["x"].clone()}


class Changed(Env):
    """A sound environment in which each subclass plants one fault."""

    base: Any = Creep

    def __init__(self):
        self.env: Any = self.base(4, CPU)
        self.spec = self.env.spec

    def declare(self, **facts):
        self.spec = dataclasses.replace(self.spec, **facts)

    def reset(self, seed=None):
        return self.env.reset(seed)

    def step(self, action):
        return self.change(self.env.step(action))

    def change(self, step):
        return step

    def state_dict(self):
        return self.env.state_dict()

    def load_state_dict(self, state):
        self.env.load_state_dict(state)


class Poisoned(Changed):
    """No fault: NaN where ``final_observation`` is unspecified."""

    def change(self, step):
        ended = (step["terminated"] | step["truncated"]).unsqueeze(-1)
        final = step["final_observation", "policy"]
        step["final_observation", "policy"] = torch.where(ended, final, float("nan"))
        return step


class AliasedBuffer(Changed):
    def __init__(self):
        super().__init__()
        self.buffer = torch.zeros(4, 2)

    def change(self, step):
        self.buffer.copy_(step["observation", "policy"])
        step["observation", "policy"] = self.buffer
        return step


class FinalIsReset(Changed):
    def change(self, step):
        step["final_observation"] = step["observation"].clone()
        return step


class FinalIsResetWithNoise(Changed):
    """An adapter that computes the noisy observation once more, after the reset."""

    def change(self, step):
        noise = 1e-3 * step["final_observation", "policy"].cos()
        step["final_observation", "policy"] = step["observation", "policy"] + noise
        return step


class FinalIsPrevious(Changed):
    def reset(self, seed=None):
        self.last = self.env.reset(seed)["observation"]
        return reset_result(dict(self.last.items()), 4)

    def change(self, step):
        step["final_observation"] = self.last.clone()
        self.last = step["observation"].clone()
        return step


class NeverResets(Changed):
    def __init__(self):
        super().__init__()
        self.declare(exact_resume=False)

    def reset(self, seed=None):
        self.count = 0
        return self.env.reset(seed)

    def change(self, step):
        self.count += 1
        step["truncated"] = torch.full((4,), self.count >= 10)
        return step


class WrongLimit(Changed):
    def __init__(self):
        super().__init__()
        self.declare(max_episode_steps=30)


class LimitIgnored(Changed):
    def __init__(self):
        super().__init__()
        self.declare(max_episode_steps=15)


class NotFinite(Changed):
    base = Counter

    def change(self, step):
        observation = step["observation", "policy"]
        step["observation", "policy"] = observation.where(observation[:, 2:3] != 7, torch.nan)
        return step


class NotFiniteFinal(Changed):
    def change(self, step):
        step["final_observation", "policy"] = torch.full((4, 2), torch.inf)
        return step


class Unseeded(Changed):
    def change(self, step):
        step["reward"] = step["reward"] + torch.rand(4)
        return step


class UnseededReset(Changed):
    def reset(self, seed=None):
        return self.env.reset()


class IgnoresActions(Changed):
    def step(self, action):
        return self.env.step(torch.zeros_like(action))


class RefusesLargeActions(Changed):
    def step(self, action):
        if bool((action.abs() > 1).any()):
            raise AssertionError("action out of bounds")
        return self.env.step(action)


class ChangesAction(Changed):
    def step(self, action):
        return self.env.step(action.mul_(2))


class DoubleReward(Changed):
    def change(self, step):
        step["reward"] = step["reward"].double()
        return step


class FloatFlag(Changed):
    def change(self, step):
        step["terminated"] = step["terminated"].float()
        return step


class ColumnReward(Changed):
    def change(self, step):
        step["reward"] = step["reward"].unsqueeze(1)
        return step


class MissingKey(Changed):
    def change(self, step):
        return step.exclude("valid")


class MissingGroup(Changed):
    base = Asymmetric

    def change(self, step):
        return step.exclude(("final_observation", "critic"))


class NarrowObservation(Changed):
    def reset(self, seed=None):
        return reset_result({"policy": super().reset(seed)["observation", "policy"][:, :1]}, 4)


class PlainDict(Changed):
    def change(self, step):
        return dict(step.items())


class ForgetfulState(Changed):
    def state_dict(self):
        state = self.env.state_dict()
        del state["generator"]
        return state

    def load_state_dict(self, state):
        generator = self.env.state_dict()["generator"]
        self.env.load_state_dict({**state, "generator": generator})


class AliasedState(Changed):
    base = Counter

    def reset(self, seed=None):
        self.total = torch.zeros(4)
        return self.env.reset(seed)

    def change(self, step):
        self.total += 1
        step["reward"] = step["reward"] + self.total
        return step

    def state_dict(self):
        return {**self.env.state_dict(), "total": self.total}

    def load_state_dict(self, state):
        self.env.load_state_dict(state)
        self.total = state["total"]


class OpaqueState(Changed):
    def state_dict(self):
        return {"simulator": {"handle": object()}}


class RaisesLate(Changed):
    base = Counter

    def change(self, step):
        if step["observation", "policy"][0, 2] == 7:
            raise IndexError("joint 12 is out of range")
        return step


class BridgeWithReward(Changed):
    base: Any = staticmethod(lambda n, device: Counter(n, device, autoreset="next_step"))

    def change(self, step):
        step["reward"] = step["reward"].where(step["valid"], 1.0)
        return step


class BridgeWithEnd(Changed):
    base: Any = staticmethod(lambda n, device: Counter(n, device, autoreset="next_step"))

    def change(self, step):
        step["truncated"] = step["truncated"] | ~step["valid"]
        return step


class NotPrivileged(Changed):
    base = Asymmetric

    def __init__(self):
        super().__init__()
        self.declare(critic_contains_policy=True)


class StaleFinal(Changed):
    """Isaac Lab keeps its key for the final observation between ends; nobody fills it again."""

    def __init__(self):
        super().__init__()
        self.declare(exact_resume=False)
        self.kept: Any = None

    def reset(self, seed=None):
        self.kept = None
        return self.env.reset(seed)

    def change(self, step):
        ended = (step["terminated"] | step["truncated"]).any()
        if self.kept is None and ended:
            self.kept = step["final_observation"].clone()
        if ended:
            step["final_observation"] = self.kept.clone()
        return step


class TimeOutsTerminate(Changed):
    """Genesis' go2-walk: the time-outs are stored by reference and zeroed before they are read."""

    def change(self, step):
        stored = {"time_outs": step["truncated"]}
        step["terminated"] = step["terminated"] | step["truncated"]
        step["truncated"].zero_()
        step["truncated"] = stored["time_outs"]
        return step


class Stumble(Creep):
    """Falls at a random moment."""

    def _advance(self, state, action):
        after, outcome = super()._advance(state, action)
        fallen = torch.rand(self.spec.num_envs, generator=self._generator) < 0.1
        return after, {**outcome, "terminated": fallen}


class FallsAreTimeOuts(Changed):
    base = Stumble

    def change(self, step):
        step["truncated"] = step["truncated"] | step["terminated"]
        step["terminated"] = torch.zeros(4, dtype=torch.bool)
        return step


class BothFlags(Changed):
    """One ``done`` for both."""

    base = Stumble

    def change(self, step):
        done = step["truncated"] | step["terminated"]
        step["terminated"], step["truncated"] = done, done.clone()
        return step


class OtherDevice(Changed):
    def __init__(self):
        super().__init__()
        self.declare(device=torch.device("meta"))

    def reset(self, seed=None):
        return self.env.reset(seed)


class ResetsLate(Changed):
    """A next-step simulator taken for a same-step one: its bridge rows count as steps."""

    base: Any = staticmethod(lambda n, device: NextStepCreep(n, device))

    def change(self, step):
        step["valid"] = torch.ones(4, dtype=torch.bool)
        return step


class NextStepCreep(Creep):
    """Resets in a bridge row."""

    def _start(self):
        return {**super()._start(), "bridge": self._zeros(torch.bool)}

    def step(self, action):
        state = self._state
        bridge = state["bridge"]
        moved, outcome = self._advance(state, action)
        ended = outcome["truncated"] & ~bridge
        start = super()._start()
        self._state = {
            "x": torch.where(bridge[:, None], start["x"], moved["x"]),
            "step": torch.where(bridge, 0, moved["step"]),
            "bridge": ended,
        }
        outcome["reward"] = torch.where(bridge, 0.0, outcome["reward"])
        observation = self._observe(self._state)
        return step_result(
            observation=observation,
            final_observation=observation,
            reward=outcome["reward"],
            terminated=outcome["terminated"],
            truncated=ended,
            valid=~bridge,
        )


class ResetsEarly(Changed):
    """The end is flagged a step after the observation has been reset."""

    def __init__(self):
        super().__init__()
        self.declare(exact_resume=False)

    def reset(self, seed=None):
        self.late = torch.zeros(4, dtype=torch.bool)
        return self.env.reset(seed)

    def change(self, step):
        step["truncated"], self.late = self.late, step["truncated"].clone()
        step["final_observation"] = step["observation"].clone()
        return step


class Unscaled(Changed):
    """The policy's action reaches the simulator as it is, beyond what its bounds declare."""

    def __init__(self):
        super().__init__()
        self.declare(action=Box(low=(-3.0,), high=(3.0,)))


class Saturated(Changed):
    """Bounds of 0.4; the policy's action is clipped to them and not scaled."""

    def __init__(self):
        super().__init__()
        self.declare(action=Box(low=(-0.4,), high=(0.4,)))

    def step(self, action):
        return self.env.step(action.clamp(-0.4, 0.4))


class WeakMotors(Changed):
    """Bounds of 0.05, to which actions are scaled; motors give their most from half of that on."""

    def __init__(self):
        super().__init__()
        self.declare(action=Box(low=(-0.05,), high=(0.05,)))

    def step(self, action):
        return self.env.step((2 * action).clamp(-1, 1))


def test_motors_that_saturate_are_no_fault_of_the_scale():
    assert failures(WeakMotors) == {}


class ClosesOnce(Changed):
    def close(self):
        if self.env is None:
            raise RuntimeError("already closed")
        self.env = None


FAULTS = {
    AliasedBuffer: ("aliasing", r"observation/policy of step 1 was changed by a later step.*clone"),
    FinalIsReset: (
        "final observation",
        r"equals the observation after the reset in all 8 truncated rows.*before resetting",
    ),
    FinalIsResetWithNoise: ("final observation", r"far from the previous observation and closer"),
    FinalIsPrevious: ("final observation", r"equals the previous step's observation in all 8 rows"),
    NeverResets: (
        "auto-reset",
        r"every step after an environment's first end is an end too.*4 env",
    ),
    WrongLimit: ("time limit", r"all 8 truncated episodes had 20 steps.*=30: set it to 20"),
    LimitIgnored: ("time limit", r"ran for 20 steps or more, expected an end by max.*steps=15"),
    NotFinite: ("finite values", r"observation/policy holds nan at step 7 of environment 0"),
    NotFiniteFinal: ("finite values", r"final_observation/policy holds inf at step 20 of"),
    Unseeded: ("same seed", r"reward differs at step 1 \(by .*draw every random number from gener"),
    UnseededReset: ("same seed", r"observation/policy differs at the reset"),
    IgnoresActions: ("actions matter", r"opposite actions gave the same observations and rewards"),
    RefusesLargeActions: (
        "actions beyond 1",
        r"step 1 raised AssertionError: action out of bounds, at .*test_check.py:\d+ in step",
    ),
    ChangesAction: ("layout", r"step 1 changed the action tensor it was given"),
    DoubleReward: ("layout", r"step 1: reward is torch.float64, expected torch.float32: convert"),
    FloatFlag: ("layout", r"step 1: terminated is torch.float32, expected torch.bool"),
    ColumnReward: ("layout", r"step 1: reward has shape \(4, 1\), expected \(4,\)"),
    MissingKey: ("layout", r"step 1 returned no 'valid', expected a tensor \(4,\).*step_result"),
    MissingGroup: ("layout", r"the groups \['policy'\] in 'final_obs.*expected \['critic', 'pol"),
    NarrowObservation: ("layout", r"reset\(\): observation/policy has shape \(4, 1\).*\(4, 2\)"),
    PlainDict: ("layout", r"step 1 returned a dict, expected a TensorDict.*step_result"),
    ForgetfulState: ("exact resume", r"differs \d+ steps after load_state_dict\(\).*restore"),
    AliasedState: ("exact resume", r"reward differs 1 steps after load_state_dict\(\).*in copies"),
    OpaqueState: ("exact resume", r"state_dict\(\)\['simulator'\]\['handle'\] is a object"),
    RaisesLate: ("layout", r"step 7 raised IndexError: joint 12 is out of range, at .* in change"),
    BridgeWithReward: ("bridge rows", r"environment 0 at step 2 has valid False and carries a rew"),
    BridgeWithEnd: ("bridge rows", r"environment 0 at step 2 has valid False and carries an end"),
    NotPrivileged: ("critic group", r"entry 0 of the policy group is no entry of the critic group"),
    StaleFinal: (
        "fresh final observation",
        r"repeats that of the environment's previous end in all 4 later ends.*stale, read it again",
    ),
    TimeOutsTerminate: (
        "end flags",
        r"all 8 episodes of max_episode_steps=20 steps are terminated and none is truncated",
    ),
    FallsAreTimeOuts: (
        "end flags",
        r"truncated after .* steps, before max_episode_steps=20, and none is terminated, expected",
    ),
    BothFlags: (
        "end flags",
        r"both set in all \d+ ends, expected one of them: set terminated",
    ),
    OtherDevice: ("layout", r"reset\(\): observation/policy is on cpu, expected spec.device=meta"),
    ResetsLate: ("reset time", r"jumps one step late.*or mark the row with valid=False"),
    ResetsEarly: ("reset time", r"jumps one step early.*flag the end in the step whose"),
    Unscaled: (
        "action scale",
        r"size 2 gave another .* than actions of size 1.*scale to the",
    ),
    Saturated: ("action scale", r"size 0.7 gave the same numbers.*simulator saturates, scale to"),
    ClosesOnce: ("close", r"the second close\(\) raised RuntimeError: already closed"),
}


ALSO = {
    NotFinite: ["actions beyond 1"],
    NotFiniteFinal: ["actions beyond 1"],
    FinalIsPrevious: ["exact resume"],
    Unseeded: ["exact resume"],
}
"""What else the same fault rightly breaks."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_named(fault):
    name, text = FAULTS[fault]
    found = failures(fault)
    assert name in found, found
    assert re.search(text, found[name]), found[name]
    assert set(found) == {name, *ALSO.get(fault, ())}, "one fault, one finding"


class StaleTimeOuts(Changed):
    """legged_gym writes its time-outs only when something resets: they stay set until then."""

    def __init__(self):
        super().__init__()
        self.declare(exact_resume=False)
        self.extras = torch.zeros(4, dtype=torch.bool)

    def reset(self, seed=None):
        self.extras = torch.zeros(4, dtype=torch.bool)
        return self.env.reset(seed)

    def change(self, step):
        if (step["terminated"] | step["truncated"]).any():
            self.extras = step["truncated"]
        step["truncated"] = self.extras.clone()
        return step


PUBLIC_FAULTS = {
    # What published adapters do, and the finding that names it.
    FinalIsReset: "final observation",  # FlashSAC's and FastTD3's for Isaac Lab
    TimeOutsTerminate: "end flags",  # FlashSAC's for Genesis
    FallsAreTimeOuts: "end flags",  # MuJoCo Playground's: an end of both kinds counts as a time-out
    NarrowObservation: "layout",  # FlashSAC's for Isaac Lab: two groups, the width of one
    StaleTimeOuts: "auto-reset",  # legged_gym's extras, read without their reset flags
    AliasedBuffer: "aliasing",  # Isaac Lab and mjlab reuse their flags and rewards
    Unscaled: "action scale",  # FlashSAC's warm-up on Franka: three times the bounds
}


@pytest.mark.parametrize("fault", PUBLIC_FAULTS, ids=lambda fault: fault.__name__)
def test_known_faults_of_published_adapters_are_named(fault):
    assert PUBLIC_FAULTS[fault] in failures(fault)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"num_envs": 0}, "num_envs=0: expected >= 1"),
        ({"observation": {"state": 2}}, r"groups \['state'\]: expected one named 'policy'"),
        ({"observation": {"policy": 0}}, r"widths {'policy': 0}: expected >= 1"),
        ({"action": Box(low=(1.0,), high=(1.0,))}, "expected finite low < high"),
        ({"action": Box(low=(1.0,), high=(2.0, 3.0))}, "expected finite low < high"),
        ({"action": Discrete(n=1)}, r"Discrete\(n=1\): expected n >= 2"),
        ({"action": 3}, "action is a int: expected Box or Discrete"),
        ({"max_episode_steps": 0}, "max_episode_steps=0: expected >= 1, or None"),
        ({"critic_contains_policy": True}, "expected a 'critic' group at least as wide"),
        ({"control_dt": -0.1}, r"control_dt=-0.1: expected seconds > 0"),
        (
            {"channels": (Channel(name="x", group="policy"),)},
            "another number of entries than the 2",
        ),
        ({"task_id": torch.zeros(1)}, "TypeError: .*not JSON serializable"),
        ({"deployment": Deployment(joint_names=A_LIST)}, "deployment differs after a round trip"),
        (
            {"deployment": Deployment(commands={"yaw": {"low": (-1.0,), "high": (1.0,)}})},
            "deployment differs .* lists in its mappings$",
        ),
    ],
)
def test_a_senseless_spec_is_refused(facts, text):
    class Senseless(Changed):
        def __init__(self):
            super().__init__()
            self.declare(**facts)

    found = failures(Senseless)
    assert set(found) == {"spec"}
    assert re.search(text, found["spec"]), found["spec"]


def test_a_failing_or_wrong_constructor_is_a_finding():
    def fails():
        raise OSError("no such model")

    assert "make() raised OSError: no such model, at" in failures(fails)["construction"]
    assert "make() returned a int, expected a supple" in failures(lambda: 3)["construction"]
    with pytest.raises(InputError, match="steps=1: expected at least 2"):
        check_env(SOUND["lqr"], steps=1)


def test_final_observation_is_not_judged_where_none_is_claimed():
    class NoFinal(FinalIsReset):
        def __init__(self):
            super().__init__()
            self.declare(has_final_obs=False, exact_resume=False)

    found = notes(NoFinal)
    assert "off-policy agents refuse" in found["final observation"]
    assert "a resumed run starts new episodes" in found["exact resume"]


def test_a_device_that_rounds_differently_is_noted_not_failed():
    class Rounding(Changed):
        runs = 0

        def __init__(self):
            super().__init__()
            self.declare(exact_resume=False)

        def reset(self, seed=None):
            self.runs += 1
            return self.env.reset(seed)

        def change(self, step):
            step["reward"] = step["reward"] + 1e-6 * self.runs
            return step

    assert "differ by rounding from step 1 on" in notes(Rounding)["same seed"]


def test_discrete_actions_are_checked_too():
    class Chain(Env):
        """Choice 1 walks one cell, choice 0 none; the fourth cell terminates."""

        def __init__(self):
            self.spec = EnvSpec(
                task_id="chain",
                num_envs=3,
                observation={"policy": 1},
                action=Discrete(n=2),
                device=CPU,
            )

        def reset(self, seed=None):
            self.cell = torch.zeros(3, dtype=torch.int64)
            return reset_result({"policy": self.cell.float().unsqueeze(1)}, 3)

        def step(self, action):
            assert action.dtype == torch.int64 and action.shape == (3,)
            cell = self.cell + action
            self.cell = torch.where(cell == 3, 0, cell)
            return step_result(
                observation={"policy": self.cell.float().unsqueeze(1)},
                final_observation={"policy": cell.float().unsqueeze(1)},
                reward=(cell == 3).float(),
                terminated=cell == 3,
                truncated=torch.zeros(3, dtype=torch.bool),
            )

    assert "discrete actions have no bounds" in notes(Chain)["actions beyond 1"]


def test_terminated_episodes_of_one_length_are_noted_where_no_limit_is_declared():
    class Undeclared(TimeOutsTerminate):
        def __init__(self):
            super().__init__()
            self.declare(max_episode_steps=None)

    assert "episodes are terminated after 20 steps: if" in notes(Undeclared)["end flags"]


def test_what_repeats_nothing_says_nothing_of_the_scale_of_actions():
    names = [item.name for item in check_env(Unseeded, steps=STEPS)]
    assert "actions beyond 1" in names and "action scale" not in names
