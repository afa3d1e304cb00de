"""AdmissionReview v1."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.errors import UserError
from hami_dra.webhook.review import Verdict, decode_review, deny, encode_review
from tests.unit.webhook.reviews import build_pod, build_review, encode

_GOOD = build_review(build_pod(gpu=1))


def _without(*path: str) -> dict[str, Any]:
    review: dict[str, Any] = msgspec.json.decode(encode(_GOOD))
    inner = review
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return review


_MALFORMED = {
    "empty": (b"", "truncated"),
    "no JSON": (b"{", "truncated"),
    "no UTF-8": (b'{"kind":"\xff"}', "utf-8"),
    "a list": (b"[]", "Expected `object`"),
    "another kind": (encode({"apiVersion": "v1", "kind": "Pod"}), "is a v1 Pod; only"),
    "an old version": (
        encode({**_GOOD, "apiVersion": "admission.k8s.io/v1beta1"}),
        "admission.k8s.io/v1beta1",
    ),
    "no apiVersion": (encode(_without("apiVersion")), "apiVersion"),
    "no request": (encode(_without("request")), "request: is missing"),
    "no uid": (encode(_without("request", "uid")), "uid"),
    "empty uid": (encode(build_review({}, uid="")), "request.uid: is empty"),
    "no object": (encode(_without("request", "object")), "request.object: is missing for CREATE"),
    "null object": (encode(build_review(None)), "request.object: is missing"),
    "object a text": (encode(build_review("pod")), "Expected `object"),
    "uid a number": (encode(build_review({}, uid=1)), "Expected `str`"),
    "too deep": (b'{"request":{"object":{"a":' + b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("case", _MALFORMED)
def test_a_malformed_review_says_what_is_wrong(case: str) -> None:
    body, says = _MALFORMED[case]
    with pytest.raises(UserError) as caught:
        decode_review(body)
    assert says in str(caught.value)


@given(st.binary(max_size=200))
def test_no_body_crashes_the_decoder(body: bytes) -> None:
    with pytest.raises(UserError):
        decode_review(body)


def test_unknown_fields_of_newer_servers_are_ignored() -> None:
    request = decode_review(encode(build_review(build_pod(), someday={"a": 1}, dryRun=True)))
    assert request.dry_run
    assert request.object_name == "p-"


def test_a_deletion_has_no_object() -> None:
    assert decode_review(encode(build_review(None, operation="DELETE"))).object is None


def _response(verdict: Verdict) -> dict[str, Any]:
    review: dict[str, Any] = msgspec.json.decode(encode_review("u-1", verdict))
    assert review["apiVersion"] == "admission.k8s.io/v1"
    response: dict[str, Any] = review["response"]
    assert response.pop("uid") == "u-1"
    return response


def test_answers() -> None:
    assert _response(Verdict()) == {"allowed": True}
    assert _response(deny("no")) == {
        "allowed": False,
        "status": {"code": 403, "reason": "Forbidden", "message": "no"},
    }
    operation = {"op": "remove", "path": "/a"}
    patched = _response(Verdict(patch=(operation,), warnings=("w",)))
    assert msgspec.json.decode(base64.b64decode(patched.pop("patch"))) == [operation]
    assert patched == {"allowed": True, "patchType": "JSONPatch", "warnings": ["w"]}


def test_warnings_stay_within_what_the_api_server_keeps() -> None:
    warnings = _response(Verdict(warnings=("x" * 300, "a\nb", *["y" * 256] * 20)))["warnings"]
    assert warnings[0] == "x" * 253 + "..."
    assert warnings[1] == "a b"
    assert sum(map(len, warnings)) <= 4096
