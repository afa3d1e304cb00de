/* SPDX-License-Identifier: Apache-2.0 */
/* A share that MPS holds in space is not held in time as well, and one that goes around
 * MPS is. Real time has an upper bound only: the machine may have other things to do. */
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "world.h"

#define MS UINT64_C(1000000)
#define CLIENT 1
#define SERVER_OF_ITS_OWN 2

static int kind;
static const char *percent;
static double expected;
static bool waits;
static double *shares;         /* of children */
static unsigned int *finished; /* of children */

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Percent of the card's work that a loop gets done: what a kernel would take alone, with all
 * multiprocessors, by the time that has passed. */
static double share_of(CUfunction function, unsigned int milliseconds)
{
	uint64_t begin = now_ns(), end = begin + milliseconds * MS, done = 0, ns = 200000;
	void *params[] = {&ns};

	while (now_ns() < end) {
		OK(cuLaunchKernel(function, 1, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
		done += ns;
		if (done % (20 * ns) == 0) /* or MPS lets a queue grow that has to be waited for */
			OK(cuCtxSynchronize());
	}
	OK(cuCtxSynchronize());
	return (double)done * 100 / (double)(now_ns() - begin);
}

static void works(void)
{
	CUmodule module;
	CUfunction function;
	double share;
	uint64_t before;
	int enabled = -1;

	if (kind == CLIENT)
		setenv("CUDA_MPS_PIPE_DIRECTORY", world_path("pipes"), 1);
	else if (kind == SERVER_OF_ITS_OWN)
		setenv("CUDA_MPS_PIPE_DIRECTORY", world_path("own"), 1);
	if (percent)
		setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", percent, 1);
	use_gpu();
	setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "1", 1); /* too late to count */
	OK(cuInit(0));
	OK(cuDeviceGetAttribute(&enabled, CU_DEVICE_ATTRIBUTE_MPS_ENABLED, 0));
	IS(enabled, kind != 0);
	OK(cuModuleLoadData(&module, "x"));
	OK(cuModuleGetFunction(&function, module, "busy_ns"));
	before = world_region("uid_gpu")->devices[0].throttled_ns;
	share_of(function, 100); /* learns the kernel */
	share = share_of(function, 400);
	if (share > expected * 1.15 + 1) {
		fprintf(stderr, "kind %d, %s percent: %.1f, not %.1f\n", kind,
			percent ? percent : "no", share, expected);
		_Exit(1);
	}
	/* Whether libvgpu held launches back at all. */
	IS(world_region("uid_gpu")->devices[0].throttled_ns > before, waits);
}

static void expect(int of_kind, const char *percentage, uint32_t cores, uint32_t flags,
		   double share, bool in_time)
{
	waits = in_time;
	kind = of_kind;
	percent = percentage;
	expected = share;
	world_set_compute("uid_gpu", cores, VGPU_POLICY_FORCE, flags);
	OK(in_child(works));
}

/* Each has the percentage to itself, and both together have the limit. */
static void works_with_another(void)
{
	CUmodule module;
	CUfunction function;

	setenv("CUDA_MPS_PIPE_DIRECTORY", world_path("pipes"), 1);
	setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "30", 1);
	use_gpu();
	OK(cuModuleLoadData(&module, "x"));
	OK(cuModuleGetFunction(&function, module, "busy_ns"));
	share_of(function, 300); /* both are there, and learn the kernel */
	shares[__atomic_fetch_add(finished, 1, __ATOMIC_RELAXED) % 2] = share_of(function, 500);
}

static void together(void)
{
	int first, second;

	world_set_compute("uid_gpu", 30, VGPU_POLICY_FORCE, VGPU_GRANT_MPS);
	first = start_child(works_with_another);
	second = start_child(works_with_another);
	OK(wait_child(first));
	OK(wait_child(second));
	if (shares[0] + shares[1] > 30 * 1.15 + 2) {
		fprintf(stderr, "two processes of 30 percent: %.1f and %.1f\n", shares[0],
			shares[1]);
		_Exit(1);
	}
}

/* NVML names a client in a list of its own, and memory is what was charged, as ever. */
static void is_accounted_for(void)
{
	nvmlProcessInfo_v2_t infos[4];
	unsigned int count = 4;
	nvmlDevice_t device;
	size_t free_bytes, total;
	CUdeviceptr pointer;

	setenv("CUDA_MPS_PIPE_DIRECTORY", world_path("pipes"), 1);
	setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "30", 1);
	use_gpu();
	pointer = must_alloc(600);
	OK(cuMemGetInfo_v2(&free_bytes, &total));
	IS(total, 1000 * MIB);
	IS(free_bytes, 400 * MIB);
	IS(cuMemAlloc_v2(&pointer, 500 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	OK(nvmlInit_v2());
	OK(nvmlDeviceGetHandleByIndex_v2(0, &device));
	OK(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, infos));
	IS(count, 1); /* libvgpu lists its own, whatever the driver calls them */
	IS(infos[0].usedGpuMemory, 600 * MIB);
}

static void make_pipes(const char *name)
{
	OK(mkdir(world_path("%s", name), 0700));
	world_write(world_path("%s/control", name), "", 0);
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, 1000, NULL, 0);
	make_pipes("pipes");
	make_pipes("own");
	setenv("VGPU_MPS_PIPES", world_path("pipes"), 1);
	expect(CLIENT, "30", 30, VGPU_GRANT_MPS, 30, false); /* in space alone */
	expect(CLIENT, "29.5", 30, VGPU_GRANT_MPS, 29.5, false);
	expect(CLIENT, "40", 20, VGPU_GRANT_MPS, 20, true); /* lowered since: the rest in time */
	expect(CLIENT, NULL, 30, VGPU_GRANT_MPS, 30, true); /* taken away: in time */
	expect(CLIENT, "nonsense", 30, VGPU_GRANT_MPS, 30, true);
	expect(0, "30", 30, VGPU_GRANT_MPS, 30, true); /* no daemon: in time */
	/* One of its own takes turns with the neighbours, and so is held in time: of 30 percent of
	 * the card's multiprocessors, 30 percent of the time. */
	expect(SERVER_OF_ITS_OWN, "30", 30, VGPU_GRANT_MPS, 9, true);
	expect(CLIENT, "30", 30, 0, 9, true); /* the node did not offer it */
	shares = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shares != MAP_FAILED);
	finished = (unsigned int *)(shares + 2);
	together();
	OK(in_child(is_accounted_for));
	return 0;
}
