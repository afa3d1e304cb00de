/* SPDX-License-Identifier: Apache-2.0
 *
 * How busy a process kept a simulated card: a ring of short spans, summed up over the
 * last second. The caller holds the lock over all processes.
 */
#include "state.h"

void sim_note_busy(struct sim_use *use, uint64_t from, uint64_t until)
{
	uint64_t horizon = (uint64_t)SIM_RING * SIM_BUCKET_NS;

	if (until > horizon && from < until - horizon)
		from = until - horizon;
	while (from < until) {
		uint64_t id = from / SIM_BUCKET_NS, end = (id + 1) * SIM_BUCKET_NS;

		if (end > until)
			end = until;
		if (use->ring[id % SIM_RING].id != (uint32_t)id) {
			use->ring[id % SIM_RING].id = (uint32_t)id;
			use->ring[id % SIM_RING].ns = 0;
		}
		use->ring[id % SIM_RING].ns += (uint32_t)(end - from);
		from = end;
	}
}

/* Of the last second, from where the first bucket that is wholly in it begins. */
unsigned int sim_percent_of(const struct sim_use *use)
{
	uint64_t now = sim_now_ns(), before = now > 1000000000u ? now - 1000000000u : 0;
	uint64_t begin = (before / SIM_BUCKET_NS + 1) * SIM_BUCKET_NS, busy = 0;
	uint64_t from = use->busy_from > begin ? use->busy_from : begin;
	uint64_t until = use->busy_until < now ? use->busy_until : now;

	if (until > from)
		busy = until - from;
	for (int i = 0; i < SIM_RING; i++)
		if ((uint64_t)use->ring[i].id * SIM_BUCKET_NS >= begin)
			busy += use->ring[i].ns;
	return busy >= now - begin ? 100 : (unsigned int)(busy * 100 / (now - begin));
}
