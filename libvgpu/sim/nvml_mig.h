/* SPDX-License-Identifier: Apache-2.0
 *
 * What the two files of the simulated NVML's MIG know of each other.
 */
#ifndef VGPU_SIM_NVML_MIG_H
#define VGPU_SIM_NVML_MIG_H

#include "libnvml.h"
#include "mig.h"

struct nvmlGpuInstance_st {
	uint32_t serial;
};
typedef struct nvmlGpuInstance_st *nvmlGpuInstance_t;

struct placement {
	unsigned int start, size;
};

struct sim_instance *sim_nvml_slot(int slot);
nvmlDevice_t sim_nvml_parent(int slot);
/* Place in the list, or -1 for what is no instance, or none any more. */
int sim_nvml_find_instance(nvmlGpuInstance_t instance);
nvmlGpuInstance_t sim_nvml_handle(int slot);
nvmlReturn_t sim_nvml_check_whole(nvmlDevice_t device);

#define WHOLE(device)                                                                              \
	do {                                                                                       \
		nvmlReturn_t whole = sim_nvml_check_whole(device);                                 \
		if (whole != NVML_SUCCESS)                                                         \
			return whole;                                                              \
	} while (0)
#define ENTER                                                                                      \
	int guard = sim_enter();                                                                   \
	if (guard < 0)                                                                             \
	return NVML_ERROR_UNKNOWN
#define LEAVE(result)                                                                              \
	do {                                                                                       \
		nvmlReturn_t left = (result);                                                      \
		sim_leave(guard);                                                                  \
		return left;                                                                       \
	} while (0)

#endif
