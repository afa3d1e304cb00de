/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libnvidia-ml.so.1: compute instances, and the devices that they are.
 */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "nvml_mig.h"

#define MIG_DEVICES (SIM_INSTANCES * SIM_COMPUTE)

struct nvmlComputeInstance_st {
	uint32_t serial;
};
typedef struct nvmlComputeInstance_st *nvmlComputeInstance_t;

struct compute_profile_info {
	unsigned int id, slices, instances, multiprocessors, copy, decoders, encoders, jpeg, ofa;
};

struct compute_profile_info_v2 {
	unsigned int version, id, slices, instances, multiprocessors, copy, decoders, encoders,
		jpeg, ofa;
	char name[96];
};

struct compute_info {
	nvmlDevice_t device;
	nvmlGpuInstance_t instance;
	unsigned int id, profile;
	struct placement placement;
};

struct attributes {
	unsigned int multiprocessors, copy, decoders, encoders, jpeg, ofa, gpu_slices,
		compute_slices;
	unsigned long long memory_mib;
};

static struct nvmlComputeInstance_st computes[SIM_INSTANCES][SIM_COMPUTE];
static struct nvmlDevice_st mig_devices[MIG_DEVICES];
static struct sim_card mig_facts[MIG_DEVICES];

/* By NVML's numbers of profiles of compute instances. */
static const unsigned int compute_slices[] = {1, 2, 3, 4, 7, 8, 6};

static int find_compute(nvmlComputeInstance_t compute, int *number)
{
	long index = compute - computes[0];

	if (compute < computes[0] || index >= SIM_INSTANCES * SIM_COMPUTE)
		return -1;
	*number = (int)(index % SIM_COMPUTE);
	index /= SIM_COMPUTE;
	if (!sim_nvml_slot((int)index)->live ||
	    sim_nvml_slot((int)index)->serial != compute->serial ||
	    !sim_nvml_slot((int)index)->compute[*number].live)
		return -1;
	return (int)index;
}

static nvmlComputeInstance_t compute_handle_of(int slot, int number)
{
	computes[slot][number].serial = sim_nvml_slot(slot)->serial;
	return &computes[slot][number];
}

/* ---- compute instances; the id of a profile is its number */

static bool compute_profile(int slot, unsigned int number, struct compute_profile_info *info,
			    char name[96])
{
	struct sim_profile whole;

	if (number >= sizeof(compute_slices) / sizeof(compute_slices[0]) ||
	    !sim_mig_profile(sim_nvml_parent(slot)->facts, sim_nvml_slot(slot)->profile, &whole) ||
	    compute_slices[number] > whole.slices)
		return false;
	*info = (struct compute_profile_info){
		.id = number,
		.slices = compute_slices[number],
		.instances = whole.slices / compute_slices[number],
		.multiprocessors = whole.multiprocessors * compute_slices[number] / whole.slices,
		.copy = whole.copy,
		.decoders = whole.decoders,
		.encoders = whole.encoders,
		.jpeg = whole.jpeg,
		.ofa = whole.ofa,
	};
	if (compute_slices[number] == whole.slices)
		snprintf(name, 96, "%.90s", whole.name);
	else
		snprintf(name, 96, "MIG %uc.%.80s", compute_slices[number], whole.name + 4);
	return true;
}

SIM nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t instance,
							      unsigned int number,
							      unsigned int engines,
							      struct compute_profile_info *info)
{
	char name[96];
	int slot;
	ENTER;

	slot = sim_nvml_find_instance(instance);
	if (slot < 0 || !info || engines)
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	LEAVE(compute_profile(slot, number, info, name) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED);
}

SIM nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvmlGpuInstance_t instance,
							       unsigned int number,
							       unsigned int engines,
							       struct compute_profile_info_v2 *info)
{
	struct compute_profile_info plain;
	int slot;
	ENTER;

	slot = sim_nvml_find_instance(instance);
	if (slot < 0 || !info || engines)
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	if (info->version != (sizeof(*info) | 2u << 24))
		LEAVE(NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	if (!compute_profile(slot, number, &plain, info->name))
		LEAVE(NVML_ERROR_NOT_SUPPORTED);
	memcpy(&info->id, &plain, sizeof(plain));
	LEAVE(NVML_SUCCESS);
}

static bool compute_is_free(int slot, unsigned int start, unsigned int size)
{
	for (int i = 0; i < SIM_COMPUTE; i++) {
		const struct sim_compute *other = &sim_nvml_slot(slot)->compute[i];

		if (other->live && start < other->start + other->size &&
		    other->start < start + size)
			return false;
	}
	return true;
}

SIM nvmlReturn_t nvmlGpuInstanceGetComputeInstancePossiblePlacements(nvmlGpuInstance_t instance,
								     unsigned int id,
								     struct placement *placements,
								     unsigned int *count)
{
	struct compute_profile_info info;
	char name[96];
	int slot;
	ENTER;

	slot = sim_nvml_find_instance(instance);
	if (slot < 0 || !count || !compute_profile(slot, id, &info, name))
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	for (unsigned int i = 0; placements && i < info.instances; i++)
		placements[i] = (struct placement){i * info.slices, info.slices};
	*count = info.instances;
	LEAVE(NVML_SUCCESS);
}

SIM nvmlReturn_t nvmlGpuInstanceGetComputeInstanceRemainingCapacity(nvmlGpuInstance_t instance,
								    unsigned int id,
								    unsigned int *count)
{
	struct compute_profile_info info;
	char name[96];
	int slot;
	ENTER;

	slot = sim_nvml_find_instance(instance);
	if (slot < 0 || !count || !compute_profile(slot, id, &info, name))
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	*count = 0;
	for (unsigned int i = 0; i < info.instances; i++)
		*count += compute_is_free(slot, i * info.slices, info.slices);
	LEAVE(NVML_SUCCESS);
}

SIM nvmlReturn_t nvmlGpuInstanceCreateComputeInstanceWithPlacement(
	nvmlGpuInstance_t instance, unsigned int id, const struct placement *placement,
	nvmlComputeInstance_t *compute)
{
	struct compute_profile_info info;
	char name[96];
	int slot, number = -1;
	ENTER;

	slot = sim_nvml_find_instance(instance);
	if (slot < 0 || !compute || !compute_profile(slot, id, &info, name))
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	for (unsigned int i = 0; i < info.instances && number < 0; i++)
		if ((!placement || placement->start == i * info.slices) &&
		    compute_is_free(slot, i * info.slices, info.slices))
			number = sim_mig_create_compute(slot, id, i * info.slices, info.slices);
	if (number < 0)
		LEAVE(NVML_ERROR_INSUFFICIENT_RESOURCES);
	*compute = compute_handle_of(slot, number);
	LEAVE(NVML_SUCCESS);
}

SIM nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t instance, unsigned int id,
						      nvmlComputeInstance_t *compute)
{
	return nvmlGpuInstanceCreateComputeInstanceWithPlacement(instance, id, NULL, compute);
}

SIM nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t compute)
{
	int slot, number = 0;
	ENTER;

	slot = find_compute(compute, &number);
	if (slot < 0)
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	if (sim_in_use(guard, SIM_CARDS + slot))
		LEAVE(NVML_ERROR_IN_USE);
	sim_mig_destroy_compute(slot, number);
	LEAVE(NVML_SUCCESS);
}

SIM nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t instance, unsigned int id,
						    nvmlComputeInstance_t *found,
						    unsigned int *count)
{
	int slot;
	ENTER;

	slot = sim_nvml_find_instance(instance);
	if (slot < 0 || !found || !count)
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	*count = 0;
	for (int i = 0; i < SIM_COMPUTE; i++)
		if (sim_nvml_slot(slot)->compute[i].live &&
		    sim_nvml_slot(slot)->compute[i].profile == id)
			found[(*count)++] = compute_handle_of(slot, i);
	LEAVE(NVML_SUCCESS);
}

SIM nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t instance, unsigned int id,
						       nvmlComputeInstance_t *compute)
{
	int slot;
	ENTER;

	slot = sim_nvml_find_instance(instance);
	if (slot < 0 || !compute)
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	if (id >= SIM_COMPUTE || !sim_nvml_slot(slot)->compute[id].live)
		LEAVE(NVML_ERROR_NOT_FOUND);
	*compute = compute_handle_of(slot, (int)id);
	LEAVE(NVML_SUCCESS);
}

SIM nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t compute,
					       struct compute_info *info)
{
	int slot, number = 0;
	ENTER;

	slot = find_compute(compute, &number);
	if (slot < 0 || !info)
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	*info = (struct compute_info){.device = sim_nvml_parent(slot),
				      .instance = sim_nvml_handle(slot),
				      .id = (unsigned int)number,
				      .profile = sim_nvml_slot(slot)->compute[number].profile,
				      .placement = {sim_nvml_slot(slot)->compute[number].start,
						    sim_nvml_slot(slot)->compute[number].size}};
	LEAVE(NVML_SUCCESS);
}

/* ---- compute instances as devices */

bool sim_nvml_is_mig(nvmlDevice_t device)
{
	return device >= mig_devices && device < mig_devices + MIG_DEVICES;
}

bool sim_nvml_mig_lives(nvmlDevice_t device)
{
	long index = device - mig_devices;
	const struct sim_instance *instance = sim_nvml_slot((int)(index / SIM_COMPUTE));

	return device->facts && instance->live && instance->compute[index % SIM_COMPUTE].live;
}

static nvmlDevice_t open_device(int slot, int compute)
{
	int index = slot * SIM_COMPUTE + compute;

	sim_mig_describe(slot, compute, &mig_facts[index]);
	mig_devices[index] =
		(struct nvmlDevice_st){.card = SIM_CARDS + slot, .facts = &mig_facts[index]};
	return &mig_devices[index];
}

SIM nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index,
						     nvmlDevice_t *found)
{
	WHOLE(device);
	if (!found || index >= sim_mig_most(device->facts))
		return NVML_ERROR_INVALID_ARGUMENT;
	ENTER;
	for (int i = 0; i < SIM_INSTANCES; i++)
		for (int j = 0; j < SIM_COMPUTE; j++)
			if (sim_nvml_slot(i)->live && (int)sim_nvml_slot(i)->card == device->card &&
			    sim_nvml_slot(i)->compute[j].live && sim_mig_visible(i, j) &&
			    index-- == 0) {
				*found = open_device(i, j);
				LEAVE(NVML_SUCCESS);
			}
	LEAVE(NVML_ERROR_NOT_FOUND);
}

nvmlReturn_t sim_nvml_find_mig(const char *uuid, nvmlDevice_t *found)
{
	ENTER;
	for (int i = 0; i < SIM_INSTANCES; i++)
		for (int j = 0; j < SIM_COMPUTE; j++)
			if (sim_nvml_slot(i)->live && sim_nvml_slot(i)->compute[j].live &&
			    sim_nvml_parent(i) && sim_mig_visible(i, j) &&
			    strcasecmp(open_device(i, j)->facts->uuid, uuid) == 0) {
				*found = open_device(i, j);
				LEAVE(NVML_SUCCESS);
			}
	LEAVE(NVML_ERROR_NOT_FOUND);
}

SIM nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig)
{
	CHECK(device);
	if (!is_mig)
		return NVML_ERROR_INVALID_ARGUMENT;
	*is_mig = sim_nvml_is_mig(device);
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
	CHECK(device);
	if (!id || !sim_nvml_is_mig(device))
		return NVML_ERROR_INVALID_ARGUMENT;
	*id = sim_nvml_slot(device->card - SIM_CARDS)->id;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
	CHECK(device);
	if (!id || !sim_nvml_is_mig(device))
		return NVML_ERROR_INVALID_ARGUMENT;
	*id = (unsigned int)((device - mig_devices) % SIM_COMPUTE);
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device,
							      nvmlDevice_t *parent)
{
	CHECK(device);
	if (!parent || !sim_nvml_is_mig(device))
		return NVML_ERROR_INVALID_ARGUMENT;
	*parent = sim_nvml_parent(device->card - SIM_CARDS);
	return *parent ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

SIM nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, struct attributes *attributes)
{
	struct sim_profile profile;
	const struct sim_compute *compute;
	int slot;

	CHECK(device);
	if (!attributes)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (!sim_nvml_is_mig(device))
		return NVML_ERROR_NOT_SUPPORTED;
	slot = device->card - SIM_CARDS;
	compute = &sim_nvml_slot(slot)->compute[(device - mig_devices) % SIM_COMPUTE];
	if (!sim_mig_profile(sim_nvml_parent(slot)->facts, sim_nvml_slot(slot)->profile, &profile))
		return NVML_ERROR_UNKNOWN;
	*attributes = (struct attributes){.multiprocessors = (unsigned int)device->facts->sm_count,
					  .copy = profile.copy,
					  .decoders = profile.decoders,
					  .encoders = profile.encoders,
					  .jpeg = profile.jpeg,
					  .ofa = profile.ofa,
					  .gpu_slices = profile.slices,
					  .compute_slices = compute->size,
					  .memory_mib = profile.memory_mib};
	return NVML_SUCCESS;
}
