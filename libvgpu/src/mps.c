/* SPDX-License-Identifier: Apache-2.0
 *
 * How much of a card's multiprocessors the Multi-Process Service leaves this process.
 *
 * Where the grant says that the node serves the card by MPS, its limit holds in space, and
 * to hold it in time as well would count it twice. Both is left to the driver's word:
 * the process must be a client (CU_DEVICE_ATTRIBUTE_MPS_ENABLED) of the daemon
 * that the node has mounted, not of one of its own, which would share nothing with the
 * neighbours. The variables are read just before the driver reads them, at its first cuInit.
 * A program that takes them away is held in time, as without MPS.
 *
 * The percentage is each process's, and the limit is all processes': several of them are held in
 * time to what is left for them together.
 */
#include <stdlib.h>
#include <string.h>

#include "vgpu.h"

static uint32_t chosen; /* percent, if this process is a client; 0 = not known yet */
static uint32_t left[VGPU_MAX_CARDS];
static struct crowd {
	uint64_t looked_ns;
	bool shared;
} crowds[VGPU_MAX_CARDS];

#define LOOK_NS 50000000u /* between counts of the processes */

/* "12.5" counts as 13: what is too much is paid for in time. */
static uint32_t parse_percent(const char *text)
{
	uint32_t value = 0;

	if (!text || *text < '0' || *text > '9')
		return 100;
	for (; *text >= '0' && *text <= '9' && value < 100; text++)
		value = value * 10 + (uint32_t)(*text - '0');
	if (*text == '.' && strspn(text + 1, "0") < strspn(text + 1, "0123456789"))
		value++;
	return value && value < 100 ? value : 100;
}

/* What the driver is about to read: percent that a client of the node's daemon gets. */
uint32_t vgpu_mps_read(void)
{
	const char *pipes = getenv("CUDA_MPS_PIPE_DIRECTORY");

	if (!pipes || strcmp(pipes, vgpu_mps_pipes()) != 0)
		return 100;
	return parse_percent(getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"));
}

/* The driver has started with it: what is set afterwards has no effect. */
void vgpu_mps_started(uint32_t percent)
{
	uint32_t unknown = 0;

	atomic_compare_exchange_strong(&chosen, &unknown, percent);
}

/* Of the card of the current context; 100 where MPS leaves it all, or is not there. */
uint32_t vgpu_mps_percent(const struct vgpu_card *card)
{
	uint32_t *known = &left[card - vgpu_grants()->cards];
	uint32_t percent = atomic_load_explicit(known, memory_order_relaxed);
	__typeof__(&cuDeviceGetAttribute) ask;
	__typeof__(&cuCtxGetDevice) current;
	CUdevice device;
	int served = 0;

	if (percent)
		return percent;
	ask = VGPU_REAL(cuDeviceGetAttribute);
	current = VGPU_REAL(cuCtxGetDevice);
	percent = atomic_load_explicit(&chosen, memory_order_relaxed);
	if (!percent || !ask || !current || current(&device) != CUDA_SUCCESS)
		return 100;
	/* Drivers from before the attribute do not know it: then time it is. */
	if (ask(&served, CU_DEVICE_ATTRIBUTE_MPS_ENABLED, device) != CUDA_SUCCESS || !served)
		percent = 100;
	atomic_store_explicit(known, percent, memory_order_relaxed);
	return percent;
}

static unsigned int count_processes(struct vgpu_view *view)
{
	unsigned int count = 0;

	for (unsigned int i = 0; i < VGPU_REGION_SLOTS; i++)
		count += __atomic_load_n(&view->map->slots[i].state, __ATOMIC_RELAXED) ==
			 VGPU_SLOT_LIVE;
	return count;
}

/* Whether other processes have a share of the card, too. The dead count until somebody
 * misses their memory. */
bool vgpu_mps_is_shared(const struct vgpu_card *card)
{
	struct crowd *crowd = &crowds[card - vgpu_grants()->cards];
	uint64_t now = vgpu_now_ns();
	bool shared = false;

	if (now - atomic_load_explicit(&crowd->looked_ns, memory_order_relaxed) < LOOK_NS)
		return atomic_load_explicit(&crowd->shared, memory_order_relaxed);
	atomic_store_explicit(&crowd->looked_ns, now, memory_order_relaxed);
	for (unsigned int i = 0; i < card->part_count && !shared; i++) {
		struct vgpu_view *view = card->parts[i].view;

		vgpu_slot_claim(view); /* so that others count this one, which may have no memory */
		shared = count_processes(view) > 1;
	}
	atomic_store_explicit(&crowd->shared, shared, memory_order_relaxed);
	return shared;
}
