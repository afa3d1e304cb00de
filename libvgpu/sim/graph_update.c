/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: executable graphs that are changed in place. What may
 * change is how long kernels take.
 */
#include <string.h>

#include "graphs.h"

static CUgraphNode find_node(CUgraph graph, CUgraphNode origin)
{
	CUgraphNode found = NULL;

	for (CUgraphNode node = graph->nodes; node && !found; node = node->next) {
		if (node->origin == origin)
			found = node;
		else if (node->child)
			found = find_node(node->child, origin);
	}
	return found;
}

static bool same_shape(CUgraph one, CUgraph other)
{
	CUgraphNode a = one->nodes, b = other->nodes;

	for (; a && b; a = a->next, b = b->next)
		if (a->type != b->type || (a->child && !same_shape(a->child, b->child)))
			return false;
	return !a && !b;
}

static void take_over(CUgraph graph, CUgraph from)
{
	for (CUgraphNode a = graph->nodes, b = from->nodes; a && b; a = a->next, b = b->next) {
		a->ns = b->ns;
		if (a->child)
			take_over(a->child, b->child);
	}
}

static CUresult update(CUgraphExec exec, CUgraph graph)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!exec || !graph)
		return CUDA_ERROR_INVALID_VALUE;
	if (!same_shape(exec->graph, graph))
		return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
	take_over(exec->graph, graph);
	return CUDA_SUCCESS;
}

SIM CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *error, int *result)
{
	CUresult updated = update(exec, graph);

	if (error)
		*error = NULL;
	if (result)
		*result = updated != CUDA_SUCCESS;
	return updated;
}

SIM CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph,
				  CUgraphExecUpdateResultInfo *result)
{
	CUresult updated = update(exec, graph);

	if (result)
		*result = (CUgraphExecUpdateResultInfo){.result = updated != CUDA_SUCCESS};
	return updated;
}

static CUresult set_kernel(CUgraphExec exec, CUgraphNode node, void **params)
{
	CUgraphNode twin;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	twin = exec && node ? find_node(exec->graph, node) : NULL;
	if (!twin || twin->type != CU_GRAPH_NODE_TYPE_KERNEL || !params || !params[0])
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(&twin->ns, params[0], sizeof(twin->ns));
	return CUDA_SUCCESS;
}

SIM CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
					    const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
	return params ? set_kernel(exec, node, params->kernelParams) : CUDA_ERROR_INVALID_VALUE;
}

SIM CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
					       const CUDA_KERNEL_NODE_PARAMS *params)
{
	return params ? set_kernel(exec, node, params->kernelParams) : CUDA_ERROR_INVALID_VALUE;
}

SIM CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *params)
{
	return params && params->type == CU_GRAPH_NODE_TYPE_KERNEL
		       ? set_kernel(exec, node, params->kernel.kernelParams)
		       : CUDA_ERROR_INVALID_VALUE;
}

SIM CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraph child)
{
	CUgraphNode twin;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	twin = exec && node && child ? find_node(exec->graph, node) : NULL;
	if (!twin || !twin->child || !same_shape(twin->child, child))
		return CUDA_ERROR_INVALID_VALUE;
	take_over(twin->child, child);
	return CUDA_SUCCESS;
}

SIM CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned int enabled)
{
	CUgraphNode twin;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	twin = exec && node ? find_node(exec->graph, node) : NULL;
	if (!twin || twin->type != CU_GRAPH_NODE_TYPE_KERNEL)
		return CUDA_ERROR_INVALID_VALUE;
	twin->disabled = !enabled;
	return CUDA_SUCCESS;
}
