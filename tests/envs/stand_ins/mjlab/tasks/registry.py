import copy
from typing import Any

_REGISTRY: dict[str, Any] = {}


def register_mjlab_task(task_id, env_cfg, rl_cfg=None):
    assert task_id not in _REGISTRY
    _REGISTRY[task_id] = env_cfg, rl_cfg


def list_tasks():
    return sorted(_REGISTRY)


def load_env_cfg(task_name):
    return copy.deepcopy(_REGISTRY[task_name][0])


def load_rl_cfg(task_name):
    return copy.deepcopy(_REGISTRY[task_name][1])
