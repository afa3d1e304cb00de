/* SPDX-License-Identifier: Apache-2.0
 *
 * cuMemAlloc, cuMemAllocManaged, cuMemAllocPitch and cuMemFree.
 *
 * What is charged: the driver takes device memory in granules of 2 MiB and
 * serves small requests out of shared ones. Requests of 1 MiB and more are
 * charged in whole granules, smaller ones in steps of 512 bytes; what the
 * driver holds beyond that shows up in the region's overhead_bytes, which the
 * node measures. (From public documentation and reports; to be checked on a
 * card for each driver branch.)
 */
#include "shares.h"
#include "vgpu.h"

#define GRANULE (UINT64_C(2) << 20)
#define BIG (UINT64_C(1) << 20)
#define SMALL_STEP UINT64_C(512)
#define PITCH_STEP UINT64_C(512) /* what cards have, as far as is known */

uint64_t vgpu_charge_of(uint64_t bytes)
{
	uint64_t step = bytes >= BIG ? GRANULE : SMALL_STEP;

	if (bytes > UINT64_MAX - step)
		return UINT64_MAX;
	return (bytes + step - 1) / step * step;
}

CUcontext vgpu_current_context(void)
{
	__typeof__(&cuCtxGetCurrent) get_current = VGPU_REAL(cuCtxGetCurrent);
	CUcontext context = NULL;

	if (!get_current || get_current(&context) != CUDA_SUCCESS)
		return NULL;
	return context;
}

/* As the driver does, what pools keep is taken back before anything is refused. */
int vgpu_try_charge(struct vgpu_card *card, uint64_t charge)
{
	int result = vgpu_reserve(card, charge);

	return result != 0 && vgpu_pools_trim(card) ? vgpu_reserve(card, charge) : result;
}

CUresult vgpu_refuse(struct vgpu_card *card, uint64_t charge)
{
	vgpu_count_refused(card);
	vgpu_log(VGPU_LOG_INFO, "an allocation of %llu bytes would pass the limit",
		 (unsigned long long)charge);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult vgpu_charge(struct vgpu_card *card, uint64_t charge)
{
	return vgpu_try_charge(card, charge) == 0 ? CUDA_SUCCESS : vgpu_refuse(card, charge);
}

/* Before the driver's call. NULL card: nothing to charge. */
static CUresult before(struct vgpu_card **card, uint64_t charge)
{
	*card = NULL;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	*card = vgpu_card_current();
	return *card ? vgpu_charge(*card, charge) : CUDA_SUCCESS;
}

/* After it: what the driver gave is on the books, or is the driver's again. */
CUresult vgpu_charged(const struct vgpu_pointer *pointer, CUresult result)
{
	__typeof__(&cuMemFree_v2) undo = VGPU_REAL(cuMemFree_v2);

	if (!pointer->card)
		return result;
	if (result == CUDA_SUCCESS) {
		if (vgpu_pointer_add(VGPU_POINTERS, pointer) == 0) {
			vgpu_count_spilled(pointer->card, pointer->count);
			return CUDA_SUCCESS;
		}
		if (undo)
			undo(pointer->address);
		result = CUDA_ERROR_OUT_OF_MEMORY;
	} else if (result == CUDA_ERROR_OUT_OF_MEMORY) {
		vgpu_count_driver_oom(pointer->card);
	}
	vgpu_release(pointer->card, pointer->bytes);
	return result;
}

static CUresult note(struct vgpu_card *card, uint64_t charge, CUresult result, uint64_t address,
		     bool spilled)
{
	struct vgpu_pointer pointer = {
		.address = address, .bytes = charge, .card = card, .count = spilled ? charge : 0};

	if (card && result == CUDA_SUCCESS)
		pointer.context = vgpu_current_context();
	return vgpu_charged(&pointer, result);
}

static CUresult after(struct vgpu_card *card, uint64_t charge, CUresult result, uint64_t address)
{
	return note(card, charge, result, address, false);
}

/* The same for memory that may be the host's instead. */
static CUresult after_or_spill(struct vgpu_card *card, uint64_t bytes, CUresult result,
			       CUdeviceptr *address)
{
	bool full = result == CUDA_ERROR_OUT_OF_MEMORY && card && vgpu_card_spills(card);

	if (full)
		result = vgpu_spill(address, bytes);
	return note(card, vgpu_charge_of(bytes), result, *address, full);
}

VGPU_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
	__typeof__(&cuMemAlloc_v2) real = VGPU_REAL(cuMemAlloc_v2);
	struct vgpu_card *card;
	CUdeviceptr address = 0;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_OFF || !pointer || !bytes)
		return real(pointer, bytes); /* in the driver's own words */
	result = before(&card, vgpu_charge_of(bytes));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, bytes);
	result = after_or_spill(card, bytes, result, &address);
	if (result == CUDA_SUCCESS)
		*pointer = address;
	return result;
}

/* The 32-bit functions of CUDA 2. Still exported, hence a way round a limit. What is the
 * host's has addresses that they cannot tell. */
VGPU_EXPORT CUresult cuMemAlloc(CUdeviceptr_v1 *pointer, unsigned int bytes)
{
	__typeof__(&cuMemAlloc) real = VGPU_REAL(cuMemAlloc);
	struct vgpu_card *card;
	CUdeviceptr_v1 address = 0;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_OFF || !pointer || !bytes)
		return real(pointer, bytes);
	result = before(&card, vgpu_charge_of(bytes));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, bytes);
	result = after(card, vgpu_charge_of(bytes), result, address);
	if (result == CUDA_SUCCESS)
		*pointer = address;
	return result;
}

/* Wherever its pages are at the moment: all of them can be on the card at once. */
VGPU_EXPORT CUresult cuMemAllocManaged(CUdeviceptr *pointer, size_t bytes, unsigned int flags)
{
	__typeof__(&cuMemAllocManaged) real = VGPU_REAL(cuMemAllocManaged);
	struct vgpu_card *card;
	CUdeviceptr address = 0;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_OFF || !pointer || !bytes)
		return real(pointer, bytes, flags);
	result = before(&card, vgpu_charge_of(bytes));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, bytes, flags);
	result = after(card, vgpu_charge_of(bytes), result, address);
	if (result == CUDA_SUCCESS)
		*pointer = address;
	return result;
}

static uint64_t charge_of_rows(uint64_t row, uint64_t height)
{
	return row > UINT64_MAX / height ? UINT64_MAX : vgpu_charge_of(row * height);
}

static uint64_t expected_charge(uint64_t width, uint64_t height)
{
	if (width > UINT64_MAX - PITCH_STEP)
		return UINT64_MAX;
	return charge_of_rows((width + PITCH_STEP - 1) / PITCH_STEP * PITCH_STEP, height);
}

/* How long a row became is known only when the driver has allocated it. Should
 * that be more than expected, the rest is reserved now, or the memory goes back. */
static CUresult after_rows(struct vgpu_card *card, uint64_t expected, uint64_t charge,
			   CUresult result, uint64_t address)
{
	__typeof__(&cuMemFree_v2) undo = VGPU_REAL(cuMemFree_v2);

	if (!card || result != CUDA_SUCCESS)
		return after(card, expected, result, address);
	if (charge > expected && vgpu_charge(card, charge - expected) != CUDA_SUCCESS) {
		if (undo)
			undo(address);
		vgpu_release(card, expected);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (charge < expected)
		vgpu_release(card, expected - charge);
	return after(card, charge, result, address);
}

VGPU_EXPORT CUresult cuMemAllocPitch_v2(CUdeviceptr *pointer, size_t *pitch, size_t width,
					size_t height, unsigned int element)
{
	__typeof__(&cuMemAllocPitch_v2) real = VGPU_REAL(cuMemAllocPitch_v2);
	struct vgpu_card *card;
	CUdeviceptr address = 0;
	size_t row = 0;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_OFF || !pointer || !pitch || !width || !height)
		return real(pointer, pitch, width, height, element);
	result = before(&card, expected_charge(width, height));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, &row, width, height, element);
	if (result == CUDA_ERROR_OUT_OF_MEMORY) {
		row = (width + PITCH_STEP - 1) / PITCH_STEP * PITCH_STEP;
		result = after_or_spill(card, row * height, result, &address);
	} else {
		result = after_rows(card, expected_charge(width, height),
				    charge_of_rows(row, height), result, address);
	}
	if (result == CUDA_SUCCESS) {
		*pointer = address;
		*pitch = row;
	}
	return result;
}

VGPU_EXPORT CUresult cuMemAllocPitch(CUdeviceptr_v1 *pointer, unsigned int *pitch,
				     unsigned int width, unsigned int height, unsigned int element)
{
	__typeof__(&cuMemAllocPitch) real = VGPU_REAL(cuMemAllocPitch);
	struct vgpu_card *card;
	CUdeviceptr_v1 address = 0;
	unsigned int row = 0;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_OFF || !pointer || !pitch || !width || !height)
		return real(pointer, pitch, width, height, element);
	result = before(&card, expected_charge(width, height));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, &row, width, height, element);
	result = after_rows(card, expected_charge(width, height), charge_of_rows(row, height),
			    result, address);
	if (result == CUDA_SUCCESS) {
		*pointer = address;
		*pitch = row;
	}
	return result;
}

/* stream: that is to free it; 0 = it is free. */
void vgpu_pointer_freed(const struct vgpu_pointer *entry, uint64_t stream)
{
	uint64_t bytes = entry->share ? vgpu_share_leave(entry->share) : entry->bytes;

	if (entry->card)
		vgpu_count_unspilled(entry->card, entry->count);
	if (entry->owner)
		vgpu_pool_freed((struct vgpu_pool *)(uintptr_t)entry->owner, stream);
	else if (!entry->card)
		return;
	else if (stream && bytes)
		vgpu_pool_bury(entry->card, bytes, stream);
	else
		vgpu_release(entry->card, bytes);
}

/* The entry leaves the table before the driver frees: right after that another
 * thread may be given the same address. */
VGPU_EXPORT CUresult cuMemFree_v2(CUdeviceptr pointer)
{
	__typeof__(&cuMemFree_v2) real = VGPU_REAL(cuMemFree_v2);
	struct vgpu_pointer entry;
	bool known;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	known = vgpu_pointer_take(VGPU_POINTERS, pointer, &entry);
	result = real(pointer);
	if (known && result == CUDA_SUCCESS)
		vgpu_pointer_freed(&entry, 0);
	else if (known)
		vgpu_pointer_add(VGPU_POINTERS, &entry);
	return result;
}

VGPU_EXPORT CUresult cuMemFree(CUdeviceptr_v1 pointer)
{
	__typeof__(&cuMemFree) real = VGPU_REAL(cuMemFree);
	struct vgpu_pointer entry;
	bool known;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	known = vgpu_pointer_take(VGPU_POINTERS, pointer, &entry);
	result = real(pointer);
	if (known && result == CUDA_SUCCESS)
		vgpu_pointer_freed(&entry, 0);
	else if (known)
		vgpu_pointer_add(VGPU_POINTERS, &entry);
	return result;
}
