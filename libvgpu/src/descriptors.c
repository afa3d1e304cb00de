/* SPDX-License-Identifier: Apache-2.0
 *
 * How memory behind a descriptor is known again, in whatever process the descriptor
 * arrives: programs send each other nothing else, and the driver's files are all of one
 * inode. But what arrives is a copy of one open file, and so are the locks on it.
 *
 * Memory has a number, and each of its descriptors holds a lock on a byte of its own
 * among the 64 that begin there, far beyond the end of any file. Asked through another
 * open file of the same inode the byte is locked; asked through a copy of the very same
 * one it is not.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "shares.h"

#define BYTES UINT64_C(64)
#define FIRST (UINT64_C(1) << 40)
#define LAST (UINT64_C(1) << 62)
#define QUESTIONS 4096

static int byte_lock(int fd, int command, uint64_t from, uint64_t length, struct flock *answer)
{
	struct flock lock = {.l_type = F_WRLCK,
			     .l_whence = SEEK_SET,
			     .l_start = (off_t)from,
			     .l_len = (off_t)length};
	int result = fcntl(fd, command, &lock);

	if (answer)
		*answer = lock;
	return result == 0 ? 0 : -errno;
}

struct search {
	int fd, other;
	unsigned int questions;
};

/* Which of a range's locks is fd's own; 0: none. The kernel tells of any one lock in a
 * range, so what lies before and behind it has to be asked for. */
static uint64_t find(struct search *search, uint64_t from, uint64_t to)
{
	while (from < to && search->questions++ < QUESTIONS) {
		struct flock there, here;
		uint64_t start, end, found;

		if (byte_lock(search->other, F_OFD_GETLK, from, to - from, &there) != 0 ||
		    there.l_type == F_UNLCK)
			return 0;
		start = (uint64_t)there.l_start;
		end = there.l_len ? start + (uint64_t)there.l_len : to;
		if (byte_lock(search->fd, F_OFD_GETLK, start, 1, &here) == 0 &&
		    here.l_type == F_UNLCK)
			return start;
		found = find(search, from, start);
		if (found)
			return found;
		from = end;
	}
	return 0;
}

static uint64_t random_number(void)
{
	static uint64_t count;
	uint64_t value = 0;
	int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (read(fd, &value, sizeof(value)) != (ssize_t)sizeof(value))
			value = 0;
		close(fd);
	}
	value ^= (vgpu_now_ns() + __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED)) *
		 0x9e3779b97f4a7c15u;
	return FIRST + value % (LAST - FIRST) / BYTES * BYTES;
}

static void write_name(struct vgpu_share_name *name, uint64_t number)
{
	memset(name, 0, sizeof(*name));
	name->kind = VGPU_SHARE_DESCRIPTOR;
	memcpy(name->bytes, &number, sizeof(number));
}

/* 1: this is its name. 0: it has none yet. Or -errno: that cannot be told. */
int vgpu_descriptor_name(struct vgpu_share_name *name, int fd)
{
	struct search search = {.fd = fd};
	char path[64];
	uint64_t number;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	search.other = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (search.other < 0)
		return -errno;
	number = find(&search, FIRST, LAST + BYTES);
	close(search.other);
	write_name(name, number / BYTES * BYTES);
	return number != 0;
}

/* False: that file takes no locks, or has as many descriptors as can be told apart. */
bool vgpu_descriptor_tag(const struct vgpu_share_name *name, int fd)
{
	uint64_t number;

	memcpy(&number, name->bytes, sizeof(number));
	for (uint64_t i = 0; i < BYTES; i++) {
		int result = byte_lock(fd, F_OFD_SETLK, number + i, 1, NULL);

		if (result != -EAGAIN && result != -EACCES)
			return result == 0;
	}
	return false;
}

bool vgpu_descriptor_new_name(struct vgpu_share_name *name, int fd)
{
	write_name(name, random_number());
	return vgpu_descriptor_tag(name, fd);
}
