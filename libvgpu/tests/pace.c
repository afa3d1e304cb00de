/* SPDX-License-Identifier: Apache-2.0 */
/* The compute limit in the library, on the simulated driver, in real time. Bounds are
 * wide where only time is measured: the machine may have other things to do. */
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "world.h"

#define MS UINT64_C(1000000)

static uint64_t *counters; /* shared with children */

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static CUfunction busy(void)
{
	CUmodule module;
	CUfunction function;

	OK(cuModuleLoadData(&module, "x"));
	OK(cuModuleGetFunction(&function, module, "busy_ns"));
	return function;
}

static CUresult launch(CUfunction function, unsigned int blocks, uint64_t ns, CUstream stream)
{
	void *params[] = {&ns};

	return cuLaunchKernel(function, blocks, 1, 1, 256, 1, 1, 0, stream, params, NULL);
}

/* Percent of a card that a loop gets in so many milliseconds. */
static double share_of(CUfunction function, uint64_t ns, CUstream stream, unsigned int milliseconds)
{
	uint64_t begin = now_ns(), end = begin + milliseconds * MS, done = 0;

	while (now_ns() < end) {
		OK(launch(function, 1, ns, stream));
		done += ns;
	}
	OK(cuStreamSynchronize(stream));
	return (double)done * 100 / (double)(now_ns() - begin);
}

static void is_about(double value, double expected, const char *what)
{
	if (value > expected * 1.15 + 1 || value < expected * 0.8 - 1) {
		fprintf(stderr, "%s: %.1f, not %.1f\n", what, value, expected);
		_Exit(1);
	}
}

static void limits(void)
{
	struct vgpu_region_device *device;
	CUfunction function;
	CUstream stream;

	use_gpu();
	function = busy();
	OK(cuStreamCreate(&stream, 0));
	share_of(function, 200000, stream, 100); /* learns the kernel */
	is_about(share_of(function, 200000, stream, 500), 30, "30 %");
	device = &world_region("uid_gpu")->devices[0];
	IS(device->limit_permille, 300);
	CHECK(device->busy_ns > 100 * MS && device->throttled_ns > 100 * MS);
	world_set_compute("uid_gpu", 60, VGPU_POLICY_DEFAULT, 0); /* live */
	share_of(function, 200000, stream, 100);
	is_about(share_of(function, 200000, stream, 500), 60, "60 %, changed while running");
	/* A launch that fails is not paid for, and says what the driver says. */
	uint64_t before = device->busy_ns;

	IS(cuLaunchKernel(function, 0, 1, 1, 1, 1, 1, 0, stream, NULL, NULL),
	   CUDA_ERROR_INVALID_VALUE);
	CHECK(device->busy_ns < before + 50000); /* a sample from before may be settled */
	/* Not limited: nothing is charged, and nothing waits. */
	before = device->busy_ns;
	world_set_compute("uid_gpu", 60, VGPU_POLICY_DISABLE, 0);
	OK(launch(function, 1, 50 * MS, stream));
	world_set_compute("uid_gpu", 60, VGPU_POLICY_DEFAULT, VGPU_GRANT_ALONE);
	OK(launch(function, 1, 50 * MS, stream));
	world_set_compute("uid_gpu", 60, VGPU_POLICY_DEFAULT, VGPU_GRANT_CONTROL_DISABLED);
	OK(launch(function, 1, 50 * MS, stream));
	world_set_compute("uid_gpu", 100, VGPU_POLICY_FORCE, 0);
	OK(launch(function, 1, 50 * MS, stream));
	IS(device->busy_ns, before);
}

/* Other ways to launch are no way around. */
static void variants(void)
{
	struct vgpu_region_device *device;
	CUfunction function;
	CUstream stream;
	uint64_t ns = 1 * MS, before;
	void *params[] = {&ns};
	CUgraph graph;
	CUgraphExec exec;

	use_gpu();
	function = busy();
	OK(cuStreamCreate(&stream, 0));
	OK(launch(function, 1, ns, stream));
	OK(cuStreamSynchronize(stream));
	OK(launch(function, 1, ns, stream));
	device = &world_region("uid_gpu")->devices[0];
	CUlaunchConfig config = {.gridDimX = 1,
				 .gridDimY = 1,
				 .gridDimZ = 1,
				 .blockDimX = 256,
				 .blockDimY = 1,
				 .blockDimZ = 1,
				 .hStream = stream};

#define PAID(call)                                                                                 \
	do {                                                                                       \
		before = device->busy_ns;                                                          \
		OK(call);                                                                          \
		CHECK(device->busy_ns >= before + ns * 9 / 10);                                    \
	} while (0)
	PAID(launch(function, 1, ns, stream));
	PAID(cuLaunchKernel_ptsz(function, 1, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
	PAID(cuLaunchKernelEx(&config, function, params, NULL));
	PAID(cuLaunchKernelEx_ptsz(&config, function, params, NULL));
	PAID(cuLaunchCooperativeKernel(function, 1, 1, 1, 256, 1, 1, 0, stream, params));
	PAID(cuLaunchCooperativeKernel_ptsz(function, 1, 1, 1, 256, 1, 1, 0, stream, params));
	/* A capture is left alone: nothing is paid, and only kernels are in the graph. */
	size_t nodes = 0;

	before = device->busy_ns;
	OK(cuStreamSynchronize(stream));
	OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
	for (int i = 0; i < 20; i++)
		OK(launch(function, 100 + (unsigned int)i, ns, stream));
	OK(cuStreamEndCapture(stream, &graph));
	IS(device->busy_ns, before);
	OK(cuGraphGetNodes(graph, NULL, &nodes));
	IS(nodes, 20);
	OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
	OK(cuGraphLaunch(exec, stream));
	OK(cuStreamSynchronize(stream));
	ns = 20 * MS;
	OK(cuGraphLaunch(exec, stream)); /* settles the first */
	PAID(cuGraphLaunch(exec, stream));
	PAID(cuGraphLaunch_ptsz(exec, stream));
	OK(cuGraphExecDestroy(exec));
}

/* A thousand kernels, twice each: known ones and forgotten ones. */
static void many_kernels(void)
{
	CUfunction function;

	use_gpu();
	function = busy();
	for (int round = 0; round < 2; round++)
		for (unsigned int i = 1; i <= 1000; i++)
			OK(launch(function, i, 1000, NULL));
	OK(cuCtxSynchronize());
}

/* A kernel that does not end before a later launch of it: everything goes on. */
static void long_unknown(void)
{
	uint64_t begin = now_ns();
	CUfunction function;
	CUstream one, two;

	use_gpu();
	function = busy();
	OK(cuStreamCreate(&one, 0));
	OK(cuStreamCreate(&two, 0));
	OK(launch(function, 1, 20000 * MS, one));
	OK(launch(function, 1, 20000 * MS, two));
	CHECK(now_ns() - begin < 5000 * MS);
}

static void worker(uint64_t *counter, uint64_t ns)
{
	CUfunction function;

	use_gpu();
	function = busy();
	for (;;) {
		OK(launch(function, 1, ns, NULL));
		__atomic_add_fetch(counter, ns, __ATOMIC_RELAXED);
	}
}

static void light(void)
{
	setenv("VGPU_GRANT_ROOT", world_path("light"), 1);
	worker(&counters[0], 300000);
}

static void light_once(void)
{
	CUfunction function;

	setenv("VGPU_GRANT_ROOT", world_path("light"), 1);
	use_gpu();
	function = busy();
	for (int i = 0; i < 10; i++)
		OK(launch(function, 1, 300000, NULL));
}

static void heavy(void)
{
	setenv("VGPU_GRANT_ROOT", world_path("heavy"), 1);
	worker(&counters[1], 700000);
}

static void tenant(const char *root, uint32_t percent)
{
	struct vgpu_grant grant = {
		.abi_major = VGPU_GRANT_ABI_MAJOR, .file_size = sizeof(grant), .device_count = 1};

	memcpy(grant.magic, VGPU_GRANT_MAGIC, sizeof(grant.magic));
	snprintf(grant.devices[0].uuid, VGPU_UUID_SIZE, CARD_A);
	grant.devices[0].cores_percent = percent;
	mkdir(world_path("%s", root), 0777);
	mkdir(world_path("%s/uid_gpu", root), 0777);
	mkdir(world_path("%s/uid_gpu/region", root), 0777);
	world_write(world_path("%s/uid_gpu/grant", root), &grant, sizeof(grant));
}

/* Two tenants, two processes each; one is stopped and one killed, which holds up nobody. */
static void two_tenants(void)
{
	struct timespec second = {.tv_sec = 1}, quarter = {.tv_nsec = 250000000};
	int pids[4];
	double share;

	tenant("light", 30);
	tenant("heavy", 70);
	for (int i = 0; i < 4; i++)
		pids[i] = start_child(i % 2 ? heavy : light);
	nanosleep(&quarter, NULL);
	counters[0] = counters[1] = 0;
	nanosleep(&second, NULL);
	share = (double)counters[0] * 100 / (double)(counters[0] + counters[1]);
	if (share < 26 || share > 34) {
		fprintf(stderr, "30:70 is %.1f:%.1f\n", share, 100 - share);
		_Exit(1);
	}
	kill(pids[0], SIGSTOP);
	kill(pids[1], SIGKILL);
	IS(wait_child(pids[1]), 128 + SIGKILL);
	counters[0] = counters[1] = 0;
	nanosleep(&second, NULL);
	share = (double)counters[0] * 100 / (double)(counters[0] + counters[1]);
	if (share < 26 || share > 34) {
		fprintf(stderr, "with one of each: 30:70 is %.1f:%.1f\n", share, 100 - share);
		_Exit(1);
	}
	for (int i = 0; i < 4; i++)
		if (i != 1) {
			kill(pids[i], SIGKILL);
			wait_child(pids[i]);
		}
}

/* Until a child has launched something: a start takes as long as the machine lets it. */
static void wait_for_launch(void)
{
	const struct timespec nap = {.tv_nsec = 1000000};
	const uint64_t give_up = now_ns() + 20000 * MS;

	while (!counters[0]) {
		CHECK(now_ns() < give_up);
		nanosleep(&nap, NULL);
	}
}

/* Killed again and again at any instruction: what was launched is paid, and no more. */
static void kills(void)
{
	struct vgpu_region_device *device;
	uint64_t begin, before;
	unsigned int seed = 20261121;

	tenant("light", 50);
	device = &world_region("../light/uid_gpu")->devices[0]; /* of two_tenants() */
	before = device->busy_ns;
	begin = now_ns();
	for (int i = 0; i < 40; i++) {
		struct timespec nap = {.tv_nsec = 1000000 + rand_r(&seed) % 20000000};
		int pid;

		counters[0] = 0;
		pid = start_child(light);
		if (i % 2) /* the others may still be starting */
			wait_for_launch();
		nanosleep(&nap, NULL);
		kill(pid, SIGKILL);
		wait_child(pid);
	}
	/* Each may have had its unknown kernel free. */
	CHECK(device->busy_ns - before <= (now_ns() - begin) / 2 + 40 * 2 * 300000 + 10 * MS);
	CHECK(device->busy_ns > before);
	CHECK(device->due_ns < now_ns() + 1000 * MS);
	before = now_ns();
	OK(in_child(light_once));
	CHECK(now_ns() - before < 5000 * MS);
}

/* A gate holds launches until it is lowered, and one left behind does not hold for ever. */
static void held(void)
{
	uint64_t begin;
	CUfunction function;

	use_gpu();
	function = busy();
	begin = now_ns();
	OK(launch(function, 1, 1000, NULL));
	counters[2] = now_ns() - begin;
}

static void gates(void)
{
	struct timespec nap = {.tv_nsec = 200000000};
	struct vgpu_region_device *device;
	int pid;

	world_set_compute("uid_gpu", 30, VGPU_POLICY_FORCE, 0);
	device = &world_region("uid_gpu")->devices[0];
	device->gate = 1;
	pid = start_child(held);
	nanosleep(&nap, NULL);
	device->gate = 0;
	syscall(SYS_futex, &device->gate, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
	OK(wait_child(pid));
	CHECK(counters[2] > 50 * MS && counters[2] < 1500 * MS);
	device->gate = 2;
	OK(in_child(held));
	CHECK(counters[2] > 1500 * MS && counters[2] < 10000 * MS);
	device->gate = 0;
}

static void forked_child(void)
{
	CUfunction function = (CUfunction)(uintptr_t)counters[3];

	IS(launch(function, 1, 1000, NULL), CUDA_ERROR_NOT_INITIALIZED);
}

static void forks(void)
{
	CUfunction function;

	use_gpu();
	function = busy();
	OK(launch(function, 1, 1000, NULL));
	counters[3] = (uintptr_t)function;
	OK(in_child(forked_child));
	OK(launch(function, 1, 1000, NULL));
}

int main(void)
{
	counters = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(counters != MAP_FAILED);
	world();
	world_grant("uid_gpu", CARD_A, 0, NULL, 0);
	world_set_compute("uid_gpu", 30, VGPU_POLICY_DEFAULT, 0);
	OK(in_child(limits));
	world_set_compute("uid_gpu", 50, VGPU_POLICY_DEFAULT, 0);
	OK(in_child(variants));
	world_set_compute("uid_gpu", 90, VGPU_POLICY_DEFAULT, 0);
	OK(in_child(many_kernels));
	OK(in_child(long_unknown));
	OK(in_child(forks));
	gates();
	two_tenants();
	kills();
	return 0;
}
