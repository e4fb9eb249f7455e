"""The kernels' benchmarks at sizes that the CPU, and Triton's interpreter, take in seconds."""

import sys
from types import SimpleNamespace

import pytest
import torch
import triton

from benchmarks import kernel_tiles
from supple.bench import kernels
from supple.bench.kernels import Size
from supple.bench.table import read
from supple.cli import DONE, main
from supple.kernels.critic_integration.gpu import Tile

CPU = torch.device("cpu")
SMALL = Size(2, 6, 2, 2, 16, 2)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr("supple.bench.kernels.FIT_STEPS", 5)


def test_every_way_to_integrate_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr("supple.bench.FLOWS", (SMALL,))
    monkeypatch.setattr("supple.bench.kernels.has_bfloat16", lambda device: True)
    given = ["--rounds", "1", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["bench", "kernels", *given]) == DONE
    rows = {row["variant"]: row for row in read(tmp_path / "bench_kernels.csv")}
    kinds = ("compiled definition", "supple", "supple exact", "products alone")
    expected = {f"{kind} {dtype}" for kind in kinds for dtype in ("float32", "bfloat16")}
    assert rows.keys() == expected | {"eager loop float32"}
    assert float(rows["supple exact float32"]["max error"]) < 1e-6
    assert float(rows["eager loop float32"]["x eager loop"]) == 1


def test_values_encoded_exactly_are_held_to_more_than_those_of_a_table():
    critic, x_BD, start_BM = kernels.fitted(SMALL, CPU)
    right = kernels.straightforward(critic, x_BD, start_BM, SMALL.K)
    extent = critic.range.value_high - critic.range.value_low

    def check(name, error):
        variant = {name: lambda: right() + error * extent}
        return kernels.check(variant, critic, x_BD, start_BM, SMALL.K)

    with torch.no_grad():
        check("supple exact float32", 0)
        check("supple float32", 1e-5)
        with pytest.raises(RuntimeError, match=r"supple exact float32: errors \(1.0\d*e-05"):
            check("supple exact float32", 1e-5)


def test_the_kernels_that_are_timed_are_right(interpreted):
    timed = kernel_tiles.calls(SMALL, torch.float32, CPU)
    beside = kernel_tiles.references(SMALL, torch.float32, CPU)
    assert set(timed) == {"forward", "backward", "forward, exact", "backward, exact"}
    there, _ = timed["forward, exact"].run()
    torch.testing.assert_close(there, beside["compiled definition"]())
    at_start, at_condition = timed["backward, exact"].run()
    summed = at_start.sum(0, keepdim=True), at_condition.sum(2)
    expected = beside["compiled definition, forward and backward"]()
    torch.testing.assert_close(summed, expected, rtol=1e-4, atol=1e-6)
    rough, _ = timed["forward"].run()
    torch.testing.assert_close(rough, there, rtol=1e-3, atol=1e-3)
    assert not torch.equal(rough, there)


def test_the_exact_kernels_are_timed_with_the_tile_they_ship_with(interpreted, monkeypatch):
    monkeypatch.setattr(triton.testing, "do_bench", lambda run, **_: 1.0)
    monkeypatch.setattr(
        kernel_tiles, "capture", lambda run: SimpleNamespace(replay=run, outputs=run())
    )
    other = Tile(rows=64, inner=16, warps=4, stages=2)
    monkeypatch.setattr(kernel_tiles, "candidates", lambda width: [other])
    found = kernel_tiles.calls(SMALL, torch.float32, CPU)
    monkeypatch.setattr(kernel_tiles, "calls", lambda size, products: found)
    rows = list(kernel_tiles.measured(SMALL, torch.float32))
    timed = [(row["kernel"], row["split"], row["shipped"]) for row in rows]
    assert timed == [
        *(("forward", "tf32x3", shipped) for shipped in ("yes", "")),
        *(("backward", "tf32x3", shipped) for shipped in ("yes", "")),
        ("forward, exact", "ieee", "yes"),
        ("backward, exact", "ieee", "yes"),
    ]
    assert {row["p50 us"] for row in rows} == {"1000.0"}


def test_tiles_are_timed_on_a_gpu_alone(interpreted, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit, match="torch sees none here"):
        kernel_tiles.main()
