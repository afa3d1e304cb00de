/* SPDX-License-Identifier: Apache-2.0
 *
 * Pools of the simulated libcuda, for its other files. All but sim_graph_pool
 * want sim_mutex held.
 */
#ifndef VGPU_SIM_POOLS_H
#define VGPU_SIM_POOLS_H

#include "libcuda.h"

void sim_pools_start(void);
/* What a device's graphs allocate from; no program has its handle. */
CUmemoryPool sim_graph_pool(CUdevice device);
uint64_t sim_pool_figure(CUmemoryPool pool, int attribute);
CUresult sim_pool_take(CUmemoryPool pool, CUdeviceptr *pointer, size_t bytes,
		       const uint64_t *stream);
bool sim_pool_give(CUdeviceptr pointer, const uint64_t *stream);
void sim_pool_trim(CUmemoryPool pool, uint64_t keep);
bool sim_pool_holds(CUdeviceptr start, size_t bytes);
void sim_pools_synchronised(void);
void sim_pools_end(CUdevice device);

#endif
