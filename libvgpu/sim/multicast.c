/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: multicast objects. They hold memory that is bound to
 * them, and take none of their own; what is written through them goes nowhere.
 */
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "shares.h"
#include "state.h"

#define GRANULE ((size_t)2 << 20)

struct binding {
	struct binding *next;
	const void *object;
	CUdevice device;
	size_t offset, bytes;
	void *memory;
};

static struct binding *bindings;

void sim_multicast_end(const void *memory)
{
	for (struct binding **place = &bindings; *place;) {
		struct binding *gone = *place;

		if (gone->object != memory) {
			place = &gone->next;
			continue;
		}
		*place = gone->next;
		sim_tile_unmap(gone->memory);
		free(gone);
		place = &bindings; /* that may have ended others */
	}
}

SIM CUresult cuMulticastGetGranularity(size_t *bytes, const CUmulticastObjectProp *prop, int option)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!bytes || !prop || option < 0 || option > 1)
		return CUDA_ERROR_INVALID_VALUE;
	*bytes = GRANULE;
	return CUDA_SUCCESS;
}

SIM CUresult cuMulticastCreate(CUmemGenericAllocationHandle *object,
			       const CUmulticastObjectProp *prop)
{
	CUresult result;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!object || !prop || !prop->numDevices || !prop->size || prop->size % GRANULE)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	result = sim_memory_create(object, prop->size);
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMulticastAddDevice(CUmemGenericAllocationHandle object, CUdevice device)
{
	size_t bytes;
	int card = 0;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (sim_card_of(device) < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&sim_mutex);
	if (!sim_memory_find(object, &card, &bytes))
		card = 0;
	pthread_mutex_unlock(&sim_mutex);
	return card == -1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult bind(CUmemGenericAllocationHandle object, CUdevice device, size_t offset,
		     size_t bytes, void *memory)
{
	struct binding *fresh = calloc(1, sizeof(*fresh));
	size_t whole = 0;
	int card = 0;
	const void *found = sim_memory_find(object, &card, &whole);

	if (!fresh || !memory || !found || card != -1 || !bytes || bytes > whole ||
	    offset > whole - bytes || offset % GRANULE || bytes % GRANULE) {
		free(fresh);
		if (memory)
			sim_tile_unmap(memory);
		return CUDA_ERROR_INVALID_VALUE;
	}
	*fresh = (struct binding){bindings, found, device, offset, bytes, memory};
	bindings = fresh;
	return CUDA_SUCCESS;
}

static CUdevice device_of_card(int card)
{
	CUdevice device = 0;

	while (sim_card_of(device) >= 0 && sim_card_of(device) != card)
		device++;
	return device;
}

SIM CUresult cuMulticastBindMem_v2(CUmemGenericAllocationHandle object, CUdevice device,
				   size_t offset, CUmemGenericAllocationHandle memory,
				   size_t memory_offset, size_t bytes, unsigned long long flags)
{
	CUresult result;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (memory_offset || flags)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	result = bind(object, device, offset, bytes, sim_tile_map(memory));
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMulticastBindMem(CUmemGenericAllocationHandle object, size_t offset,
				CUmemGenericAllocationHandle memory, size_t memory_offset,
				size_t bytes, unsigned long long flags)
{
	size_t whole;
	int card = -1;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&sim_mutex);
	sim_memory_find(memory, &card, &whole);
	pthread_mutex_unlock(&sim_mutex);
	return cuMulticastBindMem_v2(object, device_of_card(card), offset, memory, memory_offset,
				     bytes, flags);
}

SIM CUresult cuMulticastBindAddr_v2(CUmemGenericAllocationHandle object, CUdevice device,
				    size_t offset, CUdeviceptr pointer, size_t bytes,
				    unsigned long long flags)
{
	CUresult result;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	result = bind(object, device, offset, bytes, sim_memory_hold_at(pointer));
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMulticastBindAddr(CUmemGenericAllocationHandle object, size_t offset,
				 CUdeviceptr pointer, size_t bytes, unsigned long long flags)
{
	CUmemGenericAllocationHandle handle;
	size_t whole;
	int card = -1;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (cuMemRetainAllocationHandle(&handle, (void *)pointer) != CUDA_SUCCESS)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	sim_memory_find(handle, &card, &whole);
	pthread_mutex_unlock(&sim_mutex);
	cuMemRelease(handle);
	return cuMulticastBindAddr_v2(object, device_of_card(card), offset, pointer, bytes, flags);
}

SIM CUresult cuMulticastUnbind(CUmemGenericAllocationHandle object, CUdevice device, size_t offset,
			       size_t bytes)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	size_t whole;
	int card;
	const void *found;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&sim_mutex);
	found = sim_memory_find(object, &card, &whole);
	for (struct binding **place = &bindings; found && *place; place = &(*place)->next) {
		struct binding *gone = *place;

		if (gone->object != found || gone->device != device || gone->offset != offset ||
		    gone->bytes != bytes)
			continue;
		*place = gone->next;
		sim_tile_unmap(gone->memory);
		free(gone);
		result = CUDA_SUCCESS;
		break;
	}
	pthread_mutex_unlock(&sim_mutex);
	return result;
}
