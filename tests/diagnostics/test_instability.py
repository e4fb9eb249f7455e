"""Policies of every kind, on states made by hand: what is found must be what was built in."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch

from supple.diagnostics import channels, disturbances, instability, perturbation, rollouts
from supple.diagnostics.data import Transitions
from supple.diagnostics.policies import Policy
from supple.diagnostics.states import States, stored, visited
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
from supple.errors import InputError

CPU = torch.device("cpu")
GAIN = torch.tensor([[50.0, 0.1, 0.1]])


def linear(gain=GAIN, squash=torch.tanh):
    """A policy whose command is a squashed linear map."""

    def command(obs, *_):
        return squash(obs @ gain.T)

    def sample(obs, memory, generator):
        noise = torch.randn(len(obs), len(gain), generator=generator)
        return command(obs) + 0.1 * noise, memory

    return Policy(
        groups=("policy",),
        critic_groups=("policy",),
        memory=0,
        step=lambda obs, memory: (command(obs), memory),
        sample=sample,
        command=command,
        gaussian=lambda obs, *_: torch.cat((obs @ gain.T, torch.full((len(obs), 1), -1.0)), -1),
        no_value="it has no critic",
    )


def states(rows=400, width=3, scale=1e-3, episodes=4, source="rollout"):
    obs = scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    episode = torch.arange(rows) // (rows // episodes)
    return States(obs, obs, obs.new_zeros(rows, 0), episode, source)


def spec(width=3, action=None, names=(), noise=None, **facts):
    found = tuple(Channel(name=name, group="policy", unit="rad", noise=noise) for name in names)
    return EnvSpec(
        task_id="made/up",
        num_envs=1,
        observation={"policy": width},
        action=action or Box(low=(-2.0,), high=(2.0,)),
        device=CPU,
        channels=found or None,
        **facts,
    )


def analysed(policy=None, mode="action", **changes):
    return instability.analyse(
        policy or linear(),
        mode,
        changes.pop("at", states()),
        channels.layout_of(changes.pop("spec", spec()), ("policy",)),
        changes.pop("generator", None) or torch.Generator().manual_seed(1),
        **changes,
    )


@pytest.mark.parametrize("mode", ["action", "fisher"])
def test_the_channel_with_the_high_gain_carries_the_direction(mode):
    one = analysed(mode=mode)
    assert one.worst.square()[0] > 0.99
    assert one.identified
    assert one.responses.beats_random(0.1)
    assert one.responses.least_of_all(0.1)
    assert one.responses.confirmed
    found = {each.metric: each for each in instability.readings(one)}
    assert (found["ranld_conc"].value or 0) > 0.99
    assert found["ranld_conc"].reference["isotropic"] == pytest.approx(
        (1 + (3 / 400) ** 0.5) ** 2 / 3
    )


def test_even_gains_are_not_called_one_direction():
    one = analysed(linear(torch.eye(3)[:, :3], squash=lambda x: x))
    assert one.found.gap < 0.1
    assert not one.identified
    assert not one.responses.confirmed


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 24])
def test_finite_steps_confirm_one_direction_and_not_all_whatever_is_drawn(width):
    at, only, all_ = states(width=width, scale=1.0), torch.eye(width)[:1], torch.eye(width)
    for seed in range(8):
        for gain, expected in ((only, True), (torch.ones(1, width), True), (all_, width == 1)):
            one = analysed(
                linear(gain, squash=lambda x: x),
                at=at._replace(obs=at.obs / at.obs.std(0)),
                spec=spec(width),
                generator=torch.Generator().manual_seed(seed),
            )
            assert one.responses.confirmed == expected
    required = one.responses.required
    assert required == pytest.approx(1) if width == 1 else 1 < required <= 3
    assert (required == 3) or width < 24


def test_distance_is_the_tolerance_over_the_gain():
    one = analysed(linear(squash=lambda x: x), at=states(scale=1.0))
    scale = states(scale=1.0).obs.std(0)
    expected = 0.1 / math.sqrt(float((GAIN[0] * scale).square().sum()))
    assert one.quantile(0.05) == pytest.approx(expected, rel=1e-4)


def test_units_of_a_channel_change_no_normalised_result():
    at = states()
    rescaled = at._replace(obs=at.obs * torch.tensor([1000.0, 1.0, 1.0]))
    actuators = channels.actuators_of(spec())
    before = analysed(at=at, actuators=actuators)
    after = analysed(
        linear(GAIN / torch.tensor([1000.0, 1.0, 1.0])), at=rescaled, actuators=actuators
    )
    torch.testing.assert_close(after.found.value_D, before.found.value_D, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(after.worst.abs(), before.worst.abs(), rtol=1e-3, atol=1e-5)
    assert after.gains[0].gain == pytest.approx(before.gains[0].gain / 1000, rel=1e-4)
    assert after.gains[0].jitter == pytest.approx(before.gains[0].jitter, rel=1e-4)


def test_order_of_states_changes_nothing_but_the_course():
    at = states(source="recent")
    mixed = at.rows(torch.randperm(400, generator=torch.Generator().manual_seed(3)))
    before, after = analysed(at=at), analysed(at=mixed)
    torch.testing.assert_close(after.found.value_D, before.found.value_D)
    assert isinstance(before.course, str)
    reasons = [r.reason for r in instability.readings(before) if r.metric == "ranld_cv"]
    assert "needs whole episodes" in reasons[0]


def test_a_course_over_time_has_every_step_of_whole_episodes(monkeypatch):
    at = states()  # four episodes of 100 steps
    at.obs[:, -1] = torch.arange(400) % 2  # every other step is ten times as sensitive
    policy = linear()
    policy = dataclasses.replace(policy, command=lambda obs, *_: (0.1 + obs[:, 2:]) * obs[:, :1])
    whole = analysed(policy, at=at)
    monkeypatch.setattr(instability, "MOST_STATES", 300)
    thinned = analysed(policy, at=at)
    assert (whole.states, thinned.states) == (400, 200)
    assert thinned.course["tv"] == pytest.approx(whole.course["tv"], rel=1e-2)
    assert [len(strength) for strength, _ in thinned.series] == [100, 100, 100]
    for own, expected in zip(thinned.series, whole.series, strict=True):
        torch.testing.assert_close(own[0] / thinned.scale[0], expected[0] / whole.scale[0])
    monkeypatch.setattr(instability, "MOST_STATES", 150)  # whole ones as far as they fit
    assert [len(strength) for strength, _ in analysed(policy, at=at).series] == [100]


def test_half_of_the_episodes_without_a_response_cost_only_what_compares_halves():
    at = states()  # four episodes of 100 steps; actions of the odd ones are at their limits
    at.obs[:, -1] = at.episode % 2
    policy = dataclasses.replace(linear(), command=lambda obs, *_: (1 - obs[:, 2:]) * obs[:, :1])
    one = analysed(policy, at=at)
    assert isinstance(one.split, str) and "does not respond" in one.split
    assert all(math.isfinite(bound) for pair in one.intervals.values() for bound in pair)
    found = {r.metric: r for r in instability.readings(one)}
    assert found["ranld_conc"].status == "ok"
    assert found["ranld_split_cos"].reason == one.split


def test_choices_flip_along_the_difference_of_their_rows():
    rows = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]])
    policy = dataclasses.replace(
        linear(), command=None, gaussian=None, logits=lambda obs, *_: obs @ rows.T
    )
    one = analysed(policy, "choice", at=states(scale=1.0), spec=spec(action=Discrete(n=2)))
    scaled = (rows[0] - rows[1]) * one.scale
    expected = scaled / scaled.norm()
    assert (one.worst @ expected).abs() == pytest.approx(1, abs=1e-5)
    assert one.responses.beats_random(0.3)
    assert one.responses.worst_S[-1] > one.responses.random_KS[:, -1].median()


def test_a_mode_without_its_network_says_why():
    with pytest.raises(InputError, match="mode critic: expected one of action, fisher: it has no"):
        analysed(mode="critic")


def test_constant_binary_and_command_channels_are_not_searched():
    obs = torch.tensor([[0.1, 1.0, 0.0, 0.5], [0.2, 1.0, 1.0, 0.7], [0.5, 1.0, 0.0, 0.1]])
    names = ("angle", "constant", "contact", "velocity_command")
    layout = channels.layout_of(spec(4, names=names), ("policy",))
    assert layout.searched(obs).tolist() == [True, False, False, False]


def test_names_units_and_half_ranges_come_from_the_robot():
    robot = Deployment(joint_names=("knee",), control_mode="torque", action_scale=(40.0,))
    known = spec(names=("hip_pos", "hip_vel", "knee_pos"), noise=0.01, deployment=robot)
    one = analysed(at=states(scale=1e-4), spec=known, actuators=channels.actuators_of(known))
    gain = one.gains[0]
    assert (gain.sensor, gain.actuator, gain.unit) == ("hip_pos", "knee", "N·m per rad")
    assert gain.gain == pytest.approx(50 * 40, rel=1e-3)
    assert (gain.jitter, gain.jitter_unit) == (pytest.approx(20, rel=1e-3), "N·m")
    assert gain.share == pytest.approx(0.5, rel=1e-3)
    assert gain.declared
    assert one.families["positions"][0] > 0.99
    for axis in torch.eye(3):
        along = float((0.01 * axis / one.scale).norm())
        assert one.noise_along(axis) == pytest.approx(along, rel=1e-5)


def test_unknown_channels_get_numbers_and_assumed_noise():
    one = analysed(actuators=channels.actuators_of(spec()))
    assert one.layout.names == ("obs[0]", "obs[1]", "obs[2]")
    assert not one.layout.named
    assert one.noise_along(one.worst) is None
    gain = one.gains[0]
    assert (gain.actuator, gain.unit, gain.declared) == ("action[0]", "command per unit", False)
    assert gain.jitter == pytest.approx(gain.gain * 0.01 * float(states().obs.std(0)[0]), rel=1e-4)


def test_noise_files_are_checked(tmp_path):
    known, path = spec(names=("a", "b", "c")), tmp_path / "noise.json"
    path.write_text(json.dumps({"a": 0.5}))
    noise = channels.read_noise(path, known)
    declared = channels.layout_of(known, ("policy",), noise).noise
    assert declared is not None
    assert declared.tolist() == [0.5, 0, 0]
    for content, complaint in (
        ('{"d": 1}', "'d' is no channel of made/up; it has a, b, c"),
        ('{"a": -1}', "a must be a number >= 0, got -1"),
        ("[1]", "expected an object"),
        ("{", "cannot be read as JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=complaint.replace("[", r"\[")):
            channels.read_noise(path, known)


def test_steps_stay_within_what_sensors_can_report():
    seen = []

    def respond(moved):
        seen.append(moved)
        return moved.norm(dim=-1)

    obs = torch.tensor([[0.9, 0.0], [3.0, 0.0]])
    perturbation.respond_to(
        respond,
        obs,
        worst_D=torch.tensor([1.0, 0.0]),
        least_D=torch.tensor([0.0, 1.0]),
        local_ND=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        scale_D=torch.ones(2),
        kept_D=torch.tensor([True, True]),
        limits=(torch.tensor([-1.0, -math.inf]), torch.tensor([1.0, math.inf])),
        generator=torch.Generator().manual_seed(0),
    )
    first = torch.stack(seen)[:, 0, 0]
    assert first.max() == 1.0
    assert torch.stack(seen)[:, 1, 0].max() == 3.0  # seen beyond the range: stays as it is


class Countdown(Env):
    """Two environments that end after 3 and 5 steps; the reward is the action."""

    def __init__(self):
        self.spec = spec(2, max_episode_steps=10)
        self.spec = dataclasses.replace(self.spec, num_envs=2)

    def reset(self, seed=None):
        self.at = self.starts()
        return reset_result({"policy": self.obs()}, 2)

    def starts(self):
        return torch.zeros(2)

    def obs(self):
        return torch.stack((self.at, torch.tensor([0.0, 1.0])), -1)

    def step(self, action):
        self.at += 1
        final = self.obs()
        ended = self.at >= torch.tensor([3.0, 5.0])
        if ended.any():
            self.at = torch.where(ended, self.starts(), self.at)
        return step_result(
            observation={"policy": self.obs()},
            reward=action[:, 0].clone(),
            terminated=ended,
            truncated=torch.zeros(2, dtype=torch.bool),
            final_observation={"policy": final},
        )


def counting():
    """Acts by what it is told, and counts its steps in its memory."""
    policy = linear()
    return dataclasses.replace(
        policy, memory=1, step=lambda obs, memory: (obs[:, :1] + 1, memory + 1)
    )


def test_episodes_are_whole_in_order_and_counted_once():
    found = rollouts.roll(counting(), Countdown(), episodes=3, seed=0)
    steps = found.steps
    assert isinstance(steps, Transitions)
    assert steps.episode.tolist() == [0] * 3 + [1] * 5 + [2] * 3
    assert steps.step.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2]
    assert found.returns.tolist() == [6, 15, 6]
    assert found.memory[:, 0].tolist() == steps.step.tolist()
    assert steps.next_observation["policy"][2].tolist() == [3, 0]  # before the reset
    assert steps.terminated.tolist() == [False] * 2 + [True] + [False] * 4 + [True] + [
        False
    ] * 2 + [True]
    assert visited(counting(), found).in_order


def test_what_is_sensed_is_what_the_policy_is_told():
    late = disturbances.shifts({}, torch.ones(2), torch.zeros(2), torch.Generator())
    found = rollouts.roll(
        counting(), Countdown(), episodes=1, seed=0, sense=late["one step late"]()
    )
    assert found.told[:, 0].tolist() == [0, 0, 1]
    assert found.steps.observation["policy"][:, 0].tolist() == [0, 1, 2]
    assert found.returns.tolist() == [1 + 1 + 2]


class Drawn(Countdown):
    """Starts come from its own stream, and large actions end an episode at once."""

    def reset(self, seed=None):
        if seed is not None:
            self.random = torch.Generator().manual_seed(seed)
        return super().reset()

    def starts(self):
        return torch.rand(2, generator=self.random)

    def step(self, action):
        self.at = torch.where(action[:, 0] > 8, 9.0, self.at)
        return super().step(action)


def test_disturbed_episodes_start_as_the_undisturbed_ones_in_every_round():
    def starts(sense=None):
        found = rollouts.roll(counting(), Drawn(), episodes=6, seed=0, sense=sense).steps
        return found.observation["policy"][found.step == 0, 0], len(found)

    (clean, steps), (moved, fewer) = starts(), starts(lambda obs, number: obs + 9)
    assert fewer < steps
    assert torch.equal(clean, moved)
    assert len(clean.unique()) == 6


def test_disturbances_bias_hold_and_step():
    obs, own = torch.tensor([[1.0, 2.0]]), torch.tensor([True, False])
    plans = disturbances.shifts(
        {"a": own}, torch.tensor([0.5, 9.0]), torch.zeros(2), torch.Generator()
    )
    assert plans["a biased by 1 sd"]()(obs, 0).tolist() == [[1.5, 2.0]]
    stuck = plans["a stuck"]()
    stuck(obs, 0)
    assert stuck(obs + 1, 1).tolist() == [[1.0, 3.0]]
    assert torch.equal(plans["sensor noise"]()(obs, 0), obs)
    step = disturbances.along(torch.tensor([0.6, 0.8]), 10, torch.tensor([1.0, 0.0]))
    assert step(obs, 0).tolist() == [[7.0, 2.0]]


def test_a_drop_is_what_is_lost_of_what_was_earned():
    def earned(*returns):
        values = torch.tensor(returns, dtype=torch.float64)
        return SimpleNamespace(returns=values, episodes=len(values))

    generator = torch.Generator().manual_seed(0)
    # 5 of the 10 that both episodes earn on average; of one alone 5 of 5, or of 15.
    found = disturbances.drop(earned(10, 20), earned(5, 15), 5.0, generator)
    assert found == pytest.approx((0.5, 1 / 3, 1.0))
    found = disturbances.drop(earned(10, 20), earned(5, 15), 10.0, generator)
    assert found == pytest.approx((1.0, 0.5, math.inf))
    with pytest.raises(InputError, match="nothing to lose"):
        disturbances.drop(earned(1, 1), earned(1, 1), 5.0, generator)
    with pytest.raises(InputError, match="expected 2 disturbed ones, got 1"):
        disturbances.drop(earned(1, 1), earned(1), 0.0, generator)


def test_stored_states_meet_an_empty_memory():
    found = rollouts.roll(counting(), Countdown(), episodes=2, seed=0)
    again = stored(counting(), found.steps, "recent")
    assert not again.memory.any()
    assert not again.in_order
