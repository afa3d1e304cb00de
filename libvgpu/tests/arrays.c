/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays are charged when they are made, mipmapped ones with all their levels;
 * sparse ones hold the memory that is mapped into them. */
#include "world.h"

#define LAYERS {1024, 1024, 6, CU_AD_FORMAT_FLOAT, 1, CUDA_ARRAY3D_LAYERED}

static uint64_t used(const char *grant)
{
	return world_region(grant)->devices[0].used_bytes;
}

static void sizes(void)
{
	CUDA_ARRAY_DESCRIPTOR flat = {1024, 1024, CU_AD_FORMAT_FLOAT, 4};
	CUDA_ARRAY_DESCRIPTOR_v1 narrow = {100, 3, CU_AD_FORMAT_UNSIGNED_INT8, 1};
	CUDA_ARRAY3D_DESCRIPTOR solid = {512, 256, 100, CU_AD_FORMAT_HALF, 2, 0};
	CUDA_ARRAY3D_DESCRIPTOR layers = LAYERS, line = {4096, 0, 0, CU_AD_FORMAT_FLOAT, 1, 0};
	CUDA_ARRAY3D_DESCRIPTOR_v1 small = {16, 8, 2, CU_AD_FORMAT_FLOAT, 1, 0};
	CUmipmappedArray levels;
	CUarray array[5];

	use_gpu();
	OK(cuArrayCreate_v2(&array[0], &flat));
	IS(used("uid_gpu"), 16 * MIB);
	OK(cuArray3DCreate_v2(&array[1], &solid));
	IS(used("uid_gpu"), 66 * MIB);
	OK(cuArray3DCreate_v2(&array[2], &layers));
	IS(used("uid_gpu"), 90 * MIB);
	OK(cuArrayCreate(&array[3], &narrow)); /* 128 bytes by 8 rows */
	IS(used("uid_gpu"), 90 * MIB + 1024);
	OK(cuArray3DCreate(&array[4], &small));
	IS(used("uid_gpu"), 90 * MIB + 2048);
	IS(card_used(0), 90 * MIB + 2048);
	for (int i = 0; i < 5; i++)
		OK(cuArrayDestroy(array[i]));
	IS(used("uid_gpu"), 0);
	IS(cuArrayDestroy(array[0]), CUDA_ERROR_INVALID_HANDLE);
	IS(used("uid_gpu"), 0);
	/* As many levels as there are, down to one element. */
	OK(cuMipmappedArrayCreate(&levels, &line, 99));
	IS(used("uid_gpu"), card_used(0));
	CHECK(used("uid_gpu") >= 2 * 4096 * 4 && used("uid_gpu") < 3 * 4096 * 4);
	OK(cuMipmappedArrayDestroy(levels));
	OK(cuMipmappedArrayCreate(&levels, &layers, 3));
	IS(used("uid_gpu"), 32 * MIB); /* 6 * (4 + 1 + 1/4), in whole granules */
	IS(used("uid_gpu"), card_used(0));
	OK(cuMipmappedArrayDestroy(levels));
	IS(used("uid_gpu"), 0);
}

static void refusals(void)
{
	CUDA_ARRAY_DESCRIPTOR flat = {16384, 16384, CU_AD_FORMAT_FLOAT, 2};
	CUDA_ARRAY3D_DESCRIPTOR huge = {SIZE_MAX, SIZE_MAX, SIZE_MAX, CU_AD_FORMAT_FLOAT, 4, 0};
	CUDA_ARRAY3D_DESCRIPTOR layers = LAYERS;
	CUmipmappedArray levels = (CUmipmappedArray)0xabc;
	CUarray array, refused = (CUarray)0xabc;

	use_gpu();
	OK(cuArrayCreate_v2(&array, &flat)); /* 2 GiB */
	IS(cuArrayCreate_v2(&refused, &flat), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuArray3DCreate_v2(&refused, &huge), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMipmappedArrayCreate(&levels, &huge, 1), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMipmappedArrayCreate(&levels, &layers, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuArrayCreate_v2(&refused, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuArrayCreate_v2(NULL, &flat), CUDA_ERROR_INVALID_VALUE);
	flat.NumChannels = 3;
	flat.Width = 8;
	IS(cuArrayCreate_v2(&refused, &flat), CUDA_ERROR_INVALID_VALUE);
	CHECK(refused == (CUarray)0xabc && levels == (CUmipmappedArray)0xabc);
	IS(used("uid_gpu"), 2048 * MIB);
	IS(cuMipmappedArrayDestroy((CUmipmappedArray)array), CUDA_ERROR_INVALID_HANDLE);
	IS(used("uid_gpu"), 2048 * MIB);
	/* A context takes its arrays along. */
	OK(cuDevicePrimaryCtxReset_v2(0));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
}

static CUarrayMapInfo part(CUarray array, unsigned int layer, CUmemGenericAllocationHandle handle)
{
	CUarrayMapInfo info = {.resourceType = CU_RESOURCE_TYPE_ARRAY,
			       .resource = array,
			       .subresource.sparseLevel = {.layer = layer, .extentWidth = 64},
			       .memOperationType = handle ? CU_MEM_OPERATION_TYPE_MAP
							  : CU_MEM_OPERATION_TYPE_UNMAP,
			       .memHandle = handle,
			       .deviceBitMask = 1};

	return info;
}

static void sparse(void)
{
	CUDA_ARRAY3D_DESCRIPTOR what = LAYERS;
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle first, second;
	CUarrayMapInfo list[2];
	CUarray array;

	use_gpu();
	what.Flags |= CUDA_ARRAY3D_SPARSE;
	OK(cuArray3DCreate_v2(&array, &what));
	IS(used("uid_gpu"), 0);
	OK(cuMemCreate(&first, 4 * MIB, &prop, 0));
	OK(cuMemCreate(&second, 6 * MIB, &prop, 0));
	list[0] = part(array, 0, first);
	list[1] = part(array, 1, second);
	OK(cuMemMapArrayAsync(list, 2, NULL));
	OK(cuMemRelease(first));
	OK(cuMemRelease(second));
	IS(used("uid_gpu"), 10 * MIB); /* the array holds them */
	IS(card_used(0), 10 * MIB);
	/* What the driver refuses lets nothing go. */
	list[0] = part(array, 5, 0);
	IS(cuMemMapArrayAsync(list, 1, NULL), CUDA_ERROR_INVALID_VALUE);
	list[0] = part(array, 0, 0x7777);
	IS(cuMemMapArrayAsync(list, 1, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemMapArrayAsync(NULL, 1, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(used("uid_gpu"), 10 * MIB);
	list[0] = part(array, 1, 0);
	OK(cuMemMapArrayAsync_ptsz(list, 1, NULL));
	OK(cuCtxSynchronize());
	IS(used("uid_gpu"), 4 * MIB);
	IS(card_used(0), 4 * MIB);
	OK(cuDevicePrimaryCtxReset_v2(0));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
}

/* Unmapped and mapped again in one list: only what was there goes. */
static void replaced(void)
{
	CUDA_ARRAY3D_DESCRIPTOR what = LAYERS;
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle first, second;
	CUarrayMapInfo list[2];
	CUarray array;

	use_gpu();
	what.Flags |= CUDA_ARRAY3D_SPARSE;
	OK(cuArray3DCreate_v2(&array, &what));
	OK(cuMemCreate(&first, 4 * MIB, &prop, 0));
	list[0] = part(array, 0, first);
	OK(cuMemMapArrayAsync(list, 1, NULL));
	OK(cuMemRelease(first));
	OK(cuMemCreate(&second, 6 * MIB, &prop, 0));
	list[0] = part(array, 0, 0);
	list[1] = part(array, 0, second);
	OK(cuMemMapArrayAsync(list, 2, NULL));
	OK(cuMemRelease(second));
	OK(cuStreamSynchronize(NULL));
	IS(used("uid_gpu"), 6 * MIB);
	IS(card_used(0), 6 * MIB);
	OK(cuArrayDestroy(array));
	IS(used("uid_gpu"), 0);
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	OK(in_child(sizes));
	OK(in_child(refusals));
	OK(in_child(sparse));
	OK(in_child(replaced));
	return 0;
}
