/* SPDX-License-Identifier: Apache-2.0 */
/* 64 processes grab a share in small pieces, by each of the calls that allocate: it
 * is used up to the last byte, and not one byte more, as the card itself sees it.
 * Then all give everything back. */
#include <unistd.h>

#include "world.h"

#define PROCESSES 64
#define LIMIT_MIB 1000
#define PIECE (2 * MIB)

struct way {
	const char *name;
	CUresult (*grab)(uint64_t *piece);
	CUresult (*drop)(uint64_t piece);
};

static CUresult alloc(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUresult result = cuMemAlloc_v2(&pointer, PIECE);

	*piece = pointer;
	return result;
}

static CUresult alloc_narrow(uint64_t *piece)
{
	CUdeviceptr_v1 pointer = 0;
	CUresult result = cuMemAlloc(&pointer, PIECE);

	*piece = pointer;
	return result;
}

static CUresult alloc_rows(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	size_t pitch;
	CUresult result = cuMemAllocPitch_v2(&pointer, &pitch, 2048, PIECE / 2048, 4);

	*piece = pointer;
	return result;
}

static CUresult alloc_managed(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUresult result = cuMemAllocManaged(&pointer, PIECE, CU_MEM_ATTACH_GLOBAL);

	*piece = pointer;
	return result;
}

static CUresult give_back(uint64_t piece)
{
	return cuMemFree_v2(piece);
}

static CUresult create(uint64_t *piece)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle = 0;
	CUresult result = cuMemCreate(&handle, PIECE, &prop, 0);

	*piece = handle;
	return result;
}

static CUresult let_go(uint64_t piece)
{
	return cuMemRelease(piece);
}

static CUresult alloc_async(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUresult result = cuMemAllocAsync(&pointer, PIECE, NULL);

	*piece = pointer;
	return result;
}

static CUresult alloc_from_pool(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUmemoryPool pool;
	CUresult result;

	OK(cuDeviceGetDefaultMemPool(&pool, 0));
	result = cuMemAllocFromPoolAsync_ptsz(&pointer, PIECE, pool, NULL);
	*piece = pointer;
	return result;
}

static CUresult free_async(uint64_t piece)
{
	CUresult result = cuMemFreeAsync(piece, NULL);

	return result ? result : cuStreamSynchronize(NULL);
}

static CUresult make_array(uint64_t *piece)
{
	CUDA_ARRAY_DESCRIPTOR what = {1024, 512, CU_AD_FORMAT_FLOAT, 1};
	CUarray array = NULL;
	CUresult result = cuArrayCreate_v2(&array, &what);

	*piece = (uintptr_t)array;
	return result;
}

static CUresult make_solid(uint64_t *piece)
{
	CUDA_ARRAY3D_DESCRIPTOR what = {64, 64, 128, CU_AD_FORMAT_FLOAT, 1, 0};
	CUarray array = NULL;
	CUresult result = cuArray3DCreate_v2(&array, &what);

	*piece = (uintptr_t)array;
	return result;
}

static CUresult drop_array(uint64_t piece)
{
	return cuArrayDestroy((CUarray)(uintptr_t)piece);
}

static CUresult make_levels(uint64_t *piece)
{
	CUDA_ARRAY3D_DESCRIPTOR what = {1024, 256, 0, CU_AD_FORMAT_FLOAT, 1, 0};
	CUmipmappedArray array = NULL;
	CUresult result = cuMipmappedArrayCreate(&array, &what, 4);

	*piece = (uintptr_t)array;
	return result;
}

static CUresult drop_levels(uint64_t piece)
{
	return cuMipmappedArrayDestroy((CUmipmappedArray)(uintptr_t)piece);
}

static CUresult import(uint64_t *piece)
{
	CUDA_EXTERNAL_MEMORY_HANDLE_DESC what = {.type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD,
						 .size = PIECE};
	CUexternalMemory memory = NULL;
	CUresult result = cuImportExternalMemory(&memory, &what);

	*piece = (uintptr_t)memory;
	return result;
}

static CUresult drop_import(uint64_t piece)
{
	return cuDestroyExternalMemory((CUexternalMemory)(uintptr_t)piece);
}

/* The executable graph is not kept: its memory stays until it is freed. */
static CUresult launch(uint64_t *piece)
{
	CUDA_MEM_ALLOC_NODE_PARAMS params = {
		.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
			      .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}},
		.bytesize = PIECE};
	CUgraphNode node;
	CUgraphExec exec;
	CUgraph graph;
	CUresult result;

	OK(cuGraphCreate(&graph, 0));
	OK(cuGraphAddMemAllocNode(&node, graph, NULL, 0, &params));
	OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
	result = cuGraphLaunch(exec, NULL);
	OK(cuGraphExecDestroy(exec));
	OK(cuGraphDestroy(graph));
	*piece = params.dptr;
	return result;
}

static CUresult free_and_trim(uint64_t piece)
{
	CUresult result = cuMemFree_v2(piece);

	return result ? result : cuDeviceGraphMemTrim(0);
}

static const struct way ways[] = {
	{"cuMemAlloc_v2", alloc, give_back},
	{"cuMemAlloc", alloc_narrow, give_back},
	{"cuMemAllocPitch_v2", alloc_rows, give_back},
	{"cuMemAllocManaged", alloc_managed, give_back},
	{"cuMemCreate", create, let_go},
	{"cuArrayCreate_v2", make_array, drop_array},
	{"cuArray3DCreate_v2", make_solid, drop_array},
	{"cuMipmappedArrayCreate", make_levels, drop_levels},
	{"cuMemAllocAsync", alloc_async, free_async},
	{"cuMemAllocFromPoolAsync_ptsz", alloc_from_pool, free_async},
	{"cuImportExternalMemory", import, drop_import},
	{"cuGraphLaunch", launch, free_and_trim},
};
static const struct way *way;
static struct channel go, done;

static void grab(void)
{
	uint64_t pieces[LIMIT_MIB], piece;
	int count = 0, misses = 0;

	use_gpu();
	channel_tell(go.up[1]);
	channel_hear(go.down[0]);
	while (misses < 3) {
		CUresult result = way->grab(&piece);

		CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_OUT_OF_MEMORY);
		if (result == CUDA_SUCCESS)
			pieces[count++] = piece;
		else
			misses++;
	}
	channel_tell(done.up[1]);
	channel_hear(done.down[0]);
	while (count > 0)
		OK(way->drop(pieces[--count]));
}

static void race(void)
{
	struct vgpu_region *region;
	int children[PROCESSES];
	uint64_t sum = 0;

	for (int i = 0; i < PROCESSES; i++)
		children[i] = start_child(grab);
	for (int i = 0; i < PROCESSES; i++)
		channel_hear(go.up[0]);
	for (int i = 0; i < PROCESSES; i++)
		channel_tell(go.down[1]);
	for (int i = 0; i < PROCESSES; i++)
		channel_hear(done.up[0]);
	region = world_region("uid_gpu");
	for (int i = 0; i < VGPU_REGION_SLOTS; i++)
		sum += region->slots[i].used_bytes[0];
	IS(region->devices[0].used_bytes, LIMIT_MIB * MIB);
	IS(region->devices[0].peak_bytes, LIMIT_MIB * MIB);
	IS(sum, LIMIT_MIB * MIB);
	IS(card_used(0), LIMIT_MIB * MIB);
	IS(card_peak(0), LIMIT_MIB * MIB);
	for (int i = 0; i < PROCESSES; i++)
		channel_tell(done.down[1]);
	for (int i = 0; i < PROCESSES; i++)
		OK(wait_child(children[i]));
	IS(region->devices[0].used_bytes, 0);
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, LIMIT_MIB, NULL, 0);
	channel_open(&go);
	channel_open(&done);
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		way = &ways[i];
		fprintf(stderr, "%s\n", way->name);
		race();
	}
	return 0;
}
