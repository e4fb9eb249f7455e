"""The queue of ``supple compare``: how it ends, and what its table says."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from supple import compare, launch, sweep
from supple.agents.ppo_settings import PPOSettings
from supple.cli import BAD_INPUT, DONE, FAILED, RESUMABLE, main, train_settings
from supple.compare import Job, plan, plan_tasks, run_queue, summarise
from supple.configs import default_settings
from supple.configs.base import flat, to_json
from supple.errors import InputError
from supple.files import claim
from tests.small_runs import small_settings


def jobs_in(folder, count):
    return [Job("a", seed, folder / "a" / f"seed{seed}", ()) for seed in range(count)]


def replace_runs(monkeypatch, *programs):
    """Children that run these Python programs, one a job, instead of training; returns them."""
    children = []

    def start(job, *, threads, gpu):
        program = programs[job.seed]
        if isinstance(program, Exception):
            raise program
        command = [sys.executable, "-S", "-c", program]
        children.append(subprocess.Popen(command, start_new_session=True))
        return children[-1]

    monkeypatch.setattr(compare, "start", start)
    return children


SLEEPS = "import time; time.sleep(60)"


def ends(job, code):
    """A run that ends so, with a result if it is done."""
    record = '{"return_mean": 1.0, "env_steps": 10, "seconds": 1.0}'
    folder = str(job.folder)
    write = f"os.makedirs({folder!r}); open({folder + '/result.json'!r}, 'w').write({record!r}); "
    return f"import os; {'' if code else write}os._exit({code})"


@pytest.mark.parametrize(
    ("codes", "status"),
    [((0, 0), DONE), ((2, 0), FAILED), ((1, 0), FAILED), ((1, 3), RESUMABLE), ((3, 1), RESUMABLE)],
)
def test_the_worst_run_decides_the_exit_status(tmp_path, monkeypatch, codes, status):
    jobs = jobs_in(tmp_path, 2)
    replace_runs(monkeypatch, *map(ends, jobs, codes))
    assert run_queue(jobs, 2) == status


def test_a_run_without_a_final_evaluation_has_failed_here(tmp_path, monkeypatch, capsys):
    """It trained to its end, but of its task the table could say nothing."""
    replace_runs(monkeypatch, "")
    (job,) = jobs_in(tmp_path, 1)
    assert run_queue([job], 1) == FAILED
    log = compare.log_file(job)
    assert f"no final evaluation: {job.name}: see {log}" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_killed_queue_takes_its_runs_with_it(tmp_path, monkeypatch, number):
    children = replace_runs(monkeypatch, SLEEPS, SLEEPS)
    before = signal.getsignal(number)
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
    assert run_queue(jobs_in(tmp_path, 2), 2) == RESUMABLE
    assert [child.poll() is None for child in children] == [False, False]
    assert signal.getsignal(number) == before


STUBBORN = """
import os, signal, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1) or (len(asked) > {most} and os._exit(3)))
open({ready!r}, "w").close()
time.sleep(60)
"""
"""A run that is saving: it stops when it is asked more often than this."""


@pytest.mark.parametrize("most", [1, 9])
def test_runs_that_are_slow_to_save_are_ended_when_asked_again(tmp_path, monkeypatch, most, capsys):
    ready = tmp_path / "ready"
    children = replace_runs(monkeypatch, STUBBORN.format(most=most, ready=str(ready)))

    def ask():
        while not ready.exists():
            time.sleep(0.01)
        for _ in range(3 if most > 1 else 2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

    asker = threading.Thread(target=ask)
    asker.start()
    assert run_queue(jobs_in(tmp_path, 1), 1) == RESUMABLE
    ended = children[0].poll()
    asker.join()
    assert ended == (3 if most == 1 else -signal.SIGKILL)
    assert "waiting for 1 runs to save; again to stop at once" in capsys.readouterr().out


def test_output_that_nobody_reads_ends_no_queue(tmp_path, monkeypatch):
    jobs = jobs_in(tmp_path, 2)
    replace_runs(monkeypatch, *map(ends, jobs, (0, 0)))

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    assert run_queue(jobs, 1) == DONE


@pytest.mark.parametrize(
    "text", ['{"return_mean', "[1]", "{}", '{"return_mean": NaN, "env_steps": 1, "seconds": 1}']
)
def test_a_damaged_result_is_named(tmp_path, text):
    folder = made(tmp_path / "a")
    (folder / "result.json").write_text(text)
    with pytest.raises(InputError, match=r"result.json is damaged: expected numbers .*; remove it"):
        compare.runs_in([folder])


def test_a_run_that_cannot_start_leaves_no_other_behind(tmp_path, monkeypatch):
    children = replace_runs(monkeypatch, SLEEPS, OSError("no more processes"))
    with pytest.raises(OSError, match="no more processes"):
        run_queue(jobs_in(tmp_path, 2), 2)
    assert children[0].poll() is not None


def finished(job, *, env_steps, return_mean):
    job.folder.mkdir(parents=True)
    record = {"env_steps": env_steps, "return_mean": return_mean, "seconds": 60}
    (job.folder / "result.json").write_text(json.dumps(record))
    (job.folder / "metrics.csv").write_text(f"step,eval/return_mean\n50,{return_mean}\n")


def test_runs_that_are_missing_are_counted(tmp_path):
    jobs = jobs_in(tmp_path, 3)
    finished(jobs[0], env_steps=100, return_mean=1.0)
    finished(jobs[2], env_steps=90, return_mean=2.0)
    (found,) = summarise(jobs)
    assert (found.planned, found.returns.tolist(), found.env_steps) == (3, [1.0, 2.0], [100, 90])
    assert [curve.returns.tolist() for curve in found.curves] == [[1.0], [2.0]]
    assert found.mflop is None  # no checkpoint says what they trained on


def test_several_tasks_have_a_folder_each_and_take_turns_by_seed(tmp_path):
    jobs = plan_tasks(["toy/lqr", "toy/counter"], [3, 1], ["a:", "b:"], [], tmp_path)
    assert [job.seed for job in jobs] == [3, 3, 3, 3, 1, 1, 1, 1]
    assert jobs[0].folder == tmp_path / "toy-lqr" / "a" / "seed3"
    assert jobs[0].name == "toy/lqr, a, seed 3"
    with pytest.raises(InputError, match="tasks must differ, got toy/lqr toy/lqr"):
        plan_tasks(["toy/lqr", "toy/lqr"], [0], [], [], tmp_path)


def test_a_folder_that_another_compare_uses_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "run_queue", lambda jobs, at_once, gpus: DONE)
    with claim(tmp_path):
        assert main(["compare", "toy/lqr", "--out", str(tmp_path), "--seeds", "0"]) == BAD_INPUT
    assert "in use by another supple process" in capsys.readouterr().err


def test_a_run_that_is_still_going_is_refused_before_any_starts(tmp_path):
    folder = tmp_path / "default" / "seed0"
    folder.mkdir(parents=True)
    text = launch.as_text(small_settings("toy/lqr", folder, env_steps=100))
    (folder / "settings.json").write_text(text)
    with claim(folder), pytest.raises(InputError, match="in use by another supple process"):
        plan("toy/lqr", [0], [], [], tmp_path)


def test_the_first_setting_that_differs_is_named(tmp_path):
    folder = tmp_path / "default" / "seed0"
    folder.mkdir(parents=True)
    settings = default_settings("toy/lqr", preset="laptop")
    settings.threads, settings.run_dir, settings.agent.gamma = 7, "elsewhere", 0.5
    (folder / "settings.json").write_text(launch.as_text(settings))
    laptop = ["--preset", "laptop"]
    plan("toy/lqr", [0], [], [*laptop, "--agent.gamma", "0.5"], tmp_path)
    with pytest.raises(InputError, match=r"other settings \(agent.gamma: 0.5, now 0.99\)"):
        plan("toy/lqr", [0], [], laptop, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "flags"),
    [
        ("agent.gamma", 0.5, "--agent.gamma 0.5"),
        ("agent_name", "flashsac", "--agent flashsac"),
        ("eval.video", False, "--eval.no-video"),
        ("overlap", True, "--overlap"),
        ("env.config", ("a=1", "b=x y"), "--env.config a=1 'b=x y'"),
        ("env.config", (), ""),
        ("log.wandb", "", "--log.wandb ''"),
        ("task", "toy/lqr", ""),
    ],
)
def test_a_setting_is_told_as_the_flag_that_gives_it(name, value, flags):
    assert compare._as_flags(name, value) == flags
    if flags and name != "agent_name":
        changed = train_settings(["toy/lqr", *shlex.split(flags)])
        assert flat(changed)[name] == value


@pytest.mark.parametrize("name", ["compare.csv", "compare.png", "lr_sweep.json"])
def test_a_variant_takes_no_name_of_a_file_beside_it(tmp_path, name):
    with pytest.raises(InputError, match=r"none of compare.csv, .*, got"):
        plan("toy/lqr", [0], [f"{name}:"], [], tmp_path)


# --- GPUs --------------------------------------------------------------------------------------


def environments(monkeypatch, tmp_path, *flags, seeds=3, count=2, visible=None):
    """What ``CUDA_VISIBLE_DEVICES`` is in each run, and how many ran at once, on ``count`` GPUs."""
    popen = subprocess.Popen
    children, most = [], []

    def start(command, **options):
        children.append(popen([sys.executable, "-S", "-c", "import time; time.sleep(1)"]))
        most.append(sum(child.poll() is None for child in children))
        seen.append(options["env"].get("CUDA_VISIBLE_DEVICES"))
        groups.add(options["env"]["WANDB_RUN_GROUP"])
        return children[-1]

    seen: list[str | None] = []
    groups: set[str] = set()
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given = ["toy/lqr", "--out", str(tmp_path), "--seeds", *map(str, range(seeds))]
    cut = flags.index("--") if "--" in flags else len(flags)
    laptop = ["--", "--preset", "laptop", *flags[cut + 1 :]]
    assert main(["compare", *given, *flags[:cut], *laptop]) == FAILED  # they only sleep
    assert groups == {"toy/lqr, default"}
    return seen, max(most)


def test_each_run_has_a_gpu_to_itself(monkeypatch, tmp_path):
    assert environments(monkeypatch, tmp_path) == (["0", "1", "0"], 2)


def test_only_gpus_that_are_visible_are_given_out(monkeypatch, tmp_path):
    found, _ = environments(monkeypatch, tmp_path, visible="3, GPU-7f,-1")
    assert sorted(found[:2]) == ["3", "GPU-7f"] and found[2] in found[:2]


def test_more_runs_than_gpus_share_them_in_turn(monkeypatch, tmp_path):
    found = environments(monkeypatch, tmp_path, "--jobs", "4", seeds=4)
    assert found == (["0", "1", "0", "1"], 4)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_runs_that_name_their_device_are_given_no_gpu(monkeypatch, tmp_path, device):
    found, _ = environments(monkeypatch, tmp_path, "--", "--device", device, seeds=1)
    assert found == [None]


# --- learning-rate sweep ---------------------------------------------------------------------


def test_random_returns_need_no_more_environments_than_training_had():
    flags = "toy/lqr --agent ppo --preset laptop --agent.memory 4 --agent.actor-hidden 8"
    settings = train_settings([*flags.split(), "--agent.critic-hidden", "8"])
    assert isinstance(settings.agent, PPOSettings)
    assert settings.env.num_envs >= settings.agent.minibatches > sweep.EPISODES
    assert sweep.random_return(settings) < 0


def test_a_sweep_scales_the_whole_schedule_of_rates():
    settings = default_settings("gym/Pendulum-v1", preset="laptop")
    found = sweep.variants(settings, [], seeds=3)
    assert list(found.values()) == pytest.approx([1e-4, 3.162e-4, 1e-3, 3.162e-3, 1e-2], rel=1e-3)
    flags = "--agent.lr-peak 0.01 --agent.lr-init 0.01 --agent.lr-end 0.005"
    assert [*found][-1] == f"lr 0.01: {flags}"
    ppo = default_settings("gym/Pendulum-v1", agent="ppo", preset="laptop")
    assert next(iter(sweep.variants(ppo, [1, 2, 3, 50, 100], seeds=3))) == "lr 1: --agent.lr 1"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--lr-sweep", "1e-3", "1e-2"), "needs 5 rates over 2 decades"),
        (("--lr-sweep", "1", "2", "3", "4", "5"), "needs 5 rates over 2 decades"),
        (("--lr-sweep", "--seeds", "0", "1"), "needs 3 --seeds, got 2"),
        (("--lr-sweep", "--variant", "a: --agent.tau 0.1"), "leave out others"),
    ],
)
def test_a_sweep_that_says_nothing_is_refused(tmp_path, capsys, flags, complaint):
    assert main(["compare", "toy/lqr", "--out", str(tmp_path), *flags]) == BAD_INPUT
    assert complaint in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_sweep_counts_diverged_runs_as_no_learning(tmp_path, monkeypatch, capsys):
    """The example of the definition; the two highest rates fall below random actions."""
    returns = {1e-5: 10.0, 1e-4: 50.0, 1e-3: 100.0, 3e-3: 100.0, 1e-2: 80.0, 1e-1: -20.0}
    out = tmp_path / "sweep"

    def learned(jobs, at_once, gpus):
        for job in jobs:
            rate = float(job.variant.removeprefix("lr "))
            if rate in returns:  # all runs of the largest rate fail
                finished(job, env_steps=100, return_mean=returns[rate])
                text = launch.as_text(small_settings("toy/lqr", job.folder, env_steps=100))
                (job.folder / "settings.json").write_text(text)
        return FAILED

    monkeypatch.setattr(compare, "run_queue", learned)
    monkeypatch.setattr(sweep, "random_return", lambda settings: 0.0)
    rates = [*map(str, returns), "1"]
    assert main(["compare", "toy/lqr", "--out", str(out), "--lr-sweep", *rates]) == FAILED
    record = json.loads((out / "lr_sweep.json").read_text())
    assert record["lr_sens"] == pytest.approx(0.5143, abs=1e-4)
    assert record["returns"] == pytest.approx([10, 50, 100, 100, 80, -20, 0])
    said = capsys.readouterr().out
    assert "sensitivity 0.514 on the grid 1e-05, 0.0001" in said
    assert "3 runs failed and count as no learning" in said
    assert sweep.read(out / "lr 0.001" / "seed0") == record
    assert sweep.read(tmp_path) is None


def test_a_sweep_that_learned_nothing_keeps_the_status_of_its_runs(tmp_path, monkeypatch, capsys):
    def learned(jobs, at_once, gpus):
        for job in jobs:
            finished(job, env_steps=100, return_mean=-1.0)
            text = launch.as_text(small_settings("toy/lqr", job.folder, env_steps=100))
            (job.folder / "settings.json").write_text(text)
        return DONE

    monkeypatch.setattr(compare, "run_queue", learned)
    monkeypatch.setattr(sweep, "random_return", lambda settings: 0.0)
    out = tmp_path / "sweep"
    assert main(["compare", "toy/lqr", "--out", str(out), "--lr-sweep"]) == DONE
    assert "no learning rate learned anything" in capsys.readouterr().out


def test_random_actions_earn_what_a_task_gives_for_nothing(tmp_path):
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=100)
    assert sweep.random_return(settings) == sweep.random_return(settings) < 0


def made(folder, task="toy/lqr", *, returned=1.0, **changes):
    """The folder of a run that reached something."""
    settings = default_settings(task, agent=changes.pop("agent", "flashsac"), preset="laptop")
    settings.seed = changes.pop("seed", 0)
    for name, value in changes.items():
        setattr(settings.agent, name, value)
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(to_json(settings)))
    (folder / "metrics.csv").write_text(
        f"step,eval/return_mean,time/seconds\n10,0.0,1\n20,{returned},2\n"
    )
    result = {"return_mean": returned, "env_steps": 20, "seconds": 2.0}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_runs_that_are_there_are_grouped_by_what_tells_them_apart(tmp_path):
    folders = [
        made(tmp_path / "a", seed=0),
        made(tmp_path / "b", seed=1),
        made(tmp_path / "c", seed=0, critic="scalar", tau=0.5, gamma=0.5),
        made(tmp_path / "d", "toy/bandit", agent="ppo"),
        made(tmp_path / "e", "toy/bandit"),
        made(tmp_path / "f", "toy/counter"),
    ]
    found = [(job.task, job.variant, job.seed) for job in compare.runs_in([*folders, folders[0]])]
    assert found == [
        ("toy/lqr", "critic categorical", 0),
        ("toy/lqr", "critic categorical", 1),
        ("toy/lqr", "critic scalar", 0),
        ("toy/bandit", "ppo", 0),
        ("toy/bandit", "flashsac", 0),
        ("toy/counter", "flashsac", 0),
    ]


def test_a_repeated_run_is_not_another_seed(tmp_path):
    again = [made(tmp_path / name, seed=3) for name in "ab"]
    with pytest.raises(InputError, match=r"a and .*b are the same run .*seed 3.*give one of them"):
        compare.runs_in(again)


def test_a_variant_of_a_csv_has_a_name_of_its_own(tmp_path, capsys):
    table = tmp_path / "flashsac.csv"
    table.write_text("step,return\n10,1.0\n")
    own = ["compare", str(made(tmp_path / "a")), "--out", str(tmp_path / "out"), "--csv"]
    assert main([*own, str(table)]) == BAD_INPUT
    assert '"flashsac" is a variant of the CSV and of the runs' in capsys.readouterr().err
    assert main([*own, str(table.rename(tmp_path / "paper.csv"))]) == DONE


@pytest.mark.parametrize("names", [("p/curve.csv", "q/curve.csv"), ("curve.csv", "curve.csv")])
def test_two_files_that_bring_one_variant_are_refused(tmp_path, capsys, names):
    files = []
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("step,return\n10,1.0\n")
        files += ["--csv", str(tmp_path / name)]
    own = ["compare", str(made(tmp_path / "a")), "--out", str(tmp_path / "out"), *files]
    assert main(own) == BAD_INPUT
    assert 'brings "curve" once more: give files whose column variant' in capsys.readouterr().err


def test_folders_and_tasks_are_not_mixed(tmp_path, capsys):
    own = ["--out", str(tmp_path / "out")]
    assert main(["compare", str(made(tmp_path / "a")), "toy/lqr", *own]) == BAD_INPUT
    assert "expected tasks to train, or folders of runs" in capsys.readouterr().err


def test_runs_that_are_there_are_compared_without_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "start", None)
    given = [
        made(tmp_path / name, seed=seed, tau=tau, returned=value)
        for name, seed, tau, value in (("a", 0, 0.1, 3.0), ("b", 1, 0.1, 5.0), ("c", 0, 0.2, 9.0))
    ]
    (made(tmp_path / "d", seed=1, tau=0.2) / "result.json").unlink()
    given.append(tmp_path / "d")
    out = tmp_path / "out"
    assert main(["compare", *map(str, given), "--out", str(out)]) == DONE
    assert f"without a result, and left out: {tmp_path / 'd'}" in capsys.readouterr().err
    rows = (out / "compare.csv").read_text().splitlines()
    assert [row.split(",")[1:4] for row in rows[1:]] == [
        ["tau 0.1", "2 of 2", "4"],
        ["tau 0.2", "1 of 2", "9"],
    ]
    assert (out / "compare.png").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--", "--agent.tau", "0.1"], "runs that are there have their flags"),
        (["--variant", "a: --agent.tau 0.1"], "runs that are there have their flags"),
        (["--seeds", "7"], "runs that are there are not trained"),
        (["--jobs", "3"], "runs that are there are not trained"),
        ([], "no run has a result: supple resume"),
    ],
)
def test_of_runs_that_are_there_nothing_is_changed(tmp_path, capsys, flags, complaint):
    (made(tmp_path / "a") / "result.json").unlink()
    own = ["--out", str(tmp_path / "out")]
    assert main(["compare", str(tmp_path / "a"), *own, *flags]) == BAD_INPUT
    assert complaint in capsys.readouterr().err
    assert main(["compare", str(tmp_path), *own]) == BAD_INPUT
    assert f"{tmp_path} holds no run" in capsys.readouterr().err
