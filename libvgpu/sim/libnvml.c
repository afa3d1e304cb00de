/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libnvidia-ml.so.1: start, identity, memory and processes. What
 * is not here does not exist, which clients see as FUNCTION_NOT_FOUND.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "libnvml.h"

static pthread_mutex_t start_mutex = PTHREAD_MUTEX_INITIALIZER;
static int references, visible_count;
static struct nvmlDevice_st devices[SIM_CARDS];

SIM nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
	(void)flags;
	if (sim_load() != 0)
		return NVML_ERROR_DRIVER_NOT_LOADED;
	if (sim_config()->init_error)
		return sim_config()->init_error;
	pthread_mutex_lock(&start_mutex);
	if (references++ == 0) {
		visible_count = 0;
		for (int i = 0; i < sim_config()->card_count; i++)
			if (sim_visible(i))
				devices[visible_count++] = (struct nvmlDevice_st){
					.card = i, .facts = &sim_config()->cards[i]};
	}
	pthread_mutex_unlock(&start_mutex);
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlInit_v2(void)
{
	return nvmlInitWithFlags(0);
}

SIM nvmlReturn_t nvmlInit(void)
{
	return nvmlInitWithFlags(0);
}

SIM nvmlReturn_t nvmlShutdown(void)
{
	nvmlReturn_t result = NVML_SUCCESS;

	pthread_mutex_lock(&start_mutex);
	if (references)
		references--;
	else
		result = NVML_ERROR_UNINITIALIZED;
	pthread_mutex_unlock(&start_mutex);
	return result;
}

nvmlReturn_t sim_nvml_check(nvmlDevice_t device)
{
	if (!references)
		return NVML_ERROR_UNINITIALIZED;
	if (sim_nvml_is_mig(device) && !sim_nvml_mig_lives(device))
		return NVML_ERROR_NOT_FOUND;
	if (!sim_nvml_is_mig(device) && (device < devices || device >= devices + visible_count))
		return NVML_ERROR_INVALID_ARGUMENT;
	sim_nvml_hang(device);
	return sim_lost(device->card) ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

int sim_nvml_count(void)
{
	return visible_count;
}

nvmlDevice_t sim_nvml_device(int index)
{
	return &devices[index];
}

nvmlReturn_t sim_nvml_text(char *to, unsigned int length, const char *text)
{
	if (!to)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (length <= strlen(text))
		return NVML_ERROR_INSUFFICIENT_SIZE;
	memcpy(to, text, strlen(text) + 1);
	return NVML_SUCCESS;
}

SIM const char *nvmlErrorString(nvmlReturn_t result)
{
	switch (result) {
	case NVML_SUCCESS:
		return "The operation was successful";
	case NVML_ERROR_UNINITIALIZED:
		return "NVML was not first initialized";
	case NVML_ERROR_INVALID_ARGUMENT:
		return "Invalid argument";
	case NVML_ERROR_NOT_SUPPORTED:
		return "Not supported";
	case NVML_ERROR_NO_PERMISSION:
		return "Insufficient permissions";
	case NVML_ERROR_NOT_FOUND:
		return "Not found";
	case NVML_ERROR_INSUFFICIENT_SIZE:
		return "Insufficient size";
	case NVML_ERROR_DRIVER_NOT_LOADED:
		return "Driver is not loaded";
	case NVML_ERROR_TIMEOUT:
		return "Timeout";
	case NVML_ERROR_FUNCTION_NOT_FOUND:
		return "Function not found";
	case NVML_ERROR_GPU_IS_LOST:
		return "GPU is lost";
	case NVML_ERROR_IN_USE:
		return "In use by another client";
	case NVML_ERROR_INSUFFICIENT_RESOURCES:
		return "Insufficient Resources";
	case NVML_ERROR_ARGUMENT_VERSION_MISMATCH:
		return "The provided version is invalid/unsupported";
	default:
		return "Unknown Error";
	}
}

SIM nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
	return references ? sim_nvml_text(version, length, sim_config()->driver_version)
			  : NVML_ERROR_UNINITIALIZED;
}

SIM nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
	char text[48];

	snprintf(text, sizeof(text), "%d.%s", sim_config()->cuda_version / 1000,
		 sim_config()->driver_version);
	return sim_nvml_text(version, length, text);
}

SIM nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
	if (!version)
		return NVML_ERROR_INVALID_ARGUMENT;
	*version = sim_load() == 0 ? sim_config()->cuda_version : 13000;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
	return nvmlSystemGetCudaDriverVersion_v2(version);
}

SIM nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
	if (!references)
		return NVML_ERROR_UNINITIALIZED;
	if (!count)
		return NVML_ERROR_INVALID_ARGUMENT;
	*count = (unsigned int)visible_count;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetCount(unsigned int *count)
{
	return nvmlDeviceGetCount_v2(count);
}

SIM nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
	if (!references)
		return NVML_ERROR_UNINITIALIZED;
	if (!device || index >= (unsigned int)visible_count)
		return NVML_ERROR_INVALID_ARGUMENT;
	*device = &devices[index];
	return sim_nvml_check(*device);
}

SIM nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
	return nvmlDeviceGetHandleByIndex_v2(index, device);
}

SIM nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
	if (!references)
		return NVML_ERROR_UNINITIALIZED;
	if (!uuid || !device)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (int i = 0; i < visible_count; i++)
		if (strcasecmp(devices[i].facts->uuid, uuid) == 0) {
			*device = &devices[i];
			return sim_nvml_check(*device);
		}
	return sim_nvml_find_mig(uuid, device);
}

static void bus_id(const struct sim_card *card, char *text, size_t size, int domain_digits)
{
	snprintf(text, size, "%0*X:%02X:%02X.%X", domain_digits, card->pci_domain, card->pci_bus,
		 card->pci_device, card->pci_function);
}

SIM nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *device)
{
	unsigned int domain, bus, slot, function = 0;

	if (!references)
		return NVML_ERROR_UNINITIALIZED;
	if (!id || !device || sscanf(id, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (int i = 0; i < visible_count; i++) {
		const struct sim_card *card = devices[i].facts;

		if (card->pci_domain == domain && card->pci_bus == bus &&
		    card->pci_device == slot && card->pci_function == function) {
			*device = &devices[i];
			return sim_nvml_check(*device);
		}
	}
	return NVML_ERROR_NOT_FOUND;
}

SIM nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *id, nvmlDevice_t *device)
{
	return nvmlDeviceGetHandleByPciBusId_v2(id, device);
}

SIM nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
	CHECK(device);
	return sim_nvml_text(name, length, device->facts->name);
}

SIM nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
	CHECK(device);
	return sim_nvml_text(uuid, length, device->facts->uuid);
}

/* Of a card with instances, what is used in them counts as well. */
static uint64_t used_of(nvmlDevice_t device)
{
	uint64_t used = sim_used(device->card);

	for (int i = 0; !sim_nvml_is_mig(device) && i < SIM_INSTANCES; i++)
		if (sim_shared()->instances[i].live &&
		    (int)sim_shared()->instances[i].card == device->card)
			used += sim_used(SIM_CARDS + i);
	return used;
}

SIM nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	CHECK(device);
	if (!memory)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (sim_faults_of(device->card).no_memory_info)
		return NVML_ERROR_NOT_SUPPORTED;
	memory->total = device->facts->memory;
	memory->used = used_of(device);
	memory->free = memory->used < memory->total ? memory->total - memory->used : 0;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
	CHECK(device);
	if (!memory)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (memory->version != (sizeof(*memory) | 2u << 24))
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	memory->total = device->facts->memory;
	memory->reserved = 0;
	memory->used = used_of(device);
	memory->free = memory->used < memory->total ? memory->total - memory->used : 0;
	sim_nvml_limit(device, memory);
	return NVML_SUCCESS;
}

struct pci_info {
	char legacy_id[16];
	unsigned int domain, bus, device, device_id, subsystem_id;
	char id[32];
};

struct pci_info_v2 {
	char id[16];
	unsigned int domain, bus, device, device_id, subsystem_id, reserved[4];
};

SIM nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, struct pci_info *info)
{
	CHECK(device);
	if (!info)
		return NVML_ERROR_INVALID_ARGUMENT;
	memset(info, 0, sizeof(*info));
	bus_id(device->facts, info->legacy_id, sizeof(info->legacy_id), 4);
	bus_id(device->facts, info->id, sizeof(info->id), 8);
	info->domain = device->facts->pci_domain;
	info->bus = device->facts->pci_bus;
	info->device = device->facts->pci_device;
	info->device_id = 0x20b010deu;
	info->subsystem_id = 0x144e10deu;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, struct pci_info_v2 *info)
{
	CHECK(device);
	if (!info)
		return NVML_ERROR_INVALID_ARGUMENT;
	memset(info, 0, sizeof(*info));
	bus_id(device->facts, info->id, sizeof(info->id), 4);
	info->domain = device->facts->pci_domain;
	info->bus = device->facts->pci_bus;
	info->device = device->facts->pci_device;
	info->device_id = 0x20b010deu;
	return NVML_SUCCESS;
}

/* ---- processes. v2 and v3 share one layout; v1 has no instance ids. */

#define NO_INSTANCE (~0u)

/* Appends the users of a unit, in so far as there is room; returns their number. */
static unsigned int list_users(int unit, unsigned int instance, bool mps_clients,
			       nvmlProcessInfo_v2_t *infos, unsigned int first,
			       unsigned int capacity)
{
	struct sim_usage users[SIM_PROCESSES];
	unsigned int count = sim_users(unit, users, SIM_PROCESSES), found = 0;
	unsigned int compute = instance == NO_INSTANCE ? NO_INSTANCE : 0;

	for (unsigned int i = 0; i < count; i++) {
		if (users[i].mps_client != mps_clients)
			continue;
		if (first + found < capacity)
			infos[first + found] = (nvmlProcessInfo_v2_t){users[i].pid, users[i].used,
								      instance, compute};
		found++;
	}
	return found;
}

static nvmlReturn_t list_all(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v2_t *infos,
			     bool mps_clients)
{
	unsigned int found;

	CHECK(device);
	if (!count || (*count && !infos))
		return NVML_ERROR_INVALID_ARGUMENT;
	found = list_users(device->card, NO_INSTANCE, mps_clients, infos, 0, *count);
	for (int i = 0; !sim_nvml_is_mig(device) && i < SIM_INSTANCES; i++) {
		const struct sim_instance *instance = &sim_shared()->instances[i];

		if (instance->live && (int)instance->card == device->card)
			found += list_users(SIM_CARDS + i, instance->id, mps_clients, infos, found,
					    *count);
	}
	if (found > *count) {
		*count = found;
		return NVML_ERROR_INSUFFICIENT_SIZE;
	}
	*count = found;
	return NVML_SUCCESS;
}

/* The first version has no instances, and so no parts of cards. */
static nvmlReturn_t list_whole(nvmlDevice_t device, unsigned int *count,
			       nvmlProcessInfo_v1_t *infos, bool mps_clients)
{
	struct sim_usage users[SIM_PROCESSES];
	unsigned int all, found = 0;

	CHECK(device);
	if (!count || (*count && !infos))
		return NVML_ERROR_INVALID_ARGUMENT;
	all = sim_users(device->card, users, SIM_PROCESSES);
	for (unsigned int i = 0; i < all; i++) {
		if (users[i].mps_client != mps_clients)
			continue;
		if (found < *count)
			infos[found] = (nvmlProcessInfo_v1_t){users[i].pid, users[i].used};
		found++;
	}
	if (found > *count) {
		*count = found;
		return NVML_ERROR_INSUFFICIENT_SIZE;
	}
	*count = found;
	return NVML_SUCCESS;
}

#define LIST_PROCESSES(name, mps_clients)                                                          \
	SIM nvmlReturn_t name##_v3(nvmlDevice_t device, unsigned int *count,                       \
				   nvmlProcessInfo_v2_t *infos)                                    \
	{                                                                                          \
		return list_all(device, count, infos, mps_clients);                                \
	}                                                                                          \
	SIM nvmlReturn_t name##_v2(nvmlDevice_t device, unsigned int *count,                       \
				   nvmlProcessInfo_v2_t *infos)                                    \
	{                                                                                          \
		return list_all(device, count, infos, mps_clients);                                \
	}                                                                                          \
	SIM nvmlReturn_t name(nvmlDevice_t device, unsigned int *count,                            \
			      nvmlProcessInfo_v1_t *infos)                                         \
	{                                                                                          \
		return list_whole(device, count, infos, mps_clients);                              \
	}
LIST_PROCESSES(nvmlDeviceGetComputeRunningProcesses, false)
LIST_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses, true)

#define NO_PROCESSES(name, info)                                                                   \
	SIM nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, info *infos)               \
	{                                                                                          \
		CHECK(device);                                                                     \
		(void)infos;                                                                       \
		if (!count)                                                                        \
			return NVML_ERROR_INVALID_ARGUMENT;                                        \
		*count = 0;                                                                        \
		return NVML_SUCCESS;                                                               \
	}
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_v2_t)

struct utilization {
	unsigned int gpu, memory;
};

SIM nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, struct utilization *rates)
{
	CHECK(device);
	if (!rates)
		return NVML_ERROR_INVALID_ARGUMENT;
	rates->gpu = sim_busy_percent(device->card);
	rates->memory = (unsigned int)(sim_used(device->card) * 100 / (device->facts->memory + 1));
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
						 nvmlProcessUtilizationSample_t *samples,
						 unsigned int *count, unsigned long long since_us)
{
	struct sim_usage users[SIM_PROCESSES];
	unsigned int found;

	CHECK(device);
	(void)since_us;
	if (!count)
		return NVML_ERROR_INVALID_ARGUMENT;
	found = sim_users(device->card, users, SIM_PROCESSES);
	if (!samples || *count < found) {
		*count = found;
		return found ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_ERROR_NOT_FOUND;
	}
	for (unsigned int i = 0; i < found; i++)
		samples[i] = (nvmlProcessUtilizationSample_t){.pid = users[i].pid,
							      .timeStamp = sim_now_ns() / 1000,
							      .smUtil = users[i].busy_percent};
	*count = found;
	return found ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
