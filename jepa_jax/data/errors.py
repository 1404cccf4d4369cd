"""The one exception that means "this piece of data cannot be used"."""


class DataError(Exception):
    """Say that a file or record is unusable, with a reason that can be counted.

    Args:
        reason: short slug shared by all cases of one kind, e.g. 'truncated'.
        message: the full sentence; defaults to the reason.
    """

    def __init__(self, reason: str, message: str = ""):
        super().__init__(message or reason)
        self.reason = reason

    def __reduce__(self):
        # Both arguments must survive the trip from a worker process.
        return type(self), (self.reason, str(self))


class RecordError(ValueError):
    """Say that bytes are not a record this version can read, or not of the kind that is wanted."""
