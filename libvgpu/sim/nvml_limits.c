/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libnvidia-ml: memory limits of control groups, of drivers from 615 on.
 * Older ones do not have the functions. Setting is for root; a card that is divided (MIG)
 * and parts of it have none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cgroups.h"
#include "libnvml.h"

#define FIRST_DRIVER 615

static nvmlReturn_t check(nvmlDevice_t device, const void *limits, const char *path)
{
	struct stat status;
	int guard;

	CHECK(device);
	if (atoi(sim_config()->driver_version) < FIRST_DRIVER)
		return NVML_ERROR_FUNCTION_NOT_FOUND;
	if (sim_nvml_is_mig(device))
		return NVML_ERROR_NOT_SUPPORTED;
	if (!limits || !path || path[0] != '/' || strlen(path) >= SIM_CGROUP)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (stat(path, &status) == 0 && S_ISDIR(status.st_mode))
		return NVML_SUCCESS;
	guard = sim_enter(); /* what it had goes with it, should there be another of its name */
	if (guard >= 0) {
		sim_cgroup_gone(sim_shared(), path);
		sim_leave(guard);
	}
	return NVML_ERROR_NOT_FOUND;
}

SIM nvmlReturn_t nvmlDeviceSetMemoryLimits_v1(nvmlDevice_t device, nvmlSetMemoryLimits_v1_t *limits)
{
	nvmlReturn_t result = check(device, limits, limits ? limits->nameSpace : NULL);
	int guard, error;

	if (result != NVML_SUCCESS)
		return result;
	if (geteuid() != 0)
		return NVML_ERROR_NO_PERMISSION;
	if (limits->softLimit > limits->hardLimit)
		return NVML_ERROR_INVALID_ARGUMENT;
	guard = sim_enter();
	if (guard < 0)
		return NVML_ERROR_UNKNOWN;
	error = sim_cgroup_set(sim_shared(), limits->nameSpace, device->card, limits->softLimit,
			       limits->hardLimit);
	sim_leave(guard);
	return error == 0 ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_RESOURCES;
}

SIM nvmlReturn_t nvmlDeviceGetMemoryLimits_v1(nvmlDevice_t device, nvmlGetMemoryLimits_v1_t *limits)
{
	nvmlReturn_t result = check(device, limits, limits ? limits->nameSpace : NULL);
	const struct sim_limit *found;
	int guard;

	if (result != NVML_SUCCESS)
		return result;
	guard = sim_enter();
	if (guard < 0)
		return NVML_ERROR_UNKNOWN;
	found = sim_cgroup_limit(sim_shared(), limits->nameSpace, device->card);
	limits->softLimit = found ? found->soft : 0;
	limits->hardLimit = found ? found->hard : NVML_DEVICE_MEMORY_LIMIT_MAX;
	limits->currentUsed = sim_cgroup_used(
		sim_shared(), found ? found->cgroup : limits->nameSpace, device->card);
	sim_leave(guard);
	return NVML_SUCCESS;
}

/* As a process of a limited group is told: the limit for the card. */
void sim_nvml_limit(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
	const struct sim_limit *limit;
	char cgroup[SIM_CGROUP];
	int guard = sim_enter();

	if (guard < 0)
		return;
	sim_cgroup_of_self(cgroup);
	limit = sim_nvml_is_mig(device) ? NULL
					: sim_cgroup_limit(sim_shared(), cgroup, device->card);
	if (limit && limit->hard < memory->total) {
		memory->total = limit->hard;
		memory->used = sim_cgroup_used(sim_shared(), limit->cgroup, device->card);
		memory->free = memory->used < memory->total ? memory->total - memory->used : 0;
	}
	sim_leave(guard);
}
