/* SPDX-License-Identifier: Apache-2.0
 *
 * How cuprobe gets at the driver: linked, or with VGPU_PROBE_DL through dlopen
 * and cuGetProcAddress, as the CUDA runtime does. Functions are called as
 * cuda.MemAlloc(...) and nvml.Init(...).
 */
#ifndef VGPU_PROBE_API_H
#define VGPU_PROBE_API_H

#include "cuda_api.h"
#include "nvml_api.h"

#define PROBE_CUDA(X)                                                                              \
	X(Init, cuInit, "cuInit")                                                                  \
	X(DeviceGetCount, cuDeviceGetCount, "cuDeviceGetCount")                                    \
	X(DeviceGet, cuDeviceGet, "cuDeviceGet")                                                   \
	X(DeviceGetName, cuDeviceGetName, "cuDeviceGetName")                                       \
	X(DeviceGetUuid, cuDeviceGetUuid_v2, "cuDeviceGetUuid")                                    \
	X(DeviceTotalMem, cuDeviceTotalMem_v2, "cuDeviceTotalMem")                                 \
	X(PrimaryCtxRetain, cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain")                  \
	X(CtxSetCurrent, cuCtxSetCurrent, "cuCtxSetCurrent")                                       \
	X(CtxSynchronize, cuCtxSynchronize, "cuCtxSynchronize")                                    \
	X(MemAlloc, cuMemAlloc_v2, "cuMemAlloc")                                                   \
	X(MemFree, cuMemFree_v2, "cuMemFree")                                                      \
	X(MemGetInfo, cuMemGetInfo_v2, "cuMemGetInfo")                                             \
	X(ModuleLoadData, cuModuleLoadData, "cuModuleLoadData")                                    \
	X(ModuleGetFunction, cuModuleGetFunction, "cuModuleGetFunction")                           \
	X(LaunchKernel, cuLaunchKernel, "cuLaunchKernel")                                          \
	X(GetErrorName, cuGetErrorName, "cuGetErrorName")

#define PROBE_NVML(X)                                                                              \
	X(Init, nvmlInit_v2)                                                                       \
	X(ErrorString, nvmlErrorString)                                                            \
	X(HandleByUUID, nvmlDeviceGetHandleByUUID)                                                 \
	X(MemoryInfo, nvmlDeviceGetMemoryInfo)

struct probe_cuda {
#define X(field, function, base) __typeof__(&function) field;
	PROBE_CUDA(X)
#undef X
};
struct probe_nvml {
#define X(field, function) __typeof__(&function) field;
	PROBE_NVML(X)
#undef X
};

extern struct probe_cuda cuda;
extern struct probe_nvml nvml;

/* NULL, or what could not be found. */
const char *probe_load(void);

#endif
