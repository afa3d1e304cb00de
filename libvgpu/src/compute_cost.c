/* SPDX-License-Identifier: Apache-2.0
 *
 * What a kernel costs, by function, grid, block and shared memory; a graph by its
 * handle. Learned from event pairs around some of its launches.
 *
 * A pair also counts what the card did for others in between. Time slices are a
 * millisecond or longer, so a sample that is far above the lowest ones by at least
 * half of that is taken for a stranger's time and left out of the mean; smaller
 * differences are the kernel's own and belong to it. Strangers only, many in a row,
 * mean that the kernel itself has changed.
 *
 * One thread at a time learns (vgpu_pacer_try); all read. Words are atomic because of
 * that, and nothing depends on several of them being read at once.
 */
#include "atomics.h"
#include "compute.h"

#define WEIGHT 32    /* the mean is over about so many samples */
#define STRANGERS 64 /* in a row: believed */
#define SHARED_STRANGERS 1024
#define FLOOR_DOWN 3 /* a third at most; ... */
#define FLOOR_UP 100 /* ... one in about 33 is below */

#define GET(field) atomic_load_explicit(&(field), memory_order_relaxed)
#define SET(field, value) atomic_store_explicit(&(field), value, memory_order_relaxed)

static uint64_t mix(uint64_t value)
{
	value ^= value >> 32;
	value *= UINT64_C(0xd6e8feb86659fd93);
	value ^= value >> 32;
	return value;
}

uint64_t vgpu_kernel_key(const void *function, const uint32_t shape[7])
{
	uint64_t key = mix((uintptr_t)function);

	key = mix(key ^ ((uint64_t)shape[0] << 32 | shape[1])) + shape[6];
	key = mix(key ^ ((uint64_t)shape[2] << 32 | shape[3]));
	key = mix(key ^ ((uint64_t)shape[4] << 32 | shape[5]));
	return key ? key : 1;
}

static struct vgpu_cost *ways_of(struct vgpu_costs *costs, uint64_t key)
{
	return &costs->entries[mix(key) % (VGPU_COSTS / VGPU_COST_WAYS) * VGPU_COST_WAYS];
}

struct vgpu_cost *vgpu_cost_find(struct vgpu_costs *costs, uint64_t key)
{
	struct vgpu_cost *ways = ways_of(costs, key);

	for (unsigned int i = 0; i < VGPU_COST_WAYS; i++)
		if (GET(ways[i].key) == key)
			return &ways[i];
	return NULL;
}

static void clear(struct vgpu_cost *cost)
{
	SET(cost->samples, 0);
	SET(cost->mean_ns, 0);
	SET(cost->low_ns, 0);
	SET(cost->strangers, 0);
	SET(cost->pending, 0);
	SET(cost->countdown, 0);
}

/* The kernel's entry; if it has none, an empty one or the longest unused of eight. */
struct vgpu_cost *vgpu_cost_use(struct vgpu_costs *costs, uint64_t key)
{
	struct vgpu_cost *cost = vgpu_cost_find(costs, key), *ways;
	uint32_t now = GET(costs->clock);
	uint64_t old;

	if (cost) {
		if (GET(cost->last_used) != now)
			SET(cost->last_used, now);
		return cost;
	}
	SET(costs->clock, ++now);
	cost = ways = ways_of(costs, key);
	for (unsigned int i = 0; i < VGPU_COST_WAYS; i++) {
		if (!GET(ways[i].key)) {
			cost = &ways[i];
			break;
		}
		if (now - GET(ways[i].last_used) > now - GET(cost->last_used))
			cost = &ways[i];
	}
	old = GET(cost->key);
	if (atomic_compare_exchange_strong(&cost->key, &old, key))
		clear(cost);
	SET(cost->last_used, now);
	return cost;
}

void vgpu_cost_forget(struct vgpu_costs *costs, uint64_t key)
{
	struct vgpu_cost *cost = vgpu_cost_find(costs, key);

	if (!cost)
		return;
	clear(cost);
	SET(cost->key, 0);
}

void vgpu_cost_rename(struct vgpu_costs *costs, uint64_t key, uint64_t new_key)
{
	struct vgpu_cost *cost = vgpu_cost_find(costs, key);
	uint64_t guess = cost ? GET(cost->mean_ns) : 0;

	if (!cost)
		return;
	vgpu_cost_forget(costs, key);
	cost = vgpu_cost_use(costs, new_key);
	clear(cost);
	SET(cost->mean_ns, guess);
}

/* An event pair takes the card about 2 us: every 256th of the shortest kernels is at
 * most 0.2 % of their time, and of long ones each may be measured. */
static uint32_t interval_of(const struct vgpu_cost *cost)
{
	uint64_t mean = GET(cost->mean_ns);
	uint32_t samples = GET(cost->samples);

	if (samples < 4 || mean >= 1000000)
		return 1;
	if (samples < 16)
		return 16;
	return mean >= 100000 ? 32 : 256;
}

bool vgpu_cost_wants_sample(struct vgpu_cost *cost)
{
	uint32_t countdown = GET(cost->countdown);

	if (countdown > 1) {
		SET(cost->countdown, countdown - 1);
		return false;
	}
	SET(cost->countdown, 0);
	return true;
}

/* One of `together` samples in a row is taken: the next are as much later, unless all are. */
void vgpu_cost_sampled(struct vgpu_cost *cost, uint32_t together)
{
	uint32_t interval = interval_of(cost);

	SET(cost->countdown, interval > 1 ? interval * together : interval);
}

static void follow_low(struct vgpu_cost *cost, uint64_t measured)
{
	uint64_t low = GET(cost->low_ns);

	if (measured < low)
		low -= (low - measured) / 2;
	else
		low += ((measured < 2 * low ? measured : 2 * low) - low) / 64;
	SET(cost->low_ns, low ? low : 1);
}

static uint64_t lesser(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Others are in every sample, more of them or fewer. What only few samples are below is
 * nearest to the truth and changes least, so that the node's correction can follow. */
static void follow_floor(struct vgpu_cost *cost, uint64_t measured)
{
	uint64_t low = GET(cost->low_ns);

	if (measured < low)
		low -= lesser(low / FLOOR_DOWN, low - measured);
	else
		low += lesser(low / FLOOR_UP, measured - low);
	SET(cost->low_ns, low ? low : 1);
	SET(cost->mean_ns, low ? low : 1);
	SET(cost->strangers, 0);
}

bool vgpu_cost_learn(struct vgpu_cost *cost, uint64_t measured_ns, unsigned int doubts)
{
	uint32_t samples = GET(cost->samples), strangers = GET(cost->strangers);
	uint64_t low = GET(cost->low_ns), mean = GET(cost->mean_ns);
	bool shared = doubts & VGPU_SHARED;
	uint64_t most = low + low / 2 + (shared ? 0 : VGPU_SLICE_MIN_NS / 2);
	uint32_t weight;

	if (samples && doubts & VGPU_CROWDED && low >= VGPU_SLICE_MIN_NS / 2 &&
	    !(shared && measured_ns > most)) {
		follow_floor(cost, measured_ns);
		return false;
	}
	if (samples && measured_ns > most) {
		SET(cost->strangers, strangers + 1);
		if (strangers + 1 < (shared ? SHARED_STRANGERS : STRANGERS))
			return false;
		samples = 0; /* it is another kernel now */
	}
	SET(cost->strangers, 0);
	if (!samples) {
		SET(cost->mean_ns, measured_ns);
		SET(cost->low_ns, measured_ns);
		SET(cost->samples, 1);
		return true;
	}
	/* Far below what was believed: the first samples had strangers in them. */
	if (mean > measured_ns + measured_ns / 2 + VGPU_SLICE_MIN_NS / 2) {
		SET(cost->mean_ns, measured_ns);
		SET(cost->low_ns, measured_ns);
		SET(cost->samples, 1);
		return true;
	}
	follow_low(cost, measured_ns);
	weight = samples < WEIGHT ? samples + 1 : WEIGHT;
	if (measured_ns > mean)
		mean += (measured_ns - mean) / weight;
	else
		mean -= (mean - measured_ns) / weight;
	SET(cost->mean_ns, mean);
	SET(cost->samples, weight);
	return true;
}
