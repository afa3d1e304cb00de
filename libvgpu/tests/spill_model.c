/* SPDX-License-Identifier: Apache-2.0 */
/* Processes of a grant whose share is larger than the card allocate, free, end their
 * contexts and are killed, one random step after another, against a model: what the card
 * has no room for beside what cannot move becomes managed memory, nothing is refused
 * below the limit that can spill, and the books say to the byte how much did.
 *
 * VGPU_MODEL_OPERATIONS says how many steps (10,000), VGPU_MODEL_SEED where to begin. */
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "world.h"

unsigned long long simOnHost(int card);

#define CARD 1 /* of 16384 MiB */
#define CARD_BYTES (16384 * MIB)
#define LIMIT_MIB 20000
#define CONTEXT_MIB 37
#define PROCESSES 4
#define OBJECTS 40

enum step { ALLOCATE, FREE, CREATE, RELEASE, RESET, LOOK };
enum kind { NOTHING, FIXED, SPILLED, HANDLE };

static struct board {
	enum step step;
	int object;
	uint64_t bytes;
	CUresult result;
} *board;

static struct object {
	enum kind kind;
	int process;
	uint64_t bytes;
} objects[OBJECTS];
static struct process {
	int pid, to[2], from[2];
} processes[PROCESSES];
static int self;
static uint64_t seed;

static uint64_t next(uint64_t range)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (seed >> 33) % range;
}

/* ---- in a process */

static CUresult obey_one(void)
{
	static CUdeviceptr pointers[OBJECTS];
	static CUmemGenericAllocationHandle handles[OBJECTS];
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, CARD}};
	CUcontext context;
	CUdeviceptr none;

	switch (board->step) {
	case ALLOCATE:
		return cuMemAlloc_v2(&pointers[board->object], board->bytes);
	case FREE:
		return cuMemFree_v2(pointers[board->object]);
	case CREATE:
		return cuMemCreate(&handles[board->object], board->bytes, &prop, 0);
	case RELEASE:
		return cuMemRelease(handles[board->object]);
	case RESET:
		OK(cuDevicePrimaryCtxReset_v2(CARD));
		return cuDevicePrimaryCtxRetain(&context, CARD);
	default:
		IS(cuMemAlloc_v2(&none, 2 * LIMIT_MIB * MIB), CUDA_ERROR_OUT_OF_MEMORY);
		return CUDA_SUCCESS;
	}
}

static void obey(void)
{
	struct process *process = &processes[self];
	CUcontext context;

	OK(cuInit(0));
	OK(cuDevicePrimaryCtxRetain(&context, CARD));
	OK(cuCtxSetCurrent(context));
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

static CUresult tell(int process, enum step step, int object, uint64_t bytes)
{
	*board = (struct board){.step = step, .object = object, .bytes = bytes};
	channel_tell(processes[process].to[1]);
	channel_hear(processes[process].from[0]);
	return board->result;
}

/* ---- the model */

static uint64_t sum_of(enum kind kind)
{
	uint64_t sum = 0;

	for (int i = 0; i < OBJECTS; i++)
		if (objects[i].kind == kind)
			sum += objects[i].bytes;
	return sum;
}

static uint64_t fixed(void)
{
	return PROCESSES * CONTEXT_MIB * MIB + sum_of(FIXED) + sum_of(HANDLE);
}

static uint64_t charged(void)
{
	return sum_of(FIXED) + sum_of(HANDLE) + sum_of(SPILLED);
}

static void compare(void)
{
	static struct vgpu_region *region;
	uint64_t used = 0, spilled = 0;

	if (!region)
		region = world_region("uid_over");
	for (int i = 0; i < VGPU_REGION_SLOTS; i++)
		if (region->slots[i].state == VGPU_SLOT_LIVE) {
			used += region->slots[i].used_bytes[0];
			spilled += region->slots[i].used_bytes[VGPU_MAX_DEVICES - 1];
		}
	IS(region->devices[0].used_bytes, charged());
	IS(used, charged());
	IS(spilled, sum_of(SPILLED));
	IS(card_used(CARD) + simOnHost(CARD), fixed() + sum_of(SPILLED));
	CHECK(card_used(CARD) >= fixed() && card_used(CARD) <= CARD_BYTES);
}

/* Managed memory makes room for what cannot move. */
static void make(int process, int index)
{
	uint64_t bytes = (1 + next(700)) * 2 * MIB;
	bool handle = next(3) == 0, allowed = charged() + bytes <= LIMIT_MIB * MIB;
	bool has_room = fixed() + bytes <= CARD_BYTES;
	CUresult result = tell(process, handle ? CREATE : ALLOCATE, index, bytes);

	if (!allowed || (handle && !has_room)) {
		IS(result, CUDA_ERROR_OUT_OF_MEMORY);
		return;
	}
	OK(result);
	objects[index] = (struct object){handle     ? HANDLE
					 : has_room ? FIXED
						    : SPILLED,
					 process, bytes};
}

static void let_go(struct object *object, int index)
{
	OK(tell(object->process, object->kind == HANDLE ? RELEASE : FREE, index, 0));
	object->kind = NOTHING;
}

static void lose(int process, bool handles)
{
	for (int i = 0; i < OBJECTS; i++)
		if (objects[i].process == process && (handles || objects[i].kind != HANDLE))
			objects[i].kind = NOTHING;
}

static void end(int process)
{
	kill(processes[process].pid, SIGKILL);
	wait_child(processes[process].pid);
	lose(process, true);
	start(process);
	OK(tell(process, LOOK, 0, 0)); /* which makes it find the dead one's bytes */
}

static void step(void)
{
	int process = (int)next(PROCESSES), index = (int)next(OBJECTS);
	uint64_t what = next(1000);

	if (what < 3) {
		end(process);
	} else if (what < 8) {
		OK(tell(process, RESET, 0, 0));
		lose(process, false);
	} else if (objects[index].kind == NOTHING) {
		make(process, index);
	} else if (what < 600) {
		let_go(&objects[index], index);
	}
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
	world_grant("uid_over", CARD_B, LIMIT_MIB, NULL, 0);
	world_set_flags("uid_over", 0, VGPU_GRANT_SPILL);
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	CHECK(board != MAP_FAILED);
	for (int i = 0; i < PROCESSES; i++) {
		CHECK(pipe(processes[i].to) == 0 && pipe(processes[i].from) == 0);
		start(i);
	}
	OK(tell(0, LOOK, 0, 0));
	for (uint64_t i = 0; i < count; i++)
		step();
	for (int i = 0; i < PROCESSES; i++) {
		kill(processes[i].pid, SIGKILL);
		wait_child(processes[i].pid);
	}
	IS(card_used(CARD) + simOnHost(CARD), 0);
	return 0;
}
