"""A trained policy in an environment of Gymnasium's own."""

import gymnasium

import supple

policy = supple.load("runs/pendulum")
env = gymnasium.make("Pendulum-v1")
obs, _ = env.reset(seed=0)
policy.reset()
total, ended = 0.0, False
while not ended:
    obs, reward, terminated, truncated, _ = env.step(policy(obs))
    total, ended = total + reward, terminated or truncated
print(f"return {total:.1f}")
