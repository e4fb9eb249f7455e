"""Numbers recorded from CMU-AIRe/floq: velocities, integrals, target, loss and gradients."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from supple.agents.critics import CriticSize
from supple.agents.flow_critics import FlowRange, PublishedFlowCritic
from supple.agents.flow_settings import FlowSettings
from supple.agents.velocity import VelocityNet
from supple.kernels.critic_integration import velocity

DATA = Path(__file__).parent / "data"
RECORDINGS = sorted(DATA.glob("floq_critic_*.safetensors"))
if os.environ.get("SUPPLE_PARITY_FLOQ"):
    RECORDINGS.append(Path(os.environ["SUPPLE_PARITY_FLOQ"]))
RELATIVE = 1e-4


def recording(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["meta"]), tensors


def stacked(tensors, prefix, depth):
    """Recorded parameters or gradients under our names."""

    def of(name, layers):
        return torch.stack([tensors[f"{prefix}/{name.format(i)}"] for i in layers])

    hidden, norms = range(1, depth), range(depth)
    return {
        "first_EHD": tensors[f"{prefix}/linear.0.weight"],
        "first_bias_EH": tensors[f"{prefix}/linear.0.bias"],
        "hidden_LEHH": of("linear.{}.weight", hidden),
        "bias_LEH": of("linear.{}.bias", hidden),
        "gain_LEH": of("layer_norm.{}.scale", norms),
        "shift_LEH": of("layer_norm.{}.shift", norms),
        "out_E1H": tensors[f"{prefix}/linear.{depth}.weight"],
        "out_bias_E": tensors[f"{prefix}/linear.{depth}.bias"].squeeze(-1),
    }


def build(meta, tensors, prefix):
    samples, steps = meta["noise_samples"], meta["euler_steps"]
    settings = FlowSettings(
        width=meta["hidden"][0],
        depth=len(meta["hidden"]),
        target_steps=steps,
        read_steps=steps,
        target_samples=samples,
        train_samples=samples,
        read_samples=samples,
        edges=meta["num_bins"],
        sigma_bins=meta["sigma_in_bin_widths"],
        time_encoding="cos",
        activation="gelu",
        norm="layer",
        aggregate=meta["aggregation"],
        readout="integrate",
        reduction="sum",
    )
    critic = PublishedFlowCritic(
        CriticSize(
            inputs=meta["obs_dim"] + meta["action_dim"],
            hidden=1,
            blocks=0,
            members=meta["ensemble"],
        ),
        settings=settings,
        spans=FlowRange(
            value_low=meta["q_min"],
            value_high=meta["q_max"],
            noise_low=meta["noise_min"],
            noise_high=meta["noise_max"],
        ),
        generator=torch.Generator().manual_seed(0),
    )
    names = stacked(tensors, prefix, settings.depth)
    critic.load_state_dict({f"net.{name}": value for name, value in names.items()})
    return critic


def ours(path):
    """Every recorded result, computed by our critic, by its recorded name."""
    meta, given = recording(path)
    data = SimpleNamespace(**{name: value for name, value in given.items() if "/" not in name})
    online, target = build(meta, given, "online"), build(meta, given, "target")
    found = {}

    with torch.no_grad():
        after = target(torch.cat((data.next_observation, data.next_action), -1), train=True)
        start = target.noise(data.target_noise_ratio)
        steps = meta["euler_steps"]
        found["next_integrated_value"] = target.integrated(after, start, steps)
        discount = meta["gamma"] * data.discount_mask
        found["target_value"], clipped = target.target(
            after, data.reward, discount, torch.zeros_like(discount), data.target_noise_ratio
        )
        assert clipped == 0

    action = data.action.clone().requires_grad_()
    now = online(torch.cat((data.observation, action), -1), train=True)
    with torch.no_grad():
        found["probe_velocity"] = velocity(
            online.net.field(),
            online.net.form,
            data.probe_z[None] if data.probe_z.dim() == 2 else data.probe_z,
            now.condition_EBH.unsqueeze(2),
            online.net.time(data.flow_time),
        )
        found["integrated_value"] = online.integrated(now, online.noise(data.noise_ratio), steps)
    value = online.value(now, data.noise_ratio).mean(0).sum()  # whatever the target joins by
    (found["grad_action_mean_q"],) = torch.autograd.grad(value, action, retain_graph=True)

    uniform = torch.cat((data.noise_ratio, data.flow_time), -1)
    loss = online.loss(now, found["target_value"], uniform)
    found["loss"] = loss.detach()
    names = [f"net.{name}" for name in stacked(given, "online", len(meta["hidden"]))]
    parameters = dict(online.named_parameters())
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    expected = {name: given[name] for name in found if name != "loss"}
    expected["loss"] = torch.tensor(meta["loss"])
    recorded = stacked(given, "grad_online", len(meta["hidden"]))
    for name, gradient in zip(recorded, gradients, strict=True):
        found[f"gradient of {name}"], expected[f"gradient of {name}"] = gradient, recorded[name]
    return found, expected


def wrong(found, expected):
    """Names of results that differ by more than the tolerance, relative to their largest entry."""
    assert found.keys() == expected.keys()
    return {
        name
        for name, value in expected.items()
        if not (found[name] - value).abs().max() <= RELATIVE * value.abs().max()
    }


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_published_critic_matches_the_recorded_reference(path):
    assert wrong(*ours(path)) == set()


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_right_end_euler_times_do_not(path, monkeypatch):
    def right_ends(self, steps):
        t = (torch.arange(steps) + 1) / steps
        return self.time(t[:, None])[:, :, 0].transpose(0, 1)

    monkeypatch.setattr(VelocityNet, "grid", right_ends)
    assert {"next_integrated_value", "integrated_value", "grad_action_mean_q"} <= wrong(*ours(path))
