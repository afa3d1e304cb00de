"""The controller as a process."""

import aiohttp

from hami_dra.controller.process import LEASE_NAME, Settings, serve
from hami_dra.kube.objects import LEASES
from hami_dra.service.supervise import Supervisor
from hami_dra.testing.fakecluster import FakeCluster

_SETTINGS = Settings(health_host="127.0.0.1", health_port=0, lease_namespace="n")


async def test_it_leads_says_so_and_releases_on_the_way_out() -> None:
    async with FakeCluster() as cluster:
        async with (
            Supervisor() as supervisor,
            serve(_SETTINGS, cluster.api(), supervisor) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        ):
            async with http.get("/readyz") as response:
                assert (response.status, await response.text()) == (200, "serving: ok\n")
            await cluster.wait_for(lambda: bool(cluster.objects(LEASES)))
            (lease,) = cluster.objects(LEASES)
            assert lease["metadata"]["name"] == LEASE_NAME
            assert lease["spec"]["holderIdentity"]
            async with http.get("/metrics") as response:
                assert "hami_dra_controller_leading" in await response.text()
        (lease,) = cluster.objects(LEASES)
        assert lease["spec"]["holderIdentity"] == ""
