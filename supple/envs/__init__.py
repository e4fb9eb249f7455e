"""Environments: one contract over every simulator. Adapters are imported on first use."""

from supple.envs.registry import EnvSettings, Simulator, check_task, known_tasks, make

__all__ = ["EnvSettings", "Simulator", "check_task", "known_tasks", "make"]
