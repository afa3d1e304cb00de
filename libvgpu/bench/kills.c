/* SPDX-License-Identifier: Apache-2.0
 *
 * Processes that allocate, free, give each other memory and take it are killed at
 * random moments; others go on working.
 *
 *   kills [COUNT [PROCESSES]]
 *
 * Prints how long it took until the dead ones' bytes were back, seen by a process that
 * asks cuMemGetInfo every millisecond, and how long calls of a bystander took within
 * 20 ms of a kill and otherwise. The books must be right after every kill.
 *
 * What the bystander waits for shall be libvgpu, and not a turn on a core or the lock of
 * the simulated driver, which a process holds that is waiting for its turn. So it has a
 * core of its own, with the one that asks, goes first there if it may, and its waiting in
 * the driver is taken off.
 */
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "world.h"

#define MOST_VICTIMS 64
#define LIMIT_MIB_EACH 500 /* of victims: seldom too little */
#define BOARD 4
#define MOST 1000000
#define CALLS 4000000
#define AFTER_NS 20000000u
#define BACK_NS 1000000000u
#define DELAY_NS 1000000u

static struct shared {
	CUipcMemHandle handles[BOARD]; /* torn ones are refused */
	uint64_t killed_ns;            /* when the last one was */
	int dead;                      /* for the looker: whose slot must go */
	uint64_t back_ns;
	bool stop;
	uint32_t near_count, far_count;
	uint32_t near_ns[CALLS], far_ns[CALLS];
} *shared;
static struct channel talk, bystander_talk;
static int limit_mib;
static cpu_set_t bystanders, others;
static const char *where = "among the others";

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void nap_us(unsigned int us)
{
	struct timespec nap = {.tv_nsec = (long)us * 1000};

	nanosleep(&nap, NULL);
}

static void create_and_release(uint64_t bytes)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle, imported;
	int fd;

	if (cuMemCreate(&handle, bytes, &prop, 0) != CUDA_SUCCESS)
		return;
	OK(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	OK(cuMemImportFromShareableHandle(&imported, (void *)(intptr_t)fd,
					  CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
	close(fd);
	OK(cuMemRelease(handle));
	OK(cuMemRelease(imported));
}

static void victim(void)
{
	CUdeviceptr pointers[16] = {0}, opened;
	unsigned int i = (unsigned int)getpid();

	use_gpu();
	for (;; i = i * 1103515245u + 12345u) {
		CUdeviceptr *place = &pointers[(i >> 8) % 16];
		uint64_t bytes = (1 + (i >> 12) % 16) * 2 * MIB;

		if (*place)
			OK(cuMemFree_v2(*place));
		*place = 0;
		switch ((i >> 16) % 6) {
		case 0:
			cuMemAllocAsync(place, bytes, NULL);
			break;
		case 1:
			create_and_release(bytes);
			break;
		case 2:
			if (cuIpcOpenMemHandle_v2(&opened, shared->handles[(i >> 20) % BOARD], 1) ==
			    CUDA_SUCCESS)
				OK(cuIpcCloseMemHandle(opened));
			break;
		default:
			if (cuMemAlloc_v2(place, bytes) == CUDA_SUCCESS && (i >> 20) % 4 == 0)
				OK(cuIpcGetMemHandle(&shared->handles[(i >> 24) % BOARD], *place));
		}
	}
}

/* The first core is the bystander's, if there is another one. */
static void divide_cores(void)
{
	cpu_set_t all;
	int first = 0;

	OK(sched_getaffinity(0, sizeof(all), &all));
	bystanders = others = all;
	if (CPU_COUNT(&all) < 2)
		return;
	while (!CPU_ISSET(first, &all))
		first++;
	CPU_ZERO(&bystanders);
	CPU_SET(first, &bystanders);
	CPU_CLR(first, &others);
	OK(sched_setaffinity(0, sizeof(others), &others));
	where = "on a core of its own";
}

/* Of a call, without what it waited for others in the driver. */
static uint64_t clock_of_calls(void)
{
	return now_ns() - simWaitedNs();
}

static void bystander(void)
{
	struct sched_param first = {.sched_priority = 1};

	OK(sched_setaffinity(0, sizeof(bystanders), &bystanders));
	(void)sched_setscheduler(0, SCHED_FIFO, &first); /* needs CAP_SYS_NICE */
	use_gpu();
	channel_tell(bystander_talk.up[1]);
	while (!__atomic_load_n(&shared->stop, __ATOMIC_RELAXED)) {
		uint64_t from = clock_of_calls(), took;
		CUdeviceptr pointer;

		if (cuMemAlloc_v2(&pointer, 2 * MIB) == CUDA_SUCCESS)
			OK(cuMemFree_v2(pointer));
		took = clock_of_calls() - from;
		if (now_ns() - __atomic_load_n(&shared->killed_ns, __ATOMIC_RELAXED) < AFTER_NS) {
			if (shared->near_count < CALLS)
				shared->near_ns[shared->near_count++] = (uint32_t)took;
		} else if (shared->far_count < CALLS) {
			shared->far_ns[shared->far_count++] = (uint32_t)took;
		}
		nap_us(200);
	}
}

static bool is_back(const struct vgpu_region *region)
{
	for (int i = 0; i < VGPU_REGION_SLOTS; i++)
		if (region->slots[i].state == VGPU_SLOT_LIVE &&
		    region->slots[i].pid == (uint32_t)shared->dead)
			return false;
	return true;
}

static void look(void)
{
	struct vgpu_region *region;
	size_t available, total;

	OK(sched_setaffinity(0, sizeof(bystanders), &bystanders));
	use_gpu();
	OK(cuMemFree_v2(must_alloc(2)));
	region = world_region("uid_gpu");
	for (;;) {
		channel_tell(talk.up[1]);
		channel_hear(talk.down[0]);
		do {
			OK(cuMemGetInfo_v2(&available, &total));
			shared->back_ns = now_ns() - shared->killed_ns;
			if (is_back(region))
				break;
			nap_us(1000);
		} while (shared->back_ns < 10 * (uint64_t)BACK_NS);
		CHECK(is_back(region));
		CHECK(region->devices[0].used_bytes <= (uint64_t)limit_mib * MIB);
	}
}

static int compare(const void *a, const void *b)
{
	uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

	return left < right ? -1 : left > right;
}

static double at_us(uint32_t *values, uint32_t count, double part)
{
	if (!count)
		return 0;
	qsort(values, count, sizeof(*values), compare);
	return values[(uint32_t)((count - 1) * part)] / 1e3;
}

static void all_of_it(void)
{
	use_gpu();
	must_alloc((uint64_t)limit_mib);
}

static const char *judge(bool held)
{
	return held ? "held" : "not held";
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 300, victims[MOST_VICTIMS], looker, other;
	int processes = argc > 2 ? atoi(argv[2]) : 6;
	static uint32_t back[MOST];
	int middle = count / 2;
	double near99, far99;

	CHECK(processes > 0 && processes <= MOST_VICTIMS);
	limit_mib = processes * LIMIT_MIB_EACH;
	divide_cores();
	world();
	world_grant("uid_gpu", CARD_A, (uint64_t)limit_mib, NULL, 0);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	CHECK(count > 0 && count <= MOST && shared != MAP_FAILED);
	channel_open(&talk);
	channel_open(&bystander_talk);
	looker = start_child(look);
	channel_hear(talk.up[0]);
	other = start_child(bystander);
	channel_hear(bystander_talk.up[0]);
	for (int i = 0; i < processes; i++)
		victims[i] = start_child(victim);
	srand(7);
	for (int i = 0; i < count; i++) {
		int *one = &victims[rand() % processes];

		nap_us((unsigned int)rand() % 10000);
		shared->dead = *one;
		kill(*one, SIGKILL);
		__atomic_store_n(&shared->killed_ns, now_ns(), __ATOMIC_SEQ_CST);
		IS(wait_child(*one), 128 + SIGKILL);
		channel_tell(talk.down[1]);
		channel_hear(talk.up[0]);
		back[i] = (uint32_t)(shared->back_ns / 1000);
		*one = start_child(victim);
	}
	__atomic_store_n(&shared->stop, true, __ATOMIC_RELAXED);
	OK(wait_child(other));
	kill(looker, SIGKILL);
	wait_child(looker);
	for (int i = 0; i < processes; i++) {
		kill(victims[i], SIGKILL);
		wait_child(victims[i]);
	}
	OK(in_child(all_of_it));
	IS(card_used(0), 0);
	near99 = at_us(shared->near_ns, shared->near_count, 0.99);
	qsort(back, (size_t)count, sizeof(*back), compare);
	far99 = at_us(shared->far_ns, shared->far_count, 0.99);
	printf("%d kills among %d processes: bytes back after ms %.1f (p99 %.1f, worst %.1f); "
	       "target <= 1000: %s\n",
	       count, processes, back[middle] / 1e3, back[(int)((count - 1) * 0.99)] / 1e3,
	       back[count - 1] / 1e3, judge(back[count - 1] <= BACK_NS / 1000));
	printf("an allocation and its end, by a bystander %s, us: within 20 ms of a kill %.1f "
	       "(p99 %.1f) of %u, otherwise %.1f (p99 %.1f) of %u; target: p99 <= 1000: %s\n",
	       where, at_us(shared->near_ns, shared->near_count, 0.5), near99, shared->near_count,
	       at_us(shared->far_ns, shared->far_count, 0.5), far99, shared->far_count,
	       judge(near99 <= DELAY_NS / 1e3));
	return 0;
}
