"""The documentation's tables, from committed rows, each with where its numbers come from.

    python -m benchmarks.tables

writes them into the README and the pages of ``docs/``, between ``<!-- table: NAME -->`` and
``<!-- end -->``, and ``docs/examples/NAME.py`` after ``<!-- code: NAME -->``: pages are also read
without Sphinx.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import improvements as improvements_experiment
from benchmarks.experiments import learning_parity as parity_experiment
from benchmarks.experiments import reproduction as experiment
from benchmarks.experiments import utd_plasticity
from benchmarks.figures import PUBLISHED_PPO, ROOT, Row, by, numbers, rows
from benchmarks.time_to_return import __main__ as clocks
from supple.agents.flashsac_settings import CRITICS
from supple.diagnostics.rules import RULES
from supple.files import replace_file
from supple.intervals import half_width95

PLACE = re.compile(r"<!-- (table|code): (\w+) -->\n.*?<!-- end -->", re.DOTALL)
JOINED = "--env.num-envs 2 --agent.batch-size 256"
"""What makes one process as two with the ``laptop`` preset are together."""
SIZES = ("17x6", "376x17", "310x37")
ENVS = "2a32c98"
"""Commit of the rows of ``bench_envs.csv`` that are shown."""


def grid(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _distinct(table: Iterable[Row], column: str) -> list[str]:
    return [*dict.fromkeys(row[column] for row in table if row.get(column))]


def _said(table: Iterable[Row], column: str) -> str:
    found = _distinct(table, column)
    if column == "commit":  # a run that was continued names all of its own
        found = [*dict.fromkeys(one for each in found for one in each.split(", "))]
    return "; ".join(found)


def source(name: str, table: Sequence[Row], note: str = "") -> str:
    """Where the numbers come from: file, machine, threads, versions, commit, command."""
    commands = dict.fromkeys(re.sub(r" --seed \d+", " --seed K", r["command"]) for r in table)
    shown = ", ".join(f"`{command}`" for command in [*commands][:2])
    threads = f", threads: {_said(table, 'threads')}" if _said(table, "threads") else ""
    lines = [
        f"Rows: `benchmarks/results/{name}.csv`, commit {_said(table, 'commit')},"
        f" {_said(table, 'date')}.",
        f"Machine: {_said(table, 'machine')}{threads}; {_said(table, 'versions')}.",
        f"Command: {shown}{', and the like' * (len(commands) > 2)}.",
    ]
    return "\n".join([*lines, *([note] if note else [])])


def last(table: Iterable[Row]) -> list[Row]:
    """Of each seed, the row with the most steps."""
    groups = by("seed", table).values()
    return [max(own, key=lambda row: int(float(row["step"]))) for own in groups]


def spread(values: np.ndarray) -> str:
    """Mean and half of its 95 % interval, by Student's t."""
    half = half_width95(float(values.std(ddof=1)), len(values))
    return f"{values.mean():.1f} ± {half:.1f}"


def front() -> str:
    """The README's: what is fast here, beside what others take."""
    trained = rows("wall_clock", task="HalfCheetah-v5")
    taken = {
        learner: _middle(3000.0, list(by("seed", runs).values()), "seconds")
        for learner, runs in by("learner", trained).items()
    }
    clock = {
        "**supple PPO**, `cpu` preset": taken["supple ppo cpu"],
        "**supple FlashSAC**, `laptop` preset": taken["supple flashsac laptop"],
    }
    clock |= {name: taken[name] for name in (*clocks.THEIRS, clocks.OFFICIAL)}
    runs = last(rows("ppo_curves", task="gym/HalfCheetah-v4", commit="e843ddd"))
    minutes = numbers("seconds", runs).mean() / 60
    update = rows("bench_update", commit="fd77e83", obs="376", batch="2048")
    sampled = rows("bench_ppo", commit="0a27c8d", obs="17")
    stepped = rows("bench_envs", commit=ENVS, task="Humanoid", **{"num envs": "64"})
    deployed = rows("deploy_latency", commit="6a378e3")
    bf16, official = (
        _of(update, f"{name} bfloat16", "p50 ms") for name in ("supple compiled", "official eager")
    )
    lines: list[tuple[Any, ...]] = [
        (
            "ppo_curves",
            runs,
            f"PPO's return on HalfCheetah-v4 after 1 M steps, {minutes:.0f} minutes,"
            f" {len(runs)} seeds; the preset was chosen on this and two other tasks",
            f"{numbers('return_mean', runs).mean():.0f}",
            f"published by FlashSAC's authors: {PUBLISHED_PPO['HalfCheetah']}",
        ),
        (
            "bench_ppo",
            sampled,
            "PPO's samples a second, 17x6, float32",
            f"{_of(sampled, 'supple compiled float32', 'samples per second'):,.0f} compiled;"
            f" {_of(sampled, 'supple eager float32', 'samples per second'):,.0f} eager",
            f"Stable-Baselines3: {_of(sampled, 'Stable-Baselines3', 'samples per second'):,.0f};"
            f" rsl_rl: {_of(sampled, 'rsl_rl', 'samples per second'):,.0f}",
        ),
        (
            "bench_update",
            update,
            "FlashSAC's gradient step, networks of the paper, 376x17, batch 2048",
            f"compiled: {bf16:.0f} ms in bfloat16;"
            f" {_of(update, 'supple compiled float32', 'p50 ms'):.0f} ms in float32",
            f"published code: {_of(update, 'official eager float32', 'p50 ms'):.0f} ms;"
            f" with oneDNN's bf16 switch: {official:.0f} ms",
        ),
        (
            "bench_envs",
            stepped,
            "environment steps a second, 64 Humanoids, two threads",
            f"{_of(stepped, 'supple mujoco', 'steps per second'):.0f}",
            f"envpool: {_of(stepped, 'envpool', 'steps per second'):.0f};"
            f" SyncVectorEnv: {_of(stepped, 'SyncVectorEnv', 'steps per second'):.0f}",
        ),
        (
            "deploy_latency",
            deployed,
            "a step of the exported policy, 17x6",
            f"{float(deployed[0]['p50 us']):.0f} us in C",
            f"onnxruntime: {_of(deployed, 'onnxruntime', 'p50 us'):.0f} us;"
            f" torch: {_of(deployed, 'torch', 'p50 us'):.0f} us",
        ),
    ]
    every = [row for table in (trained, *(table for _, table, *_ in lines)) for row in table]
    machines, versions = (". ".join(_distinct(every, c)) for c in ("machine", "versions"))

    def linked(name: str, table: Sequence[Row]) -> str:
        return f"[{_said(table, 'commit')}](benchmarks/results/{name}.csv)"

    first = grid(("HalfCheetah-v5 on one core", "seconds to a return of 3000"), clock.items())
    body = [(*said, linked(name, table)) for name, table, *said in lines]
    shown = grid(("", "supple", "beside it", "rows of commit"), body)
    note = "Median and range of three seeds; >: a run ended before it came there. Rows of commit"
    of = f"Machines: {machines}. Versions: {versions}."
    return f"{first}\n\n{note} {linked('wall_clock', trained)}.\n\n{shown}\n\n{of}"


def reproduction() -> str:
    """FlashSAC's returns a tenth of the way, beside the published ones."""
    table = rows("reproduction")
    body = experiment.summary(table)
    note = (
        f"The command runs `supple train TASK {' '.join(experiment.FLAGS)}`."
        " Published: Holiday-Robot/FlashSAC@87edc90, `docs/data/published_cpu.csv`."
    )
    shown = grid(list(body[0]), [list(line.values()) for line in body])
    return f"{shown}\n\n{source('reproduction', table, note)}"


def learning_parity() -> str:
    """The published code and ours, each learning on its own."""
    table = rows("learning_parity")
    body = parity_experiment.summary(table)
    shown = grid(list(body[0]), [list(line.values()) for line in body])
    return f"{shown}\n\n{source('learning_parity', table)}"


def improvements() -> str:
    """What each switch of ours does to FlashSAC."""
    seeds = improvements_experiment.SEEDS
    table = rows("improvements")
    lines = improvements_experiment.summary(table)
    lines = [line for line in lines if int(line["seeds"]) >= seeds]  # of fewer nothing is said
    regimes = {line["regime"] for line in lines}
    used = [row for row in table if row["regime"] in regimes]
    shown = grid(list(lines[0]), [list(line.values()) for line in lines])
    return f"{shown}\n\n{source('improvements', used)}"


def _of(table: Sequence[Row], variant: str, column: str) -> float:
    names = ("variant", "runtime")
    (row,) = [row for row in table if variant in (row.get(name) for name in names)]
    return float(row[column])


def critics() -> str:
    """Return, work and time of each critic."""
    body, used, costs = [], [], rows("bench_critics", commit="9b4b9a0")
    every = by("variant", rows("critics"))
    for critic in CRITICS:
        final = last(every[critic])
        used += final
        returns = np.sort(numbers("return", final))
        (cost,) = [row for row in costs if row["variant"] == critic]
        each = ", ".join(f"{value:.0f}" for value in returns)
        time = f"{float(cost['p50 ms']):.1f}"
        body.append((f"`{critic}`", f"{returns.mean():.0f}", each, cost["MFLOP"], time))
    head = ("critic", "mean return", "each seed", "MFLOP of a gradient step", "ms")
    cost_rows = source("bench_critics", costs)
    note = f"Time and work of a gradient step. {cost_rows}"
    return f"{grid(head, body)}\n\n{source('critics', used)}\n\n{note}"


def policy_evaluation() -> str:
    """Error of a fixed policy's value."""
    names = {
        "scalar": "scalar",
        "noise": "scalar, noise as input",
        "categorical": "categorical",
        "flow": "flow",
        "zero": "flow at t = 0, K = 1",
        "endpoint": "flow of end points",
    }
    settings = {
        "utd 1": "1 update each",
        "utd 8": "8 updates each",
        "utd 32": "32 updates each",
        "utd 128": "128 updates each",
        "plenty": "20,000 transitions, 8,000 updates",
    }
    body, used = [], []
    every = by("setting", rows("policy_evaluation"))
    for setting, title in settings.items():
        found = every[setting]
        own = {critic: [row for row in found if row["critic"] == critic] for critic in names}
        used += [row for runs in own.values() for row in runs]
        cells = [spread(numbers("rmse final", runs)) if runs else "" for runs in own.values()]
        gain = f"{numbers('z0 gain K=8', own['flow']).mean():.2f}" if own["flow"] else ""
        body.append((title, *cells, gain))
    note = (
        "Root mean square error to the true value, mean of five seeds ± 95 % interval; an empty"
        " cell was not run. The last column: of a shift of the noise that the flow starts from, the"
        " share that arrives at the value after eight steps."
    )
    head = ("392 transitions, and", *names.values(), "flow's noise left")
    return f"{grid(head, body)}\n\n{source('policy_evaluation', used, note)}"


def wall_clock() -> str:
    """Seconds and steps to two returns, of ours and of other libraries' learners."""
    body: list[tuple[object, ...]] = []
    every = rows("wall_clock")
    for task, own in by("task", every).items():
        low, high = clocks.LEVELS[task]
        for learner, runs in by("learner", own).items():
            curves = list(by("seed", runs).values())
            best = np.median([numbers("return_mean", curve).max() for curve in curves])
            cells = (
                _middle(level, curves, column)
                for level in (low, high)
                for column in ("seconds", "env_steps")
            )
            levels = f"{task}: {low:.0f}, {high:.0f}"
            body.append((levels, learner, *cells, f"{best:.0f}", len(curves)))
    head = ("task: levels", "learner", "s", "steps", "s to the higher", "steps", "best", "seeds")
    note = f"The others: {_said(every, 'peer')}."
    return f"{grid(head, body)}\n\n{source('wall_clock', every, note)}"


def _middle(level: float, curves: Sequence[list[Row]], column: str) -> str:
    """Median and range over seeds of the first evaluation at a level; >: a run ended before."""
    found = [clocks.first_at(level, curve) for curve in curves]
    taken = np.array([math.inf if row is None else float(row[column]) for row in found])
    ends = [float(c[-1][column]) for c, row in zip(curves, found, strict=True) if row is None]

    def said(value: float) -> str:
        return f"> {min(ends):,.0f}" if math.isinf(value) else f"{value:,.0f}"

    middle, *ends_of_range = (said(each) for each in (np.median(taken), taken.min(), taken.max()))
    return middle if set(ends_of_range) == {middle} else f"{middle} ({' to '.join(ends_of_range)})"


def ppo() -> str:
    """PPO's presets, three seeds each."""
    body, used = [], []
    tasks = {f"gym/{task}-v4": str(mean) for task, mean in PUBLISHED_PPO.items()}
    tasks |= {"gym/CartPole-v1": "", "gym/Pendulum-v1": ""}
    for task, published in tasks.items():
        commit = "e843ddd" if published else "28287db"
        final = last(rows("ppo_curves", task=task, commit=commit))
        used += final
        returns = np.sort(numbers("return_mean", final))
        each = ", ".join(f"{value:.0f}" for value in returns)
        minutes = numbers("seconds", final) / 60
        times = f"{minutes.min():.1f} to {minutes.max():.1f}"
        body.append((f"{task}, `{final[0]['preset']}`", each, published, times))
    head = ("task, preset", "return of three seeds", "published", "minutes")
    note = "Published: PPO at 1 M steps in FlashSAC's paper (arXiv:2604.04539), mean of five seeds."
    return f"{grid(head, body)}\n\n{source('ppo_curves', used, note)}"


def _by_size(
    table: Sequence[Row], names: Mapping[str, str], column: str, spelt: Callable[[float], str]
) -> str:
    """Of each size a line, of each variant a column."""
    body = []
    for size in SIZES:
        own = [row for row in table if row["obs"] == size.split("x")[0]]
        body.append((size, *(spelt(_of(own, name, column)) for name in names)))
    return grid(("observation x action", *names.values()), body)


def ppo_speed() -> str:
    """Samples a second of PPO's iteration, beside others."""
    names = ("supple compiled float32", "supple eager float32", "Stable-Baselines3", "rsl_rl")
    table = rows("bench_ppo", commit="0a27c8d")
    shown = _by_size(table, {n: n for n in names}, "samples per second", "{:,.0f}".format)
    note = "64 environments that cost nothing, rollouts of 32, 5 passes of 4 minibatches."
    return f"{shown}\n\n{source('bench_ppo', table, note)}"


def replay() -> str:
    """Millions of sampled transitions a second, beside others."""
    names = {
        "supple compiled float32": "supple float32",
        "supple compiled bfloat16": "supple, bfloat16 storage",
        "torchrl TensorDict, multi-step": "torchrl, multi-step",
        "Stable-Baselines3 n-step": "Stable-Baselines3, n-step",
        "index_select float32": "bare `index_select`",
    }
    table = rows("bench_replay", commit="019928e")
    shown = _by_size(table, names, "per second", lambda rate: f"{rate / 1e6:.2f} M")
    return f"{shown}\n\n{source('bench_replay', table, 'Three-step windows, batch 2048.')}"


def envs() -> str:
    """How many times as fast as others complete steps of ``mujoco/`` are."""
    table, body = rows("bench_envs", commit=ENVS), []
    for other in ("SyncVectorEnv", "envpool"):
        own = [row for row in table if row["variant"] == other]
        body.append((f"over {other}", *(row["ours over it"] for row in own)))
    head = ("", *(f"{row['task']}, {row['num envs']}" for row in own))
    return f"{grid(head, body)}\n\n{source('bench_envs', table)}"


def overhead() -> str:
    """What diagnostics while training cost, by two clocks."""
    table = rows("diagnostics_overhead")
    table = [row for row in table if row["commit"] == table[-1]["commit"]]
    on, off = ([row for row in table if row["diagnostics"] == kind] for kind in ("on", "off"))
    seconds = (f"{np.median(numbers('processor seconds', own)):.1f}" for own in (on, off))
    shares = (100 * float(np.median(numbers(name, on))) for name in ("slowdown", "accounted"))
    body = [(*seconds, *(f"{share:.1f} %" for share in shares))]
    head = ("processor seconds with", "without", "slowdown", "by their own clock")
    (steps,) = {row["env steps"] for row in table}
    low, *_, high = np.sort(numbers("processor seconds", off))
    note = (
        f"Medians of {len(on)} runs each, in turn: {table[0]['task']}, {steps} steps. Without them"
        f" it was {low:.1f} to {high:.1f} s."
    )
    return f"{grid(head, body)}\n\n{source('diagnostics_overhead', table, note)}"


def process_speed() -> str:
    """What a gradient step of several processes costs; of each kind of run the newest row."""
    newest = {(row["agent"], row["processes"]): row for row in rows("process_speed")}
    columns = {
        "agent": "agent",
        "processes": "processes",
        "joined minibatch": "joined minibatch",
        "cpu ms/gradient step": "CPU ms per gradient step",
        "env steps/s, a core each": "env steps/s, a core each",
        "rows/s, a core each": "rows/s, a core each",
        "wall env steps/s": "env steps/s by the clock there",
    }
    table = [*newest.values()]
    body = [[row[column] for column in columns] for row in table]
    note = f"Load while measuring: {_said(table, 'load')}. One measurement each: no interval."
    return f"{grid([*columns.values()], body)}\n\n{source('process_speed', table, note)}"


def process_curves() -> str:
    """Returns after equal data, by number of processes and seed."""
    table, body = rows("process_curves"), []
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in table:
        joined = ", with two's environments and minibatch" if JOINED in row["command"] else ""
        kinds[f"{row['processes']}{joined}"].append(row)
    for kind, own in kinds.items():
        ends = {seed: float(run[-1]["return mean"]) for seed, run in by("seed", own).items()}
        values = [ends[seed] for seed in sorted(ends)]
        body.append((kind, *(f"{value:.0f}" for value in values), spread(np.array(values))))
    head = ("processes", *(f"seed {seed}" for seed in sorted(ends)), "mean ± 95 % interval")
    note = "Ten deterministic episodes after 20,000 environment steps of all processes."
    return f"{grid(head, body)}\n\n{source('process_curves', table, note)}"


def trust() -> str:
    """Kills that were resumed, and what became of damaged and hostile files."""
    table = rows("trust")
    kills = [row for row in table if "kill" in row["test"]]
    files = [row for row in table if row not in kills]
    body = [
        (f"kill -9 of {row['test'].split('[')[1][:-1]}", row["attempts"], row["came to"])
        for row in kills
    ]
    ends: Counter[str] = Counter()
    for row in files:
        for part in row["came to"].split(", "):
            count, _, end = part.partition(" ")
            ends[end] += int(count)
    attempts = sum(int(row["attempts"]) for row in files)
    said = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    body.append((f"damaged or hostile files of {len(files)} kinds", f"{attempts}", said))
    most = max(int(row["peak MiB"]) for row in files)
    note = (
        "A run is killed again and again until it ends. Refused: in one line, nothing of it used."
        " At fault: `supple verify` named the damage. Loaded: another valid file. Passed: bytes of"
        f" an archive that say nothing. The process held at most {most} MiB, torch included."
    )
    return f"{grid(('what', 'attempts', 'came to'), body)}\n\n{source('trust', table, note)}"


def soak() -> str:
    """What memory and open files do in an hour of training."""
    table = rows("soak")[-1:]
    (row,) = table
    body = [
        (name, row[column], f"{row[f'{column} an hour']} ± {row[f'± {column} an hour']}")
        for name, column in (("resident memory [MiB]", "MiB"), ("open files", "files"))
    ]
    note = f"{row['minutes']} minutes, {row['env steps']} environment steps; ± one standard error."
    return f"{grid(('', 'median', 'rise an hour'), body)}\n\n{source('soak', table, note)}"


def update() -> str:
    """Milliseconds per gradient step of FlashSAC, beside the official code."""
    names = {
        "official eager float32": "official",
        "official eager bfloat16": "official, oneDNN's bf16 switch",
        "supple compiled float32": "supple float32",
        "supple compiled bfloat16": "supple bfloat16",
    }
    table = rows("bench_update", commit="fd77e83")
    body = []
    for batch in ("512", "2048"):
        for size in SIZES:
            obs, act = size.split("x")
            own = {
                row["variant"]: f"{float(row['p50 ms']):.0f}"
                for row in table
                if (row["obs"], row["act"], row["batch"]) == (obs, act, batch)
            }
            body.append((f"{size}, {batch}", *(own[name] for name in names)))
    head = ("observation x action, batch", *(names[name] for name in names))
    return f"{grid(head, body)}\n\n{source('bench_update', table)}"


def plasticity() -> str:
    """Which critics lost the ability to learn, by updates per step."""
    critics, _ = utd_plasticity.summary()
    table = rows("utd_plasticity", network="critic")
    body = [list(line.values()) for line in critics]
    return f"{grid(list(critics[0]), body)}\n\n{source('utd_plasticity', table)}"


def plasticity_returns() -> str:
    """What each critic's runs earned at the end, by updates per step."""
    last = {"steps of fitting": utd_plasticity.WHOLE}
    table = rows("utd_plasticity", network="critic", targets="smooth", **last)
    body, utds = [], list(by("utd", table))
    for critic, own in sorted(by("critic", table).items()):
        earned = [
            [f"{float(row['return']):.0f}" for row in runs] for runs in by("utd", own).values()
        ]
        body.append((critic, *(", ".join(each) for each in earned)))
    return grid(("return, each seed", *(f"UTD {utd}" for utd in utds)), body)


def plasticity_online() -> str:
    """How the cheap metrics of training followed it."""
    _, ranks = utd_plasticity.summary()
    return grid(list(ranks[0]), [list(line.values()) for line in ranks])


def gpu_kernels() -> str:
    """Microseconds of the flow kernels on a GPU, of each size the shipped tile and the fastest."""
    table, body = rows("gpu/kernel_tiles"), []
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in table:
        card = row["machine"].split(";")[0].split()[1]
        groups[row["size"], row["products"], row["kernel"], card].append(row)
    for key, own in groups.items():
        own.sort(key=lambda row: float(row["p50 us"]))
        shipped = next((row["p50 us"] for row in own if row["shipped"]), "")
        one_by_one = next((row["p50 us"] for row in own if row["split"] == "ieee"), "")
        tried = f"{own[0]['p50 us']} ({own[0]['rows']} x {own[0]['inner']})"
        if own[0]["rows"]:
            body.append((*key, shipped, tried, one_by_one))
    head = ("size", "products", "kernel", "GPU", "shipped, us", "fastest tried", "without tf32x3")
    return f"{grid(head, body)}\n\n{source('gpu/kernel_tiles', table)}"


def latency() -> str:
    """One step of an exported policy, by runtime."""
    table = rows("deploy_latency", commit="6a378e3")
    body = [(row["runtime"], row["p50 us"], row["p95 us"], row["p99 us"]) for row in table]
    head = ("runtime", "median, us", "95 %", "99 %")
    return f"{grid(head, body)}\n\n{source('deploy_latency', table, table[0]['policy'] + '.')}"


def parity() -> str:
    """How far exported policies are from torch."""
    table = rows("deploy_parity", commit="ee8b1d5")
    columns = ("task", "agent", "checks", "verdict", "worst golden C", "worst of 10000 random")
    body = [[row[column] for column in columns] for row in table]
    return f"{grid(columns, body)}\n\n{source('deploy_parity', table)}"


def simulators() -> str:
    """Simulators that were proved."""
    table = rows("simulators")
    columns = ("task", "conformance", "random_return", "flashsac_return", "ppo_return")
    body = [[row[column] for column in columns] for row in table]
    note = "Flags and intervals are in the rows."
    return f"{grid(columns, body)}\n\n{source('simulators', table, note)}"


def go1() -> str:
    """How well a policy walks as it is told, beside a robot that stands still."""
    table = rows("go1_tracking")
    (row,) = table
    body = [
        (
            f"error of the {what}, RMS [{unit}]",
            row[f"{what} error [{unit}]"],
            row[f"standing still [{unit}]"],
        )
        for what, unit in (("velocity", "m/s"), ("yaw rate", "rad/s"))
    ]
    share = f"{float(row['fell']):.0%}"
    note = f"Over {row['episodes']} episodes, until each one's end; {share} fell."
    head = ("", "the policy", "a robot that stands")
    return f"{grid(head, body)}\n\n{source('go1_tracking', table, note)}"


def equality() -> str:
    """How far the batched MuJoCo tasks are from Gymnasium's."""
    table = rows("mujoco_equality")
    head = ("task", "largest difference", "ends", "where one of the two ended")
    columns = ("task", "worst difference", "ends", "other ends")
    body = [[row[column] for column in columns] for row in table]
    note = (
        f"{int(table[0]['states']):,} states each; differences relative to 1 + the number's size."
    )
    return f"{grid(head, body)}\n\n{source('mujoco_equality', table, note)}"


def adapters() -> str:
    """What an adapter adds to a step of the cheapest simulator of its kind."""
    table = rows("adapter_overhead")
    body = [
        (
            f"`{row['adapter']}`",
            f"{float(row['added ms']):.2f}",
            f"{100 * float(row['share of the step']):.1f} %",
        )
        for row in table
    ]
    head = ("adapter", "adds, ms", "of a step")
    note = f"64 environments, a step of {table[0]['step ms']} ms: Isaac Lab's direct cartpole."
    return f"{grid(head, body)}\n\n{source('adapter_overhead', table, note)}"


def rules() -> str:
    """What each rule of the diagnostics says, from its docstring."""
    said = [(rule.__doc__ or "").split("\n")[0].split(": ", 1) for rule in RULES]
    body = sorted(said, key=lambda line: int(line[0].removeprefix("V")))
    return grid(("rule", "what it says"), body)


TABLES: Mapping[str, Callable[[], str]] = {
    "front": front,
    "critics": critics,
    "reproduction": reproduction,
    "learning_parity": learning_parity,
    "improvements": improvements,
    "policy_evaluation": policy_evaluation,
    "wall_clock": wall_clock,
    "ppo": ppo,
    "ppo_speed": ppo_speed,
    "replay": replay,
    "envs": envs,
    "trust": trust,
    "soak": soak,
    "overhead": overhead,
    "process_speed": process_speed,
    "process_curves": process_curves,
    "update": update,
    "plasticity": plasticity,
    "plasticity_returns": plasticity_returns,
    "plasticity_online": plasticity_online,
    "gpu_kernels": gpu_kernels,
    "latency": latency,
    "parity": parity,
    "simulators": simulators,
    "go1": go1,
    "equality": equality,
    "adapters": adapters,
    "rules": rules,
}


def example(name: str) -> str:
    """The code of a file, and where it lies."""
    path = f"docs/examples/{name}.py"
    return f"`{path}`:\n\n```python\n{(ROOT / path).read_text().rstrip()}\n```"


def filled(page: str) -> str:
    """A page with every table and example made anew."""

    def made(found: re.Match[str]) -> str:
        kind, name = found.groups()
        content = TABLES[name]() if kind == "table" else example(name)
        return f"<!-- {kind}: {name} -->\n{content}\n<!-- end -->"

    return PLACE.sub(made, page)


def pages() -> list[Path]:
    """Those with a table or an example."""
    every = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in every if PLACE.search(page.read_text())]


def main() -> None:
    """Fill all pages."""
    for page in pages():
        replace_file(page, filled(page.read_text()).encode())
        print(page)


if __name__ == "__main__":
    main()
