"""Another vendor's driver: numbers, with a metadata file (KEP-5304) for each request.

It stands on `hami_dra.kubeletplugin`, which knows nothing of GPUs, and writes what it writes with
code of its own, as a stranger would:
``python -m tests.cluster.otherdriver NODE KUBECONFIG KUBELET_DIR CDI_DIR``.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hami_dra.contract.errors import UserError
from hami_dra.kube import Api, connect
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.instances import Instance
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.kubeletplugin.places import name_sockets
from hami_dra.kubeletplugin.publisher import Publisher
from hami_dra.kubeletplugin.registration import Registration
from hami_dra.kubeletplugin.service import VERSIONS, ClaimRef, DraService, PreparedDevice
from hami_dra.service.supervise import Supervisor

DRIVER: Final = "numbers.example.com"
COUNT: Final = 3
DEVICES: Final = [
    {"name": f"number-{number}", "attributes": {"number": {"int": number}}}
    for number in range(COUNT)
]
KIND: Final = f"{DRIVER}/number"
_INSIDE: Final = "/var/run/kubernetes.io/dra-device-attributes/resourceclaims"
_BUDGET_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 5.0


class Numbers:
    """Prepares claims."""

    def __init__(self, api: Api, state: Path, cdi: Path) -> None:
        self._api = api
        self._state = state
        self._cdi = cdi

    async def prepare(self, claim: ClaimRef) -> Sequence[PreparedDevice]:
        """Idempotent."""
        stored = await self._api.get(CLAIMS, claim.name, namespace=claim.namespace)
        if stored["metadata"]["uid"] != claim.uid:
            raise UserError(f"claim {claim.namespace}/{claim.name} was replaced")
        results = [
            result
            for result in stored["status"]["allocation"]["devices"]["results"]
            if result["driver"] == DRIVER
        ]
        await asyncio.to_thread(self._write, claim, results)
        return [
            PreparedDevice(
                request=result["request"],
                pool=result["pool"],
                device=result["device"],
                cdi_ids=(f"{KIND}={_name(claim, result)}",),
                share_id=result.get("shareID"),
            )
            for result in results
        ]

    async def unprepare(self, claim: ClaimRef) -> None:
        """Idempotent, and without the API server."""
        self._spec(claim.uid).unlink(missing_ok=True)

    def _write(self, claim: ClaimRef, results: Sequence[dict[str, Any]]) -> None:
        devices = []
        for result in results:
            document = self._state / f"{_name(claim, result)}.json"
            document.write_text(json.dumps(_describe(claim, result)) + "\n")
            inside = f"{_INSIDE}/{claim.name}/{result['request']}/{DRIVER}-metadata.json"
            mount = {"hostPath": str(document), "containerPath": inside, "options": ["ro", "bind"]}
            edits = {"env": [f"NUMBER={result['device']}"], "mounts": [mount]}
            devices.append({"name": _name(claim, result), "containerEdits": edits})
        temporary = self._cdi / f".{claim.uid}.tmp"
        temporary.write_text(json.dumps({"cdiVersion": "0.5.0", "kind": KIND, "devices": devices}))
        temporary.rename(self._spec(claim.uid))

    def _spec(self, uid: str) -> Path:
        return self._cdi / f"{DRIVER}-{uid}.json"


def _name(claim: ClaimRef, result: dict[str, Any]) -> str:
    return f"{claim.uid}-{result['request']}"


def _describe(claim: ClaimRef, result: dict[str, Any]) -> dict[str, Any]:
    number = {"int": int(result["device"].rpartition("-")[2])}
    device = {
        "driver": DRIVER,
        "pool": result["pool"],
        "name": result["device"],
        "attributes": {"number": number},
    }
    return {
        "kind": "DeviceMetadata",
        "apiVersion": "metadata.resource.k8s.io/v1beta1",
        "metadata": {
            "name": claim.name,
            "namespace": claim.namespace,
            "uid": claim.uid,
            "generation": 1,
        },
        "requests": [{"name": result["request"], "devices": [device]}],
    }


async def main(node: str, kubeconfig: Path, kubelet_dir: Path, cdi: Path) -> None:
    """Serve until SIGTERM."""
    state = kubelet_dir / "plugins" / DRIVER
    sockets = name_sockets(kubelet_dir, DRIVER, pod_uid="")
    with Instance.join(state, pod_uid="") as instance:
        async with connect(kubeconfig) as session, Supervisor() as supervisor:
            api = Api(session)
            publisher = Publisher(
                api,
                driver=DRIVER,
                node_name=node,
                on_state=lambda _: None,
                leads=instance.check_lead,
            )

            def note(reason: str | None) -> None:
                instance.set_registered(registered=reason is None)
                if reason is None:  # the kubelet would refuse what is allocated before
                    publisher.publish(DEVICES)

            service = DraService(
                socket=sockets.service,
                handler=Numbers(api, state, cdi),
                locks=ClaimLocks(state / "claims.lock"),
                budget_seconds=_BUDGET_SECONDS,
            )
            registration = Registration(
                socket=sockets.registration,
                driver=DRIVER,
                endpoint=sockets.service,
                versions=VERSIONS,
                on_status=note,
            )
            supervisor.spawn("publisher", publisher.run())
            try:
                await service.start()
                await registration.start()
                await supervisor.wait()
            finally:
                instance.set_registered(registered=False)
                await registration.stop()
                await service.stop(_GRACE_SECONDS)


if __name__ == "__main__":
    node_name, *paths = sys.argv[1:]
    asyncio.run(main(node_name, *map(Path, paths)))
