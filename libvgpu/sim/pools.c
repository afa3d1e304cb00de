/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: memory in the order of a stream, from pools. Nothing
 * runs, so memory is there at once and gone at once, and a pool keeps nothing in
 * reserve. It is a device's and not a context's: the end of the primary context
 * takes it along, that of another one does not.
 */
#include <stdlib.h>

#include "libcuda.h"

#define SIM_DEVICES 16

struct CUmemPoolHandle_st {
	CUdevice device; /* -1: the host's memory */
	bool alive;
};

static struct CUmemPoolHandle_st default_pools[SIM_DEVICES]; /* what they are is their place */

static bool is_default(CUmemoryPool pool)
{
	return pool >= default_pools && pool < default_pools + SIM_DEVICES;
}

SIM CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!pool)
		return CUDA_ERROR_INVALID_VALUE;
	if (sim_card_of(device) < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	*pool = &default_pools[device];
	return CUDA_SUCCESS;
}

SIM CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *props)
{
	CUmemoryPool fresh;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!pool || !props || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    props->location.type < CU_MEM_LOCATION_TYPE_DEVICE ||
	    props->location.type > CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT)
		return CUDA_ERROR_INVALID_VALUE;
	if (props->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
	    sim_card_of(props->location.id) < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	/* Never given back: a stale handle must be recognised, not followed. */
	fresh = calloc(1, sizeof(*fresh));
	if (!fresh)
		return CUDA_ERROR_OUT_OF_MEMORY;
	fresh->alive = true;
	fresh->device =
		props->location.type == CU_MEM_LOCATION_TYPE_DEVICE ? props->location.id : -1;
	*pool = fresh;
	return CUDA_SUCCESS;
}

SIM CUresult cuMemPoolDestroy(CUmemoryPool pool)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!pool || is_default(pool) || !pool->alive)
		return CUDA_ERROR_INVALID_VALUE;
	pool->alive = false;
	return CUDA_SUCCESS;
}

SIM CUresult cuMemAllocFromPoolAsync(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
				     CUstream stream)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	CUdevice device;

	(void)stream;
	if (result != CUDA_SUCCESS)
		return result;
	if (!pool || (!is_default(pool) && !pool->alive))
		return CUDA_ERROR_INVALID_VALUE;
	device = is_default(pool) ? (CUdevice)(pool - default_pools) : pool->device;
	if (device < 0)
		return CUDA_ERROR_NOT_SUPPORTED; /* needs no simulation: see cuMemCreate */
	return sim_allocate(sim_card_of(device), sim_primary(device), pointer, bytes, 0);
}

SIM CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
					  CUstream stream)
{
	return cuMemAllocFromPoolAsync(pointer, bytes, pool, stream);
}

SIM CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	CUcontext context;
	CUmemoryPool pool;
	CUresult result = cuStreamGetCtx(stream, &context);

	if (result == CUDA_SUCCESS)
		result = cuDeviceGetDefaultMemPool(&pool, context->device);
	return result == CUDA_SUCCESS ? cuMemAllocFromPoolAsync(pointer, bytes, pool, stream)
				      : result;
}

SIM CUresult cuMemAllocAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return cuMemAllocAsync(pointer, bytes, stream);
}

SIM CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	(void)stream;
	return result == CUDA_SUCCESS ? cuMemFree_v2(pointer) : result;
}

SIM CUresult cuMemFreeAsync_ptsz(CUdeviceptr pointer, CUstream stream)
{
	return cuMemFreeAsync(pointer, stream);
}
