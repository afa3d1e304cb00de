/* SPDX-License-Identifier: Apache-2.0 */
/* Whichever way a program asks for a hooked function, it gets libvgpu's; what is
 * not hooked comes from where it would come from without libvgpu. */
#include <dlfcn.h>
#include <string.h>

#include "hooks_gen.h"
#include "world.h"

void *wrapper_next_getppid(void);
void *wrapper_own_getppid(void);

static const char *const cuda_names[] = {"cuInit",
					 "cuGetProcAddress",
					 "cuGetProcAddress_v2",
					 "cuMemAlloc",
					 "cuMemAlloc_v2",
					 "cuMemAllocPitch",
					 "cuMemAllocPitch_v2",
					 "cuMemAllocManaged",
					 "cuMemFree",
					 "cuMemFree_v2",
					 "cuMemCreate",
					 "cuMemRelease",
					 "cuMemRetainAllocationHandle",
					 "cuMemMap",
					 "cuMemUnmap",
					 "cuArrayCreate",
					 "cuArrayCreate_v2",
					 "cuArray3DCreate",
					 "cuArray3DCreate_v2",
					 "cuArrayDestroy",
					 "cuMipmappedArrayCreate",
					 "cuMipmappedArrayDestroy",
					 "cuMemMapArrayAsync",
					 "cuMemMapArrayAsync_ptsz",
					 "cuMemExportToShareableHandle",
					 "cuImportExternalMemory",
					 "cuDestroyExternalMemory",
					 "cuGraphInstantiate",
					 "cuGraphInstantiate_v2",
					 "cuGraphInstantiateWithFlags",
					 "cuGraphInstantiateWithParams",
					 "cuGraphInstantiateWithParams_ptsz",
					 "cuGraphLaunch",
					 "cuGraphLaunch_ptsz",
					 "cuGraphUpload",
					 "cuGraphUpload_ptsz",
					 "cuGraphExecDestroy",
					 "cuDeviceGraphMemTrim",
					 "cuMemAllocAsync",
					 "cuMemAllocAsync_ptsz",
					 "cuMemAllocFromPoolAsync",
					 "cuMemAllocFromPoolAsync_ptsz",
					 "cuMemFreeAsync",
					 "cuMemFreeAsync_ptsz",
					 "cuMemPoolCreate",
					 "cuMemPoolDestroy",
					 "cuMemPoolTrimTo",
					 "cuCtxSynchronize",
					 "cuCtxSynchronize_v2",
					 "cuStreamSynchronize",
					 "cuStreamSynchronize_ptsz",
					 "cuEventSynchronize",
					 "cuMemGetInfo",
					 "cuMemGetInfo_v2",
					 "cuDeviceTotalMem",
					 "cuDeviceTotalMem_v2",
					 "cuCtxDestroy",
					 "cuCtxDestroy_v2",
					 "cuDevicePrimaryCtxRetain",
					 "cuDevicePrimaryCtxRelease",
					 "cuDevicePrimaryCtxRelease_v2",
					 "cuDevicePrimaryCtxReset",
					 "cuDevicePrimaryCtxReset_v2"};
static const char *const nvml_names[] = {"nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags",
					 "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"};

static const char *home(const void *function)
{
	Dl_info info;

	CHECK(function && dladdr(function, &info));
	return info.dli_fname;
}

static void ours(const void *function, const char *name)
{
	if (!strstr(home(function), "libvgpu")) {
		fprintf(stderr, "%s comes from %s\n", name, home(function));
		_Exit(1);
	}
}

static void by_dlsym(const char *library, const char *name)
{
	void *handle = dlopen(library, RTLD_NOW);

	CHECK(handle);
	ours(dlsym(handle, name), name);
	ours(dlsym(RTLD_DEFAULT, name), name);
	ours(dlsym(RTLD_NEXT, name), name);
	CHECK(!dlsym(handle, "cuNoSuchFunction") && dlerror());
	CHECK(!dlvsym(handle, name, "NO_SUCH_VERSION") && dlerror());
}

static void by_procaddress(void)
{
	static const struct {
		const char *base, *variant;
		int version;
	} cases[] = {{"cuMemAlloc", "cuMemAlloc", 2000},
		     {"cuMemAlloc", "cuMemAlloc", 3010},
		     {"cuMemAlloc", "cuMemAlloc_v2", 3020},
		     {"cuMemAlloc", "cuMemAlloc_v2", 13000},
		     {"cuMemAllocPitch", "cuMemAllocPitch", 3010},
		     {"cuMemAllocPitch", "cuMemAllocPitch_v2", 3020},
		     {"cuMemAllocManaged", "cuMemAllocManaged", 6000},
		     {"cuMemFree", "cuMemFree_v2", 12000},
		     {"cuMemCreate", "cuMemCreate", 10020},
		     {"cuMemRelease", "cuMemRelease", 10020},
		     {"cuMemRetainAllocationHandle", "cuMemRetainAllocationHandle", 11000},
		     {"cuMemMap", "cuMemMap", 10020},
		     {"cuMemUnmap", "cuMemUnmap", 10020},
		     {"cuArrayCreate", "cuArrayCreate", 3010},
		     {"cuArrayCreate", "cuArrayCreate_v2", 3020},
		     {"cuArray3DCreate", "cuArray3DCreate", 3010},
		     {"cuArray3DCreate", "cuArray3DCreate_v2", 12000},
		     {"cuArrayDestroy", "cuArrayDestroy", 2000},
		     {"cuMipmappedArrayCreate", "cuMipmappedArrayCreate", 5000},
		     {"cuMipmappedArrayDestroy", "cuMipmappedArrayDestroy", 5000},
		     {"cuMemExportToShareableHandle", "cuMemExportToShareableHandle", 10020},
		     {"cuImportExternalMemory", "cuImportExternalMemory", 10000},
		     {"cuDestroyExternalMemory", "cuDestroyExternalMemory", 10000},
		     {"cuGraphInstantiate", "cuGraphInstantiate", 10020},
		     {"cuGraphInstantiate", "cuGraphInstantiate_v2", 11080},
		     {"cuGraphInstantiate", "cuGraphInstantiateWithFlags", 12000},
		     {"cuGraphInstantiateWithFlags", "cuGraphInstantiateWithFlags", 11040},
		     {"cuGraphExecDestroy", "cuGraphExecDestroy", 10000},
		     {"cuDeviceGraphMemTrim", "cuDeviceGraphMemTrim", 11040},
		     {"cuMemPoolCreate", "cuMemPoolCreate", 11020},
		     {"cuMemPoolDestroy", "cuMemPoolDestroy", 11020},
		     {"cuMemPoolTrimTo", "cuMemPoolTrimTo", 11020},
		     {"cuCtxSynchronize", "cuCtxSynchronize", 2000},
		     {"cuCtxSynchronize", "cuCtxSynchronize_v2", 13000},
		     {"cuEventSynchronize", "cuEventSynchronize", 2000},
		     {"cuMemGetInfo", "cuMemGetInfo_v2", 11030},
		     {"cuDeviceTotalMem", "cuDeviceTotalMem_v2", 13000},
		     {"cuGetProcAddress", "cuGetProcAddress", 11030},
		     {"cuGetProcAddress", "cuGetProcAddress_v2", 12000},
		     {"cuInit", "cuInit", 12000},
		     {"cuCtxDestroy", "cuCtxDestroy_v2", 4000},
		     {"cuDevicePrimaryCtxRelease", "cuDevicePrimaryCtxRelease", 10000},
		     {"cuDevicePrimaryCtxRelease", "cuDevicePrimaryCtxRelease_v2", 11000}};
	static const char *const per_thread[] = {
		"cuMemAllocAsync",     "cuMemAllocFromPoolAsync",     "cuMemFreeAsync",
		"cuStreamSynchronize", "cuMemMapArrayAsync",          "cuGraphLaunch",
		"cuGraphUpload",       "cuGraphInstantiateWithParams"};
	void *function = NULL;
	int status = -1;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		void *expected = dlsym(RTLD_DEFAULT, cases[i].variant);

		for (cuuint64_t flags = 0; flags < 3; flags++) {
			OK(cuGetProcAddress_v2(cases[i].base, &function, cases[i].version, flags,
					       &status));
			OK(status);
			CHECK(function == expected);
		}
		OK(cuGetProcAddress(cases[i].base, &function, cases[i].version, 0));
		CHECK(function == expected);
	}
	for (size_t i = 0; i < sizeof(per_thread) / sizeof(char *); i++) {
		char name[64];

		snprintf(name, sizeof(name), "%s_ptsz", per_thread[i]);
		for (cuuint64_t flags = 0; flags < 3; flags++) {
			OK(cuGetProcAddress_v2(per_thread[i], &function, 13000, flags, &status));
			CHECK(function == dlsym(RTLD_DEFAULT, flags == 2 ? name : per_thread[i]));
		}
		OK(cuGetProcAddress_v2(per_thread[i], &function, 1000, 2, &status));
		CHECK(!function && status == 2);
	}
	/* The driver's refusals stay as they are. */
	OK(cuGetProcAddress_v2("cuMemAlloc", &function, 1000, 0, &status));
	CHECK(!function && status == 2);
	OK(cuGetProcAddress_v2("cuNoSuchFunction", &function, 13000, 0, &status));
	CHECK(!function && status == 1);
	IS(cuGetProcAddress_v2("cuMemAlloc", &function, 99000, 0, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuGetProcAddress_v2(NULL, &function, 13000, 0, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuGetProcAddress_v2("cuInit", NULL, 13000, 0, NULL), CUDA_ERROR_INVALID_VALUE);
	OK(cuGetProcAddress_v2("cuLaunchKernel", &function, 13000, 0, NULL));
	CHECK(strstr(home(function), "libcuda.so"));
}

int main(void)
{
	world();
	IS(sizeof(cuda_names) / sizeof(char *) + sizeof(nvml_names) / sizeof(char *),
	   VGPU_HOOK_COUNT);
	for (size_t i = 0; i < sizeof(cuda_names) / sizeof(char *); i++)
		by_dlsym("libcuda.so.1", cuda_names[i]);
	for (size_t i = 0; i < sizeof(nvml_names) / sizeof(char *); i++)
		by_dlsym("libnvidia-ml.so.1", nvml_names[i]);
	ours((void *)&cuMemAlloc_v2, "linked cuMemAlloc_v2");
	ours((void *)&nvmlInit_v2, "linked nvmlInit_v2");
	by_procaddress();
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
