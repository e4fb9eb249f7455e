"""Command-line flags of the settings, all of them ``supple train``'s, through tyro."""

from __future__ import annotations

import contextlib
import difflib
import io
import re

import tyro

from supple.agents.flashsac_settings import CRITICS, READ_BY, FlashSACSettings
from supple.agents.ppo_settings import PPOSettings
from supple.configs import AGENTS, PRESET_RULE, PRESETS
from supple.configs.base import AGENT_SETTINGS, Settings, flat
from supple.errors import INTEGER, InputError

CHOSEN = ("--agent", "--preset", "--help")
"""Flags that are read before the others."""
LEARNING_RATE = ("--agent.lr-peak", "--agent.lr")
"""What each agent calls it."""
_HELP = f"""Learn a task.

TASK is <simulator>/<task> (supple list) or module:callable. Chosen before all other flags:
  --agent {"|".join(AGENTS)}, or module:Class that extends one (docs/your-agent.md)
  --preset {"|".join(PRESETS["flashsac"])}   (PPO has the first three; default: {PRESET_RULE})
  --agent.critic {"|".join(CRITICS)}   (FlashSAC's; --agent.flow.* are of the last two)

Several processes learn as one: torchrun --nproc-per-node=N -m supple train TASK. num-envs and the
batch are then each process's, steps those of all (docs/scaling.md).

Every other flag is a field of the settings; the defaults shown are those of these choices."""


def parse_flags(
    default: Settings, arguments: list[str], command: str = "supple train TASK"
) -> Settings:
    """Apply flags to the default settings.

    Args:
        default: preset and recipe, applied.
        arguments: what is left of the command line.
        command: that was typed, with what comes before its flags.

    Raises:
        InputError: an unknown flag (with the nearest one), a value of the wrong type, or a flag
            that the chosen critic does not read.
        SystemExit: ``--help`` was asked for and printed.
    """
    said = io.StringIO()
    wants_help = "-h" in arguments or "--help" in arguments
    try:
        with contextlib.nullcontext() if wants_help else contextlib.redirect_stderr(said):
            parsed, unknown = tyro.cli(
                Settings,
                args=arguments,
                default=default,
                prog=command,
                description=_HELP,
                return_unknown_args=True,
            )
    except SystemExit:
        if wants_help:
            raise
        raise InputError(_one_line(said.getvalue())) from None
    if unknown:
        raise InputError(_unknown(unknown[0], default, command))
    settings: Settings = parsed
    _refuse_unread(default, settings)
    return settings


def _refuse_unread(default: Settings, settings: Settings) -> None:
    """Refuse flags that would do nothing; settings that a run recorded are not asked.

    A critic of one's own (``--agent module:Class``) may read any of them.
    """
    agent, before = settings.agent, flat(default)
    if isinstance(agent, PPOSettings):
        steps = agent.sequence_steps
        if steps != before["agent.sequence_steps"] and not agent.memory:
            raise InputError(
                f"--agent.sequence-steps {steps} means nothing without a memory: give"
                " --agent.memory, its width, or drop the flag"
            )
    if not isinstance(agent, FlashSACSettings) or ":" in settings.agent_name:
        return
    floor = agent.replay_age_floor
    if floor != before["agent.replay_age_floor"] and not agent.replay_age_decay:
        raise InputError(
            f"--agent.replay-age-floor {floor} means nothing without --agent.replay-age-decay: give"
            " it, too, or drop the flag"
        )
    critic = agent.critic
    for name, value in flat(settings).items():
        group = name.removeprefix("agent.").partition(".")[0]
        if value != before[name] and critic not in READ_BY.get(group, CRITICS):
            raise InputError(
                f"--{name.replace('_', '-')} means nothing to --agent.critic {critic}: drop the"
                f" flag, or take --agent.critic {' or '.join(READ_BY[group])}; of supple compare"
                " the variants that read it can have it"
            )


def _unknown(flag: str, default: Settings, command: str) -> str:
    see = f"see {' '.join(command.split()[:2])} --help"
    if not flag.startswith("-"):
        return f"expected only flags after {command}, got {flag}; {see}"
    known, name = _flags(default), flag.split("=")[0]
    if re.fullmatch(r"--(agent\.)?(lr|learning[-_]rate)", name):
        near = [each for each in LEARNING_RATE if each in known]
    elif theirs := [agent for agent, flags in _agents_flags().items() if name in flags]:
        return f"unknown flag {flag}: it is one of --agent {theirs[0]}; {see}"
    else:
        # The negation of --group.flag is --group.no-flag; what is nearest by letters is another.
        negation = re.sub(r"^--no-(.+\.)", r"--\1no-", name)
        near = [each for each in known if each == negation]
        near = near or difflib.get_close_matches(name, [*known, *CHOSEN], n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; {see}"
    return f"unknown flag {flag}{hint}"


def _flags(default: Settings) -> list[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(Settings, args=["--help"], default=default)
    return sorted(set(re.findall(r"--[a-z][a-z0-9.-]*", text.getvalue())))


def _agents_flags() -> dict[str, set[str]]:
    """The flags that are fields of each agent's settings."""
    return {
        name: {
            f"--{field.replace('_', '-')}"
            for field in flat(Settings(agent=kind()))
            if field.startswith("agent.")
        }
        for name, kind in AGENT_SETTINGS.items()
    }


def _one_line(box: str) -> str:
    """Tyro draws its errors in a box; keep the sentence."""
    text = " ".join(re.sub(r"[\u2500-\u257f]+|-{4,}", " ", box).split())
    for more in ("For full helptext", "Argument helptext:"):
        text = text.split(more)[0]
    text = re.sub("^(Parsing error|Value error|Invalid choice) ", "", text.strip())
    # What is ours names the flag by itself.
    text = re.sub(r"^Error parsing ([\w.]+: (?=--))?", "", text)
    text = re.sub(
        r": could not convert string to float: '(.*)'", r" must be a number, got \1", text
    )
    text = re.sub(r": invalid literal for int\(\) .*: '(.*)'", rf" must be {INTEGER}, got \1", text)
    return text or "cannot parse the flags"
