import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from supple.envs.base import Discrete
from supple.errors import InputError
from supple.replay import Segments, prefill
from tests.replay.naive import (
    Naive,
    Stream,
    assert_same_windows,
    feed,
    make_ring,
    make_spec,
)


def recording(number, *, spec=None, seed=0, end=0.1, gaps=()):
    """One environment's transitions in order; before each of ``gaps`` something is missing."""
    spec = spec or make_spec(1)
    stream = Stream(seed=seed, spec=spec, end=end)
    rows = []
    for index in range(number):
        if index in gaps:
            stream.reset()
        obs, action, step = stream.step()
        action = action.clamp(-1, 1) if action.is_floating_point() else action
        ended = (step["terminated"] | step["truncated"]).unsqueeze(-1)
        row = {key: step[key] for key in ("reward", "terminated", "truncated")} | {"action": action}
        for group in spec.observation:
            row[f"observation/{group}"] = obs[group]
            row[f"next_observation/{group}"] = torch.where(
                ended, step["final_observation"][group], step["observation"][group]
            )
        rows.append(row)
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


def write(folder, data):
    path = folder / "recorded.safetensors"
    save_file({key: value.contiguous() for key, value in data.items()}, path)
    return path


def as_seen_by_the_ring(ring, data, gaps):
    """The naive ring that stepped ``num_envs`` stretches of the recording side by side."""
    naive, envs = Naive.like(ring), ring.num_envs
    rows = len(data["reward"]) // envs
    for t in range(rows):
        at = torch.arange(envs) * rows + t
        terminated, truncated = data["terminated"][at], data["truncated"][at]
        cut = [t == rows - 1 or int(i) + 1 in gaps for i in at]
        truncated = truncated | (torch.tensor(cut) & ~terminated)
        after = {group: data[f"next_observation/{group}"][at] for group in ring.spec.observation}
        step = {
            "reward": data["reward"][at],
            "terminated": terminated,
            "truncated": truncated,
            "valid": torch.ones(envs, dtype=torch.bool),
            "observation": after,
            "final_observation": after,
        }
        now = {group: data[f"observation/{group}"][at] for group in ring.spec.observation}
        naive.add(now, data["action"][at], step)
    return naive


@pytest.mark.parametrize("obs_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("num_envs", "number", "gaps"),
    [(1, 12, ()), (3, 24, ()), (3, 26, (5, 11)), (4, 7, ()), (2, 24, (1, 12, 13)), (2, 3, ())],
)
def test_recorded_transitions_come_back_and_training_goes_on(
    tmp_path, num_envs, number, gaps, obs_dtype
):
    data = recording(number, gaps=gaps)
    ring = make_ring(num_envs, 12, final_fraction=0.5, obs_dtype=obs_dtype)
    rows = number // num_envs
    assert prefill(ring, write(tmp_path, data)) == rows * num_envs == ring.size
    naive = as_seen_by_the_ring(ring, data, gaps)
    stream = Stream(seed=1, spec=ring.spec, end=0.6)
    for _ in range(30):
        for n_step in (1, 2, 4, 8):
            assert_same_windows(ring, naive, n_step)
        first = naive.sampleable()[0]
        for step in (first, naive.sampleable()[-1]):
            expected = [row.step_in_episode for row in naive.history[step]]
            assert ring.columns["step_in_episode"][step % 12].tolist() == expected
        feed(stream, 1, ring, naive)
    assert int(ring.metrics()["replay/final_evicted"]) == naive.evicted > 0


def test_no_window_crosses_a_gap_or_the_border_between_stretches(tmp_path):
    data = recording(16, end=0.0, gaps=(4,))
    ring = make_ring(2, 8, final_fraction=1.0)
    prefill(ring, write(tmp_path, data))
    expected = torch.zeros(8, 2, dtype=torch.bool)
    expected[3, 0] = expected[7, 0] = expected[7, 1] = True
    assert torch.equal(ring.columns["truncated"], expected)
    assert not ring.columns["terminated"].any()


def test_a_recorded_termination_stays_one_at_a_border(tmp_path):
    data = recording(4, end=0.0)
    data["terminated"][1] = True
    ring = make_ring(2, 4)
    prefill(ring, write(tmp_path, data))
    assert ring.columns["terminated"][:2].tolist() == [[False, False], [True, False]]
    assert ring.columns["truncated"][:2].tolist() == [[False, False], [False, True]]


def test_recorded_choices_fill_a_discrete_ring(tmp_path):
    spec = make_spec(1, action=Discrete(n=7))
    data = recording(10, spec=spec)
    ring = make_ring(1, 10, spec=spec, final_fraction=1.0)
    prefill(ring, write(tmp_path, data))
    assert torch.equal(ring.columns["action"][:, 0], data["action"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint16, torch.float32])
def test_recorded_choices_may_be_of_any_dtype(tmp_path, dtype):
    spec = make_spec(1, action=Discrete(n=2))
    data = recording(9, spec=spec)
    data["action"] = (torch.arange(9) % 2).to(dtype)
    ring = make_ring(1, 9, spec=spec, final_fraction=1.0)
    prefill(ring, write(tmp_path, data))
    assert ring.columns["action"][:, 0].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("choice", [7, -1, 1.7])
def test_choices_that_there_are_not_are_refused(tmp_path, choice):
    spec = make_spec(1, action=Discrete(n=7))
    data = recording(9, spec=spec)
    data["action"] = torch.full((9,), choice)
    with pytest.raises(InputError, match="other numbers than the choices 0 to 6"):
        prefill(make_ring(1, 20, spec=spec), write(tmp_path, data))


def test_a_prefilled_ring_survives_saving_and_loading(tmp_path):
    data = recording(24)
    ring = make_ring(2, 12, final_fraction=1.0)
    prefill(ring, write(tmp_path, data))
    naive = as_seen_by_the_ring(ring, data, ())
    feed(Stream(seed=1, spec=ring.spec), 5, ring, naive)
    manifest = Segments(ring, tmp_path / "ring").save()
    loaded = make_ring(2, 12, final_fraction=1.0)
    loaded.load_state_dict(ring.state_dict())
    Segments(loaded, tmp_path / "ring").load(manifest)
    assert assert_same_windows(loaded, naive, 3)


def drop(key):
    return lambda data: data.pop(key)


def replace(key, change):
    return lambda data: data.update({key: change(data[key])})


def poison(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop("reward"), r"recorded\.safetensors lacks reward: see supple/replay/prefill\.py"),
        (drop("next_observation/critic"), "lacks next_observation/critic:"),
        (
            replace("action", lambda x: x[:, :1]),
            r"action expected shape \(8, 2\), got \(8, 1\)",
        ),
        (
            replace("action", lambda x: 17 * x.sign()),
            r"actions reach 17, expected the policy's \[-1, 1\]: map the simulator's bounds",
        ),
        (
            replace("observation/policy", lambda x: x[:7]),
            r"observation/policy expected shape \(8, 3\), got \(7, 3\)",
        ),
        (
            replace("terminated", lambda x: x.unsqueeze(-1)),
            r"terminated expected shape \(8,\), got \(8, 1\)",
        ),
        (
            replace("reward", lambda x: x.unsqueeze(-1)),
            r"reward expected shape \(8,\), got \(8, 1\)",
        ),
        (replace("reward", lambda x: x[0]), r"reward expected shape .* got \(\)"),
        (replace("reward", poison(np.nan)), "reward holds NaN or infinity"),
        (replace("action", poison(np.inf)), "action holds NaN or infinity"),
        (replace("observation/policy", poison(-2e15)), r"holds .*, a size beyond 1e\+15, or what"),
        (
            replace("reward", poison(-2e8)),
            r"row 3 has the reward -2e\+08, beyond --env.reward-limit",
        ),
        (replace("terminated", lambda x: 0.3 * x.float() + 0.3), "terminated holds other numbers"),
        (
            replace("next_observation/critic", poison(np.nan)),
            "next_observation/critic holds NaN or infinity",
        ),
    ],
)
def test_a_recording_of_another_form_is_refused(tmp_path, change, text):
    data = recording(8)
    change(data)
    path = write(tmp_path, data)
    ring = make_ring(2, 12)
    with pytest.raises(InputError, match=text) as caught:
        prefill(ring, path, reward_limit=1e8)
    assert str(path) in str(caught.value)
    assert ring.size == 0


def test_rewards_may_be_of_any_kind(tmp_path):
    data = recording(8)
    data["reward"] = data["reward"] > 0
    assert prefill(make_ring(2, 12), write(tmp_path, data), reward_limit=1e8) == 8


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_an_unreadable_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "recorded.safetensors"
    if content is not None:
        path.write_bytes(content)
    text = f"cannot read recorded transitions from {re.escape(str(path))}"
    with pytest.raises(InputError, match=text):
        prefill(make_ring(2, 4), path)


@pytest.mark.parametrize("number", [1, 26])
def test_too_few_or_too_many_transitions_are_refused(tmp_path, number):
    path = write(tmp_path, recording(number))
    ring = make_ring(2, 12, final_fraction=1.0)
    with pytest.raises(
        InputError,
        match=rf"has {number} transitions, the ring takes 2 to 24: set --replay\.capacity",
    ):
        prefill(ring, path)
    assert ring.size == 0


def test_the_largest_recording_that_fits_is_taken(tmp_path):
    ring = make_ring(2, 12, final_fraction=1.0)
    assert prefill(ring, write(tmp_path, recording(25))) == 24


def test_a_ring_in_use_is_refused(tmp_path):
    ring = make_ring(2, 12)
    feed(Stream(seed=0, spec=ring.spec), 3, ring)
    with pytest.raises(InputError, match="needs an empty replay ring, this one has 6"):
        prefill(ring, write(tmp_path, recording(8)))


@pytest.mark.parametrize(("rows", "number"), [(12, 24), (3000, 62), (50_000, 10)])
def test_too_many_finals_are_refused_and_the_named_fraction_suffices(tmp_path, rows, number):
    path = write(tmp_path, recording(number, end=1.0))
    ring = make_ring(2, rows, final_fraction=1e-9)
    finals = number // 2 * 2
    with pytest.raises(
        InputError, match=f"has {finals} final observations, the ring holds 4:"
    ) as e:
        prefill(ring, path)
    found = re.search(r"raise --replay\.final-fraction to ([\d.]+)$", str(e.value))
    assert found is not None
    advised = make_ring(2, rows, final_fraction=float(found[1]))
    assert prefill(advised, path) == finals


def test_float_flags_and_wider_numbers_are_converted(tmp_path):
    data = recording(8)
    converted = {key: value.double() for key, value in data.items()}
    ring, other = make_ring(2, 12), make_ring(2, 12)
    prefill(ring, write(tmp_path, data))
    prefill(other, write(tmp_path, converted))
    for name, column in ring.columns.items():
        assert torch.equal(column[:4], other.columns[name][:4])
    assert torch.equal(ring.ring("policy")[:5], other.ring("policy")[:5])
