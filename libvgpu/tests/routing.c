/* SPDX-License-Identifier: Apache-2.0 */
/* What is not hooked is answered as without libvgpu: the driver's refusals, and
 * functions of other libraries. What is hooked: matrix.c. */
#include <dlfcn.h>
#include <string.h>

#include "world.h"

void *wrapper_next_getppid(void);
void *wrapper_own_getppid(void);

static const char *home(const void *function)
{
	Dl_info info;

	CHECK(function && dladdr(function, &info));
	return info.dli_fname;
}

static void refusals(void)
{
	void *function = NULL;
	int status = -1;

	/* The driver's refusals stay as they are. */
	OK(cuGetProcAddress_v2("cuMemAlloc", &function, 1000, 0, &status));
	CHECK(!function && status == 2);
	OK(cuGetProcAddress_v2("cuNoSuchFunction", &function, 13000, 0, &status));
	CHECK(!function && status == 1);
	IS(cuGetProcAddress_v2("cuMemAlloc", &function, 99000, 0, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuGetProcAddress_v2(NULL, &function, 13000, 0, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuGetProcAddress_v2("cuInit", NULL, 13000, 0, NULL), CUDA_ERROR_INVALID_VALUE);
	OK(cuGetProcAddress_v2("cuModuleGetFunction", &function, 13000, 0, NULL));
	CHECK(strstr(home(function), "libcuda.so"));
}

/* A variant that is not in our list is handed out, not taken for an older one. */
static void newer_driver(void)
{
	void *function = NULL, *older = NULL;

	world_driver("14000");
	world_grant("uid_gpu", CARD_A, 1024, NULL, 0);
	use_gpu();
	must_alloc(1); /* from here on there is a region to count in */
	for (uint64_t i = 0; i < 2; i++) {
		if (i)
			setenv("VGPU_SIM_SECOND_ADDRESSES", "1", 1);
		OK(cuGetProcAddress_v2("cuMemAlloc", &function, 14000, 0, NULL));
		CHECK(strstr(home(function), "libcuda.so"));
		IS(world_region("uid_gpu")->devices[0].unhooked_count, i + 1);
	}
	unsetenv("VGPU_SIM_SECOND_ADDRESSES");
	OK(cuGetProcAddress_v2("cuMemAlloc", &older, 13000, 0, NULL));
	CHECK(older == (void *)&cuMemAlloc_v2);
}

int main(void)
{
	world();
	IS(in_child(newer_driver), 0); /* first: the driver reads its version once */
	refusals();
	/* A wrapper of a libc function must find libc's, not itself: RTLD_NEXT
	 * looks behind the caller, which the jump in dlsym leaves as it was. */
	CHECK(wrapper_next_getppid() != wrapper_own_getppid());
	CHECK(strstr(home(wrapper_next_getppid()), "libc.so"));
	for (int i = 0; i < 3; i++)
		CHECK(dlsym(RTLD_DEFAULT, "printf") != NULL);
	CHECK(dlvsym(RTLD_DEFAULT, "memcpy", "GLIBC_2.14") ||
	      dlvsym(RTLD_DEFAULT, "memcpy", "GLIBC_2.17"));
	return 0;
}
