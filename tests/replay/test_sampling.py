import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from supple.errors import InputError
from supple.replay import AgeBias, Replay, ReplaySettings
from supple.replay.sampling import UNIFORM, choose, first_usable, uniform_shape
from tests.replay.naive import Naive, Stream, assert_finite, feed, make_ring, make_spec


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(steps, *, num_envs=3, rows=7, seed=0, **stream_options):
    ring = make_ring(num_envs, rows)
    naive = Naive.like(ring)
    feed(Stream(seed=seed, spec=ring.spec, **stream_options), steps, ring, naive)
    return ring, naive


def choices(batch_size, *, oldest, rows, num_rows, num_envs, age_bias=UNIFORM):
    shape = uniform_shape(batch_size, age_bias)
    start = choose(
        torch.rand(shape, dtype=torch.float64, generator=generator()),
        oldest=torch.tensor(oldest),
        rows=torch.tensor(rows),
        num_rows=num_rows,
        num_envs=num_envs,
        age_bias=age_bias,
    )
    return start // num_envs, start % num_envs


def counts(ring, number=60_000, **options):
    index = ring.sample(number, generator=generator(5), **options)["index"]
    flat = index[:, 0] * ring.num_envs + index[:, 1]
    return torch.bincount(flat, minlength=ring.num_rows * ring.num_envs).numpy()


def chi_square_excess(seen):
    """Standard deviations by which the chi-square of equal chances exceeds its mean."""
    freedom = len(seen) - 1
    chi_square = ((seen - seen.mean()) ** 2).sum() / seen.mean()
    return (chi_square - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("steps", [4, 7, 12, 14])
@pytest.mark.parametrize("n_step", [1, 3])
def test_starts_are_uniform_over_all_windows_that_stop_before_the_head(steps, n_step):
    ring, naive = filled(steps, end=0.0)
    seen = counts(ring, n_step=n_step)
    allowed = np.zeros_like(seen, dtype=bool)
    for step, env in naive.starts(n_step):
        allowed[step % ring.num_rows * ring.num_envs + env] = True
    assert not seen[~allowed].any()
    assert chi_square_excess(seen[allowed]) < 5


def age_weights(rows, bias):
    """Mean of the weight over each whole step of age."""
    edges = np.linspace(0, rows, rows * 1000 + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    return np.maximum(1 - middles / bias.decay, bias.floor).reshape(rows, 1000).mean(1)


@pytest.mark.parametrize("rows", [1, 3, 30])
@pytest.mark.parametrize("bias", [AgeBias(10, 0.05), AgeBias(10, 0.5), AgeBias(1000, 0.05)])
def test_age_bias_draws_rows_by_their_weight(rows, bias):
    t, env = choices(50_000, oldest=25, rows=rows, num_rows=40, num_envs=3, age_bias=bias)
    age = (24 + rows - t) % 40
    seen = np.zeros((rows, 3))
    np.add.at(seen, (age.flatten().numpy(), env.flatten().numpy()), 1)
    weight = age_weights(rows, bias)
    expected = np.repeat(weight / weight.sum() / 3, 3).reshape(rows, 3) * t.numel()
    freedom = max(seen.size - 1, 1)
    excess = ((seen - expected) ** 2 / expected).sum() - freedom
    assert excess / np.sqrt(2 * freedom) < 5
    assert rows == 1 or ((seen - seen.mean()) ** 2 / seen.mean()).sum() > excess + freedom


def test_age_bias_with_floor_one_is_uniform_and_reaches_every_row():
    t, _ = choices(20_000, oldest=3, rows=30, num_rows=40, num_envs=1, age_bias=AgeBias(10, 1.0))
    assert chi_square_excess(torch.bincount((t - 3).flatten(), minlength=30).numpy()) < 5


def test_the_ring_draws_new_rows_more_often_when_asked():
    ring, _ = filled(12, end=0.0)
    bias = AgeBias(5, 0.05)
    rows = ring.draw(20_000, generator=generator(), age_bias=bias).start // ring.num_envs
    age = (ring.vector_steps - 1 - rows) % ring.num_rows
    seen = torch.bincount(age, minlength=6).numpy()
    weight = age_weights(6, bias)
    assert np.abs(seen / seen.sum() - weight / weight.sum()).max() < 0.01


def test_a_skewed_draw_fails_the_uniformity_test():
    ring, _ = filled(7, end=0.0)
    seen = counts(ring)
    seen[0] += seen[0] // 5
    assert chi_square_excess(seen) > 5


def test_starts_are_uniform_over_the_valid_rows_when_some_are_not():
    ring, naive = filled(11, end=0.1, invalid=0.3)
    usable = np.zeros(ring.num_rows * ring.num_envs, dtype=bool)
    for step, env in naive.starts(1):
        usable[step % ring.num_rows * ring.num_envs + env] = naive.history[step][env].usable
    seen = counts(ring)
    assert not seen[~usable].any()
    # A slot whose candidates all fail repeats another slot's row: that widens the spread.
    assert seen[usable].std() < 0.2 * seen[usable].mean()


def test_draws_reach_every_row_of_a_ring_larger_than_float32_can_number():
    t, env = choices(4096, oldest=0, rows=2**26, num_rows=2**26, num_envs=3)
    flat = t * 3 + env
    assert (flat % 2).float().mean() == pytest.approx(0.5, abs=0.05)
    assert int(flat.max()) > 2**27
    assert flat.unique().numel() > 0.99 * flat.numel()


def test_draws_start_at_the_oldest_row_and_wrap():
    t, env = choices(512, oldest=5, rows=4, num_rows=7, num_envs=2)
    assert t.shape == env.shape == (512 + 256,)
    assert set(t.flatten().tolist()) == {5, 6, 0, 1}
    assert set(env.flatten().tolist()) == {0, 1}


def test_the_first_usable_candidates_are_taken_in_order():
    usable = torch.tensor([False, True, True, False, True, True])
    pick, failed = first_usable(usable, 3)
    assert pick.tolist() == [1, 2, 4]
    assert int(failed) == 0


def test_too_few_usable_candidates_take_turns():
    usable = torch.zeros(90, dtype=torch.bool)
    usable[[5, 17, 40]] = True
    pick, failed = first_usable(usable, 60)
    assert torch.bincount(pick, minlength=90)[[5, 17, 40]].tolist() == [20, 20, 20]
    assert int(failed) == 0


def test_without_any_usable_candidate_every_slot_counts_as_failed():
    pick, failed = first_usable(torch.zeros(70, dtype=torch.bool), 5)
    assert int(pick.max()) < 70
    assert int(failed) == 5


def test_one_valid_row_among_many_serves_the_whole_batch():
    ring, _ = filled(7, num_envs=1, end=0.0, rows=8)
    ring.columns["valid"][:] = False
    ring.columns["valid"][3] = True
    batch = ring.sample(64, generator=generator())
    assert (batch["index"] == torch.tensor([3, 0])).all()
    assert_finite(batch)
    ring.check()


def test_a_ring_without_valid_rows_is_counted_and_refused_at_the_check():
    ring, _ = filled(7, end=0.0, invalid=1.0)
    ring.check()
    ring.sample(6, generator=generator())
    assert int(ring.metrics()["replay/invalid_sampled"]) == 6
    with pytest.raises(InputError, match=r"almost no valid rows.*not valid.*supple doctor --env"):
        ring.check()


def test_a_ring_of_rows_that_lost_their_finals_names_what_keeps_them():
    ring = make_ring(1, 40, final_fraction=0.05)
    stream = Stream(seed=0, spec=ring.spec, end=1.0)
    for _ in range(40):
        obs, action, step = stream.step()
        step["terminated"][:] = False
        ring.add(obs, action, step)
    ring.columns["valid"][:] = False
    ring.sample(6, generator=generator())
    assert int(ring.metrics()["replay/final_evicted"])
    with pytest.raises(InputError, match=r"almost no valid rows: \d+.*--replay.final-fraction"):
        ring.check()


def test_equal_generators_draw_equal_samples():
    ring, _ = filled(20)
    one, other, different = (
        ring.sample(32, generator=generator(seed), n_step=2) for seed in (1, 1, 2)
    )
    assert (one == other).all()
    assert not (one == different).all()


def test_too_few_rows_for_a_window_are_refused():
    ring, _ = filled(2)
    assert ring.can_sample(2)
    assert not ring.can_sample(3)
    with pytest.raises(InputError, match="cannot sample 3-step windows from 2 stored rows"):
        ring.sample(4, generator=generator(), n_step=3)


@pytest.mark.parametrize("wrong", [{"n_step": 0}, {"gamma": 2.0}, {"gamma": math.nan}])
def test_windows_of_no_steps_and_discounts_that_grow_are_refused(wrong):
    ring, _ = filled(2)
    name, value = next(iter(wrong.items()))
    expected = rf"n_step >= 1 and gamma in \[0, 1\], got .*{name}={value}"
    with pytest.raises(InputError, match=expected):
        ring.draw(4, generator=generator(), **wrong)


@pytest.mark.parametrize("bias", [AgeBias(-5, 0.1), AgeBias(5, 2.0), AgeBias(5, -1.0)])
def test_ages_that_weigh_nothing_sensible_are_refused(bias):
    ring, _ = filled(20)
    with pytest.raises(InputError, match=rf"decay >= 0 and a floor in .*decay={bias.decay}"):
        ring.draw(4, generator=generator(), age_bias=bias)


def test_an_empty_ring_cannot_be_sampled():
    ring = make_ring(2, 3)
    assert ring.size == 0
    assert not ring.can_sample()
    with pytest.raises(InputError, match="from 0 stored rows"):
        ring.sample(4, generator=generator())


def test_observation_and_next_observation_are_halves_of_one_tensor():
    ring, _ = filled(10)
    batch = ring.sample(16, generator=generator())
    for group, width in ring.spec.observation.items():
        now, then = batch["observation", group], batch["next", "observation", group]
        assert then.data_ptr() == now.data_ptr() + 16 * width * now.element_size()
    for flag in ("reward", "terminated", "truncated", "done", "discount"):
        assert batch["next", flag].shape == (16, 1)


def test_samples_are_copies():
    ring, _ = filled(10)
    batch = ring.sample(16, generator=generator())
    before = batch.clone()
    feed(Stream(seed=9, spec=ring.spec), 10, ring)
    assert (batch == before).all()


class NoHostCopy(TorchDispatchMode):
    """Fails where a tensor's values would be needed on the host."""

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} copies to the host"
        masks = args[1] if name in ("index", "index_put_", "index_put") else ()
        assert all(mask is None or mask.dtype != torch.bool for mask in masks), (
            f"{name} with a mask copies to the host"
        )
        return func(*args, **(kwargs or {}))


def test_the_guard_against_host_copies_notices_them():
    with NoHostCopy():
        for offence in (
            lambda x: x.item(),
            lambda x: bool(x.any()),
            lambda x: x[x > 0],
            lambda x: x.nonzero(),
        ):
            with pytest.raises(AssertionError, match="copies to the host"):
                offence(torch.ones(1))


@pytest.mark.parametrize("num_envs", [1, 3])
def test_adding_closing_and_sampling_never_copy_to_the_host(num_envs):
    ring = make_ring(num_envs, 4, final_fraction=1e-9)
    stream = Stream(seed=0, spec=ring.spec, end=0.4)
    for _ in range(11):
        arguments = stream.step()
        with NoHostCopy():
            ring.add(*arguments)
            ring.sample(5, generator=generator(), n_step=1)
            ring.metrics()
            if ring.vector_steps % 4 == 3:
                ring.close_open_rows()
            if ring.can_sample(3):
                ring.sample(5, generator=generator(), n_step=3, exact_discount=False)


def test_adding_and_sampling_need_no_values_at_all():
    spec = make_spec(2)
    arguments = Stream(seed=0, spec=spec).step()
    # Fake tensors have shapes and no values: a branch on values or a data-dependent shape raises.
    with FakeTensorMode(allow_non_fake_inputs=True):
        ring = Replay(spec, ReplaySettings(capacity=6))
        for _ in range(4):
            ring.add(*arguments)
        ring.close_open_rows()
        batch = ring.sample(5, generator=generator(), n_step=2)
    assert batch["next", "observation", "policy"].shape == (5, 3)
