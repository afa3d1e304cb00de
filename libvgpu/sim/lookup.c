/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: error names and cuGetProcAddress. As documented:
 * a function that does not exist, or not yet in the version asked for, is
 * CUDA_SUCCESS with a NULL pointer and a status; a version that the driver does
 * not have is CUDA_ERROR_INVALID_VALUE.
 */
#include <stdlib.h>
#include <string.h>

#include "libcuda.h"
#include "names.h"
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
	{CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
	 "operation failed due to a previous error during capture"},
	{CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE",
	 "the graph update was not performed because it included changes which violated "
	 "constraints specific to instantiated graph update"},
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

SIM CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, cuuint64_t flags,
				 int *status)
{
	/* A real driver may answer with addresses of its own, which dlsym does not know. */
	const bool second = getenv("VGPU_SIM_SECOND_ADDRESSES") != NULL;
	bool known = false;
	int driver = 0;

	cuDriverGetVersion(&driver);
	if (!symbol || !*symbol || !function || flags > 3 || version > driver)
		return CUDA_ERROR_INVALID_VALUE;
	*function = NULL;
	for (const struct sim_name *row = sim_names; row->name; row++) {
		if (strcmp(row->base, symbol) != 0)
			continue;
		known = true;
		if (row->since <= version &&
		    (!row->per_thread || (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)))
			*function = second ? row->second : row->function;
	}
	if (status) /* SUCCESS, VERSION_NOT_SUFFICIENT, SYMBOL_NOT_FOUND */
		*status = *function ? 0 : known ? 2 : 1;
	return CUDA_SUCCESS;
}

SIM CUresult cuGetProcAddress(const char *symbol, void **function, int version, cuuint64_t flags)
{
	return cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}
