/* SPDX-License-Identifier: Apache-2.0 */
/* Processes of two grants on two cards give each other memory, take it, free it,
 * lose it and are killed, one random step after another, against a model: a grant is
 * charged for a piece of memory as long as one of its processes holds it, and the card
 * for as long as anybody does. Processes also change the heap of their kernels, and the
 * node what it has measured beside all that, as of contexts. After every step the books,
 * the cards and the model agree to the byte, and a step is refused if and only if it would
 * pass a limit.
 *
 * VGPU_MODEL_OPERATIONS says how many steps (10,000), VGPU_MODEL_SEED where to begin. */
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "world.h"

#define DEVICES 2
#define GRANTS 2
#define PROCESSES 6 /* the last two are of the second grant */
#define FIRST_OF_SECOND 4
#define OBJECTS 40
#define HANDLE CUmemGenericAllocationHandle
#define FILE_DESCRIPTOR CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

static const uint64_t limits[GRANTS][DEVICES] = {{600 * MIB, 300 * MIB}, {250 * MIB, 200 * MIB}};

#define CONTEXT_MIB 37       /* of the second card, of each process */
#define FIRST_HEAP (8 * MIB) /* a part of contexts */

enum step { ALLOCATE, GIVE, OPEN, CLOSE, FREE, CREATE, EXPORT, IMPORT, RELEASE, RESET, HEAP, LOOK };
enum kind { NOTHING, MEMORY, HANDLED };

/* What the walk tells a process to do, and what comes of it. */
static struct board {
	enum step step;
	int object, device;
	uint64_t bytes;
	CUresult result;
	CUipcMemHandle handles[OBJECTS];
} *board;

struct object {
	enum kind kind;
	int device, maker;
	bool has_handle, given, exported, taken; /* taken: by the maker's own grant */
	bool pinned;                             /* let go by its maker while it may be underway */
	uint64_t bytes;
	unsigned int holds[PROCESSES];
};
static struct object objects[OBJECTS];
static struct process {
	int pid, to[2], from[2];
	uint64_t heaps[DEVICES]; /* beyond the first */
} processes[PROCESSES];
static uint64_t overheads[GRANTS][DEVICES];
static int self;
static uint64_t seed;
static const char *const names[GRANTS] = {"grants/uid_gpu", "others/uid2_gpu"};

static uint64_t next(uint64_t range)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (seed >> 33) % range;
}

static int grant_of(int process)
{
	return process >= FIRST_OF_SECOND;
}

/* ---- in a process */

static CUcontext contexts[DEVICES];
static struct own {
	CUdeviceptr made, opened;
	HANDLE handle;
	CUdeviceptr maps[64];
	unsigned int map_count;
} owns[OBJECTS];

static CUresult import(struct own *own, uint64_t bytes)
{
	int fd = wire_receive();
	CUdeviceptr space;
	HANDLE handle;
	CUresult result;

	OK(cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd, FILE_DESCRIPTOR));
	close(fd);
	OK(cuMemAddressReserve(&space, bytes, 0, 0, 0));
	result = cuMemMap(space, bytes, 0, handle, 0);
	OK(cuMemRelease(handle));
	if (result == CUDA_SUCCESS)
		own->maps[own->map_count++] = space;
	else
		OK(cuMemAddressFree(space, bytes));
	return result;
}

static void release(struct own *own, uint64_t bytes)
{
	if (own->map_count) {
		CUdeviceptr space = own->maps[--own->map_count];

		OK(cuMemUnmap(space, bytes));
		OK(cuMemAddressFree(space, bytes));
	} else {
		OK(cuMemRelease(own->handle));
		own->handle = 0;
	}
}

static void export(struct own *own)
{
	int fd = -1;

	OK(cuMemExportToShareableHandle(&fd, own->handle, FILE_DESCRIPTOR, 0));
	wire_send(fd);
	close(fd);
}

static CUresult obey_one(void)
{
	struct own *own = &owns[board->object];
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, board->device}};
	CUdeviceptr none;

	OK(cuCtxSetCurrent(contexts[board->device]));
	switch (board->step) {
	case ALLOCATE:
		return cuMemAlloc_v2(&own->made, board->bytes);
	case GIVE:
		return cuIpcGetMemHandle(&board->handles[board->object], own->made);
	case OPEN:
		return cuIpcOpenMemHandle_v2(&own->opened, board->handles[board->object],
					     CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
	case CLOSE:
		return cuIpcCloseMemHandle(own->opened);
	case FREE:
		return cuMemFree_v2(own->made);
	case CREATE:
		return cuMemCreate(&own->handle, board->bytes, &prop, 0);
	case EXPORT:
		export(own);
		return CUDA_SUCCESS;
	case IMPORT:
		return import(own, board->bytes);
	case RELEASE:
		release(own, board->bytes);
		return CUDA_SUCCESS;
	case RESET:
		OK(cuDevicePrimaryCtxReset_v2(board->device));
		return cuDevicePrimaryCtxRetain(&contexts[board->device], board->device);
	case HEAP:
		return cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, FIRST_HEAP + board->bytes);
	default:
		IS(cuMemAlloc_v2(&none, 30000 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
		return CUDA_SUCCESS;
	}
}

static void obey(void)
{
	struct process *process = &processes[self];

	if (grant_of(self))
		setenv("VGPU_GRANT_ROOT", world_path("others"), 1);
	OK(cuInit(0));
	for (int device = 0; device < DEVICES; device++)
		OK(cuDevicePrimaryCtxRetain(&contexts[device], device));
	channel_tell(process->from[1]);
	for (;;) {
		channel_hear(process->to[0]);
		board->result = obey_one();
		channel_tell(process->from[1]);
	}
}

static void start(int number)
{
	self = number;
	processes[number].pid = start_child(obey);
	channel_hear(processes[number].from[0]);
}

static CUresult tell(int process, enum step step, int object, int device, uint64_t bytes)
{
	board->step = step;
	board->object = object;
	board->device = device;
	board->bytes = bytes;
	channel_tell(processes[process].to[1]);
	channel_hear(processes[process].from[0]);
	if (getenv("VGPU_MODEL_TRACE"))
		fprintf(stderr, "process %d step %d object %d device %d bytes %llu: %d\n", process,
			(int)step, object, device, (unsigned long long)bytes, board->result);
	return board->result;
}

/* ---- the model */

static bool held_by(const struct object *object, int grant)
{
	for (int i = 0; i < PROCESSES; i++)
		if (grant_of(i) == grant && object->holds[i])
			return true;
	return false;
}

static uint64_t charged(int grant, int device)
{
	uint64_t sum = 0;

	for (int i = 0; i < OBJECTS; i++)
		if (objects[i].kind != NOTHING && objects[i].device == device &&
		    (held_by(&objects[i], grant) ||
		     (objects[i].pinned && grant_of(objects[i].maker) == grant)))
			sum += objects[i].bytes;
	for (int i = 0; i < PROCESSES; i++)
		if (grant_of(i) == grant)
			sum += processes[i].heaps[device];
	return sum;
}

/* Heaps are not taken yet: no module is loaded. */
static uint64_t on_card(int device)
{
	uint64_t sum = device == DEVICES - 1 ? PROCESSES * CONTEXT_MIB * MIB : 0;

	for (int i = 0; i < OBJECTS; i++)
		if (objects[i].kind != NOTHING && objects[i].device == device &&
		    (held_by(&objects[i], 0) || held_by(&objects[i], 1)))
			sum += objects[i].bytes;
	return sum;
}

static struct vgpu_region *books(int grant)
{
	static struct vgpu_region *regions[GRANTS];
	FILE *file;

	if (regions[grant])
		return regions[grant];
	file = fopen(world_path("%s/region/region", names[grant]), "r+e");
	if (!file)
		return NULL;
	regions[grant] = mmap(NULL, sizeof(struct vgpu_region), PROT_READ | PROT_WRITE, MAP_SHARED,
			      fileno(file), 0);
	CHECK(regions[grant] != MAP_FAILED);
	fclose(file);
	return regions[grant];
}

static void compare(void)
{
	for (int device = 0; device < DEVICES; device++) {
		for (int grant = 0; grant < GRANTS; grant++) {
			uint64_t sum = 0;

			if (!books(grant))
				continue;
			IS(books(grant)->devices[device].used_bytes, charged(grant, device));
			for (int i = 0; i < VGPU_REGION_SLOTS; i++)
				sum += books(grant)->slots[i].used_bytes[device];
			IS(sum, charged(grant, device));
			CHECK(sum <= limits[grant][device]);
		}
		IS(card_used(device), on_card(device));
	}
}

/* A step that charges `bytes` more: refused if and only if they do not fit. */
static bool agreed(CUresult result, int grant, int device, uint64_t bytes)
{
	bool fits = !bytes || charged(grant, device) + overheads[grant][device] + bytes <=
				      limits[grant][device];

	IS(result, fits ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
	return fits;
}

static void forget_unheld(struct object *object)
{
	if (!held_by(object, 0) && !held_by(object, 1) && !object->pinned)
		*object = (struct object){0};
}

static void make(int process, int index)
{
	struct object fresh = {.kind = next(2) ? MEMORY : HANDLED,
			       .device = (int)next(DEVICES),
			       .maker = process,
			       .bytes = (1 + next(40)) * 2 * MIB};
	CUresult result = tell(process, fresh.kind == MEMORY ? ALLOCATE : CREATE, index,
			       fresh.device, fresh.bytes);

	if (!agreed(result, grant_of(process), fresh.device, fresh.bytes))
		return;
	fresh.holds[process] = 1;
	fresh.has_handle = fresh.kind == HANDLED;
	objects[index] = fresh;
}

static void open_memory(int process, int index)
{
	struct object *object = &objects[index];
	bool paid = held_by(object, grant_of(process));
	CUresult result;

	if (process == object->maker || !object->holds[object->maker])
		return;
	if (!object->given)
		OK(tell(object->maker, GIVE, index, object->device, 0));
	object->given = true;
	result = tell(process, OPEN, index, object->device, 0);
	if (agreed(result, grant_of(process), object->device, paid ? 0 : object->bytes))
		object->holds[process]++;
}

static void import_memory(int process, int index)
{
	struct object *object = &objects[index];
	bool paid = held_by(object, grant_of(process));
	CUresult result;

	if (!object->has_handle || object->holds[process] > 20)
		return;
	OK(tell(object->maker, EXPORT, index, object->device, 0));
	object->exported = true;
	result = tell(process, IMPORT, index, object->device, object->bytes);
	if (!agreed(result, grant_of(process), object->device, paid ? 0 : object->bytes))
		return;
	object->holds[process]++;
	object->taken = object->taken || grant_of(process) == grant_of(object->maker);
}

static void let_go(int process, int index)
{
	struct object *object = &objects[index];
	enum step step = object->kind == HANDLED    ? RELEASE
			 : process == object->maker ? FREE
						    : CLOSE;

	OK(tell(process, step, index, object->device, object->bytes));
	object->holds[process]--;
	if (process == object->maker && !object->holds[process])
		object->has_handle = false;
	if (process == object->maker && !object->holds[process] && object->exported &&
	    !object->taken)
		object->pinned = true;
	forget_unheld(object);
}

static void change_heap(int process)
{
	int device = (int)next(DEVICES);
	uint64_t bytes = next(40) * 2 * MIB, before = processes[process].heaps[device];
	CUresult result = tell(process, HEAP, 0, device, bytes);

	if (agreed(result, grant_of(process), device, bytes > before ? bytes - before : 0))
		processes[process].heaps[device] = bytes;
}

/* As the node does, once it has seen more of a grant on the card than was charged. */
static void measure(int grant, int device)
{
	if (!books(grant))
		return;
	overheads[grant][device] = next(3) ? next(60 * MIB) : 0;
	__atomic_store_n(&books(grant)->devices[device].overhead_bytes, overheads[grant][device],
			 __ATOMIC_SEQ_CST);
}

/* A context takes along what was allocated and opened in it. */
static void reset(int process)
{
	int device = (int)next(DEVICES);

	OK(tell(process, RESET, 0, device, 0));
	processes[process].heaps[device] = 0;
	for (int i = 0; i < OBJECTS; i++)
		if (objects[i].kind == MEMORY && objects[i].device == device) {
			objects[i].holds[process] = 0;
			forget_unheld(&objects[i]);
		}
}

static void end(int process)
{
	kill(processes[process].pid, SIGKILL);
	wait_child(processes[process].pid);
	for (int device = 0; device < DEVICES; device++)
		processes[process].heaps[device] = 0;
	for (int i = 0; i < OBJECTS; i++) {
		objects[i].holds[process] = 0;
		if (objects[i].maker == process)
			objects[i].pinned = objects[i].has_handle = false;
		forget_unheld(&objects[i]);
	}
	start(process);
	OK(tell(process, LOOK, 0, 0, 0)); /* which makes it find the dead one's bytes */
}

static void step(void)
{
	int process = (int)next(PROCESSES), index = (int)next(OBJECTS);
	struct object *object = &objects[index];
	uint64_t what = next(1000);

	if (what < 3)
		end(process);
	else if (what < 8)
		reset(process);
	else if (what < 30)
		change_heap(process);
	else if (what < 40)
		measure(grant_of(process), (int)next(DEVICES));
	else if (object->kind == NOTHING)
		make(process, index);
	else if (what < 450 && object->holds[process])
		let_go(process, index);
	else if (object->kind == MEMORY)
		open_memory(process, index);
	else
		import_memory(process, index);
	compare();
}

int main(void)
{
	uint64_t count = world_setting("VGPU_MODEL_OPERATIONS", 10000);
	char line[64];

	seed = world_setting("VGPU_MODEL_SEED", 1);
	fprintf(stderr, "VGPU_MODEL_SEED=%llu\n", (unsigned long long)seed);
	world();
	snprintf(line, sizeof(line), "context_overhead_mib = %d\n", CONTEXT_MIB);
	world_last_card(line);
	world_grant("uid_gpu", CARD_A, limits[0][0] / MIB, CARD_B, limits[0][1] / MIB);
	world_grant_both_at("others", "uid2_gpu", CARD_A, limits[1][0] / MIB, CARD_B,
			    limits[1][1] / MIB);
	wire_open();
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	CHECK(board != MAP_FAILED);
	for (int i = 0; i < PROCESSES; i++) {
		CHECK(pipe(processes[i].to) == 0 && pipe(processes[i].from) == 0);
		start(i);
	}
	for (uint64_t i = 0; i < count; i++)
		step();
	for (int i = 0; i < PROCESSES; i++) {
		kill(processes[i].pid, SIGKILL);
		wait_child(processes[i].pid);
	}
	IS(card_used(0) + card_used(1), 0);
	return 0;
}
