/* SPDX-License-Identifier: Apache-2.0
 *
 * Cards in parts (MIG): which profiles a model has, and which instances exist.
 * Everything but the tables works between sim_enter and sim_leave.
 */
#ifndef VGPU_SIM_MIG_H
#define VGPU_SIM_MIG_H

#include "state.h"

#define SIM_PLACES 8

struct sim_profile {
	unsigned int number; /* NVML_GPU_INSTANCE_PROFILE_... */
	unsigned int id;     /* as NVML and nvidia-smi name it on this model */
	unsigned int slices; /* of compute */
	unsigned int size;   /* slices of memory */
	unsigned int instances;
	unsigned int starts[SIM_PLACES], places;
	unsigned int multiprocessors, copy, decoders, encoders, jpeg, ofa;
	uint64_t memory_mib;
	char name[96];
};

/* False if the model has no profile of this number, or no MIG at all. */
bool sim_mig_profile(const struct sim_card *card, unsigned int number, struct sim_profile *profile);
bool sim_mig_profile_by_id(const struct sim_card *card, unsigned int id,
			   struct sim_profile *profile);
unsigned int sim_mig_most(const struct sim_card *card); /* instances; 0: no MIG */

bool sim_mig_enabled(int card);
bool sim_mig_free(int card, unsigned int start, unsigned int size);
unsigned int sim_mig_count(int card, unsigned int number);
/* Place in the list of a new instance, or -1 if there is no room. */
int sim_mig_create(int card, const struct sim_profile *profile, unsigned int start);
void sim_mig_destroy(int slot);
int sim_mig_create_compute(int slot, unsigned int profile, unsigned int start, unsigned int size);
void sim_mig_destroy_compute(int slot, int compute);
/* What a process sees of an instance: memory, multiprocessors, name, UUID. */
void sim_mig_describe(int slot, int compute, struct sim_card *card);
/* Whether this process may open it: the nodes of both capabilities are there. */
bool sim_mig_visible(int slot, int compute);

/* Whether a card is divided; without the lock. */
bool sim_mig_divides(int card);
/* For CUDA, without the lock: a divided card is no device, one of its compute instances
 * is: the first that may be opened and whose UUID begins so. Returns the unit, or -1. */
int sim_mig_find(int card, const char *uuid);

#endif
