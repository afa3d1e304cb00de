/* SPDX-License-Identifier: Apache-2.0
 *
 * A context that is destroyed takes its memory with it: no cuMemFree is seen.
 * Its pointers are forgotten and their bytes given back here.
 *
 * A green context holds the primary one and uses its memory: what was taken in it stays when
 * it is destroyed, and goes when the primary context goes, which the destruction of the last
 * green one may be. Its events end with itself.
 */
#include "vgpu.h"

#define KNOWN_DEVICES 64

/* The primary context of each device, since its reset names only the device. */
static CUcontext primaries[KNOWN_DEVICES];

CUcontext vgpu_primary_context(CUdevice device)
{
	return device >= 0 && device < KNOWN_DEVICES ? atomic_load(&primaries[device]) : NULL;
}

/* Contexts of green ones that took memory, perhaps, since their primary one began. */
#define KNOWN_GREEN 1024
static struct green {
	CUgreenCtx green; /* NULL: it is no more, its memory may be */
	CUcontext context;
	CUdevice device;
	int stage;
} greens[KNOWN_GREEN];
enum { FREE, BUSY, KNOWN };

static void forget(CUcontext context)
{
	struct vgpu_pointer pointer;

	if (!context || vgpu_state() != VGPU_ON)
		return;
	vgpu_pace_context_ended(context);
	while (vgpu_pointer_take_context(VGPU_POINTERS, context, &pointer))
		if (!pointer.owner)
			vgpu_pointer_freed(&pointer, 0);
	vgpu_opened_forget(context);
	while (vgpu_pointer_take_context(VGPU_ARRAYS, context, &pointer))
		vgpu_array_gone(&pointer);
	while (vgpu_pointer_take_context(VGPU_CONTEXT_LIMITS, context, &pointer))
		vgpu_give_back(pointer.card, pointer.bytes);
	vgpu_pools_synchronised(VGPU_ALL_STREAMS, context);
}

static CUresult destroy(int real_index, CUcontext context)
{
	CUresult (*real)(CUcontext) = (CUresult (*)(CUcontext))vgpu_real_at(real_index);
	CUcontext gone = context;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(context);
	if (result == CUDA_SUCCESS)
		forget(gone);
	return result;
}

VGPU_EXPORT CUresult cuCtxDestroy(CUcontext context)
{
	return destroy(VGPU_REAL_cuCtxDestroy, context);
}

VGPU_EXPORT CUresult cuCtxDestroy_v2(CUcontext context)
{
	return destroy(VGPU_REAL_cuCtxDestroy_v2, context);
}

VGPU_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	__typeof__(&cuDevicePrimaryCtxRetain) real = VGPU_REAL(cuDevicePrimaryCtxRetain);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(context, device);
	if (result == CUDA_SUCCESS && device >= 0 && device < KNOWN_DEVICES)
		atomic_store(&primaries[device], *context);
	return result;
}

static void forget_device(CUdevice device)
{
	forget(atomic_load(&primaries[device]));
	for (int i = 0; i < KNOWN_GREEN; i++) {
		struct green *one = &greens[i];

		if (atomic_load(&one->stage) != KNOWN || one->device != device)
			continue;
		forget(one->context);
		atomic_store(&one->stage, FREE);
	}
	if (vgpu_state() == VGPU_ON)
		vgpu_pools_device_ended(device);
}

/* Whether nothing holds the primary context any more. */
static bool has_ended(CUdevice device)
{
	__typeof__(&cuDevicePrimaryCtxGetState) get_state = VGPU_REAL(cuDevicePrimaryCtxGetState);
	unsigned int flags;
	int active = 1;

	return device >= 0 && device < KNOWN_DEVICES && get_state &&
	       get_state(device, &flags, &active) == CUDA_SUCCESS && !active;
}

/* Release and reset: if the context is inactive afterwards, its memory is gone. */
static CUresult end_primary(int real_index, CUdevice device)
{
	CUresult (*real)(CUdevice) = (CUresult (*)(CUdevice))vgpu_real_at(real_index);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(device);
	if (result == CUDA_SUCCESS && has_ended(device))
		forget_device(device);
	return result;
}

VGPU_EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice device)
{
	return end_primary(VGPU_REAL_cuDevicePrimaryCtxRelease, device);
}

VGPU_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	return end_primary(VGPU_REAL_cuDevicePrimaryCtxRelease_v2, device);
}

VGPU_EXPORT CUresult cuDevicePrimaryCtxReset(CUdevice device)
{
	return end_primary(VGPU_REAL_cuDevicePrimaryCtxReset, device);
}

VGPU_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	return end_primary(VGPU_REAL_cuDevicePrimaryCtxReset_v2, device);
}

/* With the table full, memory of this one stays charged until the process ends. */
static void remember(CUgreenCtx green, CUdevice device)
{
	__typeof__(&cuCtxFromGreenCtx) convert = VGPU_REAL(cuCtxFromGreenCtx);
	CUcontext context;

	if (vgpu_state() != VGPU_ON || !convert || convert(&context, green) != CUDA_SUCCESS)
		return;
	for (int i = 0; i < KNOWN_GREEN; i++) {
		struct green *one = &greens[i];
		int expected = FREE;

		if (!atomic_compare_exchange_strong(&one->stage, &expected, BUSY))
			continue;
		atomic_store(&one->green, green);
		one->context = context;
		one->device = device;
		atomic_store(&one->stage, KNOWN);
		return;
	}
}

VGPU_EXPORT CUresult cuGreenCtxCreate(CUgreenCtx *green, CUdevResourceDesc desc, CUdevice device,
				      unsigned int flags)
{
	__typeof__(&cuGreenCtxCreate) real = VGPU_REAL(cuGreenCtxCreate);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(green, desc, device, flags);
	if (result == CUDA_SUCCESS)
		remember(*green, device);
	return result;
}

VGPU_EXPORT CUresult cuGreenCtxDestroy(CUgreenCtx green)
{
	__typeof__(&cuGreenCtxDestroy) real = VGPU_REAL(cuGreenCtxDestroy);
	struct green *known = NULL;
	CUcontext context = NULL;
	CUdevice device = -1;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	for (int i = 0; i < KNOWN_GREEN && !known; i++)
		if (atomic_load(&greens[i].stage) == KNOWN &&
		    atomic_load(&greens[i].green) == green) {
			known = &greens[i];
			context = known->context;
			device = known->device;
			/* Another thread may be given the same handle as soon as it is free. */
			atomic_store(&known->green, NULL);
		}
	result = real(green);
	if (known && result != CUDA_SUCCESS)
		atomic_store(&known->green, green);
	if (!known || result != CUDA_SUCCESS)
		return result;
	vgpu_pace_context_ended(context);
	if (has_ended(device))
		forget_device(device);
	return result;
}
