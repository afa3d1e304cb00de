"""Names of extended resources (k8s.io/kubernetes pkg/apis/core/helper, IsExtendedResourceName)."""

import re
from typing import Final

from hami_dra.contract.errors import UserError

_QUALIFIED_NAME: Final = re.compile(
    r"(?=.{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
    r"/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)


def check_resource_name(name: str, *, field: str) -> None:
    """Refuse what cannot be the name of an extended resource.

    Raises:
        UserError: With the field.
    """
    if not _QUALIFIED_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name of an extended resource; write DOMAIN/NAME", field=field
        )
