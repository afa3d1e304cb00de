/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "vgpu.h"

/* A holder needs microseconds. It may have to wait for a core first, behind all who
 * wait for it; one that is stopped is not waited for. */
#define STANDSTILL_NS 1000000000u
#define GIVE_UP_NS 10000000000u
#define LOOK_NS 1000000u /* a holder that was killed wakes nobody */

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

/* Until the word is woken or changed, or the time is over. */
void vgpu_wait_while(uint32_t *word, uint32_t value, unsigned int ns)
{
	struct timespec most = {.tv_nsec = (long)ns};

	syscall(SYS_futex, word, FUTEX_WAIT, value, &most, NULL, 0);
}

void vgpu_wake(uint32_t *word, int count)
{
	syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

static int set_lock(int fd, short type, off_t offset)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1};

	return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : -errno;
}

/* Locks a byte of a file between processes: the kernel lets go of it when the holder
 * dies, and `turns`, which all of them have mapped, is where the others sleep. Gives up
 * only if nobody has had a turn for a second, or after ten. */
bool vgpu_file_lock(int fd, off_t offset, uint32_t *turns)
{
	uint64_t begin = vgpu_now_ns(), since = begin, now;
	uint32_t seen = __atomic_load_n(turns, __ATOMIC_ACQUIRE), turn;
	int result;

	for (;;) {
		turn = __atomic_load_n(turns, __ATOMIC_ACQUIRE); /* before the try */
		result = set_lock(fd, F_WRLCK, offset);
		if (result == 0)
			return true;
		if (result != -EAGAIN && result != -EACCES && result != -EINTR)
			return false;
		now = vgpu_now_ns();
		if (turn != seen)
			since = now;
		seen = turn;
		if (now - since > STANDSTILL_NS || now - begin > GIVE_UP_NS)
			return false;
		vgpu_wait_while(turns, turn, LOOK_NS);
	}
}

/* Closing the descriptor would not do: a child forked meanwhile has it, too. */
void vgpu_file_unlock(int fd, off_t offset, uint32_t *turns)
{
	set_lock(fd, F_UNLCK, offset);
	__atomic_add_fetch(turns, 1, __ATOMIC_RELEASE);
	vgpu_wake(turns, 1);
}
