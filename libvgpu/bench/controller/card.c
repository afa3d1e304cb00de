/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#define SLICE_NS 2000000
#define MARK_NS 1000 /* what an event takes of its stream */

static struct work *head_of(struct stream *stream)
{
	return stream->head == stream->tail ? NULL : &stream->queue[stream->head % (4 * QUEUE)];
}

static bool has_work(const struct process *process)
{
	for (unsigned int i = 0; i < STREAMS; i++)
		if (process->streams[i].head != process->streams[i].tail)
			return true;
	return false;
}

bool card_idle(const struct card *card, unsigned int process)
{
	return !has_work(&card->processes[process]);
}

static void push(struct stream *stream, double ns, int sample, bool end)
{
	stream->queue[stream->tail++ % (4 * QUEUE)] =
		(struct work){.left_ns = ns, .whole_ns = ns, .sample = sample, .end = end};
}

void card_launch(struct card *card, unsigned int process, unsigned int stream, double ns,
		 int sample)
{
	struct stream *to = &card->processes[process].streams[stream];

	if (sample >= 0)
		push(to, MARK_NS, sample, false);
	push(to, ns, -1, false);
	to->kernels++;
	if (sample >= 0)
		push(to, MARK_NS, sample, true);
}

/* The next process in turn that has work. */
static bool choose(struct card *card)
{
	for (unsigned int i = card->slice_left ? 0 : 1; i <= card->count; i++) {
		unsigned int candidate = (card->current + i) % card->count;

		if (!has_work(&card->processes[candidate]))
			continue;
		if (candidate != card->current || !card->slice_left)
			card->slice_left = SLICE_NS;
		card->current = candidate;
		return true;
	}
	return false;
}

static void finish(struct card *card, struct process *process, struct stream *stream)
{
	struct work *work = head_of(stream);

	stream->head++;
	if (work->sample < 0) {
		stream->kernels--;
		process->done++;
		process->work_ns += work->whole_ns;
		return;
	}
	process->marks++;
	/* The begin is stamped when its event is over, the end when its event begins. */
	process->reached(process->argument, work->sample, work->end,
			 work->end ? card->now - MARK_NS : card->now);
}

void card_run(struct card *card, uint64_t until)
{
	while (card->now < until) {
		struct process *process;
		double step;
		unsigned int kernels = 0;

		if (!choose(card)) {
			card->now = until;
			return;
		}
		process = &card->processes[card->current];
		step = (double)(until - card->now);
		if (step > (double)card->slice_left)
			step = (double)card->slice_left;
		for (unsigned int i = 0; i < STREAMS; i++)
			if (head_of(&process->streams[i]) &&
			    head_of(&process->streams[i])->sample < 0)
				kernels++;
		for (unsigned int i = 0; i < STREAMS; i++) {
			struct work *work = head_of(&process->streams[i]);
			double need;

			if (!work)
				continue;
			need = work->sample < 0 ? work->left_ns * kernels : work->left_ns;
			if (need < step)
				step = need;
		}
		uint64_t whole = (uint64_t)(step + 0.999);

		if (!whole)
			whole = 1;
		card->now += whole;
		card->slice_left -= whole < card->slice_left ? whole : card->slice_left;
		if (kernels)
			process->busy_ns += whole;
		for (unsigned int i = 0; i < STREAMS; i++) {
			struct work *work = head_of(&process->streams[i]);

			if (!work)
				continue;
			work->left_ns -= work->sample < 0 ? (double)whole / kernels : (double)whole;
			if (work->left_ns <= 0.5)
				finish(card, process, &process->streams[i]);
		}
	}
}
