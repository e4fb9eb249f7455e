import math

import pytest
import torch

import supple.replay.plan
from supple.envs.base import Discrete
from supple.errors import InputError
from supple.replay import Replay, ReplaySettings
from supple.replay.plan import OBS_DTYPES, container_limits, free_memory, plan_ring
from tests.replay.naive import make_ring, make_spec
from tests.small_worlds import variables


@pytest.mark.parametrize("obs_dtype", OBS_DTYPES)
@pytest.mark.parametrize("action", [None, Discrete(n=4)])
@pytest.mark.parametrize("extra_spec", [{}, {"value": (), "mean": (2, 3)}])
def test_planned_bytes_are_those_allocated(obs_dtype, action, extra_spec):
    spec = make_spec(5, action=action)
    ring = make_ring(5, 40, spec=spec, extra_spec=extra_spec, obs_dtype=obs_dtype)
    tensors = [value for value in vars(ring).values() if isinstance(value, torch.Tensor)]
    tensors += [*ring.storage.values(), *ring._flat.values()]
    allocated = sum(tensor.nbytes for tensor in tensors)
    few_per_env = 5 * (8 + 4) + 6 * 8
    assert allocated - ring.plan.total_bytes == few_per_env


def test_plan_text_names_rows_environments_and_parts():
    plan = plan_ring(make_spec(4), ReplaySettings(capacity=4_099), {"value": ()})
    assert str(plan) == (
        "replay: 4,096 transitions (1,024 rows x 4 environments), 197.7 KiB:"
        " observations 80.1 KiB, actions and rewards 96.0 KiB,"
        " final observations 5.6 KiB, agent's columns 16.0 KiB"
    )


def test_final_table_holds_its_fraction_and_at_least_two_per_environment():
    def finals(fraction, capacity=1000):
        settings = ReplaySettings(capacity=capacity, final_fraction=fraction)
        return plan_ring(make_spec(7), settings, {}).final_rows

    assert finals(1e-9) == 14
    assert finals(0.05) == math.ceil(0.05 * 994)
    assert finals(1.0) == 994


def test_a_ring_beyond_free_memory_is_refused_before_anything_is_allocated(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("allocated before the refusal")

    monkeypatch.setattr(supple.replay.plan, "free_memory", lambda device: 3 * 2**20)
    for name in ("zeros", "full", "empty", "arange"):
        monkeypatch.setattr(torch, name, refuse)
    with pytest.raises(
        InputError,
        match=r"needs \d+\.\d MiB, cpu has 3\.0 MiB free: lower --replay\.capacity,"
        r" or store observations with --replay\.obs-dtype bfloat16",
    ):
        Replay(make_spec(4), ReplaySettings(capacity=100_000))
    with pytest.raises(InputError, match=r"free: lower --replay\.capacity$"):
        Replay(make_spec(4), ReplaySettings(capacity=200_000, obs_dtype="bfloat16"))


def test_a_ring_that_just_fits_is_built(monkeypatch):
    needed = plan_ring(make_spec(4), ReplaySettings(capacity=100), {}).total_bytes
    monkeypatch.setattr(supple.replay.plan, "free_memory", lambda device: needed)
    assert Replay(make_spec(4), ReplaySettings(capacity=100)).num_rows == 25
    monkeypatch.setattr(supple.replay.plan, "free_memory", lambda device: needed - 1)
    with pytest.raises(InputError, match="needs"):
        Replay(make_spec(4), ReplaySettings(capacity=100))


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    settings = ReplaySettings(capacity=100)
    needed = plan_ring(make_spec(4), settings, {}).total_bytes
    monkeypatch.setattr(supple.replay.plan, "container_limits", lambda *_: [needed * 3 // 2])
    Replay(make_spec(4), settings)
    for name, value in (variables(1, 2, 1234) | {"LOCAL_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"cpu has .* free for each of 2 processes: lower"):
        Replay(make_spec(4), settings)


@pytest.mark.parametrize(("capacity", "kept"), [(400_000_000, "2.0 GiB"), (100_000_000, "1.3 GiB")])
def test_a_ring_leaves_room_on_a_gpu(monkeypatch, capacity, kept):
    """Two gibibytes, or of a small GPU a quarter of what is free."""
    plan = plan_ring(make_spec(4), ReplaySettings(capacity=capacity), {})
    free = plan.total_bytes + 2**30
    monkeypatch.setattr(supple.replay.plan, "free_memory", lambda device: free)
    plan.check(torch.device("cpu"))
    with pytest.raises(InputError, match=f"free, of which {kept} are kept for the rest"):
        plan.check(torch.device("cuda"))
    free += 2**30
    plan.check(torch.device("cuda"))


def test_free_memory_is_positive_and_below_a_pebibyte():
    assert 0 < free_memory(torch.device("cpu")) < 2**50


def group(folder, limit, used, stat, *, version):
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        2: ("memory.max", "memory.current"),
    }[version]
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip((*names, "memory.stat"), (limit, used, stat), strict=True):
        (folder / name).write_text(f"{value}\n")


def test_every_enclosing_group_limits_memory_and_file_cache_counts_as_free(tmp_path):
    own, mount = tmp_path / "own", tmp_path / "mount"
    own.write_text("0::/job/step\n")
    group(mount / "job" / "step", "max", 700, "anon 1\ninactive_file 9", version=2)
    group(mount / "job", 1000, 900, "anon 200\ninactive_file 600", version=2)
    group(tmp_path, 5, 4, "", version=2)  # above the mount: not a group
    assert container_limits(mount, own) == [1000 - 900 + 600]


def test_version_1_groups_are_read_under_their_controller(tmp_path):
    own, mount = tmp_path / "own", tmp_path / "mount"
    own.write_text("9:name=systemd:/\n4:cpu,memory:/job\n1:cpu:/\n0::/\n")
    stat = "inactive_file 7\ntotal_inactive_file 40"
    group(mount / "memory" / "job", 500, 300, stat, version=1)
    assert container_limits(mount, own) == [500 - 300 + 40]


def test_in_a_container_that_sees_the_hosts_path_the_top_group_counts(tmp_path):
    own, mount = tmp_path / "own", tmp_path / "mount"
    own.write_text("0::/docker/4f2a\n")
    group(mount, 100, 30, "anon 30", version=2)
    assert container_limits(mount, own) == [70]


def test_without_control_groups_nothing_is_limited(tmp_path):
    assert container_limits(tmp_path / "mount", tmp_path / "own") == []


def test_fewer_than_two_rows_per_environment_are_refused():
    assert plan_ring(make_spec(4), ReplaySettings(capacity=8), {}).num_rows == 2
    with pytest.raises(
        InputError,
        match=r"--replay\.capacity=7 holds fewer than 2 transitions for each of 4 environments:"
        r" raise it to 8 or more, or lower --env\.num-envs",
    ):
        plan_ring(make_spec(4), ReplaySettings(capacity=7), {})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"capacity": 0}, r"--replay\.capacity must be >= 1, got 0"),
        ({"final_fraction": 0.0}, r"--replay\.final-fraction must be in \(0, 1\], got 0\.0"),
        ({"final_fraction": 1.1}, r"--replay\.final-fraction must be in \(0, 1\], got 1\.1"),
        ({"final_fraction": math.nan}, r"final-fraction must be a finite number, got nan"),
        ({"capacity": 1e6}, r"--replay\.capacity must be a whole number, an int, got 1000000\.0"),
        ({"capacity": math.inf}, r"--replay\.capacity must be a finite number, got inf"),
        ({"obs_dtype": "half"}, r"--replay\.obs-dtype must be one of float32, bfloat16, float16"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(InputError, match=text):
        ReplaySettings(**settings)
