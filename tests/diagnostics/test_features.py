"""Features taken from critics and frozen."""

import copy
import math

import pytest
import torch

from supple.agents.adam import Adam
from supple.agents.critics import CategoricalCritic, CriticSize, ScalarCritic
from supple.agents.flow_critics import BoundedFlowCritic, FlowRange, PublishedFlowCritic
from supple.agents.flow_settings import FlowSettings
from supple.agents.nets import project_
from supple.diagnostics.features import FrozenFeatures, flow_features, trunk_features
from supple.diagnostics.recovery import fixed_noise
from supple.diagnostics.views import two_hot
from supple.errors import InputError
from supple.kernels.critic_integration import path
from tests.agents.small_agents import (
    RandomReplay,
    assert_same_bits,
    generator,
    small_agent,
    small_spec,
)

G = 5.0
ROWS, INPUTS, STEPS = 64, 4, 4


def critic_of(kind, *, seed=0, blocks=2, hidden=8, depth=3, **changes):
    random = generator(seed)
    size = CriticSize(inputs=INPUTS, hidden=hidden, blocks=blocks, members=2)
    small = {"width": 16, "target_steps": STEPS, "train_samples": 3, "time_features": 8}
    settings = FlowSettings(**{**small, "depth": depth, **changes})
    critic = {
        "scalar": lambda: ScalarCritic(size, generator=random),
        "categorical": lambda: CategoricalCritic(size, num_atoms=11, value_max=G, generator=random),
        "flow": lambda: BoundedFlowCritic(size, settings=settings, value_max=G, generator=random),
        "official": lambda: PublishedFlowCritic(
            size, settings=settings, spans=FlowRange.of(settings, G), generator=random
        ),
    }[kind]()
    project_(critic)
    return critic


def inputs(rows=ROWS, seed=2):
    return torch.randn(rows, INPUTS, generator=generator(seed))


@pytest.mark.parametrize("kind", ["scalar", "categorical", "flow"])
@torch.no_grad()
def test_trunk_features_are_what_the_head_reads_and_the_same_before_their_norm(kind):
    critic = critic_of(kind)
    before, after = trunk_features(critic.trunk, inputs())
    assert before.shape == after.shape == (2, ROWS, 8)
    torch.testing.assert_close(after, critic.trunk(inputs(), train=False).transpose(0, 1))
    lengths = after.norm(dim=-1)
    # The norm's epsilon shortens the shortest rows a little.
    torch.testing.assert_close(lengths, torch.full_like(lengths, math.sqrt(8)), rtol=1e-4, atol=0)
    assert before.norm(dim=-1).std() > 0.1
    torch.testing.assert_close(torch.cosine_similarity(before, after, dim=-1), torch.ones(2, ROWS))


@pytest.mark.parametrize("kind", ["flow", "official"])
@pytest.mark.parametrize("predict", ["velocity", "endpoint"])
@torch.no_grad()
def test_flow_features_say_the_velocity_at_each_state_of_the_critics_own_path(kind, predict):
    critic = critic_of(kind, predict=predict)
    start = fixed_noise(critic, ROWS, samples=3)
    before, after = flow_features(critic, inputs(), start[0], STEPS)
    assert before.shape == after.shape == (STEPS, 2, ROWS * 3, 16)
    field = critic.net.field()
    said = torch.einsum("kenh,eh->ken", after, field.out_EH) + field.out_bias_E[:, None]
    said = said.unflatten(2, (ROWS, 3))
    condition = critic(inputs(), train=False).condition_EBH
    states = torch.stack(path(field, critic.net.form, start, condition, critic.net.grid(STEPS)))
    if predict == "velocity":
        torch.testing.assert_close(STEPS * states.diff(dim=0), said, rtol=1e-4, atol=1e-5)
    else:
        share = torch.linspace(0, 1, STEPS + 1)[1:, None, None, None]
        torch.testing.assert_close(states[1:], (1 - share) * start + share * said)
    assert not torch.allclose(before, after)


def learn(critic, target, updates=3):
    """A few steps as an agent takes them; yields after each."""
    adam = Adam(list(critic.parameters()))
    x, value = inputs(), torch.linspace(-3, 3, ROWS)
    for number in range(1, updates + 1):
        goal = two_hot(value, critic) if isinstance(critic, CategoricalCritic) else value
        draws = torch.rand(ROWS, critic.draws.loss, generator=generator(number))
        loss = critic.loss(critic(x, train=True), goal, draws)
        adam.begin(1e-2, number)
        adam.step(torch.autograd.grad(loss, adam.params))
        project_(critic)
        with torch.no_grad():
            target(x, train=True)
            for moving, own in zip(target.parameters(), critic.parameters(), strict=True):
                moving.lerp_(own, 0.1)
        yield


def parts_of(critic):
    """Every entry along the first axis of every parameter and buffer, by name."""
    return {
        (name, index): part.clone()
        for name, value in critic.state_dict().items()
        for index, part in enumerate(value)
    }


def rows_of(names, *rows):
    return {(name, index) for name in names for index in rows}


LAST_BLOCK = rows_of(
    [
        "trunk.block.1.linear2.weight",
        *(
            f"trunk.block.1.norm2.{name}"
            for name in ("scale", "shift", "running_mean", "running_var")
        ),
        "trunk.output_norm.scale",
        "head.weight",
        "head.bias",
    ],
    *(0, 1),
)


def published(net):
    """Last of three layers; of two products between them; both members of the output."""
    last = {"hidden_LEHH": 1, "bias_LEH": 1, "gain_LEH": 2, "shift_LEH": 2}
    output = rows_of([f"{net}.out_E1H", f"{net}.out_bias_E"], 0, 1)
    return output | {(f"{net}.{name}", row) for name, row in last.items()}


VELOCITY_HEAD = (
    rows_of(["net.out.weight", "net.out.bias"], 0, 1)
    | rows_of(["net.hidden.weight"], 2, 3)
    | rows_of(["net.norm.scale"], 4, 5, 6, 7)
)
LEARNERS = {
    "scalar": ("scalar", {}, LAST_BLOCK),
    "categorical": ("categorical", {}, LAST_BLOCK),
    "flow": ("flow", {}, VELOCITY_HEAD),
    "flow distilled": (
        "flow",
        {"readout": "distilled"},
        VELOCITY_HEAD | rows_of(["distilled.weight", "distilled.bias"], 0, 1),
    ),
    "official": ("official", {}, published("net")),
    "official distilled": (
        "official",
        {"readout": "distilled"},
        published("net") | published("distilled"),
    ),
}


@pytest.mark.parametrize(("kind", "changes", "free"), LEARNERS.values(), ids=LEARNERS)
def test_everything_but_the_last_layer_and_the_output_is_frozen_to_the_bit(kind, changes, free):
    critic, target = critic_of(kind, **changes), critic_of(kind, seed=1, **changes)
    frozen = FrozenFeatures(critic, target)
    before, target_before = parts_of(critic), parts_of(target)
    kept = before.keys() - free
    assert kept
    for name in kept:
        assert torch.equal(target_before[name], before[name]), name
    for _ in learn(critic, target):
        frozen.restore_()
    for network, was in ((critic, before), (target, target_before)):
        now = parts_of(network)
        assert {name for name in now if not torch.equal(now[name], was[name])} == free
    for _ in learn(critic, target, updates=1):
        assert not torch.equal(parts_of(critic)[min(kept)], before[min(kept)])


def test_with_two_layers_only_the_first_is_frozen():
    critic = critic_of("official", depth=2)
    frozen = FrozenFeatures(critic, copy.deepcopy(critic))
    before = parts_of(critic)
    for _ in learn(critic, copy.deepcopy(critic)):
        frozen.restore_()
    now = parts_of(critic)
    same = {name for name, _ in (key for key in now if torch.equal(now[key], before[key]))}
    assert same == {"net.first_EHD", "net.first_bias_EH", "net.gain_LEH", "net.shift_LEH"}


def test_a_trunk_without_blocks_cannot_be_frozen():
    critic = critic_of("scalar", blocks=0)
    with pytest.raises(InputError, match="without blocks"):
        FrozenFeatures(critic, critic)


def test_an_agent_goes_on_learning_on_frozen_features():
    agent, replay = small_agent(critic="flow"), RandomReplay(small_spec())
    agent.update(replay)
    frozen = FrozenFeatures(agent.critic, agent.target_critic)
    trunk = copy.deepcopy(dict(agent.critic.trunk.state_dict()))
    head = agent.critic.net.out.weight.clone()
    for _ in range(3):
        agent.update(replay)
        frozen.restore_()
    for critic in (agent.critic, agent.target_critic):
        assert_same_bits(dict(critic.trunk.state_dict()), trunk)
    assert not torch.equal(agent.critic.net.out.weight, head)


def test_two_hot_targets_have_the_value_as_their_mean():
    critic = critic_of("categorical")
    value = torch.tensor([-5.0, -0.25, 1.0, 4.9])
    found = two_hot(value, critic)
    assert ((found > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(found @ critic.atoms, value)
    torch.testing.assert_close(found.sum(-1), torch.ones(4))
