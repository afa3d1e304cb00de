/* SPDX-License-Identifier: Apache-2.0
 *
 * Limits from environment variables, where nobody has mounted a grant: under plain
 * Docker or Podman, or with a device plugin that speaks HAMi's language.
 *
 *   CUDA_DEVICE_MEMORY_LIMIT, ..._LIMIT_<i>  bytes, or with k, m, g; 0 = none
 *   CUDA_DEVICE_SM_LIMIT, ..._LIMIT_<i>      percent; 0 and from 100 on = none
 *   GPU_CORE_UTILIZATION_POLICY              "disable": compute is not limited
 *   CUDA_OVERSUBSCRIBE                       "true": what the card has no room for is the host's
 *   CUDA_DEVICE_MEMORY_SHARED_CACHE          where processes share their books
 *
 * <i> is the card's place among those that the container has, and beats the
 * variable without it. Which cards these are only the driver can tell, so grants
 * are made when it has started. One file per card holds the books, because two
 * processes may see different cards.
 *
 * Whoever can set variables can unset them: this is for those who want to be
 * limited. A variable that cannot be understood closes the GPU to the process.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "vgpu.h"

#define PLACES 16
#define DEFAULT_BOOKS "/tmp/cudevshr.cache"

struct wanted {
	uint64_t bytes;
	uint32_t percent;
};

static struct wanted wanted[PLACES];
static bool any;
static struct vgpu_lock lock; /* over making grants */
static struct vgpu_grant made[VGPU_MAX_GRANTS];

static void refuse(const char *name, const char *text)
{
	vgpu_log(VGPU_LOG_ERROR,
		 "no GPU for this process: %s is \"%s\", which is not a limit: write digits, for "
		 "memory also with k, m or g",
		 name, text);
}

/* The variable of a place, else the one for all, else NULL; its name in `name`. */
static const char *look_up(const char *base, unsigned int place, char *name, size_t size)
{
	const char *text;

	snprintf(name, size, "%s_%u", base, place);
	text = getenv(name);
	if (text)
		return text;
	snprintf(name, size, "%s", base);
	return getenv(name);
}

static bool read_place(unsigned int place)
{
	char name[64];
	const char *text = look_up("CUDA_DEVICE_MEMORY_LIMIT", place, name, sizeof(name));

	if (text && !vgpu_parse_bytes(text, &wanted[place].bytes)) {
		refuse(name, text);
		return false;
	}
	text = look_up("CUDA_DEVICE_SM_LIMIT", place, name, sizeof(name));
	if (text && !vgpu_parse_percent(text, &wanted[place].percent)) {
		refuse(name, text);
		return false;
	}
	any = any || wanted[place].bytes || wanted[place].percent;
	return true;
}

/* Only if there is no grant. False: a variable cannot be understood. */
bool vgpu_environment_read(void)
{
	any = false;
	memset(wanted, 0, sizeof(wanted));
	for (unsigned int place = 0; place < PLACES; place++)
		if (!read_place(place))
			return false;
	return true;
}

void vgpu_environment_forget_lock(void)
{
	atomic_store(&lock.held, 0);
}

/* ---- making grants of it */

static bool is_granted(const struct vgpu_grants *grants, const uint8_t uuid[16])
{
	for (unsigned int i = 0; i < grants->card_count; i++)
		if (memcmp(grants->cards[i].uuid, uuid, 16) == 0)
			return true;
	return false;
}

static void write_uuid(char text[VGPU_UUID_SIZE], const uint8_t uuid[16])
{
	int used = snprintf(text, VGPU_UUID_SIZE, "GPU-");

	for (int i = 0; i < 16; i++)
		used += snprintf(text + used, VGPU_UUID_SIZE - (size_t)used, "%s%02x",
				 i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
}

/* Without a node nobody says who is alone, so "default" is as "force". */
static uint32_t policy(void)
{
	const char *text = getenv("GPU_CORE_UTILIZATION_POLICY");

	return text && strcasecmp(text, "disable") == 0 ? VGPU_POLICY_DISABLE : VGPU_POLICY_FORCE;
}

static bool oversubscribed(void)
{
	const char *text = getenv("CUDA_OVERSUBSCRIBE");

	return text && (strcasecmp(text, "true") == 0 || strcmp(text, "1") == 0);
}

static void grant_card(struct vgpu_grants *grants, unsigned int place, const uint8_t uuid[16])
{
	const char *books = getenv("CUDA_DEVICE_MEMORY_SHARED_CACHE");
	struct vgpu_grant *grant = &made[grants->view_count];
	char path[512];

	if (place >= PLACES || is_granted(grants, uuid) || grants->view_count == VGPU_MAX_GRANTS ||
	    (!wanted[place].bytes && !wanted[place].percent))
		return;
	memset(grant, 0, sizeof(*grant));
	memcpy(grant->magic, VGPU_GRANT_MAGIC, sizeof(grant->magic));
	grant->abi_major = VGPU_GRANT_ABI_MAJOR;
	grant->file_size = sizeof(*grant);
	grant->device_count = 1;
	snprintf(grant->claim_uid, sizeof(grant->claim_uid), "environment");
	write_uuid(grant->devices[0].uuid, uuid);
	grant->devices[0].memory_limit_bytes = wanted[place].bytes;
	grant->devices[0].cores_percent = wanted[place].percent;
	grant->devices[0].core_policy = policy();
	grant->devices[0].flags = oversubscribed() ? VGPU_GRANT_SPILL : 0;
	/* Too long a path cannot be opened: then the limit is this process's alone. */
	snprintf(path, sizeof(path), "%s.%s", books && *books ? books : DEFAULT_BOOKS,
		 grant->devices[0].uuid);
	vgpu_grants_add(grants, grant, path);
}

/* CUDA_VISIBLE_DEVICES renumbers cards for CUDA, but not for whoever set limits. A
 * list of UUIDs does not say which place a card has; then it is CUDA's. */
static unsigned int place_of(unsigned int ordinal)
{
	const char *item = getenv("CUDA_VISIBLE_DEVICES");

	for (unsigned int i = 0; item && i < ordinal; i++) {
		item = strchr(item, ',');
		item = item ? item + 1 : NULL;
	}
	while (item && *item == ' ')
		item++;
	return item && *item >= '0' && *item <= '9' ? (unsigned int)strtoul(item, NULL, 10)
						    : ordinal;
}

static void grant_cuda_cards(struct vgpu_grants *grants)
{
	__typeof__(&cuDeviceGetCount) get_count = VGPU_REAL(cuDeviceGetCount);
	__typeof__(&cuDeviceGetUuid_v2) get_uuid = VGPU_REAL(cuDeviceGetUuid_v2);
	CUuuid uuid;
	int count;

	if (!get_uuid)
		get_uuid = VGPU_REAL(cuDeviceGetUuid);
	if (!get_count || !get_uuid || get_count(&count) != CUDA_SUCCESS)
		return;
	for (int i = 0; i < count; i++)
		if (get_uuid(&uuid, i) == CUDA_SUCCESS)
			grant_card(grants, place_of((unsigned int)i), (const uint8_t *)uuid.bytes);
}

static void grant_nvml_cards(struct vgpu_grants *grants)
{
	__typeof__(&nvmlDeviceGetCount_v2) get_count = VGPU_REAL(nvmlDeviceGetCount_v2);
	__typeof__(&nvmlDeviceGetHandleByIndex_v2) get = VGPU_REAL(nvmlDeviceGetHandleByIndex_v2);
	__typeof__(&nvmlDeviceGetUUID) get_uuid = VGPU_REAL(nvmlDeviceGetUUID);
	unsigned int count;
	nvmlDevice_t device;
	uint8_t uuid[16];
	char text[96];

	if (!get_count || !get || !get_uuid || get_count(&count) != NVML_SUCCESS)
		return;
	for (unsigned int i = 0; i < count; i++)
		if (get(i, &device) == NVML_SUCCESS &&
		    get_uuid(device, text, sizeof(text)) == NVML_SUCCESS &&
		    vgpu_uuid_parse(text, sizeof(text), uuid))
			grant_card(grants, i, uuid);
}

/* After the driver or NVML has started, once for each. Threads that start at the
 * same time wait, since without their limits they must not go on. */
void vgpu_environment_apply(struct vgpu_grants *grants, enum vgpu_library library)
{
	static bool done[2];

	if (!any || atomic_load(&done[library]))
		return;
	vgpu_lock(&lock);
	if (done[library]) {
		vgpu_unlock(&lock);
		return;
	}
	if (library == VGPU_CUDA)
		grant_cuda_cards(grants);
	else
		grant_nvml_cards(grants);
	atomic_store(&done[library], true);
	if (grants->card_count)
		atomic_store(&grants->state, VGPU_ON);
	vgpu_unlock(&lock);
}
