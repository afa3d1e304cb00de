/* SPDX-License-Identifier: Apache-2.0
 *
 * What each live device pointer was charged, and to which card; and the same for
 * handles and mappings. 64 open-addressing shards with a lock each, so that
 * threads that allocate at the same time do not meet. Memory comes from mmap: the program's malloc
 * may be one that allocates device memory.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "vgpu.h"

#define SHARDS 64
#define FIRST_CAPACITY 128

struct shard {
	struct vgpu_lock lock;
	struct vgpu_pointer *places;
	size_t capacity; /* a power of two */
	size_t count;
};

static struct shard shards[VGPU_TABLE_COUNT][SHARDS];

static uint64_t mix(uint64_t value)
{
	value ^= value >> 31;
	value *= 0x9e3779b97f4a7c15u;
	return value ^ (value >> 29);
}

static struct shard *shard_of(enum vgpu_table table, uint64_t address)
{
	return &shards[table][mix(address) % SHARDS];
}

static size_t home(const struct shard *shard, uint64_t address)
{
	return (size_t)(mix(address) >> 6) & (shard->capacity - 1);
}

static void place(struct shard *shard, const struct vgpu_pointer *pointer)
{
	size_t i = home(shard, pointer->address);

	while (shard->places[i].address && shard->places[i].address != pointer->address)
		i = (i + 1) & (shard->capacity - 1);
	if (!shard->places[i].address)
		shard->count++;
	shard->places[i] = *pointer;
}

static int grow(struct shard *shard)
{
	struct shard bigger = {.capacity = shard->capacity ? shard->capacity * 2 : FIRST_CAPACITY};
	void *memory = mmap(NULL, bigger.capacity * sizeof(struct vgpu_pointer),
			    PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return -ENOMEM;
	bigger.places = memory;
	for (size_t i = 0; i < shard->capacity; i++)
		if (shard->places[i].address)
			place(&bigger, &shard->places[i]);
	if (shard->places)
		munmap(shard->places, shard->capacity * sizeof(struct vgpu_pointer));
	shard->places = bigger.places;
	shard->capacity = bigger.capacity;
	return 0;
}

int vgpu_pointer_add(enum vgpu_table table, const struct vgpu_pointer *pointer)
{
	struct shard *shard = shard_of(table, pointer->address);
	int result = 0;

	vgpu_lock(&shard->lock);
	if (shard->count * 4 >= shard->capacity * 3)
		result = grow(shard);
	if (result == 0)
		place(shard, pointer);
	vgpu_unlock(&shard->lock);
	return result;
}

/* Closes the gap by moving later members of the run back: no tombstones. */
static void erase(struct shard *shard, size_t gap)
{
	size_t mask = shard->capacity - 1;

	for (size_t i = (gap + 1) & mask; shard->places[i].address; i = (i + 1) & mask) {
		size_t wanted = home(shard, shard->places[i].address);

		if (((i - wanted) & mask) >= ((i - gap) & mask)) {
			shard->places[gap] = shard->places[i];
			gap = i;
		}
	}
	memset(&shard->places[gap], 0, sizeof(shard->places[gap]));
	shard->count--;
}

static bool look_up(enum vgpu_table table, uint64_t address, struct vgpu_pointer *pointer,
		    bool take)
{
	struct shard *shard = shard_of(table, address);
	bool found = false;

	if (!address)
		return false;
	vgpu_lock(&shard->lock);
	if (shard->count) {
		size_t i = home(shard, address);

		while (shard->places[i].address && shard->places[i].address != address)
			i = (i + 1) & (shard->capacity - 1);
		found = shard->places[i].address == address;
		if (found)
			*pointer = shard->places[i];
		if (found && take)
			erase(shard, i);
	}
	vgpu_unlock(&shard->lock);
	return found;
}

bool vgpu_pointer_take(enum vgpu_table table, uint64_t address, struct vgpu_pointer *pointer)
{
	return look_up(table, address, pointer, true);
}

bool vgpu_pointer_find(enum vgpu_table table, uint64_t address, struct vgpu_pointer *pointer)
{
	return look_up(table, address, pointer, false);
}

/* Some pointer of a context that is gone. Contexts die rarely: a search will do. */
bool vgpu_pointer_take_context(enum vgpu_table table, CUcontext context,
			       struct vgpu_pointer *pointer)
{
	bool found = false;

	for (size_t s = 0; s < SHARDS && !found; s++) {
		struct shard *shard = &shards[table][s];

		vgpu_lock(&shard->lock);
		for (size_t i = 0; i < shard->capacity && !found; i++) {
			if (!shard->places[i].address || shard->places[i].context != context)
				continue;
			found = true;
			*pointer = shard->places[i];
			erase(shard, i);
		}
		vgpu_unlock(&shard->lock);
	}
	return found;
}

/* The entry that an address lies in. Rarely asked: a search will do. */
bool vgpu_pointer_find_around(enum vgpu_table table, uint64_t address, struct vgpu_pointer *pointer)
{
	bool found = false;

	for (size_t s = 0; s < SHARDS && !found; s++) {
		struct shard *shard = &shards[table][s];

		vgpu_lock(&shard->lock);
		for (size_t i = 0; i < shard->capacity && !found; i++) {
			const struct vgpu_pointer *here = &shard->places[i];

			found = here->address && address >= here->address &&
				address - here->address < here->bytes;
			if (found)
				*pointer = *here;
		}
		vgpu_unlock(&shard->lock);
	}
	return found;
}

/* In a forked child, where any lock may be held by a thread that is not there. */
void vgpu_pointer_forget_all(void)
{
	for (size_t t = 0; t < VGPU_TABLE_COUNT; t++)
		for (size_t s = 0; s < SHARDS; s++) {
			struct shard *shard = &shards[t][s];

			atomic_store(&shard->lock.held, 0);
			if (shard->places)
				memset(shard->places, 0,
				       shard->capacity * sizeof(struct vgpu_pointer));
			shard->count = 0;
		}
}
