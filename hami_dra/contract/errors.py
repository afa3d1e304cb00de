"""Every error that crosses a room, in one tree.

A message says what is wrong, on which object and field, and what to do.
"""


class HamiDraError(Exception):
    """Root of the errors raised on purpose."""


class UserError(HamiDraError):
    """The object is wrong; trying again without changing it cannot help.

    Attributes:
        field: JSON path of the offending field, "" when the whole object is meant.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class RetryError(HamiDraError):
    """Something outside is not ready; the same call may succeed later."""


class FatalError(HamiDraError):
    """This process cannot do its work as it was started; a person has to act."""
