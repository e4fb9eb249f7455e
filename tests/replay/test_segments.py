import dataclasses
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import supple.replay.segments
from supple.envs.base import Box
from supple.errors import InputError
from supple.files import replace_file
from supple.replay import Segments
from supple.replay.segments import verify
from tests.replay.naive import (
    Naive,
    Stream,
    assert_finite,
    assert_same_windows,
    feed,
    make_ring,
)


@pytest.fixture(autouse=True)
def few_segments(monkeypatch):
    """Segments of several rows in rings of few."""
    monkeypatch.setattr(supple.replay.segments, "SEGMENTS_PER_RING", 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def saved_state(ring):
    """``state_dict`` as a checkpoint file returns it: sharing nothing with the ring."""

    def copy(value):
        if isinstance(value, dict):
            return {key: copy(item) for key, item in value.items()}
        return value.clone() if isinstance(value, torch.Tensor) else value

    return copy(ring.state_dict())


def restored(like, state, folder, manifest):
    ring = make_ring(
        like.num_envs,
        like.num_rows,
        final_fraction=like.settings.final_fraction,
        obs_dtype=like.settings.obs_dtype,
        extra_spec={name: like.columns[name].shape[2:] for name in like._extra},
    )
    ring.load_state_dict(state)
    segments = Segments(ring, folder)
    segments.load(manifest)
    return ring, segments


def assert_same_rings(one, other):
    """Equal in everything that a later call can read."""
    assert one._usable() == other._usable()
    for mine, others in zip(one.steps(), other.steps(), strict=True):
        assert (mine == others).all()
    for key, value in one.metrics().items():
        assert torch.equal(value, other.metrics()[key]), key
    for n_step in (1, 3):
        if not one.can_sample(n_step):
            continue
        mine = one.sample(64, generator=generator(), n_step=n_step)
        others = other.sample(64, generator=generator(), n_step=n_step)
        if int(one.metrics()["replay/invalid_sampled"]):
            continue  # what an unusable row holds is nobody's business
        assert_finite(mine)
        assert (mine == others).all()
    oldest, rows = one._usable()
    stored = (oldest + torch.arange(rows)) % one.num_rows
    for name, column in one.columns.items():
        assert torch.equal(column[stored], other.columns[name][stored]), name


@settings(max_examples=40, deadline=None)
@given(
    num_envs=st.integers(1, 3),
    rows=st.integers(2, 17),
    stretches=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    final_fraction=st.sampled_from([1e-9, 0.3, 1.0]),
    end=st.sampled_from([0.0, 0.1, 0.5]),
    invalid=st.sampled_from([0.0, 0.2]),
    obs_dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    close=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_loaded_ring_behaves_like_the_one_saved(
    tmp_path_factory,
    num_envs,
    rows,
    stretches,
    final_fraction,
    end,
    invalid,
    obs_dtype,
    close,
    seed,
):
    folder = tmp_path_factory.mktemp("ring")
    ring = make_ring(num_envs, rows, final_fraction=final_fraction, obs_dtype=obs_dtype)
    naive = Naive.like(ring)
    stream = Stream(seed=seed, spec=ring.spec, end=end, invalid=invalid)
    segments = Segments(ring, folder)
    # Behind a terminated row that lost its final observation stands what lies there: after a cut at
    # the ring's end another observation in a loaded ring, which nobody bootstraps from.
    cuts = 0.05 if final_fraction == 1.0 else 0.0
    for stretch in stretches:
        feed(stream, stretch, ring, naive, close=cuts)
        manifest = segments.save()
        segments.prune([manifest])
    loaded, _ = restored(ring, saved_state(ring), folder, manifest)
    assert_same_rings(ring, loaded)
    if close:
        stream.reset()
        for sink in (ring, naive, loaded):
            sink.close_open_rows()
    for _ in range(4):
        assert_same_rings(ring, loaded)
        assert_same_windows(loaded, naive, 1)
        assert_same_windows(loaded, naive, 3)
        feed(stream, rows - 1, ring, naive, loaded, close=cuts)
    assert_same_rings(ring, loaded)


@pytest.mark.parametrize("steps", [0, 1, 9, 10, 11, 19, 20, 33])
def test_saving_before_and_after_wrapping_and_at_every_head(tmp_path, steps):
    ring = make_ring(2, 10, final_fraction=1e-9, extra_spec={"value": ()})
    stream = Stream(seed=steps, spec=ring.spec, end=0.3)

    def add(*sinks):
        arguments = stream.step()
        for sink in sinks:
            sink.add(*arguments, {"value": arguments[2]["reward"] * 2})

    for _ in range(steps):
        add(ring)
    manifest = Segments(ring, tmp_path).save()
    assert manifest["vector_steps"] == steps
    loaded, _ = restored(ring, saved_state(ring), tmp_path, manifest)
    for _ in range(30):
        assert_same_rings(ring, loaded)
        add(ring, loaded)
    assert_same_rings(ring, loaded)


def test_segments_saved_early_load_when_the_ring_has_overwritten_some_of_their_rows(tmp_path):
    ring = make_ring(2, 11, final_fraction=0.6)
    naive, stream = Naive.like(ring), Stream(seed=0, spec=ring.spec, end=0.3)
    segments = Segments(ring, tmp_path)
    for _ in range(36):
        feed(stream, 1, ring, naive, close=0.1)
        loaded, _ = restored(ring, saved_state(ring), tmp_path, segments.save())
        assert_same_rings(ring, loaded)
        assert_same_windows(loaded, naive, 1)


def files(folder):
    return {path.name: path for path in folder.iterdir()}


def names(manifest):
    return [entry["name"] for entry in manifest["segments"]]


def test_full_segments_are_written_once(tmp_path):
    ring = make_ring(2, 16)
    stream = Stream(seed=0, spec=ring.spec)
    segments = Segments(ring, tmp_path)
    seen: dict[str, os.stat_result] = {}
    for _ in range(12):
        feed(stream, 3, ring)
        manifest = segments.save()
        begin = max(0, ring.vector_steps - 16)
        assert manifest["segments"][0]["first"] <= begin < manifest["segments"][0]["last"]
        assert manifest["segments"][-1]["last"] == ring.vector_steps
        for one, following in zip(manifest["segments"], manifest["segments"][1:], strict=False):
            assert one["last"] == following["first"]
        for entry in manifest["segments"]:
            stat = (tmp_path / entry["name"]).stat()
            before = seen.setdefault(entry["name"], stat)
            assert (stat.st_ino, stat.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
            assert stat.st_size == entry["bytes"]
    assert len(manifest["segments"]) == 4


def test_a_segment_filled_exactly_at_a_save_is_not_written_again(tmp_path):
    ring = make_ring(2, 16)
    stream = Stream(seed=0, spec=ring.spec, end=0.0)
    segments = Segments(ring, tmp_path)
    feed(stream, 8, ring)
    manifest = segments.save()
    before = {name: (tmp_path / name).stat().st_ino for name in names(manifest)}
    feed(stream, 3, ring)
    segments.save()
    assert {name: (tmp_path / name).stat().st_ino for name in names(manifest)} == before


def test_saving_heals_a_damaged_newest_segment(tmp_path):
    ring = make_ring(2, 16)
    feed(Stream(seed=0, spec=ring.spec, end=0.0), 6, ring)
    segments = Segments(ring, tmp_path)
    manifest = segments.save()
    damage_flipped(tmp_path / names(manifest)[-1])
    assert segments.save() == manifest
    verify(tmp_path, manifest)


def test_a_loaded_ring_does_not_write_full_segments_again(tmp_path):
    ring = make_ring(2, 16)
    stream = Stream(seed=0, spec=ring.spec)
    feed(stream, 22, ring)
    manifest = Segments(ring, tmp_path).save()
    loaded, segments = restored(ring, saved_state(ring), tmp_path, manifest)
    before = {name: path.stat().st_mtime_ns for name, path in files(tmp_path).items()}
    feed(stream, 5, ring, loaded)
    later = segments.save()
    for name in set(names(manifest)) & set(names(later)):
        assert (tmp_path / name).stat().st_mtime_ns == before[name]
    assert len(set(names(manifest)) & set(names(later))) == 3
    again, _ = restored(ring, saved_state(loaded), tmp_path, later)
    assert_same_rings(ring, again)


def test_lines_of_training_leave_each_others_segments_alone(tmp_path):
    ring = make_ring(2, 16)
    feed(Stream(seed=0, spec=ring.spec), 10, ring)
    segments = Segments(ring, tmp_path)
    early, state = segments.save(), saved_state(ring)
    feed(Stream(seed=1, spec=ring.spec), 12, ring)
    given_up = segments.save()

    other, segments = restored(ring, state, tmp_path, early)
    feed(Stream(seed=2, spec=ring.spec), 12, other)
    manifest = segments.save()
    loaded, _ = restored(other, saved_state(other), tmp_path, manifest)
    assert_same_rings(other, loaded)
    verify(tmp_path, early)
    verify(tmp_path, given_up)


def test_episodes_cut_after_loading_are_in_the_next_save(tmp_path):
    ring = make_ring(3, 8, final_fraction=1e-9)
    naive, stream = Naive.like(ring), Stream(seed=0, spec=ring.spec, end=0.1)
    feed(stream, 13, ring, naive)
    manifest = Segments(ring, tmp_path).save()
    loaded, segments = restored(ring, saved_state(ring), tmp_path, manifest)
    stream.reset()
    for sink in (loaded, naive):
        sink.close_open_rows()
    again = segments.save()
    cut, segments = restored(loaded, saved_state(loaded), tmp_path, again)
    assert_same_rings(loaded, cut)
    for _ in range(10):
        feed(stream, 1, cut, naive)
        for n_step in (1, 4):
            assert_same_windows(cut, naive, n_step)
        later = segments.save()
        reread, _ = restored(cut, saved_state(cut), tmp_path, later)
        assert_same_rings(cut, reread)


def test_saving_again_at_the_same_step_leaves_the_earlier_manifest_whole(tmp_path):
    # Killed between this save and the end of its checkpoint, the earlier one is all there is.
    ring = make_ring(2, 8)
    feed(Stream(seed=0, spec=ring.spec, end=0.0), 5, ring)
    segments = Segments(ring, tmp_path)
    manifest = segments.save()
    ring.close_open_rows()
    segments.save()
    verify(tmp_path, manifest)


def test_pruning_keeps_exactly_the_named_files(tmp_path):
    ring = make_ring(2, 16)
    stream = Stream(seed=0, spec=ring.spec)
    segments = Segments(ring, tmp_path)
    manifests = []
    for _ in range(6):
        feed(stream, 7, ring)
        manifests.append(segments.save())
    (tmp_path / "notes.txt").write_text("mine")
    segments.prune(manifests[-2:])
    kept = set(names(manifests[-2])) | set(names(manifests[-1]))
    assert set(files(tmp_path)) == kept | {"notes.txt"}
    for manifest in manifests[-2:]:
        verify(tmp_path, manifest)


def test_a_segment_pruned_away_is_written_again_when_needed(tmp_path):
    ring = make_ring(2, 16)
    stream = Stream(seed=0, spec=ring.spec)
    segments = Segments(ring, tmp_path)
    feed(stream, 9, ring)
    segments.save()
    segments.prune([])
    assert not files(tmp_path)
    feed(stream, 2, ring)
    verify(tmp_path, segments.save())


@pytest.fixture
def saved(tmp_path):
    ring = make_ring(2, 16)
    feed(Stream(seed=0, spec=ring.spec), 22, ring)
    return ring, tmp_path, Segments(ring, tmp_path).save()


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_flipped(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def damage_unreadable(path):
    path.unlink()
    path.mkdir()


def damage_emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("position", [0, 2, -1])
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (damage_truncated, r"is damaged: expected \d+ bytes, got \d+"),
        (damage_flipped, "is damaged: expected"),
        (damage_emptied, "is damaged: expected .* got 0"),
        (damage_unreadable, "cannot be read: "),
        (os.unlink, "is missing: use another checkpoint"),
    ],
)
def test_a_damaged_or_missing_segment_is_refused_by_name(saved, position, damage, text):
    ring, folder, manifest = saved
    verify(folder, manifest)
    path = folder / manifest["segments"][position]["name"]
    damage(path)
    for read in (
        lambda: verify(folder, manifest),
        lambda: restored(ring, saved_state(ring), folder, manifest),
    ):
        with pytest.raises(InputError, match=text) as caught:
            read()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("num_envs", "rows", "final_fraction", "name"),
    [(2, 15, 1.0, "valid"), (3, 16, 1.0, "valid"), (2, 16, 0.5, "final_owner")],
)
def test_a_ring_of_another_size_refuses_the_state(saved, num_envs, rows, final_fraction, name):
    ring = make_ring(2, 16, final_fraction=1.0)
    other = make_ring(num_envs, rows, final_fraction=final_fraction)
    with pytest.raises(
        InputError,
        match=rf"replay ring has {name} of shape .* keep --replay\.capacity,"
        r" --replay\.final-fraction and --env\.num-envs",
    ):
        other.load_state_dict(ring.state_dict())


@pytest.mark.parametrize("name", ["action", "observation/policy"])
def test_a_ring_of_another_width_refuses_the_rows(saved, name):
    ring, folder, manifest = saved
    wider = {group: width + 1 for group, width in ring.spec.observation.items()}
    size = ring.spec.action.size
    changed: dict[str, Any] = (
        {"action": Box(low=(-1.0,) * (size + 1), high=(1.0,) * (size + 1))}
        if name == "action"
        else {"observation": wider}
    )
    other = make_ring(2, 16, spec=dataclasses.replace(ring.spec, **changed))
    with pytest.raises(InputError, match=f"the saved rows' {name} is"):
        # Of the small state only what says which rows there are fits.
        other.vector_steps = ring.vector_steps
        Segments(other, folder).load(manifest)


def test_a_ring_with_other_storage_refuses_the_rows(saved):
    ring, folder, manifest = saved
    other = make_ring(2, 16, obs_dtype="float16")
    with pytest.raises(InputError, match="obs-dtype"):
        other.load_state_dict(saved_state(ring))
        Segments(other, folder).load(manifest)


def test_rings_loaded_from_one_state_share_nothing(tmp_path):
    ring = make_ring(2, 8, final_fraction=1e-9)
    stream = Stream(seed=0, spec=ring.spec, end=1.0)
    feed(stream, 4, ring)
    loaded, _ = restored(ring, ring.state_dict(), tmp_path, Segments(ring, tmp_path).save())
    before = int(loaded.metrics()["replay/final_evicted"])
    feed(stream, 3, ring)
    assert int(loaded.metrics()["replay/final_evicted"]) == before


def test_a_slot_taken_over_after_its_row_was_written_does_not_come_back(tmp_path):
    ring = make_ring(2, 16, final_fraction=1e-9)
    naive = Naive.like(ring)
    stream = Stream(seed=3, spec=ring.spec, end=0.7)
    segments = Segments(ring, tmp_path)
    for _ in range(3):
        feed(stream, 5, ring, naive)
        manifest = segments.save()
    loaded, _ = restored(ring, saved_state(ring), tmp_path, manifest)
    assert_same_rings(ring, loaded)
    assert_same_windows(loaded, naive, 2)


def test_what_is_written_ahead_is_what_a_save_would_write(tmp_path):
    """The same files, byte for byte, and none of them by the save itself but the newest."""
    ring = make_ring(2, 16, final_fraction=1.0)
    stream = Stream(seed=0, spec=ring.spec, end=0.2)
    ahead = Segments(ring, tmp_path / "ahead", ahead=True)
    plain = Segments(ring, tmp_path / "plain")
    for step in range(1, 47):
        feed(stream, 1, ring)
        ahead.write_ahead(0)
        plain.save()
        if step % 9 == 0:
            ahead._collect(wait=True)
            before = set(files(tmp_path / "ahead"))
            manifest = ahead.save()
            assert names(manifest) == names(plain.save())
            assert set(names(manifest)) - before <= {names(manifest)[-1]}
    loaded, _ = restored(ring, saved_state(ring), tmp_path / "ahead", ahead.save())
    assert_same_rings(ring, loaded)
    ahead.prune([manifest])
    assert set(files(tmp_path / "ahead")) == set(names(manifest))
    ahead.close()


def test_rows_that_are_gone_by_the_next_save_are_not_written(tmp_path):
    ring = make_ring(2, 16)
    stream = Stream(seed=0, spec=ring.spec)
    segments = Segments(ring, tmp_path, ahead=True)
    for step in range(1, 65):
        feed(stream, 1, ring)
        segments.write_ahead(64 - step)
    segments.save()
    # Segments of 4 rows; the last of them by the save or ahead, the 12 before never.
    assert len(files(tmp_path)) == 4
    segments.close()


def test_a_disk_that_falls_behind_stalls_nothing_and_a_full_one_is_said_by_the_save(
    tmp_path, monkeypatch
):
    import threading

    ring = make_ring(2, 16)
    stream = Stream(seed=0, spec=ring.spec)
    segments = Segments(ring, tmp_path, ahead=True)
    gate = threading.Event()
    write = replace_file

    def slow(path, data):
        gate.wait()
        write(path, data)

    monkeypatch.setattr(supple.replay.segments, "replace_file", slow)
    for _ in range(16):
        feed(stream, 1, ring)
        segments.write_ahead(0)
    assert len(segments._waiting) == 2
    gate.set()
    assert len(segments.save()["segments"]) == 4

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(supple.replay.segments, "replace_file", full)
    for _ in range(4):
        feed(stream, 1, ring)
        segments.write_ahead(0)
    with pytest.raises(OSError, match="No space left"):
        segments.save()
    segments.close()


def test_rows_that_are_not_kept_are_nowhere_and_leave_an_empty_ring(tmp_path):
    folder, other = tmp_path / "none", tmp_path / "some"
    ring = make_ring(2, 16)
    stream = Stream(seed=0, spec=ring.spec)
    segments = Segments(ring, folder, ahead=True, kept=False)
    assert segments.save() == {"segments": [], "vector_steps": 0}
    assert restored(ring, saved_state(ring), folder, segments.save())[0].vector_steps == 0
    for _ in range(21):
        feed(stream, 1, ring)
        segments.write_ahead(0)
    manifest, state = segments.save(), saved_state(ring)
    segments.prune([manifest])
    segments.close()
    assert manifest == {"segments": [], "vector_steps": 21}
    assert not folder.exists()
    verify(folder, manifest)
    loaded, later = restored(ring, state, other, manifest)
    assert loaded.size == 0
    assert len(loaded.stored_rows()) == 0
    # From here on it is a new ring, but that episodes and the count of lost finals go on.
    fresh = make_ring(2, 16)
    for name in ("_step_in_episode", "_final_head", "_final_evicted"):
        getattr(fresh, name).copy_(getattr(ring, name))
    feed(stream, 21, loaded, fresh)
    again, _ = restored(loaded, saved_state(loaded), other, later.save())
    for one in (loaded, again):
        assert_same_rings(fresh, one)


def test_whether_rows_were_kept_is_said_by_loading(tmp_path):
    ring = make_ring(2, 16)
    empty = saved_state(ring)
    for rows, kept in ((0, True), (5, True), (0, False), (5, False)):
        feed(Stream(seed=0, spec=ring.spec), rows, ring)
        manifest = Segments(ring, tmp_path, kept=kept).save()
        other = make_ring(2, 16)
        other.load_state_dict(saved_state(ring))
        assert Segments(other, tmp_path).load(manifest) == (kept or rows == 0)
        ring.load_state_dict(empty)
