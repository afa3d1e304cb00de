/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: memory in the order of a stream, from pools. A pool
 * takes segments from its card and cuts them into blocks. A block that is freed is
 * free when its stream has got there; a segment goes back to the card when all of
 * it is free and a synchronisation finds more than the release threshold.
 *
 * A pool is a device's and not a context's: the end of the primary context takes
 * its memory along, that of another one does not.
 */
#include "graphs.h"
#include "pools.h"

#include <errno.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shares.h"
#include "state.h"

#define BLOCK_STEP ((size_t)512)

struct block {
	struct block *next;
	CUdeviceptr address;
	size_t bytes;
	bool used;
	const uint64_t *stream; /* that freed it; compared, never followed */
	uint64_t ready_ns;      /* when that stream gets there */
};
struct segment {
	struct segment *next;
	struct block *blocks;
	CUdeviceptr address;
	size_t bytes;
	uint64_t share; /* its number, if other processes may have it */
};
struct CUmemPoolHandle_st {
	CUmemoryPool next;
	enum { STANDARD, GRAPHS, MADE } kind;
	CUdevice device; /* -1: the host's memory */
	bool alive, imported;
	uint64_t threshold, reserved, reserved_high, used, used_high;
	struct segment *segments;
};

static struct CUmemPoolHandle_st default_pools[SIM_CARDS], graph_pools[SIM_CARDS];
static CUmemoryPool made, current_pools[SIM_CARDS];

static CUmemoryPool next_pool(CUmemoryPool pool)
{
	if (!pool)
		return &default_pools[0];
	if (pool == &default_pools[SIM_CARDS - 1])
		return &graph_pools[0];
	if (pool == &graph_pools[SIM_CARDS - 1])
		return made;
	return pool->kind == MADE ? pool->next : pool + 1;
}

static bool usable(CUmemoryPool pool)
{
	return pool && (pool->kind == STANDARD || pool->alive);
}

void sim_pools_start(void)
{
	for (int i = 0; i < SIM_CARDS; i++) {
		default_pools[i].device = graph_pools[i].device = i;
		graph_pools[i].kind = GRAPHS;
	}
}

CUmemoryPool sim_graph_pool(CUdevice device)
{
	return &graph_pools[device];
}

uint64_t sim_pool_figure(CUmemoryPool pool, int attribute)
{
	switch (attribute) {
	case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
		return pool->threshold;
	case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
		return pool->reserved;
	case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
		return pool->reserved_high;
	case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
		return pool->used;
	default:
		return pool->used_high;
	}
}

/* ---- blocks */

static bool is_free(const struct block *block, const uint64_t *stream, uint64_t now)
{
	return !block->used && (block->ready_ns <= now || (stream && block->stream == stream));
}

static bool all_free(const struct segment *segment, uint64_t now)
{
	for (const struct block *block = segment->blocks; block; block = block->next)
		if (!is_free(block, NULL, now))
			return false;
	return true;
}

static void merge(struct segment *segment, uint64_t now)
{
	for (struct block *block = segment->blocks; block;) {
		struct block *next = block->next;

		if (!next || !is_free(block, NULL, now) || !is_free(next, NULL, now)) {
			block = next;
			continue;
		}
		block->bytes += next->bytes;
		block->next = next->next;
		free(next);
	}
}

static void split(struct block *block, size_t bytes)
{
	struct block *rest = block->bytes > bytes ? malloc(sizeof(*rest)) : NULL;

	if (!rest)
		return;
	*rest = *block;
	rest->address += bytes;
	rest->bytes -= bytes;
	block->bytes = bytes;
	block->next = rest;
}

static struct block *find_free(CUmemoryPool pool, size_t bytes, const uint64_t *stream)
{
	uint64_t now = sim_now_ns();

	for (struct segment *segment = pool->segments; segment; segment = segment->next) {
		merge(segment, now);
		for (struct block *block = segment->blocks; block; block = block->next)
			if (block->bytes >= bytes && is_free(block, stream, now))
				return block;
	}
	return NULL;
}

/* ---- segments */

static void drop(CUmemoryPool pool, struct segment **place)
{
	struct segment *gone = *place;

	*place = gone->next;
	pool->reserved -= gone->bytes;
	if (gone->share)
		sim_share_leave(gone->share);
	else
		sim_free(sim_card_of(pool->device), gone->bytes);
	munmap((void *)gone->address, gone->bytes); // NOLINT(performance-no-int-to-ptr)
	for (struct block *block = gone->blocks; block;) {
		struct block *next = block->next;

		free(block);
		block = next;
	}
	free(gone);
}

void sim_pool_trim(CUmemoryPool pool, uint64_t keep)
{
	uint64_t now = sim_now_ns();

	for (struct segment **place = &pool->segments; *place;)
		if (all_free(*place, now) && pool->reserved > keep &&
		    pool->reserved - (*place)->bytes >= keep)
			drop(pool, place);
		else
			place = &(*place)->next;
}

void sim_pools_synchronised(void)
{
	for (CUmemoryPool pool = next_pool(NULL); pool; pool = next_pool(pool))
		if (pool->kind != GRAPHS)
			sim_pool_trim(pool, usable(pool) ? pool->threshold : 0);
}

void sim_pools_end(CUdevice device)
{
	for (CUmemoryPool pool = next_pool(NULL); pool; pool = next_pool(pool)) {
		if (pool->device != device)
			continue;
		while (pool->segments)
			drop(pool, &pool->segments);
		pool->used = 0;
	}
}

static int take_from_card(int card, size_t bytes)
{
	int error = sim_alloc(card, bytes);

	if (error != -ENOMEM)
		return error;
	for (CUmemoryPool pool = next_pool(NULL); pool; pool = next_pool(pool))
		sim_pool_trim(pool, 0);
	return sim_alloc(card, bytes);
}

static CUresult grow(CUmemoryPool pool, size_t bytes)
{
	int card = sim_card_of(pool->device), error;
	size_t step = sim_config()->cards[card].pool_step;
	size_t whole = (bytes + step - 1) / step * step;
	struct segment *segment = calloc(1, sizeof(*segment));
	struct block *block = calloc(1, sizeof(*block));
	void *memory = MAP_FAILED;

	error = segment && block ? take_from_card(card, whole) : -ENOMEM;
	if (error == 0) {
		memory = mmap(NULL, whole, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (memory == MAP_FAILED)
			sim_free(card, whole);
	}
	if (memory == MAP_FAILED) {
		free(segment);
		free(block);
		return error && error != -ENOMEM ? CUDA_ERROR_OPERATING_SYSTEM
						 : CUDA_ERROR_OUT_OF_MEMORY;
	}
	*block = (struct block){.address = (CUdeviceptr)memory, .bytes = whole};
	*segment = (struct segment){pool->segments, block, block->address, whole, 0};
	pool->segments = segment;
	pool->reserved += whole;
	if (pool->reserved > pool->reserved_high)
		pool->reserved_high = pool->reserved;
	return CUDA_SUCCESS;
}

CUresult sim_pool_take(CUmemoryPool pool, CUdeviceptr *pointer, size_t bytes,
		       const uint64_t *stream)
{
	size_t rounded = (bytes + BLOCK_STEP - 1) / BLOCK_STEP * BLOCK_STEP;
	struct block *block;
	CUresult result;

	if (bytes > (size_t)1 << 48)
		return CUDA_ERROR_OUT_OF_MEMORY;
	block = find_free(pool, rounded, stream);
	if (!block) {
		result = grow(pool, rounded);
		if (result != CUDA_SUCCESS)
			return result;
		block = find_free(pool, rounded, stream);
	}
	split(block, rounded);
	block->used = true;
	*pointer = block->address;
	pool->used += block->bytes;
	if (pool->used > pool->used_high)
		pool->used_high = pool->used;
	return CUDA_SUCCESS;
}

static struct block *find_used(CUmemoryPool pool, CUdeviceptr pointer)
{
	for (struct segment *segment = pool->segments; segment; segment = segment->next) {
		if (pointer < segment->address || pointer - segment->address >= segment->bytes)
			continue;
		for (struct block *block = segment->blocks; block; block = block->next)
			if (block->used && block->address == pointer)
				return block;
	}
	return NULL;
}

/* stream: whose order the free follows; NULL = at once. False: no pool's memory. */
bool sim_pool_give(CUdeviceptr pointer, const uint64_t *stream)
{
	struct block *block = NULL;
	CUmemoryPool pool = NULL;

	do {
		pool = next_pool(pool);
		block = pool ? find_used(pool, pointer) : NULL;
	} while (pool && !block);
	if (!block)
		return false;
	block->used = false;
	block->stream = stream;
	block->ready_ns = stream ? *stream : 0;
	pool->used -= block->bytes;
	if (!usable(pool) && pool->kind != GRAPHS)
		sim_pool_trim(pool, 0);
	return true;
}

bool sim_pool_piece(CUdeviceptr pointer, struct sim_piece *piece)
{
	for (CUmemoryPool pool = next_pool(NULL); pool; pool = next_pool(pool))
		for (struct segment *segment = pool->segments; segment; segment = segment->next)
			for (struct block *block = segment->blocks; block; block = block->next) {
				if (!block->used || pointer < block->address ||
				    pointer - block->address >= block->bytes)
					continue;
				*piece = (struct sim_piece){.start = block->address,
							    .bytes = block->bytes,
							    .whole = segment->address,
							    .whole_bytes = segment->bytes,
							    .share = &segment->share,
							    .charged = segment->bytes,
							    .card = sim_card_of(pool->device)};
				return true;
			}
	return false;
}

bool sim_pool_holds(CUdeviceptr start, size_t bytes)
{
	for (CUmemoryPool pool = next_pool(NULL); pool; pool = next_pool(pool))
		for (struct segment *segment = pool->segments; segment; segment = segment->next)
			if (start >= segment->address && bytes <= segment->bytes &&
			    start - segment->address <= segment->bytes - bytes)
				return true;
	return false;
}

/* ---- the driver's functions */

SIM CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!pool)
		return CUDA_ERROR_INVALID_VALUE;
	if (sim_card_of(device) < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	*pool = &default_pools[device];
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device)
{
	CUresult result = cuDeviceGetDefaultMemPool(pool, device);

	if (result != CUDA_SUCCESS)
		return result;
	pthread_mutex_lock(&sim_mutex);
	if (usable(current_pools[device]))
		*pool = current_pools[device];
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (sim_card_of(device) < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	if (!usable(pool) || pool->device != device)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	current_pools[device] = pool;
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

SIM CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *props)
{
	CUmemoryPool fresh;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!pool || !props || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    props->location.type < CU_MEM_LOCATION_TYPE_DEVICE ||
	    props->location.type > CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT)
		return CUDA_ERROR_INVALID_VALUE;
	if (props->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
	    sim_card_of(props->location.id) < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	/* Never given back: a stale handle must be recognised, not followed. */
	fresh = calloc(1, sizeof(*fresh));
	if (!fresh)
		return CUDA_ERROR_OUT_OF_MEMORY;
	fresh->kind = MADE;
	fresh->alive = true;
	fresh->device =
		props->location.type == CU_MEM_LOCATION_TYPE_DEVICE ? props->location.id : -1;
	pthread_mutex_lock(&sim_mutex);
	fresh->next = made;
	made = fresh;
	pthread_mutex_unlock(&sim_mutex);
	*pool = fresh;
	return CUDA_SUCCESS;
}

/* Nothing is in the descriptor but which device it is of: what is in the pool comes
 * pointer by pointer. */
SIM CUresult cuMemPoolExportToShareableHandle(void *shareable, CUmemoryPool pool, int type,
					      unsigned long long flags)
{
	char name[64];
	int fd;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!shareable || !usable(pool) || pool->kind != MADE || pool->imported || flags ||
	    pool->device < 0 || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	snprintf(name, sizeof(name), "vgpu-sim-pool-%d", sim_card_of(pool->device));
	fd = memfd_create(name, MFD_CLOEXEC);
	if (fd < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	*(int *)shareable = fd;
	return CUDA_SUCCESS;
}

SIM CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool *pool, void *shareable, int type,
						unsigned long long flags)
{
	CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
				.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	char link[64], name[128] = "";
	CUresult result;
	int card;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", (int)(intptr_t)shareable);
	if (!pool || flags || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
	    readlink(link, name, sizeof(name) - 1) < 0 ||
	    strncmp(name, "/memfd:vgpu-sim-pool-", 21) != 0)
		return CUDA_ERROR_INVALID_VALUE;
	card = (int)strtol(name + 21, NULL, 10);
	while (sim_card_of(props.location.id) >= 0 && sim_card_of(props.location.id) != card)
		props.location.id++;
	result = cuMemPoolCreate(pool, &props);
	if (result == CUDA_SUCCESS)
		(*pool)->imported = true;
	return result;
}

/* What is still used, or on its way, stays until it is not. */
SIM CUresult cuMemPoolDestroy(CUmemoryPool pool)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!usable(pool) || pool->kind == STANDARD)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	pool->alive = false;
	sim_pool_trim(pool, 0);
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

SIM CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!usable(pool))
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	sim_pool_trim(pool, keep);
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

SIM CUresult cuMemPoolGetAttribute(CUmemoryPool pool, int attribute, void *value)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!usable(pool) || !value || attribute < 1 || attribute > CU_MEMPOOL_ATTR_USED_MEM_HIGH)
		return CUDA_ERROR_INVALID_VALUE;
	if (attribute < CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
		*(int *)value = 1; /* how free blocks may be used again */
		return CUDA_SUCCESS;
	}
	pthread_mutex_lock(&sim_mutex);
	*(cuuint64_t *)value = sim_pool_figure(pool, attribute);
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

SIM CUresult cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void *value)
{
	CUresult result = CUDA_SUCCESS;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!usable(pool) || !value)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	if (attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
		pool->threshold = *(cuuint64_t *)value;
	else if (attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH && !*(cuuint64_t *)value)
		pool->reserved_high = pool->reserved;
	else if (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH && !*(cuuint64_t *)value)
		pool->used_high = pool->used;
	else
		result = CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMemAllocFromPoolAsync(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
				     CUstream stream)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if (!usable(pool) || pool->imported || !pointer || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	if (pool->device < 0)
		return CUDA_ERROR_NOT_SUPPORTED; /* needs no simulation: see cuMemCreate */
	if (sim_capture(stream))
		return sim_graph_add_alloc(sim_capture(stream), pool->device, bytes, pointer);
	pthread_mutex_lock(&sim_mutex);
	result = sim_pool_take(pool, pointer, bytes, sim_stream_end(context, stream));
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
					  CUstream stream)
{
	return cuMemAllocFromPoolAsync(pointer, bytes, pool, stream);
}

SIM CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	CUcontext context;
	CUmemoryPool pool;
	CUresult result = cuStreamGetCtx(stream, &context);

	if (result == CUDA_SUCCESS)
		result = cuDeviceGetMemPool(&pool, context->device);
	return result == CUDA_SUCCESS ? cuMemAllocFromPoolAsync(pointer, bytes, pool, stream)
				      : result;
}

SIM CUresult cuMemAllocAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return cuMemAllocAsync(pointer, bytes, stream);
}

SIM CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS || !pointer)
		return result;
	if (sim_capture(stream))
		return sim_graph_add_free(sim_capture(stream), pointer);
	pthread_mutex_lock(&sim_mutex);
	if (!sim_pool_give(pointer, sim_stream_end(context, stream)) &&
	    !sim_graph_give(pointer, sim_stream_end(context, stream)) && !sim_ipc_give(pointer))
		result = sim_free_late(pointer, *sim_stream_end(context, stream));
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMemFreeAsync_ptsz(CUdeviceptr pointer, CUstream stream)
{
	return cuMemFreeAsync(pointer, stream);
}
