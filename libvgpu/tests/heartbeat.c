/* SPDX-License-Identifier: Apache-2.0 */
/* What the node said of the moment holds while its heartbeat goes on, and again when
 * another node's begins. */
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "world.h"

#define MS UINT64_C(1000000)

static struct vgpu_grant *grant;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void launch(CUfunction function)
{
	uint64_t ns = 1 * MS;
	void *params[] = {&ns};

	OK(cuLaunchKernel(function, 1, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
	OK(cuCtxSynchronize());
}

static void run(void)
{
	struct timespec nap = {.tv_nsec = 20000000};
	struct vgpu_region_device *device;
	CUfunction function;
	CUmodule module;
	uint64_t begin, charged;

	use_gpu();
	OK(cuModuleLoadData(&module, "x"));
	OK(cuModuleGetFunction(&function, module, "busy_ns"));
	device = &world_region("uid_gpu")->devices[0];
	__atomic_store_n(&grant->heartbeat, 1, __ATOMIC_RELAXED);
	begin = now_ns();
	for (int i = 0; i < 5; i++)
		launch(function);
	/* If it was not stopped for so long: alone, so nothing is charged. */
	CHECK(now_ns() - begin > VGPU_HEARTBEAT_STALE_MS * MS || !device->due_ns);
	/* Nobody says so any more. */
	while (!device->due_ns) {
		nanosleep(&nap, NULL);
		launch(function);
	}
	CHECK(now_ns() - begin > (VGPU_HEARTBEAT_STALE_MS - 100) * MS);
	IS(device->limit_permille, 300);
	/* A correction that was left behind does not hold: the factor would be a tenth. */
	device->trim_permille = 100;
	for (int i = 0; i < 20; i++)
		launch(function);
	charged = device->busy_ns;
	for (int i = 0; i < 20; i++)
		launch(function);
	CHECK(device->busy_ns - charged > 15 * MS);
	/* The next node. */
	__atomic_store_n(&grant->heartbeat, 2, __ATOMIC_RELAXED);
	begin = now_ns();
	charged = device->busy_ns;
	launch(function);
	CHECK(now_ns() - begin > VGPU_HEARTBEAT_STALE_MS * MS || device->busy_ns == charged);
}

int main(void)
{
	FILE *file;

	world();
	world_grant("uid_gpu", CARD_A, 0, NULL, 0);
	file = fopen(world_path("grants/uid_gpu/grant"), "r+e");
	CHECK(file);
	grant = mmap(NULL, sizeof(*grant), PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
	CHECK(grant != MAP_FAILED);
	fclose(file);
	grant->devices[0].cores_percent = 30;
	grant->devices[0].flags = VGPU_GRANT_ALONE;
	OK(in_child(run));
	return 0;
}
