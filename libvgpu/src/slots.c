/* SPDX-License-Identifier: Apache-2.0
 *
 * Which processes use a region: claiming a slot, and giving back what the dead
 * left behind. The rules are at the top of vgpu/region.h.
 *
 * The lock that says "alive" is an open-file-description lock. It is taken on a
 * descriptor that is closed again at once, but mapped first: the mapping keeps
 * the description, and with it the lock, until the process ends or executes
 * another program. So closing all descriptors, as daemons do, does not make a
 * living process look dead (with POSIX locks closing any descriptor of the file
 * would), and MADV_DONTFORK keeps a child from making a dead parent look alive.
 * On overlayfs a mapping belongs to the file below and does not keep the lock;
 * there the descriptor stays open, under a high number.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shares.h"
#include "vgpu.h"

#define REPAIR_BYTE 0
#define INFLIGHT_PATIENCE_NS 20000000u
#define SETTLE_PATIENCE_NS 500000000u

static off_t slot_byte(unsigned int index)
{
	return (off_t)(offsetof(struct vgpu_region, slots) +
		       index * sizeof(struct vgpu_region_slot));
}

static int lock_byte(int fd, int command, short type, off_t offset, struct flock *answer)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1};

	if (fcntl(fd, command, &lock) != 0)
		return -errno;
	if (answer)
		*answer = lock;
	return 0;
}

static bool is_locked(int fd, off_t offset)
{
	struct flock answer = {.l_type = F_WRLCK};

	/* If the question fails, the owner counts as alive: his bytes stay charged. */
	if (lock_byte(fd, F_OFD_GETLK, F_WRLCK, offset, &answer) != 0)
		return true;
	return answer.l_type != F_UNLCK;
}

static uint64_t start_time(void)
{
	char text[1024];
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	ssize_t size;
	char *field;

	if (fd < 0)
		return 0;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (size <= 0)
		return 0;
	text[size] = 0;
	field = strrchr(text, ')'); /* the name may hold anything before it */
	for (int i = 2; field && i < 22; i++)
		field = strchr(field + 1, ' ');
	return field ? strtoull(field + 1, NULL, 10) : 0;
}

/* The inode of the caller's own; 0 if /proc does not say. */
uint64_t vgpu_pid_namespace(void)
{
	char text[64];
	ssize_t size = readlink("/proc/self/ns/pid", text, sizeof(text) - 1);

	if (size < 6)
		return 0;
	text[size] = 0;
	return strtoull(text + 5, NULL, 10); /* "pid:[4026531836]" */
}

static void make_ours(struct vgpu_region_slot *slot)
{
	for (unsigned int i = 0; i < VGPU_MAX_DEVICES; i++)
		__atomic_store_n(&slot->used_bytes[i], 0, __ATOMIC_RELAXED);
	__atomic_store_n(&slot->inflight, 0, __ATOMIC_RELAXED);
	slot->pid = (uint32_t)getpid();
	slot->host_pid = 0;
	slot->start_time = start_time();
	slot->pid_namespace = vgpu_pid_namespace();
	__atomic_store_n(&slot->state, VGPU_SLOT_LIVE, __ATOMIC_RELEASE);
}

/* The lock comes first and the state second: a slot that says LIVE without a
 * lock is a dead one, with no exception. */
static int take_free_slot(struct vgpu_view *view, int fd)
{
	for (unsigned int i = 0; i < VGPU_REGION_SLOTS; i++) {
		struct vgpu_region_slot *slot = &view->map->slots[i];

		if (__atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) != VGPU_SLOT_FREE)
			continue;
		if (lock_byte(fd, F_OFD_SETLK, F_WRLCK, slot_byte(i), NULL) != 0)
			continue;
		if (__atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) == VGPU_SLOT_FREE)
			return (int)i;
		lock_byte(fd, F_OFD_SETLK, F_UNLCK, slot_byte(i), NULL);
	}
	return -ENOSPC;
}

static int hold(struct vgpu_view *view, int fd, int index)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *memory = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0);
	int checker, kept;
	bool held = false;

	if (memory != MAP_FAILED && madvise(memory, page, MADV_DONTFORK) != 0) {
		munmap(memory, page);
		memory = MAP_FAILED;
	}
	kept = fcntl(fd, F_DUPFD_CLOEXEC, 512);
	if (kept < 0)
		kept = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	close(fd);
	if (memory != MAP_FAILED) {
		/* Would the lock live on without the descriptor? Ask a scratch one,
		 * since finding out with the real one could lose the slot. */
		checker = vgpu_region_open(view);
		if (checker >= 0) {
			off_t probe = (off_t)sizeof(struct vgpu_region) + index;
			int scratch = vgpu_region_open(view);

			if (scratch >= 0) {
				void *extra = mmap(NULL, page, PROT_READ, MAP_SHARED, scratch, 0);

				lock_byte(scratch, F_OFD_SETLK, F_WRLCK, probe, NULL);
				close(scratch);
				held = extra != MAP_FAILED && is_locked(checker, probe);
				if (extra != MAP_FAILED)
					munmap(extra, page);
			}
			close(checker);
		}
	}
	if (held && kept >= 0) {
		close(kept);
		kept = -1;
	}
	if (!held && kept < 0)
		return -EMFILE;
	view->fd = kept;
	return 0;
}

static int claim(struct vgpu_view *view)
{
	int fd, index;

	if (view->private) {
		make_ours(&view->map->slots[0]);
		return 0;
	}
	fd = vgpu_region_open(view);
	if (fd < 0)
		return fd;
	index = take_free_slot(view, fd);
	if (index < 0) {
		close(fd);
		return index;
	}
	if (hold(view, fd, index) != 0)
		return -EMFILE;
	make_ours(&view->map->slots[index]);
	return index;
}

/* This process's slot, claimed at first use; NULL if there is none to be had. */
struct vgpu_region_slot *vgpu_slot_claim(struct vgpu_view *view)
{
	struct vgpu_region_slot *slot = atomic_load_explicit(&view->slot, memory_order_acquire);
	int index;

	if (slot)
		return slot;
	vgpu_region_repair(view, 0);
	vgpu_lock(&view->claim);
	slot = atomic_load_explicit(&view->slot, memory_order_acquire);
	if (!slot) {
		index = claim(view);
		if (index >= 0) {
			slot = &view->map->slots[index];
			atomic_store_explicit(&view->slot, slot, memory_order_release);
		} else {
			vgpu_log(VGPU_LOG_ERROR, "region %s has no slot for this process: %s",
				 view->path, strerror(-index));
		}
	}
	vgpu_unlock(&view->claim);
	return slot;
}

/* In a forked child: the slot is the parent's, and so is the lock. */
void vgpu_slot_forget(struct vgpu_view *view)
{
	atomic_store(&view->slot, NULL);
	atomic_store(&view->claim.held, 0);
	if (view->fd >= 0)
		close(view->fd);
	view->fd = -1;
	if (view->private)
		for (unsigned int i = 0; i < VGPU_MAX_DEVICES; i++)
			view->map->devices[i].used_bytes = 0;
}

struct census {
	bool dead[VGPU_REGION_SLOTS];
	unsigned int dead_count;
};

static void count_dead(struct vgpu_view *view, int fd, struct census *census)
{
	census->dead_count = 0;
	for (unsigned int i = 0; i < VGPU_REGION_SLOTS; i++) {
		uint32_t state = __atomic_load_n(&view->map->slots[i].state, __ATOMIC_ACQUIRE);

		census->dead[i] = state != VGPU_SLOT_FREE && !is_locked(fd, slot_byte(i));
		census->dead_count += census->dead[i];
	}
}

/* With the gate up nobody new goes in; those inside need nanoseconds, unless
 * one was stopped there. Then the repair is put off: too much stays charged. */
static bool wait_for_quiet(struct vgpu_view *view, int fd, struct census *census)
{
	uint64_t give_up = vgpu_now_ns() + INFLIGHT_PATIENCE_NS;

	for (;;) {
		bool quiet = true;

		count_dead(view, fd, census);
		for (unsigned int i = 0; i < VGPU_REGION_SLOTS; i++) {
			struct vgpu_region_slot *slot = &view->map->slots[i];

			if (__atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) == VGPU_SLOT_LIVE &&
			    !census->dead[i] && __atomic_load_n(&slot->inflight, __ATOMIC_SEQ_CST))
				quiet = false;
		}
		if (quiet)
			return true;
		if (vgpu_now_ns() > give_up)
			return false;
		vgpu_nap_us(20);
	}
}

static void clear_and_add_up(struct vgpu_view *view, const struct census *census, int shares)
{
	uint64_t sums[VGPU_MAX_DEVICES] = {0};

	/* What the dead paid for and others hold goes to the others first. */
	if (shares >= 0)
		vgpu_shares_settle(view, shares, census->dead);
	for (unsigned int i = 0; i < VGPU_REGION_SLOTS; i++) {
		struct vgpu_region_slot *slot = &view->map->slots[i];

		for (unsigned int d = 0; d < VGPU_MAX_DEVICES; d++) {
			if (census->dead[i])
				__atomic_store_n(&slot->used_bytes[d], 0, __ATOMIC_RELAXED);
			else if (__atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) == VGPU_SLOT_LIVE)
				sums[d] += __atomic_load_n(&slot->used_bytes[d], __ATOMIC_RELAXED);
		}
	}
	/* Behind the devices in use are sums of what spilled: they have no record. */
	for (unsigned int d = 0; d < VGPU_MAX_DEVICES && d < view->map->header.device_count; d++)
		__atomic_store_n(&view->map->devices[d].used_bytes, sums[d], __ATOMIC_RELEASE);
	for (unsigned int i = 0; i < VGPU_REGION_SLOTS; i++) {
		struct vgpu_region_slot *slot = &view->map->slots[i];

		if (!census->dead[i])
			continue;
		__atomic_store_n(&slot->inflight, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&slot->state, VGPU_SLOT_FREE, __ATOMIC_RELEASE);
	}
}

/* With the repair lock. The list of shared memory is waited for before the gate goes up,
 * since with it up nobody can allocate. */
static bool repair_locked(struct vgpu_view *view, int fd, struct census *census)
{
	struct vgpu_region_header *header = &view->map->header;
	int shares = vgpu_shares_enter(view);
	bool quiet;

	if (shares == -EBUSY)
		return false;
	__atomic_store_n(&header->gate, 1, __ATOMIC_SEQ_CST);
	quiet = wait_for_quiet(view, fd, census);
	if (quiet)
		clear_and_add_up(view, census, shares);
	__atomic_store_n(&header->gate, 0, __ATOMIC_SEQ_CST);
	vgpu_wake(&header->gate, INT_MAX);
	if (shares >= 0)
		vgpu_shares_leave(view, shares);
	return quiet;
}

/* Gives the bytes of dead processes back. Also finishes the repair of a
 * repairer that died. Does nothing if the last look was just now. */
void vgpu_region_repair(struct vgpu_view *view, uint64_t min_interval_ns)
{
	uint64_t now = vgpu_now_ns(), last = atomic_load(&view->last_repair_ns);
	struct vgpu_region_header *header = &view->map->header;
	struct census census;
	int fd;

	if (view->private || now - last < min_interval_ns)
		return;
	atomic_store(&view->last_repair_ns, now);
	fd = vgpu_region_open(view);
	if (fd < 0)
		return;
	count_dead(view, fd, &census);
	if ((census.dead_count || __atomic_load_n(&header->gate, __ATOMIC_SEQ_CST)) &&
	    lock_byte(fd, F_OFD_SETLK, F_WRLCK, REPAIR_BYTE, NULL) == 0) {
		repair_locked(view, fd, &census);
		vgpu_file_unlock(fd, REPAIR_BYTE, &header->repairs);
	}
	close(fd);
}

/* Adds up in any case, since who pays for shared memory has changed. Only if a process
 * is stopped in there it is left to whoever adds up next: until then the sum is right,
 * but the wrong process pays. */
void vgpu_region_settle(struct vgpu_view *view)
{
	uint64_t give_up = vgpu_now_ns() + SETTLE_PATIENCE_NS;
	uint32_t *turns = &view->map->header.repairs;
	bool settled = false;
	struct census census;
	int fd = vgpu_region_open(view);

	if (fd < 0)
		return;
	while (!settled && vgpu_now_ns() < give_up && vgpu_file_lock(fd, REPAIR_BYTE, turns)) {
		settled = repair_locked(view, fd, &census);
		vgpu_file_unlock(fd, REPAIR_BYTE, turns);
	}
	close(fd);
}
