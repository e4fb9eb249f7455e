import os
import signal
import threading

import pytest

from supple.signals import on_signals


def test_within_the_block_a_signal_calls_the_handler_and_after_it_what_did_before():
    taken = []
    with on_signals(lambda *_: taken.append("outer"), signal.SIGUSR1):
        with on_signals(lambda *_: taken.append("inner"), signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert taken == ["inner", "inner", "outer"]
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_it_is_put_back_after_an_error():
    with pytest.raises(KeyError), on_signals(lambda *_: None, signal.SIGUSR1):
        raise KeyError
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_other_threads_may_take_none_and_change_none():
    seen = []

    def work():
        with on_signals(lambda *_: None, signal.SIGUSR1):
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_a_handler_that_was_not_pythons_is_not_put_back(monkeypatch):
    """``signal.signal`` says None of it, and takes no None."""
    given = []

    def strict(number, handler):
        assert handler is not None
        given.append(handler)

    monkeypatch.setattr(signal, "signal", strict)
    with on_signals(print, signal.SIGUSR1):
        pass
    assert given == [print]
