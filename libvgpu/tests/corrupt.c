/* SPDX-License-Identifier: Apache-2.0 */
/* A region that cannot be used still leaves the limit; a grant that cannot be
 * used leaves no GPU. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "world.h"

static void limited(void)
{
	CUdeviceptr pointer = 5;

	use_gpu();
	IS(cuMemAlloc_v2(&pointer, 3002 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	must_alloc(2900);
	IS(cuMemAlloc_v2(&pointer, 200 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(pointer, 5);
}

static void closed(void)
{
	CUdeviceptr pointer;

	IS(cuInit(0), CUDA_ERROR_NOT_INITIALIZED);
	IS(nvmlInit_v2(), NVML_ERROR_NO_PERMISSION);
	IS(cuMemAlloc_v2(&pointer, MIB), CUDA_ERROR_NOT_INITIALIZED);
}

static void regions(void)
{
	const char *path = world_path("grants/uid_gpu/region/region");
	static char content[sizeof(struct vgpu_region) + 1];

	OK(in_child(limited)); /* makes a good one */
	memcpy(content, world_region("uid_gpu"), sizeof(struct vgpu_region));
	for (size_t size = 0; size <= sizeof(struct vgpu_region) + 1; size += 48019) {
		world_write(path, content, size);
		OK(in_child(limited));
	}
	world_write(path, content, sizeof(struct vgpu_region) + 1);
	OK(in_child(limited));
	for (size_t offset = 0; offset < offsetof(struct vgpu_region_header, flags); offset += 4) {
		content[offset] ^= 0x55;
		world_write(path, content, sizeof(struct vgpu_region));
		OK(in_child(limited));
		content[offset] ^= 0x55;
	}
	/* A well-formed header over noise: it may refuse, but must not crash. */
	for (size_t i = offsetof(struct vgpu_region, slots); i < sizeof(struct vgpu_region); i++)
		content[i] = (char)(i * 31);
	world_write(path, content, sizeof(struct vgpu_region));
	OK(in_child(limited));
	unlink(path);
	CHECK(mkdir(path, 0777) == 0);
	OK(in_child(limited));
	CHECK(rmdir(path) == 0);
	CHECK(rmdir(world_path("grants/uid_gpu/region")) == 0);
	OK(in_child(limited));
	CHECK(mkdir(world_path("grants/uid_gpu/region"), 0777) == 0);
}

static void grants(void)
{
	const char *path = world_path("grants/uid_gpu/grant");
	static char good[sizeof(struct vgpu_grant)], content[sizeof(struct vgpu_grant) + 1];
	static const size_t offsets[] = {0, 8, 12, 24, 256, 268};
	FILE *file = fopen(path, "re");

	CHECK(file && fread(good, sizeof(good), 1, file) == 1);
	fclose(file);
	for (size_t size = 0; size < sizeof(good); size += 613) {
		world_write(path, good, size);
		OK(in_child(closed));
	}
	for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
		memcpy(content, good, sizeof(good));
		content[offsets[i]] ^= 0x55;
		world_write(path, content, sizeof(good));
		OK(in_child(closed));
	}
	unlink(path);
	OK(in_child(closed));
	world_write(path, good, sizeof(good));
	OK(in_child(limited));
	/* Whoever may write a grant may choose his limit. */
	setenv("VGPU_GRANT_READONLY", "1", 1);
	OK(in_child(closed));
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	setenv("LIBCUDA_LOG_LEVEL", "0", 1);
	regions();
	grants();
	return 0;
}
