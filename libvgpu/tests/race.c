/* SPDX-License-Identifier: Apache-2.0 */
/* 64 processes grab a share in small pieces: it is used up to the last byte, and
 * not one byte more. Then all give everything back. */
#include <unistd.h>

#include "world.h"

#define PROCESSES 64
#define LIMIT_MIB 1000

static struct channel go, done;

static void grab(void)
{
	CUdeviceptr pointers[LIMIT_MIB], pointer;
	int count = 0, misses = 0;

	use_gpu();
	channel_tell(go.up[1]);
	channel_hear(go.down[0]);
	while (misses < 3) {
		CUresult result = cuMemAlloc_v2(&pointer, 2 * MIB);

		CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_OUT_OF_MEMORY);
		if (result == CUDA_SUCCESS)
			pointers[count++] = pointer;
		else
			misses++;
	}
	channel_tell(done.up[1]);
	channel_hear(done.down[0]);
	while (count > 0)
		OK(cuMemFree_v2(pointers[--count]));
}

int main(void)
{
	struct vgpu_region *region;
	int children[PROCESSES];
	uint64_t sum = 0;

	world();
	world_grant("uid_gpu", CARD_A, LIMIT_MIB, NULL, 0);
	channel_open(&go);
	channel_open(&done);
	for (int i = 0; i < PROCESSES; i++)
		children[i] = start_child(grab);
	for (int i = 0; i < PROCESSES; i++)
		channel_hear(go.up[0]);
	for (int i = 0; i < PROCESSES; i++)
		channel_tell(go.down[1]);
	for (int i = 0; i < PROCESSES; i++)
		channel_hear(done.up[0]);
	region = world_region("uid_gpu");
	for (int i = 0; i < VGPU_REGION_SLOTS; i++)
		sum += region->slots[i].used_bytes[0];
	IS(region->devices[0].used_bytes, LIMIT_MIB * MIB);
	IS(region->devices[0].peak_bytes, LIMIT_MIB * MIB);
	IS(sum, LIMIT_MIB * MIB);
	for (int i = 0; i < PROCESSES; i++)
		channel_tell(done.down[1]);
	for (int i = 0; i < PROCESSES; i++)
		OK(wait_child(children[i]));
	IS(region->devices[0].used_bytes, 0);
	return 0;
}
