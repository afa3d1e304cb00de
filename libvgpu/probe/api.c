/* SPDX-License-Identifier: Apache-2.0 */
#include "api.h"

#include <dlfcn.h>

#ifndef VGPU_PROBE_DL

#define X(field, function, base) .field = function,
struct probe_cuda cuda = {PROBE_CUDA(X)};
#undef X
#define X(field, function) .field = function,
struct probe_nvml nvml = {PROBE_NVML(X)};
#undef X

const char *probe_load(void)
{
	return 0;
}

#else

struct probe_cuda cuda;
struct probe_nvml nvml;

const char *probe_load(void)
{
	void *libcuda = dlopen("libcuda.so.1", RTLD_NOW), *libnvml;
	__typeof__(&cuGetProcAddress_v2) get = 0;
	int status;

	if (!libcuda)
		return "libcuda.so.1";
	*(void **)&get = dlsym(libcuda, "cuGetProcAddress_v2");
	if (!get)
		return "cuGetProcAddress_v2";
#define X(field, function, base)                                                                   \
	if (get(base, (void **)&cuda.field, 12000, 0, &status) != CUDA_SUCCESS || !cuda.field)     \
		return base;
	PROBE_CUDA(X)
#undef X
	libnvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
	if (!libnvml)
		return "libnvidia-ml.so.1";
#define X(field, function)                                                                         \
	*(void **)&nvml.field = dlsym(libnvml, #function);                                         \
	if (!nvml.field)                                                                           \
		return #function;
	PROBE_NVML(X)
#undef X
	return 0;
}

#endif
