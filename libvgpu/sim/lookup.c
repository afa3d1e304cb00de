/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: error names and cuGetProcAddress. As documented:
 * a function that does not exist, or not yet in the version asked for, is
 * CUDA_SUCCESS with a NULL pointer and a status; a version that the driver does
 * not have is CUDA_ERROR_INVALID_VALUE.
 */
#include <string.h>

#include "libcuda.h"
#include "state.h"

static const struct {
	CUresult code;
	const char *name, *text;
} errors[] = {
	{CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
	{CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
	{CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
	{CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
	{CUDA_ERROR_DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE",
	 "CUDA-capable device(s) is/are busy or unavailable"},
	{CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
	{CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
	{CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
	{CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
	{CUDA_ERROR_SHARED_OBJECT_INIT_FAILED, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED",
	 "shared object initialization failed"},
	{CUDA_ERROR_OPERATING_SYSTEM, "CUDA_ERROR_OPERATING_SYSTEM",
	 "OS call failed or operation not supported on this OS"},
	{CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
	{CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
	{CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
	{CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS",
	 "an illegal memory access was encountered"},
	{CUDA_ERROR_CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED",
	 "context is destroyed"},
	{CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
	{CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
	 "operation not permitted when stream is capturing"},
	{CUDA_ERROR_UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static CUresult error_text(CUresult error, const char **text, bool name)
{
	if (!text)
		return CUDA_ERROR_INVALID_VALUE;
	*text = NULL;
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (errors[i].code == error) {
			*text = name ? errors[i].name : errors[i].text;
			return CUDA_SUCCESS;
		}
	return CUDA_ERROR_INVALID_VALUE;
}

SIM CUresult cuGetErrorName(CUresult error, const char **text)
{
	return error_text(error, text, true);
}

SIM CUresult cuGetErrorString(CUresult error, const char **text)
{
	return error_text(error, text, false);
}

#define ONE(name, since) {#name, (void *)&name, since, false}
#define TWO(name, since, since_v2) ONE(name, since), SECOND(name, since_v2)
#define SECOND(name, since) {#name, (void *)&name##_v2, since, false}
#define PER_THREAD(name, since) ONE(name, since), THREADS(name, since)
#define THREADS(name, since) {#name, (void *)&name##_ptsz, since, true}

/* Later entries of one name are newer. */
static const struct {
	const char *name;
	void *function;
	int since;
	bool per_thread; /* only if asked for per-thread default streams */
} functions[] = {
	ONE(cuInit, 2000),
	ONE(cuDriverGetVersion, 2020),
	ONE(cuDeviceGetCount, 2000),
	ONE(cuDeviceGet, 2000),
	ONE(cuDeviceGetName, 2000),
	TWO(cuDeviceGetUuid, 9020, 11040),
	ONE(cuDeviceGetAttribute, 2000),
	ONE(cuDeviceGetPCIBusId, 4010),
	ONE(cuDeviceGetByPCIBusId, 4010),
	ONE(cuDeviceComputeCapability, 2000),
	TWO(cuDeviceTotalMem, 2000, 3020),
	ONE(cuDevicePrimaryCtxRetain, 7000),
	TWO(cuDevicePrimaryCtxRelease, 7000, 11000),
	TWO(cuDevicePrimaryCtxReset, 7000, 11000),
	TWO(cuDevicePrimaryCtxSetFlags, 7000, 11000),
	ONE(cuDevicePrimaryCtxGetState, 7000),
	TWO(cuCtxCreate, 2000, 3020),
	{"cuCtxCreate", (void *)&cuCtxCreate_v3, 11040, false},
	{"cuCtxCreate", (void *)&cuCtxCreate_v4, 12050, false},
	TWO(cuCtxDestroy, 2000, 4000),
	ONE(cuCtxGetCurrent, 4000),
	ONE(cuCtxSetCurrent, 4000),
	TWO(cuCtxPushCurrent, 2000, 4000),
	TWO(cuCtxPopCurrent, 2000, 4000),
	ONE(cuCtxGetDevice, 2000),
	TWO(cuCtxSynchronize, 2000, 13000),
	ONE(cuCtxGetFlags, 7000),
	ONE(cuCtxGetApiVersion, 3020),
	TWO(cuMemAlloc, 2000, 3020),
	TWO(cuMemAllocPitch, 2000, 3020),
	ONE(cuMemAllocManaged, 6000),
	TWO(cuMemFree, 2000, 3020),
	ONE(cuMemGetAllocationGranularity, 10020),
	ONE(cuMemCreate, 10020),
	ONE(cuMemRelease, 10020),
	ONE(cuMemRetainAllocationHandle, 11000),
	ONE(cuMemExportToShareableHandle, 10020),
	ONE(cuMemImportFromShareableHandle, 10020),
	ONE(cuImportExternalMemory, 10000),
	ONE(cuDestroyExternalMemory, 10000),
	ONE(cuMemAddressReserve, 10020),
	ONE(cuMemAddressFree, 10020),
	ONE(cuMemMap, 10020),
	ONE(cuMemUnmap, 10020),
	ONE(cuMemSetAccess, 10020),
	TWO(cuArrayCreate, 2000, 3020),
	TWO(cuArray3DCreate, 2000, 3020),
	ONE(cuArrayDestroy, 2000),
	ONE(cuMipmappedArrayCreate, 5000),
	ONE(cuMipmappedArrayDestroy, 5000),
	PER_THREAD(cuMemMapArrayAsync, 11010),
	PER_THREAD(cuMemAllocAsync, 11020),
	PER_THREAD(cuMemAllocFromPoolAsync, 11020),
	PER_THREAD(cuMemFreeAsync, 11020),
	ONE(cuDeviceGetDefaultMemPool, 11020),
	ONE(cuMemPoolCreate, 11020),
	ONE(cuDeviceGetMemPool, 11020),
	ONE(cuDeviceSetMemPool, 11020),
	ONE(cuMemPoolDestroy, 11020),
	ONE(cuMemPoolTrimTo, 11020),
	ONE(cuMemPoolGetAttribute, 11020),
	ONE(cuMemPoolSetAttribute, 11020),
	TWO(cuMemGetInfo, 2000, 3020),
	SECOND(cuMemcpyHtoD, 3020),
	SECOND(cuMemcpyDtoH, 3020),
	SECOND(cuMemcpyDtoD, 3020),
	SECOND(cuMemsetD8, 3020),
	SECOND(cuMemsetD32, 3020),
	ONE(cuModuleLoadData, 2000),
	ONE(cuModuleUnload, 2000),
	ONE(cuModuleGetFunction, 2000),
	ONE(cuLaunchKernel, 4000),
	ONE(cuStreamCreate, 2000),
	ONE(cuStreamGetCtx, 9020),
	TWO(cuStreamDestroy, 2000, 4000),
	ONE(cuStreamSynchronize, 2000),
	THREADS(cuStreamSynchronize, 7000),
	ONE(cuStreamQuery, 2000),
	ONE(cuStreamWaitEvent, 3020),
	PER_THREAD(cuStreamIsCapturing, 10000),
	SECOND(cuStreamBeginCapture, 10010),
	ONE(cuStreamEndCapture, 10000),
	ONE(cuThreadExchangeStreamCaptureMode, 10010),
	ONE(cuGraphCreate, 10000),
	ONE(cuGraphDestroy, 10000),
	ONE(cuGraphAddMemAllocNode, 11040),
	ONE(cuGraphAddMemFreeNode, 11040),
	ONE(cuGraphAddChildGraphNode, 10000),
	ONE(cuGraphChildGraphNodeGetGraph, 10000),
	ONE(cuGraphGetNodes, 10000),
	ONE(cuGraphNodeGetType, 10000),
	ONE(cuGraphMemAllocNodeGetParams, 11040),
	TWO(cuGraphInstantiate, 10000, 11000),
	{"cuGraphInstantiate", (void *)&cuGraphInstantiateWithFlags, 12000, false},
	ONE(cuGraphInstantiateWithFlags, 11040),
	PER_THREAD(cuGraphInstantiateWithParams, 12000),
	PER_THREAD(cuGraphLaunch, 10000),
	PER_THREAD(cuGraphUpload, 11010),
	ONE(cuGraphExecDestroy, 10000),
	ONE(cuDeviceGraphMemTrim, 11040),
	ONE(cuDeviceGetGraphMemAttribute, 11040),
	ONE(cuEventCreate, 2000),
	TWO(cuEventDestroy, 2000, 4000),
	ONE(cuEventRecord, 2000),
	ONE(cuEventQuery, 2000),
	ONE(cuEventSynchronize, 2000),
	ONE(cuEventElapsedTime, 2000),
	ONE(cuGetErrorName, 6000),
	ONE(cuGetErrorString, 6000),
	TWO(cuGetProcAddress, 11030, 12000),
};

SIM CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, cuuint64_t flags,
				 int *status)
{
	bool known = false;
	int driver = 0;

	cuDriverGetVersion(&driver);
	if (!symbol || !*symbol || !function || flags > 3 || version > driver)
		return CUDA_ERROR_INVALID_VALUE;
	*function = NULL;
	for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
		if (strcmp(functions[i].name, symbol) != 0)
			continue;
		known = true;
		if (functions[i].since <= version &&
		    (!functions[i].per_thread ||
		     (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)))
			*function = functions[i].function;
	}
	if (status) /* SUCCESS, VERSION_NOT_SUFFICIENT, SYMBOL_NOT_FOUND */
		*status = *function ? 0 : known ? 2 : 1;
	return CUDA_SUCCESS;
}

SIM CUresult cuGetProcAddress(const char *symbol, void **function, int version, cuuint64_t flags)
{
	return cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}
