"""The rows of a run, finished or going on."""

from supple.metrics import complete, read_csv

columns = read_csv("runs/pendulum/metrics.csv")  # name to values, None where a row has none
print(", ".join(columns))
for step, mean, half in complete(columns, "step", "eval/return_mean", "eval/return_ci95"):
    print(f"{step:.0f} steps: {mean:.1f} ± {half:.1f}")
