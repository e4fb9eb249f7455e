"""On a real GPU: it learns what the CPU learns, waits for nothing, grows nothing, and resumes."""

import contextlib
import copy
import gc
import itertools
import math
from typing import Any

import pytest
import torch

from supple.agents import PPO, FlashSAC, PPOSettings
from supple.agents.flashsac_settings import CRITICS
from supple.cli import DONE, main
from supple.configs import default_settings
from supple.quarantine import Quarantine
from supple.region import Compute, capture, float32_products
from supple.replay import Replay, ReplaySettings
from tests.agents.small_agents import (
    ACTIONS,
    ROWS,
    generator,
    random_batch,
    random_obs,
    random_step,
    small_settings,
    small_spec,
)
from tests.small_runs import (
    assert_resumes_with_the_same_bits,
    assert_same,
    run_whole,
)
from tests.small_runs import small_settings as run_settings

pytestmark = pytest.mark.gpu
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MODES: dict[str, Any] = {
    "eager": {},
    "compiled": {"compile": True},
    "graphs": {"cuda_graphs": True},
    "compiled-graphs": {"compile": True, "cuda_graphs": True},
}
every_mode = pytest.mark.parametrize("mode", MODES)
PPO_SIZES: dict[str, Any] = {"rollout_steps": 4, "actor_hidden": (8,), "critic_hidden": (8,)}


def to(value, device):
    return torch.utils._pytree.tree_map(lambda part: part.to(device), value)


def flashsac(device, mode="eager", precision="float32", **changes):
    settings = small_settings(actor_blocks=1, critic_blocks=1, **changes)
    compute = Compute(precision=precision, **MODES[mode])
    spec = small_spec(device=device)
    return FlashSAC(spec, settings, total_env_steps=2000, seed=0, compute=compute)


def ppo(device, mode="eager", **changes):
    compute, spec = Compute(**MODES[mode]), small_spec(device=device)
    settings = PPOSettings(**PPO_SIZES, **changes)
    return PPO(spec, settings, total_env_steps=2000, seed=0, compute=compute)


def given_to(agent, seed, rows=ROWS):
    """What ``learn`` takes, drawn on the CPU."""
    batch = random_batch(agent, generator(1), rows=rows)
    random, draws = generator(seed), agent.critic.draws
    noise = [torch.randn(batch.action_BA.shape, generator=random) for _ in range(2)]
    counts = (draws.value, draws.value + draws.target + draws.loss)
    if counts[1]:
        noise += [torch.rand(rows, count, generator=random) for count in counts]
    return batch, *noise


@pytest.mark.parametrize("critic", CRITICS)
@every_mode
def test_flashsac_learns_what_it_learns_on_the_cpu(critic, mode):
    theirs, ours = flashsac(CPU, critic=critic), flashsac(CUDA, mode, critic=critic)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for seed in range(6):
        given = given_to(theirs, seed)
        expected, found = theirs.learn(*given), ours.learn(*to(given, CUDA))
        for name, value in expected.items():
            assert found[name].is_cuda
            torch.testing.assert_close(
                found[name].cpu().double(), value.double(), rtol=2e-3, atol=2e-4, msg=name
            )
    for name in ("actor", "critic"):
        pairs = zip(
            getattr(ours, name).parameters(), getattr(theirs, name).parameters(), strict=True
        )
        for mine, other in pairs:
            torch.testing.assert_close(mine.detach().cpu(), other.detach(), rtol=1e-2, atol=1e-3)
    assert ours.compute.compile == MODES[mode].get("compile", False)  # nothing fell back


@every_mode
def test_ppo_learns_what_it_learns_on_the_cpu(mode):
    theirs, ours = ppo(CPU), ppo(CUDA, mode)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    stream = random_stream(3, 8)
    rings = [ring_of(agent) for agent in (theirs, ours)]
    for obs, step in itertools.islice(stream, ours.horizon):
        action, extras = theirs.act(obs, explore=True)
        for agent, replay in zip((theirs, ours), rings, strict=True):
            given = to((obs, action, step, extras), agent.device)
            agent.observe(given[2])
            replay.add(*given)
    # One minibatch order for both.
    order = theirs._shuffle()
    for agent in (theirs, ours):
        agent._shuffle = lambda device=agent.device: to(order, device)
    expected, found = (
        agent.update(ring) for agent, ring in zip((theirs, ours), rings, strict=True)
    )
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].cpu().double(), value.double(), rtol=1e-2, atol=1e-3, msg=name
        )
    assert ours.compute.compile == MODES[mode].get("compile", False)  # nothing fell back


def compiled_kernels():
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    everything = (thing for module in PyCodeCache.modules for thing in vars(module).values())
    return [thing for thing in everything if isinstance(thing, CachingAutotuner)]


@pytest.mark.parametrize("critic", CRITICS)
@every_mode
def test_the_same_steps_end_in_the_same_bits(critic, mode):
    """Of 512 rows: a sum in whichever order threads arrive shows at once."""
    agents = [flashsac(CUDA, mode, critic=critic, batch_size=512) for _ in range(2)]
    for seed in range(3):
        given = to(given_to(agents[0], seed, rows=512), CUDA)
        for agent in agents:
            agent.learn(*given)
    ours, theirs = (agent.state_dict() for agent in agents)
    for name in ("actor", "critic"):
        assert_same(ours[name], theirs[name])
    kernels = compiled_kernels()
    assert kernels or not MODES[mode].get("compile")
    assert all(len(kernel.compile_results) == 1 for kernel in kernels)  # none was timed


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("critic", ["categorical", "flow"])
def test_other_precisions_differ_by_their_rounding(precision, critic):
    plain, other = (
        flashsac(CUDA, "compiled-graphs", kind, critic=critic) for kind in ("float32", precision)
    )
    for seed in range(4):
        given = to(given_to(plain, seed), CUDA)
        expected = plain.learn(*given)
        with float32_products("tf32") if precision == "tf32" else contextlib.nullcontext():
            found = other.learn(*given)
        assert other.compute.compile
        loss, same = (metrics["critic/loss"].item() for metrics in (found, expected))
        assert loss == pytest.approx(same, rel=0.1, abs=0.05)


def test_a_graph_outlives_another():
    left, right = (torch.randn(2048, 640, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    other, graph = (capture(lambda: left.mT @ right) for _ in range(2))
    expected = left.mT @ right
    del other
    gc.collect()
    torch.cuda.empty_cache()
    filled = torch.full((2**26,), math.nan, device=CUDA)
    graph.outputs.zero_()
    graph.replay()
    assert torch.equal(graph.outputs, expected)
    assert filled.isnan().all()


def test_a_graph_keeps_what_it_reads():
    def products():
        left, right = (torch.ones(256, 256, device=CUDA) for _ in range(2))
        return capture(lambda: left @ right)

    graph = products()
    gc.collect()
    torch.cuda.empty_cache()
    filled = torch.zeros(2**26, device=CUDA)
    graph.outputs.zero_()
    graph.replay()
    assert bool((graph.outputs == 256).all())
    assert not filled.any()


def random_stream(seed, steps):
    """Observations and what steps return, on the CPU."""
    spec, random = small_spec(), generator(seed)
    for _ in range(steps):
        step = random_step(random, spec).to_dict()
        step["final_observation"] = random_obs(random, spec).to_dict()
        yield random_obs(random, spec).to_dict(), step


def ring_of(agent):
    """What it learns from, empty."""
    ring = agent.ring(ReplaySettings(capacity=64) if agent.horizon == 1 else ReplaySettings())
    spec = small_spec(device=agent.device)
    return Replay(spec, ring, extra_spec=agent.extra_spec, compute=agent.compute)


def loop(agent):
    """A function that takes one environment step, all of it on the device."""
    spec, replay = small_spec(device=CUDA), ring_of(agent)
    quarantine = Quarantine(spec, on_bad="fail", reward_limit=1e8, compute=agent.compute)
    stream = itertools.cycle([to(each, CUDA) for each in random_stream(3, 8)])

    def once():
        obs, step = next(stream)
        action, extras = agent.act(obs, explore=True)
        action, step = quarantine.admit(action, step)
        agent.observe(step)
        replay.add(obs, action, step, extras)
        if replay.vector_steps % agent.horizon == 0:
            agent.update(replay)

    return once


@every_mode
@pytest.mark.parametrize("make", [flashsac, ppo])
def test_the_loop_never_waits_for_the_gpu_and_its_memory_does_not_grow(make, mode):
    changes = {"min_replay": 8, "utd": 0.25} if make is flashsac else {}
    agent = make(CUDA, mode, **changes)
    once = loop(agent)
    for _ in range(48):
        once()
    updates, held = agent.updates, torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(48):
            once()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert agent.updates > updates + 10
    assert torch.cuda.memory_allocated() == held


@every_mode
def test_the_ring_stores_and_draws_what_one_on_the_cpu_does(mode):
    spec, gpu = small_spec(), small_spec(device=CUDA)
    settings = ReplaySettings(capacity=64, final_fraction=0.2)
    ours = Replay(gpu, settings, compute=Compute(**MODES[mode]))
    theirs = Replay(spec, settings)
    for obs, step in random_stream(5, 40):
        action = obs["policy"][:, :ACTIONS]
        theirs.add(obs, action, step)
        ours.add(to(obs, CUDA), action.to(CUDA), to(step, CUDA))
    for name, column in theirs.columns.items():
        assert torch.equal(ours.columns[name].cpu(), column), name
    assert theirs.metrics() == {name: value.cpu() for name, value in ours.metrics().items()}
    drawn = ours.draw(512, generator=torch.Generator(CUDA).manual_seed(1), n_step=3)
    start = drawn.start.cpu()
    assert torch.equal(drawn.observation["policy"][:512].cpu(), theirs.storage["policy"][start])
    assert torch.equal(drawn.action.cpu(), theirs.columns["action"].flatten(0, 1)[start])


@pytest.mark.parametrize("mode", ["eager", "compiled-graphs"])
@pytest.mark.parametrize("agent", ["flashsac", "ppo"])
def test_a_run_resumes_as_if_it_had_never_stopped(agent, mode, tmp_path):
    def settings(folder):
        made = run_settings("toy/lqr", folder, env_steps=400, agent=agent)
        made.device = "cuda"
        made.compute.precision = "float32"
        made.compute.compile = "on" if "compiled" in mode else "off"
        made.compute.cuda_graphs = "graphs" in mode
        return made

    assert_resumes_with_the_same_bits(settings, tmp_path, at=230)


def test_a_run_made_on_a_gpu_is_looked_at_judged_and_exported(tmp_path):
    settings = default_settings("toy/lqr", preset="laptop")
    settings.device, settings.env_steps, settings.run_dir = "cuda", 3000, str(tmp_path / "run")
    settings.compute.compile, settings.eval.episodes, settings.eval.video = "off", 2, False
    run = run_whole(settings)
    assert run.agent.device.type == "cuda"
    folder = str(tmp_path / "run")
    assert main(["eval", folder, "--episodes", "2"]) == DONE
    assert main(["diagnose", folder, "--suite", "quick", "--out", str(tmp_path / "report")]) == DONE
    assert main(["export", folder, "--out", str(tmp_path / "bundle")]) == DONE
    assert main(["eval", folder, "--episodes", "2", "--device", "cpu"]) == DONE
