"""Experiment 4: which critic loses plasticity when it learns more often from the same data?

HalfCheetah for 5,000 steps at width 64 and batches of 128, with 1, 8 and 32 updates per environment
step. Everything but the critic is the same for all.

=========== ===================================================================================
scalar      squared error, no norms inside its blocks, weights not projected: the usual critic
categorical norm-bounded, cross-entropy over 101 atoms: FlashSAC's
flow        norm-bounded trunk, velocity field integrated in 4 steps
=========== ===================================================================================

The referee is ``fit_gap`` of the critic: how much worse than untrained twins it fits new functions,
from every checkpoint with enough transitions to ask on; at the last one with five functions and
three twins. Beside it stand the cheap metrics that training writes anyway. (The first two runs
were also measured with labels without relation, and their actors: twice the time for what no
criterion below asks.)

Said before any run: a critic *loses plasticity* at a number of updates per step if the whole
measurement of the last checkpoint has a mean over seeds of at least 0.2, the line of the report's
rules, with the 80 % bootstrap interval of the mean above 0.1. *When* is the first checkpoint from
which on the mean stays at 0.2. The online metrics *saw it first* if an early warning about the
critic came at or before that checkpoint's step in most seeds, and they cried wolf if one came in
most seeds of a critic that loses nothing.

    python -m benchmarks.experiments.utd_plasticity --out runs/utd_plasticity
    python -m benchmarks.experiments.utd_plasticity --report

27 runs; about six hours of one core for training, and more for measuring. Ctrl-C saves; the same
command continues, and rows are appended for every run that is finished and measured.
Source: the question is Lyle et al. 2023's (arXiv:2303.01486); sizes and criteria are our own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.experiments import command
from benchmarks.experiments.high_utd_control import interval80
from supple import checkpoint, compare
from supple.bench.table import append, read
from supple.cli import RESUMABLE
from supple.diagnostics.alarms import Alarms
from supple.diagnostics.context import Context, attempt
from supple.diagnostics.isolation import isolated
from supple.diagnostics.linalg import rank_correlation
from supple.diagnostics.reading import MEAN, Reading
from supple.diagnostics.subject import subject_of
from supple.diagnostics.suite import learning
from supple.diagnostics.targets import Target, load_targets
from supple.display import Display
from supple.metrics import METRICS, read_csv

ROWS = Path(__file__).parents[1] / "results" / "utd_plasticity.csv"
COMMAND = "python -m benchmarks.experiments.utd_plasticity"
TASK = "gym/HalfCheetah-v5"
STEPS, EVERY, MEASURED = 5_000, 500, 1_000
"""Environment steps of a run, of its checkpoints, and of those that are measured."""
FAMILY = {"family": "smooth"}
CRITICS = {
    "scalar": "--agent.critic scalar --agent.critic-norm none --agent.no-project-critic",
    "categorical": "--agent.critic categorical",
    "flow": "--agent.critic flow",
}
LOST, CLEARLY = 0.2, 0.1
WHOLE = str(learning.WHOLE["steps"])
"""In the rows' column of that name, the steps of fitting of the whole measurement."""
CHEAP = (
    *("dormant_0.1", "dead_var", "grad_dormant_0.01", "srank", "erank", "feature_rank"),
    *("feat_norm", "w_rms", "grad_norm", "stab_adam", "churn_q_1"),
)
"""Columns of training whose last value is set beside the last ``fit_gap``."""


def jobs(out: Path, utd: int, critics: Sequence[str], seeds: Sequence[int]) -> list[compare.Job]:
    """The runs at one number of updates per step, seed after seed."""
    flags = (
        *("--preset", "laptop", "--env-steps", str(STEPS), "--agent.utd", str(utd)),
        *("--agent.min-replay", "500", "--agent.update-every", "1"),
        *("--checkpoint.every", str(EVERY), "--log.every", "100"),
        *("--eval.every", "1000", "--eval.episodes", "5", "--eval.no-video"),
        # Every 250 and 1,000 environment steps, however dear: this is what is studied.
        *("--diagnostics.tier1-period", str(250 * utd), "--diagnostics.max-overhead", "0.5"),
        *("--diagnostics.tier2-period", str(1000 * utd)),
        *("--compute.compile", "on"),
    )
    variants = [f"{name}: {CRITICS[name]}" for name in critics]
    planned = compare.plan(TASK, seeds, variants, flags, out / f"utd{utd}")
    return sorted(planned, key=lambda job: job.seed)


def measured(target: Target, *, whole: bool) -> Iterator[Reading]:
    """``fit_gap`` of the critic of one checkpoint."""
    subject = subject_of(target.agent, seed=target.settings.seed)
    context = Context(subject=subject, data=target.data, suite="full" if whole else "standard")
    view = subject.views["critic"]
    facts: dict[str, Any] = {"metric": "fit_gap", "network": "critic", "params": FAMILY}
    with isolated(target.agent):
        found = attempt(
            lambda: learning.gap(context, view, FAMILY["family"], coarse=not whole), **facts
        )
    yield from (each for each in found if each.member == MEAN)


def first_warnings(table: Path, utd: int) -> dict[str, tuple[int, str]]:
    """When training first warned about each network [environment steps], and what it said."""
    columns = read_csv(table)
    alarms, found = Alarms(), dict[str, tuple[int, str]]()
    names = [name for name in columns if name.startswith("diag/")]
    for at, step in enumerate(int(step or 0) for step in columns["step"]):
        row = {name: value for name in names if (value := columns[name][at]) is not None}
        for said in alarms.watch(utd * step, row):
            network = said.removeprefix("early warning: ").split()[0]
            found.setdefault(network, (step, said.removeprefix("early warning: ")))
    return found


def last_of(table: Path, network: str) -> dict[str, float | str]:
    """The last value of every cheap metric, mean over members; empty where there is none."""
    columns = read_csv(table)
    found: dict[str, float | str] = dict.fromkeys(CHEAP, "")
    for name, values in columns.items():
        parts = name.split("/")
        known = [value for value in values if value is not None]
        if parts[:2] == ["diag", network] and parts[-2] == "mean" and parts[-1] in found and known:
            found[parts[-1]] = known[-1]
    return found


def rows_of(job: compare.Job, utd: int) -> list[dict[str, Any]]:
    """One row per checkpoint of a finished run, and one more of the last."""
    table = job.folder / METRICS
    returns, warned = job.evaluations("eval/return_mean"), first_warnings(table, utd)
    every = checkpoint.list_checkpoints(job.folder)
    paths = [path for path in every if checkpoint.step_of(path) % MEASURED == 0]
    rows = []
    targets, _ = load_targets(paths)
    for target in targets:
        last = target is targets[-1]
        for reading in (
            *measured(target, whole=False),
            *(measured(target, whole=True) if last else ()),
        ):
            step, (warning_at, warning) = target.env_steps, warned.get(reading.network, ("", ""))
            low, high = (round(end, 4) for end in reading.ci95) if reading.ci95 else ("", "")
            rows.append(
                {
                    "utd": utd,
                    "critic": job.variant,
                    "seed": job.seed,
                    "step": step,
                    "network": reading.network,
                    "targets": reading.params["family"],
                    "steps of fitting": reading.params.get("steps", ""),
                    "fit_gap": "" if reading.value is None else round(reading.value, 4),
                    "low": low,
                    "high": high,
                    "error": round(reading.reference.get("error", float("nan")), 4),
                    "fresh error": round(reading.reference.get("fresh_error", float("nan")), 4),
                    "reason": reading.reason,
                    "return": round(returns[max(returns)], 1) if last else "",
                    "first warning": warning_at,
                    "warning": warning,
                    **(last_of(table, reading.network) if last else dict.fromkeys(CHEAP, "")),
                }
            )
    return rows


def collect(planned: dict[int, list[compare.Job]]) -> None:
    """Measure the finished runs that have no rows yet."""
    known = {(row["utd"], row["critic"], row["seed"]) for row in read(ROWS)}
    for utd, of_utd in planned.items():
        for job in of_utd:
            if job.result() and (str(utd), job.variant, str(job.seed)) not in known:
                print(f"measuring {job.name}, UTD {utd}", flush=True)
                where = command.made(job.folder)
                append([row | where for row in rows_of(job, utd)], ROWS, COMMAND)


Gaps = dict[int, list[float]]
"""By environment step, one number per seed."""


def report() -> None:
    """Print the two tables of ``summary``."""
    critics, ranks = summary()
    if not critics:
        print("nothing measured yet")
        return
    Display.print_rows(TASK, critics)
    Display.print_rows("over all critics, last values", ranks)


def summary() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """What each critic's ability to learn became; and how the cheap metrics followed it."""
    gaps: dict[tuple[int, str, bool], Gaps] = defaultdict(lambda: defaultdict(list))
    warned: dict[tuple[int, str], dict[str, str]] = defaultdict(dict)
    tracked: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in read(ROWS):
        if row["network"] != "critic" or row["targets"] != FAMILY["family"]:
            continue
        key = (int(row["utd"]), row["critic"])
        warned[key][row["seed"]] = row["first warning"]
        if not row["fit_gap"]:
            continue
        whole = row["steps of fitting"] == WHOLE
        gaps[(*key, whole)][int(row["step"])].append(float(row["fit_gap"]))
        if whole:
            for name in CHEAP:
                if row[name]:
                    tracked[name].append((float(row[name]), float(row["fit_gap"])))
    ranks = []
    for name, pairs in tracked.items():
        if len({value for value, _ in pairs}) > 2:
            related = float(rank_correlation(*torch.tensor(pairs).T))
            ranks.append({"online metric": name, "rank correlation with fit_gap": f"{related:.2f}"})
    return [line(key, gaps, warned[key]) for key in sorted(warned)], ranks


def line(
    key: tuple[int, str], gaps: dict[tuple[int, str, bool], Gaps], first: dict[str, str]
) -> dict[str, str]:
    """One critic at one number of updates per step, by what was said before."""
    coarse, whole = gaps[(*key, False)], gaps[(*key, True)]
    end = np.array(whole[max(whole)]) if whole else np.array([np.nan])
    low, high = interval80(end)
    lost = end.mean() >= LOST and low > CLEARLY
    steps = sorted(coarse)
    over = [
        step for at, step in enumerate(steps) if all(np.mean(coarse[s]) >= LOST for s in steps[at:])
    ]
    when = over[0] if lost and over else None
    early = [int(step) for step in first.values() if step]
    most = len(early) * 2 > len(first)
    said = f"{int(np.median(early))} ({len(early)} of {len(first)} seeds)" if early else "none"
    if lost:
        before = [step for step in early if when is None or step <= when]
        said += ", first" if len(before) * 2 > len(first) else ", not first"
    elif most:
        said += ", cried wolf"
    return {
        "UTD": str(key[0]),
        "critic": key[1],
        "seeds": str(len(end)),
        "fit_gap, last": f"{end.mean():.2f}",
        "80 % interval": f"{low:.2f} to {high:.2f}",
        "loses plasticity": "yes" if lost else "no",
        "from step": "-" if when is None else str(when),
        "first warning": said,
    }


def main() -> int:
    """Run and measure what is missing, then report."""
    status = 0
    parser = command.parser(__doc__, runs="utd_plasticity", seeds=(0, 1, 2))
    parser.add_argument("--utd", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--critics", nargs="+", default=list(CRITICS), choices=list(CRITICS))
    parser.add_argument("--train-only", action="store_true", help="measure nothing yet")
    options = parser.parse_args()
    if not options.report:
        planned = {
            utd: jobs(options.out, utd, options.critics, options.seeds) for utd in options.utd
        }
        for of_utd in planned.values():
            if status := compare.run_queue(of_utd, options.jobs):
                break
        if options.train_only or status == RESUMABLE:
            return status
        collect(planned)
    report()
    return status


if __name__ == "__main__":
    command.start(main)
