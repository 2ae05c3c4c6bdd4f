"""The one exception of the library: what a user gave is wrong."""


class InputError(ValueError):
    """An argument, a file or a setting is not what was asked for.

    The message names the argument in backticks, says what was expected, and ends in
    `Received: name=value`.
    """
