/* SPDX-License-Identifier: Apache-2.0
 *
 * Holds launches to the share: reads the clock, sleeps, records and reads events. What
 * is decided is decided in compute_*.c.
 *
 * No lock is held over a sleep or a driver's call that another thread might wait for:
 * whoever finds the pacer busy goes on without a sample. Every wait has an end that
 * comes by itself, so a process that is stopped or killed anywhere holds up nobody.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "vgpu.h"

#define NAP_NS 20000000u      /* the longest sleep: debts may shrink, limits change */
#define MEASURE_NAP_US 50     /* between looks at a kernel's first sample */
#define POLL_NS 200000u       /* between looks at samples in passing */
#define GATE_NAP_NS 50000000u /* the futex wakes earlier */
#define LEAVE_TRIES 1000

struct pair {
	CUevent begin, end;
	CUcontext context;
};
struct vgpu_paced { /* one for each card; of this process alone */
	struct vgpu_pacer pacer;
	struct pair pairs[VGPU_SAMPLES];
	struct vgpu_renewed gate;
	uint64_t polled_ns;
};

static struct vgpu_paced *paced_cards[VGPU_MAX_CARDS];

/* ---- what is limited */

/* Who is not charged shows in no region that it launches. The node asks, where it has to
 * know, and sleeps on its question as on a futex; until it asks again, nothing but a look at
 * the question is needed. */
static void answer(const struct vgpu_card *card)
{
	int kept_errno = errno;

	for (unsigned int i = 0; card && i < card->part_count; i++) {
		const struct vgpu_part *part = &card->parts[i];
		uint32_t *word = &part->view->map->devices[part->index].watched;

		if (!atomic_load_explicit(word, memory_order_relaxed))
			continue;
		atomic_store_explicit(word, 0, memory_order_relaxed);
		syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	}
	errno = kept_errno;
}

/* Whether any card may be: the one question that an unlimited launch has to ask. */
bool vgpu_pace_wanted(void)
{
	struct vgpu_grants *grants;
	unsigned int count;
	uint32_t asked = 0;

	if (vgpu_state() != VGPU_ON)
		return false;
	grants = vgpu_grants();
	count = atomic_load_explicit(&grants->card_count, memory_order_acquire);
	for (unsigned int i = 0; i < count; i++)
		for (unsigned int j = 0; j < grants->cards[i].part_count; j++) {
			const struct vgpu_part *part = &grants->cards[i].parts[j];
			const struct vgpu_grant_device *device = &part->grant->devices[part->index];
			uint32_t percent =
				atomic_load_explicit(&device->cores_percent, memory_order_relaxed);

			if (percent && percent < 100 &&
			    atomic_load_explicit(&device->core_policy, memory_order_relaxed) !=
				    VGPU_POLICY_DISABLE &&
			    !(atomic_load_explicit(&device->flags, memory_order_relaxed) &
			      VGPU_GRANT_CONTROL_DISABLED))
				return true;
			asked |=
				atomic_load_explicit(&part->view->map->devices[part->index].watched,
						     memory_order_relaxed);
		}
	if (asked)
		answer(count == 1 ? &grants->cards[0] : vgpu_card_current());
	return false;
}

/* The clock is asked only where there is a correction. */
static uint32_t trim_of(struct vgpu_part *part)
{
	uint32_t trim = atomic_load_explicit(&part->view->map->devices[part->index].trim_permille,
					     memory_order_relaxed);

	if (!trim || trim == VGPU_UNTRIMMED)
		return trim;
	return vgpu_part_node_lives(part) ? trim : 0;
}

/* The grants of a card add up; if one is not limited, the card is not. */
static bool make_bill(struct vgpu_card *card, struct vgpu_bill *bill)
{
	bool served = true;

	bill->count = card->part_count;
	bill->rate = (struct vgpu_rate){0};
	bill->trim_permille = 0;
	for (unsigned int i = 0; i < card->part_count; i++) {
		struct vgpu_rate rate = vgpu_part_rate(&card->parts[i]);

		if (rate.permille >= VGPU_UNLIMITED_PERMILLE)
			return false;
		if (!i)
			bill->trim_permille = trim_of(&card->parts[i]);
		bill->devices[i] = &card->parts[i].view->map->devices[card->parts[i].index];
		bill->rate.permille += rate.permille;
		bill->rate.first |= rate.first;
		served &= vgpu_part_is_served(&card->parts[i]);
		if (rate.burst_ns > bill->rate.burst_ns)
			bill->rate.burst_ns = rate.burst_ns;
	}
	if (served) {
		/* In space; what of the limit is left is held in time, which all processes
		 * have together: two of them may have more than 1000. */
		uint32_t percent = vgpu_mps_percent(card);

		bill->rate.permille = bill->rate.permille * 100 / percent;
		if (percent < 100 && bill->rate.permille >= VGPU_UNLIMITED_PERMILLE)
			return vgpu_mps_is_shared(card);
	}
	return bill->rate.permille && bill->rate.permille < VGPU_UNLIMITED_PERMILLE;
}

static struct vgpu_paced *paced_of(const struct vgpu_card *card)
{
	struct vgpu_paced **place = &paced_cards[card - vgpu_grants()->cards], *expected = NULL;
	struct vgpu_paced *paced = atomic_load_explicit(place, memory_order_acquire);
	void *memory;

	if (paced)
		return paced;
	memory = mmap(NULL, sizeof(*paced), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		      0);
	if (memory == MAP_FAILED)
		return NULL;
	if (atomic_compare_exchange_strong(place, &expected, memory))
		return memory;
	munmap(memory, sizeof(*paced));
	return expected;
}

/* A launch into a capture uses no time; a stream that may not be asked is not timed. */
static bool is_captured(CUstream stream, bool per_thread)
{
	__typeof__(&cuStreamIsCapturing) ask =
		per_thread ? VGPU_REAL(cuStreamIsCapturing_ptsz) : VGPU_REAL(cuStreamIsCapturing);
	int status = CU_STREAM_CAPTURE_STATUS_NONE;

	if (!ask)
		return false;
	return ask(stream, &status) != CUDA_SUCCESS || status != CU_STREAM_CAPTURE_STATUS_NONE;
}

/* ---- samples */

static bool push(CUcontext context, CUcontext current)
{
	__typeof__(&cuCtxPushCurrent_v2) real = VGPU_REAL(cuCtxPushCurrent_v2);

	return context != current && real && real(context) == CUDA_SUCCESS;
}

static void pop(bool pushed)
{
	__typeof__(&cuCtxPopCurrent_v2) real = VGPU_REAL(cuCtxPopCurrent_v2);
	CUcontext context;

	if (pushed && real)
		real(&context);
}

/* False: not there yet. A pair that cannot be read is given up. */
static bool read_sample(struct vgpu_paced *paced, const struct vgpu_bill *bill, int sample,
			int first)
{
	__typeof__(&cuEventQuery) query = VGPU_REAL(cuEventQuery);
	__typeof__(&cuEventElapsedTime) elapsed = VGPU_REAL(cuEventElapsedTime);
	const struct pair *pair = &paced->pairs[sample], *base = &paced->pairs[first];
	float begin = 0, end = 0;
	CUresult result = query ? query(pair->end) : CUDA_ERROR_NOT_FOUND;

	if (result == CUDA_ERROR_NOT_READY)
		return false;
	if (result == CUDA_SUCCESS && elapsed && base->context == pair->context)
		result = elapsed(&end, base->begin, pair->end);
	if (result == CUDA_SUCCESS && sample != first)
		result = elapsed(&begin, base->begin, pair->begin);
	if (result != CUDA_SUCCESS || !elapsed || base->context != pair->context)
		vgpu_pacer_lost(&paced->pacer, sample);
	else
		vgpu_pacer_measured(&paced->pacer, bill, vgpu_now_ns(), sample,
				    (int64_t)((double)begin * 1e6), (int64_t)((double)end * 1e6));
	return true;
}

/* Looking at events is forbidden to a thread while another one captures, unless it says
 * that it knows what it does. */
static void read_samples(struct vgpu_paced *paced, const struct vgpu_bill *bill)
{
	CUcontext current;
	int sample, first, mode;

	if (atomic_load_explicit(&paced->pacer.head, memory_order_relaxed) ==
		    atomic_load_explicit(&paced->pacer.tail, memory_order_relaxed) ||
	    !vgpu_pacer_try(&paced->pacer))
		return;
	atomic_store_explicit(&paced->polled_ns, vgpu_now_ns(), memory_order_relaxed);
	current = vgpu_current_context();
	mode = vgpu_capture_mode(CU_STREAM_CAPTURE_MODE_RELAXED);
	for (bool more = true; more;) {
		bool pushed;

		sample = vgpu_pacer_oldest(&paced->pacer, &first);
		if (sample < 0)
			break;
		pushed = push(paced->pairs[sample].context, current);
		more = read_sample(paced, bill, sample, first);
		pop(pushed);
	}
	vgpu_capture_mode(mode);
	vgpu_pacer_leave(&paced->pacer);
}

static bool make_pair(struct pair *pair)
{
	__typeof__(&cuEventCreate) create = VGPU_REAL(cuEventCreate);
	__typeof__(&cuEventDestroy_v2) destroy = VGPU_REAL(cuEventDestroy_v2);
	CUcontext current = vgpu_current_context();

	if (pair->begin && pair->context == current)
		return true;
	if (pair->begin && destroy)
		destroy(pair->begin), destroy(pair->end);
	*pair = (struct pair){.context = current};
	if (!create || create(&pair->begin, 0) != CUDA_SUCCESS)
		return pair->begin = NULL, false;
	if (create(&pair->end, 0) == CUDA_SUCCESS)
		return true;
	if (destroy)
		destroy(pair->begin);
	return pair->begin = NULL, false;
}

static bool record(CUevent event, CUstream stream)
{
	__typeof__(&cuEventRecord) real = VGPU_REAL(cuEventRecord);

	return real && real(event, stream) == CUDA_SUCCESS;
}

static void begin_sample(struct vgpu_launch *launch)
{
	struct pair *pair = &launch->paced->pairs[launch->ticket.sample];
	int mode = vgpu_capture_mode(CU_STREAM_CAPTURE_MODE_RELAXED);
	bool begun = make_pair(pair) && record(pair->begin, launch->stream);

	vgpu_capture_mode(mode);
	if (begun)
		return;
	vgpu_pacer_lost(&launch->paced->pacer, launch->ticket.sample);
	launch->ticket.sample = -1;
}

/* ---- launches */

static void sleep_until(uint64_t ns)
{
	struct timespec until = {.tv_sec = (time_t)(ns / 1000000000u),
				 .tv_nsec = (long)(ns % 1000000000u)};

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

/* True: it was held, and time has passed. */
static bool wait_at_gate(struct vgpu_launch *launch, uint64_t now)
{
	struct timespec nap = {.tv_nsec = GATE_NAP_NS};
	uint32_t *word = &launch->bill.devices[0]->gate;
	uint32_t value = atomic_load_explicit(word, memory_order_relaxed);

	if (!value || launch->bill.rate.first || !vgpu_gate_holds(&launch->paced->gate, value, now))
		return false;
	syscall(SYS_futex, word, FUTEX_WAIT, value, &nap, NULL, 0);
	return true;
}

/* Returns when the launch may go, charged and with its begin recorded. */
void vgpu_pace_enter(struct vgpu_launch *launch, uint64_t key, CUstream stream, bool per_thread)
{
	struct vgpu_card *card = vgpu_card_current();
	uint64_t name = vgpu_stream_name(stream, per_thread), now, began, when, patience = 0;
	bool waited = false;
	int kept_errno = errno;

	launch->paced = NULL;
	answer(card);
	if (!card || !make_bill(card, &launch->bill) || is_captured(stream, per_thread))
		return;
	launch->paced = paced_of(card);
	if (!launch->paced)
		return;
	/* Every thread has a default stream of its own. */
	launch->stream = per_thread && !stream ? (CUstream)2 : stream;
	if (name == VGPU_ALL_STREAMS)
		name = (uintptr_t)&errno;
	now = began = vgpu_now_ns();
	if (now - atomic_load_explicit(&launch->paced->polled_ns, memory_order_relaxed) > POLL_NS)
		read_samples(launch->paced, &launch->bill);
	for (;;) {
		enum vgpu_answer answer;

		if (wait_at_gate(launch, now)) {
			waited = true;
			now = vgpu_now_ns();
			continue;
		}
		answer = vgpu_pacer_ask(&launch->paced->pacer, &launch->bill, now, key, name,
					!patience || now < patience, &launch->ticket, &when);
		if (answer == VGPU_GO)
			break;
		waited = true;
		if (answer == VGPU_MEASURE) {
			if (!patience)
				patience = when;
			vgpu_nap_us(MEASURE_NAP_US);
		} else {
			sleep_until(when < now + NAP_NS ? when : now + NAP_NS);
		}
		read_samples(launch->paced, &launch->bill);
		now = vgpu_now_ns();
		if (!make_bill(card, &launch->bill)) { /* the limit is gone */
			launch->paced = NULL;
			errno = kept_errno;
			return;
		}
	}
	if (waited)
		vgpu_bucket_waited(launch->bill.devices[0], now - began);
	if (launch->ticket.sample >= 0)
		begin_sample(launch);
	errno = kept_errno;
}

CUresult vgpu_pace_leave(struct vgpu_launch *launch, CUresult result)
{
	struct vgpu_paced *paced = launch->paced;
	int mode;

	if (!paced)
		return result;
	if (result != CUDA_SUCCESS) {
		vgpu_pacer_undo(&paced->pacer, &launch->bill, vgpu_now_ns(), &launch->ticket);
		return result;
	}
	if (launch->ticket.sample < 0)
		return result;
	mode = vgpu_capture_mode(CU_STREAM_CAPTURE_MODE_RELAXED);
	if (record(paced->pairs[launch->ticket.sample].end, launch->stream))
		vgpu_pacer_launched(&paced->pacer, &launch->ticket);
	else
		vgpu_pacer_lost(&paced->pacer, launch->ticket.sample);
	vgpu_capture_mode(mode);
	return result;
}

/* ---- ends */

/* A graph's handle may be given out again. */
void vgpu_pace_forget(uint64_t key)
{
	for (unsigned int i = 0; i < VGPU_MAX_CARDS; i++) {
		struct vgpu_paced *paced =
			atomic_load_explicit(&paced_cards[i], memory_order_acquire);

		if (paced)
			vgpu_cost_forget(&paced->pacer.costs, key);
	}
}

/* It costs something else from now on, near what it cost before. */
void vgpu_pace_rename(uint64_t key, uint64_t new_key)
{
	for (unsigned int i = 0; i < VGPU_MAX_CARDS; i++) {
		struct vgpu_paced *paced =
			atomic_load_explicit(&paced_cards[i], memory_order_acquire);

		if (paced)
			vgpu_cost_rename(&paced->pacer.costs, key, new_key);
	}
}

/* Its events went with it. */
void vgpu_pace_context_ended(CUcontext context)
{
	for (unsigned int i = 0; i < VGPU_MAX_CARDS; i++) {
		struct vgpu_paced *paced =
			atomic_load_explicit(&paced_cards[i], memory_order_acquire);
		int tries = 0;

		if (!paced)
			continue;
		while (!vgpu_pacer_try(&paced->pacer) && tries++ < LEAVE_TRIES)
			vgpu_nap_us(10);
		for (int j = 0; j < VGPU_SAMPLES; j++) {
			if (paced->pairs[j].context != context)
				continue;
			vgpu_pacer_lost(&paced->pacer, j);
			paced->pairs[j] = (struct pair){0};
		}
		vgpu_pacer_leave(&paced->pacer);
	}
}

/* In a forked child: the driver is not for it, and a lock may be held for good. */
void vgpu_pace_forget_all(void)
{
	for (unsigned int i = 0; i < VGPU_MAX_CARDS; i++)
		paced_cards[i] = NULL;
}
