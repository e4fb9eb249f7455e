"""The two kinds of failure a user can act on; the command line turns them into exit statuses."""


class InputError(ValueError):
    """The request cannot be met as given: the text says expected, got, what to do. Status 2."""


class SimulatorError(RuntimeError):
    """A simulator broke its contract while running: names the field and the step. Status 1."""
