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
	return 0;
}
