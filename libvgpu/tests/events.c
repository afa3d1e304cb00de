/* SPDX-License-Identifier: Apache-2.0 */
/* Events that processes wait for in one another, through libvgpu and the simulated driver. */
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "world.h"

static CUipcEventHandle *handle;
static struct channel talk;

static void wait_for_event(void)
{
	CUevent event;

	use_gpu();
	OK(cuIpcOpenEventHandle(&event, *handle));
	IS(cuEventQuery(event), CUDA_ERROR_NOT_READY);
	OK(cuEventSynchronize(event));
	OK(cuEventQuery(event));
	OK(cuEventDestroy_v2(event));
	channel_tell(talk.up[1]);
	pause();
}

static void events(void)
{
	uint64_t ns = 300000000;
	void *params[] = {&ns};
	CUevent event, plain;
	CUmodule module;
	CUfunction busy;
	int child;

	use_gpu();
	IS(cuEventCreate(&event, CU_EVENT_INTERPROCESS), CUDA_ERROR_INVALID_VALUE);
	OK(cuEventCreate(&plain, 0));
	IS(cuIpcGetEventHandle(&*handle, plain), CUDA_ERROR_INVALID_VALUE);
	OK(cuEventCreate(&event, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING));
	OK(cuIpcGetEventHandle(&*handle, event));
	OK(cuModuleLoadData(&module, "x"));
	OK(cuModuleGetFunction(&busy, module, "busy_ns"));
	OK(cuLaunchKernel(busy, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
	OK(cuEventRecord(event, NULL));
	child = starter_start(wait_for_event);
	channel_hear(talk.up[0]);
	OK(cuEventQuery(event)); /* it was waited for over there */
	OK(cuEventDestroy_v2(event));
	starter_end(child, SIGKILL);
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, 100, NULL, 0);
	channel_open(&talk);
	handle = mmap(NULL, sizeof(*handle), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	CHECK(handle != MAP_FAILED);
	starter_begin();
	events();
	return 0;
}
