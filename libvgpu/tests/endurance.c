/* SPDX-License-Identifier: Apache-2.0 */
/* The compute limit over many launches of every kind: no way round it, nothing that
 * stands still, drifts or grows. On the simulated driver, in real time. */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "world.h"

#define MS UINT64_C(1000000)
#define US UINT64_C(1000)

static uint64_t *shared; /* with children */

/* ---- a wall clock that steps: nothing here or in the library may go by it */

static int wall_clock_is_read;

__attribute__((visibility("default"))) int clock_gettime(clockid_t clock, struct timespec *now)
{
	long result = syscall(SYS_clock_gettime, clock, now);

	if (clock == CLOCK_REALTIME && result == 0)
		now->tv_sec += __atomic_add_fetch(&wall_clock_is_read, 1, __ATOMIC_RELAXED) % 2
				       ? 86400
				       : -86400;
	return (int)result;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void nap(uint64_t ns)
{
	struct timespec time = {.tv_sec = (time_t)(ns / 1000000000u),
				.tv_nsec = (long)(ns % 1000000000u)};

	nanosleep(&time, NULL);
}

/* ---- the same small things again and again */

static void set_cores(const char *name, unsigned int device, uint32_t percent)
{
	FILE *file = fopen(world_path("grants/%s/grant", name), "r+e");
	struct vgpu_grant grant;

	CHECK(file && fread(&grant, sizeof(grant), 1, file) == 1);
	grant.devices[device].cores_percent = percent;
	CHECK(fseek(file, 0, SEEK_SET) == 0);
	CHECK(fwrite(&grant, sizeof(grant), 1, file) == 1);
	fclose(file);
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

static struct vgpu_region_device *told(unsigned int device)
{
	return &world_region("uid_gpu")->devices[device];
}

/* A sanitizer keeps what was freed: there is nothing to be learned from it. */
static long resident_kib(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return 0;
#endif
	FILE *file = fopen("/proc/self/statm", "re");
	long size, resident;

	CHECK(file && fscanf(file, "%ld %ld", &size, &resident) == 2);
	fclose(file);
	return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static void is_within(double value, double low, double high, const char *what)
{
	if (value < low || value > high) {
		fprintf(stderr, "%s: %.1f, not within %.1f and %.1f\n", what, value, low, high);
		_Exit(1);
	}
}

/* Ten of them: what one costs is measured, and on a busy machine roughly. */
#define PAID(device, ns, call)                                                                     \
	do {                                                                                       \
		uint64_t paid_before;                                                              \
		OK(call); /* settles what was measured before */                                   \
		OK(cuCtxSynchronize());                                                            \
		OK(call);                                                                          \
		paid_before = told(device)->busy_ns;                                               \
		for (int paid_i = 0; paid_i < 10; paid_i++)                                        \
			OK(call);                                                                  \
		CHECK(told(device)->busy_ns >= paid_before + (ns) * 7);                            \
	} while (0)

/* ---- other ways to launch */

static void from_before_cuda_4(void)
{
	uint64_t ns = 1 * MS, before;
	CUfunction function;
	CUstream stream;

	use_gpu();
	function = busy();
	OK(cuStreamCreate(&stream, 0));
	OK(cuFuncSetBlockShape(function, 64, 1, 1));
	OK(cuParamSetSize(function, sizeof(ns)));
	OK(cuParamSetv(function, 0, &ns, sizeof(ns)));
	for (int i = 0; i < 2; i++) { /* the first is paid when it is measured */
		OK(cuLaunch(function));
		OK(cuLaunchGrid(function, 3, 5));
		OK(cuLaunchGridAsync(function, 7, 5, stream));
		OK(cuCtxSynchronize());
	}
	PAID(0, ns, cuLaunch(function));
	PAID(0, ns, cuLaunchGrid(function, 3, 5));
	PAID(0, ns, cuLaunchGridAsync(function, 7, 5, stream));
	before = told(0)->busy_ns;
	IS(cuLaunchGrid(function, 0, 5), CUDA_ERROR_INVALID_VALUE);
	IS(told(0)->busy_ns, before);
}

static void on_several_cards(void)
{
	uint64_t ns[2] = {1 * MS, 3 * MS}, before[2];
	void *params[2][1] = {{&ns[0]}, {&ns[1]}};
	CUDA_LAUNCH_PARAMS parts[2];
	CUcontext contexts[2], current;
	CUfunction function;
	CUstream streams[2];

	OK(cuInit(0));
	for (int i = 1; i >= 0; i--) {
		OK(cuDevicePrimaryCtxRetain(&contexts[i], i));
		OK(cuCtxSetCurrent(contexts[i]));
		OK(cuStreamCreate(&streams[i], 0));
	}
	function = busy();
	for (int i = 0; i < 2; i++)
		parts[i] =
			(CUDA_LAUNCH_PARAMS){function, 9, 1, 1, 32, 1, 1, 0, streams[i], params[i]};
	for (int i = 0; i < 3; i++) {
		OK(cuLaunchCooperativeKernelMultiDevice(parts, 2, 0));
		nap(5 * MS);
	}
	before[0] = told(0)->busy_ns;
	before[1] = told(1)->busy_ns;
	for (int i = 0; i < 10; i++)
		OK(cuLaunchCooperativeKernelMultiDevice(parts, 2, 0));
	CHECK(told(0)->busy_ns >= before[0] + ns[0] * 7);
	CHECK(told(1)->busy_ns >= before[1] + ns[1] * 7);
	CHECK((told(1)->busy_ns - before[1]) * 2 > (told(0)->busy_ns - before[0]) * 3);
	OK(cuCtxGetCurrent(&current));
	CHECK(current == contexts[0]);
	/* In the driver's words, and not paid for. */
	before[0] = told(0)->busy_ns;
	parts[1].hStream = streams[0];
	IS(cuLaunchCooperativeKernelMultiDevice(parts, 2, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuLaunchCooperativeKernelMultiDevice(NULL, 2, 0), CUDA_ERROR_INVALID_VALUE);
	CHECK(told(0)->busy_ns <= before[0] + ns[0] / 2);
}

/* ---- graphs that are changed in place */

static CUgraph capture(CUfunction function, uint64_t ns, CUstream stream)
{
	CUgraph graph;

	OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
	OK(launch(function, 1, ns, stream));
	OK(launch(function, 2, ns, stream));
	OK(cuStreamEndCapture(stream, &graph));
	return graph;
}

/* Launches a graph of so many nanoseconds for a while. It must not get more than its
 * half of the card (less, where the machine has other things to do), and pay for what it
 * took. */
static void run_graph(CUgraphExec exec, uint64_t ns, CUstream stream, unsigned int milliseconds,
		      const char *what)
{
	uint64_t begin = now_ns(), end = begin + milliseconds * MS, done = 0;
	uint64_t before = told(0)->busy_ns;

	while (now_ns() < end) {
		OK(cuGraphLaunch(exec, stream));
		done += ns;
	}
	OK(cuStreamSynchronize(stream));
	if (!what)
		return;
	is_within((double)done * 100 / (double)(now_ns() - begin), 0, 65, what);
	OK(cuGraphLaunch(exec, stream)); /* settles the last ones */
	is_within((double)(told(0)->busy_ns - before) * 100 / (double)(done + ns), 75, 130, what);
}

enum change { UPDATE, UPDATE_2, NODE, NODE_2, ANY_NODE };

static void change(enum change way, CUgraphExec exec, CUgraph graph, CUgraph other, uint64_t ns)
{
	void *params[] = {&ns};
	CUDA_KERNEL_NODE_PARAMS_v1 old = {.kernelParams = params};
	CUDA_KERNEL_NODE_PARAMS kernel = {.kernelParams = params};
	CUgraphNodeParams any = {.type = CU_GRAPH_NODE_TYPE_KERNEL, .kernel = kernel};
	CUgraphExecUpdateResultInfo info;
	CUgraphNode nodes[2], error;
	size_t count = 2;
	int result;

	OK(cuGraphGetNodes(graph, nodes, &count));
	IS(count, 2);
	if (way == UPDATE)
		OK(cuGraphExecUpdate(exec, other, &error, &result));
	if (way == UPDATE_2)
		OK(cuGraphExecUpdate_v2(exec, other, &info));
	for (size_t i = 0; i < count; i++) {
		if (way == NODE)
			OK(cuGraphExecKernelNodeSetParams(exec, nodes[i], &old));
		if (way == NODE_2)
			OK(cuGraphExecKernelNodeSetParams_v2(exec, nodes[i], &kernel));
		if (way == ANY_NODE)
			OK(cuGraphExecNodeSetParams(exec, nodes[i], &any));
	}
}

static void changed_graphs(void)
{
	const uint64_t little = 200 * US, much = 8 * MS;
	CUgraph small, large;
	CUgraphNode nodes[2];
	CUfunction function;
	CUgraphExec exec;
	size_t count = 2;
	CUstream stream;
	uint64_t before;

	use_gpu();
	function = busy();
	OK(cuStreamCreate(&stream, 0));
	small = capture(function, little, stream);
	large = capture(function, much, stream);
	OK(cuGraphInstantiateWithFlags(&exec, small, 0));
	run_graph(exec, 2 * little, stream, 150, NULL);
	for (enum change way = UPDATE; way <= ANY_NODE; way++) {
		change(way, exec, small, large, much);
		run_graph(exec, 2 * much, stream, 400, "a graph that got longer");
		change(way, exec, small, small, little);
		run_graph(exec, 2 * little, stream, 50, NULL); /* what is owed from before */
		run_graph(exec, 2 * little, stream, 200, "a graph that got shorter");
	}
	/* Changed before each launch, a little: it is paid as it was. */
	before = told(0)->busy_ns;
	for (int i = 0; i < 200; i++) {
		change(NODE_2, exec, small, small, little + (uint64_t)(i % 10) * US);
		OK(cuGraphLaunch(exec, stream));
	}
	OK(cuStreamSynchronize(stream));
	OK(cuGraphLaunch(exec, stream));
	is_within((double)(told(0)->busy_ns - before) / (double)(401 * little), 0.85, 1.25,
		  "changed before each launch, paid of what it took");
	/* Half of it is left out. */
	OK(cuGraphGetNodes(small, nodes, &count));
	OK(cuGraphNodeSetEnabled(exec, nodes[0], 0));
	run_graph(exec, little, stream, 50, NULL);
	run_graph(exec, little, stream, 200, "a graph of which half is left out");
	IS(cuGraphNodeSetEnabled(exec, NULL, 0), CUDA_ERROR_INVALID_VALUE);
	OK(cuGraphExecDestroy(exec));
	/* Its handle may be another one's now, which has not been changed. */
	for (int i = 0; i < 100; i++) {
		OK(cuGraphInstantiateWithFlags(&exec, small, 0));
		OK(cuGraphExecUpdate_v2(exec, small, &(CUgraphExecUpdateResultInfo){0}));
		OK(cuGraphLaunch(exec, stream));
		OK(cuGraphExecDestroy(exec));
	}
}

/* ---- threads that come and go */

static CUfunction everybodys;
static CUcontext everybodys_context;

static void *brief(void *argument)
{
	uint64_t ns = 20 * US;
	void *params[] = {&ns};

	(void)argument;
	OK(cuCtxSetCurrent(everybodys_context));
	for (int i = 0; i < 3; i++)
		OK(cuLaunchKernel_ptsz(everybodys, 1, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
	return NULL;
}

static void run_threads(unsigned int count)
{
	pthread_t threads[8];

	for (unsigned int done = 0; done < count; done += 8) {
		for (int i = 0; i < 8; i++)
			OK(pthread_create(&threads[i], NULL, brief, NULL));
		for (int i = 0; i < 8; i++)
			OK(pthread_join(threads[i], NULL));
	}
}

static void threads_that_come_and_go(void)
{
	uint64_t before, began;
	long resident;

	use_gpu();
	OK(cuCtxGetCurrent(&everybodys_context));
	everybodys = busy();
	run_threads(800);
	resident = resident_kib();
	before = told(0)->busy_ns;
	began = now_ns();
	run_threads(3200);
	is_within((double)(resident_kib() - resident), -65536, 2048, "KiB after 3200 threads");
	is_within((double)(told(0)->busy_ns - before) / 1e6, 3200 * 3 * 0.02 * 0.7,
		  3200 * 3 * 0.02 * 1.3, "ms paid by 3200 threads");
	is_within((double)(now_ns() - began) / 1e6, 0, 60000, "ms for 3200 threads");
	CHECK(told(0)->due_ns < now_ns() + 500 * MS);
}

/* ---- more kernels than are worth remembering */

static void many_kernels(void)
{
	const unsigned int kinds = 5000, rounds = 4;
	CUfunction function;
	uint64_t before;
	long resident = 0;

	use_gpu();
	function = busy();
	before = told(0)->busy_ns;
	for (unsigned int round = 0; round < rounds; round++) {
		for (unsigned int i = 1; i <= kinds; i++)
			OK(launch(function, i, 10 * US, NULL));
		if (!round)
			resident = resident_kib();
	}
	OK(cuCtxSynchronize());
	OK(launch(function, 1, 10 * US, NULL)); /* settles what was measured last */
	is_within((double)(resident_kib() - resident), -65536, 1024, "KiB after 5000 kernels");
	is_within((double)(told(0)->busy_ns - before) / 1e6, rounds * kinds * 0.01 * 0.8,
		  rounds * kinds * 0.01 * 1.2, "ms paid for 5000 kernels, four times each");
}

/* ---- a capture beside launches */

static int stop;

static void *launch_on(void *argument)
{
	CUstream stream;

	(void)argument;
	OK(cuCtxSetCurrent(everybodys_context));
	OK(cuStreamCreate(&stream, 0));
	for (unsigned int i = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++)
		OK(launch(everybodys, 1 + i % 400, 30 * US, stream));
	OK(cuStreamSynchronize(stream));
	return NULL;
}

static void *ask(void *event)
{
	OK(cuCtxSetCurrent(everybodys_context));
	IS(cuEventQuery(event), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
	return NULL;
}

static void captures_beside_launches(void)
{
	pthread_t thread;
	CUstream stream;
	CUevent event;
	CUgraph graph;
	size_t nodes;

	use_gpu();
	OK(cuCtxGetCurrent(&everybodys_context));
	everybodys = busy();
	OK(cuStreamCreate(&stream, 0));
	OK(pthread_create(&thread, NULL, launch_on, NULL));
	for (int i = 0; i < 200; i++) {
		OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
		for (unsigned int j = 0; j < 5; j++) {
			OK(launch(everybodys, 1000 + j, 1 * MS, stream));
			nap(200 * US);
		}
		OK(cuStreamEndCapture(stream, &graph));
		OK(cuGraphGetNodes(graph, NULL, &nodes));
		IS(nodes, 5);
		OK(cuGraphDestroy(graph));
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	OK(pthread_join(thread, NULL));
	/* What a thread that does not know would have done to it. */
	OK(cuEventCreate(&event, 0));
	OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
	OK(pthread_create(&thread, NULL, ask, event));
	OK(pthread_join(thread, NULL));
	IS(cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

/* ---- others that use the same bucket, stopped anywhere */

static void go_on_for_ever(void)
{
	CUfunction function;

	use_gpu();
	function = busy();
	for (unsigned int i = 0;; i++) {
		OK(launch(function, 1 + i % 7, 100 * US, NULL));
		__atomic_add_fetch(&shared[0], 1, __ATOMIC_RELAXED);
	}
}

static void ten_launches(void)
{
	CUfunction function;

	use_gpu();
	function = busy();
	for (int i = 0; i < 10; i++)
		OK(launch(function, 1, 100 * US, NULL));
}

static void peers_stopped_anywhere(void)
{
	unsigned int seed = 20261121;
	int pid = start_child(go_on_for_ever);

	for (int i = 0; i < 30; i++) {
		uint64_t before = shared[0], began;

		while (shared[0] < before + 3)
			nap(1 * MS);
		nap((uint64_t)rand_r(&seed) % 3000000);
		CHECK(kill(pid, SIGSTOP) == 0);
		began = now_ns();
		OK(in_child(ten_launches));
		CHECK(now_ns() - began < 5000 * MS);
		CHECK(kill(pid, SIGCONT) == 0);
	}
	CHECK(kill(pid, SIGKILL) == 0);
	IS(wait_child(pid), 128 + SIGKILL);
	CHECK(told(0)->due_ns < now_ns() + 1000 * MS);
	OK(in_child(ten_launches));
}

/* ---- clocks */

static void under_a_clock_that_steps(void)
{
	uint64_t begin, done = 0;
	CUfunction function;
	struct timespec now;

	use_gpu();
	function = busy();
	for (int i = 0; i < 200; i++)
		OK(launch(function, 1, 200 * US, NULL));
	clock_gettime(CLOCK_REALTIME, &now); /* so that it steps in between, too */
	begin = now_ns();
	while (now_ns() - begin < 400 * MS) {
		OK(launch(function, 1, 200 * US, NULL));
		done += 200 * US;
	}
	OK(cuCtxSynchronize());
	is_within((double)done * 100 / (double)(now_ns() - begin), 0, 60, "50 %");
	/* A word from another clock's time: of a machine that was moved, or of before a boot. */
	for (int64_t hours = -5; hours <= 5; hours += 10) {
		told(0)->due_ns = (uint64_t)((int64_t)now_ns() + hours * 3600 * 1000 * (int64_t)MS);
		begin = now_ns();
		for (int i = 0; i < 100; i++)
			OK(launch(function, 1, 200 * US, NULL));
		is_within((double)(now_ns() - begin) / 1e6, 15, 2000, "ms for 20 ms at 50 %");
	}
}

int main(void)
{
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED);
	world();
	world_grant("uid_gpu", CARD_A, 0, CARD_B, 0);
	set_cores("uid_gpu", 0, 50);
	set_cores("uid_gpu", 1, 50);
	OK(in_child(from_before_cuda_4));
	OK(in_child(on_several_cards));
	OK(in_child(changed_graphs));
	OK(in_child(captures_beside_launches));
	peers_stopped_anywhere();
	OK(in_child(under_a_clock_that_steps));
	set_cores("uid_gpu", 0, 90);
	OK(in_child(threads_that_come_and_go));
	OK(in_child(many_kernels));
	return 0;
}
