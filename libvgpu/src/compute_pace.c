/* SPDX-License-Identifier: Apache-2.0
 *
 * One process's launches: each is charged what its kernel is believed to cost, and now
 * and then an event pair around one tells what it did cost; the difference is settled.
 *
 * A kernel that was never measured goes once, free until its sample is there; whoever
 * launches it again before that waits for the sample, for a while. So an unknown kernel
 * gets at most one launch ahead, and one that only ends when a later launch makes it
 * end stops nothing. With all places for samples taken, an unknown kernel waits for one
 * in the same way: a program of more kernels than are remembered is not free.
 *
 * Launches in several streams run side by side, and their pairs count the same time
 * twice. Then samples are taken of VGPU_GROUP launches in a row, and the time in which
 * several ran is shared among those that ran.
 */
#include "atomics.h"
#include "compute.h"

#define PATIENCE_NS 50000000u   /* for the first sample of a kernel */
#define GROUP_OPEN_NS 50000000u /* a group takes launches for so long */
#define FULL_FOR_NS 1000000000u
#define MIXED_FOR 4096 /* launches, after the stream has changed */

enum { FREE, LAUNCHING, RECORDED, MEASURED, LOST };

#define GET(field) atomic_load_explicit(&(field), memory_order_relaxed)
#define SET(field, value) atomic_store_explicit(&(field), value, memory_order_relaxed)

bool vgpu_pacer_try(struct vgpu_pacer *pacer)
{
	return !GET(pacer->busy) &&
	       !atomic_exchange_explicit(&pacer->busy, 1, memory_order_acquire);
}

void vgpu_pacer_leave(struct vgpu_pacer *pacer)
{
	atomic_store_explicit(&pacer->busy, 0, memory_order_release);
}

static struct vgpu_sample *at(struct vgpu_pacer *pacer, uint32_t index)
{
	return &pacer->samples[index % VGPU_SAMPLES];
}

/* Whether a place will be free soon: one that is held for long may be held for ever. */
static bool is_full(struct vgpu_pacer *pacer, uint64_t now)
{
	uint32_t head = GET(pacer->head);

	return GET(pacer->tail) - head >= VGPU_SAMPLES &&
	       now - GET(at(pacer, head)->launched_ns) < FULL_FOR_NS;
}

/* ---- launching */

static bool is_mixed(struct vgpu_pacer *pacer, uint64_t stream)
{
	uint32_t mixed = GET(pacer->mixed);
	uint64_t last = GET(pacer->last_stream);

	if (last != stream) {
		SET(pacer->last_stream, stream);
		mixed = last ? MIXED_FOR : mixed;
		SET(pacer->mixed, mixed);
	} else if (mixed) {
		SET(pacer->mixed, mixed - 1);
	}
	return mixed != 0;
}

/* A place for the launch's event pair, or -1; the caller may know better than `wanted`. */
static int begin_sample(struct vgpu_pacer *pacer, uint64_t now, uint64_t key, uint64_t stream,
			uint64_t charged, bool mixed, struct vgpu_cost *cost)
{
	struct vgpu_sample *sample;
	int index = -1;

	if (!vgpu_pacer_try(pacer))
		return -1;
	if (pacer->tail - pacer->head < VGPU_SAMPLES) {
		if (!pacer->group_left || now - pacer->group_opened_ns > GROUP_OPEN_NS) {
			pacer->group++;
			pacer->group_opened_ns = now;
			SET(pacer->group_left, mixed ? VGPU_GROUP : 1);
		}
		SET(pacer->group_left, pacer->group_left - 1);
		index = (int)(pacer->tail % VGPU_SAMPLES);
		sample = &pacer->samples[index];
		sample->key = key;
		sample->stream = stream;
		sample->charged_ns = charged;
		SET(sample->launched_ns, now);
		sample->group = pacer->group;
		SET(sample->state, LAUNCHING);
		SET(pacer->tail, pacer->tail + 1);
		SET(cost->pending, GET(cost->pending) + 1);
		vgpu_cost_sampled(cost, mixed ? VGPU_GROUP : 1);
	}
	vgpu_pacer_leave(pacer);
	return index;
}

static bool take_all(const struct vgpu_bill *bill, uint64_t now, uint64_t cost, uint64_t *when)
{
	uint64_t due;

	/* Several grants of a card: each is asked before the first is charged. */
	for (unsigned int i = 1; i < bill->count; i++) {
		due = GET(bill->devices[i]->due_ns);
		if (due > now && due - now < VGPU_DEBT_MAX_NS) {
			*when = due;
			return false;
		}
	}
	if (!vgpu_bucket_take(bill->devices[0], now, cost, &bill->rate, when))
		return false;
	for (unsigned int i = 1; i < bill->count; i++)
		if (!vgpu_bucket_take(bill->devices[i], now, cost, &bill->rate, &due))
			vgpu_bucket_settle(bill->devices[i], now, (int64_t)cost, &bill->rate);
	return true;
}

/* Of a kernel that costs so much: what the node's correction is reckoned from. */
static void count_long(const struct vgpu_bill *bill, uint64_t cost, int64_t charged)
{
	for (unsigned int i = 0; vgpu_trim_is_for(cost) && i < bill->count; i++)
		__atomic_add_fetch(&bill->devices[i]->long_ns, (uint64_t)charged, __ATOMIC_RELAXED);
}

static void settle_all(const struct vgpu_bill *bill, uint64_t now, uint64_t cost, int64_t delta)
{
	for (unsigned int i = 0; i < bill->count; i++)
		vgpu_bucket_settle(bill->devices[i], now, delta, &bill->rate);
	count_long(bill, cost, delta);
}

static uint64_t trimmed(const struct vgpu_bill *bill, uint64_t cost)
{
	return vgpu_trim_apply(cost, bill->trim_permille);
}

enum vgpu_answer vgpu_pacer_ask(struct vgpu_pacer *pacer, const struct vgpu_bill *bill,
				uint64_t now_ns, uint64_t key, uint64_t stream, bool patient,
				struct vgpu_ticket *ticket, uint64_t *when_ns)
{
	struct vgpu_cost *cost = vgpu_cost_use(&pacer->costs, key);
	uint64_t believed = GET(cost->mean_ns);
	/* A graph that has changed has a guess, and each launch is settled when measured. */
	bool mixed, wanted, unknown = !GET(cost->samples) && !believed;

	if (unknown && patient && (GET(cost->pending) || is_full(pacer, now_ns))) {
		*when_ns = now_ns + PATIENCE_NS;
		return VGPU_MEASURE;
	}
	if (unknown && GET(cost->pending))
		believed = PATIENCE_NS; /* it has run for so long */
	ticket->cost_ns = trimmed(bill, believed);
	ticket->sample = -1;
	if (!take_all(bill, now_ns, ticket->cost_ns, when_ns))
		return VGPU_WAIT;
	count_long(bill, believed, (int64_t)ticket->cost_ns);
	ticket->believed_ns = believed;
	mixed = is_mixed(pacer, stream);
	wanted = vgpu_cost_wants_sample(cost);
	if (mixed && GET(pacer->group_left) && now_ns - GET(pacer->group_opened_ns) < GROUP_OPEN_NS)
		wanted = true;
	if (wanted)
		ticket->sample =
			begin_sample(pacer, now_ns, key, stream, ticket->cost_ns, mixed, cost);
	return VGPU_GO;
}

void vgpu_pacer_launched(struct vgpu_pacer *pacer, const struct vgpu_ticket *ticket)
{
	if (ticket->sample >= 0)
		atomic_store_explicit(&pacer->samples[ticket->sample].state, RECORDED,
				      memory_order_release);
}

void vgpu_pacer_lost(struct vgpu_pacer *pacer, int sample)
{
	struct vgpu_cost *cost;
	uint32_t state;

	if (sample < 0)
		return;
	state = GET(pacer->samples[sample].state);
	if (state != LAUNCHING && state != RECORDED)
		return;
	cost = vgpu_cost_find(&pacer->costs, pacer->samples[sample].key);
	if (cost && GET(cost->pending))
		SET(cost->pending, GET(cost->pending) - 1);
	atomic_store_explicit(&pacer->samples[sample].state, LOST, memory_order_release);
}

void vgpu_pacer_undo(struct vgpu_pacer *pacer, const struct vgpu_bill *bill, uint64_t now_ns,
		     const struct vgpu_ticket *ticket)
{
	settle_all(bill, now_ns, ticket->believed_ns, -(int64_t)ticket->cost_ns);
	vgpu_pacer_lost(pacer, ticket->sample);
}

/* ---- measuring */

static uint32_t state_of(const struct vgpu_sample *sample)
{
	return atomic_load_explicit(&sample->state, memory_order_acquire);
}

int vgpu_pacer_oldest(const struct vgpu_pacer *pacer, int *first)
{
	uint32_t tail = GET(pacer->tail);

	for (uint32_t i = pacer->head; i != tail; i++) {
		const struct vgpu_sample *sample = &pacer->samples[i % VGPU_SAMPLES];
		uint32_t j = i;

		if (state_of(sample) == MEASURED || state_of(sample) == LOST)
			continue;
		if (state_of(sample) == LAUNCHING)
			return -1;
		/* The first of its group whose events are there. */
		while (j != pacer->head &&
		       pacer->samples[(j - 1) % VGPU_SAMPLES].group == sample->group)
			j--;
		while (state_of(&pacer->samples[j % VGPU_SAMPLES]) == LOST)
			j++;
		*first = (int)(j % VGPU_SAMPLES);
		return (int)(i % VGPU_SAMPLES);
	}
	return -1;
}

void vgpu_attribute(const int64_t *begin, const int64_t *end, unsigned int count, int64_t *own)
{
	int64_t from = INT64_MAX, next;

	for (unsigned int i = 0; i < count; i++) {
		own[i] = 0;
		if (begin[i] < from)
			from = begin[i];
	}
	for (; from != INT64_MAX; from = next) {
		unsigned int running = 0;

		next = INT64_MAX;
		for (unsigned int i = 0; i < count; i++) {
			if (begin[i] <= from && end[i] > from)
				running++;
			if (begin[i] > from && begin[i] < next)
				next = begin[i];
			if (end[i] > from && end[i] < next)
				next = end[i];
		}
		for (unsigned int i = 0; running && i < count; i++)
			if (begin[i] <= from && end[i] > from)
				own[i] += (next - from) / running;
	}
}

static unsigned int crowded(const struct vgpu_bill *bill)
{
	return bill->trim_permille && bill->trim_permille != VGPU_UNTRIMMED ? VGPU_CROWDED : 0;
}

static void settle_sample(struct vgpu_pacer *pacer, const struct vgpu_bill *bill, uint64_t now,
			  const struct vgpu_sample *sample, int64_t own, unsigned int doubts)
{
	struct vgpu_cost *cost = vgpu_cost_find(&pacer->costs, sample->key);
	uint64_t real = own > 0 ? (uint64_t)own : 0;

	/* With a stranger's time in it, the sample says nothing: the mean is charged. */
	if (cost && !vgpu_cost_learn(cost, real, doubts | crowded(bill)))
		real = GET(cost->mean_ns);
	if (!sample->charged_ns)
		real = vgpu_bucket_first(bill->devices[0], sample->launched_ns, now, real);
	settle_all(bill, now, real, (int64_t)trimmed(bill, real) - (int64_t)sample->charged_ns);
}

static void settle_free(const struct vgpu_bill *bill, uint64_t now,
			const struct vgpu_sample *sample, uint64_t own)
{
	uint64_t real = vgpu_bucket_first(bill->devices[0], sample->launched_ns, now, own);

	settle_all(bill, now, real, (int64_t)trimmed(bill, real));
}

/* Between the first begin of the last stream to begin and the last end of the first to
 * end, every kernel of the process was sampled: streams are FIFO. Those outside may
 * have shared time with launches that nobody measured; they count only if there is not
 * enough else. */
static void settle_group(struct vgpu_pacer *pacer, const struct vgpu_bill *bill, uint64_t now,
			 const uint32_t *members, unsigned int count)
{
	int64_t begin[VGPU_GROUP], end[VGPU_GROUP], own[VGPU_GROUP];
	int64_t from = INT64_MIN, until = INT64_MAX;
	unsigned int inside = 0;

	for (unsigned int i = 0; i < count; i++) {
		const struct vgpu_sample *sample = at(pacer, members[i]);
		bool is_first = true, is_last = true;

		begin[i] = (int64_t)sample->begin_ns;
		end[i] = (int64_t)sample->end_ns;
		for (unsigned int j = 0; j < count; j++)
			if (j != i && at(pacer, members[j])->stream == sample->stream) {
				is_first = is_first && j > i;
				is_last = is_last && j < i;
			}
		if (is_first && begin[i] > from)
			from = begin[i];
		if (is_last && end[i] < until)
			until = end[i];
	}
	for (unsigned int i = 0; i < count; i++)
		inside += begin[i] >= from && end[i] <= until;
	vgpu_attribute(begin, end, count, own);
	for (unsigned int i = 0; i < count; i++) {
		const struct vgpu_sample *sample = at(pacer, members[i]);

		if (begin[i] >= from && end[i] <= until)
			settle_sample(pacer, bill, now, sample, own[i], 0);
		else if (inside * 2 < count)
			settle_sample(pacer, bill, now, sample, own[i], VGPU_SHARED);
		else if (!sample->charged_ns) /* it was free so far */
			settle_free(bill, now, sample, (uint64_t)own[i]);
	}
}

/* Groups at the head that are complete; places become free in order. */
static void advance(struct vgpu_pacer *pacer, const struct vgpu_bill *bill, uint64_t now)
{
	while (pacer->head != pacer->tail) {
		uint32_t group = at(pacer, pacer->head)->group, members[VGPU_GROUP], end;
		unsigned int count = 0;

		for (end = pacer->head; end != pacer->tail && at(pacer, end)->group == group;
		     end++) {
			uint32_t state = state_of(at(pacer, end));

			if (state != MEASURED && state != LOST)
				return;
			if (state == MEASURED && count < VGPU_GROUP)
				members[count++] = end;
		}
		if (group == pacer->group && pacer->group_left &&
		    now - pacer->group_opened_ns < GROUP_OPEN_NS)
			return;
		if (group == pacer->group)
			SET(pacer->group_left, 0);
		if (count)
			settle_group(pacer, bill, now, members, count);
		SET(pacer->head, end);
	}
}

void vgpu_pacer_measured(struct vgpu_pacer *pacer, const struct vgpu_bill *bill, uint64_t now_ns,
			 int sample, int64_t begin_ns, int64_t end_ns)
{
	struct vgpu_sample *done = &pacer->samples[sample];
	struct vgpu_cost *cost = vgpu_cost_find(&pacer->costs, done->key);

	done->begin_ns = (uint64_t)begin_ns;
	done->end_ns = (uint64_t)end_ns;
	if (cost && GET(cost->pending))
		SET(cost->pending, GET(cost->pending) - 1);
	/* Somebody waits for a first figure, even if it is too high by others' time. */
	if (cost && !GET(cost->samples) && end_ns > begin_ns) {
		vgpu_cost_learn(cost, (uint64_t)(end_ns - begin_ns), 0);
	}
	atomic_store_explicit(&done->state, MEASURED, memory_order_release);
	advance(pacer, bill, now_ns);
}
