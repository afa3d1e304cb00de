"""AdmissionReview v1, in and out.

What is not an AdmissionReview gets HTTP 400 from the server: the API server never sends it, and
a person with curl needs the reason.
"""

import base64
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import msgspec

from hami_dra.contract.errors import UserError

_API_VERSION: Final = "admission.k8s.io/v1"
_KIND: Final = "AdmissionReview"
_REASONS: Final = {
    HTTPStatus.FORBIDDEN: "Forbidden",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailable",
}
"""StatusReason (meta/v1), which kubectl prints."""
_LONGEST_NAME: Final = 253
"""Of any object; here nobody has checked it yet."""
_LONGEST_WARNING: Final = 256
"""The API server may cut longer ones (admission/v1 AdmissionResponse)."""
_MOST_WARNING_CHARACTERS: Final = 4096


class Kind(msgspec.Struct, frozen=True):
    """GroupVersionKind of the object."""

    group: str = ""
    version: str = ""
    kind: str = ""


class UserInfo(msgspec.Struct, frozen=True):
    """Who asks."""

    username: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """``request`` of an AdmissionReview, as far as it is used."""

    uid: str
    kind: Kind = Kind()
    operation: str = ""
    namespace: str = ""
    name: str = ""
    user_info: UserInfo = UserInfo()
    dry_run: bool | None = None
    object: dict[str, Any] | None = None
    old_object: dict[str, Any] | None = None

    @property
    def object_name(self) -> str:
        """Name for logs and messages; a pod of a ReplicaSet only has the beginning of one."""
        metadata = (self.object or {}).get("metadata")
        if self.name or not isinstance(metadata, dict):
            return self.name[:_LONGEST_NAME]
        name = str(metadata.get("name") or metadata.get("generateName") or "")
        return name[:_LONGEST_NAME]


class _Review(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one request.

    Attributes:
        result: One word for metrics and logs: allowed, patched, denied, unavailable or failed.
        patch: JSON patch, empty for none.
        warnings: kubectl prints them.
        code: HTTP status in the answer when it is not allowed.
        message: Why it is not allowed.
    """

    result: str = "allowed"
    patch: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    code: HTTPStatus = HTTPStatus.OK
    message: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the object may be stored."""
        return self.code == HTTPStatus.OK


def deny(message: str) -> Verdict:
    """Refuse for good: the object has to change."""
    return Verdict(result="denied", code=HTTPStatus.FORBIDDEN, message=message)


def postpone(message: str) -> Verdict:
    """Refuse for now: the same object may pass later."""
    return Verdict(
        result="unavailable",
        code=HTTPStatus.SERVICE_UNAVAILABLE,
        message=f"{message}; try again",
    )


def fail(message: str) -> Verdict:
    """Refuse because something here is broken, which a person has to mend."""
    return Verdict(result="failed", code=HTTPStatus.INTERNAL_SERVER_ERROR, message=message)


def decode_review(body: bytes) -> Request:
    """Return the request in a body.

    Raises:
        UserError: Not an AdmissionReview v1 with a request that has a uid and an object.
    """
    try:
        review = msgspec.json.decode(body, type=_Review)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the body is not an AdmissionReview: {error}") from error
    except RecursionError as error:
        raise UserError("the body is not an AdmissionReview: it is nested too deeply") from error
    if (review.api_version, review.kind) != (_API_VERSION, _KIND):
        raise UserError(
            f"the body is a {review.api_version[:80]} {review.kind[:80]}; only "
            f"{_API_VERSION} {_KIND} is understood"
        )
    request = review.request
    if request is None:
        raise UserError("is missing", field="request")
    if not request.uid:
        raise UserError("is empty", field="request.uid")
    if request.object is None and request.operation != "DELETE":
        raise UserError(
            f"is missing for {request.operation or 'no operation'}", field="request.object"
        )
    return request


def encode_review(uid: str, verdict: Verdict) -> bytes:
    """Return the body of the answer."""
    response: dict[str, Any] = {"uid": uid, "allowed": verdict.allowed}
    if not verdict.allowed:
        response["status"] = {
            "code": int(verdict.code),
            "reason": _REASONS.get(verdict.code, "InternalError"),
            "message": verdict.message,
        }
    elif verdict.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(msgspec.json.encode(verdict.patch)).decode()
    warnings = _fit_warnings(verdict.warnings)
    if warnings:
        response["warnings"] = warnings
    return msgspec.json.encode({"apiVersion": _API_VERSION, "kind": _KIND, "response": response})


def _fit_warnings(warnings: tuple[str, ...]) -> list[str]:
    fitted = []
    left = _MOST_WARNING_CHARACTERS
    for warning in warnings:
        text = warning
        if not text.isprintable():
            text = "".join(c if c.isprintable() else " " for c in text)
        if len(text) > _LONGEST_WARNING:
            text = f"{text[: _LONGEST_WARNING - 3]}..."
        if len(text) > left:
            break
        left -= len(text)
        fitted.append(text)
    return fitted
