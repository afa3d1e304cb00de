/* SPDX-License-Identifier: Apache-2.0 */
/* Random operations of every kind on two cards, first in one process, then in
 * several at once, against a model of what must be charged: what each object was
 * charged, plus what pools say that they hold. With nothing under way, the books,
 * the model and the cards agree to the byte; the limit is never passed; and nothing
 * is refused that would have fitted.
 *
 * VGPU_MODEL_OPERATIONS says how many (10,000), VGPU_MODEL_SEED where to begin. */
#include <unistd.h>

#include "world.h"

#define DEVICES 2
#define OBJECTS 96
#define POOLS 3 /* the default one, and two of the walk's own */
#define STREAMS 2
#define PROCESSES 4
#define GRANULE (2 * MIB)
#define SPACE (64 * MIB)
#define CONTEXT (37 * MIB) /* a process's contexts, of the second card */
#define FILE_DESCRIPTOR CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

static const uint64_t limits[DEVICES] = {1500 * MIB, 700 * MIB};

enum kind { NOTHING, MEMORY, HANDLE, MAPPING, ARRAY, LEVELS, EXTERNAL, POOLED, GRAPH };

struct object {
	enum kind kind;
	int device;
	bool own;       /* of the second context, not of the primary one */
	uint64_t value; /* pointer or handle */
	uint64_t bytes; /* charged, if not by its pool */
};
struct walk {
	uint64_t random;
	bool alone; /* nobody else uses the cards */
	struct object objects[OBJECTS];
	uint64_t charged[DEVICES]; /* by objects, and not yet freed by streams */
	uint64_t late[DEVICES];    /* of that, what streams are to free */
	CUcontext primary[DEVICES], own[DEVICES];
	CUmemoryPool pools[DEVICES][POOLS];
	CUstream streams[DEVICES][STREAMS];
};

static uint64_t next(struct walk *walk, uint64_t range)
{
	walk->random = walk->random * 6364136223846793005u + 1442695040888963407u;
	return (walk->random >> 33) % range;
}

/* Some large, many middling, some that are less than a granule. */
static size_t any_size(struct walk *walk)
{
	switch (next(walk, 8)) {
	case 0:
		return (1 + next(walk, 300)) * MIB;
	case 1:
		return 1 + next(walk, MIB - 1);
	default:
		return (1 + next(walk, 20)) * MIB + next(walk, 3);
	}
}

static uint64_t charge_of(uint64_t bytes)
{
	uint64_t step = bytes >= MIB ? GRANULE : 512;

	return (bytes + step - 1) / step * step;
}

/* ---- what is charged */

static struct vgpu_region *books(void)
{
	static struct vgpu_region *region;

	if (!region)
		region = world_region("uid_gpu");
	return region;
}

static struct vgpu_region_slot *own_slot(void)
{
	struct vgpu_region *region = books();

	for (int i = 0; i < VGPU_REGION_SLOTS; i++)
		if (region->slots[i].state == VGPU_SLOT_LIVE &&
		    region->slots[i].pid == (uint32_t)getpid())
			return &region->slots[i];
	return NULL;
}

static uint64_t booked(int device)
{
	static struct vgpu_region_slot *slot;
	static int owner;

	if (!slot || owner != getpid()) {
		owner = getpid();
		slot = own_slot();
	}
	return slot ? slot->used_bytes[device] : 0;
}

static uint64_t held_by_pools(const struct walk *walk, int device)
{
	cuuint64_t bytes, sum;

	OK(cuDeviceGetGraphMemAttribute(device, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &sum));
	for (int i = 0; i < POOLS; i++) {
		OK(cuMemPoolGetAttribute(walk->pools[device][i],
					 CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &bytes));
		sum += bytes;
	}
	return sum;
}

static void compare(struct walk *walk)
{
	for (int device = 0; device < DEVICES; device++) {
		OK(cuCtxSetCurrent(walk->primary[device]));
		OK(cuCtxSynchronize());
		walk->charged[device] -= walk->late[device];
		walk->late[device] = 0;
		IS(booked(device), walk->charged[device] + held_by_pools(walk, device));
		if (walk->alone)
			IS(booked(device) + (device ? CONTEXT : 0), card_used(device));
	}
}

static void check_limits(void)
{
	struct vgpu_region *region = books();

	for (int device = 0; device < DEVICES; device++)
		CHECK(region->devices[device].used_bytes <= limits[device]);
}

/* ---- objects */

static struct object *new_object(struct walk *walk)
{
	for (int i = 0; i < OBJECTS; i++)
		if (walk->objects[i].kind == NOTHING)
			return &walk->objects[i];
	return NULL;
}

static struct object *any_object(struct walk *walk)
{
	uint64_t from = next(walk, OBJECTS);

	for (uint64_t i = 0; i < OBJECTS; i++)
		if (walk->objects[(from + i) % OBJECTS].kind != NOTHING)
			return &walk->objects[(from + i) % OBJECTS];
	return NULL;
}

/* A refusal is right if there was no room; of pools that is not known so exactly. */
static void note(struct walk *walk, CUresult result, struct object object)
{
	if (result == CUDA_SUCCESS) {
		*new_object(walk) = object;
		walk->charged[object.device] += object.bytes;
		return;
	}
	IS(result, CUDA_ERROR_OUT_OF_MEMORY);
	if (walk->alone && object.kind != POOLED && object.kind != GRAPH)
		CHECK(booked(object.device) + object.bytes > limits[object.device]);
}

/* Makes a context current for an object, at times the second one. */
static bool enter(struct walk *walk, int device)
{
	bool own = walk->own[device] && next(walk, 4) == 0;

	OK(cuCtxSetCurrent(own ? walk->own[device] : walk->primary[device]));
	return own;
}

static CUstream any_stream(struct walk *walk, int device)
{
	uint64_t which = next(walk, STREAMS + 1);

	OK(cuCtxSetCurrent(walk->primary[device]));
	return which < STREAMS ? walk->streams[device][which] : NULL;
}

/* ---- operations */

static void allocate(struct walk *walk, int device)
{
	struct object object = {.kind = MEMORY, .device = device, .own = enter(walk, device)};
	size_t size = any_size(walk), pitch;
	CUdeviceptr pointer = 0;
	CUresult result;

	object.bytes = charge_of(size);
	switch (next(walk, 3)) {
	case 0:
		result = cuMemAllocManaged(&pointer, size, CU_MEM_ATTACH_GLOBAL);
		break;
	case 1:
		object.bytes = charge_of((size / 1000 + 1) * 1024);
		result = cuMemAllocPitch_v2(&pointer, &pitch, 1000, size / 1000 + 1, 4);
		break;
	default:
		result = cuMemAlloc_v2(&pointer, size);
	}
	object.value = pointer;
	note(walk, result, object);
}

static void create_handle(struct walk *walk, int device)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, device}};
	struct object object = {.kind = HANDLE, .device = device};
	CUmemGenericAllocationHandle handle = 0;
	CUresult result;

	object.bytes = (1 + next(walk, SPACE / GRANULE)) * GRANULE;
	result = cuMemCreate(&handle, object.bytes, &prop, 0);
	object.value = handle;
	note(walk, result, object);
}

static void create_array(struct walk *walk, int device)
{
	CUDA_ARRAY3D_DESCRIPTOR what = {.Width = 64 * (1 + next(walk, 16)),
					.Height = 256 * (1 + next(walk, 8)),
					.Format = CU_AD_FORMAT_FLOAT,
					.NumChannels = 4};
	struct object object = {.kind = ARRAY, .device = device, .own = enter(walk, device)};
	uint64_t bytes = what.Width * what.Height * 16;
	CUmipmappedArray levels = NULL;
	CUarray array = NULL;
	CUresult result;

	if (next(walk, 2)) {
		object.kind = LEVELS;
		object.bytes = charge_of(bytes + bytes / 4);
		result = cuMipmappedArrayCreate(&levels, &what, 2);
		object.value = (uintptr_t)levels;
	} else {
		object.bytes = charge_of(bytes);
		result = cuArray3DCreate_v2(&array, &what);
		object.value = (uintptr_t)array;
	}
	note(walk, result, object);
}

static void import_memory(struct walk *walk, int device)
{
	CUDA_EXTERNAL_MEMORY_HANDLE_DESC what = {.type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD,
						 .size = (1 + next(walk, 50)) * GRANULE};
	struct object object = {
		.kind = EXTERNAL, .device = device, .own = enter(walk, device), .bytes = what.size};
	CUexternalMemory memory = NULL;
	CUresult result = cuImportExternalMemory(&memory, &what);

	object.value = (uintptr_t)memory;
	note(walk, result, object);
}

static void allocate_in_order(struct walk *walk, int device)
{
	struct object object = {.kind = POOLED, .device = device};
	CUstream stream = any_stream(walk, device);
	CUdeviceptr pointer = 0;
	CUresult result;

	result = next(walk, 2)
			 ? cuMemAllocAsync(&pointer, any_size(walk), stream)
			 : cuMemAllocFromPoolAsync(&pointer, any_size(walk),
						   walk->pools[device][next(walk, POOLS)], stream);
	object.value = pointer;
	note(walk, result, object);
}

/* A captured allocation; half of them are freed by the graph itself. */
static void run_graph(struct walk *walk, int device)
{
	struct object object = {.kind = GRAPH, .device = device};
	CUstream stream = walk->streams[device][next(walk, STREAMS)];
	bool freed = next(walk, 2);
	CUdeviceptr pointer = 0;
	CUgraphExec exec;
	CUgraph graph;
	CUresult result;

	OK(cuCtxSetCurrent(walk->primary[device]));
	OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
	OK(cuMemAllocAsync(&pointer, any_size(walk), stream));
	if (freed)
		OK(cuMemFreeAsync(pointer, stream));
	OK(cuStreamEndCapture(stream, &graph));
	OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
	result = cuGraphLaunch(exec, stream);
	if (freed && result == CUDA_SUCCESS && next(walk, 2))
		result = cuGraphLaunch(exec, stream);
	OK(cuGraphExecDestroy(exec));
	OK(cuGraphDestroy(graph));
	object.value = pointer;
	if (!freed || result != CUDA_SUCCESS)
		note(walk, result, object);
}

static void make_something(struct walk *walk, int device)
{
	static void (*const ways[])(struct walk *, int) = {
		allocate, create_handle, create_array, import_memory, allocate_in_order, run_graph};

	if (new_object(walk))
		ways[next(walk, sizeof(ways) / sizeof(ways[0]))](walk, device);
}

static void gone(struct walk *walk, struct object *object)
{
	walk->charged[object->device] -= object->bytes;
	*object = (struct object){0};
}

static void free_pointer(struct walk *walk, struct object *object)
{
	CUstream stream = any_stream(walk, object->device);

	if (next(walk, 2)) {
		OK(cuMemFree_v2(object->value));
		gone(walk, object);
		return;
	}
	OK(cuMemFreeAsync(object->value, stream));
	walk->late[object->device] += object->bytes; /* charged until it is waited for */
	*object = (struct object){0};
}

static void map_or_release(struct walk *walk, struct object *object)
{
	CUmemGenericAllocationHandle again;
	CUdeviceptr space;

	if (next(walk, 2)) {
		OK(cuMemRelease(object->value));
		gone(walk, object);
		return;
	}
	OK(cuMemAddressReserve(&space, object->bytes, 0, 0, 0));
	OK(cuMemMap(space, object->bytes, 0, object->value, 0));
	OK(cuMemRelease(object->value));
	OK(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)space));
	OK(cuMemRelease(again));
	object->kind = MAPPING;
	object->value = space;
}

static void destroy_something(struct walk *walk)
{
	struct object *object = any_object(walk);

	if (!object)
		return;
	switch (object->kind) {
	case HANDLE:
		map_or_release(walk, object);
		return;
	case MAPPING:
		OK(cuMemUnmap(object->value, object->bytes));
		OK(cuMemAddressFree(object->value, object->bytes));
		break;
	case ARRAY:
		OK(cuArrayDestroy((CUarray)(uintptr_t)object->value));
		break;
	case LEVELS:
		OK(cuMipmappedArrayDestroy((CUmipmappedArray)(uintptr_t)object->value));
		break;
	case EXTERNAL:
		OK(cuDestroyExternalMemory((CUexternalMemory)(uintptr_t)object->value));
		break;
	default:
		free_pointer(walk, object);
		return;
	}
	gone(walk, object);
}

static void occupy(struct walk *walk, int device)
{
	CUstream stream = any_stream(walk, device);
	uint64_t ns = next(walk, 20000);
	void *params[] = {&ns};
	CUmodule module;
	CUfunction busy;

	OK(cuModuleLoadData(&module, "x"));
	OK(cuModuleGetFunction(&busy, module, "busy_ns"));
	OK(cuLaunchKernel(busy, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
	OK(cuModuleUnload(module));
}

static void tune(struct walk *walk, int device)
{
	CUmemoryPool pool = walk->pools[device][next(walk, POOLS)];
	cuuint64_t threshold = next(walk, 2) ? next(walk, 400) * MIB : 0;

	switch (next(walk, 4)) {
	case 0:
		OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
		break;
	case 1:
		OK(cuMemPoolTrimTo(pool, threshold));
		break;
	case 2:
		OK(cuDeviceSetMemPool(device, pool));
		break;
	default:
		OK(cuDeviceGraphMemTrim(device));
	}
}

/* What the program had of the old one may still be on its way to be free. */
static void replace_pool(struct walk *walk, int device)
{
	CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
				.location = {CU_MEM_LOCATION_TYPE_DEVICE, device}};
	CUmemoryPool *pool = &walk->pools[device][1 + next(walk, POOLS - 1)], fresh;

	for (int i = 0; i < OBJECTS; i++)
		if (walk->objects[i].kind == POOLED && walk->objects[i].device == device)
			free_pointer(walk, &walk->objects[i]);
	OK(cuMemPoolCreate(&fresh, &props));
	OK(cuMemPoolDestroy(*pool));
	*pool = fresh;
}

static void export_one(struct walk *walk)
{
	struct object *object = any_object(walk);
	CUmemGenericAllocationHandle imported;
	int fd;

	if (!object || object->kind != HANDLE)
		return;
	OK(cuMemExportToShareableHandle(&fd, object->value, FILE_DESCRIPTOR, 0));
	OK(cuMemImportFromShareableHandle(&imported, (void *)(intptr_t)fd, FILE_DESCRIPTOR));
	close(fd);
	OK(cuMemRelease(imported));
	OK(cuMemRelease(object->value));
	gone(walk, object);
}

/* ---- contexts */

static void start_device(struct walk *walk, int device)
{
	OK(cuDevicePrimaryCtxRetain(&walk->primary[device], device));
	OK(cuCtxSetCurrent(walk->primary[device]));
	for (int i = 0; i < STREAMS; i++)
		OK(cuStreamCreate(&walk->streams[device][i], 0));
}

static void lose(struct walk *walk, int device, bool own)
{
	for (int i = 0; i < OBJECTS; i++) {
		struct object *object = &walk->objects[i];

		if (object->kind == NOTHING || object->device != device || object->own != own ||
		    object->kind == HANDLE || object->kind == MAPPING)
			continue;
		gone(walk, object);
	}
}

static void change_context(struct walk *walk, int device)
{
	if (!walk->own[device]) {
		OK(cuCtxCreate_v2(&walk->own[device], 0, device));
		OK(cuCtxPopCurrent_v2(&walk->own[device]));
		return;
	}
	OK(cuCtxDestroy_v2(walk->own[device]));
	walk->own[device] = NULL;
	lose(walk, device, true);
}

static void reset(struct walk *walk, int device)
{
	compare(walk);
	OK(next(walk, 2) ? cuDevicePrimaryCtxReset_v2(device)
			 : cuDevicePrimaryCtxRelease_v2(device));
	lose(walk, device, false);
	IS(booked(device), walk->charged[device]);
	start_device(walk, device);
}

/* ---- the walk */

static void step(struct walk *walk)
{
	int device = (int)next(walk, DEVICES);
	uint64_t what = next(walk, 1000);

	if (what < 450)
		make_something(walk, device);
	else if (what < 850)
		destroy_something(walk);
	else if (what < 900)
		occupy(walk, device);
	else if (what < 950)
		tune(walk, device);
	else if (what < 960)
		replace_pool(walk, device);
	else if (what < 965)
		export_one(walk);
	else if (what < 970)
		change_context(walk, device);
	else if (what < 973)
		reset(walk, device);
	else
		compare(walk);
	check_limits();
}

static void wander(struct walk *walk, uint64_t operations)
{
	CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED};

	OK(cuInit(0));
	for (int device = 0; device < DEVICES; device++) {
		start_device(walk, device);
		OK(cuDeviceGetDefaultMemPool(&walk->pools[device][0], device));
		props.location = (CUmemLocation){CU_MEM_LOCATION_TYPE_DEVICE, device};
		for (int i = 1; i < POOLS; i++)
			OK(cuMemPoolCreate(&walk->pools[device][i], &props));
	}
	if (walk->alone)                         /* among others there may be no room */
		OK(cuMemFree_v2(must_alloc(1))); /* there is a region from now on */
	for (uint64_t i = 0; i < operations; i++)
		step(walk);
	while (any_object(walk))
		destroy_something(walk);
	compare(walk);
}

static void one(void)
{
	struct walk walk = {.random = world_setting("VGPU_MODEL_SEED", 1), .alone = true};

	wander(&walk, world_setting("VGPU_MODEL_OPERATIONS", 10000) / 2);
}

static int number;
static struct channel done;

static void among_others(void)
{
	struct walk walk = {.random = world_setting("VGPU_MODEL_SEED", 1) + (uint64_t)number};

	wander(&walk, world_setting("VGPU_MODEL_OPERATIONS", 10000) / 2 / PROCESSES);
	channel_tell(done.up[1]); /* none ends while others allocate */
	channel_hear(done.down[0]);
}

static void all_of_it(void)
{
	use_gpu();
	must_alloc(limits[0] / MIB);
}

int main(void)
{
	int children[PROCESSES];

	world();
	world_grant("uid_gpu", CARD_A, limits[0] / MIB, CARD_B, limits[1] / MIB);
	world_last_card("context_overhead_mib = 37\n");
	fprintf(stderr, "VGPU_MODEL_SEED=%llu\n",
		(unsigned long long)world_setting("VGPU_MODEL_SEED", 1));
	OK(in_child(one));
	channel_open(&done);
	for (number = 0; number < PROCESSES; number++)
		children[number] = start_child(among_others);
	for (int i = 0; i < PROCESSES; i++)
		channel_hear(done.up[0]);
	for (int i = 0; i < PROCESSES; i++)
		channel_tell(done.down[1]);
	for (int i = 0; i < PROCESSES; i++)
		OK(wait_child(children[i]));
	for (int device = 0; device < DEVICES; device++)
		CHECK(card_peak(device) <= limits[device] + (device ? PROCESSES * CONTEXT : 0));
	OK(in_child(all_of_it));
	return 0;
}
