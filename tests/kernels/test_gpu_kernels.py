"""The Triton kernels: on the CPU through Triton's interpreter, on a GPU compiled."""

import collections
import contextlib
import itertools
import os
import subprocess
import sys

import pytest
import torch

from tests.kernels.fields import (
    BOUNDED,
    PUBLISHED,
    RANGE,
    SCALAR,
    distance,
    fused,
    in_single_precision,
    plain,
    problem,
)

pytest.importorskip("triton")
from supple.kernels.critic_integration import gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@torch.no_grad()
def by_kernel(form, field, start, condition, time, weight, *, points, products):
    launch = gpu.Launch.of(field, form, start[0].numel(), table_points=points, products=products)
    end, states = gpu.forward(launch, form, start, condition, time, save=True)
    unsaved, _ = gpu.forward(launch, form, start, condition, time, save=False)
    torch.testing.assert_close(unsaved, end, rtol=0, atol=0, equal_nan=True)
    for_start, for_condition = gpu.backward(launch, form, weight, states, condition, time)
    if condition.shape[2] == 1:
        for_condition = for_condition.sum(2, keepdim=True)
    return end, for_start.sum(0, keepdim=True), for_condition


def moved(problem, device):
    field, start, condition, *rest = problem
    leaves = [x.detach().to(device).requires_grad_() for x in (start, condition)]
    return field.map(lambda part: part.to(device)), *leaves, *(x.to(device) for x in rest)


def check(form, sizes, *, device, points, products=(torch.float32,)):
    given = moved(problem(form, **sizes), device)
    exact, single = plain(form, *given), in_single_precision(*given)
    for dtype in products:
        # What these products and this table come to where the kernel has no part.
        if dtype == torch.float32 and not points:
            usual, slack, rounding = plain(form, *single), 1e-6, torch.finfo(dtype).eps
        else:
            usual = fused(form, *single, table_points=points, products=dtype)
            rounding, slack = (1e-4, 1e-5) if dtype == torch.float32 else (5e-4, 1e-2)
        found = by_kernel(form, *single, points=points, products=dtype)
        error, others = ((ends[0] - exact[0]).abs().max() for ends in (found, usual))
        assert error <= 2 * others + rounding * RANGE
        share = 0.9 if dtype == torch.float32 else 0.5
        if device == CPU and dtype != torch.float32:  # few steps: limits by themselves hold, too
            assert error <= 2e-3 * RANGE
            assert distance(form, found[2], exact[2], share) <= 2e-2
        if device == CPU and dtype == torch.float32 and points:
            assert all(
                distance(form, *pair) <= 2e-3 for pair in zip(found[1:], exact[1:], strict=True)
            )
        if form.activation == "relu" and dtype != torch.float32 and sizes["rows"] < 10:
            continue  # one unit on the other side of its kink, and few rows to compare
        for each, same, true in zip(found[1:], usual[1:], exact[1:], strict=True):
            most = 2 * distance(form, same, true, share) + slack
            assert distance(form, each, true, share) <= most


SMALL = {"members": 2, "rows": 5, "samples": 3, "steps": 4, "width": 64, "depth": 2}
SIZES = [
    SMALL,
    SMALL | {"members": 1, "rows": 1, "samples": 1, "steps": 1},
    SMALL | {"members": 5, "rows": 63, "samples": 1, "steps": 1},
    SMALL | {"rows": 17, "samples": 8, "steps": 1, "depth": 4},
    SMALL | {"width": 48, "shared": False},
    SMALL | {"width": 256, "depth": 4, "rows": 9},
    SMALL | {"width": 512, "rows": 7, "steps": 2},
]


@pytest.mark.parametrize("form", [PUBLISHED, BOUNDED, SCALAR], ids=["published", "flow", "scalar"])
@pytest.mark.parametrize("points", [0, 257])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(map(str, sizes.values())))
def test_the_kernels_agree_with_the_definition(interpreted, form, points, sizes):
    if form is SCALAR and points:
        pytest.skip("the scalar encoding needs no table")
    if form is not SCALAR and not points and sizes["width"] > 64:
        pytest.skip("slow to interpret; without the table width makes no difference of its own")
    check(form, sizes, device=CPU, points=points)


@pytest.mark.parametrize("form", [PUBLISHED, BOUNDED], ids=["published", "flow"])
def test_half_precision_products_stay_within_their_rounding(interpreted, form):
    # The interpreter has no bfloat16; float16 takes the same path.
    check(form, SMALL, device=CPU, points=257, products=(torch.float16,))


def test_half_precision_would_be_noticed_in_single(interpreted, monkeypatch):
    """Negative control."""
    exactly = by_kernel

    def rounded(*given, points, products):
        return exactly(*given, points=points, products=torch.float16)

    monkeypatch.setattr(f"{__name__}.by_kernel", rounded)
    for points in (0, 257):
        with pytest.raises(AssertionError):
            check(PUBLISHED, SMALL, device=CPU, points=points)


def test_memory_that_held_anything_before_changes_nothing(interpreted):
    given = in_single_precision(*problem(BOUNDED, **SMALL))

    def run():
        return by_kernel(BOUNDED, *given, points=257, products=torch.float32)

    clean = run()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        poisoned = run()
    finally:
        torch.use_deterministic_algorithms(False)
    for left, right in zip(poisoned, clean, strict=True):
        assert torch.equal(left, right)


@pytest.mark.gpu
@pytest.mark.parametrize("form", [PUBLISHED, BOUNDED], ids=["published", "flow"])
@pytest.mark.parametrize("points", [0, 257])
@pytest.mark.parametrize(("width", "depth"), [(64, 2), (256, 2), (256, 4), (512, 2), (512, 4)])
def test_the_compiled_kernels_agree_with_the_definition(form, points, width, depth):
    for members, rows, (samples, steps) in itertools.product(
        (1, 2, 5), (1, 63, 257), ((1, 1), (3, 4), (8, 16), (1, 8))
    ):
        sizes = {"members": members, "rows": rows, "samples": samples}
        sizes |= {"steps": steps, "width": width, "depth": depth}
        check(form, sizes, device=CUDA, points=points, products=(torch.float32, torch.bfloat16))


def nan_in_one_condition(device):
    """By row, whether z_K and the gradient at the noise are NaN."""
    field, start, condition, time, weight = moved(
        in_single_precision(*problem(BOUNDED, **SMALL)), device
    )
    with torch.no_grad():
        condition[:, 1] = torch.nan
    given = (field, start, condition, time, weight)
    for points in (0, 257):
        end, for_start, _ = by_kernel(BOUNDED, *given, points=points, products=torch.float32)
        yield end.isnan().any(-1).any(0).tolist()
        yield for_start[0].isnan().any(-1).tolist()


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_what_is_not_a_number_stays_none(interpreted):
    assert list(nan_in_one_condition(CPU)) == [[False, True, False, False, False]] * 4


@pytest.mark.gpu
def test_what_is_not_a_number_stays_none_on_a_gpu():
    assert list(nan_in_one_condition(CUDA)) == [[False, True, False, False, False]] * 4


@pytest.mark.gpu
@torch.no_grad()
def test_conditions_beyond_two_to_the_31_numbers_are_read_where_they_lie():
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    width, rows = 512, 2**22 + 16
    sizes = {"members": 1, "rows": 16, "samples": 1, "steps": 1, "width": width, "depth": 2}
    field, start, condition, time, _ = moved(in_single_precision(*problem(BOUNDED, **sizes)), CUDA)
    launch = gpu.Launch.of(field, BOUNDED, rows, table_points=257, products=torch.float32)
    many = torch.zeros(1, rows, 1, width, device=CUDA)
    many[:, -16:] = condition
    noise = torch.zeros(1, rows, 1, device=CUDA)
    noise[:, -16:] = start
    end, _ = gpu.forward(launch, BOUNDED, noise, many, time, save=False)
    launch = gpu.Launch.of(field, BOUNDED, 16, table_points=257, products=torch.float32)
    expected, _ = gpu.forward(launch, BOUNDED, start, condition, time, save=False)
    assert torch.equal(end[:, -16:], expected)


def test_kernels_are_launched_on_the_device_of_what_they_read(interpreted, monkeypatch):
    devices, launched = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        devices.append(tensor.device)
        yield
        devices.pop()

    def launch(*given, **constants):
        launched.append(list(devices))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("forward_kernel", "backward_kernel"):
        monkeypatch.setattr(gpu, name, collections.defaultdict(lambda: launch))
    given = in_single_precision(*problem(BOUNDED, **SMALL))
    launches = gpu.Launch.of(given[0], BOUNDED, 15, table_points=9, products=torch.float32)
    _, states = gpu.forward(launches, BOUNDED, *given[1:4], save=True)
    gpu.backward(launches, BOUNDED, given[4], states, *given[2:4])
    assert launched == [[CPU]] * (1 + SMALL["steps"])


def ahead_of_time(folder, *command):
    """What Python says where kernels are compiled, not interpreted."""
    environment = {
        name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
    } | {"TRITON_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_gpu_is_told_to_keep_what_is_not_a_number(tmp_path):
    kernel = "compiled(80, 64, 'flow', 'forward', 'float32')[0].asm['ptx']"
    source = f"from supple.kernels.critic_integration.aot import compiled; print({kernel})"
    assembly = ahead_of_time(tmp_path, "-c", source)
    assert "max.NaN.f32" in assembly
    assert "max.f32" not in assembly


@pytest.mark.slow
def test_default_tiles_of_width_256_compile_without_spills_for_every_gpu(tmp_path):
    module = "supple.kernels.critic_integration.aot"
    said = ahead_of_time(tmp_path, "-m", module, "--widths", "256")
    rows = [line.split() for line in said.splitlines() if "sm_" in line]
    assert {row[0] for row in rows} == {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100"}
    assert len(rows) == 5 * 2 * 2 * 3
    assert {row[-1] for row in rows} == {"0"}
