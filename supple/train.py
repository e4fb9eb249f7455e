"""The one training loop."""

from __future__ import annotations

from supple.run import Run


def train(run: Run) -> None:
    """Collect and learn until the run has its environment steps or is asked to stop."""
    env, agent, replay = run.env, run.agent, run.replay
    obs = run.start()  # env.reset(), or the resumed state
    while run.going():
        for _ in range(agent.horizon):
            action, extras = agent.act(obs, explore=True)  # (N, A)
            step = env.step(action)
            run.count(step)
            agent.observe(step)
            replay.add(obs, action, step, extras)
            obs = step["observation"]
        metrics = agent.update(replay)  # 0-d device tensors
        if run.should_evaluate():
            run.evaluate()
        if run.should_log():
            run.log(metrics)  # the only host synchronisation
        if run.should_save():
            run.save()
    run.finish()
