/* SPDX-License-Identifier: Apache-2.0
 *
 * cuMemAlloc and cuMemFree.
 *
 * What is charged: the driver takes device memory in granules of 2 MiB and
 * serves small requests out of shared ones. Requests of 1 MiB and more are
 * charged in whole granules, smaller ones in steps of 512 bytes; what the
 * driver holds beyond that shows up in the region's overhead_bytes, which the
 * node measures. (From public documentation and reports; to be checked on a
 * card for each driver branch.)
 */
#include "vgpu.h"

#define GRANULE (UINT64_C(2) << 20)
#define BIG (UINT64_C(1) << 20)
#define SMALL_STEP UINT64_C(512)

static uint64_t charge_of(uint64_t bytes)
{
	uint64_t step = bytes >= BIG ? GRANULE : SMALL_STEP;

	if (bytes > UINT64_MAX - step)
		return UINT64_MAX;
	return (bytes + step - 1) / step * step;
}

static CUcontext current_context(void)
{
	__typeof__(&cuCtxGetCurrent) get_current = VGPU_REAL(cuCtxGetCurrent);
	CUcontext context = NULL;

	if (!get_current || get_current(&context) != CUDA_SUCCESS)
		return NULL;
	return context;
}

/* Before the driver's call. NULL card: nothing to charge. */
static CUresult before(struct vgpu_card **card, uint64_t charge)
{
	*card = NULL;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	*card = vgpu_card_current();
	if (*card && vgpu_reserve(*card, charge) != 0) {
		vgpu_log(VGPU_LOG_INFO, "an allocation of %llu bytes would pass the limit",
			 (unsigned long long)charge);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	return CUDA_SUCCESS;
}

/* After it. An error means: the caller must free what the driver gave. */
static CUresult after(struct vgpu_card *card, uint64_t charge, CUresult result, uint64_t address)
{
	struct vgpu_pointer pointer = {.address = address, .bytes = charge, .card = card};

	if (!card)
		return result;
	if (result == CUDA_SUCCESS) {
		pointer.context = current_context();
		if (vgpu_pointer_add(&pointer) == 0)
			return CUDA_SUCCESS;
		result = CUDA_ERROR_OUT_OF_MEMORY;
	} else if (result == CUDA_ERROR_OUT_OF_MEMORY) {
		vgpu_count_driver_oom(card);
	}
	vgpu_release(card, charge);
	return result;
}

VGPU_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
	__typeof__(&cuMemAlloc_v2) real = VGPU_REAL(cuMemAlloc_v2);
	__typeof__(&cuMemFree_v2) undo = VGPU_REAL(cuMemFree_v2);
	struct vgpu_card *card;
	CUdeviceptr address = 0;
	CUresult result;

	if (!real || !undo)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_OFF || !pointer || !bytes)
		return real(pointer, bytes); /* in the driver's own words */
	result = before(&card, charge_of(bytes));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, bytes);
	if (result == CUDA_SUCCESS) {
		result = after(card, charge_of(bytes), result, address);
		if (result == CUDA_SUCCESS)
			*pointer = address;
		else
			undo(address);
		return result;
	}
	return after(card, charge_of(bytes), result, 0);
}

/* The 32-bit functions of CUDA 2. Still exported, hence a way round a limit. */
VGPU_EXPORT CUresult cuMemAlloc(CUdeviceptr_v1 *pointer, unsigned int bytes)
{
	__typeof__(&cuMemAlloc) real = VGPU_REAL(cuMemAlloc);
	__typeof__(&cuMemFree) undo = VGPU_REAL(cuMemFree);
	struct vgpu_card *card;
	CUdeviceptr_v1 address = 0;
	CUresult result;

	if (!real || !undo)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_OFF || !pointer || !bytes)
		return real(pointer, bytes);
	result = before(&card, charge_of(bytes));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, bytes);
	if (result == CUDA_SUCCESS) {
		result = after(card, charge_of(bytes), result, address);
		if (result == CUDA_SUCCESS)
			*pointer = address;
		else
			undo(address);
		return result;
	}
	return after(card, charge_of(bytes), result, 0);
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
	known = vgpu_pointer_take(pointer, &entry);
	result = real(pointer);
	if (known && result == CUDA_SUCCESS)
		vgpu_release(entry.card, entry.bytes);
	else if (known)
		vgpu_pointer_add(&entry);
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
	known = vgpu_pointer_take(pointer, &entry);
	result = real(pointer);
	if (known && result == CUDA_SUCCESS)
		vgpu_release(entry.card, entry.bytes);
	else if (known)
		vgpu_pointer_add(&entry);
	return result;
}
