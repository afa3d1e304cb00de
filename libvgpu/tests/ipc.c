/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that processes give each other: a grant pays once for what any of its
 * processes holds, who did not make it pays for what comes from elsewhere, and when
 * the payer is gone somebody else pays. What the card says is compared throughout. */
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "world.h"

#define HANDLE CUmemGenericAllocationHandle
#define FILE_DESCRIPTOR CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
#define LAZY CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
#define SIZE (200 * MIB)
#define LIMIT_MIB 1000

/* What the processes of a scene tell each other. */
static struct board {
	CUipcMemHandle handle;
	CUmemPoolPtrExportData pointer;
} *board;
static struct channel talk;

static uint64_t used(const char *name)
{
	return world_region(name)->devices[0].used_bytes;
}

static uint64_t paid_by(const char *name, int pid)
{
	struct vgpu_region *region = world_region(name);

	for (int i = 0; i < VGPU_REGION_SLOTS; i++)
		if (region->slots[i].state == VGPU_SLOT_LIVE &&
		    region->slots[i].pid == (uint32_t)pid)
			return region->slots[i].used_bytes[0];
	return 0;
}

static void as_other_tenant(void)
{
	setenv("VGPU_GRANT_ROOT", world_path("others"), 1);
}

static uint64_t used_by_others(void)
{
	struct vgpu_region *region;
	FILE *file = fopen(world_path("others/uid2_gpu/region/region"), "re");

	CHECK(file);
	region = mmap(NULL, sizeof(*region), PROT_READ, MAP_SHARED, fileno(file), 0);
	CHECK(region != MAP_FAILED);
	fclose(file);
	return region->devices[0].used_bytes;
}

/* ---- children: each does its part, tells, and goes on when it hears */

static void pass(void)
{
	channel_tell(talk.up[1]);
	channel_hear(talk.down[0]);
}

static void stay(void)
{
	channel_tell(talk.up[1]);
	pause();
}

static unsigned int word_at(CUdeviceptr pointer)
{
	unsigned int word;

	OK(cuMemcpyDtoH_v2(&word, pointer, sizeof(word)));
	return word;
}

static void open_and_close(void)
{
	CUdeviceptr pointer = 0, again = 0;

	use_gpu();
	OK(cuIpcOpenMemHandle_v2(&pointer, board->handle, LAZY));
	OK(cuIpcOpenMemHandle(&again, board->handle, LAZY));
	IS(again, pointer);
	IS(word_at(pointer + 4096), 0x1234);
	OK(cuMemsetD32_v2(pointer, 0x5678, 1));
	pass();
	IS(word_at(pointer + 4096), 0x1234); /* whoever has freed it */
	OK(cuIpcCloseMemHandle(pointer));
	OK(cuIpcCloseMemHandle(pointer));
	IS(cuIpcCloseMemHandle(pointer), CUDA_ERROR_INVALID_VALUE);
	stay();
}

static void open_as_other(void)
{
	as_other_tenant();
	open_and_close();
}

static void open_and_end_context(void)
{
	CUdeviceptr pointer = 0;

	use_gpu();
	OK(cuIpcOpenMemHandle_v2(&pointer, board->handle, LAZY));
	OK(cuDevicePrimaryCtxReset_v2(0));
	stay();
}

static void refuse_too_much(void)
{
	CUdeviceptr pointer = 7;

	as_other_tenant();
	use_gpu();
	must_alloc(301); /* of 500 */
	IS(cuIpcOpenMemHandle_v2(&pointer, board->handle, LAZY), CUDA_ERROR_OUT_OF_MEMORY);
	IS(pointer, 7);
	IS(used_by_others(), 302 * MIB);
}

static int start(void (*function)(void))
{
	int child = starter_start(function);

	channel_hear(talk.up[0]);
	return child;
}

static void go_on(void)
{
	channel_tell(talk.down[1]);
}

static void go_on_and_wait(void)
{
	go_on();
	channel_hear(talk.up[0]);
}

static void end(int child)
{
	starter_end(child, SIGKILL);
}

/* What is refused makes the process look for the dead. */
static void look(void)
{
	CUdeviceptr none;

	IS(cuMemAlloc_v2(&none, (LIMIT_MIB + 2) * MIB), CUDA_ERROR_OUT_OF_MEMORY);
}

/* ---- cuMemAlloc */

static CUdeviceptr give(void)
{
	CUdeviceptr pointer = must_alloc(SIZE / MIB);
	CUipcMemHandle again;

	OK(cuMemsetD32_v2(pointer + 4096, 0x1234, 1));
	OK(cuIpcGetMemHandle(&board->handle, pointer));
	OK(cuIpcGetMemHandle(&again, pointer));
	OK(memcmp(&again, &board->handle, sizeof(again)));
	return pointer;
}

static void within_a_grant(void)
{
	CUdeviceptr pointer, none = 9;
	int first, second;

	use_gpu();
	pointer = give();
	IS(cuIpcOpenMemHandle_v2(&none, board->handle, LAZY), CUDA_ERROR_INVALID_CONTEXT);
	IS(none, 9);
	IS(used("uid_gpu"), SIZE);
	first = start(open_and_close);
	IS(word_at(pointer), 0x5678);
	second = start(open_and_close);
	IS(used("uid_gpu"), SIZE); /* once for all three */
	IS(paid_by("uid_gpu", first), 0);
	IS(card_used(0), SIZE);
	OK(cuMemFree_v2(pointer)); /* the maker goes first */
	IS(paid_by("uid_gpu", getpid()), 0);
	IS(paid_by("uid_gpu", first) + paid_by("uid_gpu", second), SIZE);
	IS(used("uid_gpu"), SIZE);
	IS(card_used(0), SIZE);
	go_on_and_wait(); /* one of them closes it, whoever hears first */
	IS(used("uid_gpu"), SIZE);
	IS(card_used(0), SIZE);
	end(first); /* and one dies with or without it */
	OK(cuMemFree_v2(must_alloc(LIMIT_MIB - SIZE / MIB)));
	end(second);
	OK(cuMemFree_v2(must_alloc(LIMIT_MIB)));
	IS(card_used(0), 0);
	/* Of something that is gone nothing is opened. */
	IS(cuIpcOpenMemHandle_v2(&none, board->handle, LAZY), CUDA_ERROR_INVALID_VALUE);
}

static void maker(void)
{
	use_gpu();
	give();
	stay();
}

/* The maker is killed: who has opened it pays. */
static void after_death(void)
{
	int owner = start(maker), heir = start(open_and_close);

	use_gpu();
	end(owner);
	look();
	IS(paid_by("uid_gpu", heir), SIZE);
	IS(used("uid_gpu"), SIZE);
	IS(card_used(0), SIZE);
	go_on_and_wait();
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
	end(heir);
}

static void context_takes_along(void)
{
	CUdeviceptr pointer;
	int child;

	use_gpu();
	pointer = give();
	child = start(open_and_end_context);
	OK(cuMemFree_v2(pointer));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
	end(child);
	give();
	OK(cuDevicePrimaryCtxReset_v2(0));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
}

/* Another tenant pays for it as well, once for all its processes. */
static void from_elsewhere(void)
{
	CUdeviceptr pointer;
	int first, second;

	use_gpu();
	pointer = give();
	first = start(open_as_other);
	second = start(open_as_other);
	IS(used("uid_gpu"), SIZE);
	IS(used_by_others(), SIZE);
	IS(card_used(0), SIZE);
	OK(cuMemFree_v2(pointer));
	IS(used("uid_gpu"), 0);
	IS(used_by_others(), SIZE);
	go_on_and_wait();
	IS(used_by_others(), SIZE);
	go_on_and_wait();
	end(first);
	end(second);
	IS(used_by_others(), 0);
	IS(card_used(0), 0);
	pointer = give();
	OK(starter_end(starter_start(refuse_too_much), 0));
	OK(cuMemFree_v2(pointer));
}

/* ---- memory by handle */

static HANDLE create(uint64_t mib)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	HANDLE handle = 0;

	OK(cuMemCreate(&handle, mib * MIB, &prop, 0));
	return handle;
}

static void export(HANDLE handle)
{
	int fd = -1;

	OK(cuMemExportToShareableHandle(&fd, handle, FILE_DESCRIPTOR, 0));
	wire_send(fd);
	close(fd);
}

static HANDLE import(void)
{
	int fd = wire_receive();
	HANDLE handle = 0;

	OK(cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd, FILE_DESCRIPTOR));
	close(fd);
	return handle;
}

static void import_and_map(void)
{
	CUdeviceptr space;
	HANDLE handle;

	use_gpu();
	handle = import();
	OK(cuMemAddressReserve(&space, SIZE, 0, 0, 0));
	OK(cuMemMap(space, SIZE, 0, handle, 0));
	OK(cuMemRelease(handle));
	pass();
	OK(cuMemUnmap(space, SIZE));
	stay();
}

static void import_and_map_as_other(void)
{
	as_other_tenant();
	import_and_map();
}

static void by_descriptor(void)
{
	HANDLE handle, other, again;
	int first, second;

	use_gpu();
	handle = create(SIZE / MIB);
	other = create(10);
	export(handle);
	first = start(import_and_map);
	export(handle); /* another descriptor of the same */
	second = start(import_and_map);
	IS(used("uid_gpu"), SIZE + 10 * MIB);
	IS(card_used(0), SIZE + 10 * MIB);
	OK(cuMemRelease(handle));
	IS(paid_by("uid_gpu", getpid()), 10 * MIB);
	IS(used("uid_gpu"), SIZE + 10 * MIB);
	go_on_and_wait();
	IS(used("uid_gpu"), SIZE + 10 * MIB);
	go_on_and_wait();
	IS(used("uid_gpu"), 10 * MIB);
	IS(card_used(0), 10 * MIB);
	end(first);
	end(second);
	/* Taken back by its maker: two handles, one charge. */
	export(other);
	again = import();
	OK(cuMemRelease(other));
	IS(used("uid_gpu"), 10 * MIB);
	OK(cuMemRelease(again));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
}

/* On its way to somebody, memory lives without a handle. */
static void underway(void)
{
	HANDLE handle;
	int child;

	use_gpu();
	handle = create(SIZE / MIB);
	export(handle);
	OK(cuMemRelease(handle));
	IS(used("uid_gpu"), SIZE);
	child = start(import_and_map);
	IS(paid_by("uid_gpu", child), SIZE);
	IS(used("uid_gpu"), SIZE);
	go_on_and_wait();
	IS(used("uid_gpu"), 0);
	end(child);
}

static void descriptor_from_elsewhere(void)
{
	HANDLE handle;
	int first, second;

	use_gpu();
	handle = create(SIZE / MIB);
	export(handle);
	export(handle);
	first = start(import_and_map_as_other);
	IS(used_by_others(), SIZE);
	second = start(import_and_map_as_other);
	IS(used("uid_gpu"), SIZE);
	IS(card_used(0), SIZE);
	OK(cuMemRelease(handle));
	IS(used("uid_gpu"), SIZE); /* nobody of the grant has taken it: it may be underway */
	go_on_and_wait();
	go_on_and_wait();
	IS(used_by_others(), 0);
	IS(card_used(0), 0);
	end(first);
	end(second);
}

/* ---- pools */

static void import_from_pool(void)
{
	CUdeviceptr pointer = 0, none;
	int fd = wire_receive();
	CUmemoryPool pool;

	use_gpu();
	OK(cuMemPoolImportFromShareableHandle(&pool, (void *)(intptr_t)fd, FILE_DESCRIPTOR, 0));
	close(fd);
	IS(cuMemAllocFromPoolAsync(&none, MIB, pool, NULL), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemPoolImportPointer(&pointer, pool, &board->pointer));
	IS(word_at(pointer), 0x4321);
	pass();
	OK(cuMemFreeAsync(pointer, NULL));
	OK(cuStreamSynchronize(NULL));
	stay();
}

static void import_from_pool_as_other(void)
{
	as_other_tenant();
	import_from_pool();
}

static CUdeviceptr export_from_pool(CUmemoryPool *pool)
{
	CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
				.handleTypes = FILE_DESCRIPTOR,
				.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUdeviceptr pointer = 0;
	int fd = -1;

	OK(cuMemPoolCreate(pool, &props));
	OK(cuMemAllocFromPoolAsync(&pointer, SIZE, *pool, NULL));
	OK(cuMemsetD32_v2(pointer, 0x4321, 1));
	OK(cuMemPoolExportToShareableHandle(&fd, *pool, FILE_DESCRIPTOR, 0));
	OK(cuMemPoolExportPointer(&board->pointer, pointer));
	wire_send(fd);
	close(fd);
	return pointer;
}

static void pool_maker(void)
{
	CUmemoryPool pool;

	use_gpu();
	export_from_pool(&pool);
	stay();
}

static void of_pools(void)
{
	CUdeviceptr pointer;
	CUmemoryPool pool;
	int child, owner;

	use_gpu();
	pointer = export_from_pool(&pool);
	child = start(import_from_pool);
	IS(used("uid_gpu"), card_used(0));
	CHECK(card_used(0) >= SIZE);
	go_on_and_wait();
	OK(cuMemFreeAsync(pointer, NULL));
	OK(cuStreamSynchronize(NULL));
	OK(cuMemPoolDestroy(pool));
	OK(cuCtxSynchronize());
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
	end(child);

	owner = start(pool_maker); /* dies first */
	child = start(import_from_pool);
	end(owner);
	look();
	IS(used("uid_gpu"), SIZE);
	IS(paid_by("uid_gpu", child), SIZE);
	go_on_and_wait();
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
	end(child);

	export_from_pool(&pool);
	child = start(import_from_pool_as_other);
	IS(used_by_others(), SIZE);
	go_on_and_wait();
	IS(used_by_others(), 0);
	end(child);
}

/* ---- multicast */

static void import_object(void)
{
	CUdeviceptr space;
	HANDLE object;

	use_gpu();
	object = import();
	OK(cuMulticastAddDevice(object, 0));
	OK(cuMemAddressReserve(&space, SIZE, 0, 0, 0));
	OK(cuMemMap(space, SIZE, 0, object, 0));
	pass();
	OK(cuMemUnmap(space, SIZE));
	OK(cuMemRelease(object));
	stay();
}

static void multicast(void)
{
	CUmulticastObjectProp prop = {.numDevices = 2, .size = SIZE, .handleTypes = 1};
	HANDLE object = 0, memory;
	CUdeviceptr space;
	int child;

	use_gpu();
	OK(cuMulticastCreate(&object, &prop));
	OK(cuMulticastAddDevice(object, 0));
	IS(cuMulticastAddDevice(object, 7), CUDA_ERROR_INVALID_DEVICE);
	OK(cuMemFree_v2(must_alloc(1)));
	IS(used("uid_gpu"), 0); /* it has no memory of its own */
	memory = create(100);
	IS(cuMulticastBindMem(object, SIZE, memory, 0, 100 * MIB, 0), CUDA_ERROR_INVALID_VALUE);
	OK(cuMulticastBindMem(object, 0, memory, 0, 100 * MIB, 0));
	OK(cuMemRelease(memory));
	IS(used("uid_gpu"), 100 * MIB); /* bound, it lives */
	IS(card_used(0), 100 * MIB);
	OK(cuMulticastUnbind(object, 0, 0, 100 * MIB));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);

	memory = create(100);
	OK(cuMemAddressReserve(&space, 100 * MIB, 0, 0, 0));
	OK(cuMemMap(space, 100 * MIB, 0, memory, 0));
	OK(cuMulticastBindAddr_v2(object, 0, 0, space, 100 * MIB, 0));
	OK(cuMulticastBindMem_v2(object, 0, 100 * MIB, memory, 0, 100 * MIB, 0));
	OK(cuMemRelease(memory));
	OK(cuMemUnmap(space, 100 * MIB));
	IS(used("uid_gpu"), 100 * MIB);
	OK(cuMulticastUnbind(object, 0, 100 * MIB, 100 * MIB));
	IS(used("uid_gpu"), 100 * MIB);
	export(object);
	child = start(import_object);
	IS(used("uid_gpu"), 100 * MIB);
	go_on_and_wait();
	end(child);
	OK(cuMemRelease(object)); /* and takes along what is bound to it */
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, LIMIT_MIB, NULL, 0);
	world_grant_at("others", "uid2_gpu", CARD_A, 500);
	channel_open(&talk);
	wire_open();
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	CHECK(board != MAP_FAILED);
	starter_begin();
	OK(in_child(within_a_grant));
	OK(in_child(after_death));
	OK(in_child(context_takes_along));
	OK(in_child(from_elsewhere));
	OK(in_child(by_descriptor));
	OK(in_child(underway));
	OK(in_child(descriptor_from_elsewhere));
	OK(in_child(of_pools));
	OK(in_child(multicast));
	return 0;
}
