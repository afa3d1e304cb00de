/* SPDX-License-Identifier: Apache-2.0
 *
 * The compute limit: who may launch when, and what it costs. Pure: time comes in as
 * nanoseconds of CLOCK_MONOTONIC, nothing is read, waited for or allocated, so the
 * library (pace.c) and the simulator (bench/controller) run the same code.
 *
 * Costs are nanoseconds of the whole card. A limit is in thousandths of it; 1000 =
 * not limited.
 */
#ifndef VGPU_COMPUTE_H
#define VGPU_COMPUTE_H

#include <stdbool.h>
#include <stdint.h>

#include "vgpu/grant.h"
#include "vgpu/region.h"

#define VGPU_UNLIMITED_PERMILLE 1000u
#define VGPU_SLICE_MIN_NS 1000000u /* the card's time slices are not shorter */

/* ---- compute_policy.c: what a grant means just now */
struct vgpu_rate {
	uint32_t permille;
	uint64_t burst_ns; /* wall time that an unused share can be saved up */
	bool first;        /* HAMi's priority 0: no gate holds it */
};
struct vgpu_rate vgpu_rate_of(const struct vgpu_grant_device *grant, bool node_lives);

/* A word that the node changes again and again, as this process saw it. */
struct vgpu_renewed {
	uint32_t value;
	uint64_t since_ns;
};
/* Whether a gate that reads `value` holds launches back. A gate that nobody renews is
 * one whose node has died. */
bool vgpu_gate_holds(struct vgpu_renewed *gate, uint32_t value, uint64_t now_ns);
/* By the grant's heartbeat. 0: a node that tells none, and is believed. */
bool vgpu_node_lives(struct vgpu_renewed *heartbeat, uint32_t value, uint64_t now_ns);

/* ---- compute_bucket.c: what is paid for */
#define VGPU_DEBT_MAX_NS 120000000000u /* of wall time; more is a word gone wrong */
/* True and charged, or false and when to ask again. */
bool vgpu_bucket_take(struct vgpu_region_device *device, uint64_t now_ns, uint64_t cost_ns,
		      const struct vgpu_rate *rate, uint64_t *due_ns);
/* What was charged too little (> 0) or too much (< 0). */
void vgpu_bucket_settle(struct vgpu_region_device *device, uint64_t now_ns, int64_t delta_ns,
			const struct vgpu_rate *rate);
/* What is to be charged for a kernel that was free until it was measured. */
uint64_t vgpu_bucket_first(struct vgpu_region_device *device, uint64_t launched_ns, uint64_t now_ns,
			   uint64_t measured_ns);
void vgpu_bucket_waited(struct vgpu_region_device *device, uint64_t waited_ns);

/* ---- compute_trim.c: the slow correction by what NVML sees of a grant, once a second;
 * the node's part of the controller */
#define VGPU_UNTRIMMED 1000u
#define VGPU_TRIM_MIN 100u
#define VGPU_TRIM_MAX 10000u
struct vgpu_trim_reading {
	uint32_t limit;     /* thousandths */
	uint32_t observed;  /* thousandths of the card that the grant had, by NVML */
	uint32_t others;    /* and everybody else */
	int32_t charged_us; /* what it was charged since the last, less what it was given back */
	int32_t long_us;    /* of that, for kernels that the correction is for */
	bool owes;          /* what it launched is not paid for yet */
};
struct vgpu_trim {         /* begins as zeros */
	uint32_t permille; /* for the region */
	uint32_t phase;
	int64_t observed_us, short_us, untrimmed_us; /* of the last seconds */
};
void vgpu_trim_step(struct vgpu_trim *trim, const struct vgpu_trim_reading *now);
/* Whether it is for a kernel that costs so much, or that is measured between slices. */
bool vgpu_trim_is_for(uint64_t cost_ns);
uint64_t vgpu_trim_apply(uint64_t cost_ns, uint32_t trim);

/* ---- compute_cost.c: what a kernel costs, learned */
#define VGPU_COSTS 2048 /* kernels that are remembered */
#define VGPU_COST_WAYS 8
struct vgpu_cost {
	uint64_t key; /* 0 = empty */
	uint64_t mean_ns, low_ns;
	uint32_t samples;   /* that made the mean; saturates */
	uint32_t strangers; /* in a row, too long to be this kernel alone */
	uint32_t pending;   /* samples under way */
	uint32_t countdown; /* launches until the next sample */
	uint32_t last_used;
};
struct vgpu_costs {
	struct vgpu_cost entries[VGPU_COSTS];
	uint32_t clock;
};
uint64_t vgpu_kernel_key(const void *function, const uint32_t shape[7]);
struct vgpu_cost *vgpu_cost_find(struct vgpu_costs *costs, uint64_t key);
struct vgpu_cost *vgpu_cost_use(struct vgpu_costs *costs, uint64_t key);
void vgpu_cost_forget(struct vgpu_costs *costs, uint64_t key);
/* What was known by one key is a guess by another: the next sample is believed. */
void vgpu_cost_rename(struct vgpu_costs *costs, uint64_t key, uint64_t new_key);
bool vgpu_cost_wants_sample(struct vgpu_cost *cost);
void vgpu_cost_sampled(struct vgpu_cost *cost, uint32_t together);
#define VGPU_CROWDED 1u /* the node says that others compute on the card */
#define VGPU_SHARED 2u  /* launches that were not measured may have run at the same time */
/* True if the measured time was this kernel's own: it is then in the mean. */
bool vgpu_cost_learn(struct vgpu_cost *cost, uint64_t measured_ns, unsigned int doubts);

/* ---- compute_pace.c: one process's launches */
#define VGPU_SAMPLES 64
#define VGPU_GROUP 16
struct vgpu_sample { /* an event pair around a launch */
	uint64_t key;
	uint64_t stream;
	uint64_t charged_ns;
	uint64_t launched_ns;
	uint64_t begin_ns, end_ns; /* measured, from the begin of its group's first */
	uint32_t group;
	uint32_t state;
};
struct vgpu_pacer {
	struct vgpu_costs costs;
	struct vgpu_sample samples[VGPU_SAMPLES];
	uint32_t head, tail; /* of samples, counting on; head = oldest */
	uint32_t group;
	uint64_t group_opened_ns;
	uint32_t mixed; /* launches for which several streams are still assumed */
	uint64_t last_stream;
	uint32_t group_left; /* launches that the open group still takes */
	int busy;            /* whoever changes samples; taken or left alone, never waited for */
};
struct vgpu_ticket {
	uint64_t cost_ns; /* charged */
	uint64_t believed_ns;
	int sample; /* put an event pair around the launch; -1 = do not */
};
struct vgpu_bill { /* the card's buckets: one for each grant that names it */
	struct vgpu_region_device *devices[16];
	unsigned int count;
	struct vgpu_rate rate;  /* of all grants together */
	uint32_t trim_permille; /* the node's correction of charges; 0 = none */
};
enum vgpu_answer {
	VGPU_GO,     /* charged: launch */
	VGPU_WAIT,   /* until *when_ns, then ask again */
	VGPU_MEASURE /* until the kernel's first sample is there; after *when_ns, be impatient */
};
enum vgpu_answer vgpu_pacer_ask(struct vgpu_pacer *pacer, const struct vgpu_bill *bill,
				uint64_t now_ns, uint64_t key, uint64_t stream, bool patient,
				struct vgpu_ticket *ticket, uint64_t *when_ns);
/* The events of ticket->sample are recorded. */
void vgpu_pacer_launched(struct vgpu_pacer *pacer, const struct vgpu_ticket *ticket);
/* The events could not be recorded. */
void vgpu_pacer_lost(struct vgpu_pacer *pacer, int sample);
/* The launch failed: nothing is owed for it. */
void vgpu_pacer_undo(struct vgpu_pacer *pacer, const struct vgpu_bill *bill, uint64_t now_ns,
		     const struct vgpu_ticket *ticket);
/* The next sample to be measured and the first of its group, or -1; with pacer->busy held. */
int vgpu_pacer_oldest(const struct vgpu_pacer *pacer, int *first);
/* Its times, in nanoseconds from the begin event of the first of its group. */
void vgpu_pacer_measured(struct vgpu_pacer *pacer, const struct vgpu_bill *bill, uint64_t now_ns,
			 int sample, int64_t begin_ns, int64_t end_ns);
bool vgpu_pacer_try(struct vgpu_pacer *pacer);
void vgpu_pacer_leave(struct vgpu_pacer *pacer);
/* Shares the time in which several ran among those that ran: sum(own) = their union. */
void vgpu_attribute(const int64_t *begin, const int64_t *end, unsigned int count, int64_t *own);

#endif
