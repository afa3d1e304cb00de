/* SPDX-License-Identifier: Apache-2.0
 *
 * A model of a card, of programs that launch kernels on it, and of time. What limits
 * the programs is the library's real controller (src/compute_*.c) or, beside it, the
 * formula that HAMi-core uses. Nothing here waits: a minute of the model takes a second.
 */
#ifndef VGPU_BENCH_MODEL_H
#define VGPU_BENCH_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "compute.h"

#define QUEUE 1024 /* launches that a stream's queue holds */
#define STREAMS 2
#define PROCESSES 8
#define SECOND UINT64_C(1000000000)

/* ---- card.c: kernels run in order within a stream, share the card evenly between the
 * streams of a process, and time slices go round between processes. */
struct work {
	double left_ns, whole_ns;
	uint64_t stamp_ns; /* of an event: when it was reached */
	int sample;        /* -1 = a kernel */
	bool end;          /* of a pair */
};
struct stream {
	struct work queue[4 * QUEUE];
	uint32_t head, tail, kernels;
};
struct process {
	struct stream streams[STREAMS];
	uint64_t busy_ns; /* time in which a kernel of it ran */
	double work_ns;   /* of kernels that are done, by their own duration */
	uint64_t done;    /* kernels */
	uint64_t marks;   /* events recorded */
	void (*reached)(void *argument, int sample, bool end, uint64_t now);
	void *argument;
};
struct card {
	struct process processes[PROCESSES];
	unsigned int count, current;
	uint64_t now, slice_left;
};
void card_run(struct card *card, uint64_t until);
/* When the process's next kernel may be done at the earliest. */
void card_launch(struct card *card, unsigned int process, unsigned int stream, double ns,
		 int sample);
bool card_idle(const struct card *card, unsigned int process);

/* ---- stock.c: HAMi-core's limiter, from its description: tokens in blocks, moved every
 * 120 ms by what NVML says of the last second */
struct stock {
	int64_t tokens, share, total;
	uint64_t next_watch;
};
void stock_begin(struct stock *stock, uint64_t now);
bool stock_take(struct stock *stock, uint64_t now, unsigned int percent, int64_t blocks,
		uint64_t *when);
void stock_watch(struct stock *stock, uint64_t now, unsigned int limit, unsigned int util);

/* ---- programs.c */
enum loop { ASYNC, SYNC, GRAPH, TWO_STREAMS, LOOPS };
enum controller { NOBODY, OURS, STOCK };
struct setup {
	uint64_t kernel_ns;
	enum loop loop;
	unsigned int percent, processes;
	bool neighbour;
	enum controller controller;
	unsigned int other_percent; /* a second tenant with the same loop; 0 = none */
	double seconds, warm_seconds;
	uint64_t seed; /* of the kernels' durations and the sleeps' ends */
};
struct outcome {
	double mean, other, mae; /* percent of the card; MAE around `target` */
	double work;             /* percent: kernels done, by their own duration */
	double marks;            /* percent of the card for events */
	double response_ms;      /* from idle until the target is kept */
	uint64_t launches;
};
/* `target` in percent. */
void run_setup(const struct setup *setup, double target, struct outcome *outcome);

#endif
