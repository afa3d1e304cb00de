/* SPDX-License-Identifier: Apache-2.0
 *
 * The bucket, as the one word due_ns: when everything launched so far will be paid for
 * by the share's income. A launch may go when that time has come, and moves it on by
 * cost / limit; an unused share is kept for the last burst_ns only. What a bucket with
 * a level and a time of refill says in two words, this says in one: a process that is
 * killed between any two instructions has either paid or not launched.
 */
#include "atomics.h"
#include "compute.h"

static uint64_t wall(uint64_t cost_ns, uint32_t permille)
{
	return cost_ns / permille * 1000 + cost_ns % permille * 1000 / permille;
}

/* The tenant can write the word: a time that no launch can have led to counts as now. */
static uint64_t sane(uint64_t due, uint64_t now)
{
	return due > now + VGPU_DEBT_MAX_NS ? now : due;
}

static uint64_t saved(uint64_t due, uint64_t now, uint64_t burst)
{
	return due + burst < now ? now - burst : due;
}

static void add(struct vgpu_region_device *device, uint64_t now, int64_t delta,
		const struct vgpu_rate *rate)
{
	uint64_t due = atomic_load_explicit(&device->due_ns, memory_order_relaxed), next;

	do {
		next = saved(sane(due, now), now, rate->burst_ns);
		if (delta >= 0)
			next += wall((uint64_t)delta, rate->permille);
		else
			next -= wall((uint64_t)-delta, rate->permille);
		if (next > now + VGPU_DEBT_MAX_NS)
			next = now + VGPU_DEBT_MAX_NS;
	} while (!__atomic_compare_exchange_n(&device->due_ns, &due, next, true, __ATOMIC_RELAXED,
					      __ATOMIC_RELAXED));
}

/* Debt was reckoned with the old limit. Whoever exchanges the limits rescales it. */
static void follow_limit(struct vgpu_region_device *device, uint64_t now, uint32_t permille)
{
	uint32_t old = atomic_load_explicit(&device->limit_permille, memory_order_relaxed);
	uint64_t due, next;

	if (old == permille ||
	    !__atomic_compare_exchange_n(&device->limit_permille, &old, permille, false,
					 __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		return;
	if (!old || old > VGPU_UNLIMITED_PERMILLE)
		return;
	due = atomic_load_explicit(&device->due_ns, memory_order_relaxed);
	do {
		if (sane(due, now) <= now)
			return;
		next = now + (due - now) / permille * old;
	} while (!__atomic_compare_exchange_n(&device->due_ns, &due, next, true, __ATOMIC_RELAXED,
					      __ATOMIC_RELAXED));
}

/* Asking and charging are one step: of many that wait for the same time, one goes. */
bool vgpu_bucket_take(struct vgpu_region_device *device, uint64_t now_ns, uint64_t cost_ns,
		      const struct vgpu_rate *rate, uint64_t *due_ns)
{
	uint64_t due, next;

	follow_limit(device, now_ns, rate->permille);
	due = atomic_load_explicit(&device->due_ns, memory_order_relaxed);
	do {
		next = sane(due, now_ns);
		if (next > now_ns) {
			*due_ns = next;
			return false;
		}
		next = saved(next, now_ns, rate->burst_ns) + wall(cost_ns, rate->permille);
		if (next > now_ns + VGPU_DEBT_MAX_NS)
			next = now_ns + VGPU_DEBT_MAX_NS;
	} while (!__atomic_compare_exchange_n(&device->due_ns, &due, next, true, __ATOMIC_RELAXED,
					      __ATOMIC_RELAXED));
	__atomic_add_fetch(&device->busy_ns, cost_ns, __ATOMIC_RELAXED);
	return true;
}

void vgpu_bucket_settle(struct vgpu_region_device *device, uint64_t now_ns, int64_t delta_ns,
			const struct vgpu_rate *rate)
{
	if (!delta_ns)
		return;
	add(device, now_ns, delta_ns, rate);
	__atomic_add_fetch(&device->busy_ns, (uint64_t)delta_ns, __ATOMIC_RELAXED);
}

void vgpu_bucket_waited(struct vgpu_region_device *device, uint64_t waited_ns)
{
	static const uint64_t bounds_ns[VGPU_WAIT_CLASSES - 1] = {100000, 1000000, 10000000,
								  100000000, 1000000000};
	unsigned int class = 0;

	while (class < VGPU_WAIT_CLASSES - 1 && waited_ns > bounds_ns[class])
		class++;
	__atomic_add_fetch(&device->throttled_ns, waited_ns, __ATOMIC_RELAXED);
	__atomic_add_fetch(&device->waits[class], 1, __ATOMIC_RELAXED);
}

/* The first samples of several processes may overlap, each with the others' time slices
 * in it. Together they cannot have used more than the time that passed. */
uint64_t vgpu_bucket_first(struct vgpu_region_device *device, uint64_t launched_ns, uint64_t now_ns,
			   uint64_t measured_ns)
{
	uint64_t known = atomic_load_explicit(&device->known_ns, memory_order_relaxed), from, got;

	do {
		from = known > launched_ns && known <= now_ns ? known : launched_ns;
		got = now_ns - from < measured_ns ? now_ns - from : measured_ns;
	} while (!__atomic_compare_exchange_n(&device->known_ns, &known, from + got, true,
					      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return got;
}
