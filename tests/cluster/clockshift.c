/* SPDX-License-Identifier: Apache-2.0
 *
 * Moves the wall clock of one process, at any moment: the number of seconds is
 * in the first eight bytes of the file $CLOCK_SHIFT_FILE, which stays mapped.
 * Clocks that never jump (monotonic, boot time) are left alone. A time namespace
 * cannot do this: it shifts exactly those and not the wall clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *shift;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void prepare(void)
{
	const char *path = getenv("CLOCK_SHIFT_FILE");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	if (fd < 0)
		return;
	void *memory = mmap(NULL, sizeof(*shift), PROT_READ, MAP_SHARED, fd, 0);

	close(fd);
	if (memory != MAP_FAILED)
		shift = memory;
}

int clock_gettime(clockid_t id, struct timespec *now)
{
	if (!real_clock_gettime)
		prepare();
	int result = real_clock_gettime(id, now);

	if (result == 0 && shift && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
		now->tv_sec += *shift;
	return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec exact;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &exact);
	now->tv_sec = exact.tv_sec;
	now->tv_usec = exact.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *result)
{
	struct timespec exact;

	clock_gettime(CLOCK_REALTIME, &exact);
	if (result)
		*result = exact.tv_sec;
	return exact.tv_sec;
}
