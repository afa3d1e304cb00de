/* SPDX-License-Identifier: Apache-2.0
 *
 * What every test stands on: a temporary directory with two simulated cards and
 * the grants that the test asks for. A test runs with libvgpu preloaded, which
 * does nothing before the first cuInit, so the world may be made in main().
 * Exit 0 = passed, 1 = failed, 77 = cannot run here.
 */
#ifndef VGPU_TESTS_WORLD_H
#define VGPU_TESTS_WORLD_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda_api.h"
#include "nvml_api.h"
#include "vgpu/grant.h"
#include "vgpu/region.h"

#define MIB (UINT64_C(1) << 20)
#define CARD_A "GPU-aaaaaaaa-0000-1111-2222-333333333333" /* 40960 MiB */
#define CARD_B "GPU-bbbbbbbb-0000-1111-2222-333333333333" /* 16384 MiB */

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
			_Exit(1);                                                                  \
		}                                                                                  \
	} while (0)
#define IS(call, expected)                                                                         \
	do {                                                                                       \
		long long is_value = (long long)(call), is_expected = (long long)(expected);       \
		if (is_value != is_expected) {                                                     \
			fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__,       \
				#call, is_value, is_expected);                                     \
			_Exit(1);                                                                  \
		}                                                                                  \
	} while (0)
#define OK(call) IS(call, 0)

void world(void);
/* Says before cuInit which CUDA version the driver has; five digits. */
void world_driver(const char *cuda_version);
/* Likewise a line of cards.ini, for the second card. */
void world_last_card(const char *line);
/* A number of the environment. */
uint64_t world_setting(const char *name, uint64_t otherwise);
const char *world_path(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Grants `mib` of up to two cards (NULL = no second one); 0 = not limited. */
void world_grant(const char *name, const char *uuid, uint64_t mib, const char *uuid2,
		 uint64_t mib2);
/* The same below another directory of the world, for another tenant's VGPU_GRANT_ROOT. */
void world_grant_at(const char *directory, const char *name, const char *uuid, uint64_t mib);
void world_grant_both_at(const char *directory, const char *name, const char *uuid, uint64_t mib,
			 const char *uuid2, uint64_t mib2);
void world_set_flags(const char *grant, unsigned int device, uint32_t flags);
/* Of the first device: its compute, and all flags. */
void world_set_compute(const char *name, uint32_t percent, uint32_t policy, uint32_t flags);
void world_write(const char *path, const void *data, size_t size);
/* The mapped region of a grant, made by some process before. */
struct vgpu_region *world_region(const char *name);

/* cuInit and a context on device 0. */
void use_gpu(void);
CUdeviceptr must_alloc(uint64_t mib);

/* What goes wrong in the driver from now on, in this process: see sim/faults.c. */
bool simFault(const char *text);
/* What all processes use of a card, and the most that they ever did, as the
 * simulated driver knows it. */
void simCardUse(int card, uint64_t *used, uint64_t *peak);
/* How long this thread has waited in the simulated driver for other processes. */
uint64_t simWaitedNs(void);
uint64_t card_used(int card);
uint64_t card_peak(int card);

/* Memory of another API, and how it is given back. */
CUresult import_external(uint64_t bytes, uint64_t *piece);
CUresult drop_external(uint64_t piece);
/* Memory that a graph takes when it is launched. The executable graph is not kept: its
 * memory stays until it is freed. */
CUresult launch_allocation(uint64_t bytes, uint64_t *piece);
CUresult free_and_trim(uint64_t piece);

/* Runs the function in a child; returns its exit code, or 128 + signal. */
int in_child(void (*function)(void));
int start_child(void (*function)(void));
int wait_child(int pid);
/* Children tell and are told by single bytes through two pipes. */
struct channel {
	int up[2], down[2];
};
void channel_open(struct channel *channel);
void channel_tell(int fd);
void channel_hear(int fd);
/* One socket for descriptors, which all children have. */
void wire_open(void);
void wire_send(int fd);
int wire_receive(void);
/* Nobody may fork who has used the GPU: a process that has not starts the children, and
 * kills them (signal 0: only waits). */
void starter_begin(void);
int starter_start(void (*function)(void));
int starter_end(int pid, int signal);

#endif
