/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that several processes hold, as the simulated libcuda and libnvidia-ml count it.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "state.h"

/* Nobody holds it any more: its memory is free, and the file behind it goes. */
void sim_drop_shared(struct sim_shared *shared)
{
	char name[64], path[512];

	snprintf(name, sizeof(name), "shared-%016llx", (unsigned long long)shared->id);
	sim_path(path, sizeof(path), name);
	unlink(path);
	memset(shared, 0, sizeof(*shared));
}

static bool is_held(const struct sim_shared *shared)
{
	for (unsigned int i = 0; i < SIM_PROCESSES / 64; i++)
		if (shared->holders[i])
			return true;
	return false;
}

void sim_forget_holder(unsigned int process)
{
	for (unsigned int i = 0; i < SIM_SHARED; i++) {
		struct sim_shared *shared = &sim_shared()->shared[i];

		if (!shared->id)
			continue;
		shared->holders[process / 64] &= ~(UINT64_C(1) << process % 64);
		if (!is_held(shared))
			sim_drop_shared(shared);
	}
}

/* Shared memory shows with its maker, and then with whoever holds it first. */
uint64_t sim_shared_of(unsigned int process, int card)
{
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < SIM_SHARED; i++) {
		struct sim_shared *shared = &sim_shared()->shared[i];
		unsigned int whose = shared->maker;

		if (!shared->id || (int)shared->card != card)
			continue;
		if (!(shared->holders[whose / 64] >> whose % 64 & 1))
			for (whose = 0; !(shared->holders[whose / 64] >> whose % 64 & 1);)
				whose++;
		bytes += whose == process ? shared->bytes : 0;
	}
	return bytes;
}

uint64_t sim_shared_on(int card)
{
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < SIM_SHARED; i++) {
		struct sim_shared *shared = &sim_shared()->shared[i];

		if (shared->id && (int)shared->card == card)
			bytes += shared->bytes;
	}
	return bytes;
}
