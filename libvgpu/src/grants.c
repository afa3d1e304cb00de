/* SPDX-License-Identifier: Apache-2.0
 *
 * Finds the grants of this container and makes the list of cards from them.
 *
 * <root>/<claimUID>_<request>/grant is mounted by the node. A directory of such
 * a name without a grant that can be read and understood closes the GPU to this
 * process: guessing would give it either nothing or everything.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "vgpu.h"

static int hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "GPU-" or "MIG-", then 32 hexadecimal digits with dashes anywhere. */
bool vgpu_uuid_parse(const char *text, size_t size, uint8_t uuid[16])
{
	size_t length = strnlen(text, size), digits = 0;

	if (length == size || length < 4 || text[3] != '-')
		return false;
	if (memcmp(text, "GPU", 3) != 0 && memcmp(text, "MIG", 3) != 0)
		return false;
	for (size_t i = 4; i < length; i++) {
		int value = hex(text[i]);

		if (text[i] == '-')
			continue;
		if (value < 0 || digits == 32)
			return false;
		if (digits % 2 == 0)
			uuid[digits / 2] = (uint8_t)(value << 4);
		else
			uuid[digits / 2] |= (uint8_t)value;
		digits++;
	}
	return digits == 32;
}

static const char *check(const struct vgpu_grant *grant)
{
	if (memcmp(grant->magic, VGPU_GRANT_MAGIC, sizeof(grant->magic)) != 0)
		return "it does not begin with " VGPU_GRANT_MAGIC;
	if (grant->abi_major != VGPU_GRANT_ABI_MAJOR)
		return "its ABI major version is not "
		       "1";
	if (grant->file_size != sizeof(struct vgpu_grant))
		return "its file_size field is wrong";
	if (grant->device_count == 0 || grant->device_count > VGPU_MAX_DEVICES)
		return "its device_count is out of range";
	for (unsigned int i = 0; i < grant->device_count; i++) {
		uint8_t uuid[16];

		if (!vgpu_uuid_parse(grant->devices[i].uuid, VGPU_UUID_SIZE, uuid))
			return "a device's uuid is malformed";
	}
	return NULL;
}

static const char *map(const char *path, const struct vgpu_grant **grant)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	const char *reason = NULL;
	struct statvfs mount;
	void *memory;

	if (fd < 0)
		return strerror(errno);
	/* Whoever can write here could grant himself more: a tenant may create
	 * files, but cannot mount. */
	if (vgpu_grant_must_be_readonly() &&
	    (fstatvfs(fd, &mount) != 0 || !(mount.f_flag & ST_RDONLY)))
		reason = "it is not on a read-only mount";
	else if (lseek(fd, 0, SEEK_END) != (off_t)sizeof(struct vgpu_grant))
		reason = "its size is wrong";
	if (!reason) {
		memory = mmap(NULL, sizeof(struct vgpu_grant), PROT_READ, MAP_SHARED, fd, 0);
		if (memory == MAP_FAILED)
			reason = strerror(errno);
		else
			*grant = memory;
	}
	close(fd);
	if (!*grant)
		return reason ? reason : "it cannot be mapped";
	return check(*grant);
}

/* ACQUIRE: what is read after these, above all the sequence, is read after them. */
static uint64_t effective_limit(const struct vgpu_grant_device *device)
{
	uint64_t limit = __atomic_load_n(&device->memory_limit_bytes, __ATOMIC_ACQUIRE);
	uint32_t flags = __atomic_load_n(&device->flags, __ATOMIC_ACQUIRE);

	return limit == 0 || (flags & VGPU_GRANT_CONTROL_DISABLED) ? UINT64_MAX : limit;
}

/* Reads under the grant's sequence. A node that died while writing leaves it
 * odd for good: then the last consistent value holds. */
uint64_t vgpu_part_limit(struct vgpu_part *part)
{
	for (int attempt = 0; attempt < 100; attempt++) {
		uint64_t before = __atomic_load_n(&part->grant->sequence, __ATOMIC_ACQUIRE);
		uint64_t limit = effective_limit(&part->grant->devices[part->index]);

		if (!(before & 1) &&
		    before == __atomic_load_n(&part->grant->sequence, __ATOMIC_RELAXED)) {
			atomic_store_explicit(&part->limit, limit, memory_order_relaxed);
			return limit;
		}
	}
	return atomic_load_explicit(&part->limit, memory_order_relaxed);
}

/* One word, so that there is nothing to be torn. */
bool vgpu_part_spills(const struct vgpu_part *part)
{
	uint32_t flags =
		__atomic_load_n(&part->grant->devices[part->index].flags, __ATOMIC_RELAXED);

	return flags & VGPU_GRANT_SPILL && !(flags & VGPU_GRANT_CONTROL_DISABLED) &&
	       part->grant->device_count <= VGPU_SPILL_DEVICES;
}

bool vgpu_part_is_served(const struct vgpu_part *part)
{
	return __atomic_load_n(&part->grant->devices[part->index].flags, __ATOMIC_RELAXED) &
	       VGPU_GRANT_MPS;
}

static uint64_t packed(struct vgpu_rate rate)
{
	return rate.permille | (uint64_t)rate.first << 15 | rate.burst_ns << 16;
}

bool vgpu_part_node_lives(struct vgpu_part *part)
{
	uint32_t heartbeat = __atomic_load_n(&part->grant->heartbeat, __ATOMIC_RELAXED);
	struct timespec now;

	if (!heartbeat)
		return true;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &now); /* at each launch */
	return vgpu_node_lives(&part->heartbeat, heartbeat,
			       (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
}

static struct vgpu_rate rate_of(struct vgpu_part *part)
{
	const struct vgpu_grant_device *device = &part->grant->devices[part->index];
	bool alone = __atomic_load_n(&device->flags, __ATOMIC_RELAXED) & VGPU_GRANT_ALONE;

	return vgpu_rate_of(device, alone && vgpu_part_node_lives(part));
}

/* As vgpu_part_limit, for compute. */
struct vgpu_rate vgpu_part_rate(struct vgpu_part *part)
{
	uint64_t last;

	for (int attempt = 0; attempt < 100; attempt++) {
		uint64_t before = __atomic_load_n(&part->grant->sequence, __ATOMIC_ACQUIRE);
		struct vgpu_rate rate = rate_of(part);

		if (!(before & 1) &&
		    before == __atomic_load_n(&part->grant->sequence, __ATOMIC_RELAXED)) {
			if (atomic_load_explicit(&part->rate, memory_order_relaxed) != packed(rate))
				atomic_store_explicit(&part->rate, packed(rate),
						      memory_order_relaxed);
			return rate;
		}
	}
	last = atomic_load_explicit(&part->rate, memory_order_relaxed);
	return (struct vgpu_rate){(uint32_t)(last & 0x7fff), last >> 16, last >> 15 & 1};
}

/* Cards may be added while others are in use: what is counted is complete. */
static const char *add(struct vgpu_grants *grants, const struct vgpu_grant *grant,
		       struct vgpu_view *view)
{
	for (unsigned int i = 0; i < grant->device_count; i++) {
		struct vgpu_card *card = grants->cards;
		struct vgpu_part *part;
		uint8_t uuid[16];
		bool fresh;

		vgpu_uuid_parse(grant->devices[i].uuid, VGPU_UUID_SIZE, uuid);
		while (card < grants->cards + grants->card_count &&
		       memcmp(card->uuid, uuid, sizeof(uuid)) != 0)
			card++;
		if (card == grants->cards + VGPU_MAX_CARDS)
			return "there are too many cards";
		fresh = card == grants->cards + grants->card_count;
		if (fresh)
			memcpy(card->uuid, uuid, sizeof(uuid));
		if (card->part_count == VGPU_MAX_PARTS)
			return "there are too many grants of one card";
		part = &card->parts[card->part_count++];
		part->grant = grant;
		part->view = view;
		part->index = i;
		part->limit = effective_limit(&grant->devices[i]);
		vgpu_part_limit(part);
		part->rate = packed(rate_of(part));
		vgpu_part_rate(part);
		if (fresh)
			atomic_store(&grants->card_count, grants->card_count + 1);
	}
	return NULL;
}

static int is_grant_name(const struct dirent *entry)
{
	return entry->d_name[0] != '.' && strchr(entry->d_name, '_') != NULL;
}

/* A grant that this process wrote itself, with its region at `path`. */
void vgpu_grants_add(struct vgpu_grants *grants, const struct vgpu_grant *grant, const char *path)
{
	struct vgpu_view *view = &grants->views[grants->view_count];
	const char *reason;

	vgpu_region_attach(view, path, grant);
	grants->view_count++;
	reason = view->map ? add(grants, grant, view) : "there is no memory for its region";
	if (!reason)
		return;
	vgpu_log(VGPU_LOG_ERROR, "no GPU for this process: limits of %s cannot be kept: %s",
		 grant->devices[0].uuid, reason);
	atomic_store(&grants->state, VGPU_BROKEN);
}

static void load_one(struct vgpu_grants *grants, const char *root, const char *name)
{
	const struct vgpu_grant *grant = NULL;
	char path[512], region[512];
	const char *reason = NULL;
	struct vgpu_view *view;

	if (snprintf(path, sizeof(path), "%s/%s/grant", root, name) >= (int)sizeof(path) ||
	    snprintf(region, sizeof(region), "%s/%s/region/region", root, name) >=
		    (int)sizeof(region))
		reason = "its path is too long";
	else if (grants->view_count == VGPU_MAX_GRANTS)
		reason = "there are too many grants";
	else
		reason = map(path, &grant);
	if (!reason && grant) {
		view = &grants->views[grants->view_count++];
		vgpu_region_attach(view, region, grant);
		reason = view->map ? add(grants, grant, view) : "there is no memory for its region";
	}
	if (!reason)
		return;
	vgpu_log(VGPU_LOG_ERROR, "no GPU for this process: grant %s cannot be used: %s", path,
		 reason);
	grants->state = VGPU_BROKEN;
}

void vgpu_grants_load(struct vgpu_grants *grants)
{
	const char *root = vgpu_grant_root();
	struct dirent **entries = NULL;
	/* Sorted, so that all processes fill the grants of a card in one order. */
	int count = scandir(root, &entries, is_grant_name, alphasort);

	if (count < 0) {
		if (errno != ENOENT) {
			vgpu_log(VGPU_LOG_ERROR, "no GPU for this process: %s: %s", root,
				 strerror(errno));
			grants->state = VGPU_BROKEN;
		}
		return;
	}
	if (count > 0)
		grants->state = VGPU_ON;
	for (int i = 0; i < count; i++) {
		load_one(grants, root, entries[i]->d_name);
		free(entries[i]);
	}
	free(entries);
}
