/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of the compute limit: controller [--gate] [--only TEXT] [--seed N]
 *
 * Without --gate the full grid is printed, with HAMi's formula beside ours, and cells
 * that miss a target say which. With it a part of the grid runs, and the exit status says
 * whether every cell was within the targets. --seed draws other durations of kernels.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define LONG_NS 10000000 /* few of them run in a second */

struct bounds {
	double mean, mae, work, response_ms, marks;
};

static const char *const loops[LOOPS] = {"async", "sync", "graph", "two streams"};
static const uint64_t kernels[] = {5000, 20000, 200000, 1000000, 10000000, 50000000};
static const unsigned int percents[] = {10, 30, 50, 70, 90};
static unsigned int missed, cells;
static uint64_t seed;

static const char *length_of(uint64_t ns)
{
	static char text[32];

	if (ns < 1000000)
		snprintf(text, sizeof(text), "%u us", (unsigned int)(ns / 1000));
	else
		snprintf(text, sizeof(text), "%u ms", (unsigned int)(ns / 1000000));
	return text;
}

static double native_of(struct setup setup)
{
	struct outcome outcome;

	setup.percent = 100;
	setup.controller = NOBODY;
	setup.seconds = 5;
	setup.warm_seconds = 1;
	run_setup(&setup, 100, &outcome);
	return outcome.mean;
}

static void miss(bool bad, const char *what, char *notes, size_t size)
{
	size_t used = strlen(notes);

	if (bad)
		snprintf(notes + used, size - used, " %s", what);
}

static void cell(struct setup setup, double native, bool compare)
{
	double target = setup.percent < native ? setup.percent : native, off;
	struct outcome ours, stock = {0};
	struct bounds bounds = {1, setup.neighbour ? 4 : 2, 0.97, 200, 0.5};
	char notes[128] = "";

	setup.controller = OURS;
	run_setup(&setup, target, &ours);
	if (compare) {
		setup.controller = STOCK;
		run_setup(&setup, target, &stock);
	}
	off = ours.mean - target;
	cells++;
	miss(off > bounds.mean || off < -bounds.mean, "mean", notes, sizeof(notes));
	miss(ours.mae > bounds.mae, "mae", notes, sizeof(notes));
	miss(ours.work < bounds.work * target, "work", notes, sizeof(notes));
	miss(ours.response_ms > bounds.response_ms, "response", notes, sizeof(notes));
	miss(ours.marks > bounds.marks, "marks", notes, sizeof(notes));
	missed += *notes != 0;
	printf("%-6s  %-11s  %u  %-9s  %3u  %5.1f  %6.2f  %5.2f  %5.1f  %4.0f  %4.2f",
	       length_of(setup.kernel_ns), loops[setup.loop], setup.processes,
	       setup.neighbour ? "neighbour" : "alone", setup.percent, target, off, ours.mae,
	       ours.work / target * 100, ours.response_ms, ours.marks);
	if (compare)
		printf("  %6.2f  %5.2f", stock.mean - target, stock.mae);
	printf("%s%s\n", *notes ? "  missed:" : "", notes);
	fflush(stdout);
}

static void grid(bool gate, const char *only)
{
	for (unsigned int k = 0; k < sizeof(kernels) / sizeof(kernels[0]); k++)
		for (int loop = 0; loop < LOOPS; loop++)
			for (unsigned int many = 0; many < 4; many++) {
				struct setup setup = {
					.kernel_ns = kernels[k],
					.loop = (enum loop)loop,
					.processes = many & 1 ? 4 : 1,
					.neighbour = many & 2,
					.seconds = gate && kernels[k] < LONG_NS ? 6 : 20,
					.seed = seed,
				};
				char name[64];
				double native;

				setup.warm_seconds = setup.neighbour        ? 20
						     : kernels[k] < LONG_NS ? 3
									    : 10;
				snprintf(name, sizeof(name), "%s %s %u %s", length_of(kernels[k]),
					 loops[loop], setup.processes,
					 setup.neighbour ? "neighbour" : "alone");
				if (only && !strstr(name, only))
					continue;
				native = native_of(setup);
				for (unsigned int p = 0; p < 5; p++) {
					if (gate &&
					    (p % 2 || (p + k + (unsigned int)loop + many) % 3))
						continue;
					setup.percent = percents[p];
					cell(setup, native, !gate);
				}
			}
}

static void splits(bool gate)
{
	printf("\nTwo tenants, 30 and 70:\n");
	for (unsigned int k = 0; k < sizeof(kernels) / sizeof(kernels[0]); k++)
		for (unsigned int processes = 1; processes <= 2; processes++) {
			struct setup setup = {.kernel_ns = kernels[k],
					      .processes = processes,
					      .percent = 30,
					      .other_percent = 70,
					      .controller = OURS,
					      .seconds = gate && kernels[k] < LONG_NS ? 6 : 20,
					      .warm_seconds = 12};
			struct outcome outcome;
			bool bad;

			run_setup(&setup, 30, &outcome);
			bad = outcome.mean < 28 || outcome.mean > 32 || outcome.other < 68 ||
			      outcome.other > 72;
			cells++;
			missed += bad;
			printf("%-6s  %u  %.1f : %.1f%s\n", length_of(kernels[k]), processes,
			       outcome.mean, outcome.other, bad ? "  missed" : "");
		}
}

int main(int argc, char **argv)
{
	bool gate = false;
	const char *only = NULL;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--gate") == 0)
			gate = true;
		else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
			only = argv[++i];
		else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
			seed = strtoull(argv[++i], NULL, 10);
		else
			return fprintf(stderr, "usage: %s [--gate] [--only TEXT] [--seed N]\n",
				       argv[0]),
			       2;
	}
	printf("kernel  loop         n  card       lim  goal   error    MAE  work%%  idle  "
	       "marks%s\n",
	       gate ? "" : "   HAMi err, MAE");
	grid(gate, only);
	if (!only)
		splits(gate);
	printf("\n%u of %u cells missed a target\n", missed, cells);
	return gate && missed;
}
