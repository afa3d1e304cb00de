/* SPDX-License-Identifier: Apache-2.0
 *
 * What a grant says about compute. The words are HAMi's: "default" limits whoever has
 * neighbours, "force" everybody, "disable" nobody.
 */
#include "atomics.h"
#include "compute.h"

#define BURST_MS 10
#define BURST_MAX_MS 1000

static uint32_t permille_of(uint32_t percent)
{
	return percent && percent < 100 ? percent * 10 : VGPU_UNLIMITED_PERMILLE;
}

struct vgpu_rate vgpu_rate_of(const struct vgpu_grant_device *grant)
{
	uint32_t flags = atomic_load_explicit(&grant->flags, memory_order_acquire);
	uint32_t policy = atomic_load_explicit(&grant->core_policy, memory_order_acquire);
	uint32_t ceiling = atomic_load_explicit(&grant->ceiling_percent, memory_order_acquire);
	uint32_t burst_ms = atomic_load_explicit(&grant->burst_ms, memory_order_acquire);
	struct vgpu_rate rate = {
		.permille = permille_of(
			atomic_load_explicit(&grant->cores_percent, memory_order_acquire)),
		.first = atomic_load_explicit(&grant->priority_plus_one, memory_order_acquire) == 1,
	};

	if (!burst_ms)
		burst_ms = BURST_MS;
	rate.burst_ns = (uint64_t)(burst_ms < BURST_MAX_MS ? burst_ms : BURST_MAX_MS) * 1000000;
	if (flags & VGPU_GRANT_CONTROL_DISABLED || policy == VGPU_POLICY_DISABLE)
		rate.permille = VGPU_UNLIMITED_PERMILLE;
	else if (flags & VGPU_GRANT_ALONE && (ceiling || policy == VGPU_POLICY_DEFAULT) &&
		 permille_of(ceiling) > rate.permille)
		rate.permille = permille_of(ceiling);
	return rate;
}

bool vgpu_gate_holds(struct vgpu_gate *gate, uint32_t value, uint64_t now_ns)
{
	if (!value || value != gate->value) {
		gate->value = value;
		gate->since_ns = now_ns;
		return value != 0;
	}
	return now_ns - gate->since_ns < (uint64_t)VGPU_GATE_STALE_MS * 1000000;
}
