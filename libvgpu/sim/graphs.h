/* SPDX-License-Identifier: Apache-2.0
 *
 * Graphs of the simulated libcuda, for the streams that are captured into them.
 */
#ifndef VGPU_SIM_GRAPHS_H
#define VGPU_SIM_GRAPHS_H

#include "libcuda.h"

struct CUgraphNode_st {
	CUgraphNode next;
	int type;
	CUdeviceptr pointer; /* of memory nodes */
	CUDA_MEM_ALLOC_NODE_PARAMS params;
	uint64_t ns;        /* of kernels */
	CUgraph child;      /* of child graphs */
	CUgraphNode origin; /* that it is a copy of: its name in an executable graph */
	bool disabled;
};
struct CUgraph_st {
	CUgraphNode nodes, *end;
};
struct CUgraphExec_st {
	CUgraph graph;
	unsigned long long flags;
};

CUgraph sim_graph_new(void);
CUresult sim_graph_add_alloc(CUgraph graph, CUdevice device, size_t bytes, CUdeviceptr *pointer);
CUresult sim_graph_add_free(CUgraph graph, CUdeviceptr pointer);
CUresult sim_graph_add_kernel(CUgraph graph, uint64_t ns);
bool sim_graph_give(CUdeviceptr pointer, const uint64_t *stream); /* with sim_mutex held */
void sim_graphs_end(CUdevice device);                             /* with sim_mutex held */
/* The graph that a stream is captured into, or NULL. */
CUgraph sim_capture(CUstream stream);

#endif
