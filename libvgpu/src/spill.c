/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that the card has no room for, where the grant allows it: managed memory, which
 * the driver keeps on the card as far as there is room, and in the host's memory beyond.
 * It is charged as any other, so the limit stays exact; how much of a share was got this
 * way is told in the region.
 *
 * It prefers the card, so that pages come back when there is room, and is driven out when
 * somebody needs memory that cannot move: a neighbour loses speed, never memory.
 *
 * What cannot spill gets the driver's own answer: pools that a program names, memory by
 * handle, arrays, memory of graphs, 32-bit pointers, contexts and modules. Each is tied to
 * the card by what it is, or by what a program may ask of it later.
 */
#include "vgpu.h"

bool vgpu_card_spills(struct vgpu_card *card)
{
	bool allowed = false;

	for (unsigned int i = 0; i < card->part_count; i++) {
		allowed = allowed || vgpu_part_spills(&card->parts[i]);
		if (vgpu_part_limit(&card->parts[i]) == UINT64_MAX)
			return false; /* nothing would end it */
	}
	return allowed;
}

static bool leaves_the_card(CUdevice device)
{
	__typeof__(&cuDeviceGetAttribute) ask = VGPU_REAL(cuDeviceGetAttribute);
	int value = 0;

	return ask &&
	       ask(&value, CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, device) == CUDA_SUCCESS &&
	       value;
}

/* On the current context's card. CUDA_ERROR_OUT_OF_MEMORY where that is no way out. */
CUresult vgpu_spill(CUdeviceptr *pointer, size_t bytes)
{
	__typeof__(&cuMemAllocManaged) allocate = VGPU_REAL(cuMemAllocManaged);
	__typeof__(&cuMemAdvise) advise = VGPU_REAL(cuMemAdvise);
	__typeof__(&cuCtxGetDevice) get_device = VGPU_REAL(cuCtxGetDevice);
	CUdevice device;
	CUresult result;
	int mode;

	if (!allocate || !get_device || get_device(&device) != CUDA_SUCCESS ||
	    !leaves_the_card(device))
		return CUDA_ERROR_OUT_OF_MEMORY;
	/* Somebody may be capturing: of an allocation in stream order that is no matter. */
	mode = vgpu_capture_mode(CU_STREAM_CAPTURE_MODE_RELAXED);
	result = allocate(pointer, bytes, CU_MEM_ATTACH_GLOBAL);
	/* Not CU_MEM_ADVISE_SET_ACCESSED_BY: mapped where they are, pages would stay there. */
	if (result == CUDA_SUCCESS && advise)
		advise(*pointer, bytes, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, device);
	vgpu_capture_mode(mode);
	vgpu_log(VGPU_LOG_INFO, "the card is full: %zu bytes %s", bytes,
		 result == CUDA_SUCCESS ? "may go to the host" : "find no room on the host either");
	return result == CUDA_SUCCESS ? result : CUDA_ERROR_OUT_OF_MEMORY;
}

/* ---- what is told of it */

static struct vgpu_region_slot *slot_of(const struct vgpu_part *part)
{
	return atomic_load_explicit(&part->view->slot, memory_order_acquire);
}

static uint64_t *word_of(const struct vgpu_part *part, struct vgpu_region_slot *slot)
{
	return &slot->used_bytes[VGPU_MAX_DEVICES - 1 - part->index];
}

/* It is told of the first grant that allows it, whichever was charged. */
void vgpu_count_spilled(struct vgpu_card *card, uint64_t bytes)
{
	for (unsigned int i = 0; i < card->part_count && bytes; i++) {
		const struct vgpu_part *part = &card->parts[i];
		struct vgpu_region_slot *slot = slot_of(part);

		if (!slot || !vgpu_part_spills(part))
			continue;
		__atomic_add_fetch(word_of(part, slot), bytes, __ATOMIC_RELAXED);
		__atomic_add_fetch(&part->view->map->devices[part->index].spill_count, 1,
				   __ATOMIC_RELAXED);
		return;
	}
}

void vgpu_count_unspilled(struct vgpu_card *card, uint64_t bytes)
{
	for (unsigned int i = 0; i < card->part_count && bytes; i++) {
		const struct vgpu_part *part = &card->parts[i];
		struct vgpu_region_slot *slot = slot_of(part);
		uint64_t old, gone;

		if (!slot || part->grant->device_count > VGPU_SPILL_DEVICES)
			continue;
		old = __atomic_load_n(word_of(part, slot), __ATOMIC_RELAXED);
		do
			gone = old < bytes ? old : bytes;
		while (!__atomic_compare_exchange_n(word_of(part, slot), &old, old - gone, true,
						    __ATOMIC_RELAXED, __ATOMIC_RELAXED));
		bytes -= gone;
	}
}
