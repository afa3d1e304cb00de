/* SPDX-License-Identifier: Apache-2.0
 *
 * CUDA's memory figures: the share instead of the card. The driver is asked
 * first, with the caller's own pointers, so that NULL pointers, missing contexts
 * and bad devices are answered as it answers them.
 */
#include "vgpu.h"

/* What is promised: no more than there is, unless the host has the rest. */
static size_t promise(struct vgpu_card *card, uint64_t share, uint64_t driver)
{
	return (size_t)(share < driver || vgpu_card_spills(card) ? share : driver);
}

static unsigned int promise_narrow(struct vgpu_card *card, uint64_t share, uint64_t driver)
{
	size_t bytes = promise(card, share, driver);

	return bytes < UINT32_MAX ? (unsigned int)bytes : UINT32_MAX;
}

VGPU_EXPORT CUresult cuMemGetInfo_v2(size_t *available, size_t *total)
{
	__typeof__(&cuMemGetInfo_v2) real = VGPU_REAL(cuMemGetInfo_v2);
	struct vgpu_card *card;
	uint64_t limit, used;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(available, total);
	card = result == CUDA_SUCCESS ? vgpu_card_current() : NULL;
	if (!card || !vgpu_card_usage(card, &limit, &used))
		return result;
	/* Free never promises more than the card still has. */
	if (available)
		*available = promise(card, limit - used, *available);
	if (total)
		*total = promise(card, limit, *total);
	return result;
}

VGPU_EXPORT CUresult cuMemGetInfo(unsigned int *available, unsigned int *total)
{
	__typeof__(&cuMemGetInfo) real = VGPU_REAL(cuMemGetInfo);
	struct vgpu_card *card;
	uint64_t limit, used;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(available, total);
	card = result == CUDA_SUCCESS ? vgpu_card_current() : NULL;
	if (!card || !vgpu_card_usage(card, &limit, &used))
		return result;
	if (available)
		*available = promise_narrow(card, limit - used, *available);
	if (total)
		*total = promise_narrow(card, limit, *total);
	return result;
}

VGPU_EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
	__typeof__(&cuDeviceTotalMem_v2) real = VGPU_REAL(cuDeviceTotalMem_v2);
	struct vgpu_card *card;
	uint64_t limit, used;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(bytes, device);
	card = result == CUDA_SUCCESS ? vgpu_card_of_device(device) : NULL;
	if (card && bytes && vgpu_card_usage(card, &limit, &used))
		*bytes = promise(card, limit, *bytes);
	return result;
}

VGPU_EXPORT CUresult cuDeviceTotalMem(unsigned int *bytes, CUdevice device)
{
	__typeof__(&cuDeviceTotalMem) real = VGPU_REAL(cuDeviceTotalMem);
	struct vgpu_card *card;
	uint64_t limit, used;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(bytes, device);
	card = result == CUDA_SUCCESS ? vgpu_card_of_device(device) : NULL;
	if (card && bytes && vgpu_card_usage(card, &limit, &used))
		*bytes = promise_narrow(card, limit, *bytes);
	return result;
}
