"""Schedulers that a dialect came with, and pods that still name them."""

from collections.abc import Collection

from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.podview import PodView


def warn_kept_scheduler(
    pod: PodView,
    admission: AdmissionSettings,
    names: Collection[str],
    warnings: list[str],
    *,
    danger: str = "without it the pod stays Pending",
) -> None:
    """Tell the author of a pod that keeps a scheduler which the claim does not need.

    It is kept because it may do more than place cards, such as queues and gangs; whether it does is
    the operator's knowledge (``replaceSchedulers``).

    Args:
        pod: The pod.
        admission: The operator's settings.
        names: Schedulers of the dialect.
        warnings: Takes the warning.
        danger: What may go wrong.
    """
    name = pod.spec.scheduler_name
    if name in names and name not in admission.replace_schedulers:
        warnings.append(
            f"spec.schedulerName: {name!r} is kept; {danger}. Name it in replaceSchedulers of the "
            "webhook's configuration if its pods should go to the stock scheduler"
        )
