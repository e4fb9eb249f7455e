"""Proof that an environment keeps the contract of ``supple.envs.base``, whoever wrote it.

``check_env`` builds the environment, steps it with random actions and judges what came back. Every
test is sound: it fails only for behaviour that breaks training, and says "note:" where something
is unusual, or could not be seen in the steps taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from supple.envs.base import Box, Discrete, Env, EnvSpec
from supple.envs.check_ends import check_flags, check_fresh_final, check_reset_time
from supple.envs.check_rollout import (
    BrokenError,
    Rollout,
    calling,
    check_aliasing,
    check_auto_reset,
    check_bridge_rows,
    check_critic_group,
    check_final_observation,
    check_finite,
    check_plain,
    check_spec,
    check_time_limit,
    first_difference,
    roll_on,
)
from supple.errors import InputError
from supple.rng import derive_seed

SHORT = 20
"""Steps in which another seed, or other actions, must have shown."""
SLIGHT = 1e-3
"""Relative first difference up to which two runs differ by rounding, not by an unseeded draw."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    ok: bool
    detail: str
    """One sentence; of a failure: what was expected, what was got and how to fix it."""


def check_env(make: Callable[[], Env], *, steps: int = 200, seed: int = 0) -> list[Finding]:
    """Judge an environment against the whole contract.

    Args:
        make: builds the environment; called up to twice, the second time only if it claims
            ``exact_resume``. Every environment built is closed again.
        steps: steps per rollout, >= 2; more than one episode's length sees more.
        seed: where the environment's and the actions' random numbers come from, >= 0.

    Returns:
        One finding per check, in the order they ran. A check that needs what an earlier one
        showed broken is left out. Exceptions of the environment become findings.

    Raises:
        InputError: ``steps`` is below 2.
    """
    if steps < 2:
        raise InputError(f"steps={steps}: expected at least 2")
    checker = _Checker(make, steps, seed)
    try:
        checker.run()
    finally:
        checker.close()
    return checker.findings


_CHECKS = {
    "finite values": check_finite,
    "aliasing": check_aliasing,
    "bridge rows": check_bridge_rows,
    "reset time": check_reset_time,
    "final observation": check_final_observation,
    "fresh final observation": check_fresh_final,
    "auto-reset": check_auto_reset,
    "end flags": check_flags,
    "time limit": check_time_limit,
    "critic group": check_critic_group,
}
_NEED_RESET_TIME = ("final observation", "fresh final observation", "end flags", "time limit")
"""Checks that count on an episode ending in the row that says so."""


class _Checker:
    """The checks in order, and what they share."""

    def __init__(self, make: Callable[[], Env], steps: int, seed: int) -> None:
        self.findings: list[Finding] = []
        self._make, self._steps, self._seed = make, steps, seed
        self._made: list[Env] = []
        self._rollout: Rollout | None = None

    def run(self) -> None:
        if not (self._judge("construction", self._construct) and self._judge("spec", self._spec)):
            return
        self._env = self._made[0]
        self._facts = self._env.spec
        self._actions = _random_actions(self._facts, self._steps, self._seed)
        if not self._judge("layout", self._layout):
            return
        broken: set[str] = set()
        for name, check in _CHECKS.items():
            if "reset time" in broken and name in _NEED_RESET_TIME:
                continue
            if not self._judge(name, partial(check, self._seen, self._facts)):
                broken.add(name)
        repeats = self._judge("same seed", self._same_seed)
        self._judge("other seed", self._other_seed)
        self._judge("actions matter", self._actions_matter)
        if self._judge("actions beyond 1", self._actions_beyond_one) and repeats:
            self._judge("action scale", self._action_scale)
        self._judge("exact resume", self._exact_resume)

    def close(self) -> None:
        def close_twice() -> str:
            for env in self._made:
                for count in ("first", "second"):
                    with calling(f"the {count} close()"):
                        env.close()
            return "close() may be called twice"

        if self._made:
            self._judge("close", close_twice)

    @property
    def _seen(self) -> Rollout:
        assert self._rollout is not None
        return self._rollout

    def _judge(self, name: str, check: Callable[[], str]) -> bool:
        try:
            with calling(f"checking {name}"):
                finding = Finding(name, True, check())
        except BrokenError as problem:
            finding = Finding(name, False, str(problem))
        self.findings.append(finding)
        return finding.ok

    def _construct(self) -> str:
        with calling("make()"):
            env: object = self._make()
        if not isinstance(env, Env):
            raise BrokenError(
                f"make() returned a {type(env).__name__}, expected a supple.envs.base.Env: "
                "subclass Env and return an instance"
            )
        self._made.append(env)
        return "make() returned an Env"

    def _spec(self) -> str:
        return check_spec(self._made[0].spec)

    def _layout(self) -> str:
        self._rollout = self._roll(self._actions)
        return f"{self._steps} steps returned every key with its shape, dtype and device"

    def _roll(self, actions: Tensor, seed: int | None = None) -> Rollout:
        return roll_on(self._env, actions, self._seed if seed is None else seed)

    def _same_seed(self) -> str:
        difference = first_difference(self._seen, self._roll(self._actions))
        if difference is None:
            return "the same seed and actions gave the same numbers"
        step, name, size = difference
        if step > 0 and size < SLIGHT and not self._facts.exact_resume:
            return f"note: the same seed and actions differ by rounding from step {step} on"
        where = f"at step {step}" if step else "at the reset"
        raise BrokenError(
            f"{name} differs {where} (by {size:.3g}) between two runs with seed={self._seed} and "
            "the same actions, expected equal numbers: draw every random number from generators "
            "that reset(seed) seeds, and let reset(seed) restore every hidden variable"
        )

    def _other_seed(self) -> str:
        other = self._roll(self._actions[:SHORT], self._seed + 1)
        if first_difference(self._seen, other) is None:
            return (
                f"note: seed={self._seed} and seed={self._seed + 1} gave the same numbers: right "
                "only where the task is deterministic"
            )
        return "another seed gave other numbers"

    def _actions_matter(self) -> str:
        short = self._actions[:SHORT]
        action = self._facts.action
        opposite = (short + 1) % action.n if isinstance(action, Discrete) else -short
        if first_difference(self._seen, self._roll(opposite)) is None:
            raise BrokenError(
                f"opposite actions gave the same observations and rewards for {len(short)} steps, "
                "expected a difference: apply step()'s action to the simulator"
            )
        return "other actions gave other numbers"

    def _actions_beyond_one(self) -> str:
        if isinstance(self._facts.action, Discrete):
            return "note: discrete actions have no bounds to exceed"
        seen = self._roll(2 * self._actions[:SHORT].sign())
        check_finite(seen, self._facts)
        return "actions of size 2 were accepted"

    def _action_scale(self) -> str:
        action = self._facts.action
        if not isinstance(action, Box) or not action.clip:
            return "note: without clipped bounds, scaling cannot be seen from outside"
        direction = self._actions[:SHORT].sign()
        if (beyond := self._differs(direction, 2 * direction)) is not None:
            raise BrokenError(
                f"actions of size 2 gave another {beyond} than actions of size 1, expected the "
                f"same because action.clip is True and 1 means {action.high}: scale to the bounds, "
                "then clip to them; or set clip=False"
            )
        bound = max(map(abs, (*action.low, *action.high)))
        # Little beyond the bounds, since motors that saturate may rightly not tell large actions
        # apart; what is clipped without having been scaled does not tell these apart, either.
        size = min(2 * bound, (1 + bound) / 2)
        if bound < 1 and self._differs(direction, size * direction) is None:
            raise BrokenError(
                f"actions of size {size:g} gave the same numbers as actions of size 1, expected "
                f"smaller ones because 1 means {action.high}: the simulator saturates, scale to "
                "the bounds"
            )
        return "1 is the bound, and what is beyond it is clipped"

    def _differs(self, some: Tensor, others: Tensor) -> str | None:
        """The first field in which two sequences of actions differ by more than rounding."""
        difference = first_difference(self._roll(some), self._roll(others))
        return difference[1] if difference and difference[2] > SLIGHT else None

    def _exact_resume(self) -> str:
        if not self._facts.exact_resume:
            return "note: exact_resume is False: a resumed run starts new episodes"
        before, after = self._actions.split([self._steps // 2, self._steps - self._steps // 2])
        self._roll(before)
        with calling("state_dict()"):
            state = self._env.state_dict()
        check_plain(state, "state_dict()")
        reference = roll_on(self._env, after, seed=None)
        self._construct()
        fresh = self._made[-1]
        with calling("load_state_dict() of a fresh environment"):
            fresh.load_state_dict(state)
        difference = first_difference(reference, roll_on(fresh, after, seed=None))
        if difference is None:
            return "a fresh environment continued bit for bit from state_dict()"
        step, name, size = difference
        raise BrokenError(
            f"{name} differs {step} steps after load_state_dict() (by {size:.3g}), expected equal "
            "bits because exact_resume is True: save and restore, in copies, every variable and "
            "random state, or set exact_resume=False"
        )


def _random_actions(spec: EnvSpec, steps: int, seed: int) -> Tensor:
    """(T, N, A) uniform in [-1, 1], or (T, N) choices."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "check actions"))
    shape = (steps, spec.num_envs)
    if isinstance(spec.action, Discrete):
        return torch.randint(spec.action.n, shape, generator=generator).to(spec.device)
    uniform = torch.rand((*shape, spec.action.size), generator=generator)
    return (2 * uniform - 1).to(spec.device)
