import gc
import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from supple import region
from supple.agents.flashsac import FlashSAC
from supple.bench import update
from supple.errors import InputError
from supple.region import (
    COMPILE_FROM,
    Captured,
    Compute,
    ComputeSettings,
    Joined,
    Precision,
    Region,
    precision_of,
)
from tests.agents.small_agents import (
    assert_same_bits,
    small_agent,
    small_settings,
    small_spec,
    snapshot,
    train,
)

CPU = torch.device("cpu")
SMALL = {"actor_hidden": 8, "critic_hidden": 8, "critic_blocks": 1, "actor_blocks": 1}


def agent_with(compute, **changes):
    settings = small_settings(**SMALL, num_atoms=5, **changes)
    return FlashSAC(small_spec(), settings, total_env_steps=2000, compute=compute)


def test_what_a_benchmark_replays_keeps_the_memory_its_graph_reads(monkeypatch):
    """Else the graph would write its products into what others have there by then."""
    graph: Any = SimpleNamespace(replay=lambda: None)  # knows addresses only

    def capture(run):
        return Captured(graph, run, run())

    monkeypatch.setattr(update, "capture", capture)
    left = torch.ones(2, 2)
    kept = weakref.ref(left)
    replay = update._replayed(partial(torch.mm, left, left), torch.device("cuda"))
    del left
    gc.collect()
    assert kept() is not None
    del replay
    gc.collect()
    assert kept() is None


def refuse(*_, **__):
    raise RuntimeError("no compiler here\nand a long story")


def assert_goes_on_eagerly(compute, saying):
    """With one warning, and as an agent that was eager from the start."""
    agent = agent_with(compute)
    with pytest.warns(UserWarning, match=f"{saying}: no compiler here$") as caught:
        train(agent, 3)
    assert len(caught) == 1
    assert str(agent.compute) == "eager float32"
    assert_same_bits(snapshot(agent), snapshot(train(agent_with(Compute()), 3)))


def test_where_compilation_fails_training_goes_on_eagerly_with_one_warning(monkeypatch):
    monkeypatch.setattr("torch._inductor.standalone_compile", refuse)
    assert_goes_on_eagerly(Compute(compile=True), "going on in eager")


def spoilt(spoil):
    """A compiler whose steps end in another state than they should."""

    def compiled(step, inputs):
        def run(*inputs):
            outputs = step(*inputs)
            spoil()
            return outputs

        return run

    return compiled


def two_weights(*, compute):
    """A region that moves one weight by its input, and a second by rounding; a third is large."""
    weights = torch.ones(64), torch.ones(16), torch.ones(10_000)

    def move(step):
        weights[0].sub_(step)
        weights[1].add_(1e-7)
        return {"loss": weights[0].square().sum()}

    return Region(move, state=lambda: list(weights), compute=compute), weights


def test_a_compiled_step_that_is_wrong_is_left_for_the_eager_one(monkeypatch):
    """Which is what users would else find after a day, in a flat curve."""
    step = torch.linspace(0, 1e-3, 64)
    region, (weight, *_) = two_weights(compute=Compute(compile=True))
    monkeypatch.setattr("supple.region.compile_graph", spoilt(lambda: weight.add_(step, alpha=0.5)))
    said = r"eager: \d\d\.\d% of what the compiled step gives is not what the eager one does"
    with pytest.warns(UserWarning, match=said) as caught:
        region(step)
    assert len(caught) == 1
    assert not region._compute.compile
    assert torch.equal(weight, 1 - step)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_step_may_round_otherwise(monkeypatch, precision):
    step = torch.linspace(0, 1e-3, 64)
    compute = Compute(compile=True, precision=precision)
    region, (weight, other, _) = two_weights(compute=compute)
    share = {"float32": 1e-3, "bfloat16": 0.2}[precision]

    def rounding():
        weight.add_(step, alpha=share)
        other.add_(2e-7)

    monkeypatch.setattr("supple.region.compile_graph", spoilt(rounding))
    region(step)
    assert region._compute.compile
    assert torch.equal(weight, 1 - step + share * step)


def test_a_compiled_step_may_take_the_other_side_of_a_kink(monkeypatch):
    """There rounding decides, and a little beside it does not."""
    state = torch.zeros(3)
    region = Region(
        lambda x: state.add_(x >= 1), state=lambda: [state], compute=Compute(compile=True)
    )
    monkeypatch.setattr(
        "supple.region.compile_graph", lambda *_: lambda x: state.add_((x > 1) | (x < 0.9))
    )
    x = torch.ones(3)
    region(x)
    assert region._compute.compile
    assert torch.equal(state, torch.zeros(3)) and torch.equal(x, torch.ones(3))


def test_a_small_output_counts_beside_a_large_state(monkeypatch):
    """As an action does beside the networks."""
    state = torch.ones(10_000)
    region = Region(
        lambda obs: obs + state.add_(0.1)[:3], state=lambda: [state], compute=Compute(compile=True)
    )

    def compiled(step, inputs):
        return lambda obs: step(obs) * 3

    monkeypatch.setattr("supple.region.compile_graph", compiled)
    with pytest.warns(UserWarning, match=r"100\.0% of what the compiled step gives"):
        region(torch.ones(3))


def test_a_step_that_fits_the_memory_only_when_compiled_is_trusted(monkeypatch):
    def eager(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    region = Region(eager, state=list, compute=Compute(compile=True))
    monkeypatch.setattr("supple.region.compile_graph", lambda *_: lambda x: 2 * x)
    assert region(torch.ones(())).item() == 2
    assert region._compute.compile


def test_a_compiled_step_that_draws_another_row_or_no_number_is_wrong(monkeypatch):
    for wrong in (torch.tensor([3]), torch.tensor([2.0, torch.nan])):
        right = wrong.nan_to_num(1.0).clone()
        right[0] = 2
        region = Region(lambda right=right: right, state=list, compute=Compute(compile=True))
        monkeypatch.setattr("supple.region.compile_graph", lambda *_, wrong=wrong: lambda: wrong)
        with pytest.warns(UserWarning, match=r"100\.0% of what the compiled step gives"):
            assert region() is right


def test_where_capturing_fails_training_goes_on_ungraphed_with_one_warning(monkeypatch):
    def refuse_late(run, around):
        for _ in range(3):
            with around():
                run()
        refuse()

    monkeypatch.setattr("supple.region.capture", refuse_late)
    assert_goes_on_eagerly(Compute(cuda_graphs=True), "going on without CUDA graphs")


def test_a_region_leaves_its_state_as_it_was_while_it_is_prepared(traced_graphs):
    counter = torch.zeros(())

    def count(amount):
        counter.add_(amount)
        return {"count": counter + 0}

    region = Region(count, state=lambda: [counter], compute=Compute(compile=True))
    assert [region(torch.tensor(2.0))["count"].item() for _ in range(3)] == [2, 4, 6]
    assert len(traced_graphs) == 1


def test_a_compiled_region_refuses_other_shapes_and_takes_any_memory_layout(traced_graphs):
    region = Region(lambda x: x * 2, state=list, compute=Compute(compile=True))
    x = torch.arange(6.0).view(2, 3)
    region(x)
    assert torch.equal(region(x.t().contiguous().t()), x * 2)
    with pytest.raises(InputError, match=r"expected torch.float32 \(2, 3\), got .* \(3, 2\); it"):
        region(x.t())
    with pytest.raises(InputError, match=r"got torch.float64 \(2, 3\)"):
        region(x.double())
    assert len(traced_graphs) == 1


def scale_and_shift(compute):
    """Two regions of one value, which do not commute; and the value."""
    value = torch.ones(())

    def scale(factor):
        value.mul_(factor)
        return {}

    def shift(amount, unused):
        value.add_(amount)
        return {}

    return [Region(each, state=lambda: [value], compute=compute) for each in (scale, shift)], value


def test_joined_regions_run_as_one_at_the_end_of_the_block_in_their_order(traced_graphs):
    compute = Compute(compile=True)
    (scale, shift), value = scale_and_shift(compute)
    joined = Joined(compute)
    three = torch.tensor(3.0)
    for expected in (6, 21):
        before = value.item()
        with joined:
            scale(three)
            shift(three, three)
            assert value.item() == before
        assert value.item() == expected
    assert len(traced_graphs) == 1
    scale(three)  # outside, at once
    assert value.item() == 63


def test_of_a_joined_block_that_raises_nothing_runs(traced_graphs):
    compute = Compute(compile=True)
    (scale, _), value = scale_and_shift(compute)
    joined = Joined(compute)
    with pytest.raises(InputError), joined:
        scale(torch.tensor(3.0))
        raise InputError("bad row")
    assert value.item() == 1
    with joined:
        scale(torch.tensor(2.0))
    assert value.item() == 2


def test_eager_regions_are_not_put_off():
    (scale, shift), value = scale_and_shift(Compute())
    with Joined(Compute()):
        scale(torch.tensor(3.0))
        assert value.item() == 3
        shift(torch.tensor(3.0), value)
    assert value.item() == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ComputeSettings(precision="tf32"),
            "--compute.precision tf32 needs a CUDA device, got cpu",
        ),
        (ComputeSettings(cuda_graphs=True), "--compute.cuda-graphs needs a CUDA device, got cpu"),
    ],
)
def test_what_the_device_cannot_do_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        settings.resolve(CPU, gradient_steps=1)


def test_auto_compiles_long_runs_where_there_is_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/c++")
    auto = ComputeSettings()
    assert auto.resolve(CPU, gradient_steps=COMPILE_FROM).compile
    assert not auto.resolve(CPU, gradient_steps=COMPILE_FROM - 1).compile
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not auto.resolve(CPU, gradient_steps=COMPILE_FROM).compile
    assert ComputeSettings(compile="on").resolve(CPU, gradient_steps=1).compile


@pytest.mark.parametrize(
    ("supported", "speedup", "chosen"),
    [
        (True, 2.0, "bfloat16"),
        (True, 0.5, "float32"),  # instructions at half the rate
        (True, 1.1, "float32"),  # not worth the rounding
        (False, 2.0, "float32"),  # emulated
    ],
)
def test_auto_precision_is_what_the_processor_multiplies_faster(
    monkeypatch, supported, speedup, chosen
):
    monkeypatch.setattr("supple.region.has_bfloat16", lambda device: supported)
    monkeypatch.setattr("supple.region._speedup", lambda threads: speedup)
    assert ComputeSettings().resolve(CPU, gradient_steps=1).precision == chosen
    assert small_agent().compute.precision == "float32"  # a library default never surprises


def test_the_speed_of_precisions_is_timed_once_and_is_a_ratio(monkeypatch):
    region._speedup.cache_clear()
    ratio = region._speedup(1)
    assert 1 / 100 < ratio < 100
    monkeypatch.setattr("time.perf_counter", lambda: pytest.fail("timed again"))
    assert region._speedup(1) == ratio


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_precision_is_read_from_the_text_of_how_it_was_computed(precision):
    assert precision_of(str(Compute(precision=precision, compile=True))) == precision
    assert precision_of("eager") is None
