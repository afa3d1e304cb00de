/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: events. One that other processes may have is in a file of
 * its own from the moment that it is given away.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libcuda.h"
#include "shares.h"
#include "state.h"
#include "work.h"

struct event_state {
	uint64_t done_ns;
	bool recorded;
};
struct CUevent_st {
	struct event_state own, *at; /* in a file, if other processes may have it */
	bool interprocess;
	uint64_t id;
};

CUresult sim_event_record(CUevent event, const uint64_t *end)
{
	uint64_t now = sim_now_ns();

	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	pthread_mutex_lock(&sim_mutex);
	event->at->done_ns = *end > now ? *end : now;
	event->at->recorded = true;
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

uint64_t sim_event_done(CUevent event)
{
	return event->at->recorded ? event->at->done_ns : 0;
}

SIM CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	uint64_t *end;

	(void)flags;
	if (result != CUDA_SUCCESS)
		return result;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	pthread_mutex_lock(&sim_mutex);
	end = sim_stream_end(context, stream);
	if (event->at->recorded && event->at->done_ns > *end)
		*end = event->at->done_ns;
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

SIM CUresult cuEventCreate(CUevent *event, unsigned int flags)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	/* As the real one: what is shared takes no times. */
	if (!event || ((flags & CU_EVENT_INTERPROCESS) && !(flags & CU_EVENT_DISABLE_TIMING)))
		return CUDA_ERROR_INVALID_VALUE;
	*event = calloc(1, sizeof(**event));
	if (!*event)
		return CUDA_ERROR_OUT_OF_MEMORY;
	(*event)->at = &(*event)->own;
	(*event)->interprocess = flags & CU_EVENT_INTERPROCESS;
	return CUDA_SUCCESS;
}

static struct event_state *map_event(uint64_t id, int flags)
{
	char name[64], path[512];
	void *memory = MAP_FAILED;
	int fd;

	snprintf(name, sizeof(name), "event-%016llx", (unsigned long long)id);
	sim_path(path, sizeof(path), name);
	fd = open(path, flags | O_RDWR | O_CLOEXEC, 0666);
	if (fd >= 0 && (!flags || (fchmod(fd, 0666) == 0 && ftruncate(fd, 4096) == 0)))
		memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd >= 0)
		close(fd);
	return memory == MAP_FAILED ? NULL : memory;
}

SIM CUresult cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event)
{
	struct event_state *shared;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!handle || !event || !event->interprocess)
		return CUDA_ERROR_INVALID_VALUE;
	if (event->at == &event->own) {
		event->id = sim_share_number();
		shared = map_event(event->id, O_CREAT | O_EXCL);
		if (!shared)
			return CUDA_ERROR_OPERATING_SYSTEM;
		*shared = event->own;
		event->at = shared;
	}
	memset(handle, 0, sizeof(*handle));
	memcpy(handle, &event->id, sizeof(event->id));
	return CUDA_SUCCESS;
}

SIM CUresult cuIpcOpenEventHandle(CUevent *event, CUipcEventHandle handle)
{
	struct event_state *shared;
	CUcontext context;
	CUresult result = sim_usable(&context);
	uint64_t id;

	if (result != CUDA_SUCCESS)
		return result;
	memcpy(&id, &handle, sizeof(id));
	shared = event && id ? map_event(id, 0) : NULL;
	if (!shared)
		return CUDA_ERROR_INVALID_VALUE;
	*event = calloc(1, sizeof(**event));
	if (!*event) {
		munmap(shared, 4096);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	(*event)->at = shared;
	(*event)->interprocess = true;
	return CUDA_SUCCESS;
}

/* Its maker takes the name away; who has opened it keeps it. */
static void end_event(CUevent event)
{
	char name[64], path[512];

	if (event->at != &event->own)
		munmap(event->at, 4096);
	if (event->id) {
		snprintf(name, sizeof(name), "event-%016llx", (unsigned long long)event->id);
		sim_path(path, sizeof(path), name);
		unlink(path);
	}
	free(event);
}

SIM CUresult cuEventDestroy_v2(CUevent event)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	end_event(event);
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

	if (result != CUDA_SUCCESS)
		return result;
	return sim_event_record(event, sim_stream_end(context, stream));
}

SIM CUresult cuEventQuery(CUevent event)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	if (sim_spoils_capture())
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	return event->at->recorded && event->at->done_ns > sim_now_ns() ? CUDA_ERROR_NOT_READY
									: CUDA_SUCCESS;
}

SIM CUresult cuEventSynchronize(CUevent event)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	if (event->at->recorded)
		sim_synchronise(&event->at->done_ns);
	return CUDA_SUCCESS;
}

SIM CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
	uint64_t now = sim_now_ns();

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!milliseconds)
		return CUDA_ERROR_INVALID_VALUE;
	if (!start || !end || !start->at->recorded || !end->at->recorded)
		return CUDA_ERROR_INVALID_HANDLE;
	if (start->at->done_ns > now || end->at->done_ns > now)
		return CUDA_ERROR_NOT_READY;
	*milliseconds =
		(float)((double)((int64_t)end->at->done_ns - (int64_t)start->at->done_ns) / 1e6);
	return CUDA_SUCCESS;
}
