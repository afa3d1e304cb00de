/* SPDX-License-Identifier: Apache-2.0
 *
 * HAMi-core's limiter as it is described: a launch takes as many tokens as its grid has
 * blocks, after a look whether any are left; every 120 ms the growth of tokens is moved
 * by a step that goes with the square of the SMs and the distance to the limit, and the
 * tokens grow by it. Each process has tokens of its own, all see the sum of their time.
 */
#include "model.h"

#define SMS 132
#define THREADS 2048
#define WATCH_NS 120000000u
#define NAP_NS 10000000u

void stock_begin(struct stock *stock, uint64_t now)
{
	stock->total = (int64_t)SMS * THREADS * 32;
	stock->share = stock->tokens = 0;
	stock->next_watch = now + WATCH_NS;
}

bool stock_take(struct stock *stock, uint64_t now, unsigned int percent, int64_t blocks,
		uint64_t *when)
{
	if (percent >= 100)
		return true;
	if (stock->tokens < 0) {
		*when = now + NAP_NS;
		return false;
	}
	stock->tokens -= blocks;
	return true;
}

void stock_watch(struct stock *stock, uint64_t now, unsigned int limit, unsigned int util)
{
	int64_t diff = (int64_t)limit - (int64_t)util, step;

	stock->next_watch = now + WATCH_NS;
	if (diff < 0)
		diff = -diff;
	if (diff < 5)
		diff = 5;
	step = (int64_t)SMS * SMS * THREADS * diff / 2560;
	if (diff > limit / 2)
		step = step * 2 * diff / ((int64_t)limit + 1);
	stock->share += util <= limit ? step : -step;
	if (stock->share < 0)
		stock->share = 0;
	if (stock->share > stock->total)
		stock->share = stock->total;
	if (stock->share == stock->total && stock->tokens < 0)
		stock->total *= 2;
	stock->tokens += stock->share;
	if (stock->tokens > stock->total)
		stock->tokens = stock->total;
}
