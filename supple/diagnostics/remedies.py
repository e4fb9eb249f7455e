"""What a verdict can name to try: advice by purpose, with the flag where this agent has one."""

from __future__ import annotations

from collections.abc import Mapping

from supple.configs.base import Settings, flat

ADVICE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    # purpose: what to do, and the settings that do it, the first that exists is named
    "fewer updates": ("take fewer gradient steps per environment step", ("agent.utd",)),
    "fewer epochs": ("take fewer passes over each rollout", ("agent.epochs",)),
    "normalise": (
        "bound what layers can grow to by layer norm",
        ("agent.critic_norm", "agent.layer_norm"),
    ),
    "project": ("restore unit norms after each update", ("agent.project_critic",)),
    "weight decay": (
        "keep weights small by weight decay",
        ("agent.remedy.weight_decay", "agent.weight_decay"),
    ),
    "shrink": (
        "pull the networks towards fresh ones now and then (shrink and perturb)",
        ("agent.remedy.shrink_every",),
    ),
    "reset units": (
        "give inactive units new weights",
        ("agent.remedy.reset_dormant_every",),
    ),
    "lower rate": ("lower the learning rate", ("agent.lr_peak", "agent.lr")),
    "raise rate": ("raise the learning rate", ("agent.lr_peak", "agent.lr")),
    "warm up": ("warm the learning rate up for longer", ("agent.lr_warmup",)),
    "larger batch": ("enlarge the batch", ("agent.batch_size", "env.num_envs")),
    "pessimism": ("take the smaller of more critics", ("agent.num_critics",)),
    "slower target": ("let the target network follow more slowly", ("agent.tau",)),
    "lower gamma": ("look less far ahead", ("agent.gamma",)),
    "more steps": ("sum more rewards before the bootstrap", ("agent.n_step",)),
    "larger critic": ("enlarge the critic", ("agent.critic_hidden",)),
    "wider range": ("widen the value range", ("agent.value_max",)),
    "more capacity of data": ("keep data of more recent policies", ("agent.replay_age_decay",)),
    "keep best": ("ship the best checkpoint, not the last", ()),
    "smaller late rate": (
        "let the learning rate fall further at the end",
        ("agent.lr_end", "agent.lr_schedule"),
    ),
    "noise": ("train with noise and bias on these channels (domain randomisation)", ()),
    "filter": ("filter these channels on the robot, re-scale them or leave them out", ()),
    "states": ("collect more data in these states, and smooth the commands there", ()),
    "include shift": ("make this disturbance part of training", ()),
    "flow noise": ("change the width of the noise interval", ("agent.flow.kappa",)),
    "flow steps": ("take more integration steps", ("agent.flow.target_steps",)),
    "entropy": (
        "keep actions away from their limits: aim at another entropy",
        ("agent.target_std", "agent.entropy_coef"),
    ),
    "limits": ("check the action scale and the torque limits of the named joints", ()),
    "terminations": ("check that time-outs are not reported as terminations", ()),
    "reward scale": (
        "check the reward's scale",
        ("agent.reward_scaler.enabled", "agent.normalise_reward"),
    ),
    "input scale": ("check the scale of the observations", ("agent.normalise_obs",)),
}

DONE = {"agent.project_critic": True, "agent.critic_norm": "layer"}
"""Values of switches with which there is nothing more to advise."""


def advice(settings: Settings | None) -> dict[str, str]:
    """What these settings can try, by purpose: a sentence, and the flag with its present value.

    What only other agents have a flag for is left out, and what these do already.
    """
    known = flat(settings) if settings is not None else {}
    found = {}
    for purpose, (text, names) in ADVICE.items():
        name = next((name for name in names if name in known), None)
        if name is not None:
            if known[name] == DONE.get(name):
                continue
            found[purpose] = f"{text} (--{name.replace('_', '-')}, now {known[name]})"
        elif not names or settings is None:
            found[purpose] = text
    return found
