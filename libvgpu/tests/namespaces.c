/* SPDX-License-Identifier: Apache-2.0 */
/* Containers of one claim have PID namespaces of their own: the living are still
 * told from the dead, and each sees its own processes by its own ids. */
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "world.h"

static struct channel talk;

static void hold(void)
{
	use_gpu();
	must_alloc(2000);
	channel_tell(talk.up[1]);
	pause();
}

/* NVML's list has this process alone, by the id that it knows itself by. */
static void only_me(uint64_t mib)
{
	nvmlProcessInfo_v2_t infos[4];
	unsigned int count = 4;
	nvmlDevice_t device;

	OK(nvmlInit_v2());
	OK(nvmlDeviceGetHandleByUUID(CARD_A, &device));
	OK(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, infos));
	IS(count, mib ? 1 : 0);
	if (mib) {
		IS(infos[0].pid, getpid());
		IS(infos[0].usedGpuMemory, mib * MIB);
	}
}

/* Has pid 1 in its own namespace, as the holder has in another. */
static void compete(void)
{
	CUdeviceptr pointer;

	IS(getpid(), 1);
	use_gpu();
	IS(cuMemAlloc_v2(&pointer, 1500 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	must_alloc(1000);
	only_me(1000);
}

static void all_of_it(void)
{
	use_gpu();
	must_alloc(3000);
}

int main(void)
{
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
	only_me(0);
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
