"""The only room that talks to the API server. Raw JSON objects in and out.

Typed models are kept out on purpose: a typed read-modify-write drops fields newer than the model,
and costs 60 times the time of the raw object (docs/decisions/0002-raw-objects.md).
"""

from hami_dra.kube.errors import ApiError, ConflictError, NotFoundError
from hami_dra.kube.informer import Informer
from hami_dra.kube.objects import Api, Resource
from hami_dra.kube.session import ApiSession, connect

__all__ = [
    "Api",
    "ApiError",
    "ApiSession",
    "ConflictError",
    "Informer",
    "NotFoundError",
    "Resource",
    "connect",
]
