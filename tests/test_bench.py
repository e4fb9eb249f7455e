import csv
from collections.abc import Callable
from functools import partial

import pytest
import torch

from supple.agents import FlashSACSettings
from supple.bench.table import Shape, interleaved
from supple.bench.update import matrix_products
from supple.cli import BAD_INPUT, DONE, main


def test_every_variant_is_timed_in_every_round_in_turn():
    order: list[str] = []
    variants: dict[str, Callable[[], object]] = {
        name: partial(order.append, name) for name in "abc"
    }
    seconds = interleaved(variants, 4, warm_up=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(found) for name, found in seconds.items()} == dict.fromkeys("abc", 4)


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
    from supple.region import Compute

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


def test_replay_is_timed_and_written_down(tmp_path, capsys):
    arguments = ["bench", "replay", "--sizes", "3x1", "--batch-sizes", "8", "--rounds", "1"]
    threads = torch.get_num_threads()
    try:
        assert main([*arguments, "--out", str(tmp_path), "--modes", "eager"]) == DONE
    finally:
        torch.set_num_threads(threads)
    rows = list(csv.DictReader((tmp_path / "bench_replay.csv").open()))
    assert [row["variant"] for row in rows] == [
        "supple eager float32",
        "supple eager bfloat16",
        "index_select float32",
    ]
    assert all(float(row["p50 ms"]) > 0 for row in rows)
    assert "supple eager float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["update", "--sizes", "17"], "--sizes must look like 376x17, got 17"),
        (["update", "--rounds", "0"], "--rounds must be >= 1, got 0"),
        (["update", "--reference", "/nonexistent"], "no flash_rl folder in it"),
        (["kernels"], "invalid choice: 'kernels'"),
    ],
)
def test_bad_input_is_one_line(arguments, text, capsys):
    assert main(["bench", *arguments]) == BAD_INPUT
    assert text in capsys.readouterr().err
