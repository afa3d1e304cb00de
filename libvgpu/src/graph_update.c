/* SPDX-License-Identifier: Apache-2.0
 *
 * Executable graphs that are changed in place. What was learned of one is a guess from
 * then on: its launches go by another key, and those still under way are settled by what
 * they take, without a word on what the next ones will. Programs change graphs before each
 * launch, a node at a time, so a change is only noted; the key changes with the launch.
 */
#include "vgpu.h"

static bool any; /* has changed: until then there is nothing to look up */

static uint64_t key_of(CUgraphExec exec, uint64_t change)
{
	return vgpu_kernel_key(exec,
			       (const uint32_t[7]){(uint32_t)change, (uint32_t)(change >> 32)});
}

/* What its next launch costs goes by. Count: of changes. Owner: not launched since. */
uint64_t vgpu_graph_key(CUgraphExec exec)
{
	struct vgpu_pointer entry;

	if (!atomic_load_explicit(&any, memory_order_relaxed) ||
	    !vgpu_pointer_find(VGPU_CHANGED_EXECS, (uintptr_t)exec, &entry))
		return key_of(exec, 0);
	if (!entry.owner)
		return key_of(exec, entry.count);
	vgpu_pace_rename(key_of(exec, entry.count), key_of(exec, entry.count + 1));
	entry.count++;
	entry.owner = 0;
	vgpu_pointer_add(VGPU_CHANGED_EXECS, &entry); /* it is there: nothing has to grow */
	return key_of(exec, entry.count);
}

/* Before the driver's call: the handle may be given out again after it. */
void vgpu_graph_forget(CUgraphExec exec)
{
	struct vgpu_pointer entry = {0};

	if (atomic_load_explicit(&any, memory_order_relaxed))
		vgpu_pointer_take(VGPU_CHANGED_EXECS, (uintptr_t)exec, &entry);
	vgpu_pace_forget(key_of(exec, entry.count));
}

static CUresult changed(CUgraphExec exec, CUresult result)
{
	struct vgpu_pointer entry = {.address = (uintptr_t)exec};

	if (result != CUDA_SUCCESS || vgpu_state() != VGPU_ON)
		return result;
	vgpu_pointer_find(VGPU_CHANGED_EXECS, (uintptr_t)exec, &entry);
	if (entry.owner)
		return result;
	entry.owner = 1;
	/* Without memory for it the old figure holds until samples say otherwise. */
	if (vgpu_pointer_add(VGPU_CHANGED_EXECS, &entry) == 0)
		atomic_store_explicit(&any, true, memory_order_relaxed);
	return result;
}

#define CHANGE(name, parameters, arguments)                                                        \
	VGPU_EXPORT CUresult name parameters                                                       \
	{                                                                                          \
		__typeof__(&name) real = VGPU_REAL(name);                                          \
                                                                                                   \
		return real ? changed(exec, real arguments)                                        \
			    : CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;                                \
	}
CHANGE(cuGraphExecUpdate, (CUgraphExec exec, CUgraph graph, CUgraphNode *error, int *result),
       (exec, graph, error, result))
CHANGE(cuGraphExecUpdate_v2, (CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo *result),
       (exec, graph, result))
CHANGE(cuGraphExecKernelNodeSetParams,
       (CUgraphExec exec, CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1 *params),
       (exec, node, params))
CHANGE(cuGraphExecKernelNodeSetParams_v2,
       (CUgraphExec exec, CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS *params),
       (exec, node, params))
CHANGE(cuGraphExecNodeSetParams, (CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *params),
       (exec, node, params))
CHANGE(cuGraphExecChildGraphNodeSetParams, (CUgraphExec exec, CUgraphNode node, CUgraph child),
       (exec, node, child))
CHANGE(cuGraphExecMemcpyNodeSetParams,
       (CUgraphExec exec, CUgraphNode node, const void *params, CUcontext context),
       (exec, node, params, context))
CHANGE(cuGraphExecMemsetNodeSetParams,
       (CUgraphExec exec, CUgraphNode node, const void *params, CUcontext context),
       (exec, node, params, context))
CHANGE(cuGraphNodeSetEnabled, (CUgraphExec exec, CUgraphNode node, unsigned int enabled),
       (exec, node, enabled))
