"""The ring in host memory. Here minibatches travel from the CPU to the CPU; on a GPU, see below."""

import contextlib

import pytest
import torch

from supple import launch
from supple.errors import InputError
from supple.replay import AgeBias, Replay, ReplaySettings, SpilledReplay
from supple.replay.spill import ALIGNMENT, IN_FLIGHT, Staging
from supple.rng import Generators
from tests.replay.naive import Stream, make_spec
from tests.small_runs import deterministic_rows, finish, run_until, run_whole, small_settings

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def rings(obs_dtype="float32", device=CPU):
    """A spilled ring and a device's own, with the same steps in them."""
    settings = ReplaySettings(capacity=40, final_fraction=0.2, obs_dtype=obs_dtype)
    spec = make_spec(4)
    spilled = SpilledReplay(spec, settings, extra_spec={"value": (2,)}, device=device)
    own = Replay(spec, settings, extra_spec={"value": (2,)}, device=device)
    stream = Stream(3, spec)
    for _ in range(17):
        obs, action, step = stream.step()
        extras = {"value": torch.rand(4, 2)}
        spilled.add(obs.to(device), action.to(device), step.to(device), _to(extras, device))
        own.add(*_to((obs, action, step, extras), device))
    return spilled, own


def _to(values, device):
    return torch.utils._pytree.tree_map(lambda value: value.to(device), values)


def draw(ring, seed, batch_size=6):
    generator = torch.Generator(ring.device).manual_seed(seed)
    return ring.sample(batch_size, generator=generator, n_step=3, age_bias=AgeBias(5, 0.1))


@pytest.mark.parametrize("obs_dtype", ["float32", "bfloat16"])
def test_it_draws_what_the_device_ring_draws(obs_dtype):
    spilled, own = rings(obs_dtype)
    for seed in range(5):
        expected = draw(own, seed)
        assert expected["observation", "policy"].isfinite().all()
        assert (draw(spilled, seed) == expected).all()
    assert (draw(spilled, 5, batch_size=9) == draw(own, 5, batch_size=9)).all()
    assert spilled.metrics() == own.metrics()


def test_a_minibatch_stays_as_it_is_while_later_ones_are_drawn():
    spilled, _ = rings()
    first = draw(spilled, 0)
    kept = first.clone()
    for seed in range(1, 2 + IN_FLIGHT):
        draw(spilled, seed)
    assert (first == kept).all()


def test_a_step_may_be_plain_dicts():
    spec = make_spec(4)
    spilled, own = (kind(spec, ReplaySettings(capacity=40)) for kind in (SpilledReplay, Replay))
    obs, action, step = Stream(3, spec).step()
    spilled.add(obs.to_dict(), action, step.to_dict())
    own.add(obs, action, step)
    assert all(torch.equal(spilled.columns[name], own.columns[name]) for name in own.columns)


def test_a_buffer_is_filled_again_only_when_its_copy_was_made_and_used_only_when_it_arrived(
    monkeypatch,
):
    log = []

    class Event:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            log.append(("host waits for copy", self.number))

    class FakeStream:
        copies = 0

        def record_event(self):
            self.copies += 1
            return Event(self.copies)

        def wait_stream(self, other):
            log.append(("user waits for copy", other.copies))

    user, copies = FakeStream(), FakeStream()
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: user)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda _, stream: log.append(("kept for", stream))
    )
    staging = Staging({"x": ((3,), torch.float32), "flag": ((2,), torch.bool)}, CPU)
    staging._stream = copies  # type: ignore[assignment]
    for number in range(1, 4):
        buffer = staging.begin()
        assert buffer["flag"].data_ptr() - buffer["x"].data_ptr() == ALIGNMENT
        buffer["x"].fill_(number)
        buffer["flag"].fill_(True)
        sent = staging.send()
        assert sent["x"].tolist() == [number] * 3
        assert sent["flag"].tolist() == [True, True]
    sending = [[("user waits for copy", number), ("kept for", user)] for number in (1, 2, 3)]
    assert log == [*sending[0], *sending[1], ("host waits for copy", 1), *sending[2]]


def test_numbers_drawn_elsewhere_keep_their_place_when_saved():
    def numbers():
        return Generators(1, torch.device("meta"), {"replay": CPU})["replay"]

    generators = Generators(1, CPU, {"replay": CPU})
    assert numbers().device == CPU
    torch.rand(3, generator=generators["replay"])
    again = Generators(2, torch.device("meta"), {"replay": CPU})
    again.load_state_dict(generators.state_dict())
    expected = torch.rand(3, generator=generators["replay"])
    assert torch.equal(torch.rand(3, generator=again["replay"]), expected)


@pytest.mark.parametrize("compiles", [False, True])
def test_a_run_on_a_spilled_ring_stops_resumes_and_ends_like_any_other(
    tmp_path, monkeypatch, request, compiles
):
    if compiles:
        request.getfixturevalue("traced_graphs")

    def settings_of(name):
        settings = small_settings("toy/lqr", tmp_path / name, env_steps=120)
        settings.compute.compile = "on" if compiles else "off"
        return settings

    expected = run_whole(settings_of("own"))
    monkeypatch.setattr("supple.build.Replay", SpilledReplay)
    run_until(settings_of("spilled"), 80)
    again = finish(launch.resumed_run(tmp_path / "spilled"))
    assert isinstance(again.replay, SpilledReplay)
    assert deterministic_rows(again.folder) == deterministic_rows(expected.folder)


def test_it_is_refused_without_a_gpu(tmp_path):
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=100)
    settings.replay.spill = True
    with pytest.raises(InputError, match=r"--replay\.spill needs a CUDA device, got cpu: drop the"):
        launch.new_run(settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_minibatches_arrive_whole_while_the_gpu_computes():
    spilled, own = rings(device=CUDA)
    busy = torch.randn(2048, 2048, device=CUDA)
    drawn = []
    for seed in range(20):
        drawn.append(draw(spilled, seed))
        busy = torch.tanh(busy @ busy)
    for seed, batch in enumerate(drawn):
        start = batch["index"][:, 0] * 4 + batch["index"][:, 1]
        assert batch.device in (None, CUDA)
        assert torch.equal(batch["action"], own._flat["action"][start])
        assert torch.equal(batch["observation", "policy"], own.storage["policy"][start])
        assert (batch.cpu() == draw(spilled, seed).cpu()).all()
    assert all(value.device.type == "cuda" for value in spilled.metrics().values())
