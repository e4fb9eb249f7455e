"""Prove a simulator's adapter for real: ``python prove.py NAME``, inside its own environment.

Conformance, 200 steps, both agents trained until they beat random actions on the cheapest task, a
picture, and the simulator's own tests. Any failure ends it. The last line is a row for
``benchmarks/results/simulators.csv``, which it is also appended to; the picture to look at lies in
the folder printed before it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from supple import cli, doctor, machine
from supple.bench.table import add
from supple.envs import EnvSettings, make
from supple.envs.base import Groups
from supple.evaluate import Evaluation, evaluate

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results/simulators.csv"
STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How one simulator is proved."""

    task: str
    """Its cheapest task."""
    packages: tuple[str, ...]
    """Whose versions the row names."""
    num_envs: int
    """While training; evaluation uses four."""
    flashsac: str
    """Further flags of ``supple train``."""
    ppo: str
    renders: bool = True


BATCHED_FLASHSAC = "--env-steps 25600 --agent.utd 0.05 --agent.update-every 1"
ROLLOUTS = "--agent.rollout-steps 25 --agent.minibatches 4 --agent.epochs 8 --agent.lr 1e-3"
BATCHED_PPO = f"--env-steps 204800 {ROLLOUTS}"
"""Of simulators that step 64 environments at once. A quarter of these steps at 3e-4 was too little
for PPO to leave the interval of random actions on mjlab's cartpole."""
PROOFS = {
    "mjlab": Proof(
        task="mjlab/Mjlab-Cartpole-Balance",
        packages=("mjlab", "mujoco", "mujoco-warp", "warp-lang", "rsl-rl-lib"),
        num_envs=64,
        flashsac=BATCHED_FLASHSAC,
        ppo=BATCHED_PPO,
    ),
    "dmc": Proof(
        task="dmc/cartpole-balance",
        packages=("dm-control", "mujoco"),
        num_envs=4,
        flashsac="--env-steps 12000 --agent.utd 0.25",
        ppo="--env-steps 40000",
    ),
    "playground": Proof(
        task="playground/CartpoleBalance",
        packages=("playground", "mujoco-mjx", "mujoco", "jax", "brax"),
        num_envs=64,
        # Episodes of 1000 steps begin upright, so that random actions earn 350: it takes more of
        # them to learn better than elsewhere.
        flashsac="--env-steps 102400 --agent.utd 0.1 --agent.update-every 1",
        ppo=f"--env-steps 409600 {ROLLOUTS}",
    ),
    "brax": Proof(
        task="brax/inverted_pendulum",
        packages=("brax", "jax"),
        num_envs=64,
        flashsac=BATCHED_FLASHSAC,
        ppo=BATCHED_PPO,
    ),
    "metaworld": Proof(
        task="metaworld/reach-v3",
        packages=("metaworld", "gymnasium", "mujoco"),
        num_envs=4,
        flashsac="--env-steps 12000 --agent.utd 0.25",
        ppo="--env-steps 40000",
    ),
    "myosuite": Proof(
        task="myosuite/myoElbowPose1D6MRandom-v0",
        packages=("myosuite", "gymnasium", "mujoco"),
        num_envs=4,
        flashsac="--env-steps 12000 --agent.utd 0.25",
        ppo="--env-steps 40000",
    ),
    # Not go2-walk_easy: there FlashSAC beat random actions (-0.04 against -0.26) by falling after 5
    # steps instead of 14. Episodes of the arm are all of one length.
    "genesis": Proof(
        task="genesis/panda-grasp",
        packages=("genesis-world", "quadrants"),
        num_envs=64,
        flashsac=BATCHED_FLASHSAC,
        ppo=BATCHED_PPO,
    ),
    "isaaclab": Proof(
        task="isaaclab/Isaac-Cartpole-Direct",
        packages=("isaaclab", "newton", "mujoco-warp", "warp-lang"),
        num_envs=64,
        flashsac=BATCHED_FLASHSAC,
        ppo=BATCHED_PPO,
        renders=False,
    ),
}


def main(name: str) -> None:
    """Run every step and write the row."""
    proof = PROOFS[name]
    prepare(name)
    folder = Path(tempfile.mkdtemp(prefix=f"supple-{name}-"))
    status = doctor.check_environment(proof.task, EnvSettings(num_envs=4), device="cpu")
    require(status == cli.DONE, "conformance")
    rate = steps_per_second(proof)
    print(f"{STEPS} steps of {proof.num_envs} environments: {rate:.0f} env steps/s")
    untrained = random_return(proof)
    print(f"random actions: return {untrained.return_mean:.2f} ± {untrained.return_ci95:.2f}")
    returns = {}
    for agent in ("flashsac", "ppo"):
        returns[agent] = trained_return(proof, agent, folder / agent)
        print(f"{agent}: return {returns[agent]:.2f}", flush=True)
        better = returns[agent] > untrained.return_mean + untrained.return_ci95
        require(better, f"{agent} beats random actions")
    picture = folder / f"{name}.png"
    if proof.renders:
        draw(proof, picture)
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "sim", "--require", "sim"]
    done = subprocess.run([*tests, f"tests/envs/test_{name}.py"], cwd=ROOT, check=False)
    require(done.returncode == 0, "its own tests")
    row = {
        "date": datetime.date.today().isoformat(),
        "simulator": name,
        "task": proof.task,
        "conformance": "passed",
        "num_envs": proof.num_envs,
        "env_steps_per_s": f"{rate:.0f}",
        "random_return": f"{untrained.return_mean:.2f}",
        "random_ci95": f"{untrained.return_ci95:.2f}",
        "flashsac_return": f"{returns['flashsac']:.2f}",
        "ppo_return": f"{returns['ppo']:.2f}",
        "flashsac_flags": proof.flashsac,
        "ppo_flags": proof.ppo,
        "frame": "drawn" if proof.renders else "none",
        "python": sys.version.split()[0],
        "versions": ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages(proof)),
        "load": f"{os.getloadavg()[0]:.1f}",
        "machine": f"{machine.processor()}, {machine.cores()} shared cores",
        "commit": machine.commit(),
        "command": f"make sim-{name}",
    }
    add([row], RESULTS)
    print(f"picture and runs: {folder}")
    print(",".join(str(value) for value in row.values()))


def packages(proof: Proof) -> tuple[str, ...]:
    """Whose versions the row names."""
    return (*proof.packages, "torch", "numpy")


def require(holds: bool, what: str) -> None:
    """End with exit status 1 where a step failed."""
    if not holds:
        sys.exit(f"failed: {what}")


def settings(proof: Proof, num_envs: int | None = None) -> EnvSettings:
    """Of its environments."""
    return EnvSettings(num_envs=num_envs or proof.num_envs)


def steps_per_second(proof: Proof) -> float:
    """Environment steps per second under random actions; the first ones are not counted."""
    with closing(make(proof.task, settings(proof))) as env:
        action = 2 * torch.rand(STEPS, env.spec.num_envs, env.spec.action.size) - 1
        for index in range(10):
            env.step(action[index])
        begin = time.perf_counter()
        for one in action:
            env.step(one)
        return STEPS * env.spec.num_envs / (time.perf_counter() - begin)


def random_return(proof: Proof) -> Evaluation:
    """What uniform random actions earn."""
    with closing(make(proof.task, settings(proof, 4), seed=1)) as env:
        size = env.spec.action.size
        generator = torch.Generator().manual_seed(0)

        def act(obs: Groups) -> torch.Tensor:
            return 2 * torch.rand(len(obs["policy"]), size, generator=generator) - 1

        return evaluate(lambda: act, env, episodes=8, seed=1)


def trained_return(proof: Proof, agent: str, folder: Path) -> float:
    """The return after a short training."""
    own = proof.flashsac if agent == "flashsac" else proof.ppo
    common = "--preset laptop --device cpu --eval.every 100000000 --eval.episodes 4 --eval.no-video"
    envs = f"--agent {agent} --env.num-envs {proof.num_envs} --run-dir {folder}"
    status = cli.main(["train", proof.task, *common.split(), *envs.split(), *own.split()])
    require(status == cli.DONE, f"training {agent}")
    return float(json.loads((folder / "result.json").read_text())["return_mean"])


def draw(proof: Proof, path: Path) -> None:
    """A picture after 30 random steps, which must show something."""
    import imageio.v3 as imageio

    with closing(make(proof.task, settings(proof, 1), render=True)) as env:
        for _ in range(30):
            env.step(2 * torch.rand(1, env.spec.action.size) - 1)
        picture = env.render()
    require(picture.ndim == 3 and picture.dtype == np.uint8 and picture.std() > 1, "a picture")
    imageio.imwrite(path, picture)


def prepare(name: str) -> None:
    """What must be there before a simulator is imported."""
    # Each environment traces the same step: compiled once, here and in its own tests.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="supple-jax-"))
    if name == "isaaclab" and "ISAACSIM_ASSET_ROOT" not in os.environ:
        sys.path.insert(0, str(Path(__file__).parent))
        from isaaclab_assets_offline import make_assets

        folder = Path(tempfile.mkdtemp(prefix="supple-isaaclab-assets-"))
        make_assets(folder)
        os.environ["ISAACSIM_ASSET_ROOT"] = str(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PROOFS:
        sys.exit(f"usage: prove.py {'|'.join(PROOFS)}")
    main(sys.argv[1])
