"""The C++ runner against a robot that behaves, one that does not, and one that is another."""

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch

from supple import launch
from supple.cli import RESUMABLE, main
from supple.configs import default_settings
from supple.deploy import chain, command
from supple.deploy.bundle import read_bundle
from supple.deploy.chain import build_runner, drive
from supple.deploy.export import bundle_files
from supple.deploy.plain import plain_policy
from supple.deploy.protocol import Kind, pack, pack_description, unpack
from supple.deploy.robot import Body, Channel, Orders, Weather
from supple.envs import EnvSettings, make
from supple.envs.gym_packages import carry_floor
from supple.errors import InputError, SimulatorError
from tests.deploy.small_bundles import (
    JOINTS,
    TERMS,
    contract_of,
    described,
    flashsac,
    ppo,
    remembering_spec,
    robot_spec,
    signed_again,
    trained,
    write,
)

ONNXRUNTIME = os.environ.get("SUPPLE_ONNXRUNTIME", "")
"""A folder with onnxruntime's include/ and lib/: its Python package brings no headers."""


def built(folder, agent, spec, task="", options=()):
    made = trained(agent, spec, folder)
    made.settings.task = task or made.settings.task
    bundle = write(folder / "bundle", bundle_files(made))
    # Unoptimised: it compiles in a third of the time, and the rates here are low.
    debug = ["-DCMAKE_BUILD_TYPE=Debug"]
    return build_runner(bundle, folder / "build", options=[*debug, *options]), bundle


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory):
    """Runner and bundle of an untrained half-cheetah."""
    task = "gym/HalfCheetah-v5"
    with closing(make(task, EnvSettings())) as env:
        spec = env.spec
    return built(tmp_path_factory.mktemp("cheetah"), flashsac(spec), spec, task)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Runner and bundle of the three-jointed robot: two frames, another joint order on board."""
    spec = robot_spec()
    return built(tmp_path_factory.mktemp("small"), flashsac(spec), spec)


def test_it_holds_the_control_rate_through_losses_and_delays(cheetah, tmp_path):
    log = tmp_path / "log.csv"
    found = drive(*cheetah, seconds=3.0, loss=0.05, delay=0.005, seed=1, log=log)
    assert found.status == 0, found.error
    assert found.runner["ticks"] == pytest.approx(60, abs=3)
    assert found.runner["damped"] <= 3
    assert found.runner["lost_states"] > 0 and found.robot["dropped"] > 0
    assert found.robot["frames"] == pytest.approx(60, abs=3)
    lines = log.read_text().splitlines()
    assert lines[0].startswith("tick,time_s,late_us") and len(lines) == 1 + found.runner["ticks"]
    moments = [float(line.split(",")[1]) for line in lines[1:]]
    # On a machine that is busy a tick may come late, but the rate never drifts.
    assert np.median(np.diff(moments)) == pytest.approx(0.05, abs=0.005)


def test_it_damps_and_gives_up_on_a_state_that_is_not_finite(cheetah):
    found = drive(*cheetah, seconds=2.5, robot_options=["--blind", "0.5"])
    assert found.status == 1 and "gave up" in found.error
    assert found.runner["not_finite"] >= 15
    assert found.runner["damped"] == found.runner["not_finite"]
    assert found.robot["damped_frames"] >= 15


def test_it_refuses_a_bundle_it_was_not_built_for(cheetah, small):
    command = [str(cheetah[0]), str(small[1]), "--port", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "refused: this runner was built for another bundle" in done.stderr


def test_it_refuses_another_policy_of_the_same_contract(small, tmp_path):
    manifest = signed_again(dict(read_bundle(small[1]).files) | {"policy.c": b"another"})
    (tmp_path / "manifest.json").write_bytes(manifest["manifest.json"])
    command = [str(small[0]), str(tmp_path), "--port", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "refused: this runner was built for another bundle" in done.stderr


@pytest.mark.parametrize("name", ["policy.c", "policy.h"])
def test_a_policy_that_is_not_the_manifests_is_not_built(name, small, tmp_path):
    files = dict(read_bundle(small[1]).files)
    bundle = write(tmp_path / "bundle", {**files, name: files[name] + b"\n"})
    text = f"does not build: .* {name} is not the one that manifest.json lists"
    with pytest.raises(InputError, match=text):
        build_runner(bundle, tmp_path / "build")


def test_nothing_else_of_a_bundle_is_compiled(small, tmp_path):
    files = dict(read_bundle(small[1]).files)
    # The policy's own includes, the runner's, and CMake's: none may come from the bundle.
    headers = ("math.h", "string.h", "stdint.h", "json.h", "cmath", "CMakeLists.txt")
    odd = dict.fromkeys(headers, b"#error taken from the bundle\n")
    bundle = write(tmp_path / "bundle", signed_again({**files, **odd}))
    build_runner(bundle, tmp_path / "build", options=["-DCMAKE_BUILD_TYPE=Debug"])
    assert sorted(os.listdir(tmp_path / "build" / "policy")) == ["policy.c", "policy.h"]


def test_it_refuses_what_it_does_not_know(small):
    for arguments, text in (
        ([str(small[1])], "--port is missing"),
        (["nowhere", "--port", "9"], "no manifest.json in nowhere"),
        ([str(small[1]), "--pace", "9"], "unknown option --pace"),
        ([str(small[1]), "--port", "9", "--unbounded", "9"], "unknown option --unbounded 9"),
        ([str(small[1]), "--port", "here"], "--port expects a number above 0, at most 65535"),
        ([str(small[1]), "--port", "65536"], "at most 65535, got '65536'"),
        ([str(small[1]), "--port", "9", "--seconds", "nan"], "got 'nan'"),
    ):
        done = subprocess.run(
            [str(small[0]), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and text in done.stderr


def signed(bundle, change):
    """The manifest with a changed contract, signed: only what it says can give it away."""
    files = read_bundle(bundle).files
    return signed_again(dict(files), lambda record: change(record["contract"]))["manifest.json"]


OF_9 = [{"observation": 0, "action": 9, "factor": 1.0, "steps": 1}]
ODD_MANIFESTS = {
    "edited by hand": (
        lambda bundle: (bundle / "manifest.json").read_bytes().replace(b"0.06", b"6.00"),
        "manifest.json was edited after export",
    ),
    "a number that is none": (
        lambda bundle: (bundle / "manifest.json").read_bytes().replace(b"0.06", b"NaN"),
        "manifest.json is no JSON at byte",
    ),
    "a joint that nobody moves": (
        lambda bundle: signed(bundle, lambda found: found["joints"]["robot_names"].append("neck")),
        "the policy does not move the robot's neck",
    ),
    "no way to brake": (
        lambda bundle: signed(bundle, lambda found: found["safety"]["damping"].update(gains=None)),
        "the manifest knows no damping gains",
    ),
    "a gain that does not brake": (
        lambda bundle: signed(
            bundle, lambda found: found["safety"]["damping"].update(gains=[0.5, 0.0, 0.5])
        ),
        "a damping gain in the manifest is not above 0",
    ),
    "a gain that is a word": (
        lambda bundle: signed(
            bundle, lambda found: found["safety"]["damping"].update(gains=[0.5, "inf", 0.5])
        ),
        "expected a number in a list of numbers",
    ),
    "an action that there is not": (
        lambda bundle: signed(bundle, lambda found: found["observation"].update(last_action=OF_9)),
        "the manifest's last_action has an odd action",
    ),
    "commands of nobody knows what": (
        lambda bundle: signed(bundle, lambda found: found["gains"].update(control_mode=None)),
        "the manifest does not know what commands are",
    ),
    "limits of other joints": (
        lambda bundle: signed(bundle, lambda found: found["safety"]["command_low"].pop()),
        "the manifest's command limits are not one for each joint",
    ),
    "no limits": (
        lambda bundle: signed(
            bundle, lambda found: found["safety"].update(command_low=False, command_high=False)
        ),
        "the manifest does not bound the commands of hip: tell its limits",
    ),
    "a joint without a limit": (
        lambda bundle: signed(
            bundle, lambda found: found["safety"]["command_high"].__setitem__(1, None)
        ),
        "the manifest does not bound the commands of knee",
    ),
    "a limit that is a word": (
        lambda bundle: signed(
            bundle, lambda found: found["safety"]["command_high"].__setitem__(1, "inf")
        ),
        "a command limit in the manifest is no number",
    ),
    "limits the wrong way round": (
        lambda bundle: signed(
            bundle, lambda found: found["safety"]["command_high"].__setitem__(1, -9.0)
        ),
        "command limits of knee are the wrong way round",
    ),
}


@pytest.mark.parametrize("kind", ODD_MANIFESTS)
def test_it_refuses_a_manifest_that_it_cannot_obey(kind, small, tmp_path):
    change, text = ODD_MANIFESTS[kind]
    changed = change(small[1])
    assert changed != (small[1] / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").write_bytes(changed)
    command = [str(small[0]), str(tmp_path), "--port", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and text in done.stderr


class FakeRobot:
    """Answers a hello and sends states 100 times a second until told to stop."""

    def __init__(self):
        joints, channels = ("ankle", "hip", "knee"), TERMS[::-1]
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.01)
        self.port = self.socket.getsockname()[1]
        self.description = {"joints": joints, "channels": channels, "control_mode": "position"}
        self.state = np.zeros(len(channels), np.float32)
        self.first = 0  # sequence number
        self.lag = 0.0  # [s], of states that come steadily all the same
        self.pause = 0.0  # before a hello is answered [s]
        self.mute = False
        self.packets = []
        self.sending = threading.Event()
        self.alive = True
        self.thread = threading.Thread(target=self.live)
        self.thread.start()

    def live(self):
        peer, count = None, 0
        while self.alive:
            try:
                data, peer = self.socket.recvfrom(65507)
            except TimeoutError:
                pass
            else:
                packet = unpack(data)
                assert packet is not None
                if packet.kind is Kind.HELLO:
                    time.sleep(self.pause)
                    self.socket.sendto(pack_description(self.description, data), peer)
                    self.sending.set()
                else:
                    self.packets.append((time.monotonic(), packet))
                    continue
            if peer and self.sending.is_set() and not self.mute:
                sequence = (self.first + count) % 2**32
                sent = pack(Kind.STATE, sequence, time.monotonic() - self.lag, self.state)
                self.socket.sendto(sent, peer)
                count += 1

    def close(self):
        self.alive = False
        self.thread.join()
        self.socket.close()


@pytest.fixture
def robot():
    robot = FakeRobot()
    yield robot
    robot.close()


def test_commands_are_the_policys_in_the_robots_order(small, robot):
    # Channels come in the opposite order of the policy's, joints in the robot's own.
    robot.state = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    command = [str(small[0]), str(small[1]), "--port", str(robot.port), "--seconds", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    spec = robot_spec()
    obs = torch.tensor([[0.1, 0.2, 0.3, 0.4] * 2])  # the first frame repeats
    hip, knee, ankle = plain_policy(flashsac(spec), spec)(obs)[1][0].tolist()
    _, first = robot.packets[0]
    assert first.kind is Kind.COMMAND
    assert first.numbers.tolist() == pytest.approx([ankle, hip, knee], abs=1e-5)
    assert robot.packets[-1][1].kind is Kind.DAMP  # its last word


def test_commands_end_at_the_manifests_limits_and_only_where_asked_without(small, robot, tmp_path):
    def limit(found):
        found["safety"]["command_low"] = [-9.0, -9.0, None]
        found["safety"]["command_high"] = [-8.0, 9.0, None]

    (tmp_path / "manifest.json").write_bytes(signed(small[1], limit))
    command = [str(small[0]), str(tmp_path), "--port", str(robot.port), "--seconds", "0.3"]
    command += ["--unbounded", "allow"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    ankle, hip, _ = robot.packets[0][1].numbers.tolist()
    assert hip == -8.0 and -0.63 <= ankle <= 0.03


def remembered(policy, count):
    """Commands from the start of an episode on, as training would have shown the last actions."""
    none = torch.zeros(1, len(JOINTS))
    actions: list[torch.Tensor] = []
    shown, commands = [none], []
    for _ in range(count):
        now = (2 * actions[-1]).clamp(-0.8, 0.8) * 0.5 if actions else none
        late = actions[-3][:, 1:2] if len(actions) >= 3 else none[:, :1]
        state = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        action, command = policy(torch.cat((state, shown[-1], now, late), dim=1))
        actions.append(action.clamp(-1, 1))
        shown.append(now)
        commands.append(command[0, [2, 0, 1]].tolist())
    return commands


@pytest.mark.parametrize("kind", ["c", "onnx"])
def test_the_runner_fills_in_the_policys_own_last_actions(kind, robot, tmp_path):
    if kind == "onnx" and not ONNXRUNTIME:
        pytest.skip("SUPPLE_ONNXRUNTIME names no onnxruntime for C++")
    spec = remembering_spec()
    agent = ppo(spec)
    options = [f"-DSUPPLE_ONNXRUNTIME={ONNXRUNTIME}"] * (kind == "onnx")
    runner, bundle = built(tmp_path, agent, spec, options=options)
    robot.state = np.array([0.4, 0.3, 0.2, 0.1], np.float32)  # it knows of no actions
    command = [str(runner), str(bundle), "--port", str(robot.port), "--seconds", "0.5"]
    done = subprocess.run(
        [*command, "--policy", kind], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [packet.numbers for _, packet in robot.packets if packet.kind is Kind.COMMAND]
    expected = np.array(remembered(plain_policy(agent, spec), 8))
    assert np.allclose(found[:8], expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-2


@pytest.mark.skipif(not ONNXRUNTIME, reason="SUPPLE_ONNXRUNTIME names no onnxruntime for C++")
def test_onnxruntime_in_the_runner_gives_the_commands_of_the_generated_c(tmp_path, robot):
    spec = robot_spec()
    agent = ppo(spec, memory=6)
    option = f"-DSUPPLE_ONNXRUNTIME={ONNXRUNTIME}"
    runner, bundle = built(tmp_path, agent, spec, options=[option])
    robot.state = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    answers = {}
    for kind in ("c", "onnx"):
        robot.packets.clear()
        command = [str(runner), str(bundle), "--port", str(robot.port), "--seconds", "0.4"]
        done = subprocess.run(
            [*command, "--policy", kind], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 0, done.stderr
        found = [packet.numbers for _, packet in robot.packets if packet.kind is Kind.COMMAND]
        answers[kind] = np.array(found[:10])
    assert len(answers["c"]) == 10
    assert np.ptp(answers["c"], axis=0).max() > 1e-3  # the memory moves them
    assert np.allclose(answers["c"], answers["onnx"], atol=1e-5)


@pytest.mark.parametrize("kind", ["c", "onnx"])
def test_a_result_that_overflows_brakes(kind, robot, tmp_path, small):
    runner, bundle = small
    if kind == "onnx":
        if not ONNXRUNTIME:
            pytest.skip("SUPPLE_ONNXRUNTIME names no onnxruntime for C++")
        option = f"-DSUPPLE_ONNXRUNTIME={ONNXRUNTIME}"
        runner, bundle = built(tmp_path, flashsac(robot_spec()), robot_spec(), options=[option])
    robot.state = np.full(len(TERMS), 3e38, np.float32)  # finite, unlike what it becomes
    command = [str(runner), str(bundle), "--port", str(robot.port), "--policy", kind]
    done = subprocess.run(
        [*command, "--seconds", "0.3"], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["damped"] == found["ticks"] > 3 and found["not_finite"] == 0
    assert {packet.kind for _, packet in robot.packets} == {Kind.DAMP}


def test_no_other_onnxruntime_is_linked_than_the_one_that_was_named(small, tmp_path, monkeypatch):
    named, other = tmp_path / "named", tmp_path / "other"
    for folder in (named / "include", other / "lib"):
        folder.mkdir(parents=True)
    (other / "lib" / "libonnxruntime.so").write_bytes(b"")
    monkeypatch.setenv("CMAKE_PREFIX_PATH", str(other))
    with pytest.raises(InputError, match=r"does not build: .*ONNXRUNTIME_LIBRARY"):
        build_runner(small[1], tmp_path / "build", options=[f"-DSUPPLE_ONNXRUNTIME={named}"])


REFUSED = {
    "another order": (
        {"joints": ("hip", "ankle", "knee")},
        "joint 0 is 'hip' on the robot, expected 'ankle'",
    ),
    "a joint fewer": ({"joints": ("ankle", "hip")}, "2 joints on the robot, expected 3"),
    "a channel fewer": ({"channels": TERMS[:3]}, "the robot has no pitch"),
    "another mode": (
        {"control_mode": "torque"},
        "takes torque commands, the policy gives position",
    ),
}


@pytest.mark.parametrize("difference", REFUSED)
def test_it_refuses_a_robot_that_is_not_the_manifests(difference, small, robot):
    change, text = REFUSED[difference]
    robot.description |= change
    command = [str(small[0]), str(small[1]), "--port", str(robot.port), "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert text in done.stderr and done.stderr.startswith("supple_runner: refused: ")
    assert robot.packets == []  # not one command


def test_a_robot_that_falls_silent_is_damped_in_time(small, robot):
    command = [str(small[0]), str(small[1]), "--port", str(robot.port), "--seconds", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as runner:
        robot.sending.wait(10)
        time.sleep(0.5)
        silent = time.monotonic()
        robot.sending.clear()
        assert runner.wait(20) == 1
    contract = read_bundle(small[1]).contract
    damped = [moment for moment, packet in robot.packets if packet.kind is Kind.DAMP]
    limit = contract["safety"]["stale_after"] + 2 * contract["timing"]["control_dt"]
    assert 0 < damped[0] - silent < limit + 0.1  # a tenth for a busy machine
    gains = dict(zip(JOINTS, contract["safety"]["damping"]["gains"], strict=True))
    last = robot.packets[-1][1].numbers.tolist()
    assert last == pytest.approx([gains["ankle"], gains["hip"], gains["knee"]])


def test_states_that_come_steadily_but_late_are_damped(small, robot):
    command = [str(small[0]), str(small[1]), "--port", str(robot.port), "--seconds", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as runner:
        robot.sending.wait(10)
        time.sleep(0.5)
        assert robot.packets[-1][1].kind is Kind.COMMAND
        robot.lag, late = 0.5, time.monotonic()
        assert runner.wait(20) == 1
    damped = [moment for moment, packet in robot.packets if packet.kind is Kind.DAMP]
    assert damped[0] > late
    assert [p.kind for moment, p in robot.packets if moment > damped[0]] == [Kind.DAMP] * (
        len(damped) - 1
    )


def test_states_that_are_fine_now_and_then_do_not_go_on_for_ever(small, robot):
    command = [str(small[0]), str(small[1]), "--port", str(robot.port), "--seconds", "15"]
    fine, begin = robot.state, time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as runner:
        robot.sending.wait(10)
        while runner.poll() is None and time.monotonic() - begin < 20:
            for state, seconds in ((fine * np.nan, 0.3), (fine, 0.1)):
                robot.state = state
                time.sleep(seconds)
        out, error = runner.communicate(timeout=20)
    assert runner.returncode == 1 and b"damped for more than one of the last two" in error
    assert 1 < json.loads(out)["seconds"] < 8
    assert {packet.kind for _, packet in robot.packets} == {Kind.COMMAND, Kind.DAMP}


def test_a_control_rate_that_is_not_held_is_given_up(small, robot, tmp_path):
    # No machine answers a million times a second.
    fast = signed(small[1], lambda found: found["timing"].update(control_dt=1e-6))
    (tmp_path / "manifest.json").write_bytes(fast)
    command = [str(small[0]), str(tmp_path), "--port", str(robot.port), "--seconds", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert re.search(r"gave up: \d+ of the last \d+ ticks took longer than", done.stderr)
    found = json.loads(done.stdout)
    assert 1 < found["seconds"] < 5 and found["overran"] > found["ticks"] / 5
    assert robot.packets[-1][1].kind is Kind.DAMP


@contextlib.contextmanager
def running(small, robot, seconds):
    """A runner that has its first state."""
    command = [str(small[0]), str(small[1]), "--port", str(robot.port), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as runner:
        robot.sending.wait(10)
        yield runner


def pause(runner, seconds):
    runner.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    runner.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("after", [0.1, 1.3])
def test_a_single_pause_of_the_machine_stops_nothing(small, robot, after):
    with running(small, robot, 3) as runner:
        time.sleep(after)
        pause(runner, 1.2)
        out, error = runner.communicate(timeout=20)
    assert runner.returncode == 0, error
    found = json.loads(out)
    assert found["overran"] >= 1 and found["late_us_p50"] < 2e4


@pytest.mark.parametrize(
    ("state", "said"), [(0.0, b"held up again and again"), (math.nan, b"damped for more than one")]
)
def test_a_machine_that_pauses_again_and_again_is_given_up(small, robot, state, said):
    """Few ticks are late or damped, the robot is left alone most of the time."""
    robot.state = np.full(len(robot.state), state, np.float32)
    with running(small, robot, 12) as runner:
        for _ in range(20):
            if runner.poll() is not None:
                break
            pause(runner, 0.35)
            time.sleep(0.14)
        out, error = runner.communicate(timeout=20)
    assert runner.returncode == 1 and said in error
    assert json.loads(out)["seconds"] < 8


def test_a_robot_that_was_far_away_from_the_start_is_refused(small, robot, tmp_path):
    told = contract_of(described(allowed_latency=0.02))["timing"]
    near = signed(small[1], lambda found: found["timing"].update(told))
    (tmp_path / "manifest.json").write_bytes(near)
    for bundle, pause, text in ((small[1], 0.15, "at most 60 ms"), (tmp_path, 0.06, "20 ms:")):
        robot.pause = pause
        command = [str(small[0]), str(bundle), "--port", str(robot.port), "--seconds", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 2 and robot.packets == []
        assert re.search(r"refused: a packet takes \d+ ms to the robot, expected at", done.stderr)
        assert text in done.stderr


def test_half_of_a_round_trip_is_added_to_a_states_age(small, robot, tmp_path):
    robot.pause, log = 0.04, tmp_path / "log.csv"
    command = [str(small[0]), str(small[1]), "--port", str(robot.port), "--seconds", "0.5"]
    done = subprocess.run(
        [*command, "--log", str(log)], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 20 <= json.loads(done.stdout)["delay_ms"] < 60
    ages = [float(line.split(",")[4]) for line in log.read_text().splitlines()[1:]]
    assert min(ages) >= 20


def test_a_counter_that_wraps_is_no_step_back(small, robot):
    robot.first = 2**32 - 20
    command = [str(small[0]), str(small[1]), "--port", str(robot.port), "--seconds", "0.6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["damped"] <= 3 and found["lost_states"] <= 3


def test_it_can_be_stopped_before_the_first_state(small, robot):
    robot.mute = True
    command = [str(small[0]), str(small[1]), "--port", str(robot.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as runner:
        robot.sending.wait(10)
        time.sleep(0.3)
        runner.send_signal(signal.SIGINT)
        out, error = runner.communicate(timeout=10)
    assert runner.returncode == 0 and error == b""
    assert json.loads(out)["ticks"] == 0


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--log", "/no/where", "cannot write /no/where"),
        ("--policy", "tflite", "--policy tflite is not in this runner"),
    ],
)
def test_what_cannot_work_is_said_before_a_robot_hears_of_it(small, robot, option, value, text):
    command = [str(small[0]), str(small[1]), "--port", str(robot.port), option, value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2 and text in done.stderr
    assert robot.packets == [] and not robot.sending.is_set()


def test_a_robot_that_breaks_down_is_no_success(cheetah, small):
    options = ["--record", "/no/where"]
    with pytest.raises(SimulatorError, match=r"the robot broke down: .*No such file"):
        drive(*cheetah, seconds=0.3, robot_options=options)
    with pytest.raises(InputError, match="the stand-in robot knows Gymnasium's MuJoCo tasks"):
        drive(*small, seconds=0.3)


def test_the_floor_is_drawn_where_the_robot_is():
    with closing(gymnasium.make("HalfCheetah-v5")) as env:
        robot: Any = env.unwrapped
        # 80 m with 60 repeats: a period of 4/3 m.
        for x, expected in ((0.5, 0.0), (0.7, 4 / 3), (100.1, 100.0), (-2.0, -8 / 3)):
            carry_floor(robot.model, robot.data, x)
            assert robot.data.geom("floor").xpos[0] == pytest.approx(expected)


def test_a_chain_says_what_is_wrong_before_it_writes_anything(tmp_path, capsys):
    out, toy = tmp_path / "out", tmp_path / "toy"
    toy.mkdir()
    settings = default_settings("toy/lqr", preset="laptop")
    (toy / "settings.json").write_text(launch.as_text(settings))
    for arguments, text in (
        ([str(toy)], "toy/lqr: the stand-in robot knows Gymnasium's MuJoCo tasks"),
        (["toy/lqr"], "the stand-in robot knows Gymnasium's MuJoCo tasks"),
        (["gym/Pendulum-v1"], "gym/Pendulum-v1: expected torque-controlled joints"),
        (["gym/Hoper-v5"], "gym/Hoper-v5 cannot be made"),
        ([str(tmp_path)], "holds no run"),
        (["gym/Hopper-v5", "--seconds", "nan"], "--seconds must be a number > 0, got nan"),
        (["gym/Hopper-v5", "--loss", "1"], "--loss must be in [0, 1), got 1.0"),
        (["gym/Hopper-v5", "--delay", "-1"], "--delay must be a number >= 0, got -1.0"),
        (["gym/Hopper-v5", "--seed", "-1"], "--seed: must be >= 0 and within 64 bits, got -1"),
    ):
        assert main(["chain", *arguments, "--out", str(out)]) == 2
        assert text in capsys.readouterr().err and not out.exists()


def test_compilers_end_with_the_build_that_is_stopped(tmp_path, monkeypatch):
    script = f"sleep 60 & echo $! > {tmp_path / 'pid'}; wait"

    def stop(self):
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", stop)
    with pytest.raises(KeyboardInterrupt):
        chain._run_group(["sh", "-c", script])
    child = Path("/proc") / (tmp_path / "pid").read_text().strip()
    for _ in range(100):
        ended = not child.exists() or ") Z" in (child / "stat").read_text()
        if ended:
            break
        time.sleep(0.02)
    assert ended


def test_a_chain_never_writes_over_something(tmp_path, capsys):
    assert main(["chain", "gym/HalfCheetah-v5", "--out", str(tmp_path)]) == 2
    assert "is there already: choose another --out" in capsys.readouterr().err
    assert main(["chain", "gym/HalfCheetah-v5", "--out", "/proc/chain"]) == 2
    assert "cannot write /proc/chain" in capsys.readouterr().err


def test_a_chain_whose_training_is_stopped_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(command, "train", lambda arguments: RESUMABLE)
    assert main(["chain", "gym/HalfCheetah-v5", "--out", str(out)]) == RESUMABLE
    assert f"then: supple chain {out / 'run'} --out ANOTHER" in capsys.readouterr().out
    assert not out.exists()


# --- the stand-in robot's own parts --------------------------------------------------------------


@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Ant-v5"])
def test_the_robot_senses_what_the_environment_observes(task):
    # Ant also observes contact forces, which a bare simulation step does not compute.
    with (
        closing(gymnasium.make(task)) as env,
        closing(Body({"origin": {"task": f"gym/{task}"}})) as body,
    ):
        env.reset(seed=0)
        body.reset(0)
        random, robot = np.random.default_rng(0), cast("Any", env.unwrapped)
        for _ in range(30):
            action = random.uniform(-1, 1, env.action_space.shape)
            obs = env.step(action)[0]
            for _ in range(robot.frame_skip):
                body.step(action * robot.model.actuator_gear[:, 0])
        assert np.allclose(body.sense(), obs, atol=1e-5)
        assert np.abs(obs).max() > 0.5


def test_a_counter_that_wraps_is_no_step_back_for_the_robot_either():
    orders = Orders()
    for sequence in (2**32 - 1, 0, 1):
        orders.take(pack(Kind.COMMAND, sequence, 0.0, [float(sequence)]), 1, 1.0)
        assert orders.sequence == sequence
    orders.take(pack(Kind.COMMAND, 2**32 - 1, 0.0, [9.0]), 1, 1.0)
    assert orders.sequence == 1


def test_only_a_hello_claims_the_robot():
    channel = Channel(0, Weather())
    with closing(channel), closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as stranger:
        stranger.sendto(b"anything", ("127.0.0.1", channel.port))
        stranger.sendto(pack(Kind.COMMAND, 0, 0.0, [1.0]), ("127.0.0.1", channel.port))
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as runner:
            time.sleep(0.05)
            assert channel.receive() == []
            runner.sendto(pack(Kind.HELLO, 0, 0.0, []), ("127.0.0.1", channel.port))
            time.sleep(0.05)
            assert len(channel.receive()) == 1


def test_overtaken_and_foreign_packets_change_nothing():
    orders = Orders()
    assert orders.take(pack(Kind.HELLO, 0, 0.0, []), 2, 0.0)
    assert not orders.take(pack(Kind.COMMAND, 5, 0.0, [1.0, 2.0]), 2, 1.0)
    for odd in (
        pack(Kind.COMMAND, 4, 0.0, [9.0, 9.0]),  # overtaken
        pack(Kind.COMMAND, 6, 0.0, [9.0]),  # of another robot
        b"SUPL",
        pack(Kind.COMMAND, 7, 0.0, [9.0, 9.0])[:-1],
        pack_description({}),
    ):
        assert not orders.take(odd, 2, 2.0)
    assert orders.numbers is not None
    assert orders.numbers.tolist() == [1.0, 2.0] and orders.arrived == 1.0


def test_weather_loses_the_share_it_says_and_repeats_with_its_seed():
    def losses(seed):
        channel = Channel(0, Weather(loss=0.2, seed=seed))
        for _ in range(2000):
            channel.send(b"x")
        channel.close()
        return channel.dropped

    assert losses(0) == losses(0) != losses(1)
    assert losses(0) == pytest.approx(400, abs=60)
