/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: green contexts. Such a context has some of a card's
 * multiprocessors, by groups as large as the card can keep apart; a kernel in it takes longer
 * by as much as they are fewer. It keeps the primary context alive, and memory that is
 * taken in it is the primary's.
 */
#include <stdlib.h>
#include <string.h>

#include "libcuda.h"
#include "mps.h"
#include "state.h"

struct CUgreenCtx_st {
	struct CUctx_st context;
	unsigned long long id;
};
struct CUdevResourceDesc_st {
	CUdevice device;
	unsigned int first, count;
};
struct internal { /* of a resource, in the bytes that are the driver's */
	unsigned int magic, first;
	CUdevice device;
};

#define MAGIC 0x6772656eu

/* Groups are of so many multiprocessors at least, and of a multiple (CUDA's table). */
static unsigned int step_of(const struct sim_card *card)
{
	return card->cc_major >= 9 ? 8 : card->cc_major >= 7 ? 2 : 1;
}

static void describe(CUdevResource *resource, CUdevice device, unsigned int first,
		     unsigned int count)
{
	const struct internal internal = {MAGIC, first, device};
	const unsigned int step = step_of(&sim_config()->cards[sim_card_of(device)]);

	memset(resource, 0, sizeof(*resource));
	resource->type = CU_DEV_RESOURCE_TYPE_SM;
	memcpy(resource->internal, &internal, sizeof(internal));
	resource->sm.smCount = count;
	resource->sm.minSmPartitionSize = resource->sm.smCoscheduledAlignment = step;
}

static bool understand(const CUdevResource *resource, struct internal *internal)
{
	if (!resource || resource->type != CU_DEV_RESOURCE_TYPE_SM)
		return false;
	memcpy(internal, resource->internal, sizeof(*internal));
	return internal->magic == MAGIC && resource->sm.smCount;
}

static unsigned int multiprocessors(CUdevice device)
{
	return (unsigned int)sim_mps_multiprocessors(
		sim_config()->cards[sim_card_of(device)].sm_count);
}

static CUresult describe_context(CUcontext context, CUdevResource *resource, int type)
{
	if (!resource)
		return CUDA_ERROR_INVALID_VALUE;
	if (type != CU_DEV_RESOURCE_TYPE_SM)
		return CUDA_ERROR_INVALID_RESOURCE_TYPE;
	if (context->primary_of)
		describe(resource, context->device, context->first_sm, context->sm_count);
	else
		describe(resource, context->device, 0, multiprocessors(context->device));
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceGetDevResource(CUdevice device, CUdevResource *resource, int type)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (sim_card_of(device) < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	if (!resource)
		return CUDA_ERROR_INVALID_VALUE;
	if (type != CU_DEV_RESOURCE_TYPE_SM)
		return CUDA_ERROR_INVALID_RESOURCE_TYPE;
	describe(resource, device, 0, multiprocessors(device));
	return CUDA_SUCCESS;
}

SIM CUresult cuCtxGetDevResource(CUcontext context, CUdevResource *resource, int type)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!context || !context->alive)
		return CUDA_ERROR_INVALID_CONTEXT;
	return describe_context(context, resource, type);
}

SIM CUresult cuGreenCtxGetDevResource(CUgreenCtx green, CUdevResource *resource, int type)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!green || !green->context.alive)
		return CUDA_ERROR_INVALID_CONTEXT;
	return describe_context(&green->context, resource, type);
}

SIM CUresult cuDevSmResourceSplitByCount(CUdevResource *groups, unsigned int *count,
					 const CUdevResource *input, CUdevResource *remaining,
					 unsigned int flags, unsigned int least)
{
	struct internal internal;
	unsigned int step, size, most, left;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!count || !understand(input, &internal) || flags > 3)
		return CUDA_ERROR_INVALID_VALUE;
	step = step_of(&sim_config()->cards[sim_card_of(internal.device)]);
	size = least > step ? (least + step - 1) / step * step : step;
	most = input->sm.smCount / size;
	if (!most)
		return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
	if (!groups) {
		*count = most;
		return CUDA_SUCCESS;
	}
	if (*count > most)
		*count = most;
	for (unsigned int i = 0; i < *count; i++)
		describe(&groups[i], internal.device, internal.first + i * size, size);
	left = input->sm.smCount - *count * size;
	if (remaining)
		describe(remaining, internal.device, internal.first + *count * size, left);
	if (remaining && !left)
		remaining->type = 0; /* CU_DEV_RESOURCE_TYPE_INVALID */
	return CUDA_SUCCESS;
}

SIM CUresult cuDevResourceGenerateDesc(CUdevResourceDesc *desc, CUdevResource *resources,
				       unsigned int count)
{
	struct internal first, next;
	unsigned int sum = 0;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!desc || !count || !understand(resources, &first))
		return CUDA_ERROR_INVALID_VALUE;
	for (unsigned int i = 0; i < count; i++) {
		if (!understand(&resources[i], &next) || next.device != first.device)
			return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
		sum += resources[i].sm.smCount;
	}
	/* For the life of the process, as the real one. */
	*desc = malloc(sizeof(**desc));
	if (!*desc)
		return CUDA_ERROR_OUT_OF_MEMORY;
	**desc = (struct CUdevResourceDesc_st){first.device, first.first, sum};
	return CUDA_SUCCESS;
}

SIM CUresult cuGreenCtxCreate(CUgreenCtx *green, CUdevResourceDesc desc, CUdevice device,
			      unsigned int flags)
{
	static unsigned long long ids;
	CUcontext primary;
	CUgreenCtx fresh;
	CUresult result;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!green || !desc || desc->device != device || flags != CU_GREEN_CTX_DEFAULT_STREAM)
		return CUDA_ERROR_INVALID_VALUE;
	result = cuDevicePrimaryCtxRetain(&primary, device);
	if (result != CUDA_SUCCESS)
		return result;
	/* Never given back, as contexts are not. */
	fresh = calloc(1, sizeof(*fresh));
	if (!fresh) {
		cuDevicePrimaryCtxRelease_v2(device);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	fresh->context.device = device;
	fresh->context.card = primary->card;
	fresh->context.alive = true;
	fresh->context.primary_of = primary;
	fresh->context.green = fresh;
	fresh->context.first_sm = desc->first;
	fresh->context.sm_count = desc->count;
	fresh->id = __atomic_add_fetch(&ids, 1, __ATOMIC_RELAXED);
	*green = fresh;
	return CUDA_SUCCESS;
}

SIM CUresult cuGreenCtxDestroy(CUgreenCtx green)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!green || !green->context.alive)
		return CUDA_ERROR_INVALID_CONTEXT;
	green->context.alive = false;
	return cuDevicePrimaryCtxRelease_v2(green->context.device);
}

SIM CUresult cuCtxFromGreenCtx(CUcontext *context, CUgreenCtx green)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!context || !green || !green->context.alive)
		return CUDA_ERROR_INVALID_VALUE;
	*context = &green->context;
	return CUDA_SUCCESS;
}

SIM CUresult cuGreenCtxStreamCreate(CUstream *stream, CUgreenCtx green, unsigned int flags,
				    int priority)
{
	(void)priority;
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!stream || !green || !green->context.alive || flags != CU_STREAM_NON_BLOCKING)
		return CUDA_ERROR_INVALID_VALUE;
	return sim_stream_new(stream, &green->context);
}

SIM CUresult cuStreamGetGreenCtx(CUstream stream, CUgreenCtx *green)
{
	CUcontext context;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!green)
		return CUDA_ERROR_INVALID_VALUE;
	context = sim_green_of(stream);
	*green = context ? context->green : NULL;
	return CUDA_SUCCESS;
}

SIM CUresult cuStreamGetDevResource(CUstream stream, CUdevResource *resource, int type)
{
	CUcontext context, green = sim_green_of(stream);
	CUresult result = cuStreamGetCtx(stream, &context);

	return result == CUDA_SUCCESS ? describe_context(green ? green : context, resource, type)
				      : result;
}

SIM CUresult cuStreamGetDevResource_ptsz(CUstream stream, CUdevResource *resource, int type)
{
	return cuStreamGetDevResource(stream, resource, type);
}

/* All that the context has been given to do. */
SIM CUresult cuGreenCtxRecordEvent(CUgreenCtx green, CUevent event)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!green || !green->context.alive)
		return CUDA_ERROR_INVALID_CONTEXT;
	return sim_event_record(event, &green->context.end_ns);
}

SIM CUresult cuGreenCtxWaitEvent(CUgreenCtx green, CUevent event)
{
	uint64_t done;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!green || !green->context.alive)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	done = sim_event_done(event);
	if (done > green->context.waits_ns)
		green->context.waits_ns = done;
	return CUDA_SUCCESS;
}

SIM CUresult cuGreenCtxGetId(CUgreenCtx green, unsigned long long *id)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!green || !id)
		return CUDA_ERROR_INVALID_VALUE;
	*id = green->id;
	return CUDA_SUCCESS;
}
