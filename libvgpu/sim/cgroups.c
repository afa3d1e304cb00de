/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory limits of control groups as drivers from 615 on have them, by the driver's own
 * accounting (its "misc" backend): the limit of the nearest limited group above a process
 * holds, and those further up do not. All memory of the card counts but managed memory.
 * A group that is gone has no limit.
 *
 * VGPU_SIM_CGROUP names a process's group where tests cannot make one.
 */
#include "cgroups.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NO_LIMIT UINT64_MAX

void sim_cgroup_of_self(char path[SIM_CGROUP])
{
	const char *given = getenv("VGPU_SIM_CGROUP");
	FILE *file = given ? NULL : fopen("/proc/self/cgroup", "re");
	char line[SIM_CGROUP] = "";

	path[0] = 0;
	if (given)
		snprintf(path, SIM_CGROUP, "%s", given);
	while (file && fgets(line, sizeof(line), file))
		if (strncmp(line, "0::/", 4) == 0) /* version 2 */
			snprintf(path, SIM_CGROUP, "/sys/fs/cgroup%.*s",
				 (int)(strcspn(line, "\n") - 3), line + 3);
	if (file)
		fclose(file);
}

static bool is_within(const char *path, const char *group)
{
	size_t length = strlen(group);

	return length && strncmp(path, group, length) == 0 &&
	       (!path[length] || path[length] == '/');
}

struct sim_limit *sim_cgroup_limit(struct sim_state *state, const char *cgroup, int card)
{
	struct sim_limit *nearest = NULL;

	for (int i = 0; i < SIM_LIMITS; i++) {
		struct sim_limit *limit = &state->limits[i];

		if (limit->live && access(limit->cgroup, F_OK) != 0)
			limit->live = 0;
		if (limit->live && limit->card == card && is_within(cgroup, limit->cgroup) &&
		    (!nearest || strlen(limit->cgroup) > strlen(nearest->cgroup)))
			nearest = limit;
	}
	return nearest;
}

uint64_t sim_cgroup_used(const struct sim_state *state, const char *cgroup, int card)
{
	uint64_t used = 0;

	for (int i = 0; i < SIM_PROCESSES; i++) {
		const struct sim_process *process = &state->processes[i];

		if (process->live && is_within(process->cgroup, cgroup))
			used += process->cards[card].used - process->cards[card].managed;
	}
	return used;
}

uint64_t sim_cgroup_room(struct sim_state *state, const char *cgroup, int card)
{
	const struct sim_limit *limit = sim_cgroup_limit(state, cgroup, card);
	uint64_t used;

	if (!limit || limit->hard == NO_LIMIT)
		return NO_LIMIT;
	used = sim_cgroup_used(state, limit->cgroup, card);
	return used < limit->hard ? limit->hard - used : 0;
}

int sim_cgroup_set(struct sim_state *state, const char *cgroup, int card, uint64_t soft,
		   uint64_t hard)
{
	struct sim_limit *limit = sim_cgroup_limit(state, cgroup, card);
	bool none = !soft && hard == NO_LIMIT;

	if (limit && strcmp(limit->cgroup, cgroup) != 0)
		limit = NULL;
	for (int i = 0; i < SIM_LIMITS && !limit; i++)
		if (!state->limits[i].live)
			limit = &state->limits[i];
	if (!limit)
		return -ENOSPC;
	limit->live = !none;
	limit->card = card;
	limit->soft = soft;
	limit->hard = hard;
	snprintf(limit->cgroup, sizeof(limit->cgroup), "%s", cgroup);
	return 0;
}

void sim_limit_figures(int card, uint64_t *total, uint64_t *available)
{
	const struct sim_limit *limit;
	char cgroup[SIM_CGROUP];
	uint64_t room;
	int guard = sim_enter();

	if (guard < 0)
		return;
	sim_cgroup_of_self(cgroup);
	limit = sim_cgroup_limit(sim_shared(), cgroup, card);
	room = sim_cgroup_room(sim_shared(), cgroup, card);
	if (limit && limit->hard < *total)
		*total = limit->hard;
	if (room < *available)
		*available = room;
	sim_leave(guard);
}
