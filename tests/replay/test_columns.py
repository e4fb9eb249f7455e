import time
import warnings

import numpy as np
import pytest
import torch

from supple.envs.base import Discrete
from supple.errors import InputError
from supple.region import Compute, Region
from tests.replay.naive import Naive, Stream, feed, make_ring, make_spec


def filled(num_envs, rows, steps, **options):
    ring = make_ring(num_envs, rows)
    naive = Naive.like(ring)
    feed(Stream(seed=0, spec=ring.spec, **options), steps, ring, naive, close=0.1)
    return ring, naive


@pytest.mark.parametrize("steps", [3, 5, 8, 10])
def test_step_in_episode_counts_valid_steps_since_the_last_end(steps):
    ring, naive = filled(3, 5, steps, end=0.15, invalid=0.2)
    for step in naive.sampleable():
        expected = [row.step_in_episode for row in naive.history[step]]
        assert ring.columns["step_in_episode"][step % 5].tolist() == expected


def test_a_bridge_row_is_not_a_step_of_the_next_episode():
    ring = make_ring(1, 4)
    stream = Stream(seed=0, spec=ring.spec, end=0.0)
    for valid, terminated in ((True, False), (True, True), (False, False), (True, False)):
        obs, action, step = stream.step()
        step["valid"][:], step["terminated"][:] = valid, terminated
        step["final_observation"] = step["observation"].clone()
        ring.add(obs, action, step)
    assert ring.columns["step_in_episode"].flatten().tolist() == [0, 1, 0, 0]


def test_a_reset_without_a_step_starts_counting_again():
    ring = make_ring(2, 6)
    stream = Stream(seed=0, spec=ring.spec, end=0.0)
    feed(stream, 3, ring)
    ring.close_open_rows()
    stream.reset()
    feed(stream, 2, ring)
    assert ring.columns["step_in_episode"][:5, 0].tolist() == [0, 1, 2, 0, 1]


def test_extra_columns_keep_what_the_agent_gave():
    ring = make_ring(3, 4, extra_spec={"value": (), "mean": (2,)})
    stream = Stream(seed=0, spec=ring.spec)
    given = []
    for _ in range(6):
        extras = {"value": torch.randn(3), "mean": torch.randn(3, 2)}
        ring.add(*stream.step(), extras)
        given.append(extras)
    for step in range(2, 6):
        for name, value in given[step].items():
            assert torch.equal(ring.columns[name][step % 4], value)


@pytest.mark.parametrize("horizons", [1, 2, 3])
def test_window_is_the_last_horizon_as_views(horizons):
    ring = make_ring(3, 4, extra_spec={"value": ()})
    naive, stream = Naive.like(ring), Stream(seed=0, spec=ring.spec)
    for _ in range(4 * horizons):
        arguments = stream.step()
        ring.add(*arguments, {"value": torch.ones(3)})
        naive.add(*arguments)
    window = ring.window()
    last = naive.history[-4:]
    for group, width in ring.spec.observation.items():
        observation = window["observation", group]
        assert observation.shape == (5, 3, width)
        assert observation.is_contiguous()
        assert observation.data_ptr() == ring.storage[group].data_ptr()
        expected = [[row.obs[group] for row in rows] for rows in last]
        np.testing.assert_array_equal(observation[:4], expected)
        assert torch.equal(observation[4], stream.obs[group])
    for name, column in ring.columns.items():
        assert window[name].data_ptr() == column.data_ptr()
    assert window["reward"].tolist() == [[row.reward for row in rows] for rows in last]


@pytest.mark.parametrize(("steps", "rows_now"), [(0, 0), (3, 3), (5, 1)])
def test_window_of_a_ring_that_is_not_exactly_full_is_refused(steps, rows_now):
    ring = make_ring(2, 4)
    feed(Stream(seed=0, spec=ring.spec), steps, ring)
    with pytest.raises(InputError, match=f"its 4 rows are full, now {rows_now} are: update once"):
        ring.window()


@pytest.mark.parametrize("steps", [0, 3, 5, 8, 10])
def test_steps_are_the_sampleable_ones_oldest_first(steps):
    ring, naive = filled(2, 5, steps, end=0.2, invalid=0.1)
    expected = [naive.history[step] for step in naive.sampleable()]
    stored = list(ring.steps())
    assert len(stored) == len(expected)
    for mine, rows in zip(stored, expected, strict=True):
        assert mine["reward"].tolist() == [row.reward for row in rows]
        assert mine["terminated"].tolist() == [row.terminated for row in rows]
        assert mine["truncated"].tolist() == [row.truncated for row in rows]
        assert mine["valid"].tolist() == [row.usable for row in rows]


def test_size_counts_transitions_that_can_be_sampled():
    ring = make_ring(2, 4)
    stream = Stream(seed=0, spec=ring.spec)
    sizes = []
    for _ in range(9):
        feed(stream, 1, ring)
        sizes.append(ring.size)
        assert int(ring.metrics()["replay/size"]) == ring.size
    assert sizes == [2, 4, 6, 8, 6, 6, 6, 8, 6]


def feed_ends(ring, steps, *, terminated):
    stream = Stream(seed=0, spec=ring.spec)
    for _ in range(steps):
        obs, action, step = stream.step()
        step["terminated"][:], step["truncated"][:] = terminated, True
        step["final_observation"] = {g: v + 1 for g, v in step["observation"].items()}
        ring.add(obs, action, step)


def assert_no_warning(ring):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ring.check()


def test_lost_final_observations_are_warned_of_once_naming_the_setting():
    ring = make_ring(2, 9, final_fraction=1e-9)
    feed_ends(ring, 2, terminated=False)
    assert_no_warning(ring)
    feed_ends(ring, 3, terminated=False)
    text = r"6 truncated rows lost their final observation .* raise --replay\.final-fraction"
    with pytest.warns(UserWarning, match=text):
        ring.check()
    feed_ends(ring, 3, terminated=False)
    assert_no_warning(ring)


def test_failures_are_sampled_as_long_as_they_are_stored():
    """However many end: else a critic forgets what failing costs while it still fails."""
    ring = make_ring(2, 9, final_fraction=1e-9)
    feed_ends(ring, 8, terminated=True)
    assert ring.columns["valid"][:8].all()
    rows = ring.transitions(torch.arange(16))
    following = ring.ring("policy")[1:9].flatten(0, 1)
    ended_last = torch.arange(16) >= 16 - ring.plan.final_rows
    expected = torch.where(ended_last[:, None], following + 1, following)
    assert torch.equal(rows["next_observation"]["policy"], expected)
    assert_no_warning(ring)


def test_metrics_taken_earlier_keep_their_numbers():
    ring = make_ring(2, 9, final_fraction=1e-9)
    feed_ends(ring, 3, terminated=False)
    taken = ring.metrics()
    feed_ends(ring, 3, terminated=False)
    assert int(taken["replay/final_evicted"]) == 2


def test_closing_twice_or_before_the_first_step_changes_nothing_more():
    ring = make_ring(2, 5)
    ring.close_open_rows()
    assert ring.size == 0
    feed(Stream(seed=0, spec=ring.spec, end=0.0), 2, ring)
    ring.close_open_rows()
    assert ring.columns["truncated"][1].all()
    assert not ring.columns["truncated"][0].any()
    slots = ring.columns["final_slot"].clone()
    ring.close_open_rows()
    assert torch.equal(ring.columns["final_slot"], slots)


def wrong(change):
    """A ring with two extra columns, and arguments of ``add`` with one change."""
    ring = make_ring(4, 5, extra_spec={"value": (), "mean": (2,)})
    obs, action, step = Stream(seed=0, spec=ring.spec, end=0.0).step()
    step["final_observation"] = step["observation"].clone()
    arguments = {
        "obs": obs,
        "action": action,
        "step": step,
        "extras": {"value": torch.zeros(4), "mean": torch.zeros(4, 2)},
    }
    change(arguments)
    return ring, arguments


def test_unchanged_arguments_are_accepted():
    ring, arguments = wrong(lambda a: None)
    ring.add(**arguments)
    assert ring.vector_steps == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda a: a["obs"].update({"critic": torch.zeros(4, 1)}),
            r"observation group critic: expected shape \(4, 2\), got \(4, 1\)",
        ),
        (
            lambda a: a.update(action=torch.zeros(4, 1)),
            r"action: expected shape \(4, 2\), got \(4, 1\)",
        ),
        (
            lambda a: a["step"].update({"reward": torch.zeros(4, 1)}),
            r"reward: expected shape \(4,\), got \(4, 1\)",
        ),
        (
            lambda a: a["extras"].pop("mean"),
            r"replay columns: expected \['mean', 'value'\], got \['value'\]",
        ),
        (
            lambda a: a.pop("extras"),
            r"replay columns: expected \['mean', 'value'\], got \[\]",
        ),
        (
            lambda a: a["extras"].update(hidden=torch.zeros(4)),
            r"got \['hidden', 'mean', 'value'\]; Agent\.act must fill",
        ),
        (
            lambda a: a["step"].update(truncated=torch.ones(4, dtype=torch.uint8)),
            r"expected torch\.bool, got terminated torch\.bool, truncated torch\.uint8",
        ),
        (
            lambda a: a.update(step={k: v for k, v in a["step"].items() if k != "valid"}),
            r"incomplete \(valid\): expected the observation groups policy",
        ),
        (
            lambda a: a.update(obs={"policy": a["obs"]["policy"]}),
            r"incomplete \(critic\)",
        ),
    ],
)
def test_a_wrong_shape_or_column_is_refused(change, text):
    ring, arguments = wrong(change)
    with pytest.raises(InputError, match=text):
        ring.add(**arguments)
    assert ring.vector_steps == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a["step"]["observation"].update({"critic": torch.zeros(4, 1)}),
        lambda a: a["step"]["final_observation"].update({"critic": torch.zeros(4, 1)}),
        lambda a: a["extras"].update(mean=torch.zeros(4, 1)),
        lambda a: a["extras"].update(value=torch.zeros(())),
    ],
    ids=["next observation", "final observation", "extra column", "extra scalar"],
)
def test_a_value_that_would_be_broadcast_is_refused(change):
    ring, arguments = wrong(change)
    with pytest.raises(InputError, match="expected shape"):
        ring.add(**arguments)


def test_a_discrete_action_of_box_shape_is_refused():
    ring = make_ring(3, 4, spec=make_spec(3, action=Discrete(n=2)))
    obs, _, step = Stream(seed=0, spec=ring.spec).step()
    with pytest.raises(InputError, match=r"action: expected shape \(3,\), got \(3, 1\)"):
        ring.add(obs, torch.zeros(3, 1), step)


def compile_it(ring):
    ring._compute = compute = Compute(compile=True)
    for region in (each for each in vars(ring).values() if isinstance(each, Region)):
        region._compute, region._run = compute, None
    return compute


@pytest.mark.parametrize("written", [20, 23])
def test_compiling_the_write_leaves_the_other_rows_of_a_wrapped_ring_alone(written):
    """Preparing runs the write more than once; a resumed ring is full when that happens."""
    rings = [make_ring(2, 8) for _ in range(2)]
    for ring in rings:
        feed(Stream(seed=0, spec=ring.spec, end=0.2), written, ring)
    compute = compile_it(rings[1])
    last = Stream(seed=1, spec=rings[0].spec, end=0.2).step()
    for ring in rings:
        ring.add(*last)
    assert compute.compile, "compilation failed"
    plain, compiled = rings
    for name, column in plain.columns.items():
        torch.testing.assert_close(compiled.columns[name], column, rtol=0, atol=0, equal_nan=True)
    for group in plain.storage:
        torch.testing.assert_close(
            compiled.storage[group], plain.storage[group], rtol=0, atol=0, equal_nan=True
        )


def test_a_compiled_write_takes_no_longer_in_a_large_ring():
    """A write through a view of a column compiles to a copy of the whole ring."""
    seconds = []
    for rows in (1_000, 1_000_000):
        ring = make_ring(1, rows)
        compute = compile_it(ring)
        step = Stream(seed=0, spec=ring.spec).step()
        taken = []
        for _ in range(50):
            begin = time.perf_counter()
            ring.add(*step)
            taken.append(time.perf_counter() - begin)
        assert compute.compile, "compilation failed"
        seconds.append(min(taken))
    assert seconds[1] < 5 * seconds[0]
