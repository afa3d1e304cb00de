/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that several processes hold. A grant pays for it once, as long as one of
 * its processes holds it, whoever made it:
 *
 *   made by a process of the grant   its maker pays; who opens it pays nothing
 *   made by anybody else             the first process to open it pays
 *   who pays frees it, or dies       one of the others pays from then on
 *
 * Which processes hold what is in the file <region>.shares, one record for each piece
 * of memory that was given away or taken in: few, hence a lock and not the region's
 * atomics. What is paid is in the payer's slot as all that is charged. It moves from
 * slot to slot where slots are added up (slots.c), with nobody in between, and what
 * is about to move is written down first: a SIGKILL at any step is repaired by the
 * next one who looks.
 *
 * A piece is known again by what programs send each other: descriptors.c for those.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shares.h"

#define MAGIC "VGPUSHRS"
#define RECORDS 1024

enum { FREE, LIVE };
enum { NOBODY = 0 }; /* else the slot's index + 1 */

struct record { /* a power of two, so that none lies on two pages */
	uint32_t state, serial, kind, device;
	uint64_t bytes; /* paid for it */
	uint32_t payer, flags, moves, reserved0;
	uint32_t from, to; /* what is about to happen: slots, and what will be in them */
	uint64_t left, right;
	uint8_t name[64];
	uint64_t holders[VGPU_REGION_SLOTS / 64];
	uint8_t reserved[256];
};
static_assert(sizeof(struct record) == 512, "a record is a sector");

struct header {
	char magic[8];
	uint64_t instance; /* of the region that it belongs to */
	uint8_t reserved[496];
};

/* ---- the file */

static int open_file(const struct vgpu_view *view, bool create)
{
	char path[sizeof(view->path) + 8];
	int fd;

	if (view->private)
		return -ENOENT;
	snprintf(path, sizeof(path), "%s.shares", view->path);
	fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0 && errno == ENOENT && create) {
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
		if (fd >= 0 && fchmod(fd, 0666) != 0 && errno != EPERM) {
			close(fd);
			return -EACCES;
		}
	}
	return fd < 0 ? -errno : fd;
}

static uint32_t *turns_of(const struct vgpu_view *view)
{
	return &view->map->header.shares_turns;
}

/* Records of another region are none of ours. */
static bool claim_file(const struct vgpu_view *view, int fd)
{
	struct header header = {.instance = view->instance}, there;

	memcpy(header.magic, MAGIC, sizeof(header.magic));
	if (pread(fd, &there, sizeof(there), 0) == (ssize_t)sizeof(there) &&
	    memcmp(&there, &header, offsetof(struct header, reserved)) == 0)
		return true;
	return ftruncate(fd, 0) == 0 &&
	       pwrite(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header);
}

static void leave(const struct vgpu_view *view, int fd)
{
	vgpu_file_unlock(fd, 0, turns_of(view));
	close(fd);
}

/* A descriptor with the lock, or -errno. */
static int enter(const struct vgpu_view *view, bool create)
{
	int fd = open_file(view, create);

	if (fd < 0)
		return fd;
	if (!vgpu_file_lock(fd, 0, turns_of(view))) {
		close(fd);
		return -EBUSY;
	}
	if (claim_file(view, fd))
		return fd;
	leave(view, fd);
	return -EBUSY;
}

/* False: there are no more. What it says is the tenant's word: indices are checked. */
static bool load(int fd, unsigned int index, struct record *record)
{
	if (index >= RECORDS || pread(fd, record, sizeof(*record), (off_t)(index + 1) * 512) !=
					(ssize_t)sizeof(*record))
		return false;
	if (record->device >= VGPU_MAX_DEVICES || record->payer > VGPU_REGION_SLOTS ||
	    record->from > VGPU_REGION_SLOTS || record->to > VGPU_REGION_SLOTS)
		record->state = FREE;
	return true;
}

static bool store(int fd, unsigned int index, const struct record *record)
{
	return pwrite(fd, record, sizeof(*record), (off_t)(index + 1) * 512) ==
	       (ssize_t)sizeof(*record);
}

/* ---- holders */

static bool holds(const struct record *record, unsigned int slot)
{
	return record->holders[slot / 64] >> slot % 64 & 1;
}

static void set_holder(struct record *record, unsigned int slot, bool held)
{
	uint64_t bit = UINT64_C(1) << slot % 64;

	record->holders[slot / 64] =
		held ? record->holders[slot / 64] | bit : record->holders[slot / 64] & ~bit;
}

/* NOBODY, or a slot's index + 1. */
static uint32_t some_holder(const struct record *record)
{
	for (unsigned int slot = 0; slot < VGPU_REGION_SLOTS; slot++)
		if (holds(record, slot))
			return slot + 1;
	return NOBODY;
}

static bool payer_holds(const struct record *record)
{
	return record->payer != NOBODY && holds(record, record->payer - 1);
}

/* ---- records */

static bool is_it(const struct record *record, const struct vgpu_share_name *name)
{
	return record->state == LIVE && record->kind == (uint32_t)name->kind &&
	       memcmp(record->name, name->bytes, sizeof(record->name)) == 0;
}

static bool search(int fd, const struct vgpu_share_name *name, unsigned int *index,
		   struct record *record)
{
	for (*index = 0; load(fd, *index, record); ++*index)
		if (is_it(record, name))
			return true;
	return false;
}

static uint64_t id_of(const struct vgpu_view *view, unsigned int index, uint32_t serial)
{
	uint64_t number = (uint64_t)(view - vgpu_grants()->views);

	return (number << 16 | index) << 32 | serial;
}

static struct vgpu_view *view_of(uint64_t id)
{
	return &vgpu_grants()->views[id >> 48];
}

static bool load_by_id(int fd, uint64_t id, struct record *record)
{
	return load(fd, id >> 32 & 0xffff, record) && record->state == LIVE &&
	       record->serial == (uint32_t)id;
}

static bool store_by_id(int fd, uint64_t id, const struct record *record)
{
	return store(fd, id >> 32 & 0xffff, record);
}

static int own_slot(struct vgpu_view *view)
{
	struct vgpu_region_slot *slot = vgpu_slot_claim(view);

	return slot ? (int)(slot - view->map->slots) : -1;
}

/* What this process holds, however often: one bit in the record. */
static struct vgpu_lock lock;

void vgpu_shares_forget_all(void)
{
	atomic_store(&lock.held, 0);
}

static bool note(uint64_t id, struct vgpu_card **card, bool held)
{
	struct vgpu_pointer mine = {.address = id, .card = *card};
	bool last;

	vgpu_lock(&lock);
	vgpu_pointer_take(VGPU_SHARES, id, &mine);
	mine.count += held ? 1 : (uint64_t)-1;
	last = mine.count == 0 || mine.count == UINT64_MAX;
	*card = mine.card;
	if (!last)
		vgpu_pointer_add(VGPU_SHARES, &mine);
	vgpu_unlock(&lock);
	return last;
}

static bool add_record(int fd, const struct vgpu_share_name *name, unsigned int *index,
		       struct record *record)
{
	struct record there;

	for (*index = 0; load(fd, *index, &there) && there.state != FREE;)
		++*index;
	if (*index >= RECORDS)
		return false;
	record->state = LIVE;
	record->serial = (uint32_t)(vgpu_now_ns() * 0x9e3779b97f4a7c15u >> 32) | 1;
	record->kind = (uint32_t)name->kind;
	memcpy(record->name, name->bytes, sizeof(record->name));
	return store(fd, *index, record);
}

static struct vgpu_card *card_of_part(const struct vgpu_view *view, unsigned int device)
{
	struct vgpu_grants *grants = vgpu_grants();

	for (unsigned int i = 0; i < atomic_load(&grants->card_count); i++)
		for (unsigned int p = 0; p < grants->cards[i].part_count; p++)
			if (grants->cards[i].parts[p].view == view &&
			    grants->cards[i].parts[p].index == device)
				return &grants->cards[i];
	return NULL;
}

/* Holds what some process of this container's grants has put down. 0: none has. */
uint64_t vgpu_share_find(const struct vgpu_share_name *name)
{
	struct vgpu_grants *grants = vgpu_grants();
	uint64_t id = 0;

	for (unsigned int i = 0; i < grants->view_count && !id; i++) {
		struct vgpu_view *view = &grants->views[i];
		int slot = own_slot(view), fd = slot < 0 ? -1 : enter(view, false);
		struct record record;
		unsigned int index;
		bool move = false;

		if (fd < 0)
			continue;
		if (search(fd, name, &index, &record)) {
			set_holder(&record, (unsigned int)slot, true);
			record.flags |= VGPU_SHARE_TAKEN;
			move = !payer_holds(&record);
			if (store(fd, index, &record))
				id = id_of(view, index, record.serial);
		}
		leave(view, fd);
		if (id) {
			struct vgpu_card *card = card_of_part(view, record.device);

			note(id, &card, true);
		}
		if (id && move)
			vgpu_region_settle(view);
	}
	return id;
}

/* Puts down what this process holds and has been charged for. If another one has done
 * so meanwhile, `paid` is false: then this one is charged for nothing. 0: it cannot be
 * put down. */
uint64_t vgpu_share_add(const struct vgpu_share_name *name, struct vgpu_card *card, uint64_t bytes,
			uint32_t flags, bool *paid)
{
	struct vgpu_view *view = card->parts[0].view;
	int slot = own_slot(view), fd = slot < 0 ? -1 : enter(view, true);
	struct record record, fresh = {.device = card->parts[0].index,
				       .bytes = bytes,
				       .payer = (uint32_t)slot + 1,
				       .flags = flags};
	uint64_t id = 0;
	unsigned int index;

	*paid = true;
	if (fd < 0)
		return 0;
	if (search(fd, name, &index, &record)) {
		*paid = record.payer == (uint32_t)slot + 1;
		set_holder(&record, (unsigned int)slot, true);
		if (store(fd, index, &record))
			id = id_of(view, index, record.serial);
	} else {
		set_holder(&fresh, (unsigned int)slot, true);
		if (add_record(fd, name, &index, &fresh))
			id = id_of(view, index, fresh.serial);
	}
	leave(view, fd);
	*paid = *paid || !id;
	if (id)
		note(id, &card, true);
	return id;
}

/* Another descriptor for the same memory. */
void vgpu_share_tag(uint64_t id, int descriptor)
{
	struct vgpu_share_name name = {.kind = VGPU_SHARE_DESCRIPTOR};
	struct vgpu_view *view = view_of(id);
	int fd = enter(view, false);
	struct record record;
	bool found;

	if (fd < 0)
		return;
	found = load_by_id(fd, id, &record);
	leave(view, fd);
	if (!found)
		return;
	memcpy(name.bytes, record.name, sizeof(name.bytes));
	vgpu_descriptor_tag(&name, descriptor);
}

/* Memory from elsewhere whose size is known only now: 0 if it is paid for, else what
 * this process must be charged first. With `charged` it has been. */
uint64_t vgpu_share_owes(uint64_t id, uint64_t bytes, uint64_t charged, bool *accepted)
{
	struct vgpu_view *view = view_of(id);
	int slot = own_slot(view), fd = slot < 0 ? -1 : enter(view, false);
	uint64_t owed = 0;
	struct record record;

	*accepted = false;
	if (fd < 0)
		return 0;
	if (load_by_id(fd, id, &record) && (record.flags & VGPU_SHARE_FOREIGN) &&
	    record.bytes < bytes && (!record.bytes || record.payer == (uint32_t)slot + 1)) {
		owed = bytes - record.bytes;
		if (charged && charged == owed) {
			record.bytes = bytes;
			record.payer = (uint32_t)slot + 1;
			*accepted = store_by_id(fd, id, &record);
		}
	}
	leave(view, fd);
	return owed;
}

/* Lets go. Returns what the process has to give back: nothing if it does not pay, or
 * if somebody else will from now on. */
uint64_t vgpu_share_leave(uint64_t id)
{
	struct vgpu_view *view = view_of(id);
	struct record record;
	struct vgpu_card *card = NULL;
	uint64_t bytes = 0;
	bool move = false;
	int slot, fd;

	if (!note(id, &card, false))
		return 0;
	slot = own_slot(view);
	fd = slot < 0 ? -1 : enter(view, false);
	if (fd < 0)
		return 0;
	if (load_by_id(fd, id, &record) && holds(&record, (unsigned int)slot)) {
		bool pays = record.payer == (uint32_t)slot + 1;
		bool others;

		set_holder(&record, (unsigned int)slot, false);
		others = some_holder(&record) != NOBODY;
		/* Of several grants nobody knows which has paid: it stays as it is. */
		if (pays && others && card && card->part_count > 1)
			set_holder(&record, (unsigned int)slot, true);
		if (pays && (record.flags & VGPU_SHARE_POOLED)) {
			record.bytes = 0; /* its pool knows what it holds */
			record.state = others ? LIVE : FREE;
		} else if (pays && !others &&
			   ((record.flags & VGPU_SHARE_TAKEN) ||
			    record.kind != VGPU_SHARE_DESCRIPTOR)) {
			record.state = FREE;
			bytes = record.bytes;
		}
		/* Else: a descriptor may be on its way to somebody, and holds the memory. */
		move = pays ? others : !others && !payer_holds(&record);
		store_by_id(fd, id, &record);
	}
	leave(view, fd);
	if (move)
		vgpu_region_settle(view);
	return bytes;
}

/* ---- who pays: with the gate up and nobody in flight */

static uint64_t *word_of(struct vgpu_view *view, uint32_t slot, const struct record *record)
{
	return slot == NOBODY ? NULL : &view->map->slots[slot - 1].used_bytes[record->device];
}

static void finish_move(struct vgpu_view *view, int fd, unsigned int index, struct record *record)
{
	uint64_t *from = word_of(view, record->from, record);
	uint64_t *to = word_of(view, record->to, record);

	if (from)
		__atomic_store_n(from, record->left, __ATOMIC_SEQ_CST);
	if (to)
		__atomic_store_n(to, record->right, __ATOMIC_SEQ_CST);
	record->payer = record->to;
	record->from = record->to = NOBODY;
	record->state = record->payer == NOBODY ? FREE : LIVE;
	record->flags &= ~VGPU_SHARE_POOLED;
	record->moves++;
	store(fd, index, record);
}

static void move(struct vgpu_view *view, int fd, unsigned int index, struct record *record,
		 uint32_t from, uint32_t to)
{
	uint64_t *left, *right;

	record->from = from;
	record->to = to;
	left = word_of(view, from, record);
	right = word_of(view, to, record);
	record->left = left && *left > record->bytes ? *left - record->bytes : 0;
	record->right = right ? *right + record->bytes : 0;
	if (store(fd, index, record))
		finish_move(view, fd, index, record);
}

static bool is_alive(struct vgpu_view *view, const bool *dead, uint32_t slot)
{
	return slot != NOBODY && !dead[slot - 1] &&
	       __atomic_load_n(&view->map->slots[slot - 1].state, __ATOMIC_ACQUIRE) ==
		       VGPU_SLOT_LIVE;
}

static void settle_record(struct vgpu_view *view, int fd, unsigned int index, struct record *record,
			  const bool *dead)
{
	uint32_t payer, heir;
	bool changed = false;

	if (record->from != NOBODY || record->to != NOBODY)
		finish_move(view, fd, index, record);
	for (unsigned int slot = 0; slot < VGPU_REGION_SLOTS; slot++)
		if (holds(record, slot) && !is_alive(view, dead, slot + 1)) {
			set_holder(record, slot, false);
			changed = true;
		}
	payer = is_alive(view, dead, record->payer) ? record->payer : NOBODY;
	heir = some_holder(record);
	if (record->state != LIVE || (payer != NOBODY && holds(record, payer - 1))) {
		if (changed)
			store(fd, index, record);
	} else if (heir == NOBODY && payer != NOBODY && !(record->flags & VGPU_SHARE_TAKEN) &&
		   record->kind == VGPU_SHARE_DESCRIPTOR) {
		if (changed)
			store(fd, index, record);
	} else {
		move(view, fd, index, record, payer, heir);
	}
}

/* A descriptor with the list's lock; -EBUSY: it cannot be had now, and slots must stay
 * as they are; another error: there is no list. */
int vgpu_shares_enter(struct vgpu_view *view)
{
	return enter(view, false);
}

void vgpu_shares_leave(struct vgpu_view *view, int fd)
{
	leave(view, fd);
}

void vgpu_shares_settle(struct vgpu_view *view, int fd, const bool *dead)
{
	struct record record;

	for (unsigned int index = 0; load(fd, index, &record); index++)
		if (record.state == LIVE)
			settle_record(view, fd, index, &record, dead);
}
