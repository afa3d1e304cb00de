/* SPDX-License-Identifier: Apache-2.0 */
/* Green contexts: their memory is charged as any other and ends with the primary context,
 * their launches are held, and a part of the card takes longer for the same work. What is
 * measured in real time has an upper bound only: the machine may have other things to do. */
#include <time.h>

#include "world.h"

#define MS UINT64_C(1000000)

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t used(void)
{
	return world_region("uid_gpu")->devices[0].used_bytes;
}

static CUgreenCtx make_green(unsigned int least, unsigned int *got)
{
	CUdevResource all, part;
	CUdevResourceDesc desc;
	unsigned int count = 1;
	CUgreenCtx green;

	OK(cuDeviceGetDevResource(0, &all, CU_DEV_RESOURCE_TYPE_SM));
	OK(cuDevSmResourceSplitByCount(&part, &count, &all, NULL, 0, least));
	IS(count, 1);
	*got = part.sm.smCount;
	OK(cuDevResourceGenerateDesc(&desc, &part, 1));
	OK(cuGreenCtxCreate(&green, desc, 0, CU_GREEN_CTX_DEFAULT_STREAM));
	return green;
}

static void splits(void)
{
	CUdevResource all, parts[8], rest;
	unsigned int count = 8;

	OK(cuInit(0));
	OK(cuDeviceGetDevResource(0, &all, CU_DEV_RESOURCE_TYPE_SM));
	IS(sizeof(all), 144);
	IS(all.sm.smCount, 108);
	OK(cuDevSmResourceSplitByCount(NULL, &count, &all, NULL, 0, 27));
	IS(count, 3); /* of 28: in steps of two */
	count = 8;
	OK(cuDevSmResourceSplitByCount(parts, &count, &all, &rest, 0, 27));
	IS(count, 3);
	IS(parts[2].sm.smCount, 28);
	IS(rest.sm.smCount, 24);
	count = 2;
	OK(cuDevSmResourceSplitByCount(parts, &count, &rest, NULL, 0, 12));
	IS(count, 2);
	IS(cuDevSmResourceSplitByCount(parts, &count, &rest, NULL, 0, 26),
	   CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION);
	IS(cuDeviceGetDevResource(0, &all, 7), CUDA_ERROR_INVALID_RESOURCE_TYPE);
}

static void memory(void)
{
	unsigned int got;
	CUgreenCtx green, other;
	CUcontext primary, context, found;
	CUdeviceptr first, second, refused;
	CUstream stream;
	CUdevice device = -1;

	OK(cuInit(0));
	green = make_green(54, &got);
	other = make_green(20, &got);
	OK(cuCtxFromGreenCtx(&context, green));
	OK(cuCtxSetCurrent(context));
	OK(cuCtxGetCurrent(&found));
	CHECK(found == context);
	OK(cuCtxGetDevice(&device));
	IS(device, 0);
	OK(cuMemAlloc_v2(&first, 600 * MIB));
	OK(cuGreenCtxStreamCreate(&stream, green, CU_STREAM_NON_BLOCKING, 0));
	OK(cuMemAllocAsync(&second, 200 * MIB, stream));
	IS(used(), 800 * MIB);
	IS(cuMemAlloc_v2(&refused, 300 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAllocAsync(&refused, 300 * MIB, stream), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFreeAsync(second, stream));
	OK(cuStreamSynchronize(stream));
	IS(used(), 600 * MIB);
	/* It is the primary context's, which the other one holds. */
	OK(cuStreamDestroy_v2(stream));
	OK(cuGreenCtxDestroy(green));
	IS(used(), 600 * MIB);
	IS(card_used(0), 600 * MIB);
	OK(cuDevicePrimaryCtxRetain(&primary, 0));
	OK(cuCtxSetCurrent(primary));
	OK(cuMemAlloc_v2(&second, 100 * MIB));
	OK(cuMemFree_v2(first));
	IS(used(), 100 * MIB);
	OK(cuMemAlloc_v2(&first, 300 * MIB));
	OK(cuDevicePrimaryCtxRelease_v2(0));
	IS(used(), 400 * MIB);
	/* The last to hold it takes all memory with it. */
	OK(cuGreenCtxDestroy(other));
	IS(used(), 0);
	IS(card_used(0), 0);
	IS(cuGreenCtxDestroy(other), CUDA_ERROR_INVALID_CONTEXT);
}

static void memory_of_a_green_one_ends_with_the_primary(void)
{
	unsigned int got;
	CUcontext context;
	CUdeviceptr pointer;

	for (int round = 0; round < 3; round++) {
		OK(cuInit(0));
		CUgreenCtx green = make_green(54, &got);

		OK(cuCtxFromGreenCtx(&context, green));
		OK(cuCtxSetCurrent(context));
		OK(cuMemAlloc_v2(&pointer, 900 * MIB));
		IS(used(), 900 * MIB);
		if (round == 2)
			OK(cuDevicePrimaryCtxReset_v2(0));
		else
			OK(cuGreenCtxDestroy(green));
		IS(used(), 0);
		IS(card_used(0), 0);
	}
}

/* Percent of the card's work that a loop gets done. */
static double share_of(CUfunction function, CUstream stream, unsigned int milliseconds)
{
	uint64_t begin = now_ns(), end = begin + milliseconds * MS, done = 0, ns = 200000;
	void *params[] = {&ns};

	while (now_ns() < end) {
		OK(cuLaunchKernel(function, 1, 1, 1, 256, 1, 1, 0, stream, params, NULL));
		done += ns;
		if (done % (10 * ns) == 0)
			OK(cuStreamSynchronize(stream));
	}
	OK(cuStreamSynchronize(stream));
	return (double)done * 100 / (double)(now_ns() - begin);
}

static void is_held(double value, double limit, const char *what)
{
	if (value > limit * 1.15 + 1) {
		fprintf(stderr, "%s: %.1f, not %.1f\n", what, value, limit);
		_Exit(1);
	}
}

/* Microseconds that a kernel of a millisecond takes: behind another one, so that the time
 * until it is launched does not count. */
static unsigned int takes_us(CUfunction function, CUstream stream)
{
	uint64_t ahead_ns = 50 * MS, ns = MS;
	void *ahead[] = {&ahead_ns}, *params[] = {&ns};
	CUevent begin, end;
	float milliseconds;

	OK(cuEventCreate(&begin, 0));
	OK(cuEventCreate(&end, 0));
	OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, ahead, NULL));
	OK(cuEventRecord(begin, stream));
	OK(cuLaunchKernel(function, 1, 1, 1, 2, 1, 1, 0, stream, params, NULL));
	OK(cuEventRecord(end, stream));
	OK(cuEventSynchronize(end));
	OK(cuEventElapsedTime(&milliseconds, begin, end));
	return (unsigned int)(milliseconds * 1000 + 0.5f);
}

static void set_cores(uint32_t percent)
{
	FILE *file = fopen(world_path("grants/uid_gpu/grant"), "r+e");
	struct vgpu_grant grant;

	CHECK(file && fread(&grant, sizeof(grant), 1, file) == 1);
	grant.devices[0].cores_percent = percent;
	grant.devices[0].core_policy = VGPU_POLICY_FORCE;
	CHECK(fseek(file, 0, SEEK_SET) == 0);
	CHECK(fwrite(&grant, sizeof(grant), 1, file) == 1);
	fclose(file);
}

static void work(void)
{
	unsigned int got;
	CUgreenCtx green, told;
	CUcontext primary, context;
	CUstream stream;
	CUfunction function;
	CUmodule module;
	CUevent event;

	use_gpu(); /* a context of its own, so that the primary's is another one */
	OK(cuDevicePrimaryCtxRetain(&primary, 0));
	OK(cuCtxSetCurrent(primary));
	OK(cuModuleLoadData(&module, "x"));
	OK(cuModuleGetFunction(&function, module, "busy_ns"));
	green = make_green(54, &got);
	IS(got, 54);
	OK(cuGreenCtxStreamCreate(&stream, green, CU_STREAM_NON_BLOCKING, 0));
	OK(cuStreamGetGreenCtx(stream, &told));
	CHECK(told == green);
	OK(cuStreamGetGreenCtx(NULL, &told));
	CHECK(told == NULL);
	IS(takes_us(function, NULL), 1000);
	IS(takes_us(function, stream), 2000); /* half of the multiprocessors */
	OK(cuCtxFromGreenCtx(&context, green));
	OK(cuCtxSetCurrent(context));
	IS(takes_us(function, NULL), 2000); /* its default stream */
	set_cores(40);
	share_of(function, stream, 150); /* learns what the kernel takes there */
	/* 40 percent of the time, with half of the multiprocessors */
	is_held(share_of(function, stream, 400), 20, "held in time");
	/* An event of the whole context, and one that it waits for. */
	OK(cuEventCreate(&event, 0));
	OK(cuGreenCtxRecordEvent(green, event));
	OK(cuEventSynchronize(event));
	OK(cuGreenCtxWaitEvent(green, event));
	/* What the library measured with belongs to the context, and goes with it. */
	OK(cuStreamDestroy_v2(stream));
	OK(cuCtxSetCurrent(primary));
	OK(cuGreenCtxDestroy(green));
	is_held(share_of(function, NULL, 400), 40, "in the primary context afterwards");
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, 1000, NULL, 0);
	OK(in_child(splits));
	OK(in_child(memory));
	OK(in_child(memory_of_a_green_one_ends_with_the_primary));
	set_cores(0);
	OK(in_child(work));
	return 0;
}
