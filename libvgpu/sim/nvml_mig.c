/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libnvidia-ml.so.1: MIG mode, profiles and GPU instances. Handles stay what they are
 * while their instance lives, in whatever process it was made.
 */
#include <string.h>

#include "nvml_mig.h"

struct profile_info {
	unsigned int id, p2p, slices, instances, multiprocessors, copy, decoders, encoders, jpeg,
		ofa;
	unsigned long long memory_mib;
};

struct profile_info_v2 {
	unsigned int version, id, p2p, slices, instances, multiprocessors, copy, decoders, encoders,
		jpeg, ofa;
	unsigned long long memory_mib;
	char name[96];
};

struct instance_info {
	nvmlDevice_t device;
	unsigned int id, profile;
	struct placement placement;
};

static struct nvmlGpuInstance_st instances[SIM_INSTANCES];
struct sim_instance *sim_nvml_slot(int slot)
{
	return &sim_shared()->instances[slot];
}

nvmlDevice_t sim_nvml_parent(int slot)
{
	for (int i = 0; i < sim_nvml_count(); i++)
		if (sim_nvml_device(i)->card == (int)sim_nvml_slot(slot)->card)
			return sim_nvml_device(i);
	return NULL;
}

int sim_nvml_find_instance(nvmlGpuInstance_t instance)
{
	int slot = (int)(instance - instances);

	if (instance < instances || instance >= instances + SIM_INSTANCES ||
	    !sim_nvml_slot(slot)->live || sim_nvml_slot(slot)->serial != instance->serial ||
	    !sim_nvml_parent(slot))
		return -1;
	return slot;
}

nvmlGpuInstance_t sim_nvml_handle(int slot)
{
	instances[slot].serial = sim_nvml_slot(slot)->serial;
	return &instances[slot];
}

/* A whole card that can be divided at all. */
nvmlReturn_t sim_nvml_check_whole(nvmlDevice_t device)
{
	CHECK(device);
	if (sim_nvml_is_mig(device))
		return NVML_ERROR_INVALID_ARGUMENT;
	return sim_mig_most(device->facts) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

/* ---- mode */

SIM nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current,
				      unsigned int *pending)
{
	WHOLE(device);
	if (!current || !pending)
		return NVML_ERROR_INVALID_ARGUMENT;
	ENTER;
	*current = *pending = sim_mig_enabled(device->card);
	LEAVE(NVML_SUCCESS);
}

static bool card_is_used(int guard, int card)
{
	for (int i = 0; i < SIM_INSTANCES; i++)
		if (sim_nvml_slot(i)->live && (int)sim_nvml_slot(i)->card == card)
			return true;
	return sim_in_use(guard, card);
}

SIM nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned int mode,
				      nvmlReturn_t *activation)
{
	WHOLE(device);
	if (!activation || mode > 1)
		return NVML_ERROR_INVALID_ARGUMENT;
	ENTER;
	if (mode == sim_mig_enabled(device->card))
		*activation = NVML_SUCCESS;
	else if (card_is_used(guard, device->card))
		LEAVE(NVML_ERROR_IN_USE);
	sim_shared()->mig_modes[device->card] = 1 + mode;
	*activation = NVML_SUCCESS;
	LEAVE(NVML_SUCCESS);
}

SIM nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
	CHECK(device);
	if (!count)
		return NVML_ERROR_INVALID_ARGUMENT;
	*count = sim_mig_most(device->facts);
	return NVML_SUCCESS;
}

/* ---- profiles of GPU instances */

static struct profile_info inform(const struct sim_profile *profile)
{
	return (struct profile_info){.id = profile->id,
				     .slices = profile->slices,
				     .instances = profile->instances,
				     .multiprocessors = profile->multiprocessors,
				     .copy = profile->copy,
				     .decoders = profile->decoders,
				     .encoders = profile->encoders,
				     .jpeg = profile->jpeg,
				     .ofa = profile->ofa,
				     .memory_mib = profile->memory_mib};
}

static nvmlReturn_t inform_v2(const struct sim_profile *profile, struct profile_info_v2 *info)
{
	struct profile_info plain = inform(profile);

	if (info->version != (sizeof(*info) | 2u << 24))
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	memcpy(&info->id, &plain, offsetof(struct profile_info, memory_mib));
	info->memory_mib = plain.memory_mib;
	memcpy(info->name, profile->name, sizeof(info->name));
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device, unsigned int number,
						     struct profile_info *info)
{
	struct sim_profile profile;

	WHOLE(device);
	if (!info)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (!sim_mig_profile(device->facts, number, &profile))
		return NVML_ERROR_NOT_SUPPORTED;
	*info = inform(&profile);
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, unsigned int number,
						      struct profile_info_v2 *info)
{
	struct sim_profile profile;

	WHOLE(device);
	if (!info)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (!sim_mig_profile(device->facts, number, &profile))
		return NVML_ERROR_NOT_SUPPORTED;
	return inform_v2(&profile, info);
}

SIM nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoByIdV(nvmlDevice_t device, unsigned int id,
							  struct profile_info_v2 *info)
{
	struct sim_profile profile;

	WHOLE(device);
	if (!info)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (!sim_mig_profile_by_id(device->facts, id, &profile))
		return NVML_ERROR_NOT_SUPPORTED;
	return inform_v2(&profile, info);
}

SIM nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t device, unsigned int id,
							       struct placement *placements,
							       unsigned int *count)
{
	struct sim_profile profile;

	WHOLE(device);
	if (!count)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (!sim_mig_profile_by_id(device->facts, id, &profile))
		return NVML_ERROR_NOT_SUPPORTED;
	if (placements && *count < profile.places) {
		*count = profile.places;
		return NVML_ERROR_INSUFFICIENT_SIZE;
	}
	*count = profile.places;
	for (unsigned int i = 0; placements && i < profile.places; i++)
		placements[i] = (struct placement){profile.starts[i], profile.size};
	return NVML_SUCCESS;
}

static bool has_room(int card, const struct sim_profile *profile, unsigned int start)
{
	bool allowed = false;

	for (unsigned int i = 0; i < profile->places; i++)
		allowed = allowed || profile->starts[i] == start;
	return allowed && sim_mig_free(card, start, profile->size) &&
	       sim_mig_count(card, profile->number) < profile->instances;
}

SIM nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(nvmlDevice_t device, unsigned int id,
							   unsigned int *count)
{
	struct sim_profile profile;
	unsigned int most, end = 0;

	WHOLE(device);
	if (!count)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (!sim_mig_profile_by_id(device->facts, id, &profile))
		return NVML_ERROR_NOT_SUPPORTED;
	ENTER;
	most = profile.instances - sim_mig_count(device->card, profile.number);
	*count = 0;
	for (unsigned int i = 0; i < profile.places && *count < most; i++)
		if (profile.starts[i] >= end &&
		    has_room(device->card, &profile, profile.starts[i])) {
			end = profile.starts[i] + profile.size;
			++*count;
		}
	LEAVE(NVML_SUCCESS);
}

/* ---- GPU instances */

SIM nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t device, unsigned int id,
							  const struct placement *placement,
							  nvmlGpuInstance_t *instance)
{
	struct sim_profile profile;
	unsigned int start = SIM_PLACES;
	int slot;

	WHOLE(device);
	if (!instance || !sim_mig_profile_by_id(device->facts, id, &profile) ||
	    (placement && placement->size != profile.size))
		return NVML_ERROR_INVALID_ARGUMENT;
	ENTER;
	if (!sim_mig_enabled(device->card))
		LEAVE(NVML_ERROR_NOT_SUPPORTED);
	if (sim_config()->cards[device->card].mig_create_error)
		LEAVE(sim_config()->cards[device->card].mig_create_error);
	for (unsigned int i = 0; i < profile.places && start == SIM_PLACES; i++)
		if ((!placement || placement->start == profile.starts[i]) &&
		    has_room(device->card, &profile, profile.starts[i]))
			start = profile.starts[i];
	slot = start == SIM_PLACES ? -1 : sim_mig_create(device->card, &profile, start);
	if (slot < 0)
		LEAVE(NVML_ERROR_INSUFFICIENT_RESOURCES);
	*instance = sim_nvml_handle(slot);
	LEAVE(NVML_SUCCESS);
}

SIM nvmlReturn_t nvmlDeviceCreateGpuInstance(nvmlDevice_t device, unsigned int id,
					     nvmlGpuInstance_t *instance)
{
	return nvmlDeviceCreateGpuInstanceWithPlacement(device, id, NULL, instance);
}

SIM nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t instance)
{
	int slot, error;
	ENTER;

	slot = sim_nvml_find_instance(instance);
	if (slot < 0)
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	error = sim_config()->cards[sim_nvml_slot(slot)->card].mig_destroy_error;
	if (error)
		LEAVE(error);
	for (int i = 0; i < SIM_COMPUTE; i++)
		if (sim_nvml_slot(slot)->compute[i].live)
			LEAVE(NVML_ERROR_IN_USE);
	sim_mig_destroy(slot);
	LEAVE(NVML_SUCCESS);
}

SIM nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned int id,
					   nvmlGpuInstance_t *found, unsigned int *count)
{
	struct sim_profile profile;

	WHOLE(device);
	if (!found || !count || !sim_mig_profile_by_id(device->facts, id, &profile))
		return NVML_ERROR_INVALID_ARGUMENT;
	*count = 0;
	ENTER;
	for (int i = 0; i < SIM_INSTANCES; i++)
		if (sim_nvml_slot(i)->live && (int)sim_nvml_slot(i)->card == device->card &&
		    sim_nvml_slot(i)->profile == profile.number)
			found[(*count)++] = sim_nvml_handle(i);
	LEAVE(NVML_SUCCESS);
}

SIM nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned int id,
					      nvmlGpuInstance_t *instance)
{
	WHOLE(device);
	if (!instance)
		return NVML_ERROR_INVALID_ARGUMENT;
	ENTER;
	for (int i = 0; i < SIM_INSTANCES; i++)
		if (sim_nvml_slot(i)->live && (int)sim_nvml_slot(i)->card == device->card &&
		    sim_nvml_slot(i)->id == id) {
			*instance = sim_nvml_handle(i);
			LEAVE(NVML_SUCCESS);
		}
	LEAVE(NVML_ERROR_NOT_FOUND);
}

SIM nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t instance, struct instance_info *info)
{
	struct sim_profile profile;
	int slot;
	ENTER;

	slot = sim_nvml_find_instance(instance);
	if (slot < 0 || !info ||
	    !sim_mig_profile(sim_nvml_parent(slot)->facts, sim_nvml_slot(slot)->profile, &profile))
		LEAVE(NVML_ERROR_INVALID_ARGUMENT);
	*info = (struct instance_info){
		.device = sim_nvml_parent(slot),
		.id = sim_nvml_slot(slot)->id,
		.profile = profile.id,
		.placement = {sim_nvml_slot(slot)->start, sim_nvml_slot(slot)->size}};
	LEAVE(NVML_SUCCESS);
}
