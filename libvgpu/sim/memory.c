/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: memory. An allocation is counted against the card
 * in the driver's granules and backed by host memory that costs nothing until
 * it is touched, so that copies really arrive.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "graphs.h"
#include "pools.h"
#include "shares.h"
#include "state.h"

struct allocation {
	CUdeviceptr address;
	size_t bytes, charged;
	int card;
	CUcontext context; /* takes it along when it ends */
	bool freed;        /* by a stream that gets there later */
	uint64_t free_ns;
	bool managed; /* and not tied to the card */
	CUdevice preferred, accessed_by;
	uint64_t share; /* its number, if other processes may have it */
};

#define NOWHERE (-2) /* CU_DEVICE_INVALID */
#define NARROW_STEP UINT64_C(0x200000)
#define NARROW_END (UINT64_C(1) << 32)

static struct allocation *allocations;
static size_t count, capacity;

static size_t charge_of(size_t bytes)
{
	size_t step = bytes >= (1u << 20) ? 2u << 20 : 512;

	return (bytes + step - 1) / step * step;
}

static void give_to_card(int card, size_t bytes, bool managed)
{
	if (managed)
		sim_free_managed(card, bytes);
	else
		sim_free(card, bytes);
}

static void drop(size_t i)
{
	struct allocation *gone = &allocations[i];

	munmap((void *)gone->address, gone->bytes); // NOLINT(performance-no-int-to-ptr)
	if (gone->share)
		sim_share_leave(gone->share);
	else
		give_to_card(gone->card, gone->charged, gone->managed);
	*gone = allocations[--count];
}

void sim_free_all(CUcontext context)
{
	for (size_t i = count; i-- > 0;)
		if (allocations[i].context == context)
			drop(i);
}

void sim_reap_late(void)
{
	uint64_t now = sim_now_ns();

	for (size_t i = count; i-- > 0;)
		if (allocations[i].freed && allocations[i].free_ns <= now)
			drop(i);
}

static struct allocation *find(CUdeviceptr pointer)
{
	for (size_t i = count; i-- > 0;)
		if (allocations[i].address == pointer && !allocations[i].freed)
			return &allocations[i];
	return NULL;
}

bool sim_memory_piece(CUdeviceptr pointer, struct sim_piece *piece)
{
	for (size_t i = count; i-- > 0;) {
		struct allocation *it = &allocations[i];

		if (it->freed || pointer < it->address || pointer - it->address >= it->bytes)
			continue;
		*piece = (struct sim_piece){.start = it->address,
					    .bytes = it->bytes,
					    .whole = it->address,
					    .whole_bytes = it->bytes,
					    .share = &it->share,
					    .charged = it->charged,
					    .card = it->card};
		return true;
	}
	return false;
}

bool sim_memory_is_own(uint64_t share)
{
	for (size_t i = count; i-- > 0;)
		if (allocations[i].share == share)
			return true;
	return false;
}

CUresult sim_free_late(CUdeviceptr pointer, uint64_t when_ns)
{
	struct allocation *allocation = find(pointer);

	if (!allocation ||
	    (allocation->managed && !sim_config()->cards[allocation->card].managed_async))
		return CUDA_ERROR_INVALID_VALUE;
	allocation->freed = true;
	allocation->free_ns = when_ns;
	sim_reap_late();
	return CUDA_SUCCESS;
}

/* Short of memory, the driver takes back what pools keep. */
int sim_take_from_card(int card, size_t bytes)
{
	int error = sim_alloc(card, bytes);

	if (error != -ENOMEM)
		return error;
	sim_pools_synchronised();
	return sim_alloc(card, bytes);
}

static int take(int card, size_t bytes, bool managed)
{
	return managed ? sim_alloc_managed(card, bytes) : sim_take_from_card(card, bytes);
}

/* Address space, below 4 GiB for the functions whose pointers have 32 bits. */
static void *reserve_addresses(size_t bytes, bool narrow)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

	if (!narrow)
		return mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
#ifdef MAP_32BIT
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_32BIT, -1, 0);
#else
	static uintptr_t start = NARROW_STEP;

	/* The kernel takes a place as proposed if it is free. */
	for (int tries = NARROW_END / NARROW_STEP; tries > 0; tries--) {
		void *memory;

		if (bytes > NARROW_END - start)
			start = NARROW_STEP;
		memory = mmap((void *)start, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
		start += (bytes + NARROW_STEP - 1) / NARROW_STEP * NARROW_STEP;
		if (memory == MAP_FAILED || (uintptr_t)memory + bytes <= NARROW_END)
			return memory;
		munmap(memory, bytes);
	}
	return MAP_FAILED;
#endif
}

static CUresult allocate_on(int card, CUcontext owner, CUdeviceptr *pointer, size_t bytes,
			    bool narrow, bool managed)
{
	CUresult result = CUDA_SUCCESS;
	void *memory;
	int error;

	if (!pointer || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	if (bytes > (size_t)1 << 48)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_mutex_lock(&sim_mutex);
	if (count == capacity) {
		size_t bigger = capacity ? capacity * 2 : 64;
		void *grown = realloc(allocations, bigger * sizeof(*allocations));

		if (!grown) {
			pthread_mutex_unlock(&sim_mutex);
			return CUDA_ERROR_OUT_OF_MEMORY;
		}
		allocations = grown;
		capacity = bigger;
	}
	sim_reap_late();
	error = take(card, charge_of(bytes), managed);
	if (error != 0) {
		result = error == -ENOMEM ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_OPERATING_SYSTEM;
	} else {
		memory = reserve_addresses(bytes, narrow);
		if (memory == MAP_FAILED) {
			give_to_card(card, charge_of(bytes), managed);
			result = CUDA_ERROR_OUT_OF_MEMORY;
		} else {
			*pointer = (CUdeviceptr)memory;
			allocations[count++] = (struct allocation){.address = *pointer,
								   .bytes = bytes,
								   .charged = charge_of(bytes),
								   .card = card,
								   .context = owner,
								   .managed = managed,
								   .preferred = NOWHERE,
								   .accessed_by = NOWHERE};
		}
	}
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

static CUresult allocate(CUdeviceptr *pointer, size_t bytes, bool narrow, bool managed)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result == CUDA_SUCCESS && sim_spoils_capture())
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	return result != CUDA_SUCCESS
		       ? result
		       : allocate_on(context->card, context, pointer, bytes, narrow,
				     managed && !sim_config()->cards[context->card].managed_stays);
}

SIM CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
	return allocate(pointer, bytes, false, false);
}

SIM CUresult cuMemAlloc(CUdeviceptr_v1 *pointer, unsigned int bytes)
{
	CUdeviceptr wide;
	CUresult result;

	if (!pointer)
		return CUDA_ERROR_INVALID_VALUE;
	result = allocate(&wide, bytes, true, false);
	if (result == CUDA_SUCCESS)
		*pointer = (CUdeviceptr_v1)wide;
	return result;
}

SIM CUresult cuMemAllocManaged(CUdeviceptr *pointer, size_t bytes, unsigned int flags)
{
	if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST)
		return CUDA_ERROR_INVALID_VALUE;
	return allocate(pointer, bytes, false, true);
}

static struct allocation *find_around(CUdeviceptr start, size_t bytes)
{
	for (size_t i = count; i-- > 0;)
		if (start >= allocations[i].address && bytes <= allocations[i].bytes &&
		    start - allocations[i].address <= allocations[i].bytes - bytes)
			return &allocations[i];
	return NULL;
}

/* Of whole allocations only; what programs ask for here is where memory wants to be. */
SIM CUresult cuMemAdvise(CUdeviceptr start, size_t bytes, int advice, CUdevice device)
{
	CUresult result = sim_ready();
	struct allocation *allocation;

	if (result != CUDA_SUCCESS)
		return result;
	if (advice < CU_MEM_ADVISE_SET_READ_MOSTLY || advice > CU_MEM_ADVISE_UNSET_ACCESSED_BY)
		return CUDA_ERROR_INVALID_VALUE;
	if (device != CU_DEVICE_CPU && sim_card_of(device) < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&sim_mutex);
	allocation = find_around(start, bytes);
	if (!allocation || !allocation->managed)
		result = CUDA_ERROR_INVALID_VALUE;
	else if (advice == CU_MEM_ADVISE_SET_PREFERRED_LOCATION)
		allocation->preferred = device;
	else if (advice == CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION)
		allocation->preferred = NOWHERE;
	else if (advice == CU_MEM_ADVISE_SET_ACCESSED_BY)
		allocation->accessed_by = device;
	else if (advice == CU_MEM_ADVISE_UNSET_ACCESSED_BY)
		allocation->accessed_by = NOWHERE;
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMemRangeGetAttribute(void *data, size_t size, int attribute, CUdeviceptr start,
				    size_t bytes)
{
	CUresult result = sim_ready();
	struct allocation *allocation;

	if (result != CUDA_SUCCESS)
		return result;
	if (!data || size != sizeof(CUdevice) ||
	    (attribute != CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION &&
	     attribute != CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY))
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	allocation = find_around(start, bytes);
	if (!allocation || !allocation->managed)
		result = CUDA_ERROR_INVALID_VALUE;
	else
		*(CUdevice *)data = attribute == CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY
					    ? allocation->accessed_by
					    : allocation->preferred;
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

static CUresult allocate_rows(CUdeviceptr *pointer, size_t *pitch, size_t width, size_t height,
			      unsigned int element, bool narrow)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	size_t step, row;

	if (result != CUDA_SUCCESS)
		return result;
	if (!pointer || !pitch || !width || !height ||
	    (element != 4 && element != 8 && element != 16))
		return CUDA_ERROR_INVALID_VALUE;
	step = sim_config()->cards[context->card].pitch;
	if (width > SIZE_MAX - step)
		return CUDA_ERROR_OUT_OF_MEMORY;
	row = (width + step - 1) / step * step;
	if (height > SIZE_MAX / row)
		return CUDA_ERROR_OUT_OF_MEMORY;
	result = allocate(pointer, row * height, narrow, false);
	if (result == CUDA_SUCCESS)
		*pitch = row;
	return result;
}

SIM CUresult cuMemAllocPitch_v2(CUdeviceptr *pointer, size_t *pitch, size_t width, size_t height,
				unsigned int element)
{
	return allocate_rows(pointer, pitch, width, height, element, false);
}

SIM CUresult cuMemAllocPitch(CUdeviceptr_v1 *pointer, unsigned int *pitch, unsigned int width,
			     unsigned int height, unsigned int element)
{
	CUdeviceptr wide;
	size_t row;
	CUresult result;

	if (!pointer || !pitch)
		return CUDA_ERROR_INVALID_VALUE;
	result = allocate_rows(&wide, &row, width, height, element, true);
	if (result == CUDA_SUCCESS) {
		*pointer = (CUdeviceptr_v1)wide;
		*pitch = (unsigned int)row;
	}
	return result;
}

SIM CUresult cuMemFree_v2(CUdeviceptr pointer)
{
	CUresult result = sim_ready();

	if (result != CUDA_SUCCESS || !pointer)
		return result;
	pthread_mutex_lock(&sim_mutex);
	if (find(pointer))
		drop((size_t)(find(pointer) - allocations));
	else if (!sim_pool_give(pointer, NULL) && !sim_graph_give(pointer, NULL) &&
		 !sim_ipc_give(pointer))
		result = CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMemFree(CUdeviceptr_v1 pointer)
{
	return cuMemFree_v2(pointer);
}

static CUresult info(uint64_t *available, uint64_t *total)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	uint64_t used;

	if (result != CUDA_SUCCESS)
		return result;
	pthread_mutex_lock(&sim_mutex);
	sim_reap_late();
	pthread_mutex_unlock(&sim_mutex);
	used = sim_used(context->card);
	*total = sim_config()->cards[context->card].memory;
	*available = used < *total ? *total - used : 0;
	sim_limit_figures(context->card, total, available);
	return CUDA_SUCCESS;
}

SIM CUresult cuMemGetInfo_v2(size_t *available, size_t *total)
{
	uint64_t a, t;
	CUresult result = info(&a, &t);

	if (result != CUDA_SUCCESS)
		return result;
	if (!available || !total)
		return CUDA_ERROR_INVALID_VALUE;
	*available = a;
	*total = t;
	return CUDA_SUCCESS;
}

SIM CUresult cuMemGetInfo(unsigned int *available, unsigned int *total)
{
	uint64_t a, t;
	CUresult result = info(&a, &t);

	if (result != CUDA_SUCCESS)
		return result;
	if (!available || !total)
		return CUDA_ERROR_INVALID_VALUE;
	*available = a > UINT32_MAX ? UINT32_MAX : (unsigned int)a;
	*total = t > UINT32_MAX ? UINT32_MAX : (unsigned int)t;
	return CUDA_SUCCESS;
}

/* For tests: what of the card's managed memory is in the host's. */
SIM unsigned long long simOnHost(int card)
{
	return sim_load() == 0 ? sim_on_host(card) : 0;
}

/* Host address of a range of device memory, or NULL. */
static void *range(CUdeviceptr start, size_t bytes)
{
	void *found = NULL;

	pthread_mutex_lock(&sim_mutex);
	if (find_around(start, bytes))
		found = (void *)start; // NOLINT(performance-no-int-to-ptr)
	if (!found && (sim_mapped(start, bytes) || sim_pool_holds(start, bytes) ||
		       sim_ipc_holds(start, bytes)))
		found = (void *)start; // NOLINT(performance-no-int-to-ptr)
	pthread_mutex_unlock(&sim_mutex);
	return found;
}

SIM CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if (!from || !range(to, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(range(to, bytes), from, bytes);
	return CUDA_SUCCESS;
}

SIM CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if (!to || !range(from, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(to, range(from, bytes), bytes);
	return CUDA_SUCCESS;
}

SIM CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if (!range(to, bytes) || !range(from, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	memmove(range(to, bytes), range(from, bytes), bytes);
	return CUDA_SUCCESS;
}

SIM CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t n)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if (!range(to, n))
		return CUDA_ERROR_INVALID_VALUE;
	memset(range(to, n), value, n);
	return CUDA_SUCCESS;
}

SIM CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned int value, size_t n)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	unsigned int *words;

	if (result != CUDA_SUCCESS)
		return result;
	if (to % 4 || n > SIZE_MAX / 4 || !range(to, n * 4))
		return CUDA_ERROR_INVALID_VALUE;
	words = range(to, n * 4);
	for (size_t i = 0; i < n; i++)
		words[i] = value;
	return CUDA_SUCCESS;
}
