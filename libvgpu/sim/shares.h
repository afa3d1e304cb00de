/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: memory that several processes hold.
 */
#ifndef VGPU_SIM_SHARES_H
#define VGPU_SIM_SHARES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcuda.h"

/* All with sim_mutex held. What was counted for this process is shared from now on. */
int sim_share_new(uint64_t id, int card, uint64_t bytes);
int sim_share_join(uint64_t id); /* -ENOENT: nobody holds it any more */
void sim_share_leave(uint64_t id);
int sim_share_card(uint64_t id); /* -1: there is none */
uint64_t sim_share_number(void); /* that nothing else has */

/* Puts a file under private memory, so that others can map it; true if that worked. */
bool sim_share_file(uint64_t id, void *memory, size_t bytes);
void *sim_share_map(uint64_t id, size_t bytes); /* NULL: it cannot be had */

/* ---- memory.c, pools.c: whole pieces of memory that a pointer lies in */
struct sim_piece {
	CUdeviceptr start; /* of what the program asked for */
	size_t bytes;
	CUdeviceptr whole; /* of what is shared for it */
	size_t whole_bytes;
	uint64_t *share; /* its number, 0 before it is shared */
	size_t charged;
	int card;
};
bool sim_memory_piece(CUdeviceptr pointer, struct sim_piece *piece);
bool sim_memory_is_own(uint64_t share);
bool sim_pool_piece(CUdeviceptr pointer, struct sim_piece *piece);

/* ---- ipc.c */
bool sim_ipc_holds(CUdeviceptr start, size_t bytes);
bool sim_ipc_give(CUdeviceptr pointer); /* memory of a pool of another process */
void sim_ipc_end(CUcontext context);

/* ---- virtual.c, multicast.c */
CUresult sim_memory_create(CUmemGenericAllocationHandle *handle, size_t bytes);
void *sim_memory_find(CUmemGenericAllocationHandle handle, int *card, size_t *bytes);
void *sim_memory_hold_at(CUdeviceptr pointer); /* as sim_tile_map, of what is mapped there */
void sim_multicast_end(const void *memory);

#endif
