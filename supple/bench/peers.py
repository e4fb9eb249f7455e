"""Other libraries on the same sizes: soft actor-critic steps and replay sampling.

Their networks are two hidden layers of 256 units, their algorithms plain SAC: an update is less
work than FlashSAC's, so compare GFLOP/s and the share of the ceiling, not updates per second.
Sampling is the same work: three-step transitions of one environment, except where said.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supple.bench.table import RING_ROWS, Shape

HIDDEN = 256
N_STEP, GAMMA = 3, 0.99
TORCHRL_BUFFER = "torchrl TensorDict, multi-step"

Step = Callable[[], object]


def update_peers(shape: Shape) -> dict[str, Step]:
    """One gradient step of each library that is installed."""
    found: dict[str, Step] = {"CleanRL-style SAC float32": _plain_sac(shape)}
    if importlib.util.find_spec("stable_baselines3"):
        found["Stable-Baselines3 SAC float32"] = _sb3_sac(shape)
    if importlib.util.find_spec("torchrl"):
        found["torchrl SAC float32"] = _torchrl_sac(shape)
    return found


def replay_peers(shape: Shape) -> dict[str, Step]:
    """Drawing one minibatch with each library that is installed."""
    found: dict[str, Step] = {"CleanRL-style arrays, n = 1": _arrays(shape)}
    if importlib.util.find_spec("torchrl"):
        found[TORCHRL_BUFFER] = _torchrl_buffer(shape)
    if importlib.util.find_spec("stable_baselines3"):
        found["Stable-Baselines3 n-step"] = _sb3_buffer(shape)
    return found


# --- plain PyTorch, as single-file implementations write it -------------------------------------


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, outputs))


def _squashed(actor: nn.Module, obs: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_std = actor(obs).chunk(2, dim=-1)
    normal = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
    draw = normal.rsample()
    action = torch.tanh(draw)
    log_prob = normal.log_prob(draw) - torch.log(1 - action.square() + 1e-6)
    return action, log_prob.sum(1, keepdim=True)


def _plain_sac(shape: Shape) -> Step:
    actor = _mlp(shape.obs, 2 * shape.act).to(shape.device)
    critics = [_mlp(shape.obs + shape.act, 1).to(shape.device) for _ in range(2)]
    targets = [_mlp(shape.obs + shape.act, 1).to(shape.device) for _ in range(2)]
    critic_params = [param for critic in critics for param in critic.parameters()]
    critic_adam = torch.optim.Adam(critic_params, lr=1e-3)
    actor_adam = torch.optim.Adam(actor.parameters(), lr=3e-4)
    log_alpha = torch.zeros(1, requires_grad=True, device=shape.device)
    alpha_adam = torch.optim.Adam([log_alpha], lr=1e-3)
    draw = _arrays(shape)

    def step() -> None:
        obs, next_obs, action, reward, done = draw()
        alpha = log_alpha.exp().detach()
        with torch.no_grad():
            next_action, log_prob = _squashed(actor, next_obs)
            x = torch.cat((next_obs, next_action), 1)
            value = torch.min(targets[0](x), targets[1](x)) - alpha * log_prob
            target = reward + (1 - done) * GAMMA * value
        x = torch.cat((obs, action), 1)
        loss = torch.stack([F.mse_loss(critic(x), target) for critic in critics]).sum()
        critic_adam.zero_grad()
        loss.backward()
        critic_adam.step()
        new_action, log_prob = _squashed(actor, obs)
        x = torch.cat((obs, new_action), 1)
        actor_loss = (alpha * log_prob - torch.min(critics[0](x), critics[1](x))).mean()
        actor_adam.zero_grad()
        actor_loss.backward()
        actor_adam.step()
        alpha_loss = (-log_alpha.exp() * (log_prob.detach() - shape.act)).mean()
        alpha_adam.zero_grad()
        alpha_loss.backward()
        alpha_adam.step()
        with torch.no_grad():
            for critic, lagging in zip(critics, targets, strict=True):
                for param, old in zip(critic.parameters(), lagging.parameters(), strict=True):
                    old.copy_(0.005 * param + 0.995 * old)

    return step


def _arrays(shape: Shape) -> Callable[[], tuple[Tensor, ...]]:
    random = np.random.default_rng(0)
    columns = [
        random.normal(size=(RING_ROWS, width)).astype(np.float32)
        for width in (shape.obs, shape.obs, shape.act, 1, 1)
    ]
    columns[-1][:] = 0

    def draw() -> tuple[Tensor, ...]:
        rows = np.random.randint(0, RING_ROWS, size=shape.batch_size)
        return tuple(torch.as_tensor(column[rows], device=shape.device) for column in columns)

    return draw


# --- Stable-Baselines3 --------------------------------------------------------------------------


def _spaces(shape: Shape) -> tuple[Any, Any]:
    from gymnasium.spaces import Box

    return Box(-np.inf, np.inf, (shape.obs,)), Box(-1, 1, (shape.act,))


def _fill_sb3(buffer: Any, shape: Shape) -> None:
    random = np.random.default_rng(0)
    done = np.zeros(1, dtype=bool)
    for _ in range(RING_ROWS):
        obs, after = random.normal(size=(2, 1, shape.obs)).astype(np.float32)
        action = random.uniform(-1, 1, (1, shape.act)).astype(np.float32)
        buffer.add(obs, after, action, random.normal(size=1), done, [{}])


def _sb3_sac(shape: Shape) -> Step:
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger

    class Sizes(gymnasium.Env[Any, Any]):
        observation_space, action_space = _spaces(shape)

    size = shape.batch_size
    model = SAC("MlpPolicy", Sizes(), batch_size=size, buffer_size=RING_ROWS, device=shape.device)
    model.set_logger(Logger(None, []))
    _fill_sb3(model.replay_buffer, shape)
    return lambda: model.train(gradient_steps=1, batch_size=size)


def _sb3_buffer(shape: Shape) -> Step:
    from stable_baselines3.common.buffers import NStepReplayBuffer

    buffer = NStepReplayBuffer(
        RING_ROWS, *_spaces(shape), device=shape.device, n_steps=N_STEP, gamma=GAMMA
    )
    _fill_sb3(buffer, shape)
    return lambda: buffer.sample(shape.batch_size)


# --- torchrl ------------------------------------------------------------------------------------


def _transitions(shape: Shape) -> Any:
    from tensordict import TensorDict

    rows = RING_ROWS
    flags = {name: torch.zeros(rows, 1, dtype=torch.bool) for name in ("done", "terminated")}
    obs = torch.randn(rows + 1, shape.obs)
    content: Mapping[str, Any] = {
        "observation": obs[:-1],
        "action": torch.empty(rows, shape.act).uniform_(-1, 1),
        **flags,
        "next": {"observation": obs[1:], "reward": torch.randn(rows, 1), **flags},
    }
    return TensorDict(content, batch_size=[rows])


def _torchrl_buffer(shape: Shape) -> Step:
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.envs.transforms import MultiStepTransform

    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(RING_ROWS, device=shape.device),
        batch_size=shape.batch_size,
        transform=MultiStepTransform(n_steps=N_STEP, gamma=GAMMA),
    )
    buffer.extend(_transitions(shape))
    return lambda: buffer.sample()


def _torchrl_sac(shape: Shape) -> Step:
    from tensordict.nn import NormalParamExtractor, TensorDictModule
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
    from torchrl.objectives import SACLoss, SoftUpdate

    network = nn.Sequential(_mlp(shape.obs, 2 * shape.act), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )

    class Value(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = _mlp(shape.obs + shape.act, 1)

        def forward(self, obs: Tensor, action: Tensor) -> Tensor:
            value: Tensor = self.layers(torch.cat((obs, action), -1))
            return value

    critic = ValueOperator(Value(), in_keys=["observation", "action"])
    loss = SACLoss(actor, critic, num_qvalue_nets=2, target_entropy=-float(shape.act))
    loss.to(shape.device)
    loss.make_value_estimator(gamma=GAMMA)
    average = SoftUpdate(loss, tau=0.005)
    adam = torch.optim.Adam(loss.parameters(), lr=3e-4)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(RING_ROWS, device=shape.device), batch_size=shape.batch_size
    )
    buffer.extend(_transitions(shape))

    def step() -> None:
        found = loss(buffer.sample())
        total = found["loss_actor"] + found["loss_qvalue"] + found["loss_alpha"]
        adam.zero_grad()
        total.backward()
        adam.step()
        average.step()

    return step
