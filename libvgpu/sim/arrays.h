/* SPDX-License-Identifier: Apache-2.0
 *
 * Arrays of the simulated libcuda, and the memory by handle that is mapped into
 * them, for its other files. With sim_mutex held.
 */
#ifndef VGPU_SIM_ARRAYS_H
#define VGPU_SIM_ARRAYS_H

#include "libcuda.h"

void sim_arrays_end(CUcontext context);
void *sim_tile_map(CUmemGenericAllocationHandle handle); /* NULL: no such handle */
void sim_tile_unmap(void *memory);

#endif
