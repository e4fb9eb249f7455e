"""Tiny agents, random data and spies for the agents' tests."""

import copy
from collections import namedtuple

import torch
from tensordict import TensorDict

from supple.agents.flashsac import Batch, FlashSAC
from supple.agents.flashsac_settings import FlashSACSettings
from supple.envs.base import Box, EnvSpec
from supple.replay import Minibatch

OBSERVATIONS, ACTIONS, ROWS = 6, 3, 32
NETWORKS = ("actor", "critic", "target_critic")


def small_spec(**changes):
    facts = {
        "task_id": "random/small",
        "num_envs": 4,
        "observation": {"policy": OBSERVATIONS},
        "action": Box(low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS),
        "device": torch.device("cpu"),
    }
    return EnvSpec(**{**facts, **changes})


def small_settings(**changes):
    sizes = {
        "batch_size": ROWS,
        "actor_hidden": 16,
        "critic_hidden": 24,
        "min_replay": 100,
        "target_std": 0.15,
    }
    return FlashSACSettings(**{**sizes, **changes})


def small_agent(spec=None, *, seed=0, total_env_steps=2000, **changes):
    return FlashSAC(
        spec or small_spec(), small_settings(**changes), total_env_steps=total_env_steps, seed=seed
    )


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_batch(agent, random, *, reward_scale=1.0, rows=ROWS, discount=0.99):
    """Correlated raw observations of uneven scale; a quarter of the rows terminated."""
    actor_width = agent.actor.trunk.input_norm.scale.shape[-1]
    critic_width = agent.critic.size.inputs - ACTIONS
    obs = torch.randn(2 * rows, critic_width, generator=random)
    obs = obs * torch.linspace(0.3, 5, critic_width) + torch.linspace(-2, 2, critic_width)
    return Batch(
        actor_obs_2BD=obs[:, :actor_width],
        critic_obs_2BD=obs,
        action_BA=2 * torch.rand(rows, ACTIONS, generator=random) - 1,
        reward_B=reward_scale * torch.randn(rows, generator=random),
        terminated_B=(torch.rand(rows, generator=random) < 0.25).float(),
        discount_B=torch.full((rows,), discount),
    )


def random_noise(random, rows=ROWS):
    return torch.randn(2, rows, ACTIONS, generator=random).unbind()


def random_step(random, spec):
    """One environment step of random numbers."""
    rows = spec.num_envs
    chance = torch.rand(2, rows, generator=random) < 0.1
    return TensorDict(
        {
            "observation": random_obs(random, spec),
            "reward": torch.randn(rows, generator=random),
            "terminated": chance[0],
            "truncated": chance[1],
            "valid": torch.rand(rows, generator=random) < 0.9,
        },
        batch_size=[rows],
    )


def random_obs(random, spec):
    groups = {
        name: torch.randn(spec.num_envs, width, generator=random)
        for name, width in spec.observation.items()
    }
    return TensorDict(groups, batch_size=[spec.num_envs])


class RandomReplay:
    """As much of a replay ring as an agent reads: fixed random transitions, drawn uniformly."""

    def __init__(self, spec, *, size=500, seed=7):
        random = generator(seed)
        self.size = size
        self.longest_window = 10
        self.asked = []
        self.columns = {
            "action": 2 * torch.rand(size, spec.action.size, generator=random) - 1,
            "reward": torch.randn(size, generator=random),
            "terminated": torch.rand(size, generator=random) < 0.1,
            "discount": torch.rand(size, generator=random),
        }
        for name, width in spec.observation.items():
            self.columns[name] = torch.randn(size, width, generator=random)
            self.columns[f"next {name}"] = torch.randn(size, width, generator=random)
        self.groups = tuple(spec.observation)

    def can_sample(self, n_step):
        return n_step <= self.longest_window

    def draw(self, batch_size, *, generator, **options):
        index = torch.randint(len(self.columns["action"]), (batch_size,), generator=generator)
        row = {name: column[index] for name, column in self.columns.items()}
        self.asked.append({"batch_size": batch_size, "index": index, **options})
        return Minibatch(
            observation={name: torch.cat((row[name], row[f"next {name}"])) for name in self.groups},
            action=row["action"],
            reward=row["reward"],
            terminated=row["terminated"],
            truncated=torch.zeros_like(row["terminated"]),
            discount=row["discount"],
            start=torch.stack((index, torch.zeros_like(index)), dim=-1),
        )


def train(agent, updates, *, seed=3, reward_scale=1.0, after_each=lambda: None):
    random = generator(seed)
    for _ in range(updates):
        agent.learn(random_batch(agent, random, reward_scale=reward_scale), *random_noise(random))
        after_each()
    return agent


def by_member(named):
    """Copies, each ensemble member's part under its own name."""
    return {
        f"{name}[{member}]": part
        for name, value in named
        for member, part in enumerate(value.detach().clone())
    }


def parameters_of(network):
    return by_member(network.named_parameters())


def buffers_of(network):
    return by_member(network.named_buffers())


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def instances(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def captured(network, kind, call):
    """(module, input, output) of every ``kind`` in ``network`` while ``call()`` runs."""
    seen = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output: seen.append((module, inputs[0], output))
        )
        for module in instances(network, kind)
    ]
    call()
    for hook in hooks:
        hook.remove()
    return seen


Call = namedtuple("Call", "network train rows input output buffers")


def spy_on_forwards(agent):
    """Record every forward pass of the three networks, with the names of buffers it changed."""
    calls = []

    def watch(name, network):
        original = network.forward

        def forward(x, *, train, **rest):
            before = buffers_of(network)
            output = original(x, train=train, **rest)
            buffers = changed(before, buffers_of(network))
            calls.append(Call(name, train, len(x), x.detach().clone(), output, buffers))
            return output

        network.forward = forward

    for name in NETWORKS:
        watch(name, getattr(agent, name))
    return calls


def step_inputs(agent, step):
    """What ``_update_actor`` or ``_update_critic`` of FlashSAC takes, random."""
    batch, noise = random_batch(agent, generator(1)), random_noise(generator(2))[0]
    draws, rows = agent.critic.draws, len(batch.action_BA)
    if step == "_update_actor":
        uniform = torch.rand(rows, draws.value)
        return (batch.actor_obs_2BD, batch.critic_obs_2BD, batch.action_BA, noise, uniform)
    uniform = torch.rand(rows, draws.value + draws.target + draws.loss)
    return (*batch, torch.ones(()), noise, uniform)


def spy_on_steps(agent, before_each=lambda name, gradients: None):
    """Call ``before_each`` before every optimiser step; records the rates used."""
    rates: dict[str, list[float]] = {name: [] for name in agent._optimizers}
    numbers: dict[str, list[int]] = {name: [] for name in agent._optimizers}

    def watch(name, optimizer):
        original, begin = optimizer.step, optimizer.begin

        def beginning(rate, number):
            rates[name].append(rate)
            numbers[name].append(number)
            first = numbers[name][0]
            assert numbers[name] == list(range(first, first + len(rates[name])))
            begin(rate, number)

        def step(gradients, **options):
            before_each(name, gradients)
            original(gradients, **options)

        optimizer.begin, optimizer.step = beginning, step

    for name, optimizer in agent._optimizers.items():
        watch(name, optimizer)
    return rates


def spy_on_target(agent):
    """Record the arguments of every Bellman target."""
    calls = []
    original = agent.target_critic.target

    def target(prediction, reward_B, discount_B, entropy_B, uniform_BR):
        calls.append(
            {
                "reward": reward_B,
                "discount": discount_B,
                "entropy": entropy_B,
                "uniform": uniform_BR,
            }
        )
        return original(prediction, reward_B, discount_B, entropy_B, uniform_BR)

    agent.target_critic.target = target
    return calls


def assert_same_bits(left, right, where="state"):
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same_bits(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list):
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_same_bits(*pair, f"{where}[{number}]")
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    else:
        assert left == right, where


def snapshot(agent):
    return copy.deepcopy(agent.state_dict())
