/* SPDX-License-Identifier: Apache-2.0
 *
 * The slow correction. A kernel that is longer than the card's time slices is measured
 * with its neighbours' slices in it, and no event tells them apart; NVML's time per
 * process does. Once a second the node compares it with the limit and moves the factor
 * that all charges are multiplied with. Integral only: the sensor is a whole percent,
 * averaged by the driver, and anything faster would swing with it.
 */
#include "compute.h"

#define DEAD_BAND 5
#define OTHERS_MIN 20     /* thousandths of the card that neighbours use */
#define THROTTLED_MIN 100 /* less than that of the second waiting: the limit did not act */

uint32_t vgpu_trim_step(uint32_t trim, uint32_t limit, uint32_t observed, uint32_t throttled,
			uint32_t others)
{
	int64_t error = (int64_t)observed - (int64_t)limit, next;

	if (!trim)
		trim = 1000;
	/* Alone, events tell the truth, and to a finer grain than NVML. */
	if (!limit || limit >= VGPU_UNLIMITED_PERMILLE || others < OTHERS_MIN)
		return 1000;
	if (throttled < THROTTLED_MIN && error < 0)
		return trim; /* it does not want more */
	if (error >= -DEAD_BAND && error <= DEAD_BAND)
		return trim;
	/* Half of what would put it right, at most a third at once. */
	error = error * 1000 / (int64_t)limit / 2;
	if (error < -333)
		error = -333;
	if (error > 333)
		error = 333;
	next = (int64_t)trim * (1000 + error) / 1000;
	if (next < VGPU_TRIM_MIN)
		return VGPU_TRIM_MIN;
	return next > VGPU_TRIM_MAX ? VGPU_TRIM_MAX : (uint32_t)next;
}

/* Shorter kernels are measured between slices, and better than a whole percent tells.
 * The word is in the region, so it may be anything. */
uint64_t vgpu_trim_apply(uint64_t cost_ns, uint32_t trim)
{
	if (!trim || cost_ns < VGPU_SLICE_MIN_NS / 2)
		return cost_ns;
	if (trim < VGPU_TRIM_MIN)
		trim = VGPU_TRIM_MIN;
	if (trim > VGPU_TRIM_MAX)
		trim = VGPU_TRIM_MAX;
	return cost_ns / 1000 * trim + cost_ns % 1000 * trim / 1000;
}
