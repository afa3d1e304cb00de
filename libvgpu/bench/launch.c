/* SPDX-License-Identifier: Apache-2.0
 *
 * What a launch costs: launches of a kernel that takes no time on the simulated card,
 * one by one, and prints "median p99 mean" in nanoseconds. The mean leaves out those
 * during which the machine did something else. launch.py runs it with and without
 * libvgpu.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cuda_api.h"

#define LAUNCHES 200000
#define WARM 20000
#define INTERRUPTED_NS 10000

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

int main(void)
{
	static uint32_t times[LAUNCHES];
	CUcontext context;
	CUmodule module;
	CUfunction noop;
	CUstream stream;
	uint64_t sum = 0, count = 0;

	if (cuInit(0) != CUDA_SUCCESS || cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS ||
	    cuCtxSetCurrent(context) != CUDA_SUCCESS ||
	    cuModuleLoadData(&module, "x") != CUDA_SUCCESS ||
	    cuModuleGetFunction(&noop, module, "noop") != CUDA_SUCCESS ||
	    cuStreamCreate(&stream, 0) != CUDA_SUCCESS)
		return 1;
	for (int i = 0; i < WARM + LAUNCHES; i++) {
		uint64_t begin = now_ns();

		if (cuLaunchKernel(noop, 1, 1, 1, 256, 1, 1, 0, stream, NULL, NULL) != CUDA_SUCCESS)
			return 1;
		if (i >= WARM) {
			times[i - WARM] = (uint32_t)(now_ns() - begin);
			if (times[i - WARM] < INTERRUPTED_NS) {
				sum += times[i - WARM];
				count++;
			}
		}
	}
	qsort(times, LAUNCHES, sizeof(times[0]), compare);
	printf("%u %u %.1f\n", times[LAUNCHES / 2], times[LAUNCHES / 100 * 99],
	       (double)sum / (double)(count ? count : 1));
	return 0;
}
