/* SPDX-License-Identifier: Apache-2.0
 *
 * Managed memory of the simulated cards. It takes what room the card has, and the
 * host's for the rest; memory that cannot move drives it out, whosever it is. Nothing
 * comes back to the card: a real driver moves pages when they are touched, and here
 * nobody sees kernels touch them.
 */
#include "managed.h"

#include <errno.h>

uint64_t sim_sum_on_host(const struct sim_state *state, int card)
{
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < SIM_PROCESSES; i++)
		if (state->processes[i].live)
			bytes += state->processes[i].cards[card].on_host;
	return bytes;
}

static uint64_t room_on_host(const struct sim_state *state, const struct sim_config *config)
{
	uint64_t used = 0;

	if (!config->host_memory)
		return UINT64_MAX;
	for (int card = 0; card < SIM_UNITS; card++)
		used += sim_sum_on_host(state, card);
	return used < config->host_memory ? config->host_memory - used : 0;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

int sim_managed_take(const struct sim_state *state, const struct sim_config *config,
		     struct sim_use *use, uint64_t bytes, uint64_t room)
{
	uint64_t on_card = least(bytes, room);

	if (bytes - on_card > room_on_host(state, config))
		return -ENOMEM;
	use->used += on_card;
	use->managed += on_card;
	use->on_host += bytes - on_card;
	return 0;
}

/* Which pages were where is not known: those of the host go first. */
void sim_managed_give(struct sim_use *use, uint64_t bytes)
{
	uint64_t gone = least(use->on_host, bytes);

	use->on_host -= gone;
	gone = least(use->managed, bytes - gone);
	use->managed -= gone;
	use->used -= gone;
}

void sim_drive_out(struct sim_state *state, const struct sim_config *config, int card,
		   uint64_t bytes)
{
	for (unsigned int i = 0; i < SIM_PROCESSES && bytes; i++) {
		struct sim_use *use = &state->processes[i].cards[card];
		uint64_t gone = least(least(use->managed, bytes), room_on_host(state, config));

		if (!state->processes[i].live)
			continue;
		use->managed -= gone;
		use->used -= gone;
		use->on_host += gone;
		bytes -= gone;
	}
}
