"""A run, as `supple train` makes it: folder, checkpoints, metrics, evaluation."""

from supple.configs import default_settings
from supple.launch import new_run
from supple.train import train

settings = default_settings("gym/Pendulum-v1", agent="ppo", preset="laptop")
settings.run_dir = "runs/pendulum"
settings.env_steps = 4_096  # seconds; leave it out to learn the task
settings.eval.video = False
run = new_run(settings)
with run.display, run:
    train(run)
print(run.summary())
