import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    # The build leaves its own folders beside the sources; build from a copy to keep the tree clean.
    source = tmp_path_factory.mktemp("source")
    subprocess.run(
        f"git -C {ROOT} ls-files -co --exclude-standard -z | tar -C {ROOT} --null -T - -cf -"
        f" | tar -C {source} -xf -",
        shell=True,
        check=True,
    )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_exactly_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    in_tree = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "supple").rglob("*")
        if path.suffix == ".py"
        or path.name == "py.typed"
        or (path.is_file() and path.parent.name == "runtime")
    }
    assert packaged == in_tree


def test_importing_the_wheel_loads_no_simulator(wheel):
    code = (
        "import sys; import supple, supple.cli, supple.agents, supple.envs, supple.replay;"
        "bad = {'mujoco', 'gymnasium.envs.mujoco', 'jax', 'envpool'} & set(sys.modules);"
        "assert not bad, bad; assert supple.__file__.startswith(sys.argv[1]), supple.__file__"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, sys.argv[1]); {code}", str(wheel)],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_version_and_help_import_nothing_heavy():
    code = (
        "import sys; from supple.cli import main; assert main(['--help']) == 0;"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "supple train TASK" in done.stdout
