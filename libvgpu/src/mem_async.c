/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory in the order of a stream: cuMemAllocAsync and its kin. It comes from a
 * pool, and a pool is a device's: the one that the pool was made for, else the
 * stream's, which need not be the current context's.
 *
 * Charged is what the program asked for, from the call that allocates to the call
 * that frees. What a pool keeps beyond that, unused or not yet freed by its stream,
 * is the driver's, and shows up in the region's overhead_bytes.
 *
 * Contexts other than the primary one end without their device's pools. So it is
 * the end of the primary one that gives these bytes back.
 */
#include "vgpu.h"

#define NO_DEVICE (-1)
#define HOST_MEMORY (-2)
#define SPECIAL_STREAMS 2 /* NULL, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD */

static CUdevice current_device(void)
{
	__typeof__(&cuCtxGetDevice) get_device = VGPU_REAL(cuCtxGetDevice);
	CUdevice device;

	return get_device && get_device(&device) == CUDA_SUCCESS ? device : NO_DEVICE;
}

static CUdevice device_of_stream(CUstream stream)
{
	__typeof__(&cuStreamGetCtx) get_context = VGPU_REAL(cuStreamGetCtx);
	__typeof__(&cuCtxGetCurrent) get_current = VGPU_REAL(cuCtxGetCurrent);
	__typeof__(&cuCtxPushCurrent_v2) push = VGPU_REAL(cuCtxPushCurrent_v2);
	__typeof__(&cuCtxPopCurrent_v2) pop = VGPU_REAL(cuCtxPopCurrent_v2);
	CUcontext context = NULL, current = NULL;
	CUdevice device;

	if ((uintptr_t)stream <= SPECIAL_STREAMS || !get_context || !get_current || !push || !pop ||
	    get_context(stream, &context) != CUDA_SUCCESS ||
	    get_current(&current) != CUDA_SUCCESS || context == current ||
	    push(context) != CUDA_SUCCESS)
		return current_device();
	device = current_device();
	pop(&context);
	return device;
}

static void note_pool(CUmemoryPool pool, CUdevice device)
{
	struct vgpu_pointer entry = {.address = (uintptr_t)pool,
				     .owner = (uint64_t)(int64_t)device};

	vgpu_pointer_add(VGPU_POOLS, &entry); /* not noted: it is asked for again */
}

/* A pool that is neither made here nor a default one counts to the stream's card:
 * too much rather than nothing. */
static CUdevice device_of_pool(CUmemoryPool pool, CUstream stream)
{
	__typeof__(&cuDeviceGetDefaultMemPool) get_default = VGPU_REAL(cuDeviceGetDefaultMemPool);
	struct vgpu_pointer entry;
	CUmemoryPool candidate;

	if (vgpu_pointer_find(VGPU_POOLS, (uintptr_t)pool, &entry))
		return (CUdevice)(int64_t)entry.owner;
	for (CUdevice device = 0; get_default && get_default(&candidate, device) == CUDA_SUCCESS;
	     device++)
		if (candidate == pool) {
			note_pool(pool, device);
			return device;
		}
	return device_of_stream(stream);
}

/* Before the driver's call. No card: nothing to charge. */
static CUresult before(struct vgpu_pointer *pointer, CUdevice device, size_t bytes)
{
	pointer->card = vgpu_card_of_device(device);
	if (!pointer->card)
		return CUDA_SUCCESS;
	pointer->bytes = vgpu_charge_of(bytes);
	pointer->context = vgpu_primary_context(device);
	return vgpu_charge(pointer->card, pointer->bytes);
}

static CUresult allocate(int real_index, CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	__typeof__(&cuMemAllocAsync) real = (__typeof__(&cuMemAllocAsync))vgpu_real_at(real_index);
	struct vgpu_pointer entry = {0};
	CUdeviceptr address = 0;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (vgpu_state() == VGPU_OFF || !pointer || !bytes)
		return real(pointer, bytes, stream); /* in the driver's own words */
	result = before(&entry, device_of_stream(stream), bytes);
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, bytes, stream);
	entry.address = address;
	result = vgpu_charged(&entry, result);
	if (result == CUDA_SUCCESS)
		*pointer = address;
	return result;
}

static CUresult allocate_from(int real_index, CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
			      CUstream stream)
{
	__typeof__(&cuMemAllocFromPoolAsync) real =
		(__typeof__(&cuMemAllocFromPoolAsync))vgpu_real_at(real_index);
	struct vgpu_pointer entry = {0};
	CUdeviceptr address = 0;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (vgpu_state() == VGPU_OFF || !pointer || !bytes || !pool)
		return real(pointer, bytes, pool, stream);
	result = before(&entry, device_of_pool(pool, stream), bytes);
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, bytes, pool, stream);
	entry.address = address;
	result = vgpu_charged(&entry, result);
	if (result == CUDA_SUCCESS)
		*pointer = address;
	return result;
}

/* The entry leaves the table before the driver frees: see cuMemFree_v2. */
static CUresult give_back(int real_index, CUdeviceptr pointer, CUstream stream)
{
	__typeof__(&cuMemFreeAsync) real = (__typeof__(&cuMemFreeAsync))vgpu_real_at(real_index);
	struct vgpu_pointer entry;
	bool known;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	known = vgpu_pointer_take(VGPU_POINTERS, pointer, &entry);
	result = real(pointer, stream);
	if (known && result == CUDA_SUCCESS)
		vgpu_release(entry.card, entry.bytes);
	else if (known)
		vgpu_pointer_add(VGPU_POINTERS, &entry);
	return result;
}

VGPU_EXPORT CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return allocate(VGPU_REAL_cuMemAllocAsync, pointer, bytes, stream);
}

VGPU_EXPORT CUresult cuMemAllocAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return allocate(VGPU_REAL_cuMemAllocAsync_ptsz, pointer, bytes, stream);
}

VGPU_EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
					     CUstream stream)
{
	return allocate_from(VGPU_REAL_cuMemAllocFromPoolAsync, pointer, bytes, pool, stream);
}

VGPU_EXPORT CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *pointer, size_t bytes,
						  CUmemoryPool pool, CUstream stream)
{
	return allocate_from(VGPU_REAL_cuMemAllocFromPoolAsync_ptsz, pointer, bytes, pool, stream);
}

VGPU_EXPORT CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream)
{
	return give_back(VGPU_REAL_cuMemFreeAsync, pointer, stream);
}

VGPU_EXPORT CUresult cuMemFreeAsync_ptsz(CUdeviceptr pointer, CUstream stream)
{
	return give_back(VGPU_REAL_cuMemFreeAsync_ptsz, pointer, stream);
}

VGPU_EXPORT CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *props)
{
	__typeof__(&cuMemPoolCreate) real = VGPU_REAL(cuMemPoolCreate);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(pool, props);
	if (result != CUDA_SUCCESS || vgpu_state() != VGPU_ON || !pool || !props)
		return result;
	if (vgpu_device_of_location(&props->location) >= 0)
		note_pool(*pool, vgpu_device_of_location(&props->location));
	else if (props->location.type >= CU_MEM_LOCATION_TYPE_HOST &&
		 props->location.type <= CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT)
		note_pool(*pool, HOST_MEMORY);
	return result;
}

VGPU_EXPORT CUresult cuMemPoolDestroy(CUmemoryPool pool)
{
	__typeof__(&cuMemPoolDestroy) real = VGPU_REAL(cuMemPoolDestroy);
	struct vgpu_pointer entry;
	bool known;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	known = vgpu_pointer_take(VGPU_POOLS, (uintptr_t)pool, &entry);
	result = real(pool);
	if (known && result != CUDA_SUCCESS)
		vgpu_pointer_add(VGPU_POOLS, &entry);
	return result;
}
