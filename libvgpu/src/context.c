/* SPDX-License-Identifier: Apache-2.0
 *
 * A context that is destroyed takes its memory with it: no cuMemFree is seen.
 * Its pointers are forgotten and their bytes given back here.
 */
#include "vgpu.h"

#define KNOWN_DEVICES 64

/* The primary context of each device, since its reset names only the device. */
static CUcontext primaries[KNOWN_DEVICES];

CUcontext vgpu_primary_context(CUdevice device)
{
	return device >= 0 && device < KNOWN_DEVICES ? atomic_load(&primaries[device]) : NULL;
}

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

/* Release and reset: if the context is inactive afterwards, its memory is gone. */
static CUresult end_primary(int real_index, CUdevice device)
{
	CUresult (*real)(CUdevice) = (CUresult (*)(CUdevice))vgpu_real_at(real_index);
	__typeof__(&cuDevicePrimaryCtxGetState) get_state = VGPU_REAL(cuDevicePrimaryCtxGetState);
	unsigned int flags;
	int active = 1;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(device);
	if (result != CUDA_SUCCESS || device < 0 || device >= KNOWN_DEVICES || !get_state)
		return result;
	if (get_state(device, &flags, &active) == CUDA_SUCCESS && !active) {
		forget(atomic_load(&primaries[device]));
		if (vgpu_state() == VGPU_ON)
			vgpu_pools_device_ended(device);
	}
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
