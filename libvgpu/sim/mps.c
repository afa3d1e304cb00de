/* SPDX-License-Identifier: Apache-2.0
 *
 * The Multi-Process Service as a client sees it: a process whose CUDA_MPS_PIPE_DIRECTORY
 * has a daemon's "control" in it when it calls cuInit is a client for good, and
 * CUDA_MPS_ACTIVE_THREAD_PERCENTAGE leaves it that part of the multiprocessors. A
 * kernel then takes longer by as much, as one does that would fill the card. Without a
 * daemon, neither variable has an effect.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "mps.h"
#include "state.h"

static double part = 1;

void sim_mps_start(void)
{
	const char *pipes = getenv("CUDA_MPS_PIPE_DIRECTORY");
	const char *percent = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
	char path[512];
	double value;

	snprintf(path, sizeof(path), "%s/control", pipes ? pipes : "/tmp/nvidia-mps");
	sim_mps_client = access(path, F_OK) == 0;
	value = percent && sim_mps_client ? strtod(percent, NULL) : 0;
	part = value > 0 && value < 100 ? value / 100 : 1;
}

uint64_t sim_mps_stretch(uint64_t ns)
{
	return part < 1 ? (uint64_t)((double)ns / part) : ns;
}

/* A whole one at least: a percentage is rounded to what the card can keep apart. */
int sim_mps_multiprocessors(int count)
{
	int left = (int)((double)count * part + 0.5);

	return left < 1 ? 1 : left;
}
