"""What runs on a GPU needs nothing from the host: proved on machines without one.

Fake tensors on a fake CUDA device have shapes and no values, so reading one raises; a dispatch mode
refuses every operation that moves data between devices. Builds without CUDA have no autograd on
such tensors, so the two gradient steps run there as the operators they come to.
"""

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch._decomp import get_decompositions
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supple.agents import PPO, FlashSAC, PPOSettings
from supple.envs.base import Discrete, step_result
from supple.envs.sim_log import SimulatorLog
from supple.quarantine import Quarantine
from supple.region import Compute
from supple.replay import Replay, ReplaySettings
from supple.rng import Generators
from tests.agents.small_agents import (
    small_agent,
    small_settings,
    small_spec,
    step_inputs,
)

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class FakeGenerator(torch.Generator):
    device = CUDA


class NoTransfers(TorchDispatchMode):
    """Refuse operations whose tensors, scalars apart, lie on different devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [
            value
            for value in tree_leaves((args, kwargs, out))
            if isinstance(value, torch.Tensor) and (value.dim() or value.device.type == "cuda")
        ]
        if len({value.device.type for value in tensors}) > 1:
            raise AssertionError(f"{function} moves data between devices")
        return out


def getitem(tensor, index):
    """``tensor[index]`` by operators: integers, slices, None and index tensors."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, torch.Tensor) for part in parts):
        return aten.index.Tensor(tensor, list(parts))
    dim = 0
    for part in parts:
        if part is Ellipsis:
            dim = tensor.dim() - (len(parts) - 1)
        elif isinstance(part, int):
            tensor = tensor.select(dim, part)
        elif part is None:
            tensor = tensor.unsqueeze(dim)
            dim += 1
        else:
            tensor = aten.slice.Tensor(tensor, dim, part.start, part.stop)
            dim += 1
    return tensor


def setitem(tensor, index, value):
    aten.copy_.default(getitem(tensor, index), value)


def to(tensor, target):
    kind = "dtype" if isinstance(target, torch.dtype) else "device"
    return aten._to_copy.default(tensor, **{kind: target})


# Builds of torch without CUDA refuse some Python methods of a fake CUDA tensor, but none of the
# operators behind them.
CONVERSIONS = ("float", "double", "long", "int")
BEHIND: dict[str, Any] = {
    "__getitem__": getitem,
    "__setitem__": setitem,
    "__invert__": aten.bitwise_not.default,
    "copy_": aten.copy_.default,
    "to": to,
    **{name: partial(to, target=getattr(torch, name)) for name in CONVERSIONS},
}


class Operators(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return BEHIND.get(function.__name__, function)(*args, **(kwargs or {}))


@pytest.fixture
def fake_cuda(monkeypatch):
    generators: dict[str, FakeGenerator] = {}
    monkeypatch.setattr(
        Generators, "__getitem__", lambda self, name: generators.setdefault(name, FakeGenerator())
    )
    monkeypatch.setattr("supple.replay.plan.free_memory", lambda device: 2**30)
    for name in ("orthogonal_", "uniform_", "kaiming_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    with FakeTensorMode(), Operators():
        yield


def on_gpu(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device=CUDA)


def tensors_of(agent, replay):
    """Which they are, and of what size."""
    found = [*agent._tensors(), *replay._counters(), *replay.columns.values()]
    return [(id(value), value.shape, value.device) for value in [*found, *replay.storage.values()]]


def fake_step(spec):
    groups = {name: on_gpu(spec.num_envs, width) for name, width in spec.observation.items()}
    flag = on_gpu(spec.num_envs, dtype=torch.bool)
    return step_result(
        observation=groups,
        reward=on_gpu(spec.num_envs),
        terminated=flag,
        truncated=flag,
        final_observation=groups,
    )


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    "changes",
    [
        {"n_step": 3},
        {"critic": "scalar", "num_critics": 1, "project_critic": False},
        {"replay_age_decay": 8, "exact_discount": False, "bc_alpha": 1.0},
    ],
    ids=["published", "scalar", "age"],
)
@pytest.mark.parametrize("obs_dtype", ["float32", "bfloat16"])
def test_acting_adding_sampling_and_updating_stay_on_the_device(fake_cuda, changes, obs_dtype):
    spec = small_spec(device=CUDA, observation={"policy": 6, "critic": 9})
    settings = small_settings(min_replay=8, utd=0.25, **changes)
    agent = FlashSAC(spec, settings, total_env_steps=1000)
    replay = Replay(spec, ReplaySettings(capacity=64, obs_dtype=obs_dtype))
    for step_name in ("_actor_step", "_critic_step"):
        setattr(agent, step_name, lambda *inputs: {})
    obs = fake_step(spec)["observation"]

    before = tensors_of(agent, replay)
    with NoTransfers():
        for _ in range(20):  # wraps around the ring
            action, extras = agent.act(obs, explore=True)
            step = fake_step(spec)
            agent.observe(step)
            replay.add(obs, action, step, extras)
            obs = step["observation"]
            metrics = agent.update(replay)
        diagnostics = agent.diagnostics()
        deterministic, _ = agent.act(obs, explore=False)
    assert agent.updates == 20 - max(2, settings.n_step) + 1
    assert action.device == CUDA
    assert all(value.device == CUDA for value in metrics.values())
    assert all(value.device == CUDA for value in diagnostics.values())
    assert deterministic.device == CUDA
    assert tensors_of(agent, replay) == before  # the same tensors, of the same size


def test_looking_for_bad_rows_stays_on_the_device(fake_cuda):
    spec = small_spec(device=CUDA, observation={"policy": 6, "critic": 9})
    quarantine = Quarantine(spec, on_bad="fail", reward_limit=1e8, compute=Compute())
    with NoTransfers():
        for _ in range(3):
            action, step = quarantine.admit(on_gpu(4, 3), fake_step(spec).to_dict())
    assert {action.device, step["valid"].device, step["reward"].device} == {CUDA}
    assert all(value.device == CUDA for value in step["observation"].values())


def test_what_a_simulator_logs_stays_on_the_device_until_it_is_asked_for(fake_cuda):
    log = SimulatorLog(CUDA)
    with NoTransfers():
        for _ in range(2):
            count = on_gpu(1, dtype=torch.int64)
            log.observe({"log": {"reward": on_gpu(), "ended": count, "terrain": 0.5}})
    with pytest.raises(DataDependentOutputException):
        log.report()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory": 4, "sequence_steps": 2, "normalise_reward": True},
        {"kl_stop": 0.01, "distribution": "squashed", "lr_schedule": "linear"},
    ],
    ids=["published", "memory", "squashed"],
)
@pytest.mark.parametrize("discrete", [False, True])
def test_ppo_stays_on_the_device(fake_cuda, changes, discrete):
    action = {"action": Discrete(n=3)} if discrete else {}
    spec = small_spec(device=CUDA, observation={"policy": 6, "critic": 9}, **action)
    sizes: Any = {"rollout_steps": 4, "actor_hidden": (8,), "critic_hidden": (8,)}
    if discrete:
        changes = {name: value for name, value in changes.items() if name != "distribution"}
    agent = PPO(spec, PPOSettings(**sizes, **changes), total_env_steps=1000)
    replay = Replay(spec, agent.ring(ReplaySettings()), extra_spec=agent.extra_spec)
    agent._learn_step = lambda *inputs: {}  # type: ignore[assignment]
    obs = fake_step(spec)["observation"]

    before = tensors_of(agent, replay)
    with NoTransfers():
        for _ in range(3):
            for _ in range(agent.horizon):
                chosen, extras = agent.act(obs, explore=True)
                step = fake_step(spec).to_dict()
                agent.observe(step)
                replay.add(obs, chosen, step, extras)
                obs = step["observation"]
            metrics = agent.update(replay)
        deterministic, _ = agent.act(obs, explore=False)
    assert agent.updates == 3 * 5 * 4
    assert {chosen.device, deterministic.device} == {CUDA}
    assert all(value.device == CUDA for value in metrics.values())
    assert tensors_of(agent, replay) == before  # the same tensors, of the same size


@pytest.mark.parametrize(
    "changes", [{}, {"memory": 4, "kl_stop": 0.01}, {"distribution": "squashed"}], ids=str
)
def test_ppos_gradient_step_stays_on_the_device(changes):
    sizes: Any = {"rollout_steps": 4, "actor_hidden": (8,), "critic_hidden": (8,)}
    agent = PPO(small_spec(), PPOSettings(**sizes, **changes), total_env_steps=1000)
    inputs = [torch.rand(8, sum(agent._fields.values()))]
    if "distribution" in changes:
        inputs.append(torch.randn(8, 3))
    graph = make_fx(lambda *values: agent._learn(*values))(*inputs)
    run_on_fake_gpu(graph, inputs)


def run_on_fake_gpu(graph, inputs):
    """Run traced operators with every tensor, those they hold on to included, on the GPU."""
    with FakeTensorMode():

        def moved(value):
            return torch.empty(value.shape, dtype=value.dtype, device=CUDA)

        for node in graph.graph.nodes:
            if node.op == "get_attr":
                value = moved(getattr(graph, node.target))
                delattr(graph, node.target)
                setattr(graph, node.target, value)
            elif "device" in node.kwargs:
                assert node.kwargs["device"] == torch.device("cpu")  # where it was traced
                node.kwargs = {**node.kwargs, "device": CUDA}
        graph.recompile()
        with NoTransfers():
            return graph(*[moved(value) for value in inputs])


@pytest.mark.parametrize("critic", ["categorical", "scalar", "flow", "flow_official"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("step", ["_update_actor", "_update_critic"])
def test_gradient_steps_stay_on_the_device(step, critic, precision):
    agent = small_agent(critic=critic, bc_alpha=1.0)
    agent.compute.precision = precision
    inputs = step_inputs(agent, step)
    function = getattr(agent, step)
    simpler = get_decompositions([aten.native_batch_norm, aten.native_batch_norm_backward])
    graph = make_fx(lambda *values: function(*values), decomposition_table=simpler)(*inputs)  # type: ignore[arg-type]
    outputs = run_on_fake_gpu(graph, inputs)
    assert outputs
    assert all(value.device == CUDA for value in outputs.values())


def test_reading_a_value_or_moving_data_would_be_noticed(fake_cuda):
    value = on_gpu(3)
    with pytest.raises(DataDependentOutputException):
        value.sum().item()
    with NoTransfers(), pytest.raises(AssertionError, match="moves data"):
        value.to("cpu")
    with pytest.raises((AssertionError, RuntimeError)):
        bool((value > 0).any())
    assert isinstance(fake_step(small_spec(device=CUDA)), TensorDict)
