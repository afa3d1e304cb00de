/* SPDX-License-Identifier: Apache-2.0 */
/* What goes wrong in the driver is told to the program in the driver's own words, and
 * leaves the books as they were: no memory though the limit has room, other errors,
 * calls that take long, and a card that is gone. */
#include <signal.h>
#include <unistd.h>

#include "world.h"

#define PIECE (8 * MIB)
#define LIMIT_MIB 1000

static struct channel talk;

static uint64_t used(void)
{
	return world_region("uid_gpu")->devices[0].used_bytes;
}

static CUresult allocate(uint64_t *piece)
{
	CUdeviceptr pointer = 7;
	CUresult result = cuMemAlloc_v2(&pointer, PIECE);

	CHECK(result == CUDA_SUCCESS || pointer == 7);
	*piece = pointer;
	return result;
}

static CUresult allocate_rows(uint64_t *piece)
{
	CUdeviceptr pointer = 7;
	size_t pitch = 7;
	CUresult result = cuMemAllocPitch_v2(&pointer, &pitch, 2048, PIECE / 2048, 4);

	CHECK(result == CUDA_SUCCESS || (pointer == 7 && pitch == 7));
	*piece = pointer;
	return result;
}

static CUresult allocate_managed(uint64_t *piece)
{
	CUdeviceptr pointer = 7;
	CUresult result = cuMemAllocManaged(&pointer, PIECE, CU_MEM_ATTACH_GLOBAL);

	CHECK(result == CUDA_SUCCESS || pointer == 7);
	*piece = pointer;
	return result;
}

static CUresult allocate_async(uint64_t *piece)
{
	CUdeviceptr pointer = 7;
	CUresult result = cuMemAllocAsync(&pointer, PIECE, NULL);

	CHECK(result == CUDA_SUCCESS || pointer == 7);
	*piece = pointer;
	return result;
}

static CUresult give_back(uint64_t piece)
{
	CUresult result = cuMemFree_v2(piece);

	return result ? result : cuCtxSynchronize();
}

static CUresult create(uint64_t *piece)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle = 7;
	CUresult result = cuMemCreate(&handle, PIECE, &prop, 0);

	CHECK(result == CUDA_SUCCESS || handle == 7);
	*piece = handle;
	return result;
}

static CUresult release(uint64_t piece)
{
	return cuMemRelease(piece);
}

static CUresult make_array(uint64_t *piece)
{
	CUDA_ARRAY_DESCRIPTOR what = {1024, 2048, CU_AD_FORMAT_FLOAT, 1};
	CUarray array = NULL;
	CUresult result = cuArrayCreate_v2(&array, &what);

	CHECK(result == CUDA_SUCCESS || !array);
	*piece = (uintptr_t)array;
	return result;
}

static CUresult drop_array(uint64_t piece)
{
	return cuArrayDestroy((CUarray)(uintptr_t)piece);
}

static CUresult import(uint64_t *piece)
{
	return import_external(PIECE, piece);
}

static CUresult launch(uint64_t *piece)
{
	return launch_allocation(PIECE, piece);
}

static const struct way {
	const char *name;
	CUresult (*take)(uint64_t *piece);
	CUresult (*give)(uint64_t piece);
} ways[] = {
	{"cuMemAlloc", allocate, give_back},
	{"cuMemAllocPitch", allocate_rows, give_back},
	{"cuMemAllocManaged", allocate_managed, give_back},
	{"cuMemAllocAsync", allocate_async, give_back},
	{"cuMemCreate", create, release},
	{"cuArrayCreate", make_array, drop_array},
	{"cuImportExternalMemory", import, drop_external},
	{"cuGraphLaunch", launch, free_and_trim},
};
#define WAYS (sizeof(ways) / sizeof(ways[0]))

/* The nth time that memory is taken fails, for each call and for each n: whatever the
 * driver had done before it is undone, in the books as well. */
static void refusals(void)
{
	static const struct {
		const char *kind;
		CUresult error;
	} faults[] = {{"oom", CUDA_ERROR_OUT_OF_MEMORY}, {"error", CUDA_ERROR_OPERATING_SYSTEM}};
	uint64_t piece, pieces[4], told;
	char text[32];

	use_gpu();
	OK(cuMemFree_v2(must_alloc(2)));
	for (size_t w = 0; w < WAYS; w++)
		for (size_t f = 0; f < 2; f++)
			for (int n = 1; n <= 4; n++) {
				int had = 0;
				CUresult result = CUDA_SUCCESS;

				snprintf(text, sizeof(text), "%s %d 4", faults[f].kind, n);
				CHECK(simFault(text));
				told = world_region("uid_gpu")->devices[0].driver_oom_count;
				while (had < 4 && result == CUDA_SUCCESS) {
					result = ways[w].take(&pieces[had]);
					had += result == CUDA_SUCCESS;
				}
				IS(had, n - 1);
				IS(result, faults[f].error);
				IS(world_region("uid_gpu")->devices[0].driver_oom_count,
				   told + (f == 0));
				CHECK(simFault("none"));
				IS(used(), card_used(0));
				IS(used(), (uint64_t)had * PIECE);
				OK(ways[w].take(&piece));
				OK(ways[w].give(piece));
				while (had > 0)
					OK(ways[w].give(pieces[--had]));
				IS(used(), 0);
				IS(card_used(0), 0);
			}
	IS(world_region("uid_gpu")->devices[0].oom_count, 0); /* the limit had no part in it */
}

/* At random, among many that succeed. */
static void now_and_then(void)
{
	struct {
		uint64_t piece;
		size_t way;
	} held[64];
	uint64_t random = 11;
	int count = 0;
	char text[32];

	use_gpu();
	for (int i = 0; i < 3000; i++) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		if ((random >> 33) % 8 == 0) {
			snprintf(text, sizeof(text), "%s %d %d",
				 (random >> 40) % 2 ? "oom" : "error", (int)((random >> 41) % 5),
				 (int)((random >> 45) % 4));
			CHECK(simFault(text));
		}
		if (count == 64 || (count && (random >> 50) % 2)) {
			int last = (int)((random >> 52) % (unsigned int)count);

			OK(ways[held[last].way].give(held[last].piece));
			held[last] = held[--count];
		} else {
			held[count].way = (random >> 55) % WAYS;
			count += ways[held[count].way].take(&held[count].piece) == CUDA_SUCCESS;
		}
		CHECK(used() <= LIMIT_MIB * MIB);
		if (count == 0 || i % 16 == 0) {
			OK(cuCtxSynchronize());
			IS(used(), card_used(0));
		}
	}
}

/* While one waits in the driver, what it has reserved is taken, and nobody waits. */
static void in_a_slow_call(void)
{
	use_gpu();
	OK(cuMemFree_v2(must_alloc(2)));
	channel_tell(talk.up[1]);
	CHECK(simFault("slow 1 3000000"));
	must_alloc(600);
	channel_tell(talk.up[1]);
	pause();
}

static void beside_a_slow_call(void)
{
	CUdeviceptr pointer;

	use_gpu();
	while (used() < 600 * MIB) /* it is on its way into the driver */
		usleep(100);
	IS(cuMemAlloc_v2(&pointer, 402 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFree_v2(must_alloc(400)));
	CHECK(card_used(0) < 600 * MIB); /* the other one is still there */
}

static void slow(void)
{
	int child = start_child(in_a_slow_call);

	channel_hear(talk.up[0]);
	OK(in_child(beside_a_slow_call));
	channel_hear(talk.up[0]);
	kill(child, SIGKILL);
	wait_child(child);
	/* And killed in there, it leaves nothing behind. */
	child = start_child(in_a_slow_call);
	channel_hear(talk.up[0]);
	while (used() < 600 * MIB)
		usleep(100);
	kill(child, SIGKILL);
	wait_child(child);
	use_gpu();
	OK(cuMemFree_v2(must_alloc(LIMIT_MIB)));
}

static void lost(void)
{
	CUdeviceptr pointer;
	uint64_t piece, before;
	size_t available, total;

	use_gpu();
	pointer = must_alloc(100);
	OK(allocate_async(&piece));
	before = used();
	CHECK(simFault("lost"));
	for (size_t w = 0; w < WAYS; w++)
		if (ways[w].take != create) { /* which needs no context */
			IS(ways[w].take(&piece), CUDA_ERROR_DEVICE_UNAVAILABLE);
			IS(used(), before);
		}
	IS(cuMemGetInfo_v2(&available, &total), CUDA_ERROR_DEVICE_UNAVAILABLE);
	IS(cuMemFreeAsync(pointer, NULL), CUDA_ERROR_DEVICE_UNAVAILABLE);
	IS(used(), before); /* what the driver has not taken back is still charged */
	CHECK(simFault("none"));
	OK(cuMemFreeAsync(pointer, NULL));
	OK(cuStreamSynchronize(NULL));
	IS(used(), card_used(0));
	CHECK(!simFault("flood"));
}

static void from_the_start(void)
{
	CUdeviceptr pointer;

	setenv("VGPU_SIM_FAULT", "oom 1", 1);
	use_gpu();
	IS(cuMemAlloc_v2(&pointer, MIB), CUDA_SUCCESS); /* after the driver's second try */
	OK(cuMemFree_v2(pointer));
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, LIMIT_MIB, NULL, 0);
	channel_open(&talk);
	OK(in_child(refusals));
	OK(in_child(now_and_then));
	OK(in_child(lost));
	OK(in_child(from_the_start));
	slow();
	return 0;
}
