"""Keeps what a broken simulator returns away from whatever learns.

A row is *bad* where a number that a learner would read is NaN, infinite or beyond any use: the
reward, the observation after the step, the observation before a reset, or the action. Such a row
loses its ``valid`` flag and its bad numbers become 0, before anything else sees the step: batch and
reward statistics, the observation normaliser, episode sums and sampling all skip rows that are not
valid, and no n-step window crosses one. The row after it was acted on from made-up zeros, so it is
not valid either. An episode is not cut by a bad row: it goes on once the numbers are good again.

On a GPU nothing is copied to the host here: counters are read when a metric row is written. On the
CPU, where reading is free, one product per tensor tells that a whole step is good.

Shapes: ``N`` environments, ``D`` observation width, ``F`` watched fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from supple.envs.base import FLAGS, STEP_FIELDS, Box, EnvSpec, Step
from supple.errors import SimulatorError
from supple.region import Compute, Region
from supple.replay.plan import FARTHEST, OBS_DTYPES

if TYPE_CHECKING:
    from supple.configs.base import Settings

MOST_BAD = 0.5
"""Share of bad rows above which the simulator is broken rather than one of its environments."""
JUDGED_ROWS = 1000
"""Rows over which that share is taken, at least."""
EXPLODING = 1000.0
"""Growth of the rewards' root mean square from one metric row to the next that is said."""


class Quarantine:
    """Watches every step of one environment.

    Args:
        spec: shapes, and the name for messages.
        on_bad: ``fail`` ends the run at the first bad row, ``quarantine`` leaves such rows out.
        reward_limit: size beyond which a reward is bad [raw reward].
        obs_dtype: observations are stored as this; what it cannot hold is bad.
        compute: how the device's part runs.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        on_bad: str,
        reward_limit: float,
        obs_dtype: torch.dtype = torch.float32,
        compute: Compute,
    ) -> None:
        self._spec, self._on_bad, self._limit = spec, on_bad, min(reward_limit, FARTHEST)
        self._farthest = min(FARTHEST, torch.finfo(obs_dtype).max)
        device, envs, groups = spec.device, spec.num_envs, tuple(spec.observation)
        self._host = device.type == "cpu"
        self._acts = isinstance(spec.action, Box)
        self._expected = self._layout()
        self.fields = ("reward", *(("action",) if self._acts else ()))
        self.fields += tuple(f"observation/{group}" for group in groups)
        self.fields += tuple(f"final_observation/{group}" for group in groups)
        self._never = torch.iinfo(torch.int64).max
        count = len(self.fields)
        self._tensors = {
            "steps": torch.zeros((), dtype=torch.int64, device=device),
            "tainted": torch.zeros(envs, dtype=torch.bool, device=device),
            "rows": torch.zeros((), dtype=torch.int64, device=device),
            # Since the last report: step * N + environment of each field's first bad row, the
            # environments that had one, and the rewards' squares.
            "first": torch.full((count,), self._never, device=device),
            "envs": torch.zeros(envs, dtype=torch.bool, device=device),
            "square": torch.zeros((), dtype=torch.float64, device=device),
            "kept": torch.zeros((), dtype=torch.bool, device=device),
        }
        # The first bad row since the last look, as it came.
        self._row = {
            name: torch.zeros(self._expected[name][0][1:], device=device) for name in self.fields
        }
        self._env_index = torch.arange(envs, device=device)
        # Compiling would take longer than all the bad steps a CPU run survives.
        self._step = (
            self._clean if self._host else Region(self._clean, state=self.tensors, compute=compute)
        )
        self._overwritten = compute.cuda_graphs
        self._square = 0.0  # on the host
        self._suspicious = False  # on the host: whether any number here may have changed
        self._vector_steps = 0
        self._judged = (0, 0)  # vector steps, bad rows
        self._reported = (0, 0)
        self._usual: float | None = None
        self._told = 0

    @classmethod
    def of(cls, spec: EnvSpec, settings: Settings, compute: Compute) -> Quarantine:
        """As a run's settings ask for."""
        return cls(
            spec,
            on_bad=settings.env.on_bad,
            reward_limit=settings.env.reward_limit,
            obs_dtype=OBS_DTYPES[settings.replay.obs_dtype],
            compute=compute,
        )

    def _layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        spec, envs = self._spec, self._spec.num_envs
        action = ((envs, spec.action.size), torch.float32) if self._acts else ((envs,), torch.int64)
        layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "reward": ((envs,), torch.float32),
            "action": action,
        }
        layout |= dict.fromkeys(FLAGS, ((envs,), torch.bool))
        for kind in ("observation", "final_observation"):
            for group, width in spec.observation.items():
                layout[f"{kind}/{group}"] = ((envs, width), torch.float32)
        return layout

    def tensors(self) -> list[Tensor]:
        """What ``admit`` changes."""
        return [*self._tensors.values(), *self._row.values()]

    # --- every step -------------------------------------------------------------------------

    def first(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The observation of a reset, each group (N, D), bad rows 0.

        Raises:
            SimulatorError: its groups are not the spec's.
        """
        if not isinstance(obs, Mapping) or set(obs) != set(self._spec.observation):
            self._lacks(
                "a reset's observation", obs, f"the groups {', '.join(self._spec.observation)}"
            )
        bad = torch.stack([_beyond(rows, self._farthest) for rows in obs.values()]).any(0)
        self._tensors["tainted"].copy_(bad)
        self._suspicious = self._suspicious or (self._host and bool(bad.any()))
        return {group: _zeroed(rows, bad) for group, rows in obs.items()}

    @torch.no_grad()
    def admit(self, action: Tensor, step: Step) -> tuple[Tensor, Step]:
        """The action and the step as learners may see them; what is good comes back as it is.

        Raises:
            SimulatorError: a shape or dtype is not the contract's.
        """
        try:
            values = {"reward": step["reward"], "action": action}
            values |= {name: step[name] for name in FLAGS}
            for kind in ("observation", "final_observation"):
                values |= {f"{kind}/{group}": step[kind][group] for group in self._spec.observation}
        except (KeyError, IndexError, TypeError):
            fields = ", ".join((*STEP_FIELDS, "observation, final_observation"))
            self._lacks("a step", step, f"{fields} (of {', '.join(self._spec.observation)})")
        if any(
            (value.shape, value.dtype) != self._expected[name] for name, value in values.items()
        ):
            self._refuse(values)
        self._vector_steps += 1
        if self._host and not self._suspicious and self._surely_good(values):
            return action, step
        self._suspicious = self._host
        self._tensors["steps"].fill_(self._vector_steps)
        clean = self._step(*values.values())
        observation = {group: clean[f"observation/{group}"] for group in self._spec.observation}
        if self._overwritten:  # by the next step, when this one's observation is still needed
            observation = {group: rows.clone() for group, rows in observation.items()}
        changed = {"reward": clean["reward"], "valid": clean["valid"], "observation": observation}
        return clean["action"], {**step, **changed}

    def _surely_good(self, values: Mapping[str, Tensor]) -> bool:
        """One product per tensor: no number is farther out than the root of the sum of squares."""
        limits = {"reward": self._limit, "action": FARTHEST}
        seen: Tensor | None = None
        for name, value in values.items():
            if value.dtype != torch.float32 or value is seen:
                continue
            if name.startswith("observation/"):  # often the final one, too
                seen = value
            flat = value.reshape(-1)
            square = float(flat.dot(flat))
            if not square <= limits.get(name, self._farthest) ** 2:
                return False
            if name == "reward":
                self._square += square
        return True

    def _clean(self, *inputs: Tensor) -> dict[str, Tensor]:
        value = dict(zip(self._expected, inputs, strict=True))
        own, groups = self._tensors, self._spec.observation
        valid, ended = value["valid"], value["terminated"] | value["truncated"]
        bad = {"reward": _beyond(value["reward"], self._limit) & valid}
        if self._acts:
            bad["action"] = _beyond(value["action"], FARTHEST)
        for group in groups:
            # Of a row that is no step, too: the next row acts on it.
            bad[f"observation/{group}"] = _beyond(value[f"observation/{group}"], self._farthest)
        made_up = torch.stack([bad[f"observation/{group}"] for group in groups]).any(0)
        for group in groups:
            final = _beyond(value[f"final_observation/{group}"], self._farthest)
            bad[f"final_observation/{group}"] = final & ended & valid
        bad_FN = torch.stack([bad[name] for name in self.fields])
        rows = bad_FN.any(0)
        kept = valid & ~rows & ~own["tainted"]

        at = rows.int().argmax().view(1)
        fresh = rows.any() & ~own["kept"]
        for name, raw in self._row.items():
            raw.copy_(torch.where(fresh, value[name].index_select(0, at)[0], raw))
        own["kept"].logical_or_(fresh)
        own["rows"].add_((valid & ~kept).sum())
        here = own["steps"] * len(rows) + self._env_index
        first = torch.where(bad_FN, here, self._never).amin(1)
        own["first"].copy_(torch.minimum(own["first"], first))
        own["envs"].logical_or_(rows)
        own["tainted"].copy_(made_up)
        reward = torch.where(kept, value["reward"], 0.0)
        own["square"].add_(reward.double().square().sum())
        clean = {"reward": reward, "valid": kept, "action": value["action"].clone()}
        if self._acts:
            clean["action"] = _zeroed(value["action"], bad["action"])
        for group in groups:
            clean[f"observation/{group}"] = _zeroed(value[f"observation/{group}"], made_up)
        return clean

    def _lacks(self, what: str, found: Any, expected: str) -> NoReturn:
        named = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise SimulatorError(
            f"{self._spec.task_id}: {what} has {named or 'nothing'}, expected {expected}; check the"
            " simulator with supple doctor --env"
        )

    def _refuse(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            shape, dtype = self._expected[name]
            if (value.shape, value.dtype) != (shape, dtype):
                raise SimulatorError(
                    f"{self._spec.task_id}: {name} is {value.dtype} {tuple(value.shape)}, expected"
                    f" {dtype} {shape}; check the simulator with supple doctor --env"
                )

    # --- now and then -----------------------------------------------------------------------

    def judge(self) -> None:
        """Synchronise, where there is something to read, and judge.

        Raises:
            SimulatorError: a bad row where none may be, or so many that nothing can be learned.
        """
        if self._host and not self._suspicious:
            return
        rows = int(self._tensors["rows"])
        if self._on_bad == "fail" and rows > self._reported[1]:
            raise SimulatorError(
                f"{self._spec.task_id} returned {self._where()}; checkpoints are intact."
                " Check the simulator's state and reward there, or leave such rows out:"
                " --env.on-bad quarantine"
            )
        steps, before = self._judged
        seen = (self._vector_steps - steps) * self._spec.num_envs
        if seen < JUDGED_ROWS:
            return
        self._judged = (self._vector_steps, rows)
        if rows - before > MOST_BAD * seen:
            raise SimulatorError(
                f"{self._spec.task_id}: {rows - before:,} of {seen:,} rows were bad,"
                f" {self._where()}; checkpoints are intact. Nothing can be learned from"
                " that: check the simulator's state and reward"
            )

    def report(self) -> tuple[dict[str, float], list[str]]:
        """What to log, nothing where no row was ever bad, and what to say since the last report."""
        news = self._growth()
        steps, before = self._reported
        rows = int(self._tensors["rows"]) if self._suspicious or not self._host else 0
        self._reported = (self._vector_steps, rows)
        # Said at first, and whenever there are twice as many: a line, not a flood.
        said = rows > before and rows >= 2 * self._told
        if not said:  # nor is its row shown, of which other news say nothing
            self._tensors["kept"].zero_()
        if not rows:
            return {}, news
        if said:
            self._told = rows
            seen = (self._vector_steps - steps) * self._spec.num_envs
            news.append(
                f"quarantined {rows - before:,} of {seen:,} rows: {self._where()}; they are never"
                " learned from (--env.on-bad fail stops instead)"
            )
        self._tensors["first"].fill_(self._never)
        self._tensors["envs"].zero_()
        return {"env/quarantined_rows": float(rows)}, news

    def bad_row(self) -> dict[str, Tensor]:
        """The first bad row of those the newest report told of, as it came; copies to the host."""
        if not bool(self._tensors["kept"]):
            return {}
        self._tensors["kept"].zero_()
        return {name: raw.clone() for name, raw in self._row.items()}

    def _where(self) -> str:
        """The fields of the earliest bad row since the last report, where it was, and how many."""
        first = self._tensors["first"].tolist()
        at = min(first)
        if at == self._never:
            return "rows acted on from bad observations"
        names = [name for name, cell in zip(self.fields, first, strict=True) if cell == at]
        step, env = divmod(at, self._spec.num_envs)
        limit = f" or a size beyond {self._limit:g}" if "reward" in names else ""
        envs = int(self._tensors["envs"].sum())
        more = f", {envs} environments in all" if envs > 1 else ""
        return (
            f"NaN or infinity{limit} in {', '.join(names)} at vector step {step},"
            f" environment {env}{more}"
        )

    def _growth(self) -> list[str]:
        """Whether rewards exploded since the last report."""
        rows = (self._vector_steps - self._reported[0]) * self._spec.num_envs
        size = math.sqrt((self._square + float(self._tensors["square"])) / max(rows, 1))
        self._square = 0.0
        self._tensors["square"].zero_()
        usual, self._usual = self._usual, max(size, self._usual or 0.0)
        if not usual or size <= EXPLODING * usual:
            return []
        return [
            f"rewards exploded: their root mean square was {size:.3g} since the last metric row,"
            f" at most {usual:.3g} before; if that is a fault, set --env.reward-limit"
        ]

    # --- saving -----------------------------------------------------------------------------

    def start_from(self, vector_step: int) -> None:
        """Number the steps from here on, after a resume."""
        self._vector_steps = vector_step
        rows = int(self._tensors["rows"])
        self._judged = self._reported = (vector_step, rows)
        self._told = rows
        self._suspicious = self._host and (rows > 0 or bool(self._tensors["tainted"].any()))

    def state_dict(self) -> dict[str, Any]:
        """What was counted, and which observations are made up."""
        kept = {name: self._tensors[name] for name in ("tainted", "rows")}
        return {**kept, "usual": self._usual}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value."""
        for name in ("tainted", "rows"):
            self._tensors[name].copy_(state[name])
        self._usual = state["usual"]


def _beyond(values: Tensor, limit: float) -> Tensor:
    """Rows, (N,) bool, that hold something else than numbers of at most this size."""
    bad = ~(values.abs() <= limit)  # NaN is never smaller
    return bad if bad.dim() == 1 else bad.any(-1)


def _zeroed(rows: Tensor, bad: Tensor) -> Tensor:
    return torch.where(bad.unsqueeze(-1), 0.0, rows)
