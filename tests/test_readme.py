"""What the README shows works as shown."""

import re
import subprocess
import sys
from pathlib import Path

from supple.cli import DONE, main
from tests.small_runs import flags

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_library_loop_runs_and_learns_something(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[0]], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'critic/loss'" in done.stdout


def test_the_own_simulator_is_proven_by_the_doctor_and_trains(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_sim.py").write_text(BLOCKS[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["doctor", "--env", "my_sim:Reach"]) == DONE, capsys.readouterr().out
    given = ["--env-steps", "120", "--run-dir", str(tmp_path / "run")]
    assert main(["train", "my_sim:Reach", *flags(), *given]) == DONE, capsys.readouterr().err


def test_the_loop_fits_one_screen():
    assert len((ROOT / "supple" / "train.py").read_text().splitlines()) <= 40
