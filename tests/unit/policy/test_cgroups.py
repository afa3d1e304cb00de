"""From /proc/<pid>/cgroup to pod and container, in the forms of kubelet, containerd and CRI-O."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.policy.cgroups import ContainerPlace, find_container

UID = "0f2c1d34-5a6b-4c7d-8e9f-0123456789ab"
UID_ = UID.replace("-", "_")
ID = "a1" * 32
OTHER_UID = "11111111-2222-4333-8444-555555555555"
OTHER_ID = "b2" * 32
V1 = "12:pids:{0}\n11:memory:{0}\n1:name=systemd:{0}\n"
HERE = ContainerPlace(UID, ID)
IN_POD = ContainerPlace(UID, "")

FORMS = {
    "v2 systemd containerd burstable": (
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice"
            f"/cri-containerd-{ID}.scope"
        ),
        HERE,
    ),
    "v2 systemd containerd guaranteed": (
        f"0::/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope",
        HERE,
    ),
    "v2 cgroupfs containerd": (f"0::/kubepods/besteffort/pod{UID}/{ID}", HERE),
    "v2 cgroupfs guaranteed": (f"0::/kubepods/pod{UID}/{ID}", HERE),
    "v2 systemd CRI-O": (
        (
            f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice"
            f"/crio-{ID}.scope"
        ),
        HERE,
    ),
    "v2 CRI-O with crun's group below": (
        f"0::/kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope/container",
        HERE,
    ),
    "v2 CRI-O cgroupfs": (f"0::/kubepods/burstable/pod{UID}/crio-{ID}", HERE),
    "v2 CRI-O's monitor is not the container": (
        f"0::/kubepods.slice/kubepods-pod{UID_}.slice/crio-conmon-{ID}.scope",
        IN_POD,
    ),
    "v2 cri-dockerd systemd": (
        f"0::/kubepods.slice/kubepods-pod{UID_}.slice/docker-{ID}.scope",
        HERE,
    ),
    "v2 below kind's cgroup root": (
        (
            f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice"
            f"/kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope"
        ),
        HERE,
    ),
    "v2 below a cgroupfs root": (f"0::/kubelet/kubepods/burstable/pod{UID}/{ID}", HERE),
    "v2 seen from another namespace, systemd": (
        (
            f"0::/../../kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice"
            f"/cri-containerd-{ID}.scope"
        ),
        HERE,
    ),
    "v2 seen from another namespace, cgroupfs": (f"0::/../../pod{UID}/{ID}", HERE),
    "v2 with systemd inside the container": (
        (
            f"0::/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope"
            f"/system.slice/ssh.service"
        ),
        HERE,
    ),
    "v2 a group of another pod's name inside the container": (
        f"0::/kubepods/pod{UID}/{ID}/kubepods/pod{OTHER_UID}/{OTHER_ID}",
        HERE,
    ),
    "v2 the pod's own group": (f"0::/kubepods/burstable/pod{UID}", IN_POD),
    "v1 cgroupfs": (V1.format(f"/kubepods/burstable/pod{UID}/{ID}"), HERE),
    "v1 systemd": (
        V1.format(
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice"
            f"/cri-containerd-{ID}.scope"
        ),
        HERE,
    ),
    "v1 systemd CRI-O": (
        V1.format(f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope"),
        HERE,
    ),
    "v1 containerd without systemd below kubelet with it": (
        V1.format(f"/system.slice/containerd.service/kubepods-pod{UID_}.slice:cri-containerd:{ID}"),
        HERE,
    ),
    "v1 with one hierarchy elsewhere": (
        f"5:net_cls:/\n4:cpuset:/kubepods/pod{UID}/{ID}\n0::/system.slice/x.service\n",
        HERE,
    ),
    "static pod": (
        f"0::/kubepods/burstable/pod{'c3' * 16}/{ID}",
        ContainerPlace("c3" * 16, ID),
    ),
    "a process of the machine": ("0::/system.slice/sshd.service\n", None),
    "a person's session": ("0::/user.slice/user-1000.slice/session-1.scope", None),
    "a container outside Kubernetes": (f"0::/system.slice/docker-{ID}.scope", None),
    "a group that a user called a pod": (
        f"0::/user.slice/user-1000.slice/pod{UID}/{ID}",
        None,
    ),
    "a pod without a number": ("0::/kubepods/burstable/podless/abc", None),
    "the root": ("0::/", None),
    "nothing": ("", None),
    "a shorter identifier": (f"0::/kubepods/pod{UID}/{ID[:63]}", IN_POD),
}


@pytest.mark.parametrize(("text", "place"), FORMS.values(), ids=FORMS)
def test_every_form(text: str, place: ContainerPlace | None) -> None:
    assert find_container(text) == place
    assert find_container(f"{text.rstrip()}\n") == place


@given(st.text())
def test_any_text_is_understood_or_not(text: str) -> None:
    place = find_container(text)

    assert place is None or (place.pod_uid and len(place.container_id) in {0, 64})


NAMES = st.sampled_from(
    ["pod" + OTHER_UID, OTHER_ID, "kubepods", f"kubepods-pod{OTHER_UID}.slice", "..", "x.service"]
)


@given(
    below=st.lists(NAMES | st.text(st.characters(exclude_characters="/\n")), max_size=6),
    form=st.sampled_from([key for key, (_, place) in FORMS.items() if place == HERE]),
)
def test_what_a_tenant_makes_below_its_container_changes_nothing(
    below: list[str], form: str
) -> None:
    text = FORMS[form][0]
    if text.count("\n") > 1 or "\n" in text.rstrip():
        text = text.split("\n")[1]
    path = "/".join([text.rstrip(), *below])

    assert find_container(path) == find_container(text)
