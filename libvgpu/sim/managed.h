/* SPDX-License-Identifier: Apache-2.0
 *
 * Where managed memory lies: see managed.c. All with the lock over all processes held.
 */
#ifndef VGPU_SIM_MANAGED_H
#define VGPU_SIM_MANAGED_H

#include "state.h"

uint64_t sim_sum_on_host(const struct sim_state *state, int card);
/* 0 or -ENOMEM; `room` is what the card has left. */
int sim_managed_take(const struct sim_state *state, const struct sim_config *config,
		     struct sim_use *use, uint64_t bytes, uint64_t room);
void sim_managed_give(struct sim_use *use, uint64_t bytes);
void sim_drive_out(struct sim_state *state, const struct sim_config *config, int card,
		   uint64_t bytes);

#endif
