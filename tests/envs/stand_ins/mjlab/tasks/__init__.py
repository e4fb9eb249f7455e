from mjlab.envs import StandInCfg
from mjlab.tasks.registry import register_mjlab_task

register_mjlab_task("Mjlab-Stand-In", StandInCfg())
