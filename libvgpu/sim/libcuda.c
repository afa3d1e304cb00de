/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: start, devices and contexts.
 *
 * Device memory is host memory that is not touched before it is used; kernels
 * are spans of real time. What the real driver refuses is refused here with the
 * same code, also after fork: a child of a process that used CUDA gets
 * CUDA_ERROR_NOT_INITIALIZED for everything.
 */
#include "libcuda.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "arrays.h"
#include "graphs.h"
#include "mps.h"
#include "mig.h"
#include "pools.h"
#include "shares.h"
#include "state.h"

pthread_mutex_t sim_mutex = PTHREAD_MUTEX_INITIALIZER;
static bool initialised, forked, atfork_set;
static int devices[SIM_CARDS], device_count; /* ordinal -> card */
static struct CUctx_st primaries[SIM_CARDS];
static __thread CUcontext stack[32];
static __thread int depth;

static void after_fork_in_child(void)
{
	forked = initialised;
	pthread_mutex_init(&sim_mutex, NULL);
}

static int find_visible(const char *item, const int *all, int count)
{
	if (strncasecmp(item, "GPU-", 4) == 0) {
		for (int i = 0; i < count; i++)
			if (strncasecmp(sim_config()->cards[all[i]].uuid, item, strlen(item)) == 0)
				return all[i];
		return -1;
	}
	if (strncasecmp(item, "MIG-", 4) == 0) {
		for (int i = 0; i < sim_config()->card_count; i++)
			if (sim_visible(i) && sim_mig_divides(i) && sim_mig_find(i, item) >= 0)
				return sim_mig_find(i, item);
		return -1;
	}
	char *end = NULL;
	long index = strtol(item, &end, 10);

	return end == item || *end || index < 0 || index >= count ? -1 : all[index];
}

/* As the real one: the first entry that is not
 * a device ends the list. */
static void enumerate(void)
{
	const char *wanted = getenv("CUDA_VISIBLE_DEVICES");
	char text[1024], *rest = NULL;
	int all[SIM_CARDS] = {0}, count = 0;

	for (int i = 0; i < sim_config()->card_count; i++) {
		int unit = i;

		if (!sim_visible(i))
			continue;
		if (sim_mig_divides(i))
			unit = sim_mig_find(i, "MIG-");
		if (unit >= 0)
			all[count++] = unit;
	}
	device_count = 0;
	if (!wanted) {
		memcpy(devices, all, sizeof(all));
		device_count = count;
		return;
	}
	snprintf(text, sizeof(text), "%s", wanted);
	for (char *item = strtok_r(text, ", ", &rest); item; item = strtok_r(NULL, ", ", &rest)) {
		int card = find_visible(item, all, count);

		if (card < 0)
			break;
		for (int i = 0; i < device_count; i++)
			if (devices[i] == card) { /* named twice: no device at all */
				device_count = 0;
				return;
			}
		devices[device_count++] = card;
	}
}

SIM CUresult cuInit(unsigned int flags)
{
	CUresult result = CUDA_SUCCESS;

	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (forked)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (sim_load() != 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	pthread_mutex_lock(&sim_mutex);
	if (!initialised) {
		enumerate();
		sim_pools_start();
		sim_faults_start();
		sim_mps_start();
		result = device_count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
		initialised = result == CUDA_SUCCESS;
		if (initialised && !atfork_set) {
			atfork_set = true;
			pthread_atfork(NULL, NULL, after_fork_in_child);
		}
	}
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

CUresult sim_ready(void)
{
	return initialised && !forked ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

/* The card behind an ordinal, or -1. */
int sim_card_of(CUdevice device)
{
	return device >= 0 && device < device_count ? devices[device] : -1;
}

#define DEVICE_OR_RETURN(device)                                                                   \
	const struct sim_card *card;                                                               \
	const int card_number = sim_card_of(device);                                               \
	if (sim_ready())                                                                           \
		return CUDA_ERROR_NOT_INITIALIZED;                                                 \
	if (card_number < 0)                                                                       \
		return CUDA_ERROR_INVALID_DEVICE;                                                  \
	card = &sim_config()->cards[card_number]

SIM CUresult cuDriverGetVersion(int *version)
{
	if (!version)
		return CUDA_ERROR_INVALID_VALUE;
	*version = sim_load() == 0 ? sim_config()->cuda_version : 13000;
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceGetCount(int *count)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!count)
		return CUDA_ERROR_INVALID_VALUE;
	*count = device_count;
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	DEVICE_OR_RETURN(ordinal);
	(void)card;
	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	*device = ordinal;
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
	DEVICE_OR_RETURN(device);
	if (!name || length <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	snprintf(name, (size_t)length, "%s", card->name);
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
	DEVICE_OR_RETURN(device);
	if (!uuid)
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(uuid->bytes, card->uuid_bytes, 16);
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
	return cuDeviceGetUuid_v2(uuid, device);
}

SIM CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
	DEVICE_OR_RETURN(device);
	if (!bytes)
		return CUDA_ERROR_INVALID_VALUE;
	*bytes = card->memory;
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceTotalMem(unsigned int *bytes, CUdevice device)
{
	DEVICE_OR_RETURN(device);
	if (!bytes)
		return CUDA_ERROR_INVALID_VALUE;
	*bytes = card->memory > UINT32_MAX ? UINT32_MAX : (unsigned int)card->memory;
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
	DEVICE_OR_RETURN(device);
	if (!major || !minor)
		return CUDA_ERROR_INVALID_VALUE;
	*major = card->cc_major;
	*minor = card->cc_minor;
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device)
{
	DEVICE_OR_RETURN(device);
	if (!id || length <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	snprintf(id, (size_t)length, "%04X:%02X:%02X.%X", card->pci_domain, card->pci_bus,
		 card->pci_device, card->pci_function);
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *id)
{
	char text[32];

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!device || !id)
		return CUDA_ERROR_INVALID_VALUE;
	for (CUdevice i = 0; i < device_count; i++)
		if (cuDeviceGetPCIBusId(text, sizeof(text), i) == CUDA_SUCCESS &&
		    strcasecmp(text, id) == 0) {
			*device = i;
			return CUDA_SUCCESS;
		}
	return CUDA_ERROR_INVALID_DEVICE;
}

/* For tests, whatever stands before the driver: what all processes use of a card,
 * and the most that they ever did. */
SIM void simCardUse(int card, uint64_t *used, uint64_t *peak)
{
	*used = *peak = 0;
	if (sim_load() != 0)
		return;
	pthread_mutex_lock(&sim_mutex);
	sim_reap_late();
	pthread_mutex_unlock(&sim_mutex);
	*used = sim_used(card);
	*peak = sim_peak(card);
}

/* Likewise: how long this thread has waited in the driver for other processes. */
SIM uint64_t simWaitedNs(void)
{
	return sim_waited_ns();
}

/* ---- contexts */

CUcontext sim_current(void)
{
	return depth ? stack[depth - 1] : NULL;
}

/* The current context if it can be worked with. */
CUresult sim_usable(CUcontext *context)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	*context = sim_current();
	if (!*context)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (!(*context)->alive)
		return CUDA_ERROR_CONTEXT_IS_DESTROYED;
	if ((*context)->primary_of)
		*context = (*context)->primary_of;
	return sim_lost((*context)->card) || sim_fault_lost() ? CUDA_ERROR_DEVICE_UNAVAILABLE
							      : CUDA_SUCCESS;
}

static CUresult start(CUcontext context, CUdevice device, unsigned int flags)
{
	int card = sim_card_of(device), result;

	if (sim_lost(card))
		return CUDA_ERROR_DEVICE_UNAVAILABLE;
	result = sim_context(card, 1);
	if (result != 0)
		return result == -ENOMEM ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_OPERATING_SYSTEM;
	context->device = device;
	context->card = card;
	context->flags = flags;
	context->end_ns = 0;
	context->alive = true;
	return CUDA_SUCCESS;
}

static void finish(CUcontext context)
{
	sim_free_all(context);
	sim_arrays_end(context);
	sim_ipc_end(context);
	sim_limits_end(context);
	if (context->primary) {
		sim_graphs_end(context->device);
		sim_pools_end(context->device);
	}
	sim_context(context->card, -1);
	context->alive = false;
}

SIM CUresult cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device)
{
	CUcontext fresh;
	CUresult result;

	DEVICE_OR_RETURN(device);
	(void)card;
	if (!context)
		return CUDA_ERROR_INVALID_VALUE;
	if (depth == 32)
		return CUDA_ERROR_OUT_OF_MEMORY;
	/* Never given back: a stale handle must be recognised, not followed. */
	fresh = calloc(1, sizeof(*fresh));
	if (!fresh)
		return CUDA_ERROR_OUT_OF_MEMORY;
	result = start(fresh, device, flags);
	if (result != CUDA_SUCCESS) {
		free(fresh);
		return result;
	}
	stack[depth++] = *context = fresh;
	return CUDA_SUCCESS;
}

SIM CUresult cuCtxCreate(CUcontext *context, unsigned int flags, CUdevice device)
{
	return cuCtxCreate_v2(context, flags, device);
}

SIM CUresult cuCtxCreate_v3(CUcontext *context, void *affinity, int count, unsigned int flags,
			    CUdevice device)
{
	(void)affinity, (void)count;
	return cuCtxCreate_v2(context, flags, device);
}

SIM CUresult cuCtxCreate_v4(CUcontext *context, void *params, unsigned int flags, CUdevice device)
{
	(void)params;
	return cuCtxCreate_v2(context, flags, device);
}

SIM CUresult cuCtxDestroy_v2(CUcontext context)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!context || !context->alive || context->primary || context->primary_of)
		return CUDA_ERROR_INVALID_CONTEXT;
	pthread_mutex_lock(&sim_mutex);
	finish(context);
	pthread_mutex_unlock(&sim_mutex);
	if (sim_current() == context)
		depth--;
	return CUDA_SUCCESS;
}

SIM CUresult cuCtxDestroy(CUcontext context)
{
	return cuCtxDestroy_v2(context);
}

SIM CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	CUcontext primary;
	CUresult result = CUDA_SUCCESS;

	DEVICE_OR_RETURN(device);
	(void)card;
	if (!context)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	primary = &primaries[device];
	primary->primary = true;
	if (!primary->alive)
		result = start(primary, device, primary->flags);
	if (result == CUDA_SUCCESS) {
		primary->retained++;
		*context = primary;
	}
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

static CUresult end_primary(CUdevice device, bool reset)
{
	CUcontext primary;
	CUresult result = CUDA_SUCCESS;

	DEVICE_OR_RETURN(device);
	(void)card;
	pthread_mutex_lock(&sim_mutex);
	primary = &primaries[device];
	if (!reset && !primary->retained)
		result = CUDA_ERROR_INVALID_CONTEXT;
	else
		primary->retained = reset ? 0 : primary->retained - 1;
	if (result == CUDA_SUCCESS && !primary->retained && primary->alive)
		finish(primary);
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	return end_primary(device, false);
}

SIM CUresult cuDevicePrimaryCtxRelease(CUdevice device)
{
	return end_primary(device, false);
}

SIM CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	return end_primary(device, true);
}

SIM CUresult cuDevicePrimaryCtxReset(CUdevice device)
{
	return end_primary(device, true);
}

SIM CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
	DEVICE_OR_RETURN(device);
	(void)card;
	if (!flags || !active)
		return CUDA_ERROR_INVALID_VALUE;
	*flags = primaries[device].flags;
	*active = primaries[device].alive;
	return CUDA_SUCCESS;
}

SIM CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags)
{
	DEVICE_OR_RETURN(device);
	(void)card;
	primaries[device].flags = flags;
	return CUDA_SUCCESS;
}

SIM CUresult cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned int flags)
{
	return cuDevicePrimaryCtxSetFlags_v2(device, flags);
}

SIM CUresult cuCtxGetCurrent(CUcontext *context)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!context)
		return CUDA_ERROR_INVALID_VALUE;
	*context = sim_current();
	return CUDA_SUCCESS;
}

SIM CUresult cuCtxSetCurrent(CUcontext context)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (context && !context->alive)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (!context)
		depth -= depth > 0;
	else if (depth)
		stack[depth - 1] = context;
	else
		stack[depth++] = context;
	return CUDA_SUCCESS;
}

SIM CUresult cuCtxPushCurrent_v2(CUcontext context)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!context || !context->alive || depth == 32)
		return CUDA_ERROR_INVALID_CONTEXT;
	stack[depth++] = context;
	return CUDA_SUCCESS;
}

SIM CUresult cuCtxPushCurrent(CUcontext context)
{
	return cuCtxPushCurrent_v2(context);
}

SIM CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!depth)
		return CUDA_ERROR_INVALID_CONTEXT;
	depth--;
	if (context)
		*context = stack[depth];
	return CUDA_SUCCESS;
}

SIM CUresult cuCtxPopCurrent(CUcontext *context)
{
	return cuCtxPopCurrent_v2(context);
}

SIM CUresult cuCtxGetDevice(CUdevice *device)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	if (!sim_current())
		return CUDA_ERROR_INVALID_CONTEXT;
	*device = sim_current()->device;
	return CUDA_SUCCESS;
}

SIM CUresult cuCtxGetFlags(unsigned int *flags)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (!sim_current())
		return CUDA_ERROR_INVALID_CONTEXT;
	*flags = sim_current()->flags;
	return CUDA_SUCCESS;
}

SIM CUresult cuCtxGetApiVersion(CUcontext context, unsigned int *version)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!version)
		return CUDA_ERROR_INVALID_VALUE;
	if (!context && !sim_current())
		return CUDA_ERROR_INVALID_CONTEXT;
	*version = 3020;
	return CUDA_SUCCESS;
}
