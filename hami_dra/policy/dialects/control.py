"""What holds where the operator lets nobody lift the limits of a share."""

from hami_dra.contract.errors import UserError
from hami_dra.policy.podview import PodView, list_places
from hami_dra.policy.request import PodRequest


def check_control(pod: PodView, request: PodRequest) -> None:
    """Refuse a pod that wants a share without its limits.

    Raises:
        UserError: With the container.
    """
    free = {share.container for share in request.shares if not share.enforcement.control}
    for place in list_places(pod):
        if place.container.name in free:
            raise UserError(
                "switches off the limits of its share (CUDA_DISABLE_CONTROL, or the same in "
                "another dialect), which this cluster does not allow; remove the variable",
                field=f"{place.path}.env",
            )
