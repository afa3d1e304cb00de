/* SPDX-License-Identifier: Apache-2.0 */
/* The controller by itself: what is paid, what a kernel costs, who is held. No clock. */
#include <string.h>

#include "compute.h"
#include "world.h"

#define MS UINT64_C(1000000)
#define NOW (1000000 * MS)

static const struct vgpu_rate half = {.permille = 500, .burst_ns = 10 * MS};

static void buckets(void)
{
	struct vgpu_region_device device = {0};
	uint64_t due = 0, now = NOW;

	/* An unused share is worth 10 ms, not more. */
	CHECK(vgpu_bucket_take(&device, now, 5 * MS, &half, &due));
	CHECK(vgpu_bucket_take(&device, now, 1 * MS, &half, &due));
	IS(device.due_ns, now + 2 * MS);
	CHECK(!vgpu_bucket_take(&device, now, 1, &half, &due));
	IS(due, now + 2 * MS);
	CHECK(!vgpu_bucket_take(&device, due - 1, 1, &half, &due));
	CHECK(vgpu_bucket_take(&device, due, 100 * MS, &half, &due));
	IS(device.due_ns, now + 202 * MS);
	IS(device.busy_ns, 106 * MS);
	/* Too much was charged, then too little. */
	vgpu_bucket_settle(&device, now, -50 * (int64_t)MS, &half);
	IS(device.due_ns, now + 102 * MS);
	vgpu_bucket_settle(&device, now, 10 * (int64_t)MS, &half);
	IS(device.due_ns, now + 122 * MS);
	IS(device.busy_ns, 66 * MS);
	/* Another limit: the debt takes as long as the new one needs. */
	CHECK(!vgpu_bucket_take(&device, now, 1, &(struct vgpu_rate){250, 10 * MS, false}, &due));
	IS(due, now + 244 * MS);
	CHECK(!vgpu_bucket_take(&device, now, 1, &half, &due));
	IS(due, now + 122 * MS);
	/* What a tenant writes, or what another boot left, does not hold for ever. */
	device.due_ns = UINT64_MAX;
	CHECK(vgpu_bucket_take(&device, now, 1 * MS, &half, &due));
	CHECK(device.due_ns <= now + 2 * MS);
	/* Nor does a debt grow without end. */
	for (int i = 0; i < 10; i++)
		vgpu_bucket_settle(&device, now, (int64_t)(100000 * MS), &half);
	IS(device.due_ns, now + VGPU_DEBT_MAX_NS);
	/* Long idle is no credit. */
	device.due_ns = 5;
	CHECK(vgpu_bucket_take(&device, now, 0, &half, &due));
	IS(device.due_ns, now - 10 * MS);
}

/* Of four that were free and ran side by side, together as long as the time took. */
static void first_samples(void)
{
	struct vgpu_region_device device = {0};
	uint64_t sum = 0;

	for (int i = 0; i < 4; i++)
		sum += vgpu_bucket_first(&device, NOW + (uint64_t)i, NOW + 200 * MS, 200 * MS);
	CHECK(sum <= 200 * MS && sum >= 199 * MS);
	IS(vgpu_bucket_first(&device, NOW + 300 * MS, NOW + 400 * MS, 30 * MS), 30 * MS);
	device.known_ns = UINT64_MAX;
	IS(vgpu_bucket_first(&device, NOW, NOW + 400 * MS, 30 * MS), 30 * MS);
}

static void waits(void)
{
	struct vgpu_region_device device = {0};

	vgpu_bucket_waited(&device, 100000);
	vgpu_bucket_waited(&device, 100001);
	vgpu_bucket_waited(&device, 5000 * MS);
	IS(device.waits[0], 1);
	IS(device.waits[1], 1);
	IS(device.waits[5], 1);
	IS(device.throttled_ns, 200001 + 5000 * MS);
}

static uint32_t permille(uint32_t cores, uint32_t policy, uint32_t flags, uint32_t ceiling)
{
	struct vgpu_grant_device grant = {.cores_percent = cores,
					  .core_policy = policy,
					  .flags = flags,
					  .ceiling_percent = ceiling};

	return vgpu_rate_of(&grant, true).permille;
}

static void policies(void)
{
	struct vgpu_grant_device grant = {.priority_plus_one = 1, .burst_ms = 5000};
	struct vgpu_grant_device lifted = {.cores_percent = 30, .flags = VGPU_GRANT_ALONE};

	IS(permille(30, VGPU_POLICY_DEFAULT, 0, 0), 300);
	IS(permille(30, VGPU_POLICY_DEFAULT, VGPU_GRANT_ALONE, 0), 1000);
	IS(permille(30, VGPU_POLICY_DEFAULT, VGPU_GRANT_ALONE, 80), 800);
	IS(permille(30, VGPU_POLICY_DEFAULT, VGPU_GRANT_ALONE, 20), 300);
	IS(vgpu_rate_of(&lifted, false).permille, 300); /* who says so lives no more */
	IS(permille(30, VGPU_POLICY_DEFAULT, 0, 80), 300);
	IS(permille(30, VGPU_POLICY_FORCE, VGPU_GRANT_ALONE, 0), 300);
	IS(permille(30, VGPU_POLICY_FORCE, VGPU_GRANT_ALONE, 80), 800);
	IS(permille(30, VGPU_POLICY_DISABLE, 0, 0), 1000);
	IS(permille(30, VGPU_POLICY_FORCE, VGPU_GRANT_CONTROL_DISABLED, 0), 1000);
	IS(permille(0, VGPU_POLICY_FORCE, 0, 0), 1000);
	IS(permille(100, VGPU_POLICY_FORCE, 0, 0), 1000);
	CHECK(vgpu_rate_of(&grant, true).first);
	IS(vgpu_rate_of(&grant, true).burst_ns, 1000 * MS);
	grant.priority_plus_one = 0;
	CHECK(!vgpu_rate_of(&grant, true).first);
}

static void gates(void)
{
	struct vgpu_renewed gate = {0}, heartbeat = {0};

	CHECK(!vgpu_gate_holds(&gate, 0, NOW));
	CHECK(vgpu_gate_holds(&gate, 7, NOW));
	CHECK(vgpu_gate_holds(&gate, 7, NOW + 1999 * MS));
	CHECK(!vgpu_gate_holds(&gate, 7, NOW + 2000 * MS)); /* whoever raised it is gone */
	CHECK(vgpu_gate_holds(&gate, 8, NOW + 2000 * MS));
	CHECK(!vgpu_gate_holds(&gate, 0, NOW + 2001 * MS));
	CHECK(vgpu_gate_holds(&gate, 7, NOW + 2002 * MS));
	CHECK(vgpu_node_lives(&heartbeat, 0, NOW));
	CHECK(vgpu_node_lives(&heartbeat, 0, NOW + 60000 * MS)); /* it tells none */
	CHECK(vgpu_node_lives(&heartbeat, 3, NOW + 60000 * MS));
	CHECK(vgpu_node_lives(&heartbeat, 3, NOW + 69999 * MS));
	CHECK(!vgpu_node_lives(&heartbeat, 3, NOW + 70000 * MS));
	CHECK(!vgpu_node_lives(&heartbeat, 3, NOW + 80000 * MS));
	CHECK(vgpu_node_lives(&heartbeat, 4, NOW + 80000 * MS));
	CHECK(vgpu_node_lives(&heartbeat, 4, NOW + 79000 * MS)); /* another thread's clock */
}

static uint32_t trim_after(struct vgpu_trim *trim, unsigned int seconds, uint32_t observed,
			   int32_t untrimmed_ms, uint32_t others)
{
	for (unsigned int i = 0; i < seconds; i++) {
		uint32_t factor = trim->permille ? trim->permille : 1000;

		vgpu_trim_step(trim, &(struct vgpu_trim_reading){
					     .limit = 300,
					     .observed = observed,
					     .others = others,
					     .charged_us = untrimmed_ms * (int32_t)factor,
					     .long_us = untrimmed_ms * (int32_t)factor,
					     .owes = untrimmed_ms != 0,
				     });
	}
	return trim->permille;
}

static void trims(void)
{
	struct vgpu_trim trim = {0}, other;

	IS(trim_after(&trim, 1, 150, 300, 500), 1000); /* NVML is late */
	IS(trim_after(&trim, 2, 150, 300, 500), 500);
	IS(trim_after(&trim, 9, 300, 600, 500), 500);
	/* Idle, and what is still running has been paid for. */
	IS(trim_after(&trim, 5, 150, 0, 500), 500);
	IS(trim_after(&trim, 5, 0, 0, 500), 500);
	IS(trim_after(&trim, 1, 0, 600, 500), 500);
	IS(trim_after(&trim, 1, 300, 600, 500), 500);
	/* Who pauses after every second is counted as well. */
	for (int i = 0; i < 20; i++) {
		trim_after(&trim, 1, 300, 300, 500);
		trim_after(&trim, 1, 0, 0, 500);
	}
	CHECK(trim.permille > 800 && trim.permille <= 1000);
	/* More processes in turn: another factor, within seconds. */
	trim_after(&trim, 10, 300, 1500, 500);
	CHECK(trim.permille >= 195 && trim.permille <= 205);
	/* Short kernels are not corrected: what a tenth of long ones is taken for is theirs. */
	for (int i = 0; i < 30; i++)
		vgpu_trim_step(&trim, &(struct vgpu_trim_reading){.limit = 300,
								  .observed = 300,
								  .others = 500,
								  .charged_us = 600000,
								  .long_us = 1000});
	IS(trim.permille, 1000);
	for (int i = 0; i < 30; i++)
		vgpu_trim_step(&trim, &(struct vgpu_trim_reading){
					      .limit = 300,
					      .observed = 300,
					      .others = 500,
					      .charged_us = 200000 + 300 * (int32_t)trim.permille,
					      .long_us = 300 * (int32_t)trim.permille});
	CHECK(trim.permille > 330 && trim.permille < 337);
	/* What was not charged at all, the other charges are raised for. */
	CHECK(trim_after(&trim, 30, 600, 300, 300) > 1900);
	other = trim;
	IS(trim_after(&trim, 1, 150, 300, 19), 1000); /* alone */
	IS(trim_after(&trim, 1, 150, 300, 500), 1000);
	vgpu_trim_step(&other, &(struct vgpu_trim_reading){.limit = 1000, .others = 500});
	IS(other.permille, 1000); /* not limited */
	/* Nonsense stays within bounds. */
	for (int i = 0; i < 100; i++) {
		vgpu_trim_step(&trim, &(struct vgpu_trim_reading){
					      .limit = 300,
					      .observed = i % 3 ? 0 : UINT32_MAX,
					      .others = 500,
					      .charged_us = i % 2 ? INT32_MIN : INT32_MAX,
					      .long_us = i % 5 ? INT32_MIN : INT32_MAX});
		CHECK(trim.permille >= VGPU_TRIM_MIN && trim.permille <= VGPU_TRIM_MAX);
	}
	IS(vgpu_trim_apply(123456789, 0), 123456789);
	IS(vgpu_trim_apply(1000000, 500), 500000);
	IS(vgpu_trim_apply(400000, 500), 400000); /* shorter than a slice */
	IS(vgpu_trim_apply(1000000, UINT32_MAX), 10000000);
}

static struct vgpu_costs costs;

static void learning(void)
{
	struct vgpu_cost *cost = vgpu_cost_use(&costs, 42);

	CHECK(cost == vgpu_cost_use(&costs, 42) && cost == vgpu_cost_find(&costs, 42));
	for (int i = 0; i < 1000; i++)
		CHECK(vgpu_cost_learn(cost, 900000 + (uint64_t)(i % 5) * 50000, 0));
	CHECK(cost->mean_ns > 980000 && cost->mean_ns < 1020000);
	/* A neighbour's slice in it. */
	CHECK(!vgpu_cost_learn(cost, 3 * MS, 0));
	CHECK(cost->mean_ns < 1020000);
	/* But not 64 times in a row. */
	for (int i = 0; i < 64; i++)
		vgpu_cost_learn(cost, 3 * MS, 0);
	IS(cost->mean_ns, 3 * MS);
	/* What was learned beside a neighbour goes at the first sight of the truth. */
	CHECK(vgpu_cost_learn(cost, 1 * MS, 0));
	IS(cost->mean_ns, 1 * MS);
	/* With others always in it: what few samples are below, whoever else runs. */
	for (int i = 0; i < 3000; i++)
		CHECK(!vgpu_cost_learn(cost, (uint64_t)(i % 20 ? 6 : 3) * MS, VGPU_CROWDED));
	CHECK(cost->mean_ns > 3 * MS - 1 && cost->mean_ns < 3 * MS + MS);
	/* Twice as long beside launches of its own process that were not measured. */
	for (int i = 0; i < 500; i++)
		CHECK(!vgpu_cost_learn(cost, 8 * MS, VGPU_CROWDED | VGPU_SHARED));
	CHECK(cost->mean_ns < 4 * MS);
	vgpu_cost_forget(&costs, 42);
	cost = vgpu_cost_use(&costs, 42);
	CHECK(vgpu_cost_learn(cost, 20000, 0));
	for (int i = 0; i < 1023; i++)
		CHECK(!vgpu_cost_learn(cost, 40000, VGPU_SHARED));
	IS(cost->mean_ns, 20000);
	CHECK(vgpu_cost_learn(cost, 40000, VGPU_SHARED)); /* it is another kernel now */
	IS(cost->mean_ns, 40000);
	vgpu_cost_forget(&costs, 42);
	CHECK(!vgpu_cost_find(&costs, 42));
	/* More kernels than there is room for: the table is as large as it was. */
	for (uint64_t key = 1; key < 100000; key++) {
		cost = vgpu_cost_use(&costs, key);
		CHECK(cost && cost->key == key && !cost->samples);
		vgpu_cost_learn(cost, key, 0);
	}
	CHECK(vgpu_cost_find(&costs, 99999)->mean_ns == 99999);
}

static void sampling(void)
{
	struct vgpu_cost *cost = vgpu_cost_use(&costs, UINT64_C(1) << 40);
	int taken = 0;

	for (int i = 0; i < 256 * 100; i++)
		if (vgpu_cost_wants_sample(cost)) {
			vgpu_cost_sampled(cost, 1);
			vgpu_cost_learn(cost, 5000, 0);
			taken++;
		}
	CHECK(taken >= 100 && taken < 125);
}

static void overlaps(void)
{
	const int64_t begin[4] = {0, 50, 300, 310}, end[4] = {100, 150, 400, 320};
	int64_t own[4];

	vgpu_attribute(begin, end, 4, own);
	IS(own[0], 75);
	IS(own[1], 75);
	IS(own[2], 95);
	IS(own[3], 5);
	vgpu_attribute(begin, end, 0, own);
}

static struct vgpu_pacer pacer;

static void launches(void)
{
	struct vgpu_region_device device = {0};
	struct vgpu_bill bill = {.devices = {&device}, .count = 1, .rate = half};
	struct vgpu_ticket ticket, other;
	uint64_t when, now = NOW;
	unsigned int taken = 0;
	int first, sample;

	/* Unknown: one goes, free, with a sample; the next waits for that, for a while. */
	IS(vgpu_pacer_ask(&pacer, &bill, now, 7, 1, true, &ticket, &when), VGPU_GO);
	IS(ticket.cost_ns, 0);
	CHECK(ticket.sample >= 0);
	IS(vgpu_pacer_oldest(&pacer, &first), -1); /* it is being launched */
	vgpu_pacer_launched(&pacer, &ticket);
	IS(vgpu_pacer_ask(&pacer, &bill, now, 7, 1, true, &other, &when), VGPU_MEASURE);
	CHECK(when > now && when < now + 100 * MS);
	IS(vgpu_pacer_ask(&pacer, &bill, now, 7, 1, false, &other, &when), VGPU_GO);
	CHECK(other.cost_ns > 0 && other.sample >= 0);
	vgpu_pacer_undo(&pacer, &bill, now, &other);
	sample = vgpu_pacer_oldest(&pacer, &first);
	IS(sample, ticket.sample);
	IS(first, sample);
	device.due_ns = now;
	vgpu_pacer_measured(&pacer, &bill, now + 40 * MS, sample, 0, 40 * (int64_t)MS);
	IS(device.due_ns, now + 30 * MS + 80 * MS); /* 10 ms of idleness are kept */
	IS(vgpu_pacer_ask(&pacer, &bill, now + 41 * MS, 7, 1, true, &other, &when), VGPU_WAIT);
	IS(when, device.due_ns);
	IS(vgpu_pacer_ask(&pacer, &bill, when, 7, 1, true, &other, &when), VGPU_GO);
	IS(other.cost_ns, 40 * MS);
	vgpu_pacer_lost(&pacer, other.sample);
	/* With all places taken an unknown kernel waits for one, and a known one does not. */
	while (vgpu_pacer_ask(&pacer, &bill, now + 1000 * MS, 500 + taken, 1, true, &other,
			      &when) == VGPU_GO)
		taken++;
	CHECK(taken > VGPU_SAMPLES / 2 && taken <= VGPU_SAMPLES);
	IS(vgpu_pacer_ask(&pacer, &bill, now + 1000 * MS, 700, 1, true, &other, &when),
	   VGPU_MEASURE);
	IS(vgpu_pacer_ask(&pacer, &bill, now + 1000 * MS, 700, 1, false, &other, &when), VGPU_GO);
	IS(other.sample, -1);
	IS(vgpu_pacer_ask(&pacer, &bill, now + 1000 * MS, 7, 1, true, &other, &when), VGPU_GO);
	IS(other.cost_ns, 40 * MS);
	now += 1000 * MS;
	/* Nobody can be kept out by places that are never given back. */
	for (int i = 0; i < 1000; i++) {
		now += 1000 * MS;
		IS(vgpu_pacer_ask(&pacer, &bill, now, 1000 + (uint64_t)i, 1, true, &other, &when),
		   VGPU_GO);
	}
}

int main(void)
{
	buckets();
	first_samples();
	waits();
	policies();
	gates();
	trims();
	learning();
	sampling();
	overlaps();
	launches();
	return 0;
}
