/* SPDX-License-Identifier: Apache-2.0 */
/* NVML lists the processes of the grant and no others, with what they were charged. */
#include <signal.h>
#include <unistd.h>

#include "world.h"

static struct channel talk;
static uint64_t held_mib;

static void hold(void)
{
	use_gpu();
	must_alloc(held_mib);
	channel_tell(talk.up[1]);
	pause();
}

/* A tenant of the same card with a grant of its own. */
static void hold_other(void)
{
	setenv("VGPU_GRANT_ROOT", world_path("others"), 1);
	hold();
}

static int start_holder(void (*function)(void), uint64_t mib)
{
	int child;

	held_mib = mib;
	child = start_child(function);
	channel_hear(talk.up[0]);
	return child;
}

static uint64_t bytes_of(const nvmlProcessInfo_v2_t *infos, unsigned int count, int pid)
{
	for (unsigned int i = 0; i < count; i++)
		if (infos[i].pid == (unsigned int)pid)
			return infos[i].usedGpuMemory;
	return 0;
}

static void check_lists(nvmlDevice_t device, int child)
{
	nvmlProcessUtilizationSample_t samples[8];
	nvmlProcessInfo_v2_t infos[8];
	nvmlProcessInfo_v1_t first[8];
	nvmlMemory_t memory;
	unsigned int count = 8;

	OK(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, infos));
	IS(count, 2);
	IS(bytes_of(infos, count, getpid()), 100 * MIB);
	IS(bytes_of(infos, count, child), 2000 * MIB);
	OK(nvmlDeviceGetMemoryInfo(device, &memory));
	IS(memory.used, 2100 * MIB); /* the list adds up */
	OK(nvmlDeviceGetComputeRunningProcesses_v2(device, &count, infos));
	IS(count, 2);
	count = 8;
	OK(nvmlDeviceGetComputeRunningProcesses(device, &count, first));
	IS(count, 2);
	IS(first[0].usedGpuMemory + first[1].usedGpuMemory, 2100 * MIB);
	/* A list that is too short is told how long it must be. */
	count = 1;
	IS(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, infos),
	   NVML_ERROR_INSUFFICIENT_SIZE);
	IS(count, 2);
	count = 0;
	IS(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, NULL),
	   NVML_ERROR_INSUFFICIENT_SIZE);
	IS(count, 2);
	IS(nvmlDeviceGetComputeRunningProcesses_v3(device, NULL, NULL),
	   NVML_ERROR_INVALID_ARGUMENT);
	count = 8;
	OK(nvmlDeviceGetGraphicsRunningProcesses_v3(device, &count, infos));
	IS(count, 0);
	count = 8;
	IS(nvmlDeviceGetProcessUtilization(device, NULL, NULL, 0), NVML_ERROR_INVALID_ARGUMENT);
	if (nvmlDeviceGetProcessUtilization(device, samples, &count, 0) == NVML_SUCCESS)
		for (unsigned int i = 0; i < count; i++)
			CHECK(samples[i].pid == (unsigned int)getpid() ||
			      samples[i].pid == (unsigned int)child);
}

int main(void)
{
	nvmlProcessInfo_v2_t infos[8];
	unsigned int count = 8;
	nvmlDevice_t device;
	int child, other;

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	world_grant_at("others", "uid2_gpu", CARD_A, 5000);
	channel_open(&talk);
	child = start_holder(hold, 2000);
	other = start_holder(hold_other, 4000);
	use_gpu();
	must_alloc(100);
	OK(nvmlInit_v2());
	OK(nvmlDeviceGetHandleByUUID(CARD_A, &device));
	check_lists(device, child);
	kill(child, SIGKILL);
	wait_child(child);
	OK(nvmlDeviceGetComputeRunningProcesses_v3(device, &count, infos));
	IS(count, 1); /* the dead are not listed */
	IS(infos[0].pid, getpid());
	kill(other, SIGKILL);
	wait_child(other);
	return 0;
}
