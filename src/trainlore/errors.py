"""Mistakes a user can mend: shown as one line, never as a traceback."""


class Bad(ValueError):
    """Something the user gave is wrong; the message names what, where and the way out."""


class Busy(Bad):
    """Another process works on the same thing: nothing is wrong with either."""
