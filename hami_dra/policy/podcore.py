"""The part of a pod on which a decision may depend.

Replicas of one workload differ in their names, and in the name of the token's volume, which the API
server draws for each. A decision about the core of a pod therefore holds for all of them, and its
patch for the pods themselves: it names nothing that is left out here.
"""

from collections.abc import Mapping
from typing import Any, Final

_METADATA: Final = ("annotations", "labels")
_CONTAINER_LISTS: Final = ("containers", "initContainers")
LEFT_OUT_OF_SPEC: Final = frozenset({"volumes"})
LEFT_OUT_OF_CONTAINER: Final = frozenset(
    {
        "args",
        "command",
        "image",
        "imagePullPolicy",
        "lifecycle",
        "livenessProbe",
        "ports",
        "readinessProbe",
        "startupProbe",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "volumeDevices",
        "volumeMounts",
        "workingDir",
    }
)


def take_core(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pod without what no decision reads; what is left has the same paths as before.

    What has a type that no pod can have stays as it is, to be refused by whoever reads it.
    """
    core: dict[str, Any] = {}
    if "metadata" in pod:
        metadata = pod["metadata"]
        core["metadata"] = (
            {key: metadata[key] for key in _METADATA if key in metadata}
            if isinstance(metadata, dict)
            else metadata
        )
    if "spec" in pod:
        spec = pod["spec"]
        core["spec"] = _take_spec(spec) if isinstance(spec, dict) else spec
    return core


def _take_spec(spec: dict[str, Any]) -> dict[str, Any]:
    core = {key: value for key, value in spec.items() if key not in LEFT_OUT_OF_SPEC}
    for name in _CONTAINER_LISTS:
        containers = core.get(name)
        if isinstance(containers, list):
            core[name] = [
                {key: value for key, value in each.items() if key not in LEFT_OUT_OF_CONTAINER}
                if isinstance(each, dict)
                else each
                for each in containers
            ]
    return core
