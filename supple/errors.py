"""The two kinds of failure a user can act on; the command line turns them into exit statuses."""


class InputError(ValueError):
    """The request cannot be met as given (exit status 2): says what was expected, got, and to do."""


class SimulatorError(RuntimeError):
    """A simulator broke its contract while running (exit status 1): names the field and the step."""
