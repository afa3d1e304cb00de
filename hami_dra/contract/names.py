"""Names that manifests, other programs and people depend on.

Changing one breaks a stored object or a dashboard, so each has one home, here.
"""

from typing import Final

DRIVER_NAME: Final = "hami-core-gpu.project-hami.io"
"""DRA driver name; also the domain of unqualified attributes and capacities."""

DEVICE_CLASS: Final = DRIVER_NAME
"""The DeviceClass that claims name; the same word, as existing HAMi-DRA manifests use it."""

DEVICE_CLASS_MIG: Final = "hami-core-mig.project-hami.io"
"""The DeviceClass of MIG devices, which are never shared further."""

DEVICE_TYPE: Final = "hami-gpu"
"""Value of the attribute ``type`` on every shareable card."""

DEVICE_TYPE_MIG: Final = "hami-mig"
"""Value of the attribute ``type`` on every MIG device."""

# Device attributes (unqualified: the driver's own domain).
ATTR_TYPE: Final = "type"
ATTR_UUID: Final = "uuid"
ATTR_MINOR: Final = "minor"
ATTR_INDEX: Final = "index"
ATTR_PRODUCT_NAME: Final = "productName"
ATTR_BRAND: Final = "brand"
ATTR_ARCHITECTURE: Final = "architecture"
ATTR_COMPUTE_CAPABILITY: Final = "cudaComputeCapability"
ATTR_DRIVER_VERSION: Final = "driverVersion"
ATTR_CUDA_DRIVER_VERSION: Final = "cudaDriverVersion"
ATTR_PHYSICAL_MEMORY: Final = "physicalMemoryMiB"
ATTR_MPS: Final = "mps"
"""Only on cards whose published memory is scaled."""
ATTR_PCIE_BUS_ID: Final = "pcieBusID"
# Of MIG devices only.
ATTR_PROFILE: Final = "profile"
"""As NVML names it: ``1g.5gb``, ``1g.5gb+me``."""
ATTR_PARENT_UUID: Final = "parentUUID"

# Standard attributes shared between drivers (KEP-6072).
ATTR_STD_PCI_BUS_ID: Final = "resource.kubernetes.io/pciBusID"
ATTR_STD_PCIE_ROOT: Final = "resource.kubernetes.io/pcieRoot"
ATTR_STD_NUMA_NODE: Final = "resource.kubernetes.io/numaNode"

# Capacities. All three are always written in a claim: the API's default is the whole card.
CAPACITY_MEMORY: Final = "memory"
CAPACITY_CORES: Final = "cores"
CAPACITY_SLOTS: Final = "slots"

# Opaque claim configuration.
CONFIG_API_VERSION: Final = "gpu.project-hami.io/v1alpha1"
CONFIG_KIND: Final = "ShareConfig"

# Extended resources of an unchanged HAMi pod.
RESOURCE_GPU: Final = "nvidia.com/gpu"
RESOURCE_MEMORY: Final = "nvidia.com/gpumem"
RESOURCE_MEMORY_PERCENTAGE: Final = "nvidia.com/gpumem-percentage"
RESOURCE_CORES: Final = "nvidia.com/gpucores"
RESOURCE_PRIORITY: Final = "nvidia.com/priority"

# Annotations of an unchanged HAMi pod.
ANNOTATION_USE_TYPE: Final = "nvidia.com/use-gputype"
ANNOTATION_NOUSE_TYPE: Final = "nvidia.com/nouse-gputype"
ANNOTATION_USE_UUID: Final = "nvidia.com/use-gpuuuid"
ANNOTATION_NOUSE_UUID: Final = "nvidia.com/nouse-gpuuuid"
ANNOTATION_NUMA_BIND: Final = "nvidia.com/numa-bind"
ANNOTATION_MODE: Final = "nvidia.com/vgpu-mode"
ANNOTATION_NODE_POLICY: Final = "hami.io/node-scheduler-policy"
ANNOTATION_GPU_POLICY: Final = "hami.io/gpu-scheduler-policy"
ANNOTATION_SCORING_WEIGHTS: Final = "hami.io/device-scoring-weights"
ANNOTATIONS_OF_SCHEDULER: Final = "hami.io/vgpu-"
"""Prefix of what HAMi's scheduler writes: results, never wishes."""

# Annotation of a node.
ANNOTATION_DEVICE_CORDON: Final = "hami.io/device-cordon"
"""Comma list of UUIDs that get no new claims; also the key of those cards' taint."""

# Taints of devices.
TAINT_DIVIDING: Final = "gpu.project-hami.io/dividing"
TAINT_LOST: Final = "gpu.project-hami.io/lost"
"""The driver no longer describes the card."""

TAINT_XID: Final = "gpu.project-hami.io/xid"
"""Taint of a card for an XID that its driver reported, with the number as value."""

TAINT_ECC: Final = "gpu.project-hami.io/ecc"
"""Taint of a card whose memory had an error that it could not correct."""

TAINT_MEMORY: Final = "gpu.project-hami.io/memory"
"""Taint of a card whose memory cannot be repaired."""

TAINT_RECOVERY: Final = "gpu.project-hami.io/recovery"
"""Taint of a card for which the driver asks for an action, with the action as value."""

# Objects that we write.
LABEL_SHARES: Final = "gpu.project-hami.io/shares"
"""``true`` on every pod with a share, for node policies of others."""
ANNOTATION_ORIGINAL_REQUEST: Final = "gpu.project-hami.io/original-request"
"""JSON of the GPU keys that the webhook removed, by container."""
ANNOTATION_QUOTA: Final = "gpu.project-hami.io/quota"
"""``true`` on pods whose namespace limits GPUs: their shares are counted before they are stored."""
ANNOTATION_RESERVATIONS: Final = "gpu.project-hami.io/quota-reservations"
"""On a ResourceQuota: what was counted for claims that do not exist yet, see `policy.quota`."""
ANNOTATION_LIMITS: Final = "gpu.project-hami.io/limits"
"""On a ResourceClaim: JSON of the limits that hold instead of the granted ones, by request, see
`contract.limits`."""
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "hami-dra"
LABEL_WEBHOOK_IGNORE: Final = "hami.io/webhook"
"""Pod or namespace label; the value ``ignore`` keeps the webhook away."""
LABEL_VGPU_MANAGER_IGNORE: Final = "vgpu-manager.io/ignore-webhook"
"""The same in vgpu-manager's words, with the value ``true``."""
TEMPLATE_NAME_PREFIX: Final = "hami-gpu"
POD_CLAIM_NAME: Final = "hami-gpu"
"""Name of the entry in ``pod.spec.resourceClaims`` that the webhook adds."""
FIELD_MANAGER: Final = "hami-dra"

# Objects that Kubernetes writes.
ANNOTATION_POD_CLAIM: Final = "resource.kubernetes.io/pod-claim-name"
"""On a claim that was made from a template: the entry of the pod's spec (resource.k8s.io/v1)."""

CLAIM_CONTROLLERS: Final = (
    "system:serviceaccount:kube-system:resource-claim-controller",
    "system:kube-controller-manager",
)
"""Who makes claims from templates (kube-controller-manager, with and without an account of its
own for each controller)."""

# CDI kinds ("vendor/class").
CDI_CLASS_CLAIM: Final = "claim"
CDI_CLASS_BASE: Final = "card"
CDI_KIND_CLAIM: Final = f"{DRIVER_NAME}/{CDI_CLASS_CLAIM}"
CDI_KIND_BASE: Final = f"{DRIVER_NAME}/{CDI_CLASS_BASE}"
CDI_CLASS_METADATA: Final = "metadata"
"""As KEP-5304's own library calls it, so that tools which look for it find ours."""
CDI_KIND_METADATA: Final = f"{DRIVER_NAME}/{CDI_CLASS_METADATA}"

# Paths inside a container that holds a share.
CONTAINER_GRANTS_DIR: Final = "/run/vgpu"
"""Each granted claim and request is ``<dir>/<claim UID>_<request>/{grant,region/}``."""
CONTAINER_LIBVGPU: Final = "/usr/local/lib/vgpu/libvgpu.so"
CONTAINER_MPS_PIPES: Final = "/run/nvidia-mps"
"""Where containers find the node's MPS daemon; libvgpu knows it as well (src/root.c)."""
CONTAINER_SHM: Final = "/dev/shm"  # noqa: S108 - where the driver looks for it
CONTAINER_PRELOAD: Final = "/etc/ld.so.preload"
GRANT_FILE: Final = "grant"
REGION_DIR: Final = "region"
REGION_FILE: Final = "region"
CONTAINER_METADATA_DIR: Final = "/var/run/kubernetes.io/dra-device-attributes"
"""Where KEP-5304 puts what programs may know of their devices."""
METADATA_FILE: Final = "metadata.json"
