/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: faults on demand, of this process alone. simFault, or
 * VGPU_SIM_FAULT in the environment, says which:
 *
 *   oom N COUNT    from the Nth time on that memory is taken from a card, COUNT times
 *                  there is none; the driver itself may try more than once
 *   error N COUNT  the same, but the answer is another error
 *   slow N US      the Nth time takes so many microseconds
 *   lost N         from the Nth call on that needs a context, the card is gone
 *   none
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libcuda.h"
#include "state.h"

static struct {
	enum { NONE, OOM, ERROR, SLOW, LOST } kind;
	unsigned long from, amount, count;
} fault;

static int before_taking(void)
{
	unsigned long number;

	if (fault.kind == NONE || fault.kind == LOST)
		return 0;
	number = __atomic_add_fetch(&fault.count, 1, __ATOMIC_SEQ_CST);
	if (fault.kind == SLOW && number == fault.from) {
		struct timespec time = {(time_t)(fault.amount / 1000000),
					(long)(fault.amount % 1000000) * 1000};

		while (nanosleep(&time, &time) != 0 && errno == EINTR)
			;
	}
	if (fault.kind == SLOW || number < fault.from || number - fault.from >= fault.amount)
		return 0;
	return fault.kind == OOM ? -ENOMEM : -EIO;
}

bool sim_fault_lost(void)
{
	return fault.kind == LOST &&
	       __atomic_add_fetch(&fault.count, 1, __ATOMIC_SEQ_CST) >= fault.from;
}

/* For tests, whatever stands before the driver. False: it is not understood. */
SIM bool simFault(const char *text)
{
	static const char *const kinds[] = {"none", "oom", "error", "slow", "lost"};
	char kind[16] = "";
	unsigned long from = 1, amount = 1;

	if (sscanf(text, "%15s %lu %lu", kind, &from, &amount) < 1)
		return false;
	for (int i = 0; i < 5; i++)
		if (strcmp(kind, kinds[i]) == 0) {
			fault.count = 0;
			fault.from = from;
			fault.amount = amount;
			fault.kind = i;
			sim_before_taking = before_taking;
			return true;
		}
	return false;
}

void sim_faults_start(void)
{
	const char *text = getenv("VGPU_SIM_FAULT");

	if (text && !simFault(text))
		fprintf(stderr, "VGPU_SIM_FAULT: \"%s\" is not understood\n", text);
}
