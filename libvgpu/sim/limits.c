/* SPDX-License-Identifier: Apache-2.0
 *
 * cuCtxSetLimit of the simulated libcuda: what kernels have at hand beside their
 * arguments is memory of the card. Stacks are taken at once, for every thread that
 * the card can hold; the heap of malloc and the buffer of printf when the first module
 * is loaded, and cannot be changed afterwards. What a context begins with is in its
 * overhead.
 */
#include <stddef.h>

#include "libcuda.h"
#include "state.h"

#define FIRST_STACK 1024
#define THREADS_PER_SM 2048

static const size_t first[] = {[CU_LIMIT_STACK_SIZE] = FIRST_STACK,
			       [CU_LIMIT_PRINTF_FIFO_SIZE] = 1u << 20,
			       [CU_LIMIT_MALLOC_HEAP_SIZE] = 8u << 20};
#define LIMITS (int)(sizeof(first) / sizeof(first[0]))

/* As much as the limits ask for now: the loaded context has all of it. */
static CUresult take(CUcontext context)
{
	const struct sim_card *card = &sim_config()->cards[context->card];
	int64_t threads = (int64_t)card->sm_count * THREADS_PER_SM, wanted = 0, more;

	if (context->raised[CU_LIMIT_STACK_SIZE] > 0)
		wanted = context->raised[CU_LIMIT_STACK_SIZE] * threads;
	for (int i = CU_LIMIT_PRINTF_FIFO_SIZE; i < LIMITS && context->loaded; i++)
		wanted += context->raised[i] > 0 ? context->raised[i] : 0;
	more = wanted - (int64_t)context->limits_taken;
	if (more > 0 && sim_take_from_card(context->card, (size_t)more) != 0)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (more < 0)
		sim_free(context->card, (uint64_t)-more);
	context->limits_taken = (uint64_t)wanted;
	return CUDA_SUCCESS;
}

CUresult sim_limits_load(CUcontext context)
{
	bool loaded = context->loaded;

	context->loaded = true;
	if (take(context) == CUDA_SUCCESS)
		return CUDA_SUCCESS;
	context->loaded = loaded;
	return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
}

void sim_limits_end(CUcontext context)
{
	if (context->limits_taken)
		sim_free(context->card, context->limits_taken);
	context->limits_taken = 0;
	context->loaded = false;
	for (int i = 0; i < LIMITS; i++)
		context->raised[i] = 0;
}

SIM CUresult cuCtxGetLimit(size_t *value, int limit)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if (!value)
		return CUDA_ERROR_INVALID_VALUE;
	if (limit < 0 || limit >= LIMITS)
		return CUDA_ERROR_UNSUPPORTED_LIMIT;
	pthread_mutex_lock(&sim_mutex);
	*value = (size_t)((int64_t)first[limit] + context->raised[limit]);
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

SIM CUresult cuCtxSetLimit(int limit, size_t value)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	int64_t before;

	if (result != CUDA_SUCCESS)
		return result;
	if (limit < 0 || limit >= LIMITS)
		return CUDA_ERROR_UNSUPPORTED_LIMIT;
	if (value > (limit == CU_LIMIT_STACK_SIZE ? (size_t)512 << 10 : (size_t)1 << 40))
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	if (limit != CU_LIMIT_STACK_SIZE && context->loaded) {
		pthread_mutex_unlock(&sim_mutex);
		return CUDA_ERROR_INVALID_VALUE;
	}
	before = context->raised[limit];
	context->raised[limit] = (int64_t)((value + 15) / 16 * 16) - (int64_t)first[limit];
	result = take(context);
	if (result != CUDA_SUCCESS)
		context->raised[limit] = before;
	pthread_mutex_unlock(&sim_mutex);
	return result;
}
