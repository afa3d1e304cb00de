"""Shares to one ResourceClaimTemplate, named after what it says.

Equal wishes get equal names, so the replicas of a workload use one template, and writing it again
changes nothing. All that the API server would default is written out: what is stored is then what
was hashed, and a template that somebody else put under the name can be told apart.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from hami_dra.contract.claimconfig import ShareConfig, encode_share_config
from hami_dra.contract.errors import UserError
from hami_dra.contract.names import (
    ATTR_STD_NUMA_NODE,
    ATTR_STD_PCIE_ROOT,
    CONFIG_API_VERSION,
    CONFIG_KIND,
    LABEL_MANAGED_BY,
    MANAGED_BY,
    TEMPLATE_NAME_PREFIX,
)
from hami_dra.contract.quantity import format_count, format_mib
from hami_dra.policy.percentage import Alternative, choose_limit, list_alternatives
from hami_dra.policy.placement import MOST_CONSTRAINTS, prefer
from hami_dra.policy.request import MOST_CARDS, Placement, Share
from hami_dra.policy.selectors import memory_at_least
from hami_dra.policy.target import OUR_CARDS

_HASH_DIGITS: Final = 16
_NAME: Final = re.compile(rf"{re.escape(TEMPLATE_NAME_PREFIX)}-[0-9a-f]{{{_HASH_DIGITS}}}")
_MOST_REQUESTS: Final = 32
"""resource.k8s.io/v1 validation, like `MOST_CARDS`."""
_MOST_BYTES: Final = 1_000_000
"""etcd takes 1.5 MiB, and the claim made from a template also holds its allocation."""

_ANYWHERE: Final = Placement()
_NO_CONFIG: Final = ShareConfig(api_version=CONFIG_API_VERSION, kind=CONFIG_KIND)


def build_template(
    shares: Sequence[Share],
    sizes: Collection[int] = (),
    placement: Placement = _ANYWHERE,
    *,
    index: int | None = None,
) -> dict[str, Any]:
    """Return the template for a pod's shares, without a namespace.

    A request is named after its container. An exclusive share, and one without a memory limit,
    leaves ``memory`` out: its default is the card's whole memory, whose size is unknown here
    (docs/decisions/0003-exclusive-memory.md). Cores and slots are always written.

    Args:
        shares: One request each.
        sizes: Distinct memory sizes of the cluster's cards in MiB, for percentages.
        placement: Where the cards should be.
        index: Position on its node of the card to prefer, see `placement.choose_index`.

    Raises:
        UserError: More cards, containers or conditions than one claim can hold.
    """
    cards = sum(share.cards for share in shares)
    if cards > MOST_CARDS or len(shares) > _MOST_REQUESTS:
        raise UserError(
            f"the containers ask for {cards} cards together; the claim of a pod holds at most "
            f"{MOST_CARDS}",
            field="spec.containers",
        )
    requests: list[dict[str, Any]] = []
    constraints: list[dict[str, Any]] = []
    for share in shares:
        alternatives = prefer(list_alternatives(share, sizes), share, placement, index)
        requests.append(_request(share, alternatives, placement))
        if share.cards > 1:
            constraints += _constrain(share, alternatives, placement)
    ours = [share for share in shares if share.target is OUR_CARDS]
    if placement.one_card and len(ours) > 1:
        constraints.append(_put_on_one_card(ours))
    if len(constraints) > MOST_CONSTRAINTS:
        raise UserError(
            f"what the cards of {len(shares)} containers must have in common takes "
            f"{len(constraints)} constraints; a claim holds at most {MOST_CONSTRAINTS}",
            field="metadata.annotations",
        )
    devices: dict[str, Any] = {"requests": requests}
    config = [entry for share in shares for entry in _config(share, sizes)]
    if constraints:
        devices["constraints"] = constraints
    if config:
        devices["config"] = config
    labels = {LABEL_MANAGED_BY: MANAGED_BY}
    spec = {"metadata": {"labels": labels}, "spec": {"devices": devices}}
    canonical = _encode(spec)
    if len(canonical) > _MOST_BYTES:
        raise UserError(
            f"the conditions on cards, written for each of {len(shares)} containers, make a claim "
            f"of {len(canonical)} bytes; the most is {_MOST_BYTES}: shorten the lists of cards",
            field="metadata.annotations",
        )
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": _name(canonical), "labels": dict(labels)},
        "spec": spec,
    }


def name_template(spec: dict[str, Any]) -> str:
    """Return the content-addressed name of a template's spec: a DNS label, 64 bits of SHA-256."""
    return _name(_encode(spec))


def _encode(spec: dict[str, Any]) -> bytes:
    return msgspec.json.encode(spec, order="sorted")


def _name(canonical: bytes) -> str:
    return f"{TEMPLATE_NAME_PREFIX}-{hashlib.sha256(canonical).hexdigest()[:_HASH_DIGITS]}"


def is_template_name(name: Any) -> bool:
    """Whether a name has the form of those that `name_template` gives."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def names_content(name: Any, spec: Mapping[str, Any]) -> bool:
    """Whether a template has the name that `name_template` gives to what is stored of its spec."""
    # API servers before 1.34 add nulls to the metadata.
    metadata = {k: v for k, v in (spec.get("metadata") or {}).items() if v is not None}
    content = {**spec, "metadata": metadata} if metadata else dict(spec)
    return is_template_name(name) and name_template(content) == name


def _request(
    share: Share, alternatives: Sequence[Alternative], placement: Placement
) -> dict[str, Any]:
    if len(alternatives) == 1:
        return {"name": share.container, "exactly": _ask(share, alternatives[0], placement)}
    subrequests = [{"name": each.name, **_ask(share, each, placement)} for each in alternatives]
    return {"name": share.container, "firstAvailable": subrequests}


def _ask(share: Share, alternative: Alternative, placement: Placement) -> dict[str, Any]:
    target = share.target
    capacity = {}
    if target.cores:
        capacity[target.cores] = format_count(share.cores_percent)
    if target.slots:
        capacity[target.slots] = "1"
    if target.memory and alternative.memory_mib is not None:
        capacity[target.memory] = format_mib(alternative.memory_mib)
    of_pod = placement.selectors if target is OUR_CARDS else ()
    selectors = [*of_pod, *share.selectors, *alternative.selectors]
    if share.exclusive and share.memory_mib is not None:
        selectors.append(memory_at_least(share.memory_mib))
    ask: dict[str, Any] = {
        "deviceClassName": target.device_class,
        "allocationMode": "ExactCount",
        "count": share.cards,
    }
    if capacity:
        ask["capacity"] = {"requests": capacity}
    if selectors:
        ask["selectors"] = [{"cel": {"expression": expression}} for expression in selectors]
    return ask


def _constrain(
    share: Share, alternatives: Sequence[Alternative], placement: Placement
) -> Iterator[dict[str, Any]]:
    """Yield what the cards of one container must have in common, or must not."""
    target = share.target
    if target.uuid:
        yield {"distinctAttribute": target.qualified_uuid, "requests": [share.container]}
    if target is not OUR_CARDS:
        return
    if placement.one_numa_node:
        yield {"matchAttribute": ATTR_STD_NUMA_NODE, "requests": [share.container]}
    if placement.one_pcie_root:
        yield {"matchAttribute": ATTR_STD_PCIE_ROOT, "requests": [share.container]}
    near = [f"{share.container}/{each.name}" for each in alternatives if each.near]
    if near:
        # Void unless one of these alternatives is chosen.
        yield {"matchAttribute": placement.near, "requests": near}


def _put_on_one_card(shares: Sequence[Share]) -> dict[str, Any]:
    requests = [share.container for share in shares]
    return {"matchAttribute": OUR_CARDS.qualified_uuid, "requests": requests}


def _config(share: Share, sizes: Collection[int]) -> Iterator[dict[str, Any]]:
    """Yield the configuration of a request, if there is something to say.

    One entry for everything: the node takes the last one that names the request.
    """
    config = ShareConfig(
        api_version=CONFIG_API_VERSION,
        kind=CONFIG_KIND,
        memory_limit_mib=share.memory_mib if share.exclusive else None,
        memory_limit_percent=choose_limit(share, sizes),
        priority=share.enforcement.priority,
        core_policy=share.enforcement.core_policy,
        disable_control=not share.enforcement.control,
        oversubscription=share.enforcement.oversubscription,
    )
    if config == _NO_CONFIG or not share.target.takes_config:
        return
    yield {
        "requests": [share.container],
        "opaque": {"driver": share.target.driver, "parameters": encode_share_config(config)},
    }
