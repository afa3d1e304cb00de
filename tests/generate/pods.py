"""Whole pods. Most would be accepted by an API server; some, never."""

from typing import Any, Final

import msgspec
from hypothesis import strategies as st

from hami_dra.contract.names import ANNOTATION_ORIGINAL_REQUEST, POD_CLAIM_NAME
from hami_dra.contract.settings import AdmissionSettings
from tests.generate import texts
from tests.generate.words import metadata_keys, resource_keys

Pod = dict[str, Any]

_OTHER_RESOURCES: Final = ("cpu", "memory", "nvidia.com/mig-1g.5gb", "amd.com/gpu", "a.b/c_D.e")
_NAMES: Final = ("main", "side", "a", "b", "x" * 63, "0")
_BAD_NAMES: Final = ("", "A", "a.b", "a_b", "x" * 64, "a/b", "~", "main", 'a"b', "\u00e9")
_VARIABLES: Final = (
    "NVIDIA_VISIBLE_DEVICES", "GPU_CORE_UTILIZATION_POLICY", "CUDA_DISABLE_CONTROL", "PATH",
)  # fmt: skip
_METADATA_KEYS: Final = tuple(metadata_keys())
_TEMPLATE: Final = f"{POD_CLAIM_NAME}-0123456789abcdef"

_env = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"name": st.sampled_from(_VARIABLES)},
            optional={"value": st.sampled_from(("all", "none", "force", "true", "", "x\n\u2028"))},
        ),
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(_VARIABLES),
                "valueFrom": st.just({"fieldRef": {"fieldPath": "metadata.name"}}),
            }
        ),
    ),
    max_size=4,
)
_affinities = st.sampled_from(
    (
        {},
        {"podAffinity": {}, "podAntiAffinity": {}},
        {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": {"topologyKey": "zone"}}
                ]
            }
        },
    )
)


@st.composite
def _resources(draw: st.DrawFn, keys: tuple[str, ...], *, wild: bool) -> dict[str, Any]:
    quantities = texts.quantities(wild=wild)
    chosen = draw(st.lists(st.sampled_from(keys), min_size=0, max_size=4, unique=True))
    other = draw(st.lists(st.sampled_from(_OTHER_RESOURCES), max_size=1))
    limits = {key: draw(quantities) for key in chosen} | dict.fromkeys(other, "1")
    found: dict[str, Any] = {}
    where = draw(st.sampled_from(("limits", "limits", "limits", "both", "requests", "unlike")))
    if where != "requests":
        found["limits"] = limits
    if where in {"both", "requests"}:
        found["requests"] = dict(limits)
    if where == "unlike":
        found["requests"] = {key: draw(quantities) for key in keys[:2]}
    if draw(st.integers(0, 11)) == 0:
        name = draw(st.sampled_from(("other", POD_CLAIM_NAME, "none")))
        found["claims"] = [{"name": name, "request": "main"}]
    if draw(st.integers(0, 19)) == 0:
        found[draw(st.sampled_from(("limits", "requests", "claims")))] = None
    return found


@st.composite
def _containers(
    draw: st.DrawFn, name: str, keys: tuple[str, ...], *, init: bool, wild: bool
) -> Pod:
    if wild and draw(st.integers(0, 9)) == 0:
        name = draw(st.sampled_from(_BAD_NAMES))
    container: Pod = {"name": name, "image": "local/none:1"}
    if draw(st.integers(0, 4)):
        container["resources"] = draw(_resources(keys, wild=wild))
    if draw(st.integers(0, 3)) == 0:
        container["env"] = draw(_env)
    if wild and draw(st.integers(0, 9)) == 0:
        container["securityContext"] = {"privileged": draw(st.booleans())}
    if init and draw(st.booleans()):
        container["restartPolicy"] = "Always"
    return container


@st.composite
def _many(draw: st.DrawFn, keys: tuple[str, ...]) -> list[Pod]:
    """Return containers that come near the limits of a claim, or pass them."""
    count = draw(st.sampled_from((11, 16, 17, 32, 33, 200)))
    cards = draw(st.sampled_from(("1", "1", "2")))
    limits = dict.fromkeys(keys[:1], cards) | dict.fromkeys(keys[1:2], "1000")
    return [
        {"name": f"c{i}", "image": "local/none:1", "resources": {"limits": limits}}
        for i in range(count)
    ]


_original = st.one_of(
    st.just('{"main":{"limits":{"nvidia.com/gpu":"1"}}}'),
    st.just('{"main":{"limits":{"nvidia.com/gpu":"1","nvidia.com/gpumem":"700"}}}'),
    st.builds(
        lambda value: msgspec.json.encode(value).decode(),
        st.dictionaries(
            st.sampled_from(_NAMES[:4]),
            st.dictionaries(
                st.sampled_from(("limits", "requests", "claims", "x", "")),
                st.one_of(
                    st.dictionaries(
                        st.sampled_from(("nvidia.com/gpu", "cpu", "x", "name")),
                        st.one_of(
                            texts.quantities(wild=True),
                            st.booleans(),
                            st.floats(-1, 1),
                            st.just({}),
                        ),
                        max_size=3,
                    ),
                    st.sampled_from((None, [], "x", 1)),
                ),
                max_size=3,
            ),
            max_size=3,
        ),
    ),
    texts.values,
    st.just("[" * 5_000),
    st.just('{"main":{"limits":' + "1" * 5_000 + "}}"),
)


@st.composite
def _annotations(draw: st.DrawFn) -> dict[str, str]:
    chosen = draw(st.lists(st.sampled_from(_METADATA_KEYS), max_size=4, unique=True))
    found = {key: draw(texts.values) for key in chosen}
    if draw(st.integers(0, 29)) == 0:
        used = sum(len(key.encode()) + len(value.encode()) for key, value in found.items())
        left = texts.MOST_ANNOTATION_BYTES - used - len("filler")
        found["filler"] = "x" * max(0, left - draw(st.sampled_from((0, 1, 60, 400, -1))))
    return found


@st.composite
def _more_spec(draw: st.DrawFn, *, wild: bool) -> Pod:
    spec: Pod = {}
    if draw(st.integers(0, 3)) == 0:
        spec["schedulerName"] = draw(st.sampled_from(("hami-scheduler", "volcano", "x")))
    if wild and draw(st.integers(0, 9)) == 0:
        spec["nodeName"] = draw(st.sampled_from(("node-1", "")))
    if draw(st.integers(0, 9)) == 0:
        spec["affinity"] = draw(_affinities)
    if draw(st.integers(0, 7)) == 0:
        spec["resourceClaims"] = [{"name": "other", "resourceClaimName": "mine"}]
    return spec


@st.composite
def pods(draw: st.DrawFn, settings: AdmissionSettings) -> Pod:
    """Generate pods that speak the dialects that are switched on, now and then several at once."""
    wild = draw(st.integers(0, 2)) == 0
    dialects = resource_keys(settings)
    keys = draw(st.sampled_from(dialects))
    if wild and draw(st.integers(0, 9)) == 0:
        keys = tuple(key for dialect in dialects for key in dialect)
    names = draw(st.permutations(_NAMES))
    count = draw(st.sampled_from((1, 1, 1, 2, 3)))
    if draw(st.integers(0, 29)):
        containers = [
            draw(_containers(name, keys, init=False, wild=wild)) for name in names[:count]
        ]
    else:
        containers = draw(_many(keys))
    spec: Pod = {"containers": containers, "automountServiceAccountToken": False}
    if draw(st.integers(0, 2)) == 0:
        spec["initContainers"] = [
            draw(_containers(name, keys, init=True, wild=wild)) for name in names[count : count + 2]
        ]
    spec |= draw(_more_spec(wild=wild))
    metadata: Pod = {"generateName": "p-"}
    if draw(st.booleans()):
        metadata["annotations"] = draw(_annotations())
    if draw(st.integers(0, 5)) == 0:
        chosen = draw(st.lists(st.sampled_from(_METADATA_KEYS), max_size=2, unique=True))
        metadata["labels"] = {key: draw(st.sampled_from(("true", "", "x"))) for key in chosen}
    pod: Pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    if draw(st.integers(0, 11)) == 0:
        _pretend_rewritten(pod, draw(_original), draw(st.sampled_from((_TEMPLATE, "mine"))))
    return pod


def _pretend_rewritten(pod: Pod, original: str, template: str) -> None:
    """Make a pod look as if admission had seen it before."""
    entry = {"name": POD_CLAIM_NAME, "resourceClaimTemplateName": template}
    pod["spec"].setdefault("resourceClaims", []).append(entry)
    annotations = pod["metadata"].setdefault("annotations", {})
    annotations[ANNOTATION_ORIGINAL_REQUEST] = original
    for container in pod["spec"]["containers"][:1]:
        resources = container.setdefault("resources", {})
        claims = resources.get("claims") or []
        resources["claims"] = [*claims, {"name": POD_CLAIM_NAME, "request": container["name"]}]
