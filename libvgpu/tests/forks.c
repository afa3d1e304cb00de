/* SPDX-License-Identifier: Apache-2.0 */
/* fork: a child is a process of its own, and takes nothing of its parent's; no lock of
 * its parent's either, whatever the parent was about. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "world.h"

static void after_cuda(void)
{
	CUdeviceptr pointer;
	nvmlDevice_t device;
	nvmlMemory_t memory;

	/* As the driver says; and nothing stays charged. */
	IS(cuMemAlloc_v2(&pointer, 100 * MIB), CUDA_ERROR_NOT_INITIALIZED);
	OK(nvmlDeviceGetHandleByUUID(CARD_A, &device));
	OK(nvmlDeviceGetMemoryInfo(device, &memory));
	IS(memory.used, 1000 * MIB);
}

static void before_cuda(void)
{
	use_gpu();
	OK(cuMemFree_v2(must_alloc(2000)));
	must_alloc(2000);
	IS(world_region("uid_gpu")->devices[0].used_bytes, 2000 * MIB);
}

static bool armed;
static int child_in_the_lock;
static struct channel talk;
static CUipcMemHandle *handle;

static void stay(void)
{
	pause();
}

/* libvgpu writes so to the list of shared memory, and has it locked: another thread of
 * the program may fork just then. */
__attribute__((visibility("default"))) ssize_t pwrite(int fd, const void *data, size_t size,
						      off_t offset)
{
	if (armed) {
		armed = false;
		child_in_the_lock = start_child(stay);
	}
	return syscall(SYS_pwrite64, fd, data, size, offset);
}

static void open_it(void)
{
	CUdeviceptr pointer;

	channel_hear(talk.down[0]);
	use_gpu();
	OK(cuIpcOpenMemHandle_v2(&pointer, *handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
	IS(world_region("uid_gpu")->devices[0].used_bytes, 20 * MIB); /* in the list: paid for */
}

static void in_the_lock(void)
{
	CUdeviceptr first, second;
	int other;

	channel_open(&talk);
	other = start_child(open_it);
	use_gpu();
	first = must_alloc(10);
	second = must_alloc(10);
	armed = true;
	OK(cuIpcGetMemHandle(handle, first));
	CHECK(child_in_the_lock);
	OK(cuIpcGetMemHandle(handle, second));
	channel_tell(talk.down[1]);
	OK(wait_child(other));
	kill(child_in_the_lock, SIGKILL);
	wait_child(child_in_the_lock);
}

int main(void)
{
	CUdeviceptr pointer, other;

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	handle = mmap(NULL, sizeof(*handle), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	CHECK(handle != MAP_FAILED);
	OK(in_child(in_the_lock));
	OK(nvmlInit_v2()); /* the grants are loaded before the fork */
	OK(in_child(before_cuda));
	use_gpu();
	pointer = must_alloc(1000);
	OK(in_child(after_cuda));
	IS(world_region("uid_gpu")->devices[0].used_bytes, 1000 * MIB);
	other = must_alloc(2000);
	IS(cuMemAlloc_v2(&other, MIB), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFree_v2(pointer));
	IS(world_region("uid_gpu")->devices[0].used_bytes, 2000 * MIB);
	return 0;
}
