"""FlashSAC's steps as regions; one region by itself is tested in tests/test_region.py."""

import copy
from functools import reduce
from operator import getitem

import pytest
import torch
from torch.utils._pytree import keystr, tree_leaves_with_path

from supple.agents.exploration import NoiseSettings
from supple.agents.flashsac import FlashSAC
from supple.agents.nets import UnitLinear
from supple.region import Compute
from tests.agents.small_agents import (
    NETWORKS,
    RandomReplay,
    assert_same_bits,
    generator,
    instances,
    random_batch,
    random_noise,
    random_obs,
    random_step,
    small_settings,
    small_spec,
    snapshot,
    spy_on_steps,
)

SMALL = {"actor_hidden": 8, "critic_hidden": 8, "actor_blocks": 1, "critic_blocks": 1}
UPDATES = 6


def agent_with(compute=None, *, seed=0, **changes):
    settings = small_settings(**{**SMALL, "num_atoms": 5, **changes})
    return FlashSAC(small_spec(), settings, total_env_steps=2000, seed=seed, compute=compute)


def learned(agent, updates=range(UPDATES)):
    """Metrics and whole state after each of these updates."""
    history = []
    for update in updates:
        random = generator(update)
        metrics = agent.learn(random_batch(agent, random), *random_noise(random))
        history.append({"metrics": copy.deepcopy(metrics), "state": snapshot(agent)})
    return history


def lived(agent, steps=4):
    """Act, observe and learn, so that every region runs; everything the agent gave back."""
    spec, random = small_spec(), generator(7)
    replay = RandomReplay(spec)
    given = [dict(agent.update(replay).items())]
    for _ in range(steps):
        action, _ = agent.act(random_obs(random, spec), explore=True)
        agent.observe(random_step(random, spec))
        given.append({"action": action, **agent.update(replay)})
    return {"given": copy.deepcopy(given), "state": snapshot(agent)}


def difference(one, other):
    """Largest difference of any tensor in two records, relative to that tensor's largest entry."""
    worst = 0.0
    pairs = zip(tree_leaves_with_path(one), tree_leaves_with_path(other), strict=True)
    for (path, ours), (_, theirs) in pairs:
        if isinstance(theirs, torch.Tensor) and theirs.is_floating_point():
            scale = theirs.abs().max().clamp_min(1e-12)
            if "running_mean" in keystr(path):
                scale = scale.clamp_min(1)  # some are 0 but for rounding
            worst = max(worst, ((ours - theirs).abs().max() / scale).item())
    return worst


# --- compiled -----------------------------------------------------------------------------------

TOLERANCE = 3e-5
"""Of compiled against eager, by each tensor's own scale: measured 3e-6, in shifts that left 0 one
update ago."""


@pytest.fixture(scope="module")
def compiled():
    agent = agent_with(Compute(compile=True))
    history = learned(agent)
    assert str(agent.compute) == "compiled float32"  # nothing failed
    return history


@pytest.mark.slow
def test_each_compiled_update_is_the_eager_one_from_the_first_on(compiled):
    eager = learned(agent_with())
    for ours, theirs in zip(compiled, eager, strict=True):
        assert difference(ours, theirs) < TOLERANCE
    # Negative controls: a learning rate one per cent higher, an update missed.
    rates = {"lr_init": 3.03e-4, "lr_peak": 3.03e-4, "lr_end": 1.515e-4}
    assert difference(compiled[0], learned(agent_with(**rates))[0]) > 10 * TOLERANCE
    assert difference(compiled[-1], eager[-2]) > 10 * TOLERANCE


@pytest.mark.slow
def test_another_compiled_agent_continues_a_loaded_state_with_the_same_bits(compiled):
    other = agent_with(Compute(compile=True), seed=9)
    for _ in range(2):  # prepared after the state was loaded, and before
        other.load_state_dict(compiled[2]["state"])
        assert_same_bits(learned(other, range(3, UPDATES)), compiled[3:])
    assert other.compute.compile


# --- prepared as for a compiler, but executed as it was ------------------------------------------


@pytest.fixture
def untraced(monkeypatch):
    """Runs steps as often as compiling them would, in a tenth of the time."""

    def trace(step, inputs):
        step(*inputs)
        mode = torch.enable_grad() if torch.is_grad_enabled() else torch.no_grad()
        return mode(step)  # a graph keeps the mode it was traced in

    monkeypatch.setattr("supple.region.compile_graph", trace)


def test_traced_steps_have_the_same_bits_as_eager_ones(traced_graphs):
    ours, theirs = (
        lived(agent_with(compute, actor_blocks=0), steps=2)
        for compute in (Compute(compile=True), Compute())
    )
    assert_same_bits(ours, theirs)
    assert len(traced_graphs) == 4
    assert all(isinstance(graph, torch.fx.GraphModule) for graph in traced_graphs)


@pytest.mark.parametrize("schedule", ["shared", "per_env"])
@pytest.mark.parametrize("critic", ["categorical", "scalar"])
def test_preparing_every_step_changes_nothing(untraced, critic, schedule):
    changes = {"critic": critic, "noise": NoiseSettings(exponent=0.5, schedule=schedule)}
    agent = agent_with(Compute(compile=True), **changes)
    assert_same_bits(lived(agent), lived(agent_with(**changes)))
    assert agent.compute.compile


CHANGING = [
    "actor/trunk.input_norm.running_mean",
    "critic/trunk.block.0.norm1.running_var",
    "target_critic/trunk.block.0.norm2.running_mean",
    "actor/trunk.input_linear.weight",
    "critic/head.bias",
    "target_critic/head.bias",
    "log_alpha",
    "optimizers/critic/mean",
    "optimizers/temperature/mean",
    "optimizers/actor/square",
    "reward_scaler/sum",
    "reward_scaler/count",
    "noise/left",
]


@pytest.mark.parametrize("name", CHANGING)
def test_state_that_preparing_forgot_would_be_noticed(untraced, monkeypatch, name):
    """Negative control."""
    whole = FlashSAC._tensors

    def without(agent):
        left_out = reduce(getitem, name.split("/"), agent.state_dict())
        left_out = left_out[0] if isinstance(left_out, list) else left_out
        rest = [value for value in whole(agent) if value.data_ptr() != left_out.data_ptr()]
        assert len(rest) == len(whole(agent)) - 1
        return rest

    monkeypatch.setattr(FlashSAC, "_tensors", without)
    long_holds = NoiseSettings(exponent=0.0)
    # Some are noticed by the comparison with the eager step, which warns.
    either = r"compiled step gives|^(?!compilation)"
    with pytest.raises((AssertionError, UserWarning), match=either):
        ours, theirs = (
            lived(agent_with(compute, noise=long_holds), steps=1)
            for compute in (Compute(compile=True), Compute())
        )
        assert_same_bits(ours, theirs)


def test_a_compiled_step_that_fails_half_way_leaves_no_trace(untraced, monkeypatch):
    def failing(step, inputs):
        def run(*inputs):
            step(*inputs)
            raise RuntimeError("no compiler here")

        return run

    monkeypatch.setattr("supple.region.compile_graph", failing)
    agent = agent_with(Compute(compile=True))
    with pytest.warns(UserWarning, match="going on in eager: no compiler here$") as caught:
        ours = lived(agent)
    assert len(caught) == 1  # for all four regions
    assert not agent.compute.compile
    assert_same_bits(ours, lived(agent_with()))


def test_an_interrupt_while_compiling_leaves_no_trace(untraced, monkeypatch):
    def interrupted(step, inputs):
        raise KeyboardInterrupt

    agent = agent_with(Compute(compile=True))
    before = snapshot(agent)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("supple.region.compile_graph", interrupted)
        learned(agent, [0])
    assert_same_bits(snapshot(agent), before)
    assert_same_bits(learned(agent), learned(agent_with()))
    assert agent.compute.compile


# --- bfloat16 -----------------------------------------------------------------------------------


def test_bfloat16_agrees_with_float32_up_to_its_rounding():
    halves, wholes = (
        learned(agent_with(Compute(precision=precision))) for precision in ("bfloat16", "float32")
    )
    ours, theirs = ([record["metrics"] for record in each] for each in (halves, wholes))
    torch.testing.assert_close(ours, theirs, atol=2**-7, rtol=2**-7)  # measured 2^-9
    for name in NETWORKS:
        mine, other = (each[-1]["state"][name] for each in (halves, wholes))
        torch.testing.assert_close(mine, other, atol=2**-7, rtol=2**-7)
    for name in ("actor/loss", "critic/loss"):
        assert all(mine[name] != other[name] for mine, other in zip(ours, theirs, strict=True))


def test_bfloat16_is_of_the_products_alone(monkeypatch):
    agent = agent_with(Compute(precision="bfloat16"))
    products: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for network in NETWORKS:
        for layer in instances(getattr(agent, network), UnitLinear):
            if layer.bias is None:  # heads add theirs in float32
                layer.register_forward_hook(lambda *seen: products.append(seen[-1]))
    original = agent.critic.loss

    def loss(prediction, target, _):
        others.extend((prediction, target))
        return original(prediction, target)

    monkeypatch.setattr(agent.critic, "loss", loss)
    spy_on_steps(agent, lambda name, gradients: others.extend(gradients))
    (record,) = learned(agent, [0])
    assert {value.dtype for value in products} == {torch.bfloat16}
    others += record["metrics"].values()
    for name in (*NETWORKS, "reward_scaler"):
        others += record["state"][name].values()
    for moments in record["state"]["optimizers"].values():
        others += [*moments["mean"], *moments["square"]]
    assert {value.dtype for value in others} == {torch.float32}
