"""What the API server can answer instead of an object."""

from http import HTTPStatus
from typing import Any, Final

from hami_dra.contract.errors import HamiDraError

_LONGEST_MESSAGE: Final = 512
_RETRYABLE: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class ApiError(HamiDraError):
    """The API server refused a request or could not be reached.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: The ``Status`` object's reason, such as "AlreadyExists".
        retry_after_seconds: The server's wish, if it named one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status == 0 or self.status in _RETRYABLE

    @property
    def unauthorized(self) -> bool:
        """Whether the request was refused for who sent it, not for what it says.

        403 is also the answer of quotas, policies and namespaces that are being deleted; only the
        authorizer's names the user (k8s.io/apiserver endpoints/handlers/responsewriters).
        """
        return self.status == HTTPStatus.UNAUTHORIZED or (
            self.status == HTTPStatus.FORBIDDEN and 'is forbidden: User "' in str(self)
        )


class NotFoundError(ApiError):
    """404: no such object, or no such kind of object."""


class ConflictError(ApiError):
    """409: the object exists already, or changed since it was read."""


class GoneError(ApiError):
    """410: the watch asked for history that is compacted; list again."""

    status_code: Final = 410


_CLASSES: Final[dict[int, type[ApiError]]] = {
    404: NotFoundError,
    409: ConflictError,
    GoneError.status_code: GoneError,
}


def error_from_status(what: str, status: int, body: Any) -> ApiError:
    """Build the error for a response.

    Only the text of a ``Status`` object is quoted, cut short: other bodies may hold secrets.
    """
    message = ""
    reason = ""
    retry_after = None
    if isinstance(body, dict) and body.get("kind") == "Status":
        message = str(body.get("message", ""))[:_LONGEST_MESSAGE]
        reason = str(body.get("reason", ""))
        details = body.get("details")
        if isinstance(details, dict) and isinstance(details.get("retryAfterSeconds"), int):
            retry_after = float(details["retryAfterSeconds"])
    return _CLASSES.get(status, ApiError)(
        f"{what}: {message or f'HTTP {status}'}",
        status=status,
        reason=reason,
        retry_after_seconds=retry_after,
    )
