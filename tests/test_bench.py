import csv
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import deploy
from supple.agents import FlashSACSettings, PPOSettings
from supple.agents.flashsac_settings import CRITICS
from supple.bench import folder_of_rows, reference
from supple.bench.compute import flops_per_update
from supple.bench.loop import INSIDE, Stopwatch
from supple.bench.loop import rows as loop_rows
from supple.bench.peers import update_peers
from supple.bench.table import Shape, add, append, interleaved, read
from supple.bench.update import counted_flops, matrix_products
from supple.cli import BAD_INPUT, DONE, RESUMABLE, main
from supple.configs import default_settings
from supple.errors import InputError
from supple.region import Compute
from tests.small_runs import flags, stop_at_once


def test_the_official_code_runs_eager_and_on_gpus_compiled_as_asked(monkeypatch):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(reference, "load_official", lambda checkout: None)
    monkeypatch.setattr(reference, "_updates", lambda code, shape, **changed: changed)
    gpu = Shape(3, 2, 8, torch.device("cuda"))
    for mode in ("auto", "reduce-overhead", "off"):
        asked |= reference.reference_updates(Path(), gpu, compiled=mode)
    assert list(asked) == [
        "official eager float32",
        "official as shipped float16",
        "official reduce-overhead float16",
    ]
    assert asked["official eager float32"] == {}
    shipped = {"use_compile": True, "compile_mode": "auto", "use_amp": True}
    assert asked["official as shipped float16"] == shipped
    assert asked["official reduce-overhead float16"]["compile_mode"] == "reduce-overhead"
    on_cpu = reference.reference_updates(Path(), Shape(3, 2, 8))
    assert set(on_cpu) <= {"official eager float32", "official eager bfloat16"}


def test_a_variant_that_falls_back_to_eager_is_no_row(tmp_path, capsys, monkeypatch):
    def broken(function, inputs):
        raise RuntimeError("no luck")

    monkeypatch.setattr("supple.region.compile_graph", broken)
    flags = "replay --sizes 3x1 --batch-sizes 1 --rounds 1 --threads 1 --modes compiled"
    assert main(["bench", *flags.split(), "--out", str(tmp_path)]) == BAD_INPUT
    assert "supple compiled float32: compilation failed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_what_needs_one_says_so_and_the_rest_is_eager(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("supple.bench.has_compiler", lambda device: False)
    out = ["--out", str(tmp_path), "--rounds", "1", "--threads", "1"]
    for what in ("kernels", "profile"):
        assert main(["bench", what, *out]) == BAD_INPUT
        assert "finds no compiler: install g++" in capsys.readouterr().err
    assert main(["bench", "replay", "--sizes", "3x1", "--batch-sizes", "1", *out]) == DONE
    assert "compiled" not in (tmp_path / "bench_replay.csv").read_text()


def test_every_variant_is_timed_in_every_round_in_turn():
    order: list[str] = []
    variants: dict[str, Callable[[], object]] = {
        name: partial(order.append, name) for name in "abc"
    }
    seconds = interleaved(variants, 4, warm_up=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(found) for name, found in seconds.items()} == dict.fromkeys("abc", 4)


@pytest.mark.sim("envpool")
def test_simulators_step_beside_each_other(monkeypatch, tmp_path):
    monkeypatch.setattr("supple.bench.envs.TASKS", ("Hopper",))
    monkeypatch.setattr("supple.bench.envs.SIZES", (4,))
    monkeypatch.setattr("supple.bench.envs.STEPS", 40)
    given = ["envs", "--peers", "--rounds", "2", "--threads", "1", "--out", str(tmp_path)]
    assert main(["bench", *given]) == DONE
    with (tmp_path / "bench_envs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["supple mujoco", "supple gym", "SyncVectorEnv", "envpool"]
    assert [row["variant"] for row in rows] == names
    assert float(rows[0]["ours over it"]) == 1
    assert all(float(row["steps per second"]) > 0 for row in rows)


def test_counted_products_are_those_of_an_update():
    """The published default at batch 512 is about 21 GFLOP per update."""
    products = matrix_products(FlashSACSettings(), Shape(17, 6, 512))
    flops = sum(2 * e * m * k * n for e, m, k, n in products)
    assert flops / 2 == pytest.approx(20.5e9, rel=0.03)


def test_products_are_those_the_update_calls():
    """Counted by hand against the operators that two real updates run."""
    from torch.utils.flop_counter import FlopCounterMode

    from supple.agents import FlashSAC
    from supple.bench.table import filled_ring

    shape = Shape(17, 6, 32)
    settings = FlashSACSettings(batch_size=32, min_replay=1, actor_hidden=16, critic_hidden=24)
    agent = FlashSAC(shape.spec(), settings, total_env_steps=1000)
    replay = filled_ring(shape.spec(), Compute())
    with FlopCounterMode(display=False) as counter:
        agent.update(replay)
        agent.update(replay)
    counted = sum(2 * e * m * k * n for e, m, k, n in matrix_products(settings, shape))
    # Differentiating by the action alone still computes the gradient of every input column.
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.fixture
def bench(tmp_path):
    threads = torch.get_num_threads()

    def run(what, *arguments):
        own = ["--out", str(tmp_path), "--threads", "1", "--device", "cpu"]
        assert main(["bench", what, *own, *arguments]) == DONE
        return list(csv.DictReader((tmp_path / f"bench_{what}.csv").open()))

    yield run
    torch.set_num_threads(threads)


SMALL = ["--sizes", "3x1", "--batch-sizes", "8", "--rounds", "1", "--modes", "eager", "--peers"]


def test_updates_are_timed_beside_their_ceiling_and_peers(bench):
    rows = {row["variant"]: row for row in bench("update", *SMALL)}
    assert float(rows["matrix products float32"]["of ceiling"]) == 1
    assert float(rows["supple eager float32"]["of ceiling"]) > 0
    plain = rows["CleanRL-style SAC float32"]
    assert plain["x official float32"] == ""  # other work per update


def test_work_of_a_peer_is_counted():
    obs, act, batch, hidden = 5, 2, 8, 256
    actor = obs * hidden + hidden**2 + hidden * 2 * act
    critic = (obs + act) * hidden + hidden**2 + hidden
    targets = actor + 2 * critic
    regression = 2 * (critic + critic + critic - (obs + act) * hidden)
    # Single-file implementations differentiate the critics' weights here too, and drop that.
    policy = actor + 2 * (critic + critic + critic) + actor + actor - obs * hidden
    step = update_peers(Shape(obs, act, batch))["CleanRL-style SAC float32"]
    assert counted_flops(step) == 2 * batch * (targets + regression + policy)


def test_the_profile_names_what_takes_the_time(bench, monkeypatch):
    factor = torch.randn(300, 300)
    monkeypatch.setattr(
        "supple.bench.profile.our_updates", lambda *_: lambda: (factor @ factor).tanh()
    )
    rows = bench("profile", "--sizes", "3x1", "--batch-sizes", "8")
    share = {row["kernel"]: float(row["share"]) for row in rows}
    assert sum(share.values()) == pytest.approx(1, abs=0.01)
    assert share["matrix products"] > 0.1
    assert share["aten::tanh"] > 0.001


def test_every_critic_is_timed_with_its_arithmetic(bench):
    rows = {row["variant"]: row for row in bench("critics", "--sizes", "3x1", "--modes", "eager")}
    assert set(rows) == set(CRITICS)
    flops = {name: float(row["MFLOP"]) for name, row in rows.items()}
    assert flops["scalar"] < flops["categorical"] < flops["flow"] < flops["flow_official"]
    assert rows["categorical"]["x categorical's time"] == "1.00"


def test_iterations_of_ppo_are_timed_beside_others(bench, monkeypatch):
    monkeypatch.setattr("supple.bench.ppo.SIZES", {"cpu": (4, 8)})
    given = ["--sizes", "3x1", "--rounds", "1", "--modes", "eager", "--peers"]
    rows = {row["variant"]: row for row in bench("ppo", *given)}
    peers = {"Stable-Baselines3": "stable_baselines3", "rsl_rl": "rsl_rl"}
    there = {name for name, module in peers.items() if find_spec(module)}
    assert rows.keys() == {"supple eager float32"} | there
    ours = rows["supple eager float32"]
    seconds = float(ours["p50 ms"]) / 1e3
    assert float(ours["samples per second"]) == pytest.approx(4 * 8 / seconds, rel=0.05)


def test_the_loop_is_timed_part_by_part(bench):
    rows = bench("loop", "--task", "toy/lqr", "--", *flags(), "--env-steps", "300")
    seconds = {row["part"]: float(row["seconds"]) for row in rows}
    calls = {row["part"]: int(row["calls"]) for row in rows}
    assert {row["updates"] for row in rows} == {"131"}
    assert calls["simulator step"] == calls["acting"] == calls["recording"] == 150
    assert calls["gradient step"] == 131
    assert calls["sampling"] == 2 * 131  # rows, and noise
    assert calls["metric rows"] == 150
    assert calls["evaluation"] == 9
    counted = seconds.pop("all but final evaluation and video and compiling")
    outside = seconds.pop("outside simulator and gradient steps")
    del seconds["final evaluation and video"], seconds["compiling"]
    assert sum(seconds.values()) == pytest.approx(counted, abs=0.1)
    assert outside == pytest.approx(counted - sum(seconds[name] for name in INSIDE), abs=0.1)


def test_of_a_stopped_loop_there_are_no_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("supple.bench.loop.train", stop_at_once)
    own = ["--task", "toy/lqr", "--out", str(tmp_path), "--threads", "1", "--device", "cpu"]
    assert main(["bench", "loop", *own, "--", *flags(), "--env-steps", "300"]) == RESUMABLE
    assert not (tmp_path / "bench_loop.csv").exists()


def test_a_part_does_not_count_the_parts_inside_it():
    watch = Stopwatch()
    with watch.part("outer"):
        time.sleep(0.02)
        with watch.part("inner"):
            time.sleep(0.05)
    assert 0.02 <= watch.seconds["outer"][0] < 0.045
    assert watch.seconds["inner"][0] >= 0.05


def test_a_long_step_compiled_something_and_a_long_diagnosis_took_that_long():
    usual = [0.01] * 200
    seconds = {"gradient step": [*usual, 5.0], "diagnostics": [*usual, 5.0]}
    found = {row["part"]: row["seconds"] for row in loop_rows(seconds, env_steps=1, updates=1)}
    assert (found["gradient step"], found["compiling"]) == ("2.01", "4.99")
    assert found["diagnostics"] == "7.00"


def test_what_happens_in_an_evaluation_is_the_evaluations_but_for_the_simulator():
    watch = Stopwatch()
    with watch.part("evaluation"), watch.part("acting"):
        time.sleep(0.02)
    with watch.part("evaluation"), watch.part("evaluation's simulator step"):
        time.sleep(0.02)
    assert "acting" not in watch.seconds
    assert watch.seconds["evaluation"][0] >= 0.02 > watch.seconds["evaluation"][1]


def test_replay_is_timed_and_written_down(bench, capsys):
    rows = bench("replay", *SMALL)
    assert [row["variant"] for row in rows] == [
        "supple eager float32",
        "supple eager bfloat16",
        "index_select float32",
        "copy of neighbouring rows float32",
        "CleanRL-style arrays, n = 1",
        "torchrl TensorDict, multi-step",
        *(["Stable-Baselines3 n-step"] if find_spec("stable_baselines3") else []),
    ]
    assert all(float(row["p50 ms"]) > 0 for row in rows)
    assert "supple eager float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["update", "--sizes", "17"], "--sizes must look like 376x17, got 17"),
        (["update", "--rounds", "0"], "--rounds must be >= 1, got 0"),
        (["update", "--reference", "/nonexistent"], "no flash_rl folder in it"),
        (["kernel"], "invalid choice: 'kernel'"),
        (
            ["update", "--", "--agent.critic", "flow"],
            "flags after -- are those of the loop's run, supple bench update takes none:"
            " leave out --agent.critic flow",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, text, capsys):
    assert main(["bench", *arguments]) == BAD_INPUT
    assert text in capsys.readouterr().err


def test_the_work_of_a_gradient_step_is_counted_for_any_run():
    spec = Shape(17, 6, 1).spec()
    settings = default_settings("toy/lqr", preset="laptop")
    assert isinstance(settings.agent, FlashSACSettings)
    products = matrix_products(settings.agent, Shape(17, 6, settings.agent.batch_size))
    expected = sum(2 * e * m * k * n for e, m, k, n in products) / 2  # of two steps
    assert flops_per_update(settings, spec) == pytest.approx(expected, rel=0.02)
    settings.agent.n_step = 80  # longer than the ring it is counted on had been
    assert flops_per_update(settings, spec) == pytest.approx(expected, rel=0.02)
    settings.agent.actor_period = 1
    every = flops_per_update(settings, spec)
    settings.agent.actor_period = 4
    seldom = flops_per_update(settings, spec)
    assert (every - seldom) / (every - expected) == pytest.approx(1.5, rel=0.05)


def test_the_work_of_a_gradient_step_of_ppo_grows_with_its_minibatch():
    spec = Shape(17, 6, 1).spec()
    settings = default_settings("toy/lqr", agent="ppo", preset="laptop")
    assert isinstance(settings.agent, PPOSettings)
    settings.agent.rollout_steps, settings.agent.minibatches, settings.agent.epochs = 16, 2, 1
    once = flops_per_update(settings, spec)
    settings.agent.rollout_steps = 32
    assert flops_per_update(settings, spec) == pytest.approx(2 * once, rel=0.1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--modes", "graphs"], "--modes graphs needs a CUDA device, got cpu"),
        (["--precisions", "tf32"], "--precisions tf32 is not for cpu, which has float32"),
    ],
)
def test_what_only_a_gpu_can_is_refused_without_one(given, said, capsys, tmp_path):
    asked = ["bench", "update", "--device", "cpu", "--out", str(tmp_path), *given]
    assert main(asked) == BAD_INPUT
    assert said in capsys.readouterr().err


def test_rows_go_to_the_committed_ones_only_from_within_the_checkout(tmp_path, monkeypatch):
    committed = tmp_path / "supple" / "benchmarks" / "results"
    committed.mkdir(parents=True)
    monkeypatch.setattr("supple.bench.CHECKOUT", tmp_path / "supple")
    monkeypatch.chdir(committed.parent)
    assert folder_of_rows() == committed
    monkeypatch.chdir(tmp_path)
    assert folder_of_rows() == Path("runs", "bench")
    sizes = ["--sizes", "3x1", "--batch-sizes", "8", "--rounds", "1", "--modes", "eager"]
    assert main(["bench", "replay", *sizes, "--device", "cpu", "--threads", "1"]) == DONE
    assert read(tmp_path / "runs" / "bench" / "bench_replay.csv")
    assert not list(committed.iterdir())


def test_rows_with_other_columns_are_not_mixed(tmp_path):
    append([{"variant": "a", "size": 1}], tmp_path / "rows.csv", "command")
    append([{"variant": "b", "size": 2}], tmp_path / "rows.csv", "command")
    with pytest.raises(InputError, match="has other columns than this table: expected variant, w"):
        append([{"variant": "c", "width": 3}], tmp_path / "rows.csv", "command")
    assert [row["size"] for row in read(tmp_path / "rows.csv")] == ["1", "2"]


def test_rows_say_of_their_origin_what_they_know(tmp_path):
    append([{"commit": "abc", "variant": "a"}], tmp_path / "rows.csv", "command")
    (row,) = read(tmp_path / "rows.csv")
    assert [*row][:3] == ["variant", "date", "threads"]
    assert [*row][-2:] == ["commit", "command"]
    assert row["commit"] == "abc"


def add_many(path, name):
    for number in range(25):
        add([{"who": name, "number": number}], path)


def test_no_row_is_lost_where_two_processes_write_one_file(tmp_path, one_thread):
    fork, path = multiprocessing.get_context("fork"), tmp_path / "rows.csv"
    writers = [fork.Process(target=add_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    for name in "ab":
        own = [int(row["number"]) for row in read(path) if row["who"] == name]
        assert own == list(range(25))


def test_what_a_file_has_is_not_added_again(tmp_path):
    path = tmp_path / "rows.csv"
    add([{"seed": seed, "step": step} for seed in (0, 1) for step in (10, 20)], path)
    add([{"seed": seed, "step": step} for seed in (1, 2) for step in (10, 20)], path, key=("seed",))
    found = [(row["seed"], row["step"]) for row in read(path)]
    assert found == [(seed, step) for seed in "012" for step in ("10", "20")]


@pytest.mark.parametrize("what", ["latency", "parity"])
def test_rows_of_bundles_go_on_the_committed_file(what, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    path = tmp_path / f"deploy_{what}.csv"
    shutil.copy(deploy.RESULTS / path.name, path)
    monkeypatch.setattr(sys, "argv", ["deploy.py", what])
    before = read(path)
    measured = list(before[0])[: list(before[0]).index("date")]
    deploy.write(path, iter([dict.fromkeys(measured, "new")]))
    *old, new = read(path)
    assert old == before
    assert new["machine"] and new["commit"] and "onnxruntime" in new["versions"]
    assert new["command"] == f"python benchmarks/deploy.py {what}"
