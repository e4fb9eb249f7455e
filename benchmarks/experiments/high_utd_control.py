"""Experiment 2: which critic still learns control at many updates per environment step.

A point learns to cross a walled maze (``maze.py``) with FlashSAC's actor at width 64, or with flow
Q-learning's (``fql.py``), two networks of two layers of 128, from 5,000 steps of its own beside
20,000 recorded ones, sampled alike. Every critic averages its targets over four next actions; those
that integrate noise draw four samples, one per next action.

=========== ===================================================================================
scalar      squared error
categorical cross-entropy over 101 atoms
flow        norm-bounded flow, K = 4
zero        its control without dense supervision: t = 0, K = 1
=========== ===================================================================================

Said before any run: *reproduced* if at UTD 64 the flow's final success is at least 1.5 times the
scalar's and it needs at most half the steps to reach the scalar's final success, 80 % bootstrap
intervals apart; *partially* if from UTD 16 to 64 the scalar's final success falls by 20 % or more
and the flow's by 10 % or less; else *not reproduced*. Final is the mean of the last three
evaluations of 20 episodes. At UTD 1 nobody should differ by more than 10 %. Flow Q-learning's alpha
is, for each critic, the one of 1, 3 and 10 with the largest area under the curve at UTD 1, the
smallest of several.

    python -m benchmarks.experiments.high_utd_control --out runs/high_utd --utd 1 64 --seeds 0 1 2
    python -m benchmarks.experiments.high_utd_control --actor FQL --utd 1
    python -m benchmarks.experiments.high_utd_control --actor FQL --utd 64 --critics flow --alphas 3
    python -m benchmarks.experiments.high_utd_control --actor FQL --report

A run at UTD 64 takes an hour or two of one core. Ctrl-C saves; the same command continues, and
rows are appended for every run that is finished.
Source: the question is that of arXiv:2603.04333; maze, sizes and criteria are our own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiments import command
from benchmarks.experiments.maze import ONE_WALL, THREE_WALLS, write_prior_data
from supple import compare
from supple.bench.table import append, read
from supple.display import Display

ROWS = Path(__file__).parents[1] / "results" / "high_utd_control.csv"
COMMAND = "python -m benchmarks.experiments.high_utd_control"

MAZES = {"one_wall": ONE_WALL, "three_walls": THREE_WALLS}
PRIOR, STEPS, DRAWS = 20_000, 5_000, 4
LAST = 3
"""Evaluations whose mean is the final success."""
FLOW = f"--agent.critic flow --agent.flow.target-samples {DRAWS} --agent.flow.train-samples {DRAWS}"
CRITICS = {
    "scalar": "--agent.critic scalar",
    "categorical": "--agent.critic categorical",
    "flow": FLOW,
    "zero": f"{FLOW} --agent.flow.train-time zero --agent.flow.target-steps 1"
    " --agent.flow.read-steps 1",
}
FQL = (
    *("--agent", "benchmarks.experiments.fql:FQL", "--agent.actor-period", "1"),
    *("--agent.actor-hidden", "128", "--agent.actor-blocks", "2", "--agent.noise.max-hold", "1"),
    "--diagnostics.no-enabled",
)
ALPHAS = (1.0, 3.0, 10.0)
COMMON = (
    *("--preset", "laptop", "--env-steps", str(STEPS), "--agent.min-replay", "1"),
    *("--agent.update-every", "1", "--agent.n-step", "1", "--agent.gamma", "0.98"),
    *("--agent.lr-init", "3e-4", "--agent.lr-peak", "3e-4", "--agent.lr-end", "3e-4"),
    *("--agent.next-actions", str(DRAWS), "--replay.capacity", str(PRIOR + STEPS)),
    *("--eval.every", "250", "--eval.episodes", "20", "--eval.no-video"),
)

Curves = Mapping[tuple[int, str], Sequence[Mapping[int, float]]]
"""By updates per step and critic: for each seed, success by environment step."""
Planned = Mapping[tuple[str, int], Sequence[compare.Job]]
"""Runs by actor and updates per step."""


def actors(actor: str, alphas: Sequence[float]) -> dict[str, tuple[str, ...]]:
    """Flags by the name that rows have for an actor: FQL is one for each alpha."""
    if actor == "SAC":
        return {actor: ()}
    return {named(alpha): (*FQL, "--agent.bc-alpha", f"{alpha:g}") for alpha in alphas}


def named(alpha: float) -> str:
    """What rows call flow Q-learning's actor."""
    return f"FQL {alpha:g}"


def jobs(
    out: Path,
    maze: str,
    actor: Mapping[str, Sequence[str]],
    utds: Sequence[int],
    critics: Sequence[str],
    seeds: Sequence[int],
) -> dict[tuple[str, int], list[compare.Job]]:
    """The runs by actor and updates per step, seed after seed."""
    variants = [f"{name}: {CRITICS[name]}" for name in critics]
    given = (*COMMON, "--replay.prefill", str(prior(out, maze)))
    task = f"benchmarks.experiments.maze:{maze}"
    planned = {}
    for utd in utds:
        for name, own in actor.items():
            folder = out / maze / ("" if name == "SAC" else name) / f"utd{utd}"
            flags = [*given, *own, "--agent.utd", str(utd)]
            found = compare.plan(task, seeds, variants, flags, folder)
            planned[name, utd] = sorted(found, key=lambda job: job.seed)
    return planned


def prior(out: Path, maze: str) -> Path:
    """The recorded transitions, written once."""
    path = out / f"{maze}.safetensors"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_prior_data(path, MAZES[maze], PRIOR, seed=0)
    return path


def collect(maze: str, planned: Planned) -> None:
    """Append the evaluations of finished runs that the file does not have yet."""
    names = ("maze", "actor", "utd", "critic", "seed")
    known = {tuple(row[name] for name in names) for row in read(ROWS)}
    for (actor, utd), of_utd in planned.items():
        for job in of_utd:
            result = job.result()
            if result is None or (maze, actor, str(utd), job.variant, str(job.seed)) in known:
                continue
            where = command.made(job.folder)
            rows = [
                {
                    "maze": maze,
                    "actor": actor,
                    "utd": utd,
                    "critic": job.variant,
                    "seed": job.seed,
                    "step": step,
                    "success": success,
                    "seconds": round(result["seconds"]),
                    **where,
                }
                for step, success in job.evaluations("eval/success_once").items()
            ]
            append(rows, ROWS, COMMAND)


def curves(maze: str, actor: str) -> dict[tuple[int, str], list[dict[int, float]]]:
    """What ``verdict`` reads, of one actor."""
    by_run: dict[tuple[int, str, str], dict[int, float]] = defaultdict(dict)
    for row in read(ROWS):
        if (row["maze"], row["actor"]) == (maze, actor):
            key = (int(row["utd"]), row["critic"], row["seed"])
            by_run[key][int(row["step"])] = float(row["success"])
    found = defaultdict(list)
    for (utd, critic, _), curve in sorted(by_run.items()):
        found[utd, critic].append(curve)
    return dict(found)


def final(curve: Mapping[int, float]) -> float:
    """Mean success of the last evaluations."""
    return float(np.mean([curve[step] for step in sorted(curve)[-LAST:]]))


def steps_to(curve: Mapping[int, float], level: float) -> float:
    """The first evaluation at the level; never is counted as one more than all steps."""
    return next((step for step in sorted(curve) if curve[step] >= level), max(curve) + 1)


def interval80(values: np.ndarray) -> tuple[float, float]:
    """80 % bootstrap interval of the mean over seeds."""
    random = np.random.default_rng(0)
    means = random.choice(values, (10_000, len(values))).mean(1)
    low, high = np.percentile(means, [10, 90])
    return float(low), float(high)


def verdict(found: Curves) -> str:
    """What was said before, applied."""
    if not {(64, "scalar"), (64, "flow")} <= found.keys():
        return "UTD 64: flow or scalar not run yet"
    seeds = min(len(found[64, critic]) for critic in ("scalar", "flow"))
    ends = {key: np.array([final(curve) for curve in runs]) for key, runs in found.items()}
    scalar, flow = ends[64, "scalar"], ends[64, "flow"]
    level = float(scalar.mean())
    steps = {
        critic: np.array([steps_to(curve, level) for curve in found[64, critic]])
        for critic in ("scalar", "flow")
    }
    apart = (
        interval80(flow)[0] > interval80(scalar)[1]
        and interval80(steps["flow"])[1] < interval80(steps["scalar"])[0]
    )
    numbers = (
        f"UTD 64, {seeds} seeds: final success flow {flow.mean():.2f}, scalar {level:.2f}; steps"
        f" to {level:.2f}: flow {steps['flow'].mean():.0f}, scalar {steps['scalar'].mean():.0f};"
        f" 80 % intervals {'apart' if apart else 'overlap'}"
    )
    higher = level > 0 and flow.mean() >= 1.5 * level
    sooner = steps["flow"].mean() <= 0.5 * steps["scalar"].mean()
    if higher and sooner and apart:
        return f"reproduced. {numbers}"
    if {(16, "scalar"), (16, "flow")} <= ends.keys():
        kept = {
            critic: ends[64, critic].mean() / max(float(ends[16, critic].mean()), 1e-9)
            for critic in ("scalar", "flow")
        }
        numbers += f"; kept from UTD 16: flow {kept['flow']:.0%}, scalar {kept['scalar']:.0%}"
        if kept["scalar"] <= 0.8 and kept["flow"] >= 0.9:
            return f"partially reproduced. {numbers}"
    return f"not reproduced. {numbers}"


def tuned(maze: str) -> dict[tuple[int, str], list[dict[int, float]]]:
    """``curves`` of flow Q-learning, of each critic those with its own alpha."""
    every = {alpha: curves(maze, named(alpha)) for alpha in ALPHAS}
    found: dict[tuple[int, str], list[dict[int, float]]] = {}
    for critic in CRITICS:
        seeds = {alpha: len(own.get((1, critic), ())) for alpha, own in every.items()}
        if min(seeds.values()) == 0 or len(set(seeds.values())) > 1:
            print(f"{critic}: alpha not chosen yet, seeds at UTD 1: {seeds}")
            continue
        areas = {alpha: area(own[1, critic]) for alpha, own in every.items()}
        best = max(areas, key=lambda alpha: (areas[alpha], -alpha))
        told = ", ".join(f"{alpha:g} {found:.3f}" for alpha, found in areas.items())
        print(f"{critic}: alpha {best:g}, of areas at UTD 1 {told}")
        found |= {key: runs for key, runs in every[best].items() if key[1] == critic}
    return found


def area(runs: Sequence[Mapping[int, float]]) -> float:
    """Mean success over evaluations and seeds."""
    return float(np.mean([np.mean(list(curve.values())) for curve in runs]))


def report(maze: str, actor: str) -> None:
    """Print final success, area under the curve and the verdict."""
    found = curves(maze, actor) if actor == "SAC" else tuned(maze)
    rows = []
    for (utd, critic), runs in sorted(found.items()):
        ends = np.array([final(curve) for curve in runs])
        low, high = interval80(ends)
        rows.append(
            {
                "utd": str(utd),
                "critic": critic,
                "seeds": str(len(runs)),
                "final success": f"{ends.mean():.2f}",
                "80 % interval": f"{low:.2f} to {high:.2f}",
                "area under the curve": f"{area(runs):.2f}",
            }
        )
    if rows:
        Display.print_rows(f"maze {maze}, {actor} actor with prior data", rows)
    print(verdict(found))


def main() -> int:
    """Run what is missing, or report."""
    status = 0
    parser = command.parser(__doc__, runs="high_utd", seeds=(0, 1, 2))
    parser.add_argument("--maze", default="one_wall", choices=list(MAZES))
    parser.add_argument("--actor", default="SAC", choices=("SAC", "FQL"))
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS, help="of FQL")
    parser.add_argument("--utd", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--critics", nargs="+", default=list(CRITICS), choices=list(CRITICS))
    options = parser.parse_args()
    if not options.report:
        who = actors(options.actor, options.alphas)
        planned = jobs(options.out, options.maze, who, options.utd, options.critics, options.seeds)
        try:
            for some in planned.values():
                if status := compare.run_queue(some, options.jobs):
                    break
        finally:
            collect(options.maze, planned)
    report(options.maze, options.actor)
    return status


if __name__ == "__main__":
    command.start(main)
