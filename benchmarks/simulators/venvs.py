"""Build the environment of one simulator: ``python venvs.py NAME FOLDER``.

Simulators pin versions that exclude each other (six releases of MuJoCo alone), so each lives in a
virtual environment of its own, outside the repository. Standard library only.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = "torch==2.13.0 tensordict==0.14.3 torchrl==0.14.1"
OWN = (
    "gymnasium==1.4.0 tyro==1.0.17 rich==15.0.0 tensorboard==2.21.0 safetensors==0.8.0"
    " matplotlib==3.11.2 imageio==2.38.1 imageio-ffmpeg==0.8.1 packaging==26.3 pytest==9.2.0"
)
"""What supple itself needs, and what films and tests; the versions of constraints.txt."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one simulator is installed."""

    python: str = "3.11"
    steps: tuple[str, ...]
    """Arguments of ``pip install``, in order. Torch comes first: what follows must find it, or pip
    takes another build of it."""


RECIPES = {
    # rsl-rl-lib requires torchvision without importing it, which would swap the build of torch:
    # hence --no-deps, and the rest by name.
    "mjlab": Recipe(
        steps=(
            TORCH,
            OWN,
            "--no-deps mjlab==1.6.0 rsl-rl-lib==5.4.2",
            "prettytable tqdm torchrunx warp-lang>=1.14 mujoco-warp~=3.11.0 mujoco~=3.11.0 trimesh"
            " scipy viser mjviser mediapy onnxscript onnx GitPython wandb",
        )
    ),
    # dm-control 1.0.50 reads fields that MuJoCo 4 removed, though its metadata allow MuJoCo 4.
    "dmc": Recipe(steps=(TORCH, OWN, "dm-control==1.0.50 mujoco==3.17.0")),
    # JAX needs no GPU here; dlpack hands its arrays to torch.
    "playground": Recipe(steps=(TORCH, OWN, "playground==0.2.0")),
    "brax": Recipe(steps=(TORCH, OWN, "brax==0.14.2")),
    "metaworld": Recipe(steps=(TORCH, OWN, "metaworld==3.1.1")),
    # MyoSuite asks for an older Gymnasium than ours.
    "myosuite": Recipe(
        steps=(TORCH, OWN.replace("gymnasium==1.4.0", "gymnasium>=1.2,<1.3"), "myosuite==3.0.0")
    ),
    # Most of its 4 GB are packages for meshes, liquids and films.
    "genesis": Recipe(steps=(TORCH, OWN, "genesis-world==1.4.5")),
    # Isaac Lab 3 pins torch 2.11 and Python 3.12.
    "isaaclab": Recipe(
        python="3.12", steps=(TORCH.replace("2.13.0", "2.11.0"), OWN, "isaaclab==3.0.0")
    ),
}


def build(name: str, folder: Path) -> None:
    """Create ``folder/name`` with everything in it, or leave it as it is where it is complete."""
    recipe, venv = RECIPES[name], folder / name
    done = venv / ".installed"
    if done.exists() and done.read_text() == str(recipe):
        return
    shutil.rmtree(venv, ignore_errors=True)
    venv.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([find_python(recipe.python), "-m", "venv", str(venv)], check=True)
    for step in recipe.steps:
        pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        subprocess.run([*pip, *step.split()], check=True)
    done.write_text(str(recipe))


def find_python(version: str) -> str:
    """A Python of this minor version: on the path, or pyenv's."""
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0:
        return found
    for folder in sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*"), reverse=True):
        if (folder / "bin/python").exists():
            return str(folder / "bin/python")
    sys.exit(f"no Python {version} here: install it, or put it on the path")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in RECIPES:
        sys.exit(f"usage: venvs.py {'|'.join(RECIPES)} FOLDER")
    build(sys.argv[1], Path(sys.argv[2]).expanduser())
