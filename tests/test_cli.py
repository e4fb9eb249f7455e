import json
import shutil
import subprocess
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image, ImageSequence

from supple import checkpoint, doctor
from supple.agents import AGENTS, FlashSACSettings
from supple.checkpoint import list_checkpoints
from supple.cli import BAD_INPUT, DONE, FAILED, main, train_settings
from supple.configs.base import from_json, to_json
from supple.configs.flags import parse_flags
from supple.envs.toy import Counter
from supple.errors import InputError
from tests.small_runs import flags, one_line, reached, run_whole, small_settings


@pytest.fixture(scope="module")
def trained(agent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pendulum"
    run_whole(small_settings("gym/Pendulum-v1", folder, env_steps=400, agent=agent))
    return folder


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train"], "needs a TASK"),
        (["train", "gym/HalfCheeta-v5"], "did you mean gym/HalfCheetah-v5"),
        (["train", "toy/lqr", "--agent.gama", "0.9"], "unknown flag --agent.gama; did you mean"),
        (
            ["train", "toy/lqr", "--agent.gamma", "much"],
            "supple: error: --agent.gamma must be a number, got much",
        ),
        (
            ["train", "toy/recall", "--agent", "ppo", "--agent.memory", "gru"],
            "supple: error: --agent.memory must be an integer, in digits, got gru",
        ),
        (
            ["train", "toy/lqr", "--agent.critic=flow_official", "--agent.flow.target-samples=x"],
            "supple: error: --agent.flow.target-samples must be an integer, in digits, got x; see",
        ),
        (["train", "toy/lqr", "--env-steps", "-5"], "error: --env-steps must be >= 1, got -5"),
        (["train", "toy/lqr", "--presett", "cpu"], "unknown flag --presett; did you mean --preset"),
        (
            ["train", "toy/lqr", "--no-diagnostics.enabled"],
            "flag --no-diagnostics.enabled; did you mean --diagnostics.no-enabled?",
        ),
        (["train", "toy/lqr", "--agent-name", "ppo"], "flag --agent-name; did you mean --agent?"),
        (["train", "toy/lqr", "--agent.gamma", "1.5"], "--agent.gamma must be in (0, 1), got 1.5"),
        (["train", "toy/lqr", "--agent", "sac"], "--agent must be one of flashsac, ppo, got sac"),
        (["train", "toy/lqr", "--preset", "lap"], "did you mean laptop?"),
        (["train", "toy/lqr", "--agent", "ppo", "--preset", "quality"], "one of laptop, cpu, gpu"),
        (["train", "toy/lqr", "--agent", "ppo", "--agent.critic", "flow"], "drop one of the two"),
        (["train", "toy/lqr", "--agent", "ppo", "--agent.utd", "2"], "of --agent flashsac;"),
        (["train", "toy/lqr", "--agent.learning-rate=1"], "did you mean --agent.lr-peak?"),
        (["train", "toy/lqr", "--lr", "1"], "unknown flag --lr; did you mean --agent.lr-peak?"),
        (["train", "toy/lqr", "--agent", "ppo", "--learning_rate", "1"], "mean --agent.lr?"),
        (["train", "toy/lqr", "--agent", "ppo", "--agent.clip", "0"], "--agent.clip must be > 0"),
        (["train", "toy/lqr", "--agent", "ppo", "--agent.gamma", "2"], "must be in (0, 1), got 2"),
        (
            ["train", "toy/lqr", "--agent", "ppo", "--agent.minibatches", "9999"],
            "is more than the 2048 transitions of a rollout",
        ),
        (
            ["train", "toy/lqr", "--agent", "ppo", "--replay.capacity", "4096"],
            "--replay.capacity is not PPO's to choose",
        ),
        (["train", "toy/lqr", "--agent", "ppo", "--overlap"], "ppo here every 128: drop the flag"),
        (
            ["train", "toy/lqr", "--agent.replay-age-floor", "0.5"],
            "--agent.replay-age-floor 0.5 means nothing without --agent.replay-age-decay",
        ),
        (
            ["train", "toy/lqr", "--agent", "ppo", "--agent.sequence-steps", "16"],
            "--agent.sequence-steps 16 means nothing without a memory",
        ),
        (
            ["train", "toy/lqr", "--agent", "ppo", "--agent.sequence-steps", "3"],
            "--agent.sequence-steps must divide --agent.rollout-steps 128, got 3",
        ),
        (["train", "toy/lqr", "--device", "tpu"], "--device must be auto, cpu, cuda"),
        (["train", "gym/CartPole-v1"], "needs continuous actions, gym/CartPole-v1 has 2 discrete"),
        (
            ["train", "toy/lqr", "--preset", "cpu", "--env-steps", "3000"],
            "learning begins at --agent.min-replay 10000 transitions, the run ends at --env-steps"
            " 3000: raise --env-steps, or lower --agent.min-replay",
        ),
        (["train", "toy/lqr", "--replay.capacity", "10000000000000"], "lower --replay.capacity"),
        (["train", "toy/lqr", "--agent.critic", "linear"], "linear"),
        (
            ["train", "toy/lqr", "--agent.flow.kappa", "0.5"],
            "--agent.flow.kappa means nothing to --agent.critic categorical: drop the flag, or take"
            " --agent.critic flow or flow_official",
        ),
        (["trane"], "invalid choice: 'trane'"),
        (["resume", "/nonexistent"], "holds no run"),
        (["eval", "/nonexistent"], "holds no run"),
        (["eval"], "required: DIR"),
        (["train", "toy/lqr", "toy/lqr"], "only flags after supple train TASK, got toy/lqr; see"),
        (["play", "/nonexistent"], "holds no run"),
        (["list", "gim"], "unknown simulator gim"),
        (["doctor", "--env", "no_such:thing"], "cannot import no_such"),
        (["doctor", "--env.history", "2"], "--env.history: --env.* flags are of --env TASK"),
        (["doctor", "--nan-dump", "a", "b"], "unrecognized arguments: b; see supple doctor --help"),
        (["doctor", "--env", "toy/lqr", "--env.histori", "2"], "did you mean --env.history?"),
        (["doctor", "--env", "toy/lqr", "--seed", "2"], "unrecognized arguments: --seed; see"),
        (["doctor", "--env", "toy/lqr", "more"], "flags after supple doctor --env TASK, got more"),
        (
            ["doctor", "--env", f"{__name__}:wants_a_robot"],
            "missing a required argument: 'robot'; give it with --env.config NAME=VALUE",
        ),
        (
            ["compare", "toy/lqr", "--out", "cmp", "--variant", "a b"],
            '--variant must be "NAME: FLAGS"',
        ),
        (["compare", "toy/lqr", "--out", "cmp", "--seeds", "1", "1"], "--seeds must differ"),
        (["compare", "toy/lqr", "--out", "cmp", "--variant", "..: "], "a name of its own"),
        (["compare", "toy/lqr", "--out", "cmp", "--variant", "a: --x 'y"], "No closing quotation"),
        (["compare", "toy/lqr", "--out", "cmp", "--", "--seed", "1"], "--seed is set by supple"),
        (["train", "--env-steps", "60", "toy/lqr"], "TASK comes first"),
        (["train", "toy/lqr", "--agent.utd", "inf"], "--agent.utd must be a finite number"),
        (["train", "toy/lqr", "--agent.noise.exponent", "nan"], "--agent.noise.exponent must be"),
        (["train", "toy/lqr", "--agent.noise.exponent", "-1"], "exponent must be >= 0, got -1"),
        (["train", "toy/lqr", "--agent.target-entropy", "-inf"], "target-entropy must be a finite"),
        (["train", "toy/lqr", "--max-minutes", "inf"], "--max-minutes must be a finite number"),
        (["train", "toy/lqr", "--compute.precision", "tf32", "--device", "cpu"], "needs a CUDA"),
        (["eval", "somewhere", "--seed", "-1"], "must be >= 0 and within 64 bits, got -1"),
        (["play", "somewhere", "--seed", "-1"], "must be >= 0 and within 64 bits, got -1"),
        (["train", "toy/lqr", "--seed", str(2**63)], f"within 64 bits, got {2**63}"),
        (["--", "train"], "the command comes first"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == BAD_INPUT
    assert text in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be_written_is_refused(agent, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["train", "toy/lqr", *flags(agent), "--run-dir", str(blocked / "run")]) == BAD_INPUT
    assert "choose another --run-dir" in one_line(capsys)


def test_an_existing_run_is_never_overwritten(agent, trained, capsys):
    before = sorted(path.stat().st_mtime_ns for path in trained.rglob("*"))
    assert main(["train", "gym/Pendulum-v1", *flags(agent), "--run-dir", str(trained)]) == BAD_INPUT
    assert f"supple resume {trained}" in one_line(capsys)
    assert sorted(path.stat().st_mtime_ns for path in trained.rglob("*")) == before


def test_train_leaves_a_complete_run_and_names_it_last(agent, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["train", "toy/lqr", *flags(agent), "--env-steps", "400"]
    arguments += ["--run-dir", str(folder)]
    assert main(arguments) == DONE
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(folder)
    assert "evaluation return" in out
    names = {path.name for path in folder.iterdir()}
    assert {"settings.json", "versions.json", "spec.json", "metrics.csv", "metrics.jsonl"} <= names
    assert {"progress.png", "result.json", "checkpoints"} <= names
    assert any(name.startswith("events") for name in names)
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["agent_name"] == agent
    assert settings["agent"]["actor_hidden"] in (8, [8])
    assert json.loads((folder / "spec.json").read_text())["deployment"] is None


def test_eval_prints_one_json_line_and_repeats_with_the_same_seed(trained, capsys):
    assert main(["eval", str(trained), "--episodes", "2", "--json"]) == DONE
    first = json.loads(capsys.readouterr().out)
    assert first.keys() == {"return_mean", "return_std", "return_ci95", "episodes", "env_steps"}
    assert (first["episodes"], first["env_steps"]) == (2, 400)
    assert main(["eval", str(trained), "--episodes", "2", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out) == first


def test_one_episode_has_no_interval(trained, capsys):
    assert main(["eval", str(trained), "--episodes", "1", "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert (found["return_std"], found["return_ci95"]) == (None, None)
    assert main(["eval", str(trained), "--episodes", "1"]) == DONE
    out = capsys.readouterr().out
    assert "(1 episode, no interval)" in out and "±" not in out


def test_play_writes_a_video(trained, tmp_path, capsys):
    video = tmp_path / "deep" / "out.mp4"
    assert main(["play", str(trained), "--video", str(video)]) == DONE
    assert capsys.readouterr().out.splitlines()[-1] == str(video)
    assert video.stat().st_size > 1000
    assert main(["play", str(trained), "--video", str(tmp_path / "out.avi")]) == BAD_INPUT
    assert "must end in .mp4" in one_line(capsys)


def test_play_films_where_it_is_told_to(trained, tmp_path, capsys):
    def returned(*flags):
        video = ["--video", str(tmp_path / "out.gif"), "--seconds", "0.1"]
        assert main(["play", str(trained), *video, *flags]) == DONE
        return capsys.readouterr().out.splitlines()[0]

    own = returned()
    assert own == returned("--task", "gym/Pendulum-v1")
    assert own != returned("--env.config", "g=1", "max_episode_steps=20")
    assert main(["play", str(trained), "--env.history", "2"]) == BAD_INPUT
    assert "gym/Pendulum-v1 has observation policy 6 and 1 actions" in one_line(capsys)


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_play_writes_a_moving_picture_as_long_as_asked(trained, tmp_path, suffix, capsys):
    made = tmp_path / f"out.{suffix}"
    assert main(["play", str(trained), "--video", str(made), "--seconds", "1"]) == DONE
    with Image.open(made) as picture:
        frames = sum(1 for _ in ImageSequence.Iterator(picture))
        assert frames in (20, 30)
        assert picture.size == (250, 250)
        assert suffix == "webp" or picture.info["duration"] >= 20  # pages show less slowly
    assert main(["play", str(trained), "--video", str(made), "--seconds", "0.001"]) == DONE
    with Image.open(made) as picture:
        assert getattr(picture, "n_frames", 1) == 1
    assert "filming gym/Pendulum-v1" in capsys.readouterr().err
    assert main(["play", str(trained), "--video", str(made), "--seconds", "0"]) == BAD_INPUT
    assert "must be > 0, got 0" in one_line(capsys)


def corrupted(trained, tmp_path, how):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (newest,) = list_checkpoints(folder)
    file = next(newest.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    if how == "truncated":
        file.write_bytes(data[:-100])
    elif how == "flipped":
        data[-100] ^= 1
        file.write_bytes(data)
    else:
        found = checkpoint.load(newest)
        header = dict(found.header)
        if how == "agent":
            header["agent"] = "another"
        else:
            header["spec"] = header["spec"] | {"observation": {"policy": 4}}
        checkpoint.save(folder, found.header["env_steps"], header, found.state)
    return folder


@pytest.mark.parametrize("command", ["eval", "resume"])
@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("truncated", "bytes"),
        ("flipped", "SHA-256"),
        ("agent", "is a checkpoint of agent another"),
        ("observation", "made with observation {'policy': 4}"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused(trained, tmp_path, command, how, text, capsys):
    folder = corrupted(trained, tmp_path, how)
    extend = ["--env-steps", "800"] if command == "resume" else []
    assert main([command, str(folder), *extend]) == BAD_INPUT
    assert text in one_line(capsys)


class TurnsNan(gymnasium.Env):
    """Returns NaN from its 100th step on."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        value = np.nan if self.steps >= 100 else 0.1
        return np.full(2, value, np.float32), 0.0, False, False, {}


def test_a_simulator_that_returns_nan_ends_the_run_and_names_field_and_step(
    agent, tmp_path, capsys
):
    folder = tmp_path / "run"
    arguments = ["train", f"{__name__}:TurnsNan", *flags(agent), "--env-steps", "400"]
    small = ["--checkpoint.every", "50", "--eval.every", "1000", "--run-dir", str(folder)]
    assert main([*arguments, *small, "--env.on-bad", "fail"]) == FAILED
    error = one_line(capsys)
    assert "NaN or infinity in observation/policy" in error
    assert "vector step 100" in error
    found, skipped = checkpoint.newest_intact(folder)
    assert found.header["env_steps"] == reached(agent, 150)
    assert not skipped


def test_doctor_judges_an_environment(capsys):
    assert main(["doctor", "--env", "toy/lqr"]) == DONE
    assert "0 failed" in capsys.readouterr().out
    assert main(["doctor", "--env", f"{__name__}:TurnsNan"]) == FAILED
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert main(["doctor", "--env", "toy/lqr", "--steps", "10"]) == DONE
    out = capsys.readouterr().out
    assert "0 episodes ended, too few to judge their flags" in out
    assert f"checks passed ({out.count('note:')} with a note), 0 failed" in out
    assert main(["doctor", "--env", "toy/lqr", "--steps", "1"]) == BAD_INPUT
    assert "--steps must be >= 2, got 1" in one_line(capsys)


class OnlyThere(Counter):
    """A simulator that runs as it is trained, and no other way."""

    def __init__(self, num_envs, device):
        assert (num_envs, str(device)) == (3, "cpu"), (num_envs, device)
        super().__init__(num_envs, device)


def test_doctor_builds_as_many_environments_as_asked_where_asked(capsys):
    task = ["doctor", "--env", f"{__name__}:OnlyThere"]
    assert main([*task, "--num-envs", "3", "--device", "cpu"]) == DONE, capsys.readouterr().out
    assert main([*task, "--num-envs", "0"]) == BAD_INPUT
    assert "--num-envs must be >= 1, got 0" in one_line(capsys)
    assert main([*task, "--num-envs", "3", "--device", "cuda:99"]) == BAD_INPUT
    assert "--device cuda:99: this machine has" in one_line(capsys)


def wants_a_robot(robot):
    assert robot == "go1"
    return gymnasium.make("Pendulum-v1")


def test_doctor_proves_what_is_trained_with_flags(monkeypatch, capsys):
    proved = []

    def check(build, **_):
        proved.append(build().spec)
        return []

    monkeypatch.setattr(doctor, "check_env", check)
    flags = ["--env.config", "robot=go1", "--env.history", "3", "--env.action-delay", "1"]
    assert main(["doctor", "--env", f"{__name__}:wants_a_robot", *flags]) == DONE
    (spec,) = proved
    assert (spec.num_envs, spec.observation["policy"]) == (4, 9)
    assert spec.added == {"action_delay": 1, "history": 3}


def test_doctor_and_list_say_what_is_here(capsys):
    assert main(["doctor"]) == DONE
    assert "torch" in capsys.readouterr().out
    assert main(["list"]) == DONE
    out = capsys.readouterr().out
    assert "laptop" in out
    assert "flashsac" in out
    assert "ppo" in out
    assert main(["list", "gym"]) == DONE
    assert "gym/HalfCheetah-v5" in capsys.readouterr().out.splitlines()


def test_every_help_text_is_printed(capsys):
    for command in ("train", "resume", "eval", "play", "compare", "list", "doctor"):
        assert main([command, "--help"]) == DONE
        assert command in capsys.readouterr().out


@pytest.mark.parametrize("agent", AGENTS)
def test_every_flag_says_what_it_does(agent, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "toy/lqr", "--agent", agent, "--help"]) == DONE
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    flags = [pair for pair in pairwise(lines) if pair[0].startswith("--")]
    assert len(flags) > 50
    assert not [flag for flag, said in flags if said.startswith("(default:")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flashsca", "did you mean flashsac?"),
        ("nowhere:Agent", "--agent nowhere:Agent"),
        ("supple.agents:Nobody", "has no Nobody"),
        ("supple.agents:Agent", "expected a class that extends FlashSAC or PPO"),
        ("supple.agents:base_of", "expected a class that extends FlashSAC or PPO"),
    ],
)
def test_an_agent_that_is_none_is_one_line(name, said, capsys):
    assert main(["train", "toy/lqr", "--agent", name]) == BAD_INPUT
    assert said in capsys.readouterr().err


def test_compare_runs_seeds_and_variants_and_continues(tmp_path, capsys):
    out = tmp_path / "cmp"
    arguments = ["compare", "toy/lqr", "--seeds", "0", "1", "--out", str(out), "--jobs", "2"]
    arguments += [
        "--variant",
        "two: --agent.num-critics 2",
        "--variant",
        "one: --agent.num-critics 1",
    ]
    arguments += ["--", *flags(), "--env-steps", "100"]
    assert main(arguments) == DONE
    assert main(arguments) == DONE
    printed = capsys.readouterr().out
    assert "4 of 4 runs are already finished" in printed
    table = (out / "compare.csv").read_text().splitlines()
    assert [line.split(",")[1:3] for line in table[1:]] == [["two", "2 of 2"], ["one", "2 of 2"]]
    assert (out / "compare.png").stat().st_size > 5000
    again = out / "one" / "seed1"
    subprocess.run(["rm", "-r", str(again)], check=True)
    assert main(arguments) == DONE
    assert "3 of 4 runs are already finished" in capsys.readouterr().out
    # One that was trained by itself, as a job array does (docs/scaling.md), is taken as it is.
    subprocess.run(["rm", "-r", str(again)], check=True)
    own = ["--agent.num-critics", "1", "--seed", "1", "--run-dir", str(again)]
    assert main(["train", "toy/lqr", *own, *flags(), "--env-steps", "100"]) == DONE
    assert main(arguments) == DONE
    assert "4 of 4 runs are already finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("critic", "width", "depth", "readout", "next_actions"),
    [("flow", 64, 2, "integrate", 1), ("flow_official", 128, 2, "distilled", 4)],
)
def test_a_critic_brings_its_own_defaults_under_every_flag(
    critic, width, depth, readout, next_actions
):
    agent = train_settings(
        ["toy/lqr", "--preset", "laptop", "--agent.critic", critic, "--agent.flow.kappa", "0.25"]
    ).agent
    assert isinstance(agent, FlashSACSettings)
    flow = agent.flow
    assert agent.critic == critic
    assert (flow.width, flow.depth, flow.readout, flow.kappa) == (width, depth, readout, 0.25)
    assert agent.next_actions == next_actions


@pytest.mark.parametrize(
    ("critic", "flags"),
    [
        ("scalar", "--agent.num-atoms 51"),
        ("scalar", "--agent.flow.readout distilled"),
        ("flow", "--agent.num-atoms 51"),
        ("flow_official", "--agent.num-atoms 51"),
        ("flow_official", "--agent.critic-norm none"),
        ("flow_official", "--agent.critic-hidden 512"),
        ("flow_official", "--agent.critic-blocks 3"),
        ("flow_official", "--agent.no-project-critic"),
    ],
)
def test_flags_that_the_critic_does_not_read_are_refused(critic, flags):
    task = ["toy/lqr", "--preset", "laptop", "--agent.critic", critic]
    name = flags.split()[0].replace("no-", "")
    with pytest.raises(InputError, match=f"^{name} means nothing to --agent.critic {critic}: "):
        train_settings([*task, *flags.split()])
    train_settings([*task, *flags.split(), "--agent", "benchmarks.experiments.fql:FQL"])


def test_settings_of_an_idle_critic_that_a_run_recorded_are_read(tmp_path):
    settings = small_settings("toy/lqr", tmp_path, env_steps=100)
    assert isinstance(settings.agent, FlashSACSettings)
    settings.agent.flow.kappa, settings.agent.critic = 0.5, "scalar"
    settings.agent.target_entropy = -3  # a library user's, whole
    assert from_json(json.loads(json.dumps(to_json(settings)))) == settings
    parse_flags(settings, ["--env.obs-noise", "0.1"])  # as supple eval does


@pytest.mark.parametrize(
    ("flags", "next_actions"),
    [
        ("--preset cpu", 8),
        ("--preset gpu", 8),
        ("--preset laptop", 4),
        ("--preset laptop --agent.next-actions 1", 1),
        ("--preset laptop --agent.flow.target-samples 8", 8),
        ("--preset laptop --agent.flow.target-samples 1", 1),
        ("--preset cpu --agent.flow.target_samples 4 --agent.next-actions 2", 2),
    ],
)
def test_the_published_flow_takes_an_action_for_each_target_sample(flags, next_actions):
    agent = train_settings(["toy/lqr", "--agent.critic", "flow_official", *flags.split()]).agent
    assert isinstance(agent, FlashSACSettings)
    assert agent.next_actions == next_actions
