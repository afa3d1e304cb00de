/* SPDX-License-Identifier: Apache-2.0 */
/* Memory nodes of graphs take memory when they run, and keep it until they are
 * trimmed: that is what is charged, however the graph was made. */
#include "world.h"

static uint64_t used(const char *grant)
{
	return world_region(grant)->devices[0].used_bytes;
}

/* A graph that allocates on a device; and frees again, if asked to. */
static CUgraph make(uint64_t mib, CUdevice device, bool and_free, CUdeviceptr *pointer)
{
	CUDA_MEM_ALLOC_NODE_PARAMS params = {
		.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
			      .location = {CU_MEM_LOCATION_TYPE_DEVICE, device}},
		.bytesize = mib * MIB};
	CUgraphNode node, end;
	CUgraph graph;

	OK(cuGraphCreate(&graph, 0));
	OK(cuGraphAddMemAllocNode(&node, graph, NULL, 0, &params));
	if (and_free)
		OK(cuGraphAddMemFreeNode(&end, graph, &node, 1, params.dptr));
	if (pointer)
		*pointer = params.dptr;
	return graph;
}

static CUgraphExec ready(CUgraph graph)
{
	CUgraphExec exec;

	OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
	OK(cuGraphDestroy(graph));
	return exec;
}

static void limit(void)
{
	CUgraphExec small, large, huge;
	CUdeviceptr pointer, refused = 0xabc;

	use_gpu();
	small = ready(make(1000, 0, true, NULL));
	large = ready(make(2500, 0, true, NULL));
	huge = ready(make(3002, 0, true, NULL));
	IS(cuGraphLaunch(huge, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	IS(used("uid_gpu"), 0);
	OK(cuGraphLaunch(small, NULL));
	IS(used("uid_gpu"), 1000 * MIB); /* kept */
	IS(card_used(0), 1000 * MIB);
	for (int i = 0; i < 5; i++)
		OK(cuGraphLaunch(small, NULL));
	IS(used("uid_gpu"), 1000 * MIB);
	/* Another one needs more than is left: what was kept is taken back. */
	OK(cuGraphLaunch_ptsz(large, NULL));
	OK(cuCtxSynchronize());
	IS(used("uid_gpu"), card_used(0));
	OK(cuGraphLaunch(small, NULL));
	OK(cuCtxSynchronize());
	IS(used("uid_gpu"), card_used(0));
	IS(cuMemAllocAsync(&refused, 3002 * MIB, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	pointer = must_alloc(3000); /* takes it all back */
	IS(cuGraphLaunch(small, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFree_v2(pointer));
	OK(cuGraphUpload(small, NULL));
	IS(used("uid_gpu"), 1000 * MIB);
	OK(cuGraphLaunch(small, NULL));
	OK(cuGraphExecDestroy(small));
	OK(cuDeviceGraphMemTrim(0));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
	CHECK(card_peak(0) <= 3000 * MIB);
}

static void outlives(void)
{
	CUdeviceptr pointer, other, refused = 0xabc;
	CUgraphExec exec, second;

	use_gpu();
	exec = ready(make(1500, 0, false, &pointer));
	second = ready(make(1400, 0, false, &other));
	OK(cuGraphLaunch(exec, NULL));
	IS(cuGraphLaunch(exec, NULL), CUDA_ERROR_INVALID_VALUE); /* not freed */
	IS(used("uid_gpu"), 1500 * MIB);
	OK(cuGraphExecDestroy(exec));
	IS(used("uid_gpu"), 1500 * MIB); /* the memory stays */
	OK(cuGraphLaunch(second, NULL));
	IS(cuMemAlloc_v2(&refused, 102 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFreeAsync(pointer, NULL));
	OK(cuStreamSynchronize(NULL));
	IS(used("uid_gpu"), 2900 * MIB);
	OK(cuMemFree_v2(must_alloc(1600))); /* needs what the first one left */
	IS(used("uid_gpu"), 1400 * MIB);
	OK(cuMemFree_v2(other));
	OK(cuDeviceGraphMemTrim(0));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
	OK(cuGraphLaunch(second, NULL));
	OK(cuDevicePrimaryCtxReset_v2(0));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
}

static void captured(void)
{
	CUdeviceptr pointer, refused = 0xabc;
	CUgraphExec exec;
	CUstream stream;
	CUgraph graph;

	use_gpu();
	OK(cuStreamCreate(&stream, 0));
	for (int round = 0; round < 3; round++) {
		OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
		OK(cuMemAllocAsync(&pointer, 2000 * MIB, stream));
		IS(used("uid_gpu"), 0); /* nothing is taken yet, whatever it is */
		OK(cuMemAllocAsync(&pointer, 4000 * MIB, stream));
		OK(cuMemFreeAsync(pointer, stream));
		OK(cuStreamEndCapture(stream, &graph));
		OK(cuGraphInstantiate_v2(&exec, graph, NULL, NULL, 0));
		IS(cuGraphLaunch(exec, stream), CUDA_ERROR_OUT_OF_MEMORY);
		OK(cuGraphExecDestroy(exec));
		OK(cuGraphDestroy(graph));
		IS(used("uid_gpu"), 0);
	}
	OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
	OK(cuMemAllocAsync(&pointer, 2000 * MIB, stream));
	OK(cuStreamEndCapture(stream, &graph));
	OK(cuGraphInstantiate(&exec, graph, NULL, NULL, 0));
	OK(cuGraphLaunch(exec, stream));
	IS(used("uid_gpu"), 2000 * MIB);
	IS(cuMemAllocAsync(&refused, 1002 * MIB, stream), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFreeAsync(pointer, stream));
	OK(cuMemAllocAsync(&pointer, 3000 * MIB, stream)); /* the graphs' memory is taken back */
	IS(used("uid_gpu"), 3000 * MIB);
	IS(card_used(0), 3000 * MIB);
	IS(refused, 0xabc);
}

static void others(void)
{
	CUDA_GRAPH_INSTANTIATE_PARAMS upload = {.flags = CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD};
	CUgraphNode node;
	CUgraphExec exec;
	CUgraph graph, child;

	use_gpu();
	/* On another card than the stream's, in a child graph, uploaded at once. */
	child = make(60, 1, true, NULL);
	graph = make(500, 0, true, NULL);
	OK(cuGraphAddChildGraphNode(&node, graph, NULL, 0, child));
	OK(cuGraphInstantiateWithParams(&exec, graph, &upload));
	IS(used("uid_gpu"), 500 * MIB);
	IS(used("uid_second"), 60 * MIB);
	OK(cuGraphLaunch(exec, NULL));
	IS(used("uid_second"), 60 * MIB);
	OK(cuGraphAddChildGraphNode(&node, graph, NULL, 0, child));
	OK(cuGraphInstantiateWithFlags(&exec, graph, 0)); /* 60 and 60 may be needed at once */
	IS(cuGraphLaunch(exec, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuGraphInstantiateWithParams_ptsz(&exec, graph, &upload), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuDeviceGraphMemTrim(0));
	OK(cuDeviceGraphMemTrim(1));
	IS(used("uid_gpu"), 0);
	IS(used("uid_second"), 0);
	IS(cuGraphInstantiateWithFlags(&exec, NULL, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuGraphInstantiateWithParams(&exec, graph, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuGraphLaunch(NULL, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuDeviceGraphMemTrim(99), CUDA_ERROR_INVALID_DEVICE);
	CHECK(card_peak(1) <= 100 * MIB);
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	world_grant("uid_second", CARD_B, 100, NULL, 0);
	OK(in_child(limit));
	OK(in_child(outlives));
	OK(in_child(captured));
	OK(in_child(others));
	return 0;
}
