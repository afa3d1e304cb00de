/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory nodes of graphs. A node has its address when it is made, but takes memory
 * of the card only when its graph is launched or uploaded. That memory comes from a
 * pool that each device keeps for graphs, and stays there until it is trimmed; so
 * it is charged as a pool's is (pools.c), with what the nodes ask for as the most
 * that a launch can make the pool grow by.
 *
 * For each executable graph with such nodes a table knows how much it needs of
 * which device. A launch in the same stream as the one before it finds its memory
 * where it was, unless the pool was trimmed: nothing is reserved for it.
 */
#include <sys/mman.h>

#include "vgpu.h"

#define DEVICES 64 /* bits of a mask; others have no memory nodes that are charged */
#define DEEPEST 16 /* child graphs in child graphs */

struct needs {
	uint64_t devices; /* a bit each */
	uint64_t bytes[DEVICES];
};

/* ---- what a graph needs */

static uint64_t plus(uint64_t a, uint64_t b)
{
	return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static void add_allocation(struct needs *needs, CUgraphNode node)
{
	__typeof__(&cuGraphMemAllocNodeGetParams) get = VGPU_REAL(cuGraphMemAllocNodeGetParams);
	CUDA_MEM_ALLOC_NODE_PARAMS params = {0};
	CUdevice device;

	if (!get || get(node, &params) != CUDA_SUCCESS)
		return;
	device = vgpu_device_of_location(&params.poolProps.location);
	if (device < 0 || device >= DEVICES || !vgpu_card_of_device(device))
		return;
	needs->devices |= UINT64_C(1) << device;
	needs->bytes[device] = plus(needs->bytes[device], vgpu_charge_of(params.bytesize));
}

static void add_graph(struct needs *needs, CUgraph graph, int depth);

static void add_node(struct needs *needs, CUgraphNode node, int depth)
{
	__typeof__(&cuGraphNodeGetType) get_type = VGPU_REAL(cuGraphNodeGetType);
	__typeof__(&cuGraphChildGraphNodeGetGraph) get_child =
		VGPU_REAL(cuGraphChildGraphNodeGetGraph);
	CUgraph child;
	int type = -1;

	if (!get_type || get_type(node, &type) != CUDA_SUCCESS)
		return;
	if (type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
		add_allocation(needs, node);
	else if (type == CU_GRAPH_NODE_TYPE_GRAPH && depth < DEEPEST && get_child &&
		 get_child(node, &child) == CUDA_SUCCESS)
		add_graph(needs, child, depth + 1);
}

static void add_graph(struct needs *needs, CUgraph graph, int depth)
{
	__typeof__(&cuGraphGetNodes) get_nodes = VGPU_REAL(cuGraphGetNodes);
	CUgraphNode *nodes;
	size_t count = 0, size;

	if (!get_nodes || get_nodes(graph, NULL, &count) != CUDA_SUCCESS || !count)
		return;
	size = count * sizeof(*nodes);
	nodes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (nodes == MAP_FAILED)
		return;
	if (get_nodes(graph, nodes, &count) == CUDA_SUCCESS)
		for (size_t i = 0; i < count; i++)
			add_node(needs, nodes[i], depth);
	munmap(nodes, size);
}

/* ---- the table: one entry per executable graph, with a mask of devices, and one
 * per device it needs: bytes, the pool's generation and stream of the last launch */

static uint64_t device_key(CUgraphExec exec, CUdevice device)
{
	return (uintptr_t)exec ^ (uint64_t)(device + 1) << 56;
}

static int note(CUgraphExec exec, const struct needs *needs)
{
	struct vgpu_pointer entry = {.address = (uintptr_t)exec, .count = needs->devices};
	int result = vgpu_pointer_add(VGPU_EXECS, &entry);

	for (CUdevice device = 0; device < DEVICES && result == 0; device++) {
		if (!(needs->devices >> device & 1))
			continue;
		entry = (struct vgpu_pointer){.address = device_key(exec, device),
					      .bytes = needs->bytes[device],
					      .owner = UINT64_MAX};
		result = vgpu_pointer_add(VGPU_EXECS, &entry);
	}
	return result;
}

static void forget(CUgraphExec exec)
{
	struct vgpu_pointer entry, part;

	if (!vgpu_pointer_take(VGPU_EXECS, (uintptr_t)exec, &entry))
		return;
	for (CUdevice device = 0; device < DEVICES; device++)
		if (entry.count >> device & 1)
			vgpu_pointer_take(VGPU_EXECS, device_key(exec, device), &part);
}

/* ---- launching */

struct stay {
	uint64_t devices;
	struct vgpu_pool *pools[DEVICES];
	uint64_t reserved[DEVICES];
};

static void leave(struct stay *stay, bool launched)
{
	for (CUdevice device = 0; device < DEVICES; device++)
		if (stay->devices >> device & 1 &&
		    !vgpu_pool_leave(stay->pools[device], stay->reserved[device], 0, !launched))
			vgpu_log(VGPU_LOG_WARN, "a graph took more memory than it asked for");
}

static CUresult enter_one(struct stay *stay, CUdevice device, const struct vgpu_pointer *part,
			  uint64_t stream)
{
	struct vgpu_pool *pool = vgpu_pool_add(VGPU_GRAPH_POOL, (uint64_t)device, device);
	CUresult result = CUDA_SUCCESS;

	if (!pool)
		return CUDA_ERROR_OUT_OF_MEMORY;
	stay->pools[device] = pool;
	stay->reserved[device] = 0;
	if (part->count != stream || !vgpu_pool_enter_again(pool, part->owner))
		result = vgpu_pool_enter(pool, part->bytes, NULL, NULL, &stay->reserved[device]);
	if (result == CUDA_SUCCESS)
		stay->devices |= UINT64_C(1) << device;
	return result;
}

static CUresult enter(struct stay *stay, CUgraphExec exec, uint64_t stream)
{
	struct vgpu_pointer entry, part;
	CUresult result = CUDA_SUCCESS;

	stay->devices = 0;
	if (vgpu_state() != VGPU_ON || !vgpu_pointer_find(VGPU_EXECS, (uintptr_t)exec, &entry))
		return CUDA_SUCCESS;
	for (CUdevice device = 0; device < DEVICES && result == CUDA_SUCCESS; device++)
		if (entry.count >> device & 1 &&
		    vgpu_pointer_find(VGPU_EXECS, device_key(exec, device), &part))
			result = enter_one(stay, device, &part, stream);
	if (result != CUDA_SUCCESS)
		leave(stay, false);
	return result;
}

/* Where the graph's memory is: in this stream, until something happens to the pool. */
static void remember(const struct stay *stay, CUgraphExec exec, uint64_t stream)
{
	struct vgpu_pointer part;

	for (CUdevice device = 0; device < DEVICES; device++) {
		if (!(stay->devices >> device & 1) ||
		    !vgpu_pointer_find(VGPU_EXECS, device_key(exec, device), &part))
			continue;
		part.owner = vgpu_pool_generation(stay->pools[device]);
		part.count = stream;
		vgpu_pointer_add(VGPU_EXECS, &part);
	}
}

/* By the driver. Which of the cards had no memory it does not say: the first counts. */
static void count_refused(const struct stay *stay)
{
	struct vgpu_card *card = NULL;

	for (CUdevice device = 0; device < DEVICES && !card; device++)
		if (stay->devices >> device & 1)
			card = vgpu_pool_card(stay->pools[device]);
	if (card)
		vgpu_count_driver_oom(card);
}

static CUresult run(int real_index, CUgraphExec exec, CUstream stream, bool per_thread, bool paced)
{
	uint64_t name = vgpu_stream_name(stream, per_thread);
	struct vgpu_launch launch;
	__typeof__(&cuGraphLaunch) real = (__typeof__(&cuGraphLaunch))vgpu_real_at(real_index);
	struct stay stay;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = enter(&stay, exec, name);
	if (result != CUDA_SUCCESS)
		return result;
	launch.paced = NULL;
	if (paced && vgpu_pace_wanted())
		vgpu_pace_enter(&launch, vgpu_graph_key(exec), stream, per_thread);
	result = vgpu_pace_leave(&launch, real(exec, stream));
	if (stay.devices)
		leave(&stay, result == CUDA_SUCCESS);
	if (stay.devices && result == CUDA_ERROR_OUT_OF_MEMORY)
		count_refused(&stay);
	if (stay.devices && result == CUDA_SUCCESS)
		remember(&stay, exec, name);
	return result;
}

VGPU_EXPORT CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream)
{
	return run(VGPU_REAL_cuGraphLaunch, exec, stream, false, true);
}

VGPU_EXPORT CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream stream)
{
	return run(VGPU_REAL_cuGraphLaunch_ptsz, exec, stream, true, true);
}

VGPU_EXPORT CUresult cuGraphUpload(CUgraphExec exec, CUstream stream)
{
	return run(VGPU_REAL_cuGraphUpload, exec, stream, false, false);
}

VGPU_EXPORT CUresult cuGraphUpload_ptsz(CUgraphExec exec, CUstream stream)
{
	return run(VGPU_REAL_cuGraphUpload_ptsz, exec, stream, true, false);
}

/* ---- instantiating */

/* Before the driver's call, as it may upload the graph at once. */
static CUresult before(struct needs *needs, struct stay *stay, CUgraph graph, bool upload)
{
	CUresult result = CUDA_SUCCESS;

	needs->devices = stay->devices = 0;
	if (vgpu_state() != VGPU_ON)
		return CUDA_SUCCESS;
	*needs = (struct needs){0};
	add_graph(needs, graph, 0);
	for (CUdevice device = 0; upload && device < DEVICES && result == CUDA_SUCCESS; device++)
		if (needs->devices >> device & 1)
			result = enter_one(stay, device,
					   &(struct vgpu_pointer){.bytes = needs->bytes[device],
								  .owner = UINT64_MAX},
					   0);
	if (result != CUDA_SUCCESS)
		leave(stay, false);
	return result;
}

static CUresult after(const struct needs *needs, struct stay *stay, CUgraphExec *exec,
		      CUresult result)
{
	__typeof__(&cuGraphExecDestroy) destroy = VGPU_REAL(cuGraphExecDestroy);

	if (stay->devices)
		leave(stay, result == CUDA_SUCCESS);
	if (result != CUDA_SUCCESS || !needs->devices || note(*exec, needs) == 0)
		return result;
	forget(*exec);
	if (destroy)
		destroy(*exec);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult instantiate(int real_index, CUgraphExec *exec, CUgraph graph, CUgraphNode *error,
			    char *text, size_t size)
{
	__typeof__(&cuGraphInstantiate_v2) real =
		(__typeof__(&cuGraphInstantiate_v2))vgpu_real_at(real_index);
	struct needs needs;
	struct stay stay;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = before(&needs, &stay, graph, false);
	if (result != CUDA_SUCCESS)
		return result;
	return after(&needs, &stay, exec, real(exec, graph, error, text, size));
}

VGPU_EXPORT CUresult cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error,
					char *text, size_t size)
{
	return instantiate(VGPU_REAL_cuGraphInstantiate, exec, graph, error, text, size);
}

VGPU_EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error,
					   char *text, size_t size)
{
	return instantiate(VGPU_REAL_cuGraphInstantiate_v2, exec, graph, error, text, size);
}

VGPU_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph,
						 unsigned long long flags)
{
	__typeof__(&cuGraphInstantiateWithFlags) real = VGPU_REAL(cuGraphInstantiateWithFlags);
	struct needs needs;
	struct stay stay;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = before(&needs, &stay, graph, flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD);
	if (result != CUDA_SUCCESS)
		return result;
	return after(&needs, &stay, exec, real(exec, graph, flags));
}

static CUresult instantiate_with(int real_index, CUgraphExec *exec, CUgraph graph,
				 CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
	__typeof__(&cuGraphInstantiateWithParams) real =
		(__typeof__(&cuGraphInstantiateWithParams))vgpu_real_at(real_index);
	struct needs needs;
	struct stay stay;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = before(&needs, &stay, graph,
			params && params->flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD);
	if (result != CUDA_SUCCESS)
		return result;
	return after(&needs, &stay, exec, real(exec, graph, params));
}

VGPU_EXPORT CUresult cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph,
						  CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
	return instantiate_with(VGPU_REAL_cuGraphInstantiateWithParams, exec, graph, params);
}

VGPU_EXPORT CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *exec, CUgraph graph,
						       CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
	return instantiate_with(VGPU_REAL_cuGraphInstantiateWithParams_ptsz, exec, graph, params);
}

/* ---- ending */

/* Forgotten before the driver's call: the handle may be given out again after it. */
VGPU_EXPORT CUresult cuGraphExecDestroy(CUgraphExec exec)
{
	__typeof__(&cuGraphExecDestroy) real = VGPU_REAL(cuGraphExecDestroy);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() != VGPU_ON)
		return real(exec);
	forget(exec);
	vgpu_graph_forget(exec);
	result = real(exec);
	vgpu_pools_synchronised(0, NULL);
	return result;
}

VGPU_EXPORT CUresult cuDeviceGraphMemTrim(CUdevice device)
{
	__typeof__(&cuDeviceGraphMemTrim) real = VGPU_REAL(cuDeviceGraphMemTrim);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(device);
	if (vgpu_state() == VGPU_ON)
		vgpu_pools_synchronised(0, NULL);
	return result;
}
