import dataclasses
import math
from typing import Any

import pytest
import torch

from supple.deploy.golden import TOLERANCE
from supple.deploy.plain import command_map, denominator, plain_policy
from supple.errors import InputError
from tests.deploy.small_bundles import (
    agents,
    clipped_spec,
    contract_of,
    flashsac,
    plain_spec,
    ppo,
    robot_spec,
)

AGENTS = agents()


@pytest.fixture(params=AGENTS, scope="module")
def pair(request):
    agent, spec = AGENTS[request.param]
    return agent, spec, plain_policy(agent, spec)


def observations(policy, rows=200, seed=0):
    return 2 * torch.randn(rows, policy.inputs, generator=torch.Generator().manual_seed(seed))


def test_plain_layers_answer_as_the_training_policy_does(pair):
    agent, _, policy = pair
    obs = observations(policy)
    if policy.memory_width:
        memory = torch.rand(len(obs), policy.memory_width) * 2 - 1
        expected, after = agent.policy()(obs, memory)
        action, _, own = policy(obs, memory)
        assert torch.allclose(own, after, atol=TOLERANCE)
    else:
        expected, action = agent.policy()(obs), policy(obs)[0]
    assert action.dtype == expected.dtype
    assert torch.allclose(action.float(), expected.float(), atol=TOLERANCE)
    assert action.float().std() > 0.05  # a constant would prove nothing


def test_only_the_actors_observations_enter():
    agent, spec = AGENTS["flashsac asymmetric"]
    assert plain_policy(agent, spec).inputs == spec.observation["policy"] == 5


def test_commands_are_scaled_shifted_and_clipped_by_hand():
    # low (-2, 0), high (2, 1): scale (2, 0.5), offset (0, 0.5).
    spec = plain_spec()
    assert command_map(spec) == ([2.0, 0.5], [0.0, 0.5])
    policy: Any = plain_policy(ppo(spec), spec)
    with torch.no_grad():
        policy.body[-1].weight.zero_()
        policy.body[-1].bias.copy_(torch.tensor([0.25, 3.0]))
    action, command = policy(torch.zeros(1, 5))
    assert action.tolist() == [[0.25, 3.0]]
    assert command.tolist() == [[0.5, 1.0]]  # 3 is clipped to 1 before it is scaled


def test_commands_are_clipped_where_the_simulator_clips_them():
    spec = clipped_spec()
    policy: Any = plain_policy(ppo(spec), spec)
    for action, expected in (
        (1.0, [0.15, 1.2, -0.32]),  # 0.35 and 0.03 without
        (-2.0, [-0.4, 0.6, -0.35]),  # -0.3 and -0.96 without
        (0.0, [0.1, 0.7, -0.32]),  # the offset of the last is -0.3
    ):
        assert policy.command(torch.full((1, 3), action)).tolist()[0] == pytest.approx(expected)
    safety = contract_of(spec)["safety"]
    assert safety["command_low"] == [None, 0.6, -0.35]
    assert safety["command_high"] == [0.15, None, -0.32]
    assert safety["safe_command"] == [0.1, 0.7, -0.32]


def test_a_robots_own_scale_and_offset_come_before_the_simulators():
    assert command_map(robot_spec()) == ([0.25, 0.5, 0.33], [0.1, 0.7, -0.3])


def test_whole_numbers_in_a_description_are_floats_in_the_graphs():
    spec = robot_spec()
    assert spec.deployment
    robot = dataclasses.replace(spec.deployment, action_scale=(1, 2, 3), action_offset=(0, 0, 1))
    spec = dataclasses.replace(spec, deployment=robot)
    policy: Any = plain_policy(flashsac(spec), spec)
    assert policy.scale.dtype == policy.offset.dtype == torch.float32
    assert policy.scale.tolist() == [1, 2, 3]


def test_denominators_by_hand():
    std = torch.tensor([3.0])
    assert denominator(std, 16.0, inside=True).item() == 5.0
    assert denominator(std, 16.0, inside=False).item() == 19.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_gives_the_safe_action_in_its_row_only(pair, value):
    _, _, policy = pair
    obs = observations(policy, rows=3)
    memory = (torch.full((3, policy.memory_width), 0.5),) if policy.memory_width else ()
    fine = policy(obs, *memory)
    obs[1, -1] = value
    found = policy(obs, *memory)
    assert not found[0][1].any()
    assert torch.equal(found[0][::2], fine[0][::2])
    if memory:
        assert torch.equal(found[2][1], memory[0][1])


def test_overflow_inside_gives_the_safe_action():
    spec = robot_spec()
    action, command = plain_policy(flashsac(spec), spec)(torch.full((1, 8), 3e38))
    assert not action.any()
    assert torch.allclose(command, torch.tensor(command_map(spec)[1]))


def test_a_memory_that_is_not_finite_is_emptied():
    agent, spec = AGENTS["ppo recurrent"]
    policy = plain_policy(agent, spec)
    action, _, memory = policy(torch.zeros(1, 5), torch.full((1, 6), math.nan))
    assert not action.any() and not memory.any()


def test_an_unknown_policy_is_refused():
    class Odd:
        def policy(self):
            return torch.nn.Linear(1, 1)

    odd: Any = Odd()
    with pytest.raises(InputError, match=r"cannot export Linear: known are .* FlashSAC and PPO"):
        plain_policy(odd, plain_spec())
