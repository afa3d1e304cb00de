/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs that launch kernels in a loop, each on a processor of its own, and the node
 * that publishes the trim.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define LAUNCH_NS 4000   /* a launch by the driver */
#define ASK_NS 120       /* the controller's part of it */
#define SAMPLE_NS 3000   /* an event pair */
#define WAKE_NS 8000     /* from the end of a kernel until a synchronised program goes on */
#define LATE_NS 50000    /* the kernel's timer slack ... */
#define JITTER_NS 20000  /* ... and what comes on top */
#define POLL_NS 200000   /* as in pace.c */
#define MEASURE_NS 50000 /* as in pace.c */
#define NAP_NS 20000000u /* as in pace.c: debts may shrink meanwhile */
#define TICK_NS 10000000u
#define HISTORY 100 /* ticks in what NVML averages over */
#define LAG 20      /* and how old that is when it is told */
#define GRAPH_NODES 20
#define GRAPH_NS 50000000u

struct tenant { /* a grant */
	struct vgpu_region_device device;
	struct vgpu_bill bill;
	unsigned int percent;
	uint64_t charged_before, long_before;
	struct vgpu_trim trim;
};

struct program {
	unsigned int number; /* of its process on the card */
	struct tenant *tenant;
	struct vgpu_pacer *pacer;
	struct stock stock;
	uint64_t kernel_ns;
	enum loop loop;
	enum controller controller;
	uint64_t next, asked, polled;
	uint64_t wait_end; /* of patience */
	bool waiting, synchronising;
	unsigned int stream;
	uint64_t launches, stop_ns, start_ns; /* idle in between */
	uint64_t begin[VGPU_SAMPLES], end[VGPU_SAMPLES];
	uint64_t history[HISTORY + LAG];
};

struct world {
	struct card card;
	struct tenant tenants[2];
	struct program programs[PROCESSES];
	unsigned int count, ticks;
	uint64_t chance;
};

static uint64_t draw(struct world *world, uint64_t below)
{
	world->chance =
		world->chance * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (world->chance >> 33) % below;
}

static void reached(void *argument, int sample, bool end, uint64_t now)
{
	struct program *program = argument;

	if (end)
		program->end[sample] = now;
	else
		program->begin[sample] = now;
}

static void poll_samples(struct program *program, uint64_t now)
{
	int first, sample;

	program->polled = now;
	while ((sample = vgpu_pacer_oldest(program->pacer, &first)) >= 0 && program->end[sample]) {
		int64_t base = (int64_t)program->begin[first];

		vgpu_pacer_measured(program->pacer, &program->tenant->bill, now, sample,
				    (int64_t)program->begin[sample] - base,
				    (int64_t)program->end[sample] - base);
	}
}

/* False: it has to wait, and `next` says until when. */
static bool may_launch(struct world *world, struct program *program, uint64_t now, int *sample)
{
	struct vgpu_ticket ticket;
	uint64_t when;

	*sample = -1;
	if (program->controller == NOBODY)
		return true;
	if (program->controller == STOCK) {
		if (stock_take(&program->stock, now, program->tenant->percent,
			       (int64_t)(program->kernel_ns / 100 < 132 ? 132
									: program->kernel_ns / 100),
			       &when))
			return true;
		program->next = when;
		return false;
	}
	if (now - program->polled >= POLL_NS || program->waiting)
		poll_samples(program, now);
	switch (vgpu_pacer_ask(program->pacer, &program->tenant->bill, now,
			       vgpu_kernel_key(program, (const uint32_t[7]){1, 1, 1, 256, 1, 1, 0}),
			       program->stream + 16, !program->wait_end || now < program->wait_end,
			       &ticket, &when)) {
	case VGPU_GO:
		if (program->waiting)
			vgpu_bucket_waited(&program->tenant->device, now - program->asked);
		program->waiting = false;
		program->wait_end = 0;
		*sample = ticket.sample;
		if (*sample >= 0)
			program->begin[*sample] = program->end[*sample] = 0;
		vgpu_pacer_launched(program->pacer, &ticket);
		return true;
	case VGPU_MEASURE:
		if (!program->wait_end)
			program->wait_end = when;
		when = now + MEASURE_NS;
		break;
	case VGPU_WAIT:
		break;
	}
	if (!program->waiting)
		program->asked = now;
	program->waiting = true;
	if (when > now + NAP_NS)
		when = now + NAP_NS;
	program->next = when + LATE_NS + draw(world, JITTER_NS);
	return false;
}

static double left_of(const struct stream *stream)
{
	double left = 0;

	/* Of a full queue the head is enough: there is time until it is empty. */
	for (uint32_t i = stream->head; i != stream->tail && i - stream->head < 64; i++)
		left += stream->queue[i % (4 * QUEUE)].left_ns;
	return left;
}

static void launch(struct world *world, struct program *program, uint64_t now, int sample)
{
	unsigned int nodes = 1;

	if (program->loop == GRAPH) {
		nodes = (unsigned int)(GRAPH_NS / program->kernel_ns);
		nodes = nodes > GRAPH_NODES ? GRAPH_NODES : nodes ? nodes : 1;
	}
	double whole = 0;

	for (unsigned int i = 0; i < nodes; i++)
		whole += (double)program->kernel_ns * 0.9 +
			 (double)draw(world, program->kernel_ns / 5 + 1);
	card_launch(&world->card, program->number, program->stream, whole, sample);
	program->launches++;
	program->next = now + LAUNCH_NS + (program->controller == OURS ? ASK_NS : 0) +
			(sample >= 0 ? SAMPLE_NS : 0);
	if (program->loop == TWO_STREAMS)
		program->stream ^= 1;
	program->synchronising = program->loop == SYNC;
}

static void step(struct world *world, struct program *program, uint64_t now)
{
	struct stream *stream = &world->card.processes[program->number].streams[program->stream];
	int sample;

	if (now >= program->stop_ns && now < program->start_ns) {
		program->next = program->start_ns;
		return;
	}
	if (program->synchronising || stream->kernels >= QUEUE) {
		double left = left_of(stream);

		if (stream->kernels >= QUEUE || stream->head != stream->tail) {
			program->next = now + (left > 500 ? (uint64_t)left : 500);
			return;
		}
		program->synchronising = false;
		program->next = now + WAKE_NS;
		return;
	}
	if (may_launch(world, program, now, &sample))
		launch(world, program, now, sample);
}

/* What NVML would say of a process: whole percent of the last second. */
static unsigned int percent_seen(const struct world *world, const struct program *program)
{
	uint64_t until = program->history[(world->ticks + HISTORY) % (HISTORY + LAG)];
	uint64_t from = program->history[world->ticks % (HISTORY + LAG)];

	return (unsigned int)((until - from) / (SECOND / 100));
}

static unsigned int tenant_seen(const struct world *world, const struct tenant *tenant)
{
	unsigned int sum = 0;

	for (unsigned int i = 0; i < world->count; i++)
		if (world->programs[i].tenant == tenant)
			sum += percent_seen(world, &world->programs[i]);
	return sum;
}

static void publish_trim(struct world *world, struct tenant *tenant)
{
	int64_t charged = (int64_t)(tenant->device.busy_ns - tenant->charged_before);
	int64_t long_ns = (int64_t)(tenant->device.long_ns - tenant->long_before);
	struct vgpu_trim_reading now = {.limit = tenant->percent * 10,
					.charged_us = (int32_t)(charged / 1000),
					.long_us = (int32_t)(long_ns / 1000),
					.owes = tenant->device.due_ns > world->card.now};

	for (unsigned int i = 0; i < world->count; i++) {
		uint32_t percent = percent_seen(world, &world->programs[i]);

		if (world->programs[i].tenant != tenant)
			now.others += 10 * percent;
		else if (percent)
			now.observed += 10 * percent + 5; /* the middle of what was cut */
	}
	tenant->charged_before = tenant->device.busy_ns;
	tenant->long_before = tenant->device.long_ns;
	vgpu_trim_step(&tenant->trim, &now);
	tenant->bill.trim_permille = tenant->trim.permille;
}

static void tick(struct world *world)
{
	uint64_t now = world->card.now;

	for (unsigned int i = 0; i < world->count; i++) {
		struct program *program = &world->programs[i];

		if (program->controller == STOCK && now >= program->stock.next_watch)
			stock_watch(&program->stock, now, program->tenant->percent,
				    tenant_seen(world, program->tenant));
	}
	if (world->ticks && world->ticks % HISTORY == 0)
		for (unsigned int i = 0; i < 2; i++)
			if (world->tenants[i].percent)
				publish_trim(world, &world->tenants[i]);
	for (unsigned int i = 0; i < world->count; i++)
		world->programs[i].history[world->ticks % (HISTORY + LAG)] =
			world->card.processes[world->programs[i].number].busy_ns;
	world->ticks++;
}

static void run_until(struct world *world, uint64_t until)
{
	while (world->card.now < until) {
		uint64_t next = ((uint64_t)world->ticks) * TICK_NS;
		struct program *first = NULL;

		if (next > until)
			next = until;
		for (unsigned int i = 0; i < world->count; i++)
			if (world->programs[i].next < next) {
				first = &world->programs[i];
				next = first->next;
			}
		card_run(&world->card, next);
		/* The card rounds up to whole nanoseconds. */
		if (first)
			step(world, first, world->card.now > next ? world->card.now : next);
		else if (world->card.now >= (uint64_t)world->ticks * TICK_NS)
			tick(world);
	}
}

static void add_program(struct world *world, struct tenant *tenant, uint64_t kernel_ns,
			enum loop loop, enum controller controller)
{
	struct program *program = &world->programs[world->count];

	program->number = world->count++;
	program->tenant = tenant;
	program->kernel_ns = kernel_ns;
	program->loop = loop;
	program->controller = controller;
	program->stop_ns = program->start_ns = UINT64_MAX;
	program->next = program->number * 1000 + 1;
	program->pacer = calloc(1, sizeof(*program->pacer));
	if (!program->pacer)
		abort();
	stock_begin(&program->stock, 0);
	world->card.processes[program->number].reached = reached;
	world->card.processes[program->number].argument = program;
	world->card.count = world->count;
}

static void make_tenant(struct tenant *tenant, unsigned int percent)
{
	struct vgpu_grant_device grant = {.cores_percent = percent};

	tenant->percent = percent;
	tenant->bill = (struct vgpu_bill){
		.devices = {&tenant->device}, .count = 1, .rate = vgpu_rate_of(&grant, true)};
}

static struct world *make_world(const struct setup *setup)
{
	struct world *world = calloc(1, sizeof(*world));

	if (!world)
		abort();
	world->chance = setup->kernel_ns * 131 + setup->percent * 7 + setup->processes +
			setup->seed * UINT64_C(1000003);
	world->card.now = 0;
	make_tenant(&world->tenants[0], setup->percent);
	for (unsigned int i = 0; i < setup->processes; i++)
		add_program(world, &world->tenants[0], setup->kernel_ns, setup->loop,
			    setup->percent < 100 ? setup->controller : NOBODY);
	if (setup->other_percent) {
		make_tenant(&world->tenants[1], setup->other_percent);
		for (unsigned int i = 0; i < setup->processes; i++)
			add_program(world, &world->tenants[1], setup->kernel_ns, setup->loop,
				    setup->controller);
	} else if (setup->neighbour) {
		add_program(world, &world->tenants[1], 1000000, ASYNC, NOBODY);
	}
	return world;
}

static void free_world(struct world *world)
{
	for (unsigned int i = 0; i < world->count; i++)
		free(world->programs[i].pacer);
	free(world);
}

static void add_up(const struct world *world, const struct tenant *tenant, double *busy,
		   double *work, double *marks, uint64_t *launches)
{
	*busy = *work = *marks = 0;
	for (unsigned int i = 0; i < world->count; i++) {
		const struct process *process = &world->card.processes[i];

		if (world->programs[i].tenant != tenant)
			continue;
		*busy += (double)process->busy_ns;
		*work += process->work_ns;
		*marks += (double)process->marks;
		if (launches)
			*launches += world->programs[i].launches;
	}
}

/* From idle: the last moment at which what was done since is off by more than the
 * windows may be, or a launch's own length. */
static double respond(struct world *world, const struct setup *setup, double mean)
{
	uint64_t start = world->card.now + 2 * SECOND;
	double before, now, work, marks, slack = setup->neighbour ? 4e7 : 2e7;
	double last = 0;
	double length = (double)setup->kernel_ns * 1.1 * setup->processes;

	if (setup->loop == GRAPH)
		length = (setup->kernel_ns * 20 < GRAPH_NS ? (double)setup->kernel_ns * 22
							   : (double)GRAPH_NS * 1.1) *
			 setup->processes;
	if (length > slack)
		slack = length;
	for (unsigned int i = 0; i < world->count; i++)
		if (world->programs[i].tenant == &world->tenants[0]) {
			world->programs[i].stop_ns = world->card.now;
			world->programs[i].start_ns = start;
		}
	run_until(world, start);
	add_up(world, &world->tenants[0], &before, &work, &marks, NULL);
	for (int i = 1; i <= 200; i++) {
		run_until(world, start + (uint64_t)i * TICK_NS);
		add_up(world, &world->tenants[0], &now, &work, &marks, NULL);
		double off = now - before - mean / 100 * i * TICK_NS;

		if (off > slack || off < -slack)
			last = i * (TICK_NS / 1e6);
	}
	return last;
}

void run_setup(const struct setup *setup, double target, struct outcome *outcome)
{
	struct world *world = make_world(setup);
	double busy0, work0, marks0, busy1, work1, marks1, other0, other1, ignore, ignore2, last;
	unsigned int windows = (unsigned int)setup->seconds;
	uint64_t start = (uint64_t)(setup->warm_seconds * 1e9);

	memset(outcome, 0, sizeof(*outcome));
	run_until(world, start);
	add_up(world, &world->tenants[0], &busy0, &work0, &marks0, NULL);
	add_up(world, &world->tenants[1], &other0, &ignore, &ignore2, NULL);
	last = busy0;
	for (unsigned int i = 1; i <= windows; i++) {
		double off;

		run_until(world, start + i * SECOND);
		add_up(world, &world->tenants[0], &busy1, &work1, &marks1, NULL);
		off = (busy1 - last) / 1e7 - target;
		outcome->mae += (off < 0 ? -off : off) / windows;
		last = busy1;
	}
	add_up(world, &world->tenants[0], &busy1, &work1, &marks1, &outcome->launches);
	add_up(world, &world->tenants[1], &other1, &ignore, &ignore2, NULL);
	outcome->mean = (busy1 - busy0) / 1e7 / windows;
	outcome->work = (work1 - work0) / 1e7 / windows;
	outcome->marks = (marks1 - marks0) * 1000 / 1e7 / windows;
	outcome->other = (other1 - other0) / 1e7 / windows;
	if (setup->controller == OURS && setup->percent < 100 && !setup->other_percent)
		outcome->response_ms = respond(world, setup, outcome->mean);
	free_world(world);
}
