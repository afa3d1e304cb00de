/* SPDX-License-Identifier: Apache-2.0 */
/* What kernels have at hand by cuCtxSetLimit, heap, stacks and the buffer of printf, is
 * memory of the card: beyond what a context has anyway it is charged when it is asked
 * for, refused if it does not fit, and given back with the context. */
#include <pthread.h>
#include <unistd.h>

#include "world.h"

#define LIMIT_MIB 1000
#define HEAP_MIB 8                     /* what contexts begin with */
#define THREADS (108 * UINT64_C(2048)) /* that the card can hold */
#define STACKS(bytes) ((bytes) * THREADS)

static uint64_t used(void)
{
	return world_region("uid_gpu")->devices[0].used_bytes;
}

static size_t limit_of(int limit)
{
	size_t value;

	OK(cuCtxGetLimit(&value, limit));
	return value;
}

static uint64_t granules(uint64_t bytes)
{
	return (bytes + 2 * MIB - 1) / (2 * MIB) * 2 * MIB;
}

static void load(void)
{
	CUmodule module;

	OK(cuModuleLoadData(&module, "x"));
	OK(cuModuleUnload(module));
}

static void heap(void)
{
	CUdeviceptr pointer;

	use_gpu();
	OK(cuMemFree_v2(must_alloc(2)));
	OK(cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, (HEAP_MIB + 600) * MIB));
	IS(used(), 600 * MIB);
	IS(cuMemAlloc_v2(&pointer, 402 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, 2000 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(limit_of(CU_LIMIT_MALLOC_HEAP_SIZE), (HEAP_MIB + 600) * MIB);
	IS(used(), 600 * MIB);
	OK(cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, (HEAP_MIB + 1000) * MIB));
	IS(cuMemAlloc_v2(&pointer, 2 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, MIB)); /* less than at first */
	IS(used(), 0);
	OK(cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, (HEAP_MIB + 100) * MIB));
	OK(cuCtxSetLimit(CU_LIMIT_PRINTF_FIFO_SIZE, 11 * MIB));
	IS(used(), 110 * MIB);
	load();
	IS(card_used(0), used());
	IS(cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, 300 * MIB), CUDA_ERROR_INVALID_VALUE);
	IS(used(), 110 * MIB);
	OK(cuDevicePrimaryCtxReset_v2(0));
	IS(used(), 0);
	IS(card_used(0), 0);
}

static void stacks(void)
{
	CUcontext own;

	use_gpu();
	OK(cuMemFree_v2(must_alloc(2)));
	OK(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 4096));
	IS(used(), granules(STACKS(3072)));
	IS(card_used(0), STACKS(3072));
	IS(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 8192), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuCtxCreate_v2(&own, 0, 0));
	OK(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 2000)); /* of each context */
	IS(used(), granules(STACKS(3072)) + granules(STACKS(976)));
	OK(cuCtxDestroy_v2(own));
	IS(used(), granules(STACKS(3072)));
	OK(cuCtxSetCurrent(NULL));
	IS(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 1024), CUDA_ERROR_INVALID_CONTEXT);
}

/* What the driver refuses costs nothing; its errors are the program's. */
static void refused(void)
{
	use_gpu();
	OK(cuMemFree_v2(must_alloc(2)));
	CHECK(simFault("oom 1"));
	IS(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 2048), CUDA_SUCCESS); /* at its second try */
	CHECK(simFault("oom 1 4"));
	IS(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 4096), CUDA_ERROR_OUT_OF_MEMORY);
	CHECK(simFault("none"));
	IS(used(), granules(STACKS(1024)));
	IS(cuCtxSetLimit(CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH, 8), CUDA_ERROR_UNSUPPORTED_LIMIT);
	IS(cuCtxSetLimit(77, 8), CUDA_ERROR_UNSUPPORTED_LIMIT);
	IS(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 1024 << 10), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, SIZE_MAX), CUDA_ERROR_OUT_OF_MEMORY);
	IS(used(), granules(STACKS(1024)));
	IS(card_used(0), STACKS(1024));
}

static CUcontext shared;

static void *sets_it(void *heap)
{
	OK(cuCtxSetCurrent(shared));
	for (int i = 0; i < 500; i++)
		OK(cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE,
				 (HEAP_MIB + (uint64_t)i % 7 * (uintptr_t)heap) * MIB));
	return NULL;
}

static void by_threads(void)
{
	pthread_t threads[4];

	use_gpu();
	OK(cuCtxGetCurrent(&shared));
	for (uintptr_t i = 0; i < 4; i++)
		OK(pthread_create(&threads[i], NULL, sets_it, (void *)(2 + 2 * i)));
	for (int i = 0; i < 4; i++)
		OK(pthread_join(threads[i], NULL));
	OK(cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, (HEAP_MIB + 50) * MIB));
	IS(used(), 50 * MIB);
	OK(cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, HEAP_MIB * MIB));
	IS(used(), 0);
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, LIMIT_MIB, NULL, 0);
	IS(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 2048), CUDA_ERROR_NOT_INITIALIZED);
	OK(in_child(heap));
	OK(in_child(stacks));
	OK(in_child(refused));
	OK(in_child(by_threads));
	return 0;
}
