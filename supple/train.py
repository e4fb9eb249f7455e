"""The one training loop."""

from __future__ import annotations

from supple.run import Run


def train(run: Run) -> None:
    """Collect and learn until the run has its environment steps or is asked to stop."""
    agent, replay, overlap = run.agent, run.replay, run.settings.overlap
    obs = run.start()  # env.reset(), or the resumed state
    while run.going():
        for _ in range(agent.horizon):
            with run.learning:
                action, extras = agent.act(obs, explore=True)  # (N, A)
            run.begin_step(action)
            if overlap:  # learn from the rows so far while the simulator is busy
                with run.learning:
                    metrics = agent.update(replay)
            step = run.end_step()
            obs = run.record(action, step, extras)  # agent.observe, replay.add
        if not overlap:
            with run.learning:
                metrics = agent.update(replay)  # 0-d device tensors
        run.diagnose()  # now and then; changes nothing
        if run.should_evaluate():
            run.evaluate()
        if run.should_log():
            run.log(metrics)  # the only host synchronisation
        if run.should_save():
            run.save()
    run.finish()
