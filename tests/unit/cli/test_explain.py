"""``hami-dra explain``: what it reads, prints and returns."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from click.testing import CliRunner

from hami_dra.cli.explain import explain
from hami_dra.contract.errors import HamiDraError
from hami_dra.kube.objects import PODS
from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.cli.remote import run_command

run = partial(run_command, explain)


async def test_a_pod_that_admission_did_not_see(tmp_path: Path) -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    pod = {"metadata": {"name": "p", "namespace": "team"}, "spec": {"containers": [limits]}}
    async with FakeCluster() as cluster:
        await cluster.api().create(PODS, pod, namespace="team")
        done = await run(tmp_path, cluster, "pod/p", "-n", "team", "-o", "json")
        text = await run(tmp_path, cluster, "p", "-n", "team")
        gone = await run(tmp_path, cluster, "absent", "-n", "team")
        odd = await run(tmp_path, cluster, "..", "-n", "team")
    assert json.loads(done.output)["state"] == "untouched"
    assert (done.exit_code, text.exit_code) == (3, 3)
    assert text.output.startswith("Pod team/p: it still has nvidia.com/gpu, so admission did not")
    assert isinstance(gone.exception, HamiDraError)
    assert "'..' cannot be a Kubernetes name" in str(odd.exception)


def test_another_kind_is_a_usage_error() -> None:
    assert (
        "'node/x' is neither POD nor claim/NAME" in CliRunner().invoke(explain, ["node/x"]).output
    )


def test_a_missing_extra_is_said() -> None:
    program = (
        "import sys; sys.modules['celpy'] = None; sys.argv = ['hami-dra', 'explain', 'p']; "
        "from hami_dra.cli import main; main()"
    )
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    said = done.stderr.strip()
    assert said == "hami-dra: celpy is missing: pip install 'hami-dra[explain,outside]'"
