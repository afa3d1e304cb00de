"""Whole cards beside parts of one in the same pod, where nobody reads them together."""

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import RESOURCE_GPU
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.podview import PodView, list_places
from hami_dra.policy.written import find_keys


def refuse_whole_cards(pod: PodView, admission: AdmissionSettings, said: str) -> None:
    """Refuse ``nvidia.com/gpu`` in a pod that speaks another dialect.

    While HAMi's dialect is on the key is HAMi's, and the two dialects are refused with their names.

    Args:
        pod: The pod.
        admission: The operator's settings.
        said: The key by which it asks for parts.

    Raises:
        UserError: A container asks for whole cards.
    """
    if "hami" in admission.dialects and RESOURCE_GPU in admission.nvidia.keys:
        return
    for place in list_places(pod):
        field = find_keys(place, (RESOURCE_GPU,)).field(RESOURCE_GPU)
        if field is not None:
            raise UserError(
                f'asks for whole cards in a pod that asks for parts of one by "{said}"; write one '
                "of them",
                field=field,
            )
