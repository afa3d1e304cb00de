/* SPDX-License-Identifier: Apache-2.0 */
/* One share of one card: the limit is exact, and every figure tells the share. */
#include "world.h"

static void figures(uint64_t used_mib)
{
	nvmlMemory_v2_t memory2 = {.version = sizeof(memory2) | 2u << 24};
	nvmlMemory_t memory;
	nvmlDevice_t device;
	size_t available, total;
	unsigned int narrow, narrow_total;

	OK(cuMemGetInfo_v2(&available, &total));
	IS(total, 3000 * MIB);
	IS(available, (3000 - used_mib) * MIB);
	OK(cuMemGetInfo(&narrow, &narrow_total));
	IS(narrow_total, 3000 * MIB);
	OK(cuDeviceTotalMem_v2(&total, 0));
	IS(total, 3000 * MIB);
	OK(cuDeviceTotalMem(&narrow, 0));
	IS(narrow, 3000 * MIB);
	OK(nvmlDeviceGetHandleByUUID(CARD_A, &device));
	OK(nvmlDeviceGetMemoryInfo(device, &memory));
	IS(memory.total, 3000 * MIB);
	IS(memory.used, used_mib * MIB);
	IS(memory.free, (3000 - used_mib) * MIB);
	OK(nvmlDeviceGetMemoryInfo_v2(device, &memory2));
	IS(memory2.total, 3000 * MIB);
	IS(memory2.used, used_mib * MIB);
	IS(memory2.total, memory2.used + memory2.free + memory2.reserved);
	OK(nvmlDeviceGetHandleByUUID(CARD_B, &device));
	OK(nvmlDeviceGetMemoryInfo(device, &memory));
	IS(memory.total, 16384 * MIB);
}

static void driver_answers(void)
{
	size_t bytes = 7;
	CUdeviceptr pointer = 5;

	/* In the driver's words, with nothing charged. */
	IS(cuMemAlloc_v2(NULL, MIB), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAlloc_v2(&pointer, 0), CUDA_ERROR_INVALID_VALUE);
	IS(pointer, 5);
	IS(cuMemGetInfo_v2(NULL, &bytes), CUDA_ERROR_INVALID_VALUE);
	IS(cuDeviceTotalMem_v2(NULL, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuDeviceTotalMem_v2(&bytes, 99), CUDA_ERROR_INVALID_DEVICE);
	IS(cuMemFree_v2(0x1234), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemFree_v2(0));
	IS(nvmlDeviceGetMemoryInfo(NULL, NULL), NVML_ERROR_INVALID_ARGUMENT);
	IS(cuMemAlloc_v2(&pointer, SIZE_MAX), CUDA_ERROR_OUT_OF_MEMORY);
	IS(pointer, 5);
}

static void contexts(void)
{
	CUcontext own, primary;
	CUdeviceptr pointer;

	OK(cuCtxGetCurrent(&primary));
	OK(cuCtxCreate_v2(&own, 0, 0));
	must_alloc(1000);
	figures(1000);
	OK(cuCtxDestroy_v2(own));
	OK(cuCtxSetCurrent(primary));
	figures(0);
	must_alloc(500);
	OK(cuDevicePrimaryCtxReset_v2(0));
	IS(cuMemAlloc_v2(&pointer, MIB), CUDA_ERROR_CONTEXT_IS_DESTROYED);
	use_gpu();
	figures(0);
}

static void live_limit(void)
{
	struct vgpu_grant *grant = NULL;
	FILE *file = fopen(world_path("grants/uid_gpu/grant"), "r+e");
	uint64_t sequence = 1, limit = 1000 * MIB;
	CUdeviceptr pointer = must_alloc(600), other = 5;
	size_t available, total;

	(void)grant;
	CHECK(file);
	setvbuf(file, NULL, _IONBF, 0);
	/* A node that dies while writing leaves an odd number: the old limit holds. */
	fseek(file, offsetof(struct vgpu_grant, sequence), SEEK_SET);
	fwrite(&sequence, sizeof(sequence), 1, file);
	fseek(file, offsetof(struct vgpu_grant, devices) + 48, SEEK_SET);
	fwrite(&limit, sizeof(limit), 1, file);
	figures(600);
	sequence = 2;
	fseek(file, offsetof(struct vgpu_grant, sequence), SEEK_SET);
	fwrite(&sequence, sizeof(sequence), 1, file);
	fclose(file);
	OK(cuMemGetInfo_v2(&available, &total));
	IS(total, 1000 * MIB);
	IS(available, 400 * MIB);
	IS(cuMemAlloc_v2(&other, 500 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFree_v2(pointer));
}

int main(void)
{
	CUdeviceptr pointer, refused = 0xabc, many[1000];
	CUdeviceptr_v1 narrow;

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	IS(cuMemAlloc_v2(&refused, MIB), CUDA_ERROR_NOT_INITIALIZED);
	OK(nvmlInit_v2());
	OK(cuInit(0));
	IS(cuMemAlloc_v2(&refused, MIB), CUDA_ERROR_INVALID_CONTEXT);
	use_gpu();
	figures(0);
	driver_answers();
	figures(0);
	pointer = must_alloc(2900);
	figures(2900);
	IS(cuMemAlloc_v2(&refused, 200 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(refused, 0xabc);
	OK(cuMemAlloc_v2(&refused, 100 * MIB));
	figures(3000);
	IS(cuMemAlloc(&narrow, 512), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFree_v2(refused));
	OK(cuMemFree_v2(pointer));
	figures(0);
	IS(cuMemFree_v2(pointer), CUDA_ERROR_INVALID_VALUE);
	figures(0);
	pointer = must_alloc(3000);
	OK(cuMemFree_v2(pointer));
	for (int i = 0; i < 1000; i++)
		OK(cuMemAlloc_v2(&many[i], 1 + (size_t)i % 512));
	IS(world_region("uid_gpu")->devices[0].used_bytes, 1000 * 512);
	for (int i = 0; i < 1000; i++)
		OK(cuMemFree_v2(many[(i * 7) % 1000]));
	figures(0);
	contexts();
	live_limit();
	return 0;
}
