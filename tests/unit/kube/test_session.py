"""Where the API server is."""

from pathlib import Path

import pytest

from hami_dra.contract.errors import FatalError
from hami_dra.kube import session
from hami_dra.kube.session import load_credentials


@pytest.mark.parametrize(
    ("variables", "server"),
    [
        ({}, "https://kubernetes.default.svc"),
        ({"HOST": "10.96.0.1"}, "https://kubernetes.default.svc"),
        ({"HOST": "10.96.0.1", "PORT": "443"}, "https://10.96.0.1:443"),
        ({"HOST": "fd00::1", "PORT": "6443"}, "https://[fd00::1]:6443"),
    ],
)
async def test_in_a_pod_the_variables_of_kubelet_decide(
    variables: dict[str, str], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("t")
    monkeypatch.setattr(session, "_SERVICE_ACCOUNT_DIR", tmp_path)
    for name in ("HOST", "PORT"):
        monkeypatch.delenv(f"KUBERNETES_SERVICE_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"KUBERNETES_SERVICE_{name}", value)
    credentials = await load_credentials(None)
    assert credentials.server == server
    assert credentials.token_file == tmp_path / "token"
    assert credentials.ca_file == tmp_path / "ca.crt"


async def test_elsewhere_a_kubeconfig_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_SERVICE_ACCOUNT_DIR", tmp_path)
    with pytest.raises(FatalError, match="set --kubeconfig"):
        await load_credentials(None)
