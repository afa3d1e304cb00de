/* SPDX-License-Identifier: Apache-2.0
 *
 * The slow correction. A kernel that is longer than the card's time slices is measured
 * with its neighbours' slices in it, and no event tells them apart; NVML's time per
 * process does. Once a second the node compares what a grant was charged, without the
 * correction, with what it had, and the ratio is the factor that charges are multiplied
 * with. It is the same whether the limit acts or not, so it is known before it does.
 *
 * Both are added up over the last part of the card's time that was used: what is charged
 * in one second may run in the next, and NVML tells whole percents, and late.
 */
#include "compute.h"

#define OTHERS_MIN 20    /* thousandths of the card that neighbours use */
#define MEMORY_MS 1500   /* of so much of the card's time the last is remembered, ... */
#define FORGET_MIN 80    /* ... and in a second at least so much forgotten, ... */
#define FORGET_MAX 500   /* ... and at most so much, in thousandths */
#define FEW 8            /* times longer is what short kernels were charged */
#define ENOUGH_US 200000 /* of time that was paid: less tells nothing yet */

enum { IDLE, SKIPPED, COUNTED };

static uint32_t bounded(int64_t permille, int64_t last)
{
	/* One second may be all charge and no use, or the other way round. */
	if (permille < last * 2 / 3)
		permille = last * 2 / 3;
	if (permille > last * 3 / 2)
		permille = last * 3 / 2;
	if (permille < VGPU_TRIM_MIN)
		return VGPU_TRIM_MIN;
	return permille > VGPU_TRIM_MAX ? VGPU_TRIM_MAX : (uint32_t)permille;
}

static void forget(struct vgpu_trim *trim, int64_t used_ms)
{
	int64_t part = used_ms * 1000 / MEMORY_MS;

	if (trim->untrimmed_us + trim->short_us <= ENOUGH_US)
		return;
	part = part < FORGET_MIN ? FORGET_MIN : part > FORGET_MAX ? FORGET_MAX : part;
	trim->observed_us = trim->observed_us * (1000 - part) / 1000;
	trim->short_us = trim->short_us * (1000 - part) / 1000;
	trim->untrimmed_us = trim->untrimmed_us * (1000 - part) / 1000;
}

void vgpu_trim_step(struct vgpu_trim *trim, const struct vgpu_trim_reading *now)
{
	int64_t charged_ms = now->charged_us / 1000;
	bool alone;

	/* Alone, events tell the truth, and to a finer grain than NVML. */
	alone = !now->limit || now->limit >= VGPU_UNLIMITED_PERMILLE || now->others < OTHERS_MIN;
	if (alone || !trim->permille)
		*trim = (struct vgpu_trim){.permille = VGPU_UNTRIMMED, .phase = IDLE};
	if (alone)
		return;
	/* What was launched before it became idle may still run. */
	if (!now->charged_us && !now->owes) {
		if (trim->phase == COUNTED)
			trim->phase = IDLE;
		return;
	}
	/* NVML is late at the begin as well; who works a second at a time is counted in
	 * every second of these. */
	if (trim->phase == IDLE) {
		trim->phase = SKIPPED;
		return;
	}
	trim->phase = COUNTED;
	forget(trim, now->observed > charged_ms ? now->observed : charged_ms);
	trim->observed_us += (int64_t)now->observed * 1000;
	trim->short_us += (int64_t)now->charged_us - now->long_us;
	trim->untrimmed_us += (int64_t)now->long_us * 1000 / trim->permille;
	if (trim->untrimmed_us + trim->short_us < ENOUGH_US)
		return;
	/* What NVML sees otherwise of short kernels is not for a few long ones to bear. */
	if (trim->untrimmed_us < trim->short_us / FEW || trim->untrimmed_us <= 0)
		trim->permille = bounded(VGPU_UNTRIMMED, trim->permille);
	else
		trim->permille =
			bounded((trim->observed_us - trim->short_us) * 1000 / trim->untrimmed_us,
				trim->permille);
}

/* Shorter kernels are measured between slices, and better than a whole percent tells.
 * The word is in the region, so it may be anything. */
bool vgpu_trim_is_for(uint64_t cost_ns)
{
	return cost_ns >= VGPU_SLICE_MIN_NS / 2;
}

uint64_t vgpu_trim_apply(uint64_t cost_ns, uint32_t trim)
{
	if (!trim || !vgpu_trim_is_for(cost_ns))
		return cost_ns;
	if (trim < VGPU_TRIM_MIN)
		trim = VGPU_TRIM_MIN;
	if (trim > VGPU_TRIM_MAX)
		trim = VGPU_TRIM_MAX;
	return cost_ns / 1000 * trim + cost_ns % 1000 * trim / 1000;
}
