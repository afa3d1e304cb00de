/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: memory that several processes hold is counted once,
 * as long as one of them lives and holds it. Its content is a file.
 */
#include "shares.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"

#define PAGE 4096

static struct held { /* by this process */
	uint64_t id;
	unsigned int count;
} held[SIM_SHARED];

static struct held *find_held(uint64_t id)
{
	for (unsigned int i = 0; i < SIM_SHARED; i++)
		if (held[i].id == id)
			return &held[i];
	return NULL;
}

static struct sim_shared *find(uint64_t id)
{
	struct sim_shared *shared = sim_shared()->shared;

	for (unsigned int i = 0; i < SIM_SHARED; i++)
		if (shared[i].id == id)
			return &shared[i];
	return NULL;
}

uint64_t sim_share_number(void)
{
	uint64_t number = 0;

	while (!number)
		if (getrandom(&number, sizeof(number), 0) != (ssize_t)sizeof(number))
			number = 0;
	return number;
}

static int hold(struct sim_shared *shared, uint64_t id, int self)
{
	struct held *mine = find_held(id) ? find_held(id) : find_held(0);

	if (!mine)
		return -ENOMEM;
	mine->id = id;
	mine->count++;
	shared->holders[self / 64] |= UINT64_C(1) << self % 64;
	return 0;
}

int sim_share_new(uint64_t id, int card, uint64_t bytes)
{
	struct sim_shared *place;
	struct sim_use *use;
	int guard = sim_enter(), self = guard < 0 ? guard : sim_self(guard), result = self;

	place = find(0);
	if (self >= 0 && !place)
		result = -ENOMEM;
	if (result >= 0) {
		result = hold(place, id, self);
		place->card = (uint32_t)card;
		place->maker = (uint32_t)self;
		place->bytes = bytes;
		place->id = id;
		use = &sim_shared()->processes[self].cards[card];
		use->used -= use->used < bytes ? use->used : bytes;
	}
	if (guard >= 0)
		sim_leave(guard);
	return result;
}

int sim_share_join(uint64_t id)
{
	struct sim_shared *shared;
	int guard = sim_enter(), self = guard < 0 ? guard : sim_self(guard), result = self;

	if (self >= 0) {
		sim_prune(guard);
		shared = id ? find(id) : NULL;
		result = shared ? hold(shared, id, self) : -ENOENT;
	}
	if (guard >= 0)
		sim_leave(guard);
	return result;
}

void sim_share_leave(uint64_t id)
{
	struct held *mine = find_held(id);
	struct sim_shared *shared;
	int guard, self;
	bool any = false;

	if (!mine || --mine->count)
		return;
	mine->id = 0;
	guard = sim_enter();
	if (guard < 0)
		return;
	self = sim_self(guard);
	shared = find(id);
	if (shared && self >= 0) {
		shared->holders[self / 64] &= ~(UINT64_C(1) << self % 64);
		for (unsigned int i = 0; i < SIM_PROCESSES / 64; i++)
			any = any || shared->holders[i];
		if (!any)
			sim_drop_shared(shared);
	}
	sim_leave(guard);
}

int sim_share_card(uint64_t id)
{
	struct sim_shared *shared;
	int guard = sim_enter(), card = -1;

	if (guard < 0)
		return -1;
	shared = id ? find(id) : NULL;
	if (shared)
		card = (int)shared->card;
	sim_leave(guard);
	return card;
}

static int open_content(uint64_t id, int flags)
{
	char name[64], path[512];

	snprintf(name, sizeof(name), "shared-%016llx", (unsigned long long)id);
	sim_path(path, sizeof(path), name);
	return open(path, flags | O_RDWR | O_CLOEXEC, 0666);
}

/* Only what was ever touched is copied. */
static bool copy(int fd, const char *memory, size_t bytes)
{
	unsigned char there;

	for (size_t at = 0; at < bytes; at += PAGE) {
		size_t part = bytes - at < PAGE ? bytes - at : PAGE;

		if (mincore((void *)(uintptr_t)(memory + at), part, &there) != 0)
			return false;
		if ((there & 1) && pwrite(fd, memory + at, part, (off_t)at) != (ssize_t)part)
			return false;
	}
	return true;
}

bool sim_share_file(uint64_t id, void *memory, size_t bytes)
{
	int fd = open_content(id, O_CREAT | O_EXCL);
	bool done = fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && copy(fd, memory, bytes) &&
		    mmap(memory, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) !=
			    MAP_FAILED;

	if (fd >= 0) {
		fchmod(fd, 0666);
		close(fd);
	}
	return done;
}

void *sim_share_map(uint64_t id, size_t bytes)
{
	int fd = open_content(id, 0);
	void *memory =
		fd < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (fd >= 0)
		close(fd);
	return memory == MAP_FAILED ? NULL : memory;
}
