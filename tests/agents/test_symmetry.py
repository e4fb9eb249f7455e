"""Learning from mirror images: what is refused, what is mirrored, and what stays."""

import sys
from typing import Any

import pytest
import torch

from supple.agents import PPO, FlashSAC, PPOSettings
from supple.agents.ppo import AVERAGED
from supple.agents.symmetry import SignedPermutation, mirrors
from supple.cli import BAD_INPUT, DONE, main
from supple.envs.base import Discrete
from supple.errors import InputError
from supple.replay import Replay, ReplaySettings
from tests.agents.small_agents import (
    OBSERVATIONS,
    RandomReplay,
    generator,
    random_batch,
    random_obs,
    random_step,
    small_settings,
    small_spec,
)
from tests.small_runs import assert_resumes_with_the_same_bits, flags, run_whole
from tests.small_runs import small_settings as run_settings

CPU = torch.device("cpu")
HERE = "tests.agents.test_symmetry"
SWAPPED = {"policy": [1, 0, 2, 3, 5, 4], "critic": [0, 2, 1], "action": [2, 1, 0]}
SIGNS = {"policy": [1, 1, -1, 1, 1, 1], "critic": [-1, 1, 1], "action": [1, -1, 1]}


def swapped(group, rows):
    return rows[:, SWAPPED[group]] * torch.tensor(SIGNS[group])


def negated(group, rows):
    return -rows


def reflected(group, rows):
    return rows if group == "action" else -rows


# --- what a function may do ---------------------------------------------------------------------


def test_what_a_function_does_is_found_out():
    spec = small_spec(observation={"policy": OBSERVATIONS, "critic": 3})
    images = mirrors(f"{HERE}:swapped", spec, CPU)
    for group, image in images.items():
        rows = torch.randn(7, len(SIGNS[group]), generator=generator(1))
        assert torch.equal(image(rows), swapped(group, rows))
        assert torch.equal(image(image(rows)), rows)
    both = SignedPermutation.side_by_side([images["critic"], images["action"]])
    left, right = torch.randn(2, 7, 3, generator=generator(2))
    expected = torch.cat((swapped("critic", left), swapped("action", right)), dim=1)
    assert torch.equal(both(torch.cat((left, right), dim=1)), expected)


def turned(group, rows):
    return rows.roll(1, dims=1)


def scaled(group, rows):
    return 0.5 * rows


def shifted(group, rows):
    return rows + 1


def merged(group, rows):
    return rows[:, [0, 0, *range(2, rows.shape[1])]]


def narrowed(group, rows):
    return rows[:, 1:]


def counted(group, rows):
    return len(rows)


def short_of_one(group, rows):
    return {"policy": rows}[group]


def wordy(group, rows):
    raise ValueError("one\ntwo")


def sized(group, rows):
    return rows.abs()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("turned", "number 0 of policy does not come back"),
        ("scaled", "as it is or negated; number 0 does not"),
        ("shifted", "each of the 6 numbers of policy to go to a place of its own"),
        ("merged", "number 0 does not"),
        ("narrowed", r"as wide as policy, \(12, 6\), got \(12, 5\)"),
        ("counted", "got int"),
        ("short_of_one", "failed with 9 rows of action, each 3 wide: KeyError: 'action'; it is"),
        ("wordy", "each 6 wide: ValueError: one two;"),
        ("sized", "expected the same for every row of policy"),
        ("nothing", "has no nothing \\(--agent.symmetry"),
    ],
)
def test_anything_else_is_refused_in_one_line(name, text):
    with pytest.raises(InputError, match=text) as caught:
        mirrors(f"{HERE}:{name}", small_spec(), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mirror", "mirror:", ":mirror"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(InputError, match=f"must look like module:callable, got {name}"):
        mirrors(name, small_spec(), CPU)


def test_memories_and_choices_have_no_mirror_image():
    with pytest.raises(InputError, match=r"needs --agent\.memory 0"):
        PPOSettings(symmetry=f"{HERE}:swapped", memory=8)
    settings = PPOSettings(symmetry=f"{HERE}:swapped", rollout_steps=4)
    with pytest.raises(InputError, match="needs continuous actions"):
        PPO(small_spec(action=Discrete(n=3)), settings, total_env_steps=100).prepare()


# --- FlashSAC -----------------------------------------------------------------------------------


def mirrored_flashsac(**changes):
    spec = small_spec(observation={"policy": OBSERVATIONS, "critic": 3})
    settings = small_settings(symmetry=f"{HERE}:swapped", **changes)
    return FlashSAC(spec, settings, total_env_steps=100)


def test_half_of_a_minibatch_is_mirrored_whole():
    agent = mirrored_flashsac()
    before = random_batch(agent, generator(3), rows=400)
    after = agent._mirrored(before)
    assert after[3:] == before[3:]  # rewards, ends and discounts: the same tensors
    flipped = (after.action_BA != before.action_BA).any(1)
    assert 150 < flipped.sum() < 250
    widths = {"actor_obs_2BD": ("policy",), "critic_obs_2BD": agent.critic_groups}
    for name, groups in widths.items():
        rows = getattr(before, name)
        sizes = [len(SIGNS[group]) for group in groups]
        parts = zip(groups, rows.split(sizes, dim=1), strict=True)
        image = torch.cat([swapped(group, part) for group, part in parts], dim=1)
        assert torch.equal(
            getattr(after, name), torch.where(flipped.repeat(2).unsqueeze(1), image, rows)
        )
    image = swapped("action", before.action_BA)
    assert torch.equal(after.action_BA, torch.where(flipped[:, None], image, before.action_BA))


def test_without_the_flag_a_minibatch_is_left_alone():
    agent = FlashSAC(small_spec(), small_settings(), total_env_steps=100)
    batch = random_batch(agent, generator(3))
    assert agent._mirrored(batch) is batch
    assert "symmetry" not in agent.generators.state_dict()["streams"]


@pytest.mark.parametrize("symmetry", ["", f"{HERE}:reflected"])
def test_what_was_learned_on_one_side_holds_on_the_other(symmetry):
    """All rows lie on one side, where actions are to be large."""
    sizes = {"batch_size": 64, "min_replay": 1, "lr_init": 3e-3, "lr_peak": 3e-3}
    settings = small_settings(symmetry=symmetry, actor_blocks=1, critic_blocks=1, **sizes)
    agent = FlashSAC(small_spec(), settings, total_env_steps=1000)
    replay: Any = RandomReplay(small_spec())
    columns = replay.columns
    columns["policy"] += 3
    columns["reward"] = columns["action"].sum(1)
    columns["terminated"] = torch.ones_like(columns["terminated"])
    for _ in range(100):
        agent.update(replay)
    act = agent.greedy()
    here, there = (act({"policy": side * columns["policy"]}).mean() for side in (1, -1))
    assert here > 0.5
    assert (there > 0.5) == bool(symmetry)


# --- PPO ----------------------------------------------------------------------------------------


def filled(**changes):
    """An agent with a critic of its own observations, and one rollout."""
    spec = small_spec(observation={"policy": OBSERVATIONS, "critic": 3})
    sizes: dict[str, Any] = {"rollout_steps": 16, "minibatches": 1, "epochs": 1}
    sizes |= {"actor_hidden": (8,), "critic_hidden": (8,), "initial_std": 0.5}
    settings = PPOSettings(lr_schedule="fixed", **sizes, **changes)
    agent = PPO(spec, settings, total_env_steps=1000)
    *_, last = agent.actor.parameters()
    with torch.no_grad():  # so that it is far from its mirror image
        last.normal_(generator=generator(4))
    replay = Replay(spec, agent.ring(ReplaySettings()), extra_spec=agent.extra_spec)
    random = generator(5)
    for _ in range(16):
        obs, step = random_obs(random, spec), random_step(random, spec).to_dict()
        step["final_observation"] = random_obs(random, spec).to_dict()
        action, extras = agent.act(obs.to_dict(), explore=True)
        replay.add(obs.to_dict(), action, step, extras)
    return agent, replay


@pytest.mark.parametrize("distribution", ["gaussian", "squashed"])
@pytest.mark.parametrize("std", ["shared", "state"])
def test_an_image_is_as_likely_under_the_mirrored_policy(distribution, std):
    agent, replay = filled(symmetry=f"{HERE}:swapped", distribution=distribution, std=std)
    rows = agent._pack(agent._rollout(replay))
    rows = rows[rows.abs().sum(1) > 0]  # those that are steps
    image = agent._image(rows)
    names, widths = list(agent._fields), list(agent._fields.values())
    before, after = (
        dict(zip(names, part.split(widths, dim=1), strict=True)) for part in (rows, image)
    )
    for name in ("log_prob", "advantage", "value", "target", "valid"):
        assert torch.equal(after[name], before[name])
    assert not after["own"].any() and before["own"].all()
    assert torch.equal(after["draw"], swapped("action", before["draw"]))
    assert torch.equal(after["actor_obs"], swapped("policy", before["actor_obs"]))
    likelihood = agent.distribution.log_prob(after["params"], after["draw"])
    torch.testing.assert_close(likelihood, before["log_prob"].squeeze(1))


def test_the_divergence_is_of_what_the_policy_did_itself():
    """Nothing was learned before the only gradient step, so there is none."""
    agent, replay = filled(symmetry=f"{HERE}:swapped")
    assert agent.update(replay)["actor/kl"].item() == pytest.approx(0, abs=1e-6)
    assert agent.metrics["actor/clip_fraction"] > 0.2  # images are of another policy


def test_images_count_nothing_in_the_divergence():
    agent, replay = filled(symmetry=f"{HERE}:swapped")
    rows = agent._pack(agent._rollout(replay))
    rows = rows[rows.abs().sum(1) > 0][:30]
    *_, last = agent.actor.parameters()
    with torch.no_grad():
        last.add_(0.1)
    own = dict(zip(agent._fields, rows[:20].split(list(agent._fields.values()), 1), strict=True))
    head, _ = agent.actor.step(own["actor_obs"], torch.zeros(20, 0))
    distribution = agent.distribution
    expected = distribution.divergence(own["params"], distribution.params(head)).mean().item()
    agent._optimizer.begin(1e-3, 1)
    agent._learn_step(torch.cat((rows[:20], agent._image(rows[20:]))))
    assert agent._sums[AVERAGED.index("actor/kl")].item() == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


def test_what_is_normal_is_its_own_image():
    agent, replay = filled(symmetry=f"{HERE}:swapped")
    agent.update(replay)
    for name, network in (("actor_obs", agent.actor), ("critic_obs", agent.critic)):
        image, normaliser = getattr(agent._images, name), network.normaliser
        torch.testing.assert_close(image(normaliser.mean), normaliser.mean)
        torch.testing.assert_close(image(normaliser.std).abs(), normaliser.std)


# --- whole runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["flashsac", "ppo"])
def test_a_run_resumes_as_if_it_had_never_stopped(agent, tmp_path):
    def settings(folder):
        made = run_settings("toy/lqr", folder, env_steps=200, agent=agent)
        made.agent.symmetry = f"{HERE}:negated"
        return made

    state = assert_resumes_with_the_same_bits(settings, tmp_path, at=130)
    assert "symmetry" in state["agent"]["generators"]["streams"]


@pytest.mark.parametrize("agent", ["flashsac", "ppo"])
def test_only_learning_needs_the_function(agent, tmp_path, monkeypatch, capsys):
    (tmp_path / "gone.py").write_text("def mirror(group, rows):\n    return -rows\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = ["--agent.symmetry", "gone:mirror", "--env-steps", "120"]
    run = str(tmp_path / "run")
    assert main(["train", "toy/lqr", *flags(agent), *given, "--run-dir", run]) == DONE
    (tmp_path / "gone.py").unlink()
    monkeypatch.delitem(sys.modules, "gone")
    assert main(["eval", run, "--episodes", "1"]) == DONE
    assert main(["export", run, "--out", str(tmp_path / "bundle")]) == DONE
    capsys.readouterr()
    assert main(["resume", run, "--env-steps", "160"]) == BAD_INPUT
    assert "cannot import gone for --agent.symmetry gone:mirror" in capsys.readouterr().err


def test_ppo_is_nearer_to_its_own_image(tmp_path):
    """The double integrator of toy/lqr may be driven to 0 from either side alike."""
    asymmetry = {}
    for symmetry in ("", f"{HERE}:negated"):
        made = run_settings("toy/lqr", tmp_path / f"{len(symmetry)}", env_steps=1500, agent="ppo")
        made.agent.symmetry = symmetry
        act = run_whole(made).agent.greedy()
        obs = torch.randn(256, 2, generator=generator(6))
        asymmetry[bool(symmetry)] = (act({"policy": obs}) + act({"policy": -obs})).abs().mean()
    assert asymmetry[True] < 0.2 * asymmetry[False]
