/* SPDX-License-Identifier: Apache-2.0 */
#include <sched.h>
#include <time.h>

#include "vgpu.h"

void vgpu_lock(struct vgpu_lock *lock)
{
	while (atomic_exchange_explicit(&lock->held, 1, memory_order_acquire))
		sched_yield();
}

void vgpu_unlock(struct vgpu_lock *lock)
{
	atomic_store_explicit(&lock->held, 0, memory_order_release);
}

uint64_t vgpu_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void vgpu_nap_us(unsigned int us)
{
	struct timespec nap = {.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000};

	nanosleep(&nap, NULL);
}
