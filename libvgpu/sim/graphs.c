/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: graphs, as far as memory goes. A memory node has its
 * address when it is made; a launch takes the memory from the device's pool for
 * graphs, where it stays until it is trimmed. Kernels in a graph are one span of
 * time; dependencies are not looked at, nodes run in the order they were added.
 *
 * Captured from a stream are kernels, cuMemAllocAsync and cuMemFreeAsync.
 */
#include "graphs.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pools.h"
#include "state.h"

struct live { /* memory of a node, from a launch to its free */
	struct live *next;
	CUdeviceptr pointer, block;
	CUdevice device;
};

static struct live *living;

/* ---- making them */

static CUgraph new_graph(void)
{
	CUgraph graph = calloc(1, sizeof(*graph));

	if (graph)
		graph->end = &graph->nodes;
	return graph;
}

static CUgraphNode add(CUgraph graph, int type)
{
	CUgraphNode node = calloc(1, sizeof(*node));

	if (node) {
		node->type = type;
		*graph->end = node;
		graph->end = &node->next;
	}
	return node;
}

static void destroy(CUgraph graph)
{
	for (CUgraphNode node = graph->nodes; node;) {
		CUgraphNode next = node->next;

		if (node->child)
			destroy(node->child);
		free(node);
		node = next;
	}
	free(graph);
}

/* Addresses of nodes stay taken: a graph may outlive what it was made from. */
static CUgraph copy_of(CUgraph graph)
{
	CUgraph copy = new_graph();

	for (CUgraphNode node = graph->nodes; copy && node; node = node->next) {
		CUgraphNode twin = add(copy, node->type);

		if (!twin) {
			destroy(copy);
			return NULL;
		}
		twin->pointer = node->pointer;
		twin->params = node->params;
		twin->ns = node->ns;
		twin->origin = node->origin ? node->origin : node;
		twin->child = node->child ? copy_of(node->child) : NULL;
	}
	return copy;
}

CUresult sim_graph_add_alloc(CUgraph graph, CUdevice device, size_t bytes, CUdeviceptr *pointer)
{
	CUgraphNode node;
	void *memory;

	if (!bytes || bytes > (size_t)1 << 48)
		return CUDA_ERROR_INVALID_VALUE;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	node = memory == MAP_FAILED ? NULL : add(graph, CU_GRAPH_NODE_TYPE_MEM_ALLOC);
	if (!node)
		return CUDA_ERROR_OUT_OF_MEMORY;
	node->params.poolProps.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
	node->params.poolProps.location = (CUmemLocation){CU_MEM_LOCATION_TYPE_DEVICE, device};
	node->params.bytesize = bytes;
	node->params.dptr = node->pointer = *pointer = (CUdeviceptr)memory;
	return CUDA_SUCCESS;
}

CUresult sim_graph_add_free(CUgraph graph, CUdeviceptr pointer)
{
	CUgraphNode node = add(graph, CU_GRAPH_NODE_TYPE_MEM_FREE);

	if (!node)
		return CUDA_ERROR_OUT_OF_MEMORY;
	node->pointer = pointer;
	return CUDA_SUCCESS;
}

CUresult sim_graph_add_kernel(CUgraph graph, uint64_t ns)
{
	CUgraphNode node = add(graph, CU_GRAPH_NODE_TYPE_KERNEL);

	if (!node)
		return CUDA_ERROR_OUT_OF_MEMORY;
	node->ns = ns;
	return CUDA_SUCCESS;
}

CUgraph sim_graph_new(void)
{
	return new_graph();
}

SIM CUresult cuGraphCreate(CUgraph *graph, unsigned int flags)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!graph || flags)
		return CUDA_ERROR_INVALID_VALUE;
	*graph = new_graph();
	return *graph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM CUresult cuGraphDestroy(CUgraph graph)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!graph)
		return CUDA_ERROR_INVALID_VALUE;
	destroy(graph);
	return CUDA_SUCCESS;
}

SIM CUresult cuGraphAddMemAllocNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
				    size_t count, CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
	CUgraphNode *place;
	CUresult result;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!node || !graph || !params || (count && !after) ||
	    params->poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
	    sim_card_of(params->poolProps.location.id) < 0)
		return CUDA_ERROR_INVALID_VALUE;
	place = graph->end;
	result = sim_graph_add_alloc(graph, params->poolProps.location.id, params->bytesize,
				     &params->dptr);
	if (result == CUDA_SUCCESS)
		*node = *place;
	return result;
}

SIM CUresult cuGraphAddMemFreeNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
				   size_t count, CUdeviceptr pointer)
{
	CUgraphNode *place;
	CUresult result;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!node || !graph || !pointer || (count && !after))
		return CUDA_ERROR_INVALID_VALUE;
	place = graph->end;
	result = sim_graph_add_free(graph, pointer);
	if (result == CUDA_SUCCESS)
		*node = *place;
	return result;
}

SIM CUresult cuGraphAddChildGraphNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
				      size_t count, CUgraph child)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!node || !graph || !child || (count && !after))
		return CUDA_ERROR_INVALID_VALUE;
	*node = add(graph, CU_GRAPH_NODE_TYPE_GRAPH);
	if (!*node)
		return CUDA_ERROR_OUT_OF_MEMORY;
	(*node)->child = copy_of(child);
	return (*node)->child ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* ---- looking at them */

SIM CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
	size_t found = 0;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!graph || !count)
		return CUDA_ERROR_INVALID_VALUE;
	for (CUgraphNode node = graph->nodes; node; node = node->next, found++)
		if (nodes && found < *count)
			nodes[found] = node;
	*count = found;
	return CUDA_SUCCESS;
}

SIM CUresult cuGraphNodeGetType(CUgraphNode node, int *type)
{
	if (!node || !type)
		return CUDA_ERROR_INVALID_VALUE;
	*type = node->type;
	return CUDA_SUCCESS;
}

SIM CUresult cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
	if (!node || !params || node->type != CU_GRAPH_NODE_TYPE_MEM_ALLOC)
		return CUDA_ERROR_INVALID_VALUE;
	*params = node->params;
	return CUDA_SUCCESS;
}

SIM CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph *graph)
{
	if (!node || !graph || !node->child)
		return CUDA_ERROR_INVALID_VALUE;
	*graph = node->child;
	return CUDA_SUCCESS;
}

/* ---- running them */

static bool is_alive(CUdeviceptr pointer)
{
	for (struct live *live = living; live; live = live->next)
		if (live->pointer == pointer)
			return true;
	return false;
}

/* With sim_mutex held. False: no graph's memory. */
bool sim_graph_give(CUdeviceptr pointer, const uint64_t *stream)
{
	for (struct live **place = &living; *place; place = &(*place)->next) {
		struct live *gone = *place;

		if (gone->pointer != pointer)
			continue;
		sim_pool_give(gone->block, stream);
		*place = gone->next;
		free(gone);
		return true;
	}
	return false;
}

void sim_graphs_end(CUdevice device)
{
	for (struct live **place = &living; *place;) {
		struct live *gone = *place;

		if (gone->device != device) {
			place = &gone->next;
			continue;
		}
		*place = gone->next;
		free(gone);
	}
}

static CUresult take(const struct CUgraphNode_st *node, const uint64_t *stream)
{
	struct live *live = calloc(1, sizeof(*live));
	CUresult result = CUDA_ERROR_OUT_OF_MEMORY;

	if (live)
		result = sim_pool_take(sim_graph_pool(node->params.poolProps.location.id),
				       &live->block, node->params.bytesize, stream);
	if (result != CUDA_SUCCESS) {
		free(live);
		return result;
	}
	live->pointer = node->pointer;
	live->device = node->params.poolProps.location.id;
	live->next = living;
	living = live;
	return CUDA_SUCCESS;
}

static CUresult run(CUgraphExec exec, CUgraph graph, uint64_t *end, CUcontext green)
{
	bool again = exec->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
	CUresult result = CUDA_SUCCESS;

	for (CUgraphNode node = graph->nodes; node && result == CUDA_SUCCESS; node = node->next) {
		if (node->child)
			result = run(exec, node->child, end, green);
		*end += node->disabled ? 0 : sim_span(green, node->ns);
		if (node->type == CU_GRAPH_NODE_TYPE_MEM_FREE &&
		    !sim_graph_give(node->pointer, end))
			result = CUDA_ERROR_INVALID_VALUE;
		if (node->type != CU_GRAPH_NODE_TYPE_MEM_ALLOC)
			continue;
		if (is_alive(node->pointer) && again)
			sim_graph_give(node->pointer, end);
		result = is_alive(node->pointer) ? CUDA_ERROR_INVALID_VALUE : take(node, end);
	}
	return result;
}

/* What was taken before a failure goes back. */
static void undo(CUgraph graph, const uint64_t *end)
{
	for (CUgraphNode node = graph->nodes; node; node = node->next) {
		if (node->child)
			undo(node->child, end);
		if (node->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
			sim_graph_give(node->pointer, end);
	}
}

static bool any_alive(CUgraph graph)
{
	for (CUgraphNode node = graph->nodes; node; node = node->next)
		if (is_alive(node->pointer) || (node->child && any_alive(node->child)))
			return true;
	return false;
}

SIM CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	CUcontext green = sim_green_of(stream);
	uint64_t *end, from;

	if (result != CUDA_SUCCESS)
		return result;
	if (!exec)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	end = sim_stream_end(context, stream);
	from = sim_begin(green, *end > sim_now_ns() ? *end : sim_now_ns());
	*end = from;
	if (!(exec->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH) &&
	    any_alive(exec->graph)) {
		result = CUDA_ERROR_INVALID_VALUE;
	} else {
		result = run(exec, exec->graph, end, green);
		if (result != CUDA_SUCCESS)
			undo(exec->graph, end);
	}
	sim_ends(context, green, *end);
	sim_busy(context->card, from, *end);
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream stream)
{
	return cuGraphLaunch(exec, stream);
}

/* The memory is taken, and is there for the next launch. */
SIM CUresult cuGraphUpload(CUgraphExec exec, CUstream stream)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	uint64_t *end, before;

	if (result != CUDA_SUCCESS)
		return result;
	if (!exec)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	end = sim_stream_end(context, stream);
	before = *end;
	if (!any_alive(exec->graph)) {
		result = run(exec, exec->graph, end, sim_green_of(stream));
		undo(exec->graph, end);
	}
	*end = before;
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuGraphUpload_ptsz(CUgraphExec exec, CUstream stream)
{
	return cuGraphUpload(exec, stream);
}

static CUresult instantiate(CUgraphExec *exec, CUgraph graph, unsigned long long flags,
			    CUstream stream)
{
	CUgraphExec fresh;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!exec || !graph || flags > 15)
		return CUDA_ERROR_INVALID_VALUE;
	fresh = calloc(1, sizeof(*fresh));
	if (fresh)
		fresh->graph = copy_of(graph);
	if (!fresh || !fresh->graph) {
		free(fresh);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	fresh->flags = flags;
	*exec = fresh;
	return flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD ? cuGraphUpload(fresh, stream)
							  : CUDA_SUCCESS;
}

SIM CUresult cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error, char *text,
				size_t size)
{
	(void)error, (void)text, (void)size;
	return instantiate(exec, graph, 0, NULL);
}

SIM CUresult cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error, char *text,
				   size_t size)
{
	return cuGraphInstantiate(exec, graph, error, text, size);
}

SIM CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
	return instantiate(exec, graph, flags, NULL);
}

SIM CUresult cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph,
					  CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
	return params ? instantiate(exec, graph, params->flags, params->hUploadStream)
		      : CUDA_ERROR_INVALID_VALUE;
}

SIM CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *exec, CUgraph graph,
					       CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
	return cuGraphInstantiateWithParams(exec, graph, params);
}

SIM CUresult cuGraphExecDestroy(CUgraphExec exec)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!exec)
		return CUDA_ERROR_INVALID_VALUE;
	destroy(exec->graph);
	free(exec);
	return CUDA_SUCCESS;
}

/* ---- what they keep */

SIM CUresult cuDeviceGraphMemTrim(CUdevice device)
{
	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (sim_card_of(device) < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&sim_mutex);
	sim_pool_trim(sim_graph_pool(device), 0);
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}

SIM CUresult cuDeviceGetGraphMemAttribute(CUdevice device, int attribute, void *value)
{
	static const int figures[] = {
		CU_MEMPOOL_ATTR_USED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_HIGH,
		CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH};

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (sim_card_of(device) < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	if (!value || attribute < 0 || attribute > 3)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	*(cuuint64_t *)value = sim_pool_figure(sim_graph_pool(device), figures[attribute]);
	pthread_mutex_unlock(&sim_mutex);
	return CUDA_SUCCESS;
}
