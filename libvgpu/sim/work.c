/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: kernels, streams and events. A kernel is a span of
 * real time on its stream; nothing runs, so a launch costs next to nothing and a
 * stream is one number: when it will be done.
 *
 * Kernels, whatever the module: busy_ns(uint64_t nanoseconds) and noop().
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "graphs.h"
#include "pools.h"
#include "state.h"

struct CUmod_st {
	CUcontext context;
};
struct CUfunc_st {
	bool busy;
};
struct CUstream_st {
	CUcontext context;
	uint64_t end_ns;
	CUgraph graph; /* it is captured into */
};
struct CUevent_st {
	uint64_t done_ns;
	bool recorded;
};

static struct CUfunc_st busy_ns = {true}, noop = {false};

static void sleep_until(uint64_t ns)
{
	struct timespec until = {.tv_sec = (time_t)(ns / 1000000000u),
				 .tv_nsec = (long)(ns % 1000000000u)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

SIM CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if (!module || !image)
		return CUDA_ERROR_INVALID_VALUE;
	*module = malloc(sizeof(**module));
	if (!*module)
		return CUDA_ERROR_OUT_OF_MEMORY;
	(*module)->context = context;
	return CUDA_SUCCESS;
}

SIM CUresult cuModuleUnload(CUmodule module)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!module)
		return CUDA_ERROR_INVALID_HANDLE;
	free(module);
	return CUDA_SUCCESS;
}

SIM CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!function || !module || !name)
		return CUDA_ERROR_INVALID_VALUE;
	if (strcmp(name, "busy_ns") == 0)
		*function = &busy_ns;
	else if (strcmp(name, "noop") == 0)
		*function = &noop;
	else
		return CUDA_ERROR_NOT_FOUND;
	return CUDA_SUCCESS;
}

/* NULL, 1 and 2 are the default streams. */
uint64_t *sim_stream_end(CUcontext context, CUstream stream)
{
	return (uintptr_t)stream <= 2 ? &context->null_stream_ns : &stream->end_ns;
}

SIM CUresult cuLaunchKernel(CUfunction function, unsigned int gx, unsigned int gy, unsigned int gz,
			    unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
			    CUstream stream, void **params, void **extra)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	uint64_t ns = 0, from, now, *end;

	(void)shared, (void)extra;
	if (result != CUDA_SUCCESS)
		return result;
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!gx || !gy || !gz || !bx || !by || !bz || (uint64_t)bx * by * bz > 1024 ||
	    (function->busy && (!params || !params[0])))
		return CUDA_ERROR_INVALID_VALUE;
	if (function->busy)
		memcpy(&ns, params[0], sizeof(ns));
	if (sim_capture(stream))
		return sim_graph_add_kernel(sim_capture(stream), ns);
	pthread_mutex_lock(&sim_mutex);
	now = sim_now_ns();
	end = sim_stream_end(context, stream);
	from = *end > now ? *end : now;
	*end = from + ns;
	if (*end > context->end_ns)
		context->end_ns = *end;
	sim_busy(context->card, from, *end);
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

SIM CUresult cuLaunchKernel_ptsz(CUfunction function, unsigned int gx, unsigned int gy,
				 unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz,
				 unsigned int shared, CUstream stream, void **params, void **extra)
{
	return cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, params, extra);
}

SIM CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params,
			      void **extra)
{
	if (!config)
		return CUDA_ERROR_INVALID_VALUE;
	return cuLaunchKernel(function, config->gridDimX, config->gridDimY, config->gridDimZ,
			      config->blockDimX, config->blockDimY, config->blockDimZ,
			      config->sharedMemBytes, config->hStream, params, extra);
}

SIM CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction function, void **params,
				   void **extra)
{
	return cuLaunchKernelEx(config, function, params, extra);
}

SIM CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int gx, unsigned int gy,
				       unsigned int gz, unsigned int bx, unsigned int by,
				       unsigned int bz, unsigned int shared, CUstream stream,
				       void **params)
{
	return cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, params, NULL);
}

SIM CUresult cuLaunchCooperativeKernel_ptsz(CUfunction function, unsigned int gx, unsigned int gy,
					    unsigned int gz, unsigned int bx, unsigned int by,
					    unsigned int bz, unsigned int shared, CUstream stream,
					    void **params)
{
	return cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, params, NULL);
}

/* Waits until `*end` as it is now; then pools give back what they keep too much. */
static void synchronise(const uint64_t *end)
{
	uint64_t until;

	pthread_mutex_lock(&sim_mutex);
	until = *end;
	pthread_mutex_unlock(&sim_mutex);
	sleep_until(until);
	pthread_mutex_lock(&sim_mutex);
	sim_reap_late();
	sim_pools_synchronised();
	pthread_mutex_unlock(&sim_mutex);
}

SIM CUresult cuCtxSynchronize(void)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result == CUDA_SUCCESS)
		synchronise(&context->end_ns);
	return result;
}

SIM CUresult cuCtxSynchronize_v2(CUcontext context)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!context)
		return cuCtxSynchronize();
	if (!context->alive)
		return CUDA_ERROR_INVALID_CONTEXT;
	synchronise(&context->end_ns);
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if (!stream || flags > 1)
		return CUDA_ERROR_INVALID_VALUE;
	*stream = calloc(1, sizeof(**stream));
	if (!*stream)
		return CUDA_ERROR_OUT_OF_MEMORY;
	(*stream)->context = context;
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamGetCtx(CUstream stream, CUcontext *context)
{
	CUcontext current;
	CUresult result = sim_usable(&current);

	if (result != CUDA_SUCCESS)
		return result;
	if (!context)
		return CUDA_ERROR_INVALID_VALUE;
	*context = (uintptr_t)stream <= 2 ? current : stream->context;
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamDestroy_v2(CUstream stream)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if ((uintptr_t)stream <= 2)
		return CUDA_ERROR_INVALID_HANDLE;
	free(stream);
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamDestroy(CUstream stream)
{
	return cuStreamDestroy_v2(stream);
}

/* ---- capture */

CUgraph sim_capture(CUstream stream)
{
	return (uintptr_t)stream <= 2 ? NULL : stream->graph;
}

SIM CUresult cuStreamBeginCapture_v2(CUstream stream, int mode)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if ((uintptr_t)stream <= 2)
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	if (stream->graph || mode < 0 || mode > CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_ERROR_INVALID_VALUE;
	stream->graph = sim_graph_new();
	return stream->graph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!graph || !sim_capture(stream))
		return CUDA_ERROR_INVALID_VALUE;
	*graph = stream->graph;
	stream->graph = NULL;
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamIsCapturing(CUstream stream, int *status)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!status)
		return CUDA_ERROR_INVALID_VALUE;
	*status = sim_capture(stream) ? CU_STREAM_CAPTURE_STATUS_ACTIVE
				      : CU_STREAM_CAPTURE_STATUS_NONE;
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamIsCapturing_ptsz(CUstream stream, int *status)
{
	return cuStreamIsCapturing(stream, status);
}

/* Nothing is forbidden during a capture here but to wait for the stream. */
SIM CUresult cuThreadExchangeStreamCaptureMode(int *mode)
{
	static __thread int current;
	int before = current;

	if (!mode || *mode < 0 || *mode > CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_ERROR_INVALID_VALUE;
	current = *mode;
	*mode = before;
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamSynchronize(CUstream stream)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result == CUDA_SUCCESS && sim_capture(stream))
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	if (result == CUDA_SUCCESS)
		synchronise(sim_stream_end(context, stream));
	return result;
}

SIM CUresult cuStreamSynchronize_ptsz(CUstream stream)
{
	return cuStreamSynchronize(stream);
}

SIM CUresult cuStreamQuery(CUstream stream)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	return *sim_stream_end(context, stream) > sim_now_ns() ? CUDA_ERROR_NOT_READY
							       : CUDA_SUCCESS;
}

SIM CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	(void)flags;
	if (result != CUDA_SUCCESS)
		return result;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	if (event->recorded && event->done_ns > *sim_stream_end(context, stream))
		*sim_stream_end(context, stream) = event->done_ns;
	return CUDA_SUCCESS;
}

SIM CUresult cuEventCreate(CUevent *event, unsigned int flags)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	(void)flags;
	if (result != CUDA_SUCCESS)
		return result;
	if (!event)
		return CUDA_ERROR_INVALID_VALUE;
	*event = calloc(1, sizeof(**event));
	return *event ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM CUresult cuEventDestroy_v2(CUevent event)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	free(event);
	return CUDA_SUCCESS;
}

SIM CUresult cuEventDestroy(CUevent event)
{
	return cuEventDestroy_v2(event);
}

SIM CUresult cuEventRecord(CUevent event, CUstream stream)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	uint64_t now = sim_now_ns();

	if (result != CUDA_SUCCESS)
		return result;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	event->done_ns =
		*sim_stream_end(context, stream) > now ? *sim_stream_end(context, stream) : now;
	event->recorded = true;
	return CUDA_SUCCESS;
}

SIM CUresult cuEventQuery(CUevent event)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	return event->recorded && event->done_ns > sim_now_ns() ? CUDA_ERROR_NOT_READY
								: CUDA_SUCCESS;
}

SIM CUresult cuEventSynchronize(CUevent event)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	if (event->recorded)
		synchronise(&event->done_ns);
	return CUDA_SUCCESS;
}

SIM CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
	uint64_t now = sim_now_ns();

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!milliseconds)
		return CUDA_ERROR_INVALID_VALUE;
	if (!start || !end || !start->recorded || !end->recorded)
		return CUDA_ERROR_INVALID_HANDLE;
	if (start->done_ns > now || end->done_ns > now)
		return CUDA_ERROR_NOT_READY;
	*milliseconds = (float)((double)((int64_t)end->done_ns - (int64_t)start->done_ns) / 1e6);
	return CUDA_SUCCESS;
}
