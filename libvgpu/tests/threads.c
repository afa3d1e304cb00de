/* SPDX-License-Identifier: Apache-2.0 */
/* Threads of one process allocate, free and ask at the same time, from the very
 * first cuInit on: nothing is lost, nothing passes the limit. */
#include <pthread.h>

#include "world.h"

#define THREADS 8
#define ROUNDS 400

static void *work(void *argument)
{
	uint64_t seed = (uint64_t)(uintptr_t)argument;
	CUdeviceptr pointers[8] = {0};
	size_t available, total;

	use_gpu();
	for (int round = 0; round < ROUNDS; round++) {
		unsigned int i = (unsigned int)(seed >> 33) % 8;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		if (pointers[i]) {
			OK(cuMemFree_v2(pointers[i]));
			pointers[i] = 0;
		} else if (cuMemAlloc_v2(&pointers[i], (1 + seed % 64) * 2 * MIB) != CUDA_SUCCESS) {
			IS(pointers[i], 0);
		}
		OK(cuMemGetInfo_v2(&available, &total));
		CHECK(available <= total && total == 3000 * MIB);
	}
	for (int i = 0; i < 8; i++)
		if (pointers[i])
			OK(cuMemFree_v2(pointers[i]));
	return NULL;
}

/* Maps memory whose handle is released at once, so that threads are given each
 * other's handle values all the time. */
static CUdeviceptr map_memory(uint64_t mib)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle, again;
	CUdeviceptr pointer;

	if (cuMemCreate(&handle, mib * MIB, &prop, 0) != CUDA_SUCCESS)
		return 0;
	OK(cuMemAddressReserve(&pointer, mib * MIB, 0, 0, 0));
	OK(cuMemMap(pointer, mib * MIB, 0, handle, 0));
	OK(cuMemRelease(handle));
	OK(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(pointer + MIB)));
	OK(cuMemRelease(again));
	return pointer;
}

static void *work_by_other_calls(void *argument)
{
	uint64_t seed = (uint64_t)(uintptr_t)argument;
	CUdeviceptr pointer;

	use_gpu();
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t mib = (1 + (seed >> 40) % 64) * 2;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		if (round % 2) {
			pointer = map_memory(mib);
			if (pointer) {
				OK(cuMemUnmap(pointer, mib * MIB));
				OK(cuMemAddressFree(pointer, mib * MIB));
			}
		} else if (cuMemAllocAsync(&pointer, mib * MIB, NULL) == CUDA_SUCCESS) {
			OK(round % 4 ? cuMemFree_v2(pointer) : cuMemFreeAsync(pointer, NULL));
		}
	}
	return NULL;
}

/* Graphs and arrays: all threads share the device's pool for graphs. */
static void run_graph(CUstream stream, uint64_t mib)
{
	CUdeviceptr pointer;
	CUgraphExec exec;
	CUgraph graph;
	CUresult result;

	OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
	OK(cuMemAllocAsync(&pointer, mib * MIB, stream));
	OK(cuMemFreeAsync(pointer, stream));
	OK(cuStreamEndCapture(stream, &graph));
	OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
	for (int i = 0; i < 2; i++) {
		result = cuGraphLaunch(exec, stream);
		CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_OUT_OF_MEMORY);
	}
	OK(cuGraphExecDestroy(exec));
	OK(cuGraphDestroy(graph));
}

static void make_and_drop_array(uint64_t mib)
{
	CUDA_ARRAY_DESCRIPTOR what = {1024, 256 * mib, CU_AD_FORMAT_FLOAT, 1};
	CUarray array;

	if (cuArrayCreate_v2(&array, &what) == CUDA_SUCCESS)
		OK(cuArrayDestroy(array));
}

static void *work_by_graphs(void *argument)
{
	uint64_t seed = (uint64_t)(uintptr_t)argument;
	CUstream stream;

	use_gpu();
	OK(cuStreamCreate(&stream, 0));
	for (int round = 0; round < ROUNDS / 4; round++) {
		uint64_t mib = (1 + (seed >> 40) % 64) * 8;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		if (round % 2)
			run_graph(stream, mib);
		else
			make_and_drop_array(mib);
		if (round % 8 == 0)
			OK(cuStreamSynchronize(stream));
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];
	struct vgpu_region *region;

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	for (uintptr_t i = 0; i < THREADS; i++)
		OK(pthread_create(&threads[i], NULL, work, (void *)(i + 1)));
	for (int i = 0; i < THREADS; i++)
		OK(pthread_join(threads[i], NULL));
	region = world_region("uid_gpu");
	IS(region->devices[0].used_bytes, 0);
	CHECK(region->devices[0].peak_bytes <= 3000 * MIB);
	CHECK(region->devices[0].peak_bytes > 0);
	for (uintptr_t i = 0; i < THREADS; i++)
		OK(pthread_create(&threads[i], NULL, work_by_other_calls, (void *)(i + 1)));
	for (int i = 0; i < THREADS; i++)
		OK(pthread_join(threads[i], NULL));
	for (uintptr_t i = 0; i < THREADS; i++)
		OK(pthread_create(&threads[i], NULL, work_by_graphs, (void *)(i + 1)));
	for (int i = 0; i < THREADS; i++)
		OK(pthread_join(threads[i], NULL));
	use_gpu();
	OK(cuDeviceGraphMemTrim(0));
	OK(cuCtxSynchronize()); /* until then, pools keep what was freed */
	IS(region->devices[0].used_bytes, 0);
	CHECK(region->devices[0].peak_bytes <= 3000 * MIB);
	CHECK(card_peak(0) <= 3000 * MIB);
	OK(cuMemFree_v2(must_alloc(3000)));
	return 0;
}
