/* SPDX-License-Identifier: Apache-2.0 */
/* Several grants and cards: shares of one card add up, cards are told apart by
 * UUID whatever CUDA_VISIBLE_DEVICES makes of the numbers, and a card without a
 * grant or limit is left alone. */
#include "world.h"

static void expect(int device, uint64_t mib)
{
	CUcontext context;
	CUdeviceptr pointer, refused = 5;
	size_t total;

	OK(cuDeviceTotalMem_v2(&total, device));
	IS(total, mib * MIB);
	OK(cuDevicePrimaryCtxRetain(&context, device));
	OK(cuCtxSetCurrent(context));
	IS(cuMemAlloc_v2(&refused, (mib + 2) * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(refused, 5);
	pointer = must_alloc(mib);
	IS(cuMemAlloc_v2(&refused, 2 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFree_v2(pointer));
	OK(cuDevicePrimaryCtxRelease_v2(device));
}

static void in_order(void)
{
	OK(cuInit(0));
	expect(0, 3000);
	expect(1, 1000);
}

static void reversed(void)
{
	int count;

	OK(cuInit(0));
	OK(cuDeviceGetCount(&count));
	IS(count, 2);
	expect(0, 1000);
	expect(1, 3000);
}

static void only_b(void)
{
	int count;

	OK(cuInit(0));
	OK(cuDeviceGetCount(&count));
	IS(count, 1);
	expect(0, 1000);
}

static void none(void)
{
	IS(cuInit(0), CUDA_ERROR_NO_DEVICE);
}

static void added_up(void)
{
	CUdeviceptr pointer;

	OK(cuInit(0));
	expect(0, 3000 + 500);
	use_gpu();
	pointer = must_alloc(3400);
	IS(world_region("uid_gpu")->devices[0].used_bytes, 3000 * MIB);
	IS(world_region("uid_second")->devices[0].used_bytes, 400 * MIB);
	OK(cuMemFree_v2(pointer));
	IS(world_region("uid_gpu")->devices[0].used_bytes, 0);
	IS(world_region("uid_second")->devices[0].used_bytes, 0);
}

static void not_limited(void)
{
	OK(cuInit(0));
	expect(0, 40960); /* the card's own size */
	expect(1, 1000);
}

static void not_granted(void)
{
	OK(cuInit(0));
	expect(0, 40960);
	expect(1, 700);
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, 3000, CARD_B, 1000);
	OK(in_child(in_order));
	setenv("CUDA_VISIBLE_DEVICES", "1,0", 1);
	OK(in_child(reversed));
	setenv("CUDA_VISIBLE_DEVICES", CARD_B "," CARD_A, 1);
	OK(in_child(reversed));
	setenv("CUDA_VISIBLE_DEVICES", "1", 1);
	OK(in_child(only_b));
	setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb", 1);
	OK(in_child(only_b));
	setenv("CUDA_VISIBLE_DEVICES", "", 1);
	OK(in_child(none));
	unsetenv("CUDA_VISIBLE_DEVICES");
	world_grant("uid_second", CARD_A, 500, NULL, 0);
	OK(in_child(added_up));
	world_grant("uid_second", CARD_A, 0, NULL, 0);
	OK(in_child(not_limited));
	OK(remove(world_path("grants/uid_second/region/region")));
	OK(remove(world_path("grants/uid_second/region")));
	OK(remove(world_path("grants/uid_second/grant")));
	OK(remove(world_path("grants/uid_second")));
	OK(remove(world_path("grants/uid_gpu/region/region")));
	world_grant("uid_gpu", CARD_B, 700, NULL, 0);
	OK(in_child(not_granted));
	return 0;
}
