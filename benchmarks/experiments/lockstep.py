"""Experiment 10: the published FlashSAC and ours in one loop, fed the same random numbers.

Both start from the same weights, see the same steps of a task, draw the same exploration noise,
minibatches and update noise. In float64, in which rounding takes long to grow, nothing but other
mathematics sets them apart.

    git clone https://github.com/Holiday-Robot/FlashSAC official
    python -m benchmarks.experiments.lockstep --reference official

Half a minute; rows are appended to ``benchmarks/results/lockstep.csv``. ``apart`` is the largest
difference of any number of a kind, relative to 1 plus its size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.experiments import command
from supple.agents.flashsac import Batch, FlashSAC
from supple.agents.flashsac_settings import FlashSACSettings
from supple.agents.reward_scaling import RewardScalerSettings
from supple.bench.reference import load_official, official_agent
from supple.bench.table import Shape, append, read
from supple.envs import EnvSettings, make

ROWS = Path(__file__).parents[1] / "results" / "lockstep.csv"
COMMAND = "python -m benchmarks.experiments.lockstep --reference PATH"
TASK = "gym/HalfCheetah-v4"
WARM_UP, UPDATES, BATCH = 1010, 100, 128
"""Random steps, over the end of an episode; then one update per step."""
SHOWN = (1, 10, 100)
NETWORKS = ("actor", "critic", "target_critic")
OUR_NAMES = (
    *(("embedder.norm.", "trunk.input_norm."), ("embedder.w.", "trunk.input_linear.")),
    *(("encoder.", "trunk.block."), ("post_norm.", "trunk.output_norm.")),
    *((".w1.", ".linear1."), (".w2.", ".linear2."), (".w.weight", ".weight")),
    *(("predictor.mean_w.", "mean."), ("predictor.mean_bias", "mean.bias")),
    *(("predictor.std_w.", "log_std."), ("predictor.std_bias", "log_std.bias")),
    *(("predictor.weight", "head.weight"), ("predictor.bias", "head.bias")),
    *(("norm.weight", "norm.scale"), ("norm.bias", "norm.shift")),
    *(("norm1.weight", "norm1.scale"), ("norm1.bias", "norm1.shift")),
    *(("norm2.weight", "norm2.scale"), ("norm2.bias", "norm2.shift")),
)
"""Parts of the published names of weights and statistics, and what we call them, in this order."""


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """A block in which whoever asks torch for float32 gets float64."""
    before = torch.get_default_dtype()
    with (
        patch.object(torch, "float32", torch.float64),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


class Numbers:
    """The random numbers of one step, which both codes are given in place of their own."""

    def __init__(self, actions: int) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._actions = actions
        self.warm_up = self.fresh = self.actor = self.next = torch.empty(0)
        self.hold = self.index = torch.empty(0)
        self._left: list[Tensor] = []

    def draw(self, rows: int) -> None:
        """Those of the next step; ``rows`` transitions are stored."""
        generator, size = self._generator, (BATCH, self._actions)
        self.warm_up = 2 * torch.rand(1, self._actions, generator=generator) - 1
        self.fresh = torch.randn(1, self._actions, generator=generator)
        self.hold = torch.rand(1, generator=generator)
        self.index = torch.randint(0, rows, (BATCH,), generator=generator)
        self.actor, self.next = torch.randn(2, *size, generator=generator)

    def expect(self, actor_updates: bool) -> None:
        """Say which draws the published update will ask for: it discards half of the actor's."""
        unused = torch.zeros_like(self.actor)
        actor = [torch.cat((self.actor, unused))] if actor_updates else []
        self._left = [*actor, self.next]

    @contextlib.contextmanager
    def instead(self, official: Any, theirs: Any, ours: FlashSAC) -> Iterator[None]:
        """A block in which both codes draw these."""
        sample = theirs._replay_buffer.sample

        def hold_length(cdf: Tensor) -> Tensor:
            return (torch.argmax((self.hold < cdf).int()) + 1).int()

        with (
            patch.object(torch, "randn_like", lambda _: self.fresh),
            patch.object(official, "_sample_integer_from_cdf", hold_length),
            patch.object(theirs._replay_buffer, "sample", lambda: sample(self.index)),
            patch.object(
                torch.distributions.normal, "_standard_normal", lambda *_, **__: self._left.pop(0)
            ),
            patch.object(ours.noise, "draw", lambda: (self.fresh, self.hold)),
        ):
            yield


def in_our_names(network: str, theirs: Any) -> dict[str, Tensor]:
    """Weights and statistics of a published network, as ours holds them."""
    found = {}
    for name, value in theirs.network.state_dict().items():
        if name.endswith("bin_values"):
            continue
        for old, new in OUR_NAMES:
            name = name.replace(old, new)
        if network == "actor":  # one member
            value = value.unsqueeze(0)
        elif "input_norm.running" in name:  # all members saw the same
            value = value[:1]
        found[name] = value.clone()
    return found


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, relative to 1 plus the number's size."""
    return float(((ours - theirs).abs() / (1 + theirs.abs())).max())


def apart(theirs: Any, ours: FlashSAC) -> dict[str, float]:
    """By kind of number."""
    found = {"weights": 0.0, "running statistics": 0.0}
    for network in NETWORKS:
        own = getattr(ours, network).state_dict()
        for name, value in in_our_names(network, getattr(theirs, f"_{network}")).items():
            kind = "running statistics" if "running" in name else "weights"
            found[kind] = max(found[kind], difference(own[name], value))
    log_alpha = theirs._temperature.network.log_temp.detach()
    found["temperature"] = difference(ours.log_alpha.detach(), log_alpha)
    one = torch.ones(1)
    scaled = theirs.reward_normalizer.normalize_rewards(one)
    found["reward scale"] = difference(one / ours.reward_scaler.denominator(), scaled)
    return found


def side_by_side(reference: Path) -> list[dict[str, Any]]:
    """A row per number of updates and kind.

    Raises:
        InputError: ``reference`` is no checkout.
    """
    env = make(TASK, EnvSettings(num_envs=1))
    actions = env.spec.action.size
    shape = Shape(sum(env.spec.observation.values()), actions, BATCH)
    torch.manual_seed(0)
    with contextlib.closing(env), torch.compiler.set_stance("force_eager"), in_float64():
        official = load_official(reference)  # it asks for types when it is imported
        theirs = official_agent(official, shape, buffer_min_length=WARM_UP)
        settings = FlashSACSettings(
            batch_size=BATCH, reward_scaler=RewardScalerSettings(reset="before")
        )
        ours = FlashSAC(env.spec, settings, total_env_steps=10**6)
        ours._acting = True  # the random steps are given to both
        for network in NETWORKS:
            own = getattr(ours, network)
            own.load_state_dict(in_our_names(network, getattr(theirs, f"_{network}")))
        numbers = Numbers(actions)
        with numbers.instead(official, theirs, ours):
            return list(steps(env, theirs, ours, numbers))


def steps(env: Any, theirs: Any, ours: FlashSAC, numbers: Numbers) -> Iterator[dict[str, Any]]:
    """Take them, with the published code's actions."""
    obs = env.reset(seed=0)["observation"]["policy"].double()
    of_action = 0.0
    for step in range(1, WARM_UP + UPDATES):
        numbers.draw(step)
        if step <= WARM_UP:
            action = numbers.warm_up
        else:
            before = {"next_observation": obs.numpy()}
            action = torch.from_numpy(theirs.sample_actions(step, before, training=True))
            own, _ = ours.act({"policy": obs}, explore=True)
            of_action = max(of_action, difference(own, action))
        came = env.step(action.clone()).to_dict()
        came["reward"] = came["reward"].double()
        after = came["final_observation"]["policy"].double()
        flags = {name: came[name].numpy() for name in ("terminated", "truncated")}
        theirs.process_transition(
            {
                "observation": obs.numpy(),
                "action": action.numpy(),
                "reward": came["reward"].numpy(),
                "next_observation": after.numpy(),
                **flags,
            }
        )
        ours.observe(came)
        obs = came["observation"]["policy"].double()
        if step < WARM_UP:
            continue
        stored = theirs._replay_buffer.sample()
        numbers.expect(theirs._update_step % ours.settings.actor_period == 0)
        theirs.update()
        both = torch.cat((stored["observation"], stored["next_observation"]))
        discount = torch.full((BATCH,), ours.settings.gamma)
        names = ("action", "reward", "terminated")
        batch = Batch(both, both, *(stored[name] for name in names), discount)
        ours.learn(batch, numbers.actor, numbers.next)
        if ours.updates in SHOWN:
            found = apart(theirs, ours) | {"actions so far": of_action}
            for kind, value in found.items():
                yield {"task": TASK, "updates": ours.updates, "number": kind, "apart": value}


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """A line of the report."""
    return {name: str(row[name]) for name in ("task", "updates", "number", "apart")}


def main() -> int:
    """Run both, then report."""
    options = command.with_reference(command.parser(__doc__))
    if not options.report:
        rows = side_by_side(options.reference)
        append([row | {"apart": f"{row['apart']:.1e}"} for row in rows], ROWS, COMMAND)
    command.say("the published code and ours, apart", [shown(row) for row in read(ROWS)])
    return 0


if __name__ == "__main__":
    command.start(main)
