"""Runs that earlier versions of supple recorded still open: evaluated, exported, resumed.

Before a release ``python -m tests.test_older_runs`` adds this version's to them.
"""

import json
import shutil
from pathlib import Path

import pytest

from supple.agents import AGENTS
from supple.cli import BAD_INPUT, DONE, main
from supple.metrics import read_csv
from supple.version import __version__
from tests.small_runs import run_whole, small_settings

RECORDED = Path(__file__).parent / "data" / "recorded"
"""``<version>/<agent>``, each a run's folder without its drawings."""
RUNS = sorted(path.parent for path in RECORDED.glob("*/*/settings.json"))


def record():
    for agent in AGENTS:
        folder = RECORDED / __version__ / agent
        settings = small_settings("toy/lqr", folder, env_steps=60, agent=agent)
        settings.run_dir = str(folder.relative_to(RECORDED.parents[2]))
        settings.log.every, settings.diagnostics.enabled = 20, False
        if agent == "flashsac":
            settings.replay.capacity = 2000  # few files
        run_whole(settings)
        for path in (*folder.glob("events*"), folder / "progress.png", folder / ".lock"):
            path.unlink()


@pytest.fixture(params=RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def recorded(request, tmp_path):
    return shutil.copytree(request.param, tmp_path / "run")


def change_settings(folder, change):
    path = folder / "settings.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def test_a_run_of_each_version_and_agent_is_kept():
    assert {path.name for path in RUNS} == set(AGENTS)


def test_a_recorded_run_is_evaluated_and_exported(recorded, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    assert main(["eval", str(recorded), "--episodes", "1", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["env_steps"] == 60
    assert main(["export", str(recorded), "--out", str(bundle)]) == DONE, capsys.readouterr().err
    assert (bundle / "manifest.json").is_file()


def test_a_recorded_run_goes_on(recorded, capsys):
    assert main(["resume", str(recorded), "--env-steps", "120"]) == DONE, capsys.readouterr().err
    assert f"resumed {recorded / 'checkpoints' / 'step_60'}" in capsys.readouterr().out
    assert read_csv(recorded / "metrics.csv")["step"][-1] == 120


def test_settings_an_older_supple_did_not_know_take_their_defaults_and_are_named(recorded, capsys):
    def forget(settings):
        del settings["env"]["patience"], settings["agent"]["gamma"], settings["care"]

    change_settings(recorded, forget)
    assert main(["eval", str(recorded), "--episodes", "1", "--json"]) == DONE
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{recorded / 'settings.json'} is of an older supple, defaults taken for: " in said[0]
    assert {"env.patience", "agent.gamma", "care"} <= set(said[0].rpartition(": ")[2].split(", "))


@pytest.mark.parametrize("group", ["", "env", "agent"])
def test_a_setting_nobody_knows_is_refused_in_one_line(recorded, group, capsys):
    def add(settings):
        (settings[group] if group else settings)["foreign"] = 1

    change_settings(recorded, add)
    assert main(["eval", str(recorded)]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    place = f"settings.{group}.foreign" if group else "settings.foreign"
    assert f"{place} is no setting of supple {__version__}: a newer supple wrote it" in line


if __name__ == "__main__":
    record()
