/* SPDX-License-Identifier: Apache-2.0
 *
 * Multicast objects. They have no memory of their own, but hold what is bound to
 * them: it stays charged when its handles are released, until it is unbound or the
 * last handle and mapping of the object are gone.
 */
#include "vgpu.h"

/* One for each binding: object, device and offset name it when it is undone. */
static uint64_t name_of(uint64_t object, CUdevice device, uint64_t offset)
{
	uint64_t name = (object ^ (uint64_t)(unsigned int)device << 48) * 0x9e3779b97f4a7c15u;

	name = (name ^ name >> 29 ^ offset) * 0xbf58476d1ce4e5b9u;
	return (name ^ name >> 31) | 1;
}

static uint64_t number_of(CUmemGenericAllocationHandle object)
{
	uint64_t number = vgpu_handle_hold(object);

	if (number)
		vgpu_number_let_go(number, 0);
	return number;
}

static void bound(CUmemGenericAllocationHandle object, CUdevice device, uint64_t offset,
		  uint64_t memory, CUresult result)
{
	struct vgpu_pointer binding = {.owner = memory};

	if (!memory)
		return;
	if (result != CUDA_SUCCESS) {
		vgpu_number_let_go(memory, 0);
		return;
	}
	/* No place for the note: charged until the process ends. */
	binding.count = number_of(object);
	binding.address = name_of(binding.count, device, offset);
	binding.context = (CUcontext)(uintptr_t)binding.count;
	vgpu_pointer_add(VGPU_BINDINGS, &binding);
}

/* The device of memory, which the first versions of the calls do not name. */
static CUdevice device_of(uint64_t memory)
{
	struct vgpu_card *card = memory ? vgpu_number_card(memory) : NULL;

	for (CUdevice device = 0; card && device < VGPU_MAX_CARDS; device++)
		if (vgpu_card_of_device(device) == card)
			return device;
	return -1;
}

void vgpu_bindings_forget(uint64_t object)
{
	struct vgpu_pointer binding;

	while (vgpu_pointer_take_context(VGPU_BINDINGS, (CUcontext)(uintptr_t)object, &binding))
		vgpu_number_let_go(binding.owner, 0);
}

VGPU_EXPORT CUresult cuMulticastCreate(CUmemGenericAllocationHandle *object,
				       const CUmulticastObjectProp *prop)
{
	__typeof__(&cuMulticastCreate) real = VGPU_REAL(cuMulticastCreate);
	__typeof__(&cuMemRelease) undo = VGPU_REAL(cuMemRelease);
	CUmemGenericAllocationHandle fresh = 0;
	CUresult result;

	if (!real || !undo)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() != VGPU_ON || !object)
		return real(object, prop);
	result = real(&fresh, prop);
	if (result != CUDA_SUCCESS)
		return result;
	if (vgpu_object_remember(fresh) != 0) {
		undo(fresh);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*object = fresh;
	return CUDA_SUCCESS;
}

VGPU_EXPORT CUresult cuMulticastAddDevice(CUmemGenericAllocationHandle object, CUdevice device)
{
	__typeof__(&cuMulticastAddDevice) real = VGPU_REAL(cuMulticastAddDevice);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(object, device);
	if (result == CUDA_SUCCESS && vgpu_state() == VGPU_ON)
		vgpu_object_is_multicast(object);
	return result;
}

VGPU_EXPORT CUresult cuMulticastBindMem(CUmemGenericAllocationHandle object, size_t offset,
					CUmemGenericAllocationHandle memory, size_t memory_offset,
					size_t bytes, unsigned long long flags)
{
	__typeof__(&cuMulticastBindMem) real = VGPU_REAL(cuMulticastBindMem);
	uint64_t held;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	held = vgpu_state() == VGPU_ON ? vgpu_handle_hold(memory) : 0;
	result = real(object, offset, memory, memory_offset, bytes, flags);
	bound(object, device_of(held), offset, held, result);
	return result;
}

VGPU_EXPORT CUresult cuMulticastBindMem_v2(CUmemGenericAllocationHandle object, CUdevice device,
					   size_t offset, CUmemGenericAllocationHandle memory,
					   size_t memory_offset, size_t bytes,
					   unsigned long long flags)
{
	__typeof__(&cuMulticastBindMem_v2) real = VGPU_REAL(cuMulticastBindMem_v2);
	uint64_t held;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	held = vgpu_state() == VGPU_ON ? vgpu_handle_hold(memory) : 0;
	result = real(object, device, offset, memory, memory_offset, bytes, flags);
	bound(object, device, offset, held, result);
	return result;
}

VGPU_EXPORT CUresult cuMulticastBindAddr(CUmemGenericAllocationHandle object, size_t offset,
					 CUdeviceptr pointer, size_t bytes,
					 unsigned long long flags)
{
	__typeof__(&cuMulticastBindAddr) real = VGPU_REAL(cuMulticastBindAddr);
	uint64_t held;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	held = vgpu_state() == VGPU_ON ? vgpu_mapping_hold(pointer) : 0;
	result = real(object, offset, pointer, bytes, flags);
	bound(object, device_of(held), offset, held, result);
	return result;
}

VGPU_EXPORT CUresult cuMulticastBindAddr_v2(CUmemGenericAllocationHandle object, CUdevice device,
					    size_t offset, CUdeviceptr pointer, size_t bytes,
					    unsigned long long flags)
{
	__typeof__(&cuMulticastBindAddr_v2) real = VGPU_REAL(cuMulticastBindAddr_v2);
	uint64_t held;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	held = vgpu_state() == VGPU_ON ? vgpu_mapping_hold(pointer) : 0;
	result = real(object, device, offset, pointer, bytes, flags);
	bound(object, device, offset, held, result);
	return result;
}

VGPU_EXPORT CUresult cuMulticastUnbind(CUmemGenericAllocationHandle object, CUdevice device,
				       size_t offset, size_t bytes)
{
	__typeof__(&cuMulticastUnbind) real = VGPU_REAL(cuMulticastUnbind);
	struct vgpu_pointer binding;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(object, device, offset, bytes);
	if (result == CUDA_SUCCESS && vgpu_state() == VGPU_ON &&
	    vgpu_pointer_take(VGPU_BINDINGS, name_of(number_of(object), device, offset), &binding))
		vgpu_number_let_go(binding.owner, 0);
	return result;
}
