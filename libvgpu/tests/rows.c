/* SPDX-License-Identifier: Apache-2.0 */
/* Managed memory and memory in rows: charged to the byte, whatever pitch the
 * driver chooses, and over all processes of a share. */
#include <unistd.h>

#include "world.h"

static struct channel talk;

static uint64_t used(const char *grant)
{
	return world_region(grant)->devices[0].used_bytes;
}

static void managed(void)
{
	CUdeviceptr pointer, refused = 0xabc;

	use_gpu();
	OK(cuMemAllocManaged(&pointer, 2998 * MIB, CU_MEM_ATTACH_GLOBAL));
	IS(used("uid_gpu"), 2998 * MIB);
	IS(cuMemAllocManaged(&refused, 2 * MIB + 1, CU_MEM_ATTACH_HOST), CUDA_ERROR_OUT_OF_MEMORY);
	IS(refused, 0xabc);
	IS(cuMemAllocManaged(&refused, MIB, 7), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAllocManaged(NULL, MIB, CU_MEM_ATTACH_GLOBAL), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAllocManaged(&refused, 0, CU_MEM_ATTACH_GLOBAL), CUDA_ERROR_INVALID_VALUE);
	IS(refused, 0xabc);
	IS(used("uid_gpu"), 2998 * MIB);
	OK(cuMemAllocManaged(&refused, 2 * MIB, CU_MEM_ATTACH_HOST));
	OK(cuMemFree_v2(refused));
	OK(cuMemFree_v2(pointer));
	IS(cuMemFree_v2(pointer), CUDA_ERROR_INVALID_VALUE);
	IS(used("uid_gpu"), 0);
}

static void rows(void)
{
	CUdeviceptr pointer, small, refused = 0xabc;
	CUdeviceptr_v1 narrow = 7;
	size_t pitch = 0;
	unsigned int narrow_pitch = 0;

	use_gpu();
	OK(cuMemAllocPitch_v2(&small, &pitch, 1, 3, 4));
	IS(pitch, 512);
	IS(used("uid_gpu"), 3 * 512);
	OK(cuMemFree_v2(small));
	/* 513 bytes become rows of 1 KiB: 3000 Ki of them are all there is. */
	OK(cuMemAllocPitch_v2(&pointer, &pitch, 513, 3000 * 1024, 16));
	IS(pitch, 1024);
	IS(used("uid_gpu"), 3000 * MIB);
	pitch = 77;
	IS(cuMemAllocPitch_v2(&refused, &pitch, 1, 1, 4), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFree_v2(pointer));
	IS(cuMemFree_v2(pointer), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAllocPitch_v2(&refused, &pitch, 513, 3000 * 1024 + 1, 4), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAllocPitch_v2(&refused, &pitch, SIZE_MAX, 2, 4), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAllocPitch_v2(&refused, &pitch, SIZE_MAX / 4, 8, 4), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAllocPitch_v2(&refused, &pitch, 1, 1, 5), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAllocPitch_v2(&refused, &pitch, 1, 0, 4), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAllocPitch_v2(&refused, NULL, 1, 1, 4), CUDA_ERROR_INVALID_VALUE);
	IS(refused, 0xabc);
	IS(pitch, 77);
	IS(used("uid_gpu"), 0);
	/* The 32-bit one may have no address to give. */
	if (cuMemAllocPitch(&narrow, &narrow_pitch, 513, 1024, 4) == CUDA_SUCCESS) {
		IS(narrow_pitch, 1024);
		IS(used("uid_gpu"), 2 * MIB);
		OK(cuMemFree(narrow));
	}
	IS(cuMemAllocPitch(&narrow, &narrow_pitch, 513, 3072000 + 1, 4), CUDA_ERROR_OUT_OF_MEMORY);
	IS(used("uid_gpu"), 0);
}

static void context_on_second_card(void)
{
	CUcontext context;

	OK(cuInit(0));
	OK(cuCtxCreate_v2(&context, 0, 1));
}

/* The second card's rows are longer than expected. */
static void longer_rows(void)
{
	CUdeviceptr pointer, refused = 0xabc;
	size_t pitch = 77;

	context_on_second_card();
	IS(cuMemAllocPitch_v2(&refused, &pitch, 1, 32 * 1024, 4), CUDA_ERROR_OUT_OF_MEMORY);
	IS(refused, 0xabc);
	IS(pitch, 77);
	IS(used("uid_second"), 0);
	OK(cuMemAllocPitch_v2(&pointer, &pitch, 1, 25 * 1024, 4));
	IS(pitch, 4096);
	IS(used("uid_second"), 100 * MIB);
	OK(cuMemFree_v2(pointer));
	IS(used("uid_second"), 0);
}

static void shorter_rows(void)
{
	CUdeviceptr pointer;
	size_t pitch;

	context_on_second_card();
	OK(cuMemAllocPitch_v2(&pointer, &pitch, 1, 32 * 1024, 4));
	IS(pitch, 128);
	IS(used("uid_second"), 4 * MIB);
	OK(cuMemFree_v2(pointer));
	IS(used("uid_second"), 0);
}

static void hold(void)
{
	CUdeviceptr pointer;
	size_t pitch;

	use_gpu();
	OK(cuMemAllocPitch_v2(&pointer, &pitch, 512, 2 * 1024, 4));
	OK(cuMemAllocManaged(&pointer, 2000 * MIB, CU_MEM_ATTACH_GLOBAL));
	channel_tell(talk.up[1]);
	channel_hear(talk.down[0]);
}

static void beside(void)
{
	CUdeviceptr pointer;
	size_t pitch;

	use_gpu();
	IS(used("uid_gpu"), 2002 * MIB);
	IS(cuMemAllocManaged(&pointer, 1000 * MIB, CU_MEM_ATTACH_GLOBAL), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAllocPitch_v2(&pointer, &pitch, 512, 2000 * 1024, 4), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemAllocManaged(&pointer, 998 * MIB, CU_MEM_ATTACH_GLOBAL));
}

int main(void)
{
	int child;

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	world_grant("uid_second", CARD_B, 100, NULL, 0);
	channel_open(&talk);
	OK(in_child(managed));
	OK(in_child(rows));
	child = start_child(hold);
	channel_hear(talk.up[0]);
	OK(in_child(beside));
	channel_tell(talk.down[1]);
	OK(wait_child(child));
	world_last_card("pitch_bytes = 4096\n");
	OK(in_child(longer_rows));
	world_last_card("pitch_bytes = 128\n");
	OK(in_child(shorter_rows));
	return 0;
}
