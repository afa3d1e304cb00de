/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libnvidia-ml.so.1: attributes, sensors and topology.
 */
#include <string.h>

#include "libnvml.h"

/* Getters of one number: what to put there, or NOT_SUPPORTED. */
#define NUMBER(name, type, value)                                                                  \
	SIM nvmlReturn_t name(nvmlDevice_t device, type *number)                                   \
	{                                                                                          \
		CHECK(device);                                                                     \
		if (!number)                                                                       \
			return NVML_ERROR_INVALID_ARGUMENT;                                        \
		*number = (value);                                                                 \
		return NVML_SUCCESS;                                                               \
	}
#define NUMBER_BY(name, selector, type, value)                                                     \
	SIM nvmlReturn_t name(nvmlDevice_t device, selector which, type *number)                   \
	{                                                                                          \
		CHECK(device);                                                                     \
		(void)which;                                                                       \
		if (!number)                                                                       \
			return NVML_ERROR_INVALID_ARGUMENT;                                        \
		*number = (value);                                                                 \
		return NVML_SUCCESS;                                                               \
	}
#define NOT_SUPPORTED(name)                                                                        \
	SIM nvmlReturn_t name(nvmlDevice_t device)                                                 \
	{                                                                                          \
		CHECK(device);                                                                     \
		return NVML_ERROR_NOT_SUPPORTED;                                                   \
	}

#define BUSY(device, idle, most)                                                                   \
	((idle) + ((most) - (idle)) * sim_busy_percent((device)->card) / 100)

NUMBER(nvmlDeviceGetMinorNumber, unsigned int, (unsigned int)device->facts->minor)
NUMBER(nvmlDeviceGetIndex, unsigned int,
       sim_nvml_is_mig(device) ? 0 : (unsigned int)(device - sim_nvml_device(0)))
NUMBER(nvmlDeviceGetArchitecture, unsigned int, (unsigned int)device->facts->architecture)
NUMBER(nvmlDeviceGetBrand, unsigned int, (unsigned int)device->facts->brand)
NUMBER(nvmlDeviceGetPersistenceMode, unsigned int, 1)
NUMBER(nvmlDeviceGetComputeMode, unsigned int, 0)
NUMBER(nvmlDeviceGetDisplayActive, unsigned int, 0)
NUMBER(nvmlDeviceGetDisplayMode, unsigned int, 0)
NUMBER(nvmlDeviceGetPerformanceState, unsigned int, 0)
NUMBER(nvmlDeviceGetPowerUsage, unsigned int, BUSY(device, 52000u, 250000u))
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, 250000)
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned int, 250000)
NUMBER(nvmlDeviceGetNumGpuCores, unsigned int, (unsigned int)device->facts->sm_count * 64)
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned int, 5120)
NUMBER(nvmlDeviceGetMultiGpuBoard, unsigned int, 0)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, 4)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, 4)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, 16)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, 16)
NUMBER_BY(nvmlDeviceGetTemperature, unsigned int, unsigned int, BUSY(device, 31u, 68u))
NUMBER_BY(nvmlDeviceGetTemperatureThreshold, unsigned int, unsigned int, which == 0 ? 92 : 89)
NUMBER_BY(nvmlDeviceGetClockInfo, unsigned int, unsigned int,
	  which == 2 ? 1215 : BUSY(device, 210u, 1410u))
NUMBER_BY(nvmlDeviceGetMaxClockInfo, unsigned int, unsigned int, which == 2 ? 1215 : 1410)
NUMBER_BY(nvmlDeviceGetPcieThroughput, unsigned int, unsigned int, 0)

NOT_SUPPORTED(nvmlDeviceGetFanSpeed)
NOT_SUPPORTED(nvmlDeviceGetEccMode)
NOT_SUPPORTED(nvmlDeviceGetMemoryAffinity)
NOT_SUPPORTED(nvmlDeviceGetCpuAffinity)
NOT_SUPPORTED(nvmlDeviceGetEncoderUtilization)
NOT_SUPPORTED(nvmlDeviceGetDecoderUtilization)
NOT_SUPPORTED(nvmlDeviceGetDriverModel)
NOT_SUPPORTED(nvmlDeviceGetDriverModel_v2)

SIM nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t device, int *node)
{
	CHECK(device);
	if (!node)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (device->facts->numa_node < 0)
		return NVML_ERROR_NOT_SUPPORTED;
	*node = device->facts->numa_node;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
	CHECK(device);
	if (!major || !minor)
		return NVML_ERROR_INVALID_ARGUMENT;
	*major = device->facts->cc_major;
	*minor = device->facts->cc_minor;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device,
							      unsigned int *low, unsigned int *high)
{
	CHECK(device);
	if (!low || !high)
		return NVML_ERROR_INVALID_ARGUMENT;
	*low = 100000;
	*high = 250000;
	return NVML_SUCCESS;
}

struct bar1 {
	unsigned long long total, free, used;
};

SIM nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, struct bar1 *info)
{
	CHECK(device);
	if (!info)
		return NVML_ERROR_INVALID_ARGUMENT;
	*info = (struct bar1){65536ull << 20, 65535ull << 20, 1ull << 20};
	return NVML_SUCCESS;
}

/* ---- topology: one NUMA node = one root, NVLink as cards.ini says */

SIM nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t a, nvmlDevice_t b,
						     unsigned int *level)
{
	CHECK(a);
	CHECK(b);
	if (!level)
		return NVML_ERROR_INVALID_ARGUMENT;
	*level = a == b ? 0 : a->facts->numa_node == b->facts->numa_node ? 40 : 50;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, unsigned int level,
						  unsigned int *count, nvmlDevice_t *found)
{
	unsigned int n = 0, between;

	CHECK(device);
	if (!count || (*count && !found))
		return NVML_ERROR_INVALID_ARGUMENT;
	for (int i = 0; i < sim_nvml_count(); i++) {
		nvmlDevice_t other = sim_nvml_device(i);

		if (other == device ||
		    nvmlDeviceGetTopologyCommonAncestor(device, other, &between) != NVML_SUCCESS ||
		    between != level)
			continue;
		if (n < *count)
			found[n] = other;
		n++;
	}
	*count = n;
	return NVML_SUCCESS;
}

/* Link n of a card leads to the n-th card in its nvlink list, seen or not. */
static const struct sim_card *peer(nvmlDevice_t device, unsigned int link)
{
	for (int i = 0; i < sim_config()->card_count; i++)
		if ((device->facts->nvlink & 1u << i) && link-- == 0)
			return &sim_config()->cards[i];
	return NULL;
}

SIM nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link,
					  unsigned int *state)
{
	CHECK(device);
	if (!state || link >= 18)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (!device->facts->nvlink)
		return NVML_ERROR_NOT_SUPPORTED;
	*state = peer(device, link) != NULL;
	return NVML_SUCCESS;
}

struct pci_info {
	char legacy_id[16];
	unsigned int domain, bus, device, device_id, subsystem_id;
	char id[32];
};
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, struct pci_info *info);

SIM nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link,
						     struct pci_info *info)
{
	const struct sim_card *other;
	struct nvmlDevice_st remote;

	CHECK(device);
	if (!info || link >= 18)
		return NVML_ERROR_INVALID_ARGUMENT;
	other = peer(device, link);
	if (!other)
		return NVML_ERROR_NOT_SUPPORTED;
	remote = (struct nvmlDevice_st){.card = (int)(other - sim_config()->cards), .facts = other};
	for (int i = 0; i < sim_nvml_count(); i++)
		if (sim_nvml_device(i)->card == remote.card)
			return nvmlDeviceGetPciInfo_v3(sim_nvml_device(i), info);
	memset(info, 0, sizeof(*info));
	info->domain = other->pci_domain;
	info->bus = other->pci_bus;
	info->device = other->pci_device;
	return NVML_SUCCESS;
}
