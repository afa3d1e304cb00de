/* SPDX-License-Identifier: Apache-2.0 */
/* Oversubscription: a share larger than what the card has left. Where the grant allows
 * it, memory beyond the card is the host's, up to the limit and not a byte further. */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "world.h"

unsigned long long simOnHost(int card);

static struct channel talk, ending;

/* ---- what the tests ask about */

static uint64_t used(const char *grant)
{
	return world_region(grant)->devices[0].used_bytes;
}

static uint64_t spilled(const char *grant, unsigned int device)
{
	const struct vgpu_region *region = world_region(grant);
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < VGPU_REGION_SLOTS; i++)
		if (region->slots[i].state == VGPU_SLOT_LIVE)
			bytes += region->slots[i].used_bytes[VGPU_MAX_DEVICES - 1 - device];
	return bytes;
}

static void of_the_machine(const char *line)
{
	char text[4096];
	int fd = open(world_path("sim/cards.ini"), O_RDONLY | O_CLOEXEC);
	size_t length = strlen(strcpy(text, line));
	ssize_t rest = read(fd, text + length, sizeof(text) - length);

	CHECK(rest > 0);
	close(fd);
	world_write(world_path("sim/cards.ini"), text, length + (size_t)rest);
}

static void use_second_card(void)
{
	CUcontext context;

	OK(cuInit(0));
	OK(cuDevicePrimaryCtxRetain(&context, 1));
	OK(cuCtxSetCurrent(context));
}

/* ---- the second card has 16384 MiB, the share 20000 */

static void as_the_driver_says(void)
{
	CUdeviceptr pointer = 0xabc;
	size_t available, total;

	use_second_card();
	must_alloc(16000);
	OK(cuMemGetInfo_v2(&available, &total));
	IS(total, 16384 * MIB);
	IS(available, 384 * MIB);
	IS(cuMemAlloc_v2(&pointer, 1000 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(pointer, 0xabc);
	IS(used("uid_over"), 16000 * MIB);
	IS(world_region("uid_over")->devices[0].driver_oom_count, 1);
	IS(world_region("uid_over")->devices[0].spill_count, 0);
	IS(simOnHost(1), 0);
}

static void figures(uint64_t used_mib)
{
	nvmlMemory_v2_t memory2 = {.version = sizeof(memory2) | 2u << 24};
	nvmlMemory_t memory;
	nvmlDevice_t device;
	size_t available, total;

	IS(used("uid_over"), used_mib * MIB);
	OK(cuMemGetInfo_v2(&available, &total));
	IS(total, 20000 * MIB);
	IS(available, (20000 - used_mib) * MIB);
	OK(cuDeviceTotalMem_v2(&total, 1));
	IS(total, 20000 * MIB);
	OK(nvmlDeviceGetHandleByUUID(CARD_B, &device));
	OK(nvmlDeviceGetMemoryInfo(device, &memory));
	IS(memory.total, 20000 * MIB);
	IS(memory.used, used_mib * MIB);
	IS(memory.free, (20000 - used_mib) * MIB);
	OK(nvmlDeviceGetMemoryInfo_v2(device, &memory2));
	IS(memory2.total, 20000 * MIB);
	IS(memory2.free, (20000 - used_mib) * MIB);
}

static void to_the_limit(void)
{
	CUdeviceptr on_card, over, rest, refused = 0xabc;
	int where = 7, word = 0x1234567, back = 0;

	OK(nvmlInit_v2());
	use_second_card();
	on_card = must_alloc(16000);
	IS(spilled("uid_over", 0), 0);
	over = must_alloc(3000);
	IS(spilled("uid_over", 0), 3000 * MIB);
	IS(card_used(1), 16384 * MIB);
	IS(simOnHost(1), 2616 * MIB);
	figures(19000);
	OK(cuMemRangeGetAttribute(&where, sizeof(where), CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION,
				  over, 3000 * MIB));
	IS(where, 1);
	OK(cuMemcpyHtoD_v2(over + 2999 * MIB, &word, sizeof(word)));
	OK(cuMemcpyDtoH_v2(&back, over + 2999 * MIB, sizeof(back)));
	IS(back, word);
	IS(cuMemAlloc_v2(&refused, 1002 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(refused, 0xabc);
	rest = must_alloc(1000);
	figures(20000);
	IS(cuMemAlloc_v2(&refused, 1), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAllocManaged(&refused, 512, CU_MEM_ATTACH_GLOBAL), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFree_v2(rest));
	IS(spilled("uid_over", 0), 3000 * MIB);
	OK(cuMemFree_v2(on_card));
	figures(3000);
	/* There is room again: nothing more need go to the host. */
	on_card = must_alloc(10000);
	IS(spilled("uid_over", 0), 3000 * MIB);
	OK(cuMemFree_v2(over));
	IS(cuMemFree_v2(over), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemFree_v2(on_card));
	figures(0);
	IS(spilled("uid_over", 0), 0);
	IS(simOnHost(1), 0);
	IS(card_used(1), 0);
	IS(world_region("uid_over")->devices[0].spill_count, 2);
}

static void in_rows(void)
{
	CUdeviceptr on_card, rows, refused = 0xabc;
	size_t pitch = 77;

	use_second_card();
	on_card = must_alloc(16384);
	OK(cuMemAllocPitch_v2(&rows, &pitch, 513, 1024 * 1024, 16));
	IS(pitch, 1024);
	IS(used("uid_over"), (16384 + 1024) * MIB);
	IS(spilled("uid_over", 0), 1024 * MIB);
	OK(cuMemsetD8_v2(rows + 1024 * MIB - 1, 5, 1));
	pitch = 77;
	IS(cuMemAllocPitch_v2(&refused, &pitch, 513, 4 * 1024 * 1024, 16),
	   CUDA_ERROR_OUT_OF_MEMORY);
	IS(pitch, 77);
	IS(refused, 0xabc);
	OK(cuMemFree_v2(rows));
	OK(cuMemFree_v2(on_card));
	IS(used("uid_over"), 0);
	IS(spilled("uid_over", 0), 0);
}

/* In the order of a stream, given back by each function that may. */
static void in_streams(bool by_driver)
{
	CUdeviceptr on_card, pointers[3], refused = 0xabc;
	CUstream stream;

	use_second_card();
	on_card = must_alloc(16384);
	OK(cuStreamCreate(&stream, 0));
	for (int i = 0; i < 3; i++)
		OK(cuMemAllocAsync(&pointers[i], 1000 * MIB, i ? stream : NULL));
	IS(used("uid_over"), 19384 * MIB);
	IS(spilled("uid_over", 0), 3000 * MIB);
	IS(cuMemAllocAsync(&refused, 1000 * MIB, stream), CUDA_ERROR_OUT_OF_MEMORY);
	IS(refused, 0xabc);
	OK(cuMemFreeAsync(pointers[0], NULL));
	if (!by_driver) /* then it was waited for */
		IS(used("uid_over"), 18384 * MIB);
	OK(cuMemFreeAsync(pointers[1], stream));
	OK(cuMemFree_v2(pointers[2]));
	OK(cuStreamSynchronize(stream));
	OK(cuCtxSynchronize());
	IS(used("uid_over"), 16384 * MIB);
	IS(spilled("uid_over", 0), 0);
	IS(simOnHost(1), 0);
	OK(cuMemAllocAsync(&pointers[0], 1000 * MIB, stream));
	IS(cuMemFreeAsync(pointers[0] + 512, stream), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemFreeAsync(pointers[0], stream));
	OK(cuStreamSynchronize(stream));
	OK(cuMemFree_v2(on_card));
	IS(used("uid_over"), 0);
}

static void in_streams_by_driver(void)
{
	in_streams(true);
}

static void in_streams_by_us(void)
{
	in_streams(false);
}

/* Somebody else's capture does not mind an allocation beside it. */
static void beside_a_capture(void)
{
	CUdeviceptr pointer;
	CUstream captured, other;
	CUgraph graph;

	use_second_card();
	must_alloc(16384);
	OK(cuStreamCreate(&captured, 0));
	OK(cuStreamCreate(&other, 0));
	OK(cuStreamBeginCapture_v2(captured, CU_STREAM_CAPTURE_MODE_GLOBAL));
	OK(cuMemAllocAsync(&pointer, 100 * MIB, other));
	OK(cuMemFreeAsync(pointer, other));
	OK(cuStreamEndCapture(captured, &graph));
	CHECK(graph);
}

static void what_cannot(void)
{
	CUmemPoolProps pool_props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
				     .location = {CU_MEM_LOCATION_TYPE_DEVICE, 1}};
	CUmemAllocationProp props = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				     .location = {CU_MEM_LOCATION_TYPE_DEVICE, 1}};
	CUDA_ARRAY_DESCRIPTOR shape = {1 << 16, 1 << 14, CU_AD_FORMAT_UNSIGNED_INT8, 1};
	CUdeviceptr on_card, refused = 0xabc;
	CUdeviceptr_v1 narrow = 7;
	CUmemGenericAllocationHandle handle = 7;
	CUmemoryPool pool;
	CUarray array;

	use_second_card();
	on_card = must_alloc(16384);
	OK(cuMemPoolCreate(&pool, &pool_props));
	IS(cuMemAllocFromPoolAsync(&refused, 1000 * MIB, pool, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemCreate(&handle, 1000 * MIB, &props, 0), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuArrayCreate_v2(&array, &shape), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuMemAlloc(&narrow, 1000 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(refused, 0xabc);
	IS(narrow, 7);
	IS(used("uid_over"), 16384 * MIB);
	IS(spilled("uid_over", 0), 0);
	OK(cuMemFree_v2(on_card));
}

static void with_its_context(void)
{
	CUcontext own;

	use_second_card();
	OK(cuCtxCreate_v2(&own, 0, 1));
	must_alloc(16384);
	must_alloc(2000);
	IS(spilled("uid_over", 0), 2000 * MIB);
	OK(cuCtxDestroy_v2(own));
	IS(used("uid_over"), 0);
	IS(spilled("uid_over", 0), 0);
	IS(simOnHost(1), 0);
}

/* On such a card managed memory has to stay where it is. */
static void nowhere_to_go(void)
{
	const struct vgpu_region_device *told = &world_region("uid_over")->devices[0];
	uint64_t spills = told->spill_count, refusals = told->driver_oom_count;
	CUdeviceptr pointer;

	use_second_card();
	must_alloc(16384);
	IS(cuMemAlloc_v2(&pointer, 2 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(used("uid_over"), 16384 * MIB);
	IS(told->spill_count, spills);
	IS(told->driver_oom_count, refusals + 1);
}

static void host_is_full_too(void)
{
	CUdeviceptr pointer;
	uint64_t before = 0;

	use_second_card();
	must_alloc(16384);
	must_alloc(900);
	before = world_region("uid_over")->devices[0].driver_oom_count;
	IS(cuMemAlloc_v2(&pointer, 200 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(used("uid_over"), (16384 + 900) * MIB);
	IS(spilled("uid_over", 0), 900 * MIB);
	IS(world_region("uid_over")->devices[0].driver_oom_count, before + 1);
}

/* The node may allow and forbid it while programs run; what spilled stays. */
static void allowed_and_forbidden(void)
{
	CUdeviceptr over, pointer;

	use_second_card();
	must_alloc(16384);
	world_set_flags("uid_over", 0, 0);
	IS(cuMemAlloc_v2(&pointer, 100 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	world_set_flags("uid_over", 0, VGPU_GRANT_SPILL);
	over = must_alloc(100);
	world_set_flags("uid_over", 0, 0);
	IS(cuMemAlloc_v2(&pointer, 100 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(spilled("uid_over", 0), 100 * MIB);
	OK(cuMemFree_v2(over));
	IS(spilled("uid_over", 0), 0);
	IS(used("uid_over"), 16384 * MIB);
	world_set_flags("uid_over", 0, VGPU_GRANT_SPILL | VGPU_GRANT_CONTROL_DISABLED);
	IS(cuMemAlloc_v2(&pointer, 100 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	world_set_flags("uid_over", 0, VGPU_GRANT_SPILL);
}

/* ---- with others */

static void spill_and_die(void)
{
	use_second_card();
	must_alloc(16384);
	must_alloc(3000);
	channel_tell(talk.up[1]);
	channel_hear(talk.down[0]);
}

static void after_the_death(void)
{
	use_second_card();
	must_alloc(16384);
	IS(used("uid_over"), 16384 * MIB);
	IS(spilled("uid_over", 0), 0);
	must_alloc(3616);
	IS(spilled("uid_over", 0), 3616 * MIB);
}

/* Whoever needs memory that cannot move gets it: what prefers the card moves out. */
static void neighbour(void)
{
	setenv("VGPU_GRANT_ROOT", world_path("other"), 1);
	use_second_card();
	must_alloc(2000);
	channel_tell(talk.up[1]);
	channel_hear(talk.down[0]);
}

static void hold_and_spill(void)
{
	use_second_card();
	must_alloc(14000);
	must_alloc(3000);
	IS(spilled("uid_over", 0), 3000 * MIB);
	IS(simOnHost(1), 616 * MIB);
	channel_tell(talk.up[1]);
	channel_hear(talk.down[0]);
	IS(simOnHost(1), 2616 * MIB);
	IS(used("uid_over"), 17000 * MIB);
	channel_tell(talk.up[1]);
}

/* All that is granted is got, and not a piece more, whoever else is after it. */
static void take_pieces(void)
{
	CUdeviceptr pointer;
	uint64_t got = 0;

	use_second_card();
	channel_hear(talk.down[0]);
	while (cuMemAlloc_v2(&pointer, 100 * MIB) == CUDA_SUCCESS)
		got++;
	CHECK(write(talk.up[1], &got, sizeof(got)) == sizeof(got));
	channel_hear(ending.down[0]);
}

static void race(void)
{
	enum { RACERS = 6 };
	int children[RACERS];
	uint64_t sum = 0, got;

	for (int i = 0; i < RACERS; i++)
		children[i] = start_child(take_pieces);
	for (int i = 0; i < RACERS; i++)
		channel_tell(talk.down[1]);
	for (int i = 0; i < RACERS; i++) {
		CHECK(read(talk.up[0], &got, sizeof(got)) == sizeof(got));
		sum += got;
	}
	IS(sum, 200);
	IS(used("uid_over"), 20000 * MIB);
	CHECK(spilled("uid_over", 0) >= 3616 * MIB);
	CHECK(card_used(1) <= 16384 * MIB);
	CHECK(card_used(1) + simOnHost(1) == 20000 * MIB);
	for (int i = 0; i < RACERS; i++)
		channel_tell(ending.down[1]);
	for (int i = 0; i < RACERS; i++)
		OK(wait_child(children[i]));
}

/* Each card of a share is told for itself; a share without a limit does not spill. */
static void two_cards(void)
{
	CUcontext context;
	CUdeviceptr pointer, refused;

	use_second_card();
	must_alloc(16384);
	pointer = must_alloc(600);
	IS(spilled("uid_two", 1), 600 * MIB);
	IS(spilled("uid_two", 0), 0);
	OK(cuMemFree_v2(pointer));
	IS(spilled("uid_two", 1), 0);
	OK(cuDevicePrimaryCtxRetain(&context, 0));
	OK(cuCtxSetCurrent(context));
	must_alloc(40960);
	IS(cuMemAlloc_v2(&refused, 2 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	IS(spilled("uid_two", 0), 0);
}

static void by_environment(void)
{
	CUdeviceptr pointer;

	setenv("VGPU_GRANT_ROOT", world_path("nothing"), 1);
	setenv("CUDA_DEVICE_MEMORY_LIMIT", "17000m", 1);
	setenv("CUDA_DEVICE_MEMORY_SHARED_CACHE", world_path("books"), 1);
	use_second_card();
	must_alloc(16384);
	if (getenv("CUDA_OVERSUBSCRIBE")) {
		must_alloc(616);
		IS(simOnHost(1), 616 * MIB);
	}
	IS(cuMemAlloc_v2(&pointer, 616 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
}

int main(void)
{
	int child, other;

	world();
	world_grant("uid_over", CARD_B, 20000, NULL, 0);
	channel_open(&talk);
	channel_open(&ending);
	OK(in_child(as_the_driver_says));
	world_set_flags("uid_over", 0, VGPU_GRANT_SPILL);
	OK(in_child(to_the_limit));
	OK(in_child(in_rows));
	OK(in_child(in_streams_by_driver));
	world_last_card("managed_free_async = 0\n");
	OK(in_child(in_streams_by_us));
	OK(in_child(beside_a_capture));
	OK(in_child(what_cannot));
	OK(in_child(with_its_context));
	OK(in_child(allowed_and_forbidden));
	child = start_child(spill_and_die);
	channel_hear(talk.up[0]);
	OK(kill(child, SIGKILL));
	IS(wait_child(child), 128 + SIGKILL);
	OK(in_child(after_the_death));
	world_grant_at("other", "uid_other", CARD_B, 2000);
	child = start_child(hold_and_spill);
	channel_hear(talk.up[0]);
	other = start_child(neighbour);
	channel_hear(talk.up[0]);
	channel_tell(talk.down[1]);
	channel_hear(talk.up[0]);
	OK(wait_child(child));
	channel_tell(talk.down[1]);
	OK(wait_child(other));
	race();
	world_last_card("concurrent_managed_access = 0\n");
	OK(in_child(nowhere_to_go));
	world_last_card("concurrent_managed_access = 1\n");
	of_the_machine("host_memory_mib = 1000\n");
	OK(in_child(host_is_full_too));
	of_the_machine("host_memory_mib = 0\n");
	OK(in_child(by_environment));
	setenv("CUDA_OVERSUBSCRIBE", "true", 1);
	OK(in_child(by_environment));
	OK(unlink(world_path("grants/uid_over/grant")));
	OK(unlink(world_path("grants/uid_over/region/region")));
	OK(rmdir(world_path("grants/uid_over/region")));
	OK(rmdir(world_path("grants/uid_over")));
	world_grant("uid_two", CARD_A, 0, CARD_B, 17000);
	world_set_flags("uid_two", 0, VGPU_GRANT_SPILL);
	world_set_flags("uid_two", 1, VGPU_GRANT_SPILL);
	OK(in_child(two_cards));
	return 0;
}
