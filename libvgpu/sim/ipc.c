/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: memory and events of other processes. Memory that
 * was given away lives until the last process has closed it, whoever made it.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shares.h"
#include "state.h"

#define MAGIC UINT64_C(0x314350495f4d4953)

struct ticket { /* in the 64 bytes that programs send each other */
	uint64_t magic, id, whole_bytes, offset, bytes;
};
struct opened {
	struct opened *next;
	CUdeviceptr start, whole;
	size_t bytes, whole_bytes;
	uint64_t id;
	int card;
	CUcontext context; /* NULL: of a pool, which is a device's */
	unsigned int count;
};

static struct opened *opened;

/* Shares what a pointer lies in, if it is not shared yet. */
static CUresult write_ticket(const struct sim_piece *piece, struct ticket *ticket)
{
	uint64_t id = *piece->share ? *piece->share : sim_share_number();

	if (!*piece->share) {
		if (!sim_share_file(id, (void *)piece->whole, piece->whole_bytes) ||
		    sim_share_new(id, piece->card, piece->charged) != 0)
			return CUDA_ERROR_OPERATING_SYSTEM;
		*piece->share = id;
	}
	*ticket = (struct ticket){MAGIC, id, piece->whole_bytes, piece->start - piece->whole,
				  piece->bytes};
	return CUDA_SUCCESS;
}

static CUresult open_ticket(const struct ticket *ticket, CUcontext context, CUdeviceptr *pointer)
{
	struct opened *fresh;
	void *memory;

	if (ticket->magic != MAGIC || sim_share_join(ticket->id) != 0)
		return CUDA_ERROR_INVALID_VALUE;
	memory = sim_share_map(ticket->id, ticket->whole_bytes);
	fresh = memory ? calloc(1, sizeof(*fresh)) : NULL;
	if (!fresh) {
		sim_share_leave(ticket->id);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	fresh->whole = (CUdeviceptr)memory;
	fresh->whole_bytes = ticket->whole_bytes;
	fresh->start = fresh->whole + ticket->offset;
	fresh->bytes = ticket->bytes;
	fresh->id = ticket->id;
	fresh->card = sim_share_card(ticket->id);
	fresh->context = context;
	fresh->count = 1;
	fresh->next = opened;
	opened = fresh;
	*pointer = fresh->start;
	return CUDA_SUCCESS;
}

static void drop(struct opened **place)
{
	struct opened *gone = *place;

	*place = gone->next;
	munmap((void *)gone->whole, gone->whole_bytes);
	sim_share_leave(gone->id);
	free(gone);
}

bool sim_ipc_holds(CUdeviceptr start, size_t bytes)
{
	for (struct opened *it = opened; it; it = it->next)
		if (start >= it->start && bytes <= it->bytes &&
		    start - it->start <= it->bytes - bytes)
			return true;
	return false;
}

bool sim_ipc_give(CUdeviceptr pointer)
{
	for (struct opened **place = &opened; *place; place = &(*place)->next)
		if ((*place)->start == pointer && !(*place)->context) {
			drop(place);
			return true;
		}
	return false;
}

void sim_ipc_end(CUcontext context)
{
	for (struct opened **place = &opened; *place;)
		if ((*place)->context == context)
			drop(place);
		else
			place = &(*place)->next;
}

/* ---- the driver's functions: memory */

SIM CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr pointer)
{
	struct ticket ticket = {0};
	struct sim_piece piece;
	CUresult result = CUDA_ERROR_INVALID_VALUE;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	if (sim_memory_piece(pointer, &piece))
		result = write_ticket(&piece, &ticket);
	pthread_mutex_unlock(&sim_mutex);
	if (result == CUDA_SUCCESS) {
		memset(handle, 0, sizeof(*handle));
		memcpy(handle, &ticket, sizeof(ticket));
	}
	return result;
}

/* Opened twice, it is at the same place. Who made it cannot open it. */
SIM CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags)
{
	struct ticket ticket;
	CUcontext context;
	CUresult result = sim_usable(&context);
	struct opened *it;

	if (result != CUDA_SUCCESS)
		return result;
	if (!pointer || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(&ticket, &handle, sizeof(ticket));
	pthread_mutex_lock(&sim_mutex);
	for (it = opened; it && (it->id != ticket.id || it->context != context);)
		it = it->next;
	if (it) {
		it->count++;
		*pointer = it->start;
	} else if (ticket.id && sim_memory_is_own(ticket.id)) {
		result = CUDA_ERROR_INVALID_CONTEXT;
	} else {
		result = open_ticket(&ticket, context, pointer);
	}
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuIpcOpenMemHandle(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags)
{
	return cuIpcOpenMemHandle_v2(pointer, handle, flags);
}

SIM CUresult cuIpcCloseMemHandle(CUdeviceptr pointer)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&sim_mutex);
	for (struct opened **place = &opened; *place; place = &(*place)->next)
		if ((*place)->start == pointer && (*place)->context) {
			result = CUDA_SUCCESS;
			if (--(*place)->count == 0)
				drop(place);
			break;
		}
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData *data, CUdeviceptr pointer)
{
	struct ticket ticket = {0};
	struct sim_piece piece;
	CUresult result = CUDA_ERROR_INVALID_VALUE;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!data)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	if (sim_pool_piece(pointer, &piece) && piece.start == pointer)
		result = write_ticket(&piece, &ticket);
	pthread_mutex_unlock(&sim_mutex);
	if (result == CUDA_SUCCESS) {
		memset(data, 0, sizeof(*data));
		memcpy(data, &ticket, sizeof(ticket));
	}
	return result;
}

SIM CUresult cuMemPoolImportPointer(CUdeviceptr *pointer, CUmemoryPool pool,
				    CUmemPoolPtrExportData *data)
{
	struct ticket ticket;
	CUresult result;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!pointer || !pool || !data)
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(&ticket, data, sizeof(ticket));
	pthread_mutex_lock(&sim_mutex);
	result = open_ticket(&ticket, NULL, pointer);
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

/* ---- what is said of memory */

static bool piece_of(CUdeviceptr pointer, struct sim_piece *piece)
{
	if (sim_memory_piece(pointer, piece) || sim_pool_piece(pointer, piece))
		return true;
	for (struct opened *it = opened; it; it = it->next)
		if (pointer >= it->start && pointer - it->start < it->bytes) {
			*piece = (struct sim_piece){
				.start = it->start, .bytes = it->bytes, .card = it->card};
			return true;
		}
	return false;
}

SIM CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr pointer)
{
	struct sim_piece piece;
	bool found;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&sim_mutex);
	found = piece_of(pointer, &piece);
	pthread_mutex_unlock(&sim_mutex);
	if (!found)
		return CUDA_ERROR_NOT_FOUND;
	if (base)
		*base = piece.start;
	if (bytes)
		*bytes = piece.bytes;
	return CUDA_SUCCESS;
}

SIM CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr pointer)
{
	struct sim_piece piece;
	bool found;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!data || attribute != CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	found = piece_of(pointer, &piece);
	pthread_mutex_unlock(&sim_mutex);
	for (CUdevice device = 0; found && sim_card_of(device) >= 0; device++)
		if (sim_card_of(device) == piece.card) {
			*(int *)data = device;
			return CUDA_SUCCESS;
		}
	return CUDA_ERROR_INVALID_VALUE;
}
