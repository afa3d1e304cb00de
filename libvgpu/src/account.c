/* SPDX-License-Identifier: Apache-2.0
 *
 * Reserve, then allocate: bytes are added to the shared sum by a compare-and-
 * swap against the limit before the driver is asked, and taken back if it
 * refuses. However many processes race, the sum never passes the limit.
 *
 * A card granted several times is filled grant by grant, in the order of their
 * names, each up to its own limit; what a process gives back comes off its last
 * grant first. With more than one grant a reservation that fails takes back
 * what it got so far, so in a race for the last bytes both may be refused.
 */
#include <errno.h>

#include "vgpu.h"

#define GATE_LOOK_NS 200000u /* who raised it may have been killed, and wakes nobody */
#define GATE_SELDOM_NS 5000000u
#define GATE_GIVE_UP_NS 5000000000u
#define QUERY_REPAIR_NS 50000000u

static struct vgpu_region_device *device_of(const struct vgpu_part *part)
{
	return &part->view->map->devices[part->index];
}

/* Counts this thread in, unless the slots are being added up: see region.h. */
static bool enter(struct vgpu_view *view, struct vgpu_region_slot *slot)
{
	struct vgpu_region_header *header = &view->map->header;
	unsigned int look = GATE_LOOK_NS;
	uint64_t since = 0;

	for (;;) {
		__atomic_add_fetch(&slot->inflight, 1, __ATOMIC_SEQ_CST);
		if (!__atomic_load_n(&header->gate, __ATOMIC_SEQ_CST))
			return true;
		__atomic_sub_fetch(&slot->inflight, 1, __ATOMIC_SEQ_CST);
		if (!since)
			since = vgpu_now_ns();
		else if (vgpu_now_ns() - since > GATE_GIVE_UP_NS)
			return false;
		else
			vgpu_region_repair(view, 0); /* does nothing if another one is at it */
		vgpu_wait_while(&header->gate, 1, look);
		look = look < GATE_SELDOM_NS / 2 ? look * 2 : GATE_SELDOM_NS;
	}
}

static void leave(struct vgpu_region_slot *slot)
{
	__atomic_sub_fetch(&slot->inflight, 1, __ATOMIC_SEQ_CST);
}

static uint64_t plus(uint64_t a, uint64_t b)
{
	return a + b < a ? UINT64_MAX : a + b;
}

static void raise_peak(struct vgpu_region_device *device, uint64_t used)
{
	uint64_t peak = __atomic_load_n(&device->peak_bytes, __ATOMIC_RELAXED);

	while (used > peak && !__atomic_compare_exchange_n(&device->peak_bytes, &peak, used, true,
							   __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

/* Takes up to `want` bytes of one grant; with `whole`, all of them or none. */
static uint64_t take(struct vgpu_part *part, uint64_t want, bool whole)
{
	struct vgpu_region_slot *slot = vgpu_slot_claim(part->view);
	struct vgpu_region_device *device = device_of(part);
	uint64_t limit = vgpu_part_limit(part), used, got;

	if (!slot || !enter(part->view, slot))
		return 0;
	if (device->limit_bytes != limit)
		__atomic_store_n(&device->limit_bytes, limit, __ATOMIC_RELAXED);
	used = __atomic_load_n(&device->used_bytes, __ATOMIC_RELAXED);
	do {
		uint64_t base =
			plus(used, __atomic_load_n(&device->overhead_bytes, __ATOMIC_RELAXED));
		uint64_t room = limit > base ? limit - base : 0;

		got = want < room ? want : room;
		if (!got || (whole && got < want)) {
			leave(slot);
			return 0;
		}
	} while (!__atomic_compare_exchange_n(&device->used_bytes, &used, used + got, true,
					      __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	__atomic_add_fetch(&slot->used_bytes[part->index], got, __ATOMIC_SEQ_CST);
	leave(slot);
	raise_peak(device, used + got);
	return got;
}

/* Subtracts at most what is there: the tenant can write to the region, and a
 * wrap-around to 18 EB would lock the card. */
static uint64_t subtract(uint64_t *word, uint64_t bytes)
{
	uint64_t old = __atomic_load_n(word, __ATOMIC_RELAXED), gone;

	do
		gone = old < bytes ? old : bytes;
	while (!__atomic_compare_exchange_n(word, &old, old - gone, true, __ATOMIC_SEQ_CST,
					    __ATOMIC_RELAXED));
	return gone;
}

static uint64_t give(struct vgpu_part *part, uint64_t bytes)
{
	struct vgpu_region_slot *slot =
		atomic_load_explicit(&part->view->slot, memory_order_acquire);
	uint64_t gone;

	if (!slot || !bytes || !enter(part->view, slot))
		return 0;
	gone = subtract(&slot->used_bytes[part->index], bytes);
	subtract(&device_of(part)->used_bytes, gone);
	leave(slot);
	return gone;
}

void vgpu_give_back(struct vgpu_card *card, uint64_t bytes)
{
	for (unsigned int i = card->part_count; i-- > 0 && bytes;)
		bytes -= give(&card->parts[i], bytes);
}

static int reserve_once(struct vgpu_card *card, uint64_t bytes)
{
	uint64_t left = bytes;

	for (unsigned int i = 0; i < card->part_count && left; i++)
		left -= take(&card->parts[i], left, i + 1 == card->part_count);
	if (!left)
		return 0;
	vgpu_give_back(card, bytes - left);
	return -ENOMEM;
}

int vgpu_reserve(struct vgpu_card *card, uint64_t bytes)
{
	int result = reserve_once(card, bytes);

	if (result != 0) {
		/* Somebody dead may hold what is missing. */
		for (unsigned int i = 0; i < card->part_count; i++)
			vgpu_region_repair(card->parts[i].view, 0);
		result = reserve_once(card, bytes);
	}
	if (result == 0)
		__atomic_add_fetch(&device_of(&card->parts[0])->alloc_count, 1, __ATOMIC_RELAXED);
	return result;
}

/* What the driver holds already is counted, limit or not: then nothing more fits. */
void vgpu_count_anyway(struct vgpu_card *card, uint64_t bytes)
{
	struct vgpu_part *part = &card->parts[0];
	struct vgpu_region_slot *slot = vgpu_slot_claim(part->view);

	if (!slot || !enter(part->view, slot))
		return;
	__atomic_add_fetch(&device_of(part)->used_bytes, bytes, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&slot->used_bytes[part->index], bytes, __ATOMIC_SEQ_CST);
	leave(slot);
}

void vgpu_release(struct vgpu_card *card, uint64_t bytes)
{
	vgpu_give_back(card, bytes);
	__atomic_add_fetch(&device_of(&card->parts[0])->free_count, 1, __ATOMIC_RELAXED);
}

void vgpu_count_refused(struct vgpu_card *card)
{
	__atomic_add_fetch(&device_of(&card->parts[0])->oom_count, 1, __ATOMIC_RELAXED);
}

void vgpu_count_driver_oom(struct vgpu_card *card)
{
	__atomic_add_fetch(&device_of(&card->parts[0])->driver_oom_count, 1, __ATOMIC_RELAXED);
}

void vgpu_count_unhooked(void)
{
	struct vgpu_grants *grants = vgpu_grants();

	if (vgpu_state() == VGPU_ON)
		__atomic_add_fetch(&device_of(&grants->cards[0].parts[0])->unhooked_count, 1,
				   __ATOMIC_RELAXED);
}

bool vgpu_card_usage(struct vgpu_card *card, uint64_t *limit, uint64_t *used)
{
	*limit = *used = 0;
	for (unsigned int i = 0; i < card->part_count; i++) {
		struct vgpu_part *part = &card->parts[i];
		struct vgpu_region_device *device = device_of(part);

		*limit = plus(*limit, vgpu_part_limit(part));
		if (__atomic_load_n(&device->used_bytes, __ATOMIC_RELAXED))
			vgpu_region_repair(part->view, QUERY_REPAIR_NS);
		*used = plus(*used, __atomic_load_n(&device->used_bytes, __ATOMIC_RELAXED));
		*used = plus(*used, __atomic_load_n(&device->overhead_bytes, __ATOMIC_RELAXED));
	}
	if (*limit == UINT64_MAX)
		return false;
	if (*used > *limit)
		*used = *limit;
	return true;
}
