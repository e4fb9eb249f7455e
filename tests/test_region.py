import pytest
import torch

from supple.agents.flashsac import FlashSAC
from supple.errors import InputError
from supple.region import COMPILE_FROM, Compute, ComputeSettings, Region
from tests.agents.small_agents import (
    NETWORKS,
    assert_same_bits,
    buffers_of,
    parameters_of,
    small_agent,
    small_settings,
    small_spec,
    snapshot,
    train,
)

CPU = torch.device("cpu")
SMALL = {"actor_hidden": 8, "critic_hidden": 8, "critic_blocks": 1, "actor_blocks": 1}


def agent_with(compute, **changes):
    settings = small_settings(**SMALL, num_atoms=5, **changes)
    return FlashSAC(small_spec(), settings, total_env_steps=2000, compute=compute)


def furthest(one, other):
    """Largest difference of any parameter or statistic, relative to its scale."""
    worst = 0.0
    for name in NETWORKS:
        for values in (parameters_of, buffers_of):
            left, right = values(getattr(one, name)), values(getattr(other, name))
            for key, value in left.items():
                scale = value.abs().max().clamp_min(1)
                worst = max(worst, ((value - right[key]).abs().max() / scale).item())
    return worst


@pytest.fixture(scope="module")
def compiled():
    agent = agent_with(Compute(compile=True))
    before = snapshot(agent)
    train(agent, 6)
    assert agent.compute.compile  # nothing failed
    return agent, before


@pytest.mark.slow
def test_compiled_updates_are_the_eager_ones(compiled):
    agent, _ = compiled
    eager = train(agent_with(Compute()), 6)
    assert furthest(agent, eager) < 1e-5
    assert furthest(agent, train(agent_with(Compute()), 7)) > 1e-4


@pytest.mark.slow
def test_compiled_updates_continue_a_loaded_state_with_the_same_bits(compiled):
    agent, before = compiled
    after = snapshot(agent)
    agent.load_state_dict(before)
    assert_same_bits(snapshot(agent), before)
    train(agent, 6)
    assert_same_bits(snapshot(agent), after)


def test_bfloat16_products_leave_everything_else_in_float32():
    eager, half = agent_with(Compute()), agent_with(Compute(precision="bfloat16"))
    train(eager, 20)
    train(half, 20)
    for network in NETWORKS:
        assert all(v.dtype == torch.float32 for v in getattr(half, network).state_dict().values())
    assert all(value.dtype == torch.float32 for value in half.metrics.values())
    assert 1e-6 < furthest(half, eager) < 0.1


def refuse(*_, **__):
    raise RuntimeError("no compiler here\nand a long story")


def test_where_compilation_fails_training_goes_on_eagerly_with_one_warning(monkeypatch):
    monkeypatch.setattr(torch, "compile", refuse)
    agent = agent_with(Compute(compile=True))
    with pytest.warns(UserWarning, match="going on in eager: no compiler here$") as caught:
        train(agent, 3)
    assert len(caught) == 1
    assert str(agent.compute) == "eager float32"
    assert_same_bits(snapshot(agent), snapshot(train(agent_with(Compute()), 3)))


def test_a_region_leaves_its_state_as_it_was_while_it_is_prepared(monkeypatch):
    calls = []

    def compiler(graph, **_):
        calls.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", compiler)
    counter = torch.zeros(())

    def count(amount):
        counter.add_(amount)
        return {"count": counter + 0}

    region = Region(count, state=lambda: [counter], compute=Compute(compile=True))
    assert [region(torch.tensor(2.0))["count"].item() for _ in range(3)] == [2, 4, 6]
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ComputeSettings(precision="tf32"),
            "--compute.precision tf32 needs a CUDA device, got cpu",
        ),
        (ComputeSettings(cuda_graphs=True), "--compute.cuda-graphs needs a CUDA device, got cpu"),
    ],
)
def test_what_the_device_cannot_do_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        settings.resolve(CPU, gradient_steps=1)


def test_auto_compiles_long_runs_where_there_is_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/c++")
    auto = ComputeSettings()
    assert auto.resolve(CPU, gradient_steps=COMPILE_FROM).compile
    assert not auto.resolve(CPU, gradient_steps=COMPILE_FROM - 1).compile
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not auto.resolve(CPU, gradient_steps=COMPILE_FROM).compile
    assert ComputeSettings(compile="on").resolve(CPU, gradient_steps=1).compile


@pytest.mark.parametrize("supported", [True, False])
def test_auto_precision_follows_the_processor(monkeypatch, supported):
    monkeypatch.setattr("supple.region.has_bfloat16", lambda device: supported)
    found = ComputeSettings().resolve(CPU, gradient_steps=1).precision
    assert found == ("bfloat16" if supported else "float32")
    assert small_agent().compute.precision == "float32"  # a library default never surprises
