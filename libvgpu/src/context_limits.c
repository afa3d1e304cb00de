/* SPDX-License-Identifier: Apache-2.0
 *
 * cuCtxSetLimit: the heap that kernels allocate from, their stacks, and the buffer of
 * printf are memory of the card, which no other call asks for. What a context has of it
 * at first belongs to its overhead, as the node measures it; what a program asks for
 * beyond that is charged here, when it is asked for. The driver may take it later, at
 * the load of a module. A stack is one for every thread that the card can hold. (From
 * the driver's documentation; how it rounds has not been measured.)
 */
#include "vgpu.h"

#define ATTEMPTS 8 /* of threads that set the same limit again and again */

static struct vgpu_lock lock;

void vgpu_context_limits_forget_lock(void)
{
	atomic_store(&lock.held, 0);
}

static bool is_memory(int limit)
{
	return limit == CU_LIMIT_STACK_SIZE || limit == CU_LIMIT_PRINTF_FIFO_SIZE ||
	       limit == CU_LIMIT_MALLOC_HEAP_SIZE;
}

static bool ask(int limit, size_t *value)
{
	__typeof__(&cuCtxGetLimit) real = VGPU_REAL(cuCtxGetLimit);

	return real && real(value, limit) == CUDA_SUCCESS;
}

/* How often the card has what is limited: 0 if the driver does not say. */
static uint64_t copies(int limit)
{
	__typeof__(&cuDeviceGetAttribute) get = VGPU_REAL(cuDeviceGetAttribute);
	__typeof__(&cuCtxGetDevice) get_device = VGPU_REAL(cuCtxGetDevice);
	int processors, threads;
	CUdevice device;

	if (limit != CU_LIMIT_STACK_SIZE)
		return 1;
	if (!get || !get_device || get_device(&device) != CUDA_SUCCESS ||
	    get(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device) != CUDA_SUCCESS ||
	    get(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, device) !=
		    CUDA_SUCCESS ||
	    processors <= 0 || threads <= 0)
		return 0;
	return (uint64_t)processors * (uint64_t)threads;
}

/* `first` is what the context began with. */
static uint64_t charge_of(uint64_t value, uint64_t first, uint64_t times)
{
	uint64_t more = value > first ? value - first : 0, bytes;

	return __builtin_mul_overflow(more, times, &bytes) ? UINT64_MAX : vgpu_charge_of(bytes);
}

/* Puts down what the driver has now, and charges the difference; `reserved` has been.
 * All of it in one turn: what is given back has to be counted by then. */
static void put_down(struct vgpu_pointer *entry, size_t value, uint64_t times, uint64_t reserved)
{
	struct vgpu_pointer old;
	uint64_t paid = reserved;

	vgpu_lock(&lock);
	if (vgpu_pointer_take(VGPU_CONTEXT_LIMITS, entry->address, &old)) {
		paid += old.bytes;
		if (old.count < entry->count)
			entry->count = old.count;
	}
	entry->bytes = charge_of(value, entry->count, times);
	vgpu_pointer_add(VGPU_CONTEXT_LIMITS, entry);
	if (entry->bytes > paid)
		vgpu_count_anyway(entry->card, entry->bytes - paid);
	else if (entry->bytes < paid)
		vgpu_give_back(entry->card, paid - entry->bytes);
	vgpu_unlock(&lock);
}

static CUresult set(int limit, size_t value, struct vgpu_card *card)
{
	__typeof__(&cuCtxSetLimit) real = VGPU_REAL(cuCtxSetLimit);
	CUcontext context = vgpu_current_context();
	struct vgpu_pointer entry;
	uint64_t times = copies(limit), wanted, reserved = 0;
	size_t now;
	CUresult result;

	if (!times || !ask(limit, &now))
		return real(limit, value);
	/* Contexts are structures of the driver: their addresses are multiples of 8. */
	if (!vgpu_pointer_find(VGPU_CONTEXT_LIMITS, (uintptr_t)context + (unsigned int)limit,
			       &entry))
		entry = (struct vgpu_pointer){.address = (uintptr_t)context + (unsigned int)limit,
					      .context = context,
					      .card = card,
					      .count = now};
	wanted = charge_of(value, entry.count, times);
	if (wanted > entry.bytes) {
		reserved = wanted - entry.bytes;
		result = vgpu_charge(card, reserved);
		if (result != CUDA_SUCCESS)
			return result;
	}
	result = real(limit, value);
	if (result != CUDA_SUCCESS) {
		vgpu_give_back(card, reserved);
		if (result == CUDA_ERROR_OUT_OF_MEMORY)
			vgpu_count_driver_oom(card);
		return result;
	}
	/* The driver rounds; and another thread may have set it since. */
	for (int i = 0; i < ATTEMPTS && ask(limit, &now); i++) {
		size_t then = now;

		put_down(&entry, then, times, reserved);
		reserved = 0;
		if (!ask(limit, &now) || now == then)
			break;
	}
	return CUDA_SUCCESS;
}

VGPU_EXPORT CUresult cuCtxSetLimit(int limit, size_t value)
{
	__typeof__(&cuCtxSetLimit) real = VGPU_REAL(cuCtxSetLimit);
	struct vgpu_card *card;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	card = is_memory(limit) ? vgpu_card_current() : NULL;
	return card ? set(limit, value, card) : real(limit, value);
}
