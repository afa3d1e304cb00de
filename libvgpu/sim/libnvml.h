/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the simulated libnvidia-ml know of each other.
 */
#ifndef VGPU_SIM_LIBNVML_H
#define VGPU_SIM_LIBNVML_H

#include <stddef.h>

#include "nvml_api.h"
#include "state.h"

#define SIM __attribute__((visibility("default")))

struct nvmlDevice_st {
	int card; /* or the unit of a GPU instance */
	const struct sim_card *facts;
};

nvmlReturn_t sim_nvml_check(nvmlDevice_t device);
int sim_nvml_count(void);
nvmlDevice_t sim_nvml_device(int index);
void sim_nvml_hang(nvmlDevice_t device); /* returns when the card does not hang */
nvmlReturn_t sim_nvml_text(char *to, unsigned int length, const char *text);
bool sim_nvml_is_mig(nvmlDevice_t device);
bool sim_nvml_mig_lives(nvmlDevice_t device);
void sim_nvml_limit(nvmlDevice_t device, nvmlMemory_v2_t *memory);
nvmlReturn_t sim_nvml_find_mig(const char *uuid, nvmlDevice_t *found);

#define CHECK(device)                                                                              \
	do {                                                                                       \
		nvmlReturn_t checked = sim_nvml_check(device);                                     \
		if (checked != NVML_SUCCESS)                                                       \
			return checked;                                                            \
	} while (0)

#endif
