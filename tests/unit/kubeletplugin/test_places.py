"""Names of the two sockets: what the kubelet's own library calls them, and what fits."""

from pathlib import Path

import pytest

from hami_dra.contract.errors import FatalError
from hami_dra.kubeletplugin.places import PATH_LIMIT, list_sockets, name_sockets

UID = "0f2c6f0e-8c6f-4b5c-9a68-7a3b3f0d9f11"
OTHER = "1f2c6f0e-8c6f-4b5c-9a68-7a3b3f0d9f11"
DRIVER = "hami-core-gpu.project-hami.io"
SHORT = "1HZlAK9oCJ8"
"""base64url of the first 8 bytes of the UID's SHA-256, by `sha256sum | xxd -r -p | base64`."""


@pytest.mark.parametrize(
    ("kubelet_dir", "driver", "pod_uid", "service", "registration"),
    [
        ("/k", "d.io", "", "d.io/dra.sock", "d.io-reg.sock"),
        ("/k", "d.io", UID, f"d.io/dra-{UID}.sock", f"d.io-{UID}-reg.sock"),
        (
            "/var/lib/kubelet",
            DRIVER,
            UID,
            f"{DRIVER}/dra-{UID}.sock",
            f"{DRIVER}-{SHORT}-reg.sock",
        ),
        (
            "/var/lib/kubelet-of-another-name",
            DRIVER,
            UID,
            f"{DRIVER}/dra-{SHORT[:8]}.sock",
            f"{DRIVER}-{SHORT}-reg.sock",
        ),
    ],
)
def test_sockets(
    kubelet_dir: str, driver: str, pod_uid: str, service: str, registration: str
) -> None:
    sockets = name_sockets(Path(kubelet_dir), driver, pod_uid=pod_uid)

    assert str(sockets.service) == f"{kubelet_dir}/plugins/{service}"
    assert str(sockets.registration) == f"{kubelet_dir}/plugins_registry/{registration}"
    assert all(len(str(p)) <= PATH_LIMIT for p in (sockets.service, sockets.registration))


def test_a_driver_with_a_very_long_name_has_a_registration_socket_of_its_own() -> None:
    names = [
        name_sockets(Path("/var/lib/kubelet"), driver, pod_uid=uid).registration.name
        for driver in ("d" * 60 + ".io", "e" * 60 + ".io")
        for uid in (UID, OTHER)
    ]

    assert len(set(names)) == 4
    assert all(len(name) == len("dra-0123456789012345678901-reg.sock") for name in names)


@pytest.mark.parametrize("pod_uid", ["", UID])
def test_a_directory_that_is_too_deep_is_said_with_its_option(pod_uid: str) -> None:
    with pytest.raises(FatalError, match="shorter --kubelet-dir"):
        name_sockets(Path("/" + "x" * 90), "d.io", pod_uid=pod_uid)


@pytest.mark.parametrize("pod_uid", ["../up", "a/b", ".", "a\0b", "x" * 64])
def test_a_uid_never_becomes_a_path_elsewhere(pod_uid: str) -> None:
    with pytest.raises(FatalError, match="--pod-uid"):
        name_sockets(Path("/k"), "d.io", pod_uid=pod_uid)


def test_only_the_drivers_own_sockets_are_listed(tmp_path: Path) -> None:
    registry, data = tmp_path / "plugins_registry", tmp_path / "plugins" / "d.io"
    own = [
        registry / f"d.io-{SHORT}-reg.sock",
        registry / f"d.io-{UID}-reg.sock",
        registry / "d.io-reg.sock",
        data / f"dra-{SHORT[:8]}.sock",
        data / "dra.sock",
    ]
    others = [
        registry / "d.io-more-reg.sock",
        registry / "e.io-reg.sock",
        registry / "dxio-reg.sock",
        data / "other.sock",
        data / "ledger.db",
    ]
    registry.mkdir(parents=True)
    data.mkdir(parents=True)
    for path in (*own, *others):
        path.touch()

    assert sorted(list_sockets(tmp_path, "d.io")) == sorted(own)
