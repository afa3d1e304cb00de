/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory limits of control groups: see cgroups.c. With the lock over all processes held.
 */
#ifndef VGPU_SIM_CGROUPS_H
#define VGPU_SIM_CGROUPS_H

#include "state.h"

void sim_cgroup_of_self(char path[SIM_CGROUP]);
/* The limit that holds for a group: its own, or that of the nearest one above; or NULL. */
struct sim_limit *sim_cgroup_limit(struct sim_state *state, const char *cgroup, int card);
uint64_t sim_cgroup_used(const struct sim_state *state, const char *cgroup, int card);
uint64_t sim_cgroup_room(struct sim_state *state, const char *cgroup, int card);
/* 0 or -ENOSPC. Without limits it is taken away. */
int sim_cgroup_set(struct sim_state *state, const char *cgroup, int card, uint64_t soft,
		   uint64_t hard);

/* The group is no more, nor are those below. */
void sim_cgroup_gone(struct sim_state *state, const char *cgroup);

#endif
