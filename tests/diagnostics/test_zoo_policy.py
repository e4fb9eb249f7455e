"""Policies with a planted illness, from their episodes through measurement to the verdict."""

import dataclasses
import re

import pytest
import torch

from supple.diagnostics import channels, closed_loop, directions, instability, rules
from supple.diagnostics.document import Document
from supple.diagnostics.evidence import Evidence
from supple.diagnostics.rollouts import roll
from supple.diagnostics.states import visited
from supple.envs.base import Discrete, Env, reset_result, step_result
from tests.diagnostics.test_instability import analysed, linear, spec, states
from tests.diagnostics.test_report import made, page_of

WIDTH, EPISODES, STEPS = 24, 8, 200
NAMES = tuple(f"joint{number}_pos" for number in range(WIDTH))


class Noise(Env):
    """Observations are drawn anew at each step; a phase in the last channel tells the time.

    The reward is largest for a tenth of the first channel's size as the action.
    """

    def __init__(self, noise):
        self.spec = dataclasses.replace(
            spec(WIDTH, names=NAMES, noise=noise), num_envs=4, max_episode_steps=STEPS
        )

    def reset(self, seed=None):
        self.at = 0
        self.random = torch.Generator().manual_seed(self.random_seed(seed))
        return reset_result({"policy": self.draw()}, 4)

    def random_seed(self, seed):
        return 1 if seed is None else seed % 2**31

    def draw(self):
        self.obs = 2e-2 * (2 * torch.rand(4, WIDTH, generator=self.random) - 1)
        self.obs[:, -1] = float(self.at % STEPS < STEPS // 4)
        return self.obs

    def step(self, action):
        reward = 1 - (action[:, 0] - 0.1 * self.obs[:, 0]).square()
        self.at += 1
        final = self.draw().clone()
        ended = torch.full((4,), self.at >= STEPS)
        if bool(ended.all()):
            self.at = 0
        return step_result(
            observation={"policy": final},
            reward=reward,
            terminated=torch.zeros_like(ended),
            truncated=ended,
            final_observation={"policy": final},
        )


def acting(command):
    """A policy of this deterministic command."""
    policy = linear(torch.full((1, WIDTH), 0.1))
    return dataclasses.replace(
        policy, command=command, step=lambda obs, memory: (command(obs), memory)
    )


def gains(first, rest=0.1):
    return torch.tensor([[first] + [rest] * (WIDTH - 2) + [0.0]])


def verdicts(policy, *, noise=None, disturb=False):
    """What the rules say of a policy, and its analysis; noise of all channels or by name."""
    by_name = noise if isinstance(noise, dict) else None
    env = Noise(None if by_name else noise)
    clean = roll(policy, env, episodes=EPISODES, seed=0)
    random = torch.Generator().manual_seed(2)
    chance = roll(policy, env, episodes=EPISODES, seed=0, random=random)
    layout = channels.layout_of(env.spec, ("policy",), by_name)
    generator = torch.Generator().manual_seed(1)
    one = instability.analyse(
        policy,
        "action",
        visited(policy, clean),
        layout,
        generator,
        actuators=channels.actuators_of(env.spec),
    )
    found = [*instability.readings(one)]
    for name, make in closed_loop.plans(one, policy, clean, generator).items() if disturb else ():
        moved = roll(policy, env, episodes=EPISODES, seed=0, sense=make())
        earned = float(chance.returns.mean())
        found.append(closed_loop.cost(clean, moved, earned, name, generator))
        found += closed_loop.quotients(policy, one, moved, name, generator)
    return judged(one, found), one


def judged(one, found):
    """What the rules say of an analysis and its readings."""
    document = Document(command="", suite="full", device="cpu", seed=0)
    for each in found:
        document.add(0, each)
    evidence = Evidence(
        target=0, label="step 9", env_steps=9, readings=document.hits[0], analyses={one.mode: one}
    )
    return {verdict.rule: verdict for verdict in rules.judge([evidence])}


def test_a_gain_of_fifty_on_one_noisy_channel_is_a_fragile_direction():
    found, one = verdicts(acting(lambda obs, *_: obs @ gains(50.0).T), noise=2e-3)
    assert set(found) == {"V10"}
    assert found["V10"].level == "bad"
    assert "0.002 rad on joint0_pos alone" in found["V10"].sentence
    assert one.worst.square()[0] > 0.99


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_fragile_direction_among_few_channels_is_one_too(width):
    named = spec(width, names=NAMES[:width], noise=4e-3)
    gain = torch.eye(width)
    gain[1:] *= 0.002
    for own, level in ((gain[:1], "bad"), (gain, "bad"), (torch.eye(width), None)):
        one = analysed(linear(50 * own), at=states(width=width), spec=named)
        found = judged(one, instability.readings(one)).get("V10")
        # One channel holds all sensitivity by itself: that supports nothing.
        expected = "warn" if width == 1 else level
        assert (found and found.level) == expected


def test_what_noise_does_to_a_choice_is_said_as_a_probability():
    rows = torch.tensor([[50.0, 0.0, 0.0], [-50.0, 0.0, 0.0]])
    policy = dataclasses.replace(
        linear(), command=None, gaussian=None, logits=lambda obs, *_: obs @ rows.T
    )
    named = spec(3, names=NAMES[:3], noise=5e-2, action=Discrete(n=2))
    actuators = channels.actuators_of(named)
    one = analysed(policy, "choice", at=states(scale=5e-2), spec=named, actuators=actuators)
    verdict = judged(one, instability.readings(one))["V10"]
    points = f"{100 * one.gains[0].share:.0f} percentage points."
    moves = f"moves, to first order, the probability of choice 0 by {points}"
    assert f"0.05 rad on joint0_pos alone {moves}" in verdict.sentence
    loud = spec(3, names=NAMES[:3], noise=2.0, action=Discrete(n=2))
    one = analysed(policy, "choice", at=states(scale=5e-2), spec=loud, actuators=actuators)
    verdict = judged(one, instability.readings(one))["V10"]
    assert verdict.sentence.endswith("of choice 0 by 100 percentage points.")
    (table,) = re.findall("Which sensor moves.*?</thead>", page_of(made(one=one), one))
    assert "<th>choice</th>" in table
    assert "half range" not in table


def test_noise_moves_a_command_from_end_to_end_at_most():
    found, one = verdicts(acting(lambda obs, *_: obs @ gains(50.0).T), noise=2.0)
    assert "joint0_pos alone moves, to first order, action[0] by 200% of its half range." in (
        found["V10"].sentence
    )
    assert one.gains[0].jitter == 4  # of ±2


def test_noise_beside_the_worst_direction_is_a_fragile_direction_of_its_own():
    gain = gains(50.0)
    gain[0, 1] = 10.0  # a fifth of what the clean sensor does, on one that is off by a third
    policy = acting(lambda obs, *_: obs @ gain.T)
    found, one = verdicts(policy, noise={"joint1_pos": 2e-2}, disturb=True)
    assert one.worst.square()[0] > 0.9
    assert one.noisy is not None
    assert one.noisy.worst.square()[1] == pytest.approx(1)
    assert one.noisy.changed == 1
    assert found["V10"].level == "bad"
    assert "mostly on joint1_pos" in found["V10"].sentence
    assert verdicts(policy, noise={"joint1_pos": 2e-3})[0] == {}


@pytest.mark.parametrize(
    ("first", "noise"),
    [
        (50.0, 2e-5),  # a sensor good enough for it
        (0.1, 2e-3),  # a policy that hardly reacts
        (50.0, None),  # nothing declared to fall short of
    ],
)
def test_the_same_gain_is_no_illness_where_it_does_no_harm(first, noise):
    assert verdicts(acting(lambda obs, *_: obs @ gains(first).T), noise=noise)[0] == {}


def test_a_gain_that_is_a_hundredfold_in_one_quarter_of_the_time_comes_in_bursts():
    def bursting(obs, *_):
        return (0.1 + 9.9 * obs[:, -1:]) * (obs @ gains(1.0, 0.01).T)

    found, one = verdicts(acting(bursting))
    assert set(found) == {"V11"}
    assert one.course["cv"] > 1.5
    assert verdicts(acting(lambda obs, *_: obs @ gains(1.0, 0.01).T))[0] == {}


def listening(beyond):
    def command(obs, *_):
        # The second channel is heard only beyond what it ever reports undisturbed.
        other = torch.sigmoid((obs[:, 1:2] - beyond) / 1e-4)
        return 0.1 * obs[:, :1] + other * torch.tanh(60 * obs[:, 2:3]) * 2

    return acting(command)


def test_a_policy_that_listens_to_another_sensor_where_a_bias_takes_it():
    found, _ = verdicts(listening(2.1e-2), disturb=True)
    assert set(found) == {"V12"}
    assert "biased by 1 sd" in found["V12"].sentence
    assert verdicts(listening(9.0), disturb=True)[0] == {}


@pytest.mark.parametrize("halves", [{"quotient": 0.0}, {"cosine": 0.5}])
def test_a_shift_is_not_blamed_where_undisturbed_episodes_agree_as_little(monkeypatch, halves):
    whole = directions.split_half
    monkeypatch.setattr(directions, "split_half", lambda *each: whole(*each)._replace(**halves))
    assert verdicts(listening(2.1e-2), disturb=True)[0] == {}


def test_noise_on_a_channel_that_was_constant_does_not_hide_the_comparison():
    policy, env = acting(lambda obs, *_: obs @ gains(1.0).T), Noise(None)
    clean = roll(policy, env, episodes=2, seed=0)
    layout = channels.layout_of(env.spec, ("policy",))
    generator = torch.Generator().manual_seed(1)
    one = instability.analyse(policy, "action", visited(policy, clean), layout, generator)
    assert not one.searched[-1]  # a phase of 0 and 1
    noisy = closed_loop.plans(one, policy, clean, generator)["sensor noise"]()
    moved = roll(policy, env, episodes=2, seed=0, sense=noisy)
    found = closed_loop.quotients(policy, one, moved, "sensor noise", generator)
    assert found[0].value == pytest.approx(1, abs=1e-3)
