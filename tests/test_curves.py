"""Evaluations from anybody's CSV file."""

import numpy as np
import pytest

from supple.curves import of_run, read_curves
from supple.errors import InputError


def written(tmp_path, text, name="theirs.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_every_seed_is_a_curve_in_the_order_of_its_steps(tmp_path):
    text = "env,method,seed,env_steps,return,seconds\nA-v5,sac,1,20,2,9\nA-v5,sac,1,10,1,4\n"
    text += "A-v5,sac,2,10,5,4\n"
    first, second = read_curves(written(tmp_path, text), ["gym/A-v5"])
    assert (first.task, first.variant) == ("gym/A-v5", "sac")
    assert first.steps.tolist() == [10, 20]
    assert first.returns.tolist() == [1, 2]
    assert first.seconds.tolist() == [4, 9]
    assert second.returns.tolist() == [5]
    assert first.half_width is None


def test_a_mean_over_seeds_has_students_interval(tmp_path):
    text = "task,method,env_steps,mean,std,n_seeds\nA,paper,100,7.5,2,4\n"
    (curve,) = read_curves(written(tmp_path, text), ["A"])
    assert curve.half_width is not None
    assert curve.half_width.tolist() == [pytest.approx(3.1824 * 2 / 2)]
    assert np.isnan(curve.seconds).all()


def test_what_excel_writes_first_hides_no_column(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_text("task,env_steps,return\nHopper-v5,10,1\nHumanoid-v5,10,9\n", "utf-8-sig")
    (curve,) = read_curves(path, ["gym/Hopper-v5"])
    assert curve.returns.tolist() == [1]


def test_a_file_without_names_is_of_the_only_task_and_called_after_itself(tmp_path):
    path = written(tmp_path, "global_step,episodic_return\n5,1\n", "cleanrl.csv")
    (curve,) = read_curves(path, ["gym/A-v5"])
    assert (curve.task, curve.variant) == ("gym/A-v5", "cleanrl")


def test_short_rows_and_other_letters_are_understood(tmp_path):
    text = "Task, Step ,RETURN,variant\n,1,2\nA,2,3,\n"
    (curve,) = read_curves(written(tmp_path, text, "mine.csv"), ["A"])
    assert (curve.variant, curve.steps.tolist(), curve.returns.tolist()) == ("mine", [1, 2], [2, 3])


def test_metric_rows_of_a_run_read_alike_from_its_folder_and_its_file(tmp_path):
    path = written(
        tmp_path, "step,time/seconds,eval/return_mean\n1,0.5,\n2,1.0,3.5\n", "metrics.csv"
    )
    (other,) = read_curves(path, ["t"])
    own = of_run(tmp_path, "t", "metrics")
    for curve in (own, other):
        assert (curve.steps.tolist(), curve.returns.tolist()) == ([2], [3.5])
        assert curve.seconds.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "tasks", "said"),
    [
        ("step,value\n1,2\n", ["A"], "needs a column called return or mean .* got step, value"),
        ("return\n1\n", ["A"], "needs a column called env_steps or step"),
        ("", ["A"], "got no header"),
        ("step,return\n1,2\n", ["A", "B"], "needs a column called task: 2 tasks are compared"),
        ("task,step,return\nC,1,2\n", ["A"], "has no row of A; it has C"),
        ("step,return\n1,much\n", ["A"], "line 2: return must be a number, got much"),
        ("step,return\n,2\n", ["A"], "line 2: step must be a number, got nothing"),
        ("step,return\n1,2\n2,3\n1,4\n", ["A"], "has step 1 of .* more than once: .* called seed"),
        ("step,return\n1,inf\n", ["A"], "line 2: return must be a number, got inf"),
        ("step,mean,std,n_seeds\n1,2,,3\n", ["A"], "line 2: a mean needs .* got nothing and 3"),
        ("step,mean,std\n1,2,1\n", ["A"], "line 2: a mean needs .* got 1 and nothing"),
        ("step,mean,std,n_seeds\n1,2,-1,3\n", ["A"], "line 2: a mean needs .* got -1 and 3"),
        ("step,mean,std,n_seeds\n1,2,inf,3\n", ["A"], "line 2: a mean needs .* got inf and 3"),
        ("step,mean,std,n_seeds\n1,2,1,inf\n", ["A"], "line 2: a mean needs .* got 1 and inf"),
        ("step,mean,std,n_seeds\n1,2,1,0\n", ["A"], "line 2: a mean needs .* got 1 and 0"),
        ("step,mean,std,n_seeds\n1,2,1,2.5\n", ["A"], "line 2: a mean needs .* got 1 and 2.5"),
        ("step,mean,std,n_seeds\n1,2,1,3\n2,3,,\n", ["A"], "has a mean of .* std and n_seeds in"),
        (
            "step,mean,std,n_seeds,seed\n1,2,1,3,\n1,3,,,0\n",
            ["A"],
            "has a mean of .* expected one mean, or the runs themselves",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, text, tasks, said):
    with pytest.raises(InputError, match=said):
        read_curves(written(tmp_path, text), tasks)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.csv"):
        read_curves(tmp_path / "none.csv", ["A"])
