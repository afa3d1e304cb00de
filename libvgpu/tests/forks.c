/* SPDX-License-Identifier: Apache-2.0 */
/* fork: a child is a process of its own, and takes nothing of its parent's. */
#include <unistd.h>

#include "world.h"

static void after_cuda(void)
{
	CUdeviceptr pointer;
	nvmlDevice_t device;
	nvmlMemory_t memory;

	/* As the driver says; and nothing stays charged. */
	IS(cuMemAlloc_v2(&pointer, 100 * MIB), CUDA_ERROR_NOT_INITIALIZED);
	OK(nvmlDeviceGetHandleByUUID(CARD_A, &device));
	OK(nvmlDeviceGetMemoryInfo(device, &memory));
	IS(memory.used, 1000 * MIB);
}

static void before_cuda(void)
{
	use_gpu();
	OK(cuMemFree_v2(must_alloc(2000)));
	must_alloc(2000);
	IS(world_region("uid_gpu")->devices[0].used_bytes, 2000 * MIB);
}

int main(void)
{
	CUdeviceptr pointer, other;

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	OK(nvmlInit_v2()); /* the grants are loaded before the fork */
	OK(in_child(before_cuda));
	use_gpu();
	pointer = must_alloc(1000);
	OK(in_child(after_cuda));
	IS(world_region("uid_gpu")->devices[0].used_bytes, 1000 * MIB);
	other = must_alloc(2000);
	IS(cuMemAlloc_v2(&other, MIB), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFree_v2(pointer));
	IS(world_region("uid_gpu")->devices[0].used_bytes, 2000 * MIB);
	return 0;
}
