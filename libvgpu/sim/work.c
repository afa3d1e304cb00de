/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: kernels and streams. A kernel is a span of
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
#include "mps.h"
#include "pools.h"
#include "state.h"
#include "work.h"

struct CUmod_st {
	CUcontext context;
};
struct CUfunc_st {
	bool busy;
	int block[3]; /* cuFuncSetBlockShape */
	uint64_t ns;  /* cuParamSetv */
};
#define HIGHEST_PRIORITY (-5) /* as cards from Volta on have it */

struct CUstream_st {
	int priority;
	CUcontext context;
	CUcontext green; /* or NULL */
	uint64_t end_ns;
	CUgraph graph; /* it is captured into */
	int mode;      /* of the capture */
	bool spoilt;   /* by a call that a capture forbids */
	const void *thread;
	CUstream next; /* of those that are captured */
};

static struct CUfunc_st busy_ns = {.busy = true}, noop;

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
	pthread_mutex_lock(&sim_mutex);
	result = sim_limits_load(context);
	pthread_mutex_unlock(&sim_mutex);
	if (result != CUDA_SUCCESS)
		free(*module);
	return result;
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
	CUcontext green = sim_green_of(stream);
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
	from = sim_begin(green, *end > now ? *end : now);
	*end = from + sim_span(green, ns);
	sim_ends(context, green, *end);
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

SIM CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *launches, unsigned int count,
						  unsigned int flags)
{
	if (!launches || !count || flags > 3)
		return CUDA_ERROR_INVALID_VALUE;
	for (unsigned int i = 0; i < count;
	     i++) /* each on another device, in a stream of its own */
		for (unsigned int j = 0; j <= i; j++)
			if ((uintptr_t)launches[i].hStream <= 2 ||
			    (j < i && launches[i].hStream->context->device ==
					      launches[j].hStream->context->device))
				return CUDA_ERROR_INVALID_VALUE;
	for (unsigned int i = 0; i < count; i++) {
		const CUDA_LAUNCH_PARAMS *one = &launches[i];
		CUcontext context = one->hStream->context;
		CUresult result = cuCtxPushCurrent_v2(context);

		if (result == CUDA_SUCCESS)
			result = cuLaunchKernel(one->function, one->gridDimX, one->gridDimY,
						one->gridDimZ, one->blockDimX, one->blockDimY,
						one->blockDimZ, one->sharedMemBytes, one->hStream,
						one->kernelParams, NULL);
		cuCtxPopCurrent_v2(&context);
		if (result != CUDA_SUCCESS)
			return result;
	}
	return CUDA_SUCCESS;
}

SIM CUresult cuFuncSetBlockShape(CUfunction function, int x, int y, int z)
{
	if (!function || x <= 0 || y <= 0 || z <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	function->block[0] = x;
	function->block[1] = y;
	function->block[2] = z;
	return CUDA_SUCCESS;
}

SIM CUresult cuParamSetSize(CUfunction function, unsigned int bytes)
{
	return function && bytes <= 4096 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM CUresult cuParamSetv(CUfunction function, int offset, void *value, unsigned int bytes)
{
	if (!function || !value || offset || bytes != sizeof(function->ns))
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(&function->ns, value, bytes);
	return CUDA_SUCCESS;
}

SIM CUresult cuLaunchGridAsync(CUfunction function, int width, int height, CUstream stream)
{
	void *params[1];

	if (!function || width <= 0 || height <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	params[0] = &function->ns;
	return cuLaunchKernel(function, (unsigned int)width, (unsigned int)height, 1,
			      (unsigned int)function->block[0], (unsigned int)function->block[1],
			      (unsigned int)function->block[2], 0, stream, params, NULL);
}

SIM CUresult cuLaunchGrid(CUfunction function, int width, int height)
{
	return cuLaunchGridAsync(function, width, height, NULL);
}

SIM CUresult cuLaunch(CUfunction function)
{
	return cuLaunchGridAsync(function, 1, 1, NULL);
}

/* Waits until `*end` as it is now; then pools give back what they keep too much. */
void sim_synchronise(const uint64_t *end)
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
		sim_synchronise(&context->end_ns);
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
	sim_synchronise(&context->end_ns);
	return CUDA_SUCCESS;
}

CUcontext sim_green_of(CUstream stream)
{
	CUcontext context = (uintptr_t)stream <= 2 ? sim_current() : stream->green;

	return context && context->primary_of ? context : NULL;
}

uint64_t sim_begin(CUcontext green, uint64_t ns)
{
	return green && green->waits_ns > ns ? green->waits_ns : ns;
}

void sim_ends(CUcontext context, CUcontext green, uint64_t ns)
{
	if (ns > context->end_ns)
		context->end_ns = ns;
	if (green && ns > green->end_ns)
		green->end_ns = ns;
}

/* A kernel that would fill the card, on the part of it that is left. */
uint64_t sim_span(CUcontext green, uint64_t ns)
{
	const struct sim_card *card = green ? &sim_config()->cards[green->card] : NULL;

	ns = sim_mps_stretch(ns);
	return green ? ns * (uint64_t)card->sm_count / green->sm_count : ns;
}

CUresult sim_stream_new(CUstream *stream, CUcontext context)
{
	*stream = calloc(1, sizeof(**stream));
	if (!*stream)
		return CUDA_ERROR_OUT_OF_MEMORY;
	(*stream)->context = context->primary_of ? context->primary_of : context;
	(*stream)->green = context->primary_of ? context : NULL;
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if (!stream || flags > 1)
		return CUDA_ERROR_INVALID_VALUE;
	result = sim_stream_new(stream, sim_current());
	if (result != CUDA_SUCCESS)
		return result;
	(*stream)->priority = priority > 0 ? 0 : priority;
	if (priority < HIGHEST_PRIORITY)
		(*stream)->priority = HIGHEST_PRIORITY;
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
	return cuStreamCreateWithPriority(stream, flags, 0);
}

/* Priorities are remembered; which kernel goes first is not simulated. */
SIM CUresult cuStreamGetPriority(CUstream stream, int *priority)
{
	CUcontext current;
	CUresult result = sim_usable(&current);

	if (result != CUDA_SUCCESS)
		return result;
	if (!priority)
		return CUDA_ERROR_INVALID_VALUE;
	*priority = (uintptr_t)stream <= 2 ? 0 : stream->priority;
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamGetPriority_ptsz(CUstream stream, int *priority)
{
	return cuStreamGetPriority(stream, priority);
}

SIM CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
	CUcontext current;
	CUresult result = sim_usable(&current);

	if (result != CUDA_SUCCESS)
		return result;
	if (least)
		*least = 0;
	if (greatest)
		*greatest = HIGHEST_PRIORITY;
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

static CUstream captured;
static __thread int thread_mode;

static bool forbids(const struct CUstream_st *stream)
{
	bool own = stream->thread == &thread_mode;

	return thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL
		       ? stream->mode == CU_STREAM_CAPTURE_MODE_GLOBAL ||
				 (own && stream->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
		       : thread_mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && own &&
				 stream->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
}

/* A call that may wait for the default stream spoils captures, unless its thread has said
 * that it knows. */
bool sim_spoils_capture(void)
{
	bool spoilt = false;

	pthread_mutex_lock(&sim_mutex);
	for (CUstream stream = captured; stream; stream = stream->next)
		if (forbids(stream))
			spoilt = stream->spoilt = true;
	pthread_mutex_unlock(&sim_mutex);
	return spoilt;
}

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
	if (!stream->graph)
		return CUDA_ERROR_OUT_OF_MEMORY;
	stream->mode = mode;
	stream->spoilt = false;
	stream->thread = &thread_mode;
	pthread_mutex_lock(&sim_mutex);
	stream->next = captured;
	captured = stream;
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!graph || !sim_capture(stream))
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	for (CUstream *place = &captured; *place; place = &(*place)->next)
		if (*place == stream) {
			*place = stream->next;
			break;
		}
	pthread_mutex_unlock(&sim_mutex);
	*graph = stream->spoilt ? NULL : stream->graph;
	stream->graph = NULL;
	return stream->spoilt ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
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

SIM CUresult cuThreadExchangeStreamCaptureMode(int *mode)
{
	int before = thread_mode;

	if (!mode || *mode < 0 || *mode > CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_ERROR_INVALID_VALUE;
	thread_mode = *mode;
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
		sim_synchronise(sim_stream_end(context, stream));
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
	uint64_t end;

	if (result != CUDA_SUCCESS)
		return result;
	pthread_mutex_lock(&sim_mutex);
	end = *sim_stream_end(context, stream);
	pthread_mutex_unlock(&sim_mutex);
	return end > sim_now_ns() ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
