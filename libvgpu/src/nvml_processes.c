/* SPDX-License-Identifier: Apache-2.0
 *
 * NVML's lists of processes. A driver lists what all tenants run on a card, by
 * process ids of the host, which mean nothing in a container. What is listed here
 * are the processes of the grant, by the ids that the caller knows them by, with
 * what they were charged: so the list adds up to the memory that is reported as
 * used. Processes of other PID namespaces, of the grant's other containers, are in
 * the sum alone. Lists that only the driver can make are cut down to processes of
 * ours, which needs their ids on the host.
 */
#include "vgpu.h"

#define USERS 256
#define LISTED 1024
/* PROC_PID_INIT_INO (include/linux/proc_ns.h): ids there are the host's. */
#define FIRST_PID_NAMESPACE UINT64_C(0xeffffffc)

struct user {
	uint32_t pid, host_pid;
	uint64_t bytes;
};

static void add_user(struct user *users, unsigned int *count, const struct vgpu_region_slot *slot,
		     uint64_t bytes)
{
	for (unsigned int i = 0; i < *count; i++)
		if (users[i].pid == slot->pid) { /* of another grant of the card */
			users[i].bytes += bytes;
			return;
		}
	if (*count < USERS)
		users[(*count)++] = (struct user){slot->pid, slot->host_pid, bytes};
}

/* Processes of the caller's namespace that hold memory of a card. */
static unsigned int list_users(const struct vgpu_card *card, struct user users[USERS])
{
	const uint64_t ours = vgpu_pid_namespace();
	unsigned int count = 0;

	for (unsigned int i = 0; i < card->part_count; i++) {
		const struct vgpu_part *part = &card->parts[i];

		vgpu_region_repair(part->view, 0); /* the dead are not listed */
		for (unsigned int s = 0; s < VGPU_REGION_SLOTS; s++) {
			const struct vgpu_region_slot *slot = &part->view->map->slots[s];
			uint64_t bytes;

			if (__atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) != VGPU_SLOT_LIVE ||
			    slot->pid_namespace != ours)
				continue;
			bytes = __atomic_load_n(&slot->used_bytes[part->index], __ATOMIC_RELAXED);
			if (bytes)
				add_user(users, &count, slot, bytes);
		}
	}
	if (ours == FIRST_PID_NAMESPACE)
		for (unsigned int i = 0; i < count; i++)
			users[i].host_pid = users[i].pid;
	return count;
}

/* Calls with one of the three layouts differ in nothing but the size of an entry. */
typedef nvmlReturn_t lister(nvmlDevice_t device, unsigned int *count, void *infos);

static void write_info(void *infos, unsigned int index, bool first_version, const struct user *user)
{
	if (first_version)
		((nvmlProcessInfo_v1_t *)infos)[index] =
			(nvmlProcessInfo_v1_t){.pid = user->pid, .usedGpuMemory = user->bytes};
	else
		((nvmlProcessInfo_v2_t *)infos)[index] =
			(nvmlProcessInfo_v2_t){.pid = user->pid,
					       .usedGpuMemory = user->bytes,
					       .gpuInstanceId = ~0u,
					       .computeInstanceId = ~0u};
}

static nvmlReturn_t list_processes(lister *real, nvmlDevice_t device, unsigned int *count,
				   void *infos, bool first_version)
{
	struct user users[USERS];
	struct vgpu_card *card;
	unsigned int found, room;
	nvmlReturn_t result;

	if (!real)
		return NVML_ERROR_FUNCTION_NOT_FOUND;
	card = vgpu_card_of_nvml(device);
	if (!card || !count || (*count && !infos))
		return real(device, count, infos);
	found = 0;
	result = real(device, &found, NULL);
	if (result != NVML_SUCCESS && result != NVML_ERROR_INSUFFICIENT_SIZE)
		return result;
	room = *count;
	*count = list_users(card, users);
	if (*count > room)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	for (unsigned int i = 0; i < *count; i++)
		write_info(infos, i, first_version, &users[i]);
	return NVML_SUCCESS;
}

#define LIST(name, type, first_version)                                                            \
	VGPU_EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, type *infos)       \
	{                                                                                          \
		return list_processes((lister *)VGPU_REAL(name), device, count, infos,             \
				      first_version);                                              \
	}
LIST(nvmlDeviceGetComputeRunningProcesses, nvmlProcessInfo_v1_t, true)
LIST(nvmlDeviceGetComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, false)
LIST(nvmlDeviceGetComputeRunningProcesses_v3, nvmlProcessInfo_v2_t, false)

static const struct user *find_host_pid(const struct user *users, unsigned int count, uint32_t pid)
{
	for (unsigned int i = 0; i < count; i++)
		if (users[i].host_pid && users[i].host_pid == pid)
			return &users[i];
	return NULL;
}

/* Graphics and clients of MPS are not ours to list; those of other tenants are left out. */
static nvmlReturn_t filter_processes(lister *real, nvmlDevice_t device, unsigned int *count,
				     void *infos, bool first_version)
{
	union {
		nvmlProcessInfo_v1_t first[LISTED];
		nvmlProcessInfo_v2_t later[LISTED];
	} all;
	unsigned int listed = LISTED, user_count, kept = 0, room;
	struct user users[USERS];
	struct vgpu_card *card;
	nvmlReturn_t result;

	if (!real)
		return NVML_ERROR_FUNCTION_NOT_FOUND;
	card = vgpu_card_of_nvml(device);
	if (!card || !count || (*count && !infos))
		return real(device, count, infos);
	result = real(device, &listed, &all);
	if (result != NVML_SUCCESS)
		return result;
	room = *count;
	user_count = list_users(card, users);
	for (unsigned int i = 0; i < listed; i++) {
		const uint32_t pid = first_version ? all.first[i].pid : all.later[i].pid;
		const struct user *user = find_host_pid(users, user_count, pid);

		if (user && kept < room)
			write_info(infos, kept, first_version, user);
		kept += user != NULL;
	}
	*count = kept;
	return kept > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

#define FILTER(name, type, first_version)                                                          \
	VGPU_EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, type *infos)       \
	{                                                                                          \
		return filter_processes((lister *)VGPU_REAL(name), device, count, infos,           \
					first_version);                                            \
	}
FILTER(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t, true)
FILTER(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t, false)
FILTER(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_v2_t, false)
FILTER(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t, true)
FILTER(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, false)
FILTER(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_v2_t, false)

VGPU_EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
							 nvmlProcessUtilizationSample_t *samples,
							 unsigned int *count,
							 unsigned long long since_us)
{
	__typeof__(&nvmlDeviceGetProcessUtilization) real =
		VGPU_REAL(nvmlDeviceGetProcessUtilization);
	nvmlProcessUtilizationSample_t all[LISTED];
	unsigned int listed = LISTED, user_count, kept = 0, room;
	struct user users[USERS];
	struct vgpu_card *card;
	nvmlReturn_t result;

	if (!real)
		return NVML_ERROR_FUNCTION_NOT_FOUND;
	card = vgpu_card_of_nvml(device);
	if (!card || !count)
		return real(device, samples, count, since_us);
	result = real(device, all, &listed, since_us);
	if (result != NVML_SUCCESS)
		return result;
	room = samples ? *count : 0;
	user_count = list_users(card, users);
	for (unsigned int i = 0; i < listed; i++) {
		const struct user *user = find_host_pid(users, user_count, all[i].pid);

		if (!user)
			continue;
		if (kept < room) {
			samples[kept] = all[i];
			samples[kept].pid = user->pid;
		}
		kept++;
	}
	*count = kept;
	if (!kept)
		return NVML_ERROR_NOT_FOUND; /* as where nothing ran */
	return kept > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
