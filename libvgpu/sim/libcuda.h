/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the simulated libcuda know of each other.
 */
#ifndef VGPU_SIM_LIBCUDA_H
#define VGPU_SIM_LIBCUDA_H

#include <pthread.h>
#include <stdbool.h>

#include "cuda_api.h"

#define SIM __attribute__((visibility("default")))

struct CUctx_st {
	CUdevice device;
	int card;
	unsigned int flags, retained;
	bool alive, primary;
	uint64_t end_ns;         /* when all its work is done */
	uint64_t null_stream_ns; /* when the default stream's is */
	/* limits.c: what was set, less what it was at first; what the card has given for it */
	int64_t raised[3];
	uint64_t limits_taken;
	bool loaded; /* a module was */
	/* Of a green context's: whose memory it uses, and its part of the multiprocessors. */
	CUcontext primary_of;
	CUgreenCtx green;
	unsigned int first_sm, sm_count;
	uint64_t waits_ns; /* no work of it begins before */
};

extern pthread_mutex_t sim_mutex;
CUresult sim_ready(void);
int sim_card_of(CUdevice device);
CUcontext sim_current(void); /* also one of a green context */
/* The current context; of a green one, the primary, which has the memory. */
CUresult sim_usable(CUcontext *context);
bool sim_spoils_capture(void);
/* When a stream will be done; also what tells it from others. */
uint64_t *sim_stream_end(CUcontext context, CUstream stream);
bool sim_mapped(CUdeviceptr start, size_t bytes); /* with sim_mutex held */
void sim_free_all(CUcontext context);             /* with sim_mutex held */
/* Frees memory of cuMemAlloc when its stream gets there; with sim_mutex held. */
CUresult sim_free_late(CUdeviceptr pointer, uint64_t when_ns);
int sim_take_from_card(int card, size_t bytes); /* with sim_mutex held */
void sim_reap_late(void);                       /* with sim_mutex held */

/* ---- limits.c, with sim_mutex held */
CUresult sim_limits_load(CUcontext context);
void sim_limits_end(CUcontext context);

/* ---- work.c */
CUresult sim_stream_new(CUstream *stream, CUcontext context);
/* The green context that a stream runs in, as a context; NULL: all of the card is its. */
CUcontext sim_green_of(CUstream stream);
/* When work there can begin, which the stream would let begin then; and that it ends. */
uint64_t sim_begin(CUcontext green, uint64_t ns);
void sim_ends(CUcontext context, CUcontext green, uint64_t ns);
/* How long so much work takes there. */
uint64_t sim_span(CUcontext green, uint64_t ns);
CUresult sim_event_record(CUevent event, const uint64_t *end); /* over when `*end` as it is now */
uint64_t sim_event_done(CUevent event);                        /* 0: never recorded */

/* ---- faults.c */
void sim_faults_start(void);
bool sim_fault_lost(void);

#endif
