/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever kills a process, its bytes come back; and one that lives keeps its
 * bytes, whatever descriptors it closes. */
#include <signal.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "world.h"

#define FUZZ_ROUNDS 40
#define FUZZ_PROCESSES 8
#define OVERLAYFS 0x794c7630

static struct channel talk;

static void hold_2900(void)
{
	use_gpu();
	must_alloc(2900);
	channel_tell(talk.up[1]);
	pause();
}

static void close_everything(void)
{
	use_gpu();
	must_alloc(2000);
	for (int fd = 3; fd < 1024; fd++)
		if (fd != talk.up[1])
			close(fd);
	channel_tell(talk.up[1]);
	pause();
}

static void refused_1500(void)
{
	CUdeviceptr pointer;

	use_gpu();
	IS(cuMemAlloc_v2(&pointer, 1500 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	must_alloc(1000);
}

static void churn(void)
{
	CUdeviceptr pointers[16] = {0};

	use_gpu();
	for (unsigned int i = 0;; i = (i * 5 + 3) % 16) {
		if (pointers[i])
			OK(cuMemFree_v2(pointers[i]));
		pointers[i] = 0;
		if (i % 3 == 0)
			cuMemAllocAsync(&pointers[i], (1 + i) * 8 * MIB, NULL);
		else
			cuMemAlloc_v2(&pointers[i], (1 + i) * 8 * MIB);
	}
}

static void all_of_it(void)
{
	use_gpu();
	must_alloc(3000);
}

int main(void)
{
	int child, children[FUZZ_PROCESSES];
	struct vgpu_region *region;
	struct statfs files;

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	channel_open(&talk);
	child = start_child(hold_2900);
	channel_hear(talk.up[0]);
	kill(child, SIGKILL);
	wait_child(child);
	OK(in_child(all_of_it)); /* which exits without freeing, too */

	/* On overlayfs a lock needs its descriptor: see slots.c. */
	OK(statfs(world_path("grants"), &files));
	if (files.f_type != OVERLAYFS) {
		child = start_child(close_everything);
		channel_hear(talk.up[0]);
		OK(in_child(refused_1500));
		kill(child, SIGKILL);
		wait_child(child);
	}

	srand(7);
	for (int i = 0; i < FUZZ_PROCESSES; i++)
		children[i] = start_child(churn);
	for (int round = 0; round < FUZZ_ROUNDS; round++) {
		int victim = rand() % FUZZ_PROCESSES;

		usleep((unsigned int)rand() % 20000);
		kill(children[victim], SIGKILL);
		IS(wait_child(children[victim]), 128 + SIGKILL);
		children[victim] = start_child(churn);
	}
	for (int i = 0; i < FUZZ_PROCESSES; i++) {
		kill(children[i], SIGKILL);
		wait_child(children[i]);
	}
	OK(in_child(all_of_it));

	/* A repairer that died: the gate is up and nobody holds the lock. */
	region = world_region("uid_gpu");
	region->header.gate = 1;
	region->devices[0].used_bytes = 12345;
	OK(in_child(all_of_it));
	IS(region->header.gate, 0);
	CHECK(region->devices[0].peak_bytes <= 3000 * MIB);
	return 0;
}
