/* SPDX-License-Identifier: Apache-2.0 */
/* Memory in the order of a stream: charged to the card of the pool or of the
 * stream, in whole steps of the pool, until the pool gives it back. */
#include "world.h"

static struct channel talk;

static uint64_t used(const char *grant)
{
	return world_region(grant)->devices[0].used_bytes;
}

static void limit(void)
{
	CUdeviceptr pointer, rest, refused = 0xabc;
	CUstream stream;

	use_gpu();
	OK(cuStreamCreate(&stream, 0));
	OK(cuMemAllocAsync(&pointer, 2998 * MIB, stream));
	IS(used("uid_gpu"), 2998 * MIB);
	IS(cuMemAllocAsync(&refused, 2 * MIB + 1, stream), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAllocAsync_ptsz(&refused, 2 * MIB + 1, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAlloc_v2(&refused, 2 * MIB + 1), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAllocAsync(&refused, 0, stream), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAllocAsync(NULL, MIB, stream), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAllocAsync(&refused, SIZE_MAX, stream), CUDA_ERROR_OUT_OF_MEMORY);
	IS(refused, 0xabc);
	IS(world_region("uid_gpu")->devices[0].oom_count, 4);
	OK(cuMemAllocAsync_ptsz(&rest, 2 * MIB, NULL));
	IS(used("uid_gpu"), 3000 * MIB);
	OK(cuMemFreeAsync_ptsz(rest, NULL));
	OK(cuMemFreeAsync(pointer, stream));
	OK(cuStreamSynchronize(stream));
	IS(used("uid_gpu"), 0);
	IS(cuMemFreeAsync(pointer, stream), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemFreeAsync(0x1234, stream), CUDA_ERROR_INVALID_VALUE);
	/* Either kind of memory may be freed either way. */
	OK(cuMemAllocAsync(&pointer, 100 * MIB, stream));
	OK(cuMemFree_v2(pointer));
	OK(cuMemFreeAsync(must_alloc(100), stream));
	OK(cuStreamSynchronize(stream));
	IS(used("uid_gpu"), 0);
	IS(cuMemFree_v2(pointer), CUDA_ERROR_INVALID_VALUE);
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
}

static void pools(void)
{
	CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
				.location = {CU_MEM_LOCATION_TYPE_DEVICE, 1}};
	CUdeviceptr first, second, refused = 0xabc;
	CUmemoryPool made, standard, host;

	use_gpu(); /* the first card's context; the pools are the second's */
	OK(cuMemPoolCreate(&made, &props));
	OK(cuDeviceGetDefaultMemPool(&standard, 1));
	OK(cuMemAllocFromPoolAsync(&first, 60 * MIB, made, NULL));
	OK(cuMemAllocFromPoolAsync_ptsz(&second, 30 * MIB, standard, NULL));
	IS(used("uid_second"), 90 * MIB);
	IS(used("uid_gpu"), 0);
	IS(cuMemAllocFromPoolAsync(&refused, 12 * MIB, made, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAllocFromPoolAsync(&refused, 12 * MIB, standard, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAllocFromPoolAsync(&refused, MIB, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(refused, 0xabc);
	IS(cuMemPoolDestroy(standard), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemPoolDestroy(made));
	IS(cuMemPoolDestroy(made), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAllocFromPoolAsync(&refused, MIB, made, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(used("uid_second"), 90 * MIB);
	OK(cuMemFreeAsync(first, NULL));
	IS(used("uid_second"), 90 * MIB); /* until the stream is known to be there */
	OK(cuMemFree_v2(second));
	OK(cuStreamSynchronize(NULL));
	IS(used("uid_second"), 0);
	IS(used("uid_gpu"), 0);
	IS(card_used(1), 0);
	/* The host's memory is no card's: whatever the driver says, it is not refused here. */
	props.location.type = CU_MEM_LOCATION_TYPE_HOST;
	OK(cuMemPoolCreate(&host, &props));
	IS(cuMemAllocFromPoolAsync(&refused, 4000 * MIB, host, NULL), CUDA_ERROR_NOT_SUPPORTED);
	IS(used("uid_gpu"), 0);
}

/* Makes the stream's memory stay in use for a while. */
static void occupy(CUstream stream, uint64_t ms)
{
	uint64_t ns = ms * 1000000;
	void *params[] = {&ns};
	CUmodule module;
	CUfunction busy;

	OK(cuModuleLoadData(&module, "x"));
	OK(cuModuleGetFunction(&busy, module, "busy_ns"));
	OK(cuLaunchKernel(busy, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
}

static void kept(void)
{
	cuuint64_t threshold = 1000 * MIB, reserved;
	CUdeviceptr pointer, other, refused = 0xabc;
	CUmemoryPool pool;
	CUstream stream;

	use_gpu();
	OK(cuStreamCreate(&stream, 0));
	OK(cuDeviceGetMemPool(&pool, 0));
	/* Freed by a stream that is not there yet: what it holds cannot be had twice. */
	OK(cuMemAllocAsync(&pointer, 2000 * MIB, stream));
	occupy(stream, 100);
	OK(cuMemFreeAsync(pointer, stream));
	IS(used("uid_gpu"), 2000 * MIB);
	IS(cuMemAlloc_v2(&refused, 1002 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	/* The same stream may use it again at once. */
	OK(cuMemAllocAsync(&pointer, 2000 * MIB, stream));
	IS(used("uid_gpu"), 2000 * MIB);
	occupy(stream, 50);
	OK(cuMemFreeAsync(pointer, stream));
	OK(cuStreamSynchronize(stream));
	IS(used("uid_gpu"), 0);
	/* The program keeps memory beyond a synchronisation ... */
	OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
	OK(cuMemAllocAsync(&pointer, 500 * MIB, stream));
	OK(cuMemAllocAsync(&other, 400 * MIB, stream));
	OK(cuMemFreeAsync(pointer, stream));
	OK(cuMemFreeAsync(other, stream));
	OK(cuCtxSynchronize());
	IS(used("uid_gpu"), 900 * MIB);
	IS(card_used(0), 900 * MIB);
	OK(cuMemPoolTrimTo(pool, 450 * MIB));
	OK(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved));
	IS(used("uid_gpu"), reserved);
	/* ... but not beyond an allocation that needs it. */
	pointer = must_alloc(3000);
	IS(used("uid_gpu"), 3000 * MIB);
	IS(card_used(0), 3000 * MIB);
	OK(cuMemFree_v2(pointer));
	IS(used("uid_gpu"), 0);
	/* Memory of cuMemAlloc that a stream frees stays charged as long. */
	pointer = must_alloc(2000);
	occupy(stream, 50);
	OK(cuMemFreeAsync(pointer, stream));
	IS(cuMemAlloc_v2(&refused, 1002 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuStreamSynchronize(NULL));
	IS(used("uid_gpu"), 2000 * MIB);
	OK(cuStreamSynchronize(stream));
	IS(used("uid_gpu"), 0);
	IS(refused, 0xabc);
	CHECK(card_peak(0) <= 3000 * MIB);
}

/* A pool that was filled and emptied serves small pieces of its one segment. */
static void primed(void)
{
	cuuint64_t threshold = UINT64_MAX;
	CUdeviceptr whole, pieces[30];
	CUmemoryPool pool;

	use_gpu();
	OK(cuDeviceGetDefaultMemPool(&pool, 0));
	OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
	OK(cuMemAllocAsync(&whole, 3000 * MIB, NULL));
	OK(cuMemFreeAsync(whole, NULL));
	for (int i = 0; i < 30; i++) {
		OK(cuMemAllocAsync(&pieces[i], 100 * MIB, NULL));
		CHECK(used("uid_gpu") <= 3000 * MIB);
	}
	IS(cuMemAllocAsync(&whole, 1, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	for (int i = 0; i < 30; i++)
		OK(cuMemFreeAsync(pieces[i], NULL));
	OK(cuMemPoolTrimTo(pool, 0));
	IS(used("uid_gpu"), 0);
	CHECK(card_peak(0) <= 3000 * MIB);
}

static void contexts(void)
{
	CUcontext primary, own, current;
	CUdeviceptr pointer, lost, refused = 0xabc;
	CUstream stream;

	use_gpu();
	OK(cuCtxGetCurrent(&primary));
	OK(cuCtxCreate_v2(&own, 0, 1));
	OK(cuStreamCreate(&stream, 0));
	OK(cuCtxSetCurrent(primary));
	/* The stream says where, not the current context. */
	OK(cuMemAllocAsync(&pointer, 60 * MIB, stream));
	IS(used("uid_second"), 60 * MIB);
	IS(used("uid_gpu"), 0);
	IS(cuMemAllocAsync(&refused, 60 * MIB, stream), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuCtxGetCurrent(&current));
	CHECK(current == primary);
	OK(cuStreamDestroy_v2(stream));
	OK(cuCtxDestroy_v2(own));
	IS(used("uid_second"), 60 * MIB);
	OK(cuMemFreeAsync(pointer, NULL));
	OK(cuStreamSynchronize(NULL));
	IS(used("uid_second"), 0);
	OK(cuMemAllocAsync(&lost, 60 * MIB, NULL));
	IS(used("uid_gpu"), 60 * MIB);
	OK(cuDevicePrimaryCtxReset_v2(0));
	IS(used("uid_gpu"), 0);
	use_gpu();
	IS(cuMemFreeAsync(lost, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(used("uid_gpu"), 0);
}

/* Waiting in one context says nothing of another one's streams. */
static void two_contexts(void)
{
	CUcontext primary, own;
	CUdeviceptr pointer;
	CUstream stream;

	use_gpu();
	OK(cuCtxGetCurrent(&primary));
	OK(cuStreamCreate(&stream, 0));
	pointer = must_alloc(2000);
	occupy(stream, 30);
	OK(cuMemFreeAsync(pointer, stream));
	OK(cuCtxCreate_v2(&own, 0, 0));
	OK(cuCtxSynchronize());
	OK(cuStreamSynchronize(NULL));
	IS(used("uid_gpu"), 2000 * MIB);
	OK(cuCtxSetCurrent(primary));
	OK(cuCtxSynchronize());
	IS(used("uid_gpu"), 0);
	/* A context that ends takes along what its streams were to free. */
	OK(cuCtxSetCurrent(own));
	pointer = must_alloc(1000);
	OK(cuStreamCreate(&stream, 0));
	occupy(stream, 30);
	OK(cuMemFreeAsync(pointer, stream));
	IS(used("uid_gpu"), 1000 * MIB);
	OK(cuCtxDestroy_v2(own));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
}

/* A pool that grows in greater steps than is known: it is charged what it took, or
 * the memory goes back; and the next time it is known. */
static void coarse(void)
{
	CUdeviceptr pointer, first, refused = 0xabc;
	CUcontext context;

	world_last_card("pool_step_mib = 32\n");
	OK(cuInit(0));
	OK(cuDevicePrimaryCtxRetain(&context, 1));
	OK(cuCtxSetCurrent(context));
	OK(cuMemAlloc_v2(&pointer, 90 * MIB));
	IS(cuMemAllocAsync(&refused, MIB, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	IS(used("uid_second"), 90 * MIB);
	IS(card_used(1), 90 * MIB);
	IS(refused, 0xabc);
	OK(cuMemFree_v2(pointer));
	OK(cuMemAllocAsync(&first, MIB, NULL));
	IS(used("uid_second"), 32 * MIB);
	for (int i = 1; i < 32; i++)
		OK(cuMemAllocAsync(&pointer, MIB, NULL));
	IS(used("uid_second"), 32 * MIB);
	OK(cuMemAlloc_v2(&pointer, 68 * MIB));
	IS(used("uid_second"), 100 * MIB);
	/* What is free in the pool could be in pieces: it needs room to grow. */
	OK(cuMemFreeAsync(first, NULL));
	IS(cuMemAllocAsync(&refused, MIB, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	IS(used("uid_second"), 100 * MIB);
	IS(card_used(1), 100 * MIB);
	OK(cuMemFree_v2(pointer));
	OK(cuMemAllocAsync(&first, MIB, NULL));
	IS(used("uid_second"), 32 * MIB);
}

static void hold(void)
{
	CUdeviceptr pointer;

	use_gpu();
	OK(cuMemAllocAsync(&pointer, 2000 * MIB, NULL));
	channel_tell(talk.up[1]);
	channel_hear(talk.down[0]);
}

static void beside(void)
{
	CUdeviceptr pointer;

	use_gpu();
	IS(cuMemAllocAsync(&pointer, 1002 * MIB, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemAllocAsync(&pointer, 1000 * MIB, NULL));
	IS(used("uid_gpu"), 3000 * MIB);
}

int main(void)
{
	int child;

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	world_grant("uid_second", CARD_B, 100, NULL, 0);
	channel_open(&talk);
	OK(in_child(limit));
	OK(in_child(pools));
	OK(in_child(kept));
	OK(in_child(primed));
	OK(in_child(contexts));
	OK(in_child(two_contexts));
	child = start_child(hold);
	channel_hear(talk.up[0]);
	OK(in_child(beside));
	channel_tell(talk.down[1]);
	OK(wait_child(child));
	OK(in_child(coarse));
	use_gpu();
	OK(cuMemFree_v2(must_alloc(3000)));
	return 0;
}
