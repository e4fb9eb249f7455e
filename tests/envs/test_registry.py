import csv
import functools
import importlib
import inspect
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from supple import machine
from supple.doctor import print_list
from supple.envs import EnvSettings, check_task, gym, known_tasks, make
from supple.envs.base import Env
from supple.envs.registry import ADAPTERS, ASKED, UNPROVED, require_processes, runs_on_gpu
from supple.envs.toy import make_toy
from supple.errors import InputError


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("gym/HalfCheeta-v5", "unknown task gym/HalfCheeta-v5; did you mean .*gym/HalfCheetah-v5"),
        ("gim/HalfCheetah-v5", "unknown simulator gim .*did you mean gym"),
        ("toy/countr", "did you mean toy/counter"),
        ("HalfCheetah-v5", "task must be <simulator>/<task> or module:callable"),
        ("no_such_module:make", "cannot import no_such_module"),
        (":make", "expected a module before the colon, by its full name"),
        (".sim:make", "expected a module before the colon, by its full name"),
        ("supple.envs.toy:nothing", "has no nothing"),
        ("supple.envs.toy:TOY_TASKS", "expected something callable"),
    ],
)
def test_unknown_tasks_are_refused_in_one_line(task, text):
    with pytest.raises(InputError, match=text) as error:
        check_task(task)
    assert "\n" not in str(error.value)


def test_a_simulator_that_is_not_here_may_have_more_tasks_than_are_known(monkeypatch, capsys):
    monkeypatch.setattr("supple.envs.installed.is_installed", lambda *packages: False)
    monkeypatch.setattr("supple.envs.dmc.tasks", lambda: ("dog-walk",))
    with pytest.raises(InputError, match=r"cannot look up task dmc/walker-walk.*dmc/ is not inst"):
        check_task("dmc/walker-walk")
    print_list("dmc")
    said = capsys.readouterr()
    assert said.out == "dmc/dog-walk\n"
    assert "dmc/ may have more tasks: it is not installed" in said.err


def test_a_simulator_whose_list_is_whole_calls_a_misspelt_task_unknown(monkeypatch, capsys):
    monkeypatch.setattr("supple.envs.installed.is_installed", lambda *packages: False)
    with pytest.raises(InputError, match="unknown task brax/antt; did you mean brax/ant"):
        check_task("brax/antt")
    print_list("brax")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("simulator", ADAPTERS)
def test_simulators_that_are_asked_for_their_tasks_are_known(simulator):
    source = inspect.getsource(importlib.import_module(ADAPTERS[simulator]).tasks)
    assert ("is_installed" in source or "find_spec" in source) == (simulator in ASKED)


def test_processes_are_refused_where_there_are_none():
    asked = EnvSettings(num_envs=2, vectorization="async")
    with pytest.raises(InputError, match="async: toy/ steps all environments in one process"):
        require_processes("toy/lqr", asked)
    make("toy/lqr", asked).close()  # as an older run may have been recorded
    require_processes("gym/Hopper-v5", asked)
    for simulator, module in ADAPTERS.items():
        told = importlib.import_module(module)
        takes = "wrap_factory(" in inspect.getsource(told) or "registered(" in inspect.getsource(
            told
        )
        assert getattr(told, "TAKES_ASYNC", False) == takes, simulator


def test_settings_out_of_range_name_their_flag():
    with pytest.raises(InputError, match=r"num-envs must be in \[1, 1048576\], got 0"):
        EnvSettings(num_envs=0)
    with pytest.raises(InputError, match=r"num-envs must be a whole number, an int, got 4\.0"):
        EnvSettings(num_envs=4.0)  # type: ignore[arg-type]


def test_every_simulator_is_listed_with_its_tasks():
    known = known_tasks()
    assert "HalfCheetah-v5" in known["gym"].tasks
    assert "lqr" in known["toy"].tasks


def test_an_adapter_without_a_proof_says_so_where_simulators_are_listed():
    results = Path(__file__).resolve().parents[2] / "benchmarks/results/simulators.csv"
    with results.open(newline="") as file:
        proved = {row["simulator"] for row in csv.DictReader(file)}
    tested_here = {"toy", "gym", "mujoco", "envpool"}  # by the main suite, for real
    assert set(UNPROVED) == set(ADAPTERS) - proved - tested_here
    known = known_tasks()
    assert "never run against it" in known["maniskill"].status
    assert "its adapter" not in known["gym"].status


@pytest.fixture
def versions(monkeypatch):
    """Of packages that are installed, for the length of a test."""
    here: dict[str, str] = {}
    monkeypatch.setattr(
        machine, "installed", lambda names: {n: here[n] for n in names if n in here}
    )
    return here


@pytest.mark.parametrize(
    ("package", "other", "told"),
    [
        ("1.0.50", "4.0.0", True),
        ("1.0.50", "3.17.0", False),
        ("1.0.51", "4.0.0", False),
        ("1.0.9.post1", "4.1", True),
        ("1.0.50", None, False),
    ],
)
def test_packages_that_do_not_go_together_are_listed(versions, package, other, told):
    versions["dm-control"] = package
    if other:
        versions["mujoco"] = other
    said = f"dm-control {package} builds no task with mujoco {other}: pip install 'mujoco>=3.17,<4'"
    known = known_tasks()
    assert (said in known["dmc"].status) == told
    assert not any("builds no" in each.status for each in known.values() if each.name != "dmc")


@pytest.mark.parametrize(
    ("name", "blamed"), [("FetchReach-v4", True), ("own:HandReach-v3", True), ("Ant-v5", False)]
)
def test_a_task_that_fails_where_packages_do_not_go_together_says_so(
    versions, monkeypatch, name, blamed
):
    versions |= {"gymnasium-robotics": "1.4.2", "mujoco": "3.12.0"}

    def fails(*_, **__):
        raise AssertionError

    monkeypatch.setattr(gym, "exists", lambda name: True)
    monkeypatch.setattr(gym, "build", fails)
    with pytest.raises(InputError if blamed else AssertionError) as found:
        make(f"gym/{name}", EnvSettings())
    assert not blamed or str(found.value) == (
        f"gym/{name} cannot be built: AssertionError; gymnasium-robotics 1.4.2 builds no Fetch,"
        " Hand and Kitchen task with mujoco 3.12.0: pip install 'mujoco<3.12'"
    )


def test_a_simulator_that_cannot_be_imported_is_listed_with_its_error(monkeypatch):
    def fails():
        raise AttributeError("no such thing")

    monkeypatch.setattr(gym, "tasks", fails)
    known = known_tasks()
    assert "cannot be imported: AttributeError: no such thing" in known["gym"].status
    assert known["gym"].tasks == ()
    assert "lqr" in known["toy"].tasks


def own_env(num_envs, device):
    return make_toy("lqr", num_envs, device)


def own_gym_env(render_mode=None):
    return gymnasium.make("Pendulum-v1", render_mode=render_mode)


def own_vector_env(num_envs):
    return gymnasium.make_vec("Pendulum-v1", num_envs=num_envs, vectorization_mode="sync")


def own_options(**options):
    return gymnasium.make("Pendulum-v1", **options)


def own_vector_options(num_envs, **options):
    return gymnasium.make_vec("Pendulum-v1", num_envs, vectorization_mode="sync", **options)


class Batch:
    def __init__(self, num_envs, device):
        pass


class DerivedBatch(Batch):
    def __init__(self, **options):
        super().__init__(**options)


own_partial = functools.partial(gymnasium.make, "Pendulum-v1")


@pytest.fixture
def own_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_sim", sys.modules[__name__])
    return "own_sim"


@pytest.mark.parametrize(
    "name",
    [
        *("own_env", "own_gym_env", "own_vector_env"),
        *("own_options", "own_partial", "own_vector_options"),
    ],
)
def test_a_users_callable_is_recognised_and_wrapped(own_module, name):
    env = make(f"{own_module}:{name}", EnvSettings(num_envs=3), device=torch.device("cpu"))
    assert isinstance(env, Env)
    assert env.spec.num_envs == 3
    step = (env.reset(0), env.step(torch.zeros(3, env.spec.action.size)))[1]
    assert step["reward"].shape == (3,)
    env.close()


@pytest.mark.parametrize("name", ["own_options", "own_partial"])
def test_a_callable_that_hands_its_options_on_draws_and_takes_a_configuration(own_module, name):
    settings = EnvSettings(config=("g=9.0",))
    env: Any = make(f"{own_module}:{name}", settings, render=True)
    assert env.render().ndim == 3
    assert env._env.envs[0].unwrapped.g == 9.0
    env.close()


@pytest.mark.parametrize(
    ("name", "batched"),
    [("own_env", True), ("own_vector_env", False), ("own_options", False), ("DerivedBatch", True)],
)
def test_what_is_asked_to_step_in_a_batch_on_a_gpu_names_both(own_module, name, batched):
    assert runs_on_gpu(f"{own_module}:{name}") == batched


def test_what_a_simulator_draws_from_pythons_generator_as_it_is_built_follows_the_seed(
    own_module, monkeypatch
):
    drawn = []

    def build():
        drawn.append(random.random())
        return own_gym_env()

    monkeypatch.setattr(sys.modules[own_module], "drawing", build, raising=False)
    before = random.getstate()
    found = []
    for seed in (1, 1, 2):
        make(f"{own_module}:drawing", EnvSettings(), seed=seed).close()
        found.append(drawn.pop())
    assert found[0] == found[1] != found[2]
    assert random.getstate() == before


def test_a_callable_of_single_environments_is_told_the_same_each_time(own_module, monkeypatch):
    told = []

    def build(device, num_envs=1, render_mode=None):
        told.append((device, num_envs, render_mode))
        return own_gym_env(render_mode)

    monkeypatch.setattr(sys.modules[own_module], "telling", build, raising=False)
    make(f"{own_module}:telling", EnvSettings(num_envs=2), render=True).close()
    assert told == [(torch.device("cpu"), 2, "rgb_array")] * 4  # two to look at, two to keep


def test_a_callable_that_returns_something_else_is_refused(own_module, monkeypatch):
    monkeypatch.setattr(sys.modules[own_module], "wrong", lambda: 3, raising=False)
    with pytest.raises(InputError, match="returned a int: expected"):
        make(f"{own_module}:wrong", EnvSettings())


def test_importing_the_registry_imports_no_simulator():
    code = "import sys, supple.envs; assert not {'gymnasium', 'mujoco'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
