import contextlib
import io
import os
import pty
import sys
import warnings

import pytest

from supple.display import Display, format_number, format_seconds

ROW = {
    "train/return_mean": 12.3456,
    "time/env_steps_per_s": 2500.4,
    "time/updates_per_s": 310.24,
    "time/memory_gib": 0.84123,
    "critic/loss": 5.0,
}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


# --- a log -----------------------------------------------------------------------------------


def test_a_log_gets_one_plain_line_per_few_seconds(capsys, clock):
    with Display(1000, title="toy [red] · seed 0", clock=clock) as display:
        for second in range(1, 13):
            clock.now = second
            display.update({"step": 50 * second, **ROW})
            if second == 2:
                display.update({"step": 100, "eval/return_mean": 20.0, "eval/return_ci95": 1.5})
    assert capsys.readouterr().out.splitlines() == [
        "toy [red] · seed 0",
        "5 % | 50 / 1,000 env steps | return 12.3 | 2,500 env steps/s | 310 updates/s | 0.841 GiB",
        *[
            f"{percent} % | {steps} / 1,000 env steps | 0:{left:02} left | return 12.3"
            " | evaluation 20 ± 1.5 | 2,500 env steps/s | 310 updates/s | 0.841 GiB"
            for percent, steps, left in ((10, 100, 18), (35, 350, 13), (60, 600, 8))
        ],
    ]


def test_a_log_gets_no_control_characters(capsys):
    with Display(10, title="\x1b[31mred") as display:
        display.notice("a\x1b[2Jb\rc\ntwo lines")
        display.print_table("t", {"a\a": "b"})
    assert capsys.readouterr().out == " [31mred\na [2Jb c\ntwo lines\nt:\n  a   b\n"


def test_a_long_path_stays_whole_in_a_log(capsys):
    path = "/very/long" * 40 + "/final.mp4"
    Display.print_table("t", {"video": path})
    assert f"  video  {path}\n" in capsys.readouterr().out


def test_the_remaining_time_starts_at_the_resumed_step(capsys, clock):
    with Display(1000, title="t", clock=clock) as display:
        display.update({"step": 900})
        clock.now = 10
        display.update({"step": 950})
    assert capsys.readouterr().out.splitlines()[-1] == "95 % | 950 / 1,000 env steps | 0:10 left"


def test_the_remaining_time_is_that_of_learning(capsys, clock):
    with Display(1000, title="t", clock=clock) as display:
        for second, step, updates in ((1, 100, 0), (7, 700, 0), (14, 800, 9), (24, 850, 9)):
            clock.now = second
            display.update({"step": step, "time/updates_per_s": updates})
    said = [line.split(" | ")[2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert said == ["0 updates/s", "0 updates/s", "9 updates/s", "0:30 left"]


def test_a_last_step_beyond_the_end_is_all_of_it(capsys, clock):
    with Display(1000, title="t", clock=clock) as display:
        display.update({"step": 1008})
    assert "100 % | 1,008 / 1,000 env steps" in capsys.readouterr().out


def test_notices_and_tables_work_outside_the_run(capsys):
    display = Display(10, title="t")
    display.notice("before")
    with display:
        display.notice("during")
    display.print_table("finished", {"task": "toy", "a longer name": "[/x] ± 1"})
    Display.print_rows("seeds", [{"variant": "a", "mean": "1"}, {"variant": "bcd", "mean": "10"}])
    Display.print_rows("none", [])
    assert capsys.readouterr().out.splitlines() == [
        "before",
        "t",
        "during",
        "finished:",
        "  task           toy",
        "  a longer name  [/x] ± 1",
        "seeds:",
        "  variant  mean",
        "  a        1",
        "  bcd      10",
        "none:",
    ]


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


class NoReentry(io.StringIO):
    def write(self, text):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter>")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [FullDisk(), NoReentry(), closed(), None])
def test_an_output_that_refuses_everything_ends_no_run(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    with Display(10, title="t") as display:
        display.notice("x")
        display.update({"step": 1, **ROW})
    display.print_table("t", {"a": "b"})


def test_what_an_encoding_lacks_becomes_a_question_mark(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Display(10, title="t").notice("1 ± 2")
    assert raw.getvalue() == b"1 ? 2\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.01234, "-0.0123"),
        (999.4, "999"),
        (999.6, "1,000"),
        (-12345.6, "-12,346"),
        (2e9, "2e+09"),
    ],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text


def test_odd_numbers_have_a_text():
    assert [format_number(float(x)) for x in ("nan", "inf", "-inf")] == ["nan", "inf", "-inf"]
    assert [format_seconds(x) for x in (0.4, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]


# --- a terminal ------------------------------------------------------------------------------


@contextlib.contextmanager
def terminal(monkeypatch):
    """A pseudo-terminal as stdout; yields what reads all written so far, and its outer end."""
    outer, inner = pty.openpty()
    os.set_blocking(outer, False)
    stream = os.fdopen(inner, "w", encoding="utf-8")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stdout", stream)

    def read():
        found = b""
        with contextlib.suppress(BlockingIOError, OSError):
            while chunk := os.read(outer, 65536):
                found += chunk
        return found.decode()

    try:
        yield read, outer
    finally:
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            stream.close()
        with contextlib.suppress(OSError):
            os.close(outer)


HIDE, SHOW, UP = "\x1b[?25l", "\x1b[?25h", "\x1b[1A"


def test_a_terminal_gets_a_bar_with_notices_above(monkeypatch, clock):
    with terminal(monkeypatch) as (read, _):
        with Display(1000, title="toy [red] run", clock=clock) as display:
            start = read()
            assert HIDE in start and "toy [red] run" in start and "0 / 1,000 env steps" in start
            clock.now = 1
            display.update({"step": 250, **ROW})
            shown = read()
            assert "25 % | 250 / 1,000 env steps" in shown and "return 12.3" in shown
            assert "━" in shown and UP in shown
            clock.now = 1.1
            display.update({"step": 260, **ROW})
            assert read() == ""  # too soon to draw again
            display.notice("a notice [/with] brackets")
            print("printed")
            after = read()
            assert after.index("a notice [/with] brackets") < after.index("printed")
            assert after.index("printed") < after.rindex("250 / 1,000 env steps")
            display.update({"step": 270, **ROW})
        end = read()
        assert "270 / 1,000 env steps" in end and end.endswith(SHOW)
        display.print_table("finished", {"name [x]": "value"})
        assert "name [x]" in read()


def test_an_exception_gives_the_terminal_back(monkeypatch):
    with terminal(monkeypatch) as (read, _):
        stdout, stderr = sys.stdout, sys.stderr
        with pytest.raises(ZeroDivisionError), Display(10, title="t"):
            assert sys.stdout is not stdout  # prints go above the bar
            assert sys.stderr is stderr  # not a terminal here: left alone
            1 / 0  # noqa: B018
        assert sys.stdout is stdout
        assert read().endswith(SHOW)


def test_a_terminal_that_goes_away_ends_no_run(monkeypatch, clock):
    with terminal(monkeypatch) as (_, outer):
        with Display(10, title="t", clock=clock) as display:
            os.close(outer)
            for step in range(5):
                clock.now = step
                display.update({"step": step, **ROW})
                display.notice("x")
        display.print_table("t", {"a": "b"})


@pytest.mark.parametrize("term", ["", "dumb"])
def test_a_dumb_terminal_gets_plain_lines(monkeypatch, term):
    with terminal(monkeypatch) as (read, _):
        monkeypatch.setenv("TERM", term)
        with Display(10, title="t") as display:
            display.update({"step": 1})
        assert read() == "t\r\n10 % | 1 / 10 env steps\r\n"


def test_warnings_do_not_break_the_bar(monkeypatch):
    with terminal(monkeypatch), Display(10, title="t"), pytest.warns(UserWarning, match="careful"):
        warnings.warn("careful", stacklevel=1)
