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

struct vgpu_rate vgpu_rate_of(const struct vgpu_grant_device *grant, bool node_lives)
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
	else if (node_lives && flags & VGPU_GRANT_ALONE &&
		 (ceiling || policy == VGPU_POLICY_DEFAULT) && permille_of(ceiling) > rate.permille)
		rate.permille = permille_of(ceiling);
	return rate;
}

/* False: it has been the same for so long. The time is kept before the value: another
 * thread that sees the value sees no older time. */
static bool is_renewed(struct vgpu_renewed *word, uint32_t value, uint64_t now, uint32_t stale_ms)
{
	uint64_t since;

	if (value != __atomic_load_n(&word->value, __ATOMIC_ACQUIRE)) {
		__atomic_store_n(&word->since_ns, now, __ATOMIC_RELAXED);
		__atomic_store_n(&word->value, value, __ATOMIC_RELEASE);
		return true;
	}
	since = __atomic_load_n(&word->since_ns, __ATOMIC_RELAXED);
	return now < since || now - since < (uint64_t)stale_ms * 1000000;
}

bool vgpu_gate_holds(struct vgpu_renewed *gate, uint32_t value, uint64_t now_ns)
{
	return is_renewed(gate, value, now_ns, VGPU_GATE_STALE_MS) && value;
}

bool vgpu_node_lives(struct vgpu_renewed *heartbeat, uint32_t value, uint64_t now_ns)
{
	return !value || is_renewed(heartbeat, value, now_ns, VGPU_HEARTBEAT_STALE_MS);
}
