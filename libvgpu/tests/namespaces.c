/* SPDX-License-Identifier: Apache-2.0 */
/* Containers of one claim have PID namespaces of their own: the living are still
 * told from the dead, and NVML lists a process under the reader's pid for it. */
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "world.h"

struct process_info {
	unsigned int pid;
	unsigned long long used;
	unsigned int gpu_instance, compute_instance;
};
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
						     struct process_info *infos);

static struct channel talk;

static void hold(void)
{
	use_gpu();
	must_alloc(2000);
	channel_tell(talk.up[1]);
	pause();
}

/* Has pid 1 in its own namespace, as the holder has in another. */
static void compete(void)
{
	CUdeviceptr pointer;

	IS(getpid(), 1);
	use_gpu();
	IS(cuMemAlloc_v2(&pointer, 1500 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	must_alloc(1000);
}

static void all_of_it(void)
{
	use_gpu();
	must_alloc(3000);
}

int main(void)
{
	struct process_info infos[4];
	unsigned int count = 4;
	nvmlDevice_t device;
	int child;

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	channel_open(&talk);
	if (unshare(CLONE_NEWPID) != 0)
		return 77;
	child = start_child(hold);
	channel_hear(talk.up[0]);
	/* A process can unshare its children's namespace only once: a helper made
	 * before would do, but one grandchild namespace is the same test. */
	int other = fork();

	CHECK(other >= 0);
	if (other == 0) {
		if (unshare(CLONE_NEWPID) != 0)
			_Exit(77);
		_Exit(in_child(compete));
	}
	OK(wait_child(other));
	OK(nvmlInit_v2());
	OK(nvmlDeviceGetHandleByUUID(CARD_A, &device));
	OK(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, infos));
	IS(count, 1);
	IS(infos[0].pid, child);
	IS(infos[0].used, 2000 * MIB);
	kill(child, SIGKILL);
	wait_child(child);
	/* Its namespace is gone with its first process: a new one is needed. */
	other = fork();
	if (other < 0) {
		fprintf(stderr, "no process can be started any more: the rest is not tested\n");
		return 0;
	}
	if (other == 0) {
		all_of_it();
		_Exit(0);
	}
	OK(wait_child(other));
	return 0;
}
