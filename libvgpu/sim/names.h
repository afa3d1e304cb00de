/* SPDX-License-Identifier: Apache-2.0
 *
 * Every driver-API name of the CUDA versions that gen/cuda_names.txt lists.
 */
#ifndef VGPU_SIM_NAMES_H
#define VGPU_SIM_NAMES_H

struct sim_name {
	const char *name; /* as exported */
	const char *base; /* as cuGetProcAddress is asked */
	void *function;   /* what dlsym finds */
	void *second;     /* another address that leads to it */
	int since;        /* CUDA version from which it answers for its base */
	int per_thread;   /* only if asked for per-thread default streams */
};

/* Ends with a row of zeros. Later rows of one base are newer. */
extern const struct sim_name sim_names[];

#endif
