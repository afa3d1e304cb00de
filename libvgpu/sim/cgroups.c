/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory limits of control groups as drivers from 615 on have them, by the driver's own
 * accounting (its "misc" backend): the limit of the nearest limited group above a process
 * holds, and those further up do not. All memory of the card counts but managed memory.
 * A group that is gone has no limit; who set the limit sees that, and a process need not see
 * its own group.
 *
 * VGPU_SIM_CGROUP names a process's group where tests cannot make one; cgroup_root in
 * cards.ini says where the groups are on a machine that has those of version 1: there a
 * process's longest path counts.
 */
#include "cgroups.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NO_LIMIT UINT64_MAX

/* What does not fit is nowhere: better no limit than another group's. */
static void join(char path[SIM_CGROUP], const char *root, const char *name)
{
	size_t head = strlen(root), tail = strlen(name);

	path[0] = 0;
	if (head + tail >= SIM_CGROUP)
		return;
	memcpy(path, root, head);
	memcpy(path + head, name, tail + 1);
}

void sim_cgroup_of_self(char path[SIM_CGROUP])
{
	const char *given = getenv("VGPU_SIM_CGROUP"), *root = sim_config()->cgroup_root;
	FILE *file = given ? NULL : fopen("/proc/self/cgroup", "re");
	char line[2 * SIM_CGROUP] = "";

	join(path, "", given ? given : "");
	while (file && fgets(line, sizeof(line), file)) {
		const char *name = strchr(line, '/');
		char *end = strchr(line, '\n');

		if (end)
			*end = 0;
		if (strncmp(line, "0::/", 4) == 0 && !*root) /* version 2 */
			join(path, "/sys/fs/cgroup", line + 3);
		else if (name && *root && strlen(root) + strlen(name) > strlen(path))
			join(path, root, name);
	}
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

void sim_cgroup_gone(struct sim_state *state, const char *cgroup)
{
	for (int i = 0; i < SIM_LIMITS; i++)
		if (is_within(state->limits[i].cgroup, cgroup))
			state->limits[i].live = 0;
}

int sim_cgroup_set(struct sim_state *state, const char *cgroup, int card, uint64_t soft,
		   uint64_t hard)
{
	struct sim_limit *limit = sim_cgroup_limit(state, cgroup, card);
	bool none = !soft && hard == NO_LIMIT;

	if (limit && strcmp(limit->cgroup, cgroup) != 0)
		limit = NULL;
	for (int i = 0; i < SIM_LIMITS && !limit; i++)
		if (!state->limits[i].live || access(state->limits[i].cgroup, F_OK) != 0)
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
