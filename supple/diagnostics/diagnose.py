"""``supple diagnose``: measure checkpoints, judge them, write the report.

Cheap stages come first and every stage is left out, and said to be, once ``--budget`` is used up.
Slow measurements are made of the last, the best and every named checkpoint only.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from supple import sweep
from supple.diagnostics import closed_loop, rules
from supple.diagnostics.channels import Layout, actuators_of, layout_of, read_noise
from supple.diagnostics.context import Suite
from supple.diagnostics.data import generator_for
from supple.diagnostics.directions import compare_policies
from supple.diagnostics.document import Document, latest
from supple.diagnostics.evidence import Evidence
from supple.diagnostics.instability import Instability, analyse, readings
from supple.diagnostics.measure import WHOLE, chosen, compare, measure
from supple.diagnostics.policies import Policy, policy_of
from supple.diagnostics.reading import Reading, reading, undefined
from supple.diagnostics.remedies import advice
from supple.diagnostics.rollouts import Rollout, roll
from supple.diagnostics.run_level import return_readings
from supple.diagnostics.states import States, stored, visited
from supple.diagnostics.subject import Subject, subject_of
from supple.diagnostics.suite.learning import coarsely
from supple.diagnostics.targets import Target, load_targets
from supple.envs.base import Env
from supple.errors import InputError
from supple.evaluate import make_env
from supple.metrics import METRICS, complete, read_csv
from supple.rng import derive_seed

ROLLOUT_ENVS = 10
CHURN = {
    "churn: actions moved by 5 %": "diag/actor/all/mean/churn_flip_1",
    "churn: choices changed": "diag/actor/all/mean/churn_act_1",
    "churn: values": "diag/critic/all/mean/churn_q_1",
    "churn: state values": "diag/value/all/mean/churn_q_1",
}
"""Columns of metrics.csv that show what single updates changed."""
Progress = Callable[[str], None]


@dataclass(kw_only=True, slots=True)
class Options:
    """What was asked for."""

    paths: Sequence[Path]
    suite: Suite = "quick"
    episodes: int = 20
    modes: tuple[str, ...] = ()
    """Of policy instability; empty is all that apply."""
    rollouts: bool = False
    """Closed-loop disturbances; the full suite has them anyway."""
    baseline: Path | None = None
    noise: Path | None = None
    seed: int = 0
    device: str = ""
    budget_s: float = 0.0
    """Seconds after which no further stage begins; 0 is no limit [s]."""
    command: str = ""


@dataclass(kw_only=True)
class Diagnosis:
    """All that the page is made from."""

    document: Document
    targets: list[Target]
    arrays: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """By target."""
    analyses: dict[tuple[int, str], Instability] = field(default_factory=dict)
    """By target and mode."""
    rollouts: dict[int, Rollout] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """The level of the worst verdict that page and terminal show; ``ok`` without any."""
        found = latest(self.document.to_json())
        return str(found[0]["level"]) if found else "ok"


def diagnose(options: Options, progress: Progress = lambda text: None) -> Diagnosis:
    """Measure and judge.

    Raises:
        InputError: nothing intact there, or an option that does not fit.
    """
    deadline = time.monotonic() + (options.budget_s or 1e12)
    # Loading is part of the time that the document counts from here on.
    document = Document(
        command=options.command, suite=options.suite, device=options.device, seed=options.seed
    )
    targets, document.notes = load_targets(
        options.paths, baseline=options.baseline, device=options.device
    )
    document.device = str(targets[0].agent.device)
    found = Diagnosis(document=document, targets=targets)
    _Work(options, found, progress, deadline).run()
    return found


class _Work:
    def __init__(
        self, options: Options, found: Diagnosis, progress: Progress, deadline: float
    ) -> None:
        self.options = options
        self.found = found
        self.document = found.document
        self._progress = progress
        self._chance: dict[int, float] = {}
        """Mean return of random actions, by target."""
        self._deadline = deadline
        self._noise = self._declared()
        self._close = [target for target in found.targets if target.looked_at_closely]
        self._final = [target for target in found.targets if self._is_final(target)]
        self._check_modes()

    def _declared(self) -> dict[int, dict[str, float]]:
        """Sensor noise of ``--noise-spec`` by target.

        The file names channels of the first target's task: what another task calls by the same
        names may be something else.
        """
        path, (first, *_) = self.options.noise, self.found.targets
        if path is None:
            return {}
        noise, found = read_noise(path, first.spec), {}
        for target in self.found.targets:
            if _sensors(target) == _sensors(first):
                found[target.number] = noise
            else:
                why = f"--noise-spec is of the channels of {first.spec.task_id}"
                self._note(f"{target.run_name}: {why}, and is not applied")
        return found

    def _check_modes(self) -> None:
        """Of runs of several kinds each has its own modes, some of which must be asked for."""
        asked = self.options.modes
        if not asked:
            return
        known = {mode: None for target in self._final for mode in policy_of(target.agent).modes}
        if not known.keys() & set(asked):
            raise InputError(
                f"--modes must be some of {', '.join(known)} for what is looked at here, got"
                f" {','.join(asked)}: name one of them, or drop the flag for all"
            )

    def _is_final(self, target: Target) -> bool:
        if {"named", "baseline"} & set(target.roles):
            return True
        later = [t for t in self.found.targets if t.run == target.run]
        return target is later[-1]

    def run(self) -> None:
        """All stages in order of their cost."""
        for target in self.found.targets:
            self.document.add_target(target)
        self.document.lap("loading")
        environment, cheap = self.options.suite != "quick", "units, features and weights"
        later = [target for target in self._close if environment and not target.data.stored]
        now = [target for target in self.found.targets if target not in later]
        self._stage(cheap, self._measure_suite("quick", now))
        if environment:
            self._stage("episodes", self._collect)
            if later:  # nothing is stored of these runs, whose episodes stand in
                self._stage(f"{cheap} in episodes", self._measure_suite("quick", later))
        else:
            self.document.skip("episodes", "the quick suite makes no environment: --suite standard")
        self._stage("returns", self._returns)
        self._stage("learning-rate sweep", self._sweep)
        self._stage("policy instability", self._instability)
        if environment:
            self._stage("gradients and values", self._measure_suite("standard", self._close))
            self._stage("change between checkpoints", self._change)
        if environment and (self.options.rollouts or self.options.suite == "full"):
            self._stage("disturbances", self._disturb)
        if self.options.suite == "full":
            self._stage("trainability", self._measure_suite("full", self._close))
        if len({target.run for target in self._final}) > 1:
            self._stage("policies side by side", self._compare)
        self._judge()
        self.document.lap("verdicts")

    def _stage(self, name: str, work: Callable[[], None]) -> None:
        if time.monotonic() > self._deadline:
            self.document.skip(name, "--budget was used up before this stage: raise it")
            return
        self._progress(name)
        work()
        self.document.lap(name)

    def _note(self, text: str) -> None:
        """What a reader has to know of the report, said once."""
        if text not in self.document.notes:
            self.document.notes.append(text)

    # --- stages -------------------------------------------------------------------------------

    def _measure_suite(self, suite: Suite, targets: Sequence[Target]) -> Callable[[], None]:
        """The groups of one suite, without those of the smaller ones."""
        groups = [group.name for group in chosen(suite) if group.suite == suite]
        if self.options.suite == "full":  # measured once, in full
            groups = [name for name in groups if name not in WHOLE]
            groups += WHOLE if suite == "full" else []

        def work() -> None:
            for target in targets if groups else ():
                self._progress(f"  {target.label}")
                try:
                    target.data.current()
                except InputError as error:
                    self.document.skip(f"{suite} suite", str(error), target=target.number)
                    continue
                measured = measure(
                    self._subject(target),
                    target.data,
                    self.options.suite,
                    groups=groups,
                    on_group=self._say_group if suite != "quick" else lambda name: None,
                )
                for each in measured.readings.values():
                    self.document.add(target.number, each)
                    if self.options.suite == "full" and (takes := coarsely(each)):
                        self._note(f"{target.label}: {each.metric} is coarse: {takes}")
                self.found.arrays.setdefault(target.number, {}).update(measured.arrays)

        return work

    def _say_group(self, name: str) -> None:
        self._progress(f"    {name.replace('_', ' ')}")

    def _returns(self) -> None:
        """Each run's course, told at its last checkpoint."""
        for target in self._final:
            table = target.run / METRICS
            columns = read_csv(table) if table.exists() else {}
            if not any(v is not None for v in columns.get("eval/return_mean", ())):
                why = f"{target.run.name} has no evaluation in metrics.csv"
                self.document.skip("ret_mdd", why, target=target.number)
                continue
            for name in ("eval/return_mean", "train/return_mean"):
                xs, (ys,) = _complete(columns, target.env_steps, name)
                self.document.add_series(name, target.number, xs, ys, xlabel="environment steps")
            for name, column in CHURN.items():
                xs, (ys,) = _complete(columns, target.env_steps, column)
                self.document.add_series(name, target.number, xs, ys, xlabel="environment steps")
            names = ("eval/return_mean", "eval/return_std")
            steps, (means, deviations) = _complete(columns, target.env_steps, *names)
            episodes = target.settings.eval.episodes
            for each in return_readings(
                means,
                steps,
                [deviation / episodes**0.5 for deviation in deviations],
                random_return=self._chance.get(target.number),
                episodes=episodes,
            ):
                self.document.add(target.number, each)

    def _sweep(self) -> None:
        """Of the learning rate, where a run is part of one."""
        for target in self._final:
            found = sweep.read(target.run)
            if found is None:
                continue
            self.document.add(
                target.number,
                reading(found["lr_sens"], metric="lr_sens", network="run", n=len(found["rates"])),
            )
            self.document.add_series(
                "lr_sweep",
                target.number,
                found["rates"],
                found["returns"],
                xlabel="learning rate",
                ylabel="final return",
            )

    def _collect(self) -> None:
        """Episodes: drawn from the policy for the value, its most likely actions for the rest."""
        for target in self._close:
            self._progress(f"  {target.label}")
            policy = policy_of(target.agent)
            with closing(self._env_of(target)) as env:
                drawn = self._roll(target, policy, env, "drawn")
                greedy = self._roll(target, policy, env, "greedy")
                random = self._roll(target, policy, env, "random")
            target.data = dataclasses.replace(
                target.data, sampled=drawn.steps, rollout=greedy.steps
            )
            self.found.rollouts[target.number] = greedy
            self._chance[target.number] = float(random.returns.mean())

    def _env_of(self, target: Target) -> Env:
        """As many environments each time: equal seeds then give equal starts."""
        return make_env(
            target.settings,
            num_envs=min(self.options.episodes, ROLLOUT_ENVS),
            purpose="diagnose",
            progress=target.progress,
        )

    def _roll(self, target: Target, policy: Policy, env: Env, kind: str) -> Rollout:
        """Episodes whose actions are ``drawn``, ``greedy`` or ``random``, on the same starts."""
        device = target.agent.device if kind == "drawn" else "cpu"
        generator = generator_for(device, self.options.seed, "rollout", kind)
        found = roll(
            policy,
            env,
            episodes=self.options.episodes,
            seed=self._episode_seed(),
            draw=generator if kind == "drawn" else None,
            random=generator if kind == "random" else None,
        )
        source = f"whole episodes, {kind} actions"
        self.document.add_dataset(target.number, "rollout", found.steps.episode, source=source)
        returns = [float(value) for value in found.returns]
        self.document.datasets[-1] |= {"returns": returns, "seed": self._episode_seed()}
        return found

    def _episode_seed(self) -> int:
        return derive_seed(self.options.seed, "diagnose")

    def _instability(self) -> None:
        for target in self._final:
            self._progress(f"  {target.label}")
            policy = policy_of(target.agent, "cpu")
            states = self._states(target, policy)
            if states is None:
                why = "no transitions to look at: --suite standard collects episodes"
                self.document.skip("ranld", why, target=target.number)
                continue
            if policy.no_value:
                self.document.skip("ranld mode critic", policy.no_value, target=target.number)
            for mode in self.options.modes or policy.modes:
                if self.options.suite == "quick" and mode in ("critic", "information", "fisher"):
                    # minutes, or no more than the deployed policy says
                    why = "the quick suite has the modes action and choice only: --suite standard"
                    self.document.skip(f"ranld mode {mode}", why, target=target.number)
                    continue
                self._analyse(target, policy, mode, states)

    def _states(self, target: Target, policy: Policy) -> States | None:
        if target.number in self.found.rollouts:
            return visited(policy, self.found.rollouts[target.number]).cpu()
        for name in ("recent", "anchor"):
            data = getattr(target.data, name)
            if data is not None:
                if policy.memory:
                    self._note(
                        f"{target.label}: a recurrent policy met stored states with an empty memory"
                    )
                return stored(policy, data, name).cpu()
        return None

    def _layout(self, target: Target, policy: Policy, mode: str) -> Layout:
        groups = policy.critic_groups if mode == "critic" else policy.groups
        return layout_of(target.spec, groups, self._noise.get(target.number))

    def _analyse(self, target: Target, policy: Policy, mode: str, states: States) -> None:
        try:
            one = analyse(
                policy,
                mode,
                states,
                self._layout(target, policy, mode),
                self._generator("ranld", mode),
                actuators=actuators_of(target.spec),
            )
        except InputError as error:
            params = {"mode": mode, "data": states.source}
            facts = {"metric": "ranld_conc", "network": "actor", "params": params}
            self.document.add(target.number, undefined(str(error), **facts))
            return
        self.found.analyses[target.number, mode] = one
        for each in readings(one):
            self.document.add(target.number, each)
        if mode in ("action", "choice") and one.layout.noise is None:
            why = "no sensor noise is declared: --noise-spec"
            self.document.skip("ranld_noise_changed", why, target=target.number)
        arrays = self.found.arrays.setdefault(target.number, {})
        arrays |= {
            f"ranld/{mode}/matrix": one.found.matrix_DD,
            f"ranld/{mode}/values": one.found.value_D,
            f"ranld/{mode}/worst": one.worst,
            f"ranld/{mode}/least": one.least,
        }

    def _change(self) -> None:
        """From each checkpoint to the next of its run; in the full suite, to every later one."""
        targets = self.found.targets
        for later in targets:
            earlier = [t for t in targets if t.run == later.run and t.number < later.number]
            for before in earlier if self.options.suite == "full" else earlier[-1:]:
                if later.data.anchor is None:
                    why = "no transitions that both were looked at on"
                    self.document.skip("change between checkpoints", why, target=later.number)
                    continue
                found = compare(self._subject(before), self._subject(later), later.data)
                for each in found.readings.values():
                    self.document.add(later.number, each, before=before.number)

    def _subject(self, target: Target) -> Subject:
        return subject_of(
            target.agent,
            seed=self.options.seed,
            channels=layout_of(
                target.spec, tuple(target.spec.observation), self._noise.get(target.number)
            ).channels,
        )

    def _disturb(self) -> None:
        """Closed loop: the worst direction and physical disturbances, on the same starts."""
        for target in self._final:
            policy = policy_of(target.agent)
            mode = policy.modes[0]
            one = self.found.analyses.get((target.number, mode))
            if one is None or target.number not in self.found.rollouts:
                why = f"there is no direction of the mode {mode} to try"
                if self.options.modes and mode not in self.options.modes:
                    why += ": name it in --modes"
                self.document.skip("disturbances", why, target=target.number)
                continue
            with closing(self._env_of(target)) as env:
                for each in self._closed_loop(target, policy, one, env):
                    self.document.add(target.number, each)

    def _closed_loop(
        self, target: Target, policy: Policy, one: Instability, env: Env
    ) -> Iterator[Reading]:
        clean, frozen = self.found.rollouts[target.number], policy_of(target.agent, "cpu")
        generator = self._generator("disturb")
        for name, make in closed_loop.plans(one, frozen, clean, generator).items():
            self._progress(f"  {target.label}: {name}")
            if time.monotonic() > self._deadline:
                self.document.skip(name, "--budget was used up", target=target.number)
                continue
            moved = roll(
                policy,
                env,
                episodes=self.options.episodes,
                seed=self._episode_seed(),
                sense=make(),
            )
            yield closed_loop.cost(clean, moved, self._chance[target.number], name, generator)
            yield from closed_loop.quotients(frozen, one, moved, name, self._generator("shift"))

    def _compare(self) -> None:
        """Policies of different runs, on the states of the first."""
        first, *others = {target.run: target for target in self._final}.values()
        policy = policy_of(first.agent, "cpu")
        states = self._states(first, policy)
        for other in others:
            params = {"with": first.label, "mode": policy.modes[0]}
            facts = {"metric": "ranld_overlap", "network": "actor", "params": params}
            try:
                left, right = self._side_by_side(first, other, policy.modes[0], states)
            except InputError as error:
                self.document.add(other.number, undefined(str(error), **facts))
                continue
            overlap = compare_policies(left.found, right.found)
            self.document.add(other.number, reading(overlap.cosine2, n=right.states, **facts))
            facts["metric"] = "ranld_jaccard"
            self.document.add(other.number, reading(overlap.jaccard, n=right.states, **facts))

    def _side_by_side(
        self, first: Target, other: Target, mode: str, states: States | None
    ) -> tuple[Instability, Instability]:
        """Of two policies, searched alike.

        Raises:
            InputError: they do not compare, or one of them responds to nothing.
        """
        same = other.spec.observation == first.spec.observation
        theirs = policy_of(other.agent, "cpu")
        if states is None or not same or theirs.modes[0] != mode:
            raise InputError(
                "directions of other observations, actions or without states do not compare"
            )
        left = self.found.analyses.get((first.number, mode))
        if left is None:
            raise InputError(f"{first.label} has no direction in the mode {mode}")
        right = analyse(
            theirs,
            mode,
            states._replace(memory=theirs.empty_memory(states.obs)),
            left.layout,
            self._generator("compare"),
            like=left,
        )
        return left, right

    def _judge(self) -> None:
        evidence: list[Evidence] = []
        for target in self.found.targets:
            earlier = [
                each for each in evidence if self.found.targets[each.target].run == target.run
            ]
            evidence.append(
                Evidence(
                    target=target.number,
                    label=target.label,
                    env_steps=target.env_steps,
                    readings=self.document.hits.get(target.number, []),
                    earlier=earlier,
                    course=_course(target),
                    analyses={
                        mode: one
                        for (number, mode), one in self.found.analyses.items()
                        if number == target.number
                    },
                    advice=advice(target.settings),
                    last_of_run=target in self._final,
                )
            )
        self.document.add_verdicts(rules.judge(evidence))

    def _generator(self, *names: str | int) -> torch.Generator:
        return generator_for("cpu", self.options.seed, *names)


def _sensors(target: Target) -> tuple[str, tuple[str, ...]]:
    """Whose channels a target observes, and what they are called."""
    spec = target.spec
    return spec.task_id, layout_of(spec, tuple(spec.observation)).names


def _course(target: Target) -> dict[str, list[float]]:
    """What the run measured of itself while training, before this checkpoint, by reading name."""
    table = target.run / METRICS
    columns = read_csv(table) if table.exists() else {}
    found = {}
    for name in columns:
        if name.startswith("diag/"):
            rows = complete(columns, "step", name)
            values = [value for step, value in rows if step < target.env_steps]
            if values:
                found[name.removeprefix("diag/")] = values
    return found


def _complete(
    columns: Mapping[str, Sequence[float | None]], last: int, *names: str
) -> tuple[list[float], list[list[float]]]:
    """Rows up to a step in which all columns have a number: steps, and each column."""
    rows = [row for row in complete(columns, "step", *names) if row[0] <= last]
    steps, *found = [[row[k] for row in rows] for k in range(1 + len(names))]
    return steps, found
