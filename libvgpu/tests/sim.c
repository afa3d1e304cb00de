/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated driver itself, without a grant: memory is shared by processes
 * and comes back at death, copies arrive, kernels take their time. */
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "world.h"

static struct channel talk;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void hold_30000(void)
{
	use_gpu();
	must_alloc(30000);
	channel_tell(talk.up[1]);
	pause();
}

static void refused_20000(void)
{
	CUdeviceptr pointer;
	size_t available, total;

	use_gpu();
	IS(cuMemAlloc_v2(&pointer, 20000 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemGetInfo_v2(&available, &total));
	IS(total, 40960 * MIB);
	IS(available, 10960 * MIB);
}

static void copies(void)
{
	CUdeviceptr a = must_alloc(64), b = must_alloc(64);
	char text[16] = "hello", back[16] = "";

	OK(cuMemcpyHtoD_v2(a + 5 * MIB, text, sizeof(text)));
	OK(cuMemcpyDtoD_v2(b, a + 5 * MIB, sizeof(text)));
	OK(cuMemcpyDtoH_v2(back, b, sizeof(back)));
	CHECK(strcmp(back, "hello") == 0);
	OK(cuMemsetD8_v2(b, 'x', 3));
	OK(cuMemcpyDtoH_v2(back, b, sizeof(back)));
	CHECK(strcmp(back, "xxxlo") == 0);
	IS(cuMemcpyHtoD_v2(b + 64 * MIB - 1, text, 2), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemFree_v2(a));
	OK(cuMemFree_v2(b));
}

static void kernels(void)
{
	uint64_t ns = 30000000;
	void *params[] = {&ns};
	CUfunction function;
	CUmodule module;
	CUstream stream;
	CUevent start, end;
	float ms;
	double begin = now();

	OK(cuModuleLoadData(&module, "any"));
	OK(cuModuleGetFunction(&function, module, "busy_ns"));
	IS(cuModuleGetFunction(&function, module, "other"), CUDA_ERROR_NOT_FOUND);
	OK(cuStreamCreate(&stream, 0));
	OK(cuEventCreate(&start, 0));
	OK(cuEventCreate(&end, 0));
	OK(cuEventRecord(start, stream));
	for (int i = 0; i < 3; i++)
		OK(cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, params, NULL));
	OK(cuEventRecord(end, stream));
	IS(cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
	IS(cuEventElapsedTime(&ms, start, end), CUDA_ERROR_NOT_READY);
	OK(cuStreamSynchronize(stream));
	CHECK(now() - begin >= 0.089);
	OK(cuEventElapsedTime(&ms, start, end));
	CHECK(ms > 89 && ms < 150);
	IS(cuLaunchKernel(function, 1, 1, 1, 2000, 1, 1, 0, stream, params, NULL),
	   CUDA_ERROR_INVALID_VALUE);
	OK(cuEventDestroy_v2(start));
	OK(cuEventDestroy_v2(end));
	OK(cuStreamDestroy_v2(stream));
	OK(cuModuleUnload(module));
}

int main(void)
{
	nvmlDevice_t device;
	nvmlMemory_t memory;
	int child;

	world();
	channel_open(&talk);
	child = start_child(hold_30000);
	channel_hear(talk.up[0]);
	OK(in_child(refused_20000));
	kill(child, SIGKILL);
	wait_child(child);
	OK(remove(world_path("dev/nvidia1")));
	use_gpu();
	must_alloc(40960);
	OK(cuDevicePrimaryCtxReset_v2(0));
	use_gpu();
	copies();
	kernels();
	OK(nvmlInit_v2());
	IS(nvmlDeviceGetHandleByUUID(CARD_B, &device), NVML_ERROR_NOT_FOUND);
	OK(nvmlDeviceGetHandleByUUID(CARD_A, &device));
	OK(nvmlDeviceGetMemoryInfo(device, &memory));
	IS(memory.used, 0);
	return 0;
}
