/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: physical memory by handle, mapped into reserved
 * addresses. Memory lives as long as a handle or a mapping does; the number of a
 * handle that is gone is given out again at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arrays.h"
#include "shares.h"
#include "state.h"

#define GRANULE ((size_t)2 << 20)
#define MAXIMUM 4096

struct memory {
	CUmemGenericAllocationHandle handle; /* 0 when references are */
	size_t bytes;
	int card; /* -1: the host's */
	int fd;
	unsigned int references, mappings;
	uint64_t id; /* in the name of its file */
	bool shared; /* other processes may have it */
};
struct area {
	CUdeviceptr start;
	size_t bytes;
	struct memory *memory; /* NULL: reserved addresses */
};

static struct memory *memories[MAXIMUM];
static struct area areas[MAXIMUM];

static struct memory *find(CUmemGenericAllocationHandle handle)
{
	for (size_t i = 0; i < MAXIMUM && handle; i++)
		if (memories[i] && memories[i]->handle == handle)
			return memories[i];
	return NULL;
}

static CUmemGenericAllocationHandle unused_handle(void)
{
	CUmemGenericAllocationHandle handle = 1;

	while (find(handle))
		handle++;
	return handle;
}

static bool within(const struct area *area, CUdeviceptr start, size_t bytes)
{
	return area->bytes && start >= area->start && bytes <= area->bytes &&
	       start - area->start <= area->bytes - bytes;
}

static struct area *area_of(CUdeviceptr start, size_t bytes, bool mapped)
{
	for (size_t i = 0; i < MAXIMUM; i++)
		if (!areas[i].memory == !mapped && within(&areas[i], start, bytes))
			return &areas[i];
	return NULL;
}

static struct area *new_area(void)
{
	for (size_t i = 0; i < MAXIMUM; i++)
		if (!areas[i].bytes)
			return &areas[i];
	return NULL;
}

bool sim_mapped(CUdeviceptr start, size_t bytes)
{
	return area_of(start, bytes, true) != NULL;
}

static void drop_unused(struct memory *memory)
{
	if (!memory->references)
		memory->handle = 0;
	if (memory->references || memory->mappings)
		return;
	for (size_t i = 0; i < MAXIMUM; i++)
		if (memories[i] == memory)
			memories[i] = NULL;
	if (memory->shared)
		sim_share_leave(memory->id);
	else if (memory->card >= 0)
		sim_free(memory->card, memory->bytes);
	close(memory->fd);
	sim_multicast_end(memory);
	free(memory);
}

void *sim_memory_find(CUmemGenericAllocationHandle handle, int *card, size_t *bytes)
{
	struct memory *memory = find(handle);

	if (memory) {
		*card = memory->card;
		*bytes = memory->bytes;
	}
	return memory;
}

void *sim_memory_hold_at(CUdeviceptr pointer)
{
	struct area *area = area_of(pointer, 1, true);

	if (!area)
		return NULL;
	area->memory->mappings++;
	return area->memory;
}

void *sim_tile_map(CUmemGenericAllocationHandle handle)
{
	struct memory *memory = find(handle);

	if (memory)
		memory->mappings++;
	return memory;
}

void sim_tile_unmap(void *memory)
{
	struct memory *mapped = memory;

	mapped->mappings--;
	drop_unused(mapped);
}

SIM CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *prop,
					   int option)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!bytes || !prop || option < 0 || option > 1)
		return CUDA_ERROR_INVALID_VALUE;
	*bytes = GRANULE;
	return CUDA_SUCCESS;
}

static CUresult adopt(CUmemGenericAllocationHandle *handle, struct memory *memory)
{
	size_t place = 0;

	while (place < MAXIMUM && memories[place])
		place++;
	if (place == MAXIMUM)
		return CUDA_ERROR_OUT_OF_MEMORY;
	memory->references = 1;
	memory->handle = *handle = unused_handle();
	memories[place] = memory;
	return CUDA_SUCCESS;
}

static CUresult create(CUmemGenericAllocationHandle *handle, size_t bytes, int card)
{
	char name[64];
	struct memory *memory = calloc(1, sizeof(*memory));
	int error = memory && card >= 0 ? sim_alloc(card, bytes) : 0;
	CUresult result;

	if (!memory || error) {
		free(memory);
		return error && error != -ENOMEM ? CUDA_ERROR_OPERATING_SYSTEM
						 : CUDA_ERROR_OUT_OF_MEMORY;
	}
	memory->bytes = bytes;
	memory->card = card;
	memory->id = sim_share_number();
	snprintf(name, sizeof(name), "vgpu-sim-%016llx%d", (unsigned long long)memory->id, card);
	memory->fd = memfd_create(name, MFD_CLOEXEC);
	result = memory->fd < 0 || ftruncate(memory->fd, (off_t)bytes) != 0
			 ? CUDA_ERROR_OPERATING_SYSTEM
			 : adopt(handle, memory);
	if (result == CUDA_SUCCESS)
		return result;
	if (memory->fd >= 0)
		close(memory->fd);
	if (card >= 0)
		sim_free(card, bytes);
	free(memory);
	return result;
}

CUresult sim_memory_create(CUmemGenericAllocationHandle *handle, size_t bytes)
{
	return create(handle, bytes, -1);
}

SIM CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
			 const CUmemAllocationProp *prop, unsigned long long flags)
{
	int card = -1;
	CUresult result;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!handle || !bytes || bytes % GRANULE || !prop || flags ||
	    prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    prop->location.type < CU_MEM_LOCATION_TYPE_DEVICE ||
	    prop->location.type > CU_MEM_LOCATION_TYPE_DEVICE_LOCALITY_DOMAIN)
		return CUDA_ERROR_INVALID_VALUE;
	if (prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE ||
	    prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE_LOCALITY_DOMAIN) {
		card = sim_card_of(prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE
					   ? prop->location.id
					   : prop->location.id & 0xff);
		if (card < 0)
			return CUDA_ERROR_INVALID_DEVICE;
	}
	pthread_mutex_lock(&sim_mutex);
	result = create(handle, bytes, card);
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

/* Each time another open file, as the driver's are. */
static int export_file(struct memory *memory)
{
	char link[64];

	if (memory->card >= 0 && !memory->shared) {
		if (sim_share_new(memory->id, memory->card, memory->bytes) != 0)
			return -1;
		memory->shared = true;
	}
	snprintf(link, sizeof(link), "/proc/self/fd/%d", memory->fd);
	return open(link, O_RDWR | O_CLOEXEC);
}

SIM CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
					  int type, unsigned long long flags)
{
	struct memory *memory;
	int fd = -1;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!shareable || flags || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	memory = find(handle);
	if (memory)
		fd = export_file(memory);
	pthread_mutex_unlock(&sim_mutex);
	if (fd < 0)
		return CUDA_ERROR_INVALID_VALUE;
	*(int *)shareable = fd;
	return CUDA_SUCCESS;
}

/* Only the descriptor has kept it: it is counted again from now on. */
static int count_again(uint64_t id, int card, size_t bytes)
{
	int error = sim_alloc(card, bytes);

	return error ? error : sim_share_new(id, card, bytes);
}

static CUresult import(CUmemGenericAllocationHandle *handle, int fd, size_t bytes, uint64_t id,
		       int card)
{
	struct memory *memory = calloc(1, sizeof(*memory));
	int error = memory ? 0 : -ENOMEM;
	CUresult result;

	if (!error && card >= 0)
		error = sim_share_join(id);
	if (error == -ENOENT)
		error = count_again(id, card, bytes);
	if (error) {
		free(memory);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*memory = (struct memory){
		.bytes = bytes, .card = card, .id = id, .shared = card >= 0, .fd = dup(fd)};
	result = memory->fd < 0 ? CUDA_ERROR_OPERATING_SYSTEM : adopt(handle, memory);
	if (result == CUDA_SUCCESS)
		return result;
	if (memory->fd >= 0)
		close(memory->fd);
	if (card >= 0)
		sim_share_leave(id);
	free(memory);
	return result;
}

SIM CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
					    int type)
{
	static const char prefix[] = "/memfd:vgpu-sim-";
	char link[64], name[128] = "", number[17];
	int fd = (int)(intptr_t)shareable;
	struct stat status;
	CUresult result;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (!handle || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
	    fstat(fd, &status) != 0 || readlink(link, name, sizeof(name) - 1) < 0 ||
	    strncmp(name, prefix, sizeof(prefix) - 1) != 0 || name[sizeof(prefix) - 1] == 'p')
		return CUDA_ERROR_INVALID_VALUE;
	snprintf(number, sizeof(number), "%.16s", name + sizeof(prefix) - 1);
	pthread_mutex_lock(&sim_mutex);
	result = import(handle, fd, (size_t)status.st_size, strtoull(number, NULL, 16),
			(int)strtol(name + sizeof(prefix) + 15, NULL, 10));
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop,
						    CUmemGenericAllocationHandle handle)
{
	struct memory *memory;
	int card = -1;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&sim_mutex);
	memory = find(handle);
	if (memory)
		card = memory->card;
	pthread_mutex_unlock(&sim_mutex);
	if (!memory || !prop)
		return CUDA_ERROR_INVALID_VALUE;
	*prop = (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				      .location.type = CU_MEM_LOCATION_TYPE_HOST};
	for (CUdevice device = 0; card >= 0 && sim_card_of(device) >= 0; device++)
		if (sim_card_of(device) == card)
			prop->location = (CUmemLocation){CU_MEM_LOCATION_TYPE_DEVICE, device};
	return CUDA_SUCCESS;
}

SIM CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
	struct memory *memory;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&sim_mutex);
	memory = find(handle);
	if (memory) {
		memory->references--;
		drop_unused(memory);
	}
	pthread_mutex_unlock(&sim_mutex);
	return memory ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
	struct area *area;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	area = area_of((CUdeviceptr)address, 1, true);
	if (area) {
		if (!area->memory->references++)
			area->memory->handle = unused_handle();
		*handle = area->memory->handle;
	}
	pthread_mutex_unlock(&sim_mutex);
	return area ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t bytes, size_t alignment,
				 CUdeviceptr wanted, unsigned long long flags)
{
	struct area *area;
	CUresult result = CUDA_ERROR_OUT_OF_MEMORY;

	(void)alignment, (void)wanted;
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!pointer || !bytes || bytes % GRANULE || flags)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	area = new_area();
	if (area) {
		void *memory = mmap(NULL, bytes, PROT_NONE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (memory != MAP_FAILED) {
			*area = (struct area){(CUdeviceptr)memory, bytes, NULL};
			*pointer = area->start;
			result = CUDA_SUCCESS;
		}
	}
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

static bool overlaps_mapping(CUdeviceptr start, size_t bytes)
{
	for (size_t i = 0; i < MAXIMUM; i++)
		if (areas[i].memory && start < areas[i].start + areas[i].bytes &&
		    areas[i].start < start + bytes)
			return true;
	return false;
}

SIM CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes)
{
	struct area *area;
	CUresult result = CUDA_ERROR_INVALID_VALUE;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&sim_mutex);
	area = area_of(pointer, bytes, false);
	if (area && area->start == pointer && area->bytes == bytes &&
	    !overlaps_mapping(pointer, bytes)) {
		munmap((void *)pointer, bytes);
		*area = (struct area){0};
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

static CUresult map(CUdeviceptr pointer, size_t bytes, struct memory *memory)
{
	struct area *area = new_area();

	if (!memory || !bytes || bytes > memory->bytes || bytes % GRANULE ||
	    !area_of(pointer, bytes, false) || overlaps_mapping(pointer, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	if (!area || mmap((void *)pointer, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			  memory->fd, 0) == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*area = (struct area){pointer, bytes, memory};
	memory->mappings++;
	return CUDA_SUCCESS;
}

SIM CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset,
		      CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	CUresult result;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (offset || flags)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	result = map(pointer, bytes, find(handle));
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

/* Whole mappings, without a gap. */
static bool covers_mappings(CUdeviceptr pointer, size_t bytes)
{
	size_t covered = 0;

	for (size_t i = 0; i < MAXIMUM; i++)
		if (areas[i].memory && areas[i].start >= pointer &&
		    areas[i].start + areas[i].bytes <= pointer + bytes)
			covered += areas[i].bytes;
	return bytes && covered == bytes;
}

SIM CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&sim_mutex);
	if (covers_mappings(pointer, bytes) &&
	    mmap((void *)pointer, bytes, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED) {
		for (size_t i = 0; i < MAXIMUM; i++) {
			struct memory *memory = areas[i].memory;

			if (!memory || areas[i].start < pointer ||
			    areas[i].start >= pointer + bytes)
				continue;
			areas[i] = (struct area){0};
			memory->mappings--;
			drop_unused(memory);
		}
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMemSetAccess(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc *access,
			    size_t count)
{
	bool mapped;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&sim_mutex);
	mapped = covers_mappings(pointer, bytes);
	pthread_mutex_unlock(&sim_mutex);
	return access && count && mapped ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
