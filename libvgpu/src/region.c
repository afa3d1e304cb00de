/* SPDX-License-Identifier: Apache-2.0
 *
 * Opens or creates a region file. Whatever is wrong with it, the process goes
 * on with a region of its own: its limit then holds for it alone, and one line
 * on stderr says so.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "vgpu.h"

static uint64_t random64(void)
{
	uint64_t value = 0;
	int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (read(fd, &value, sizeof(value)) != (ssize_t)sizeof(value))
			value = 0;
		close(fd);
	}
	return value ^ vgpu_now_ns() ^ ((uint64_t)getpid() << 40);
}

static void fill(struct vgpu_region *region, const struct vgpu_grant *grant)
{
	struct vgpu_region_header *header = &region->header;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	memcpy(header->magic, VGPU_REGION_MAGIC, sizeof(header->magic));
	header->abi_major = VGPU_REGION_ABI_MAJOR;
	header->abi_minor = VGPU_REGION_ABI_MINOR;
	header->file_size = sizeof(struct vgpu_region);
	header->header_size = sizeof(struct vgpu_region_header);
	header->device_size = sizeof(struct vgpu_region_device);
	header->slot_size = sizeof(struct vgpu_region_slot);
	header->device_count = grant->device_count;
	header->slot_count = VGPU_REGION_SLOTS;
	header->instance = random64();
	header->created_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	for (unsigned int i = 0; i < grant->device_count; i++) {
		memcpy(region->devices[i].uuid, grant->devices[i].uuid, VGPU_UUID_SIZE);
		region->devices[i].limit_bytes = grant->devices[i].memory_limit_bytes;
	}
}

static int write_all(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t written = write(fd, data, size);

		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
			return written < 0 ? -errno : -EIO;
		data += written;
		size -= (size_t)written;
	}
	return 0;
}

/* Every block is written, so that a full disk is an error here and not a
 * SIGBUS later; then the finished file is linked to its name, which fails if
 * another process was first. */
static int create(const struct vgpu_view *view, const struct vgpu_grant *grant)
{
	struct vgpu_region *content;
	char temporary[sizeof(view->path) + 40];
	int fd, result;

	content = mmap(NULL, sizeof(*content), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
	if (content == MAP_FAILED)
		return -errno;
	fill(content, grant);
	snprintf(temporary, sizeof(temporary), "%s.%016llx.new", view->path,
		 (unsigned long long)random64());
	fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
	result = fd < 0 ? -errno : write_all(fd, (const char *)content, sizeof(*content));
	munmap(content, sizeof(*content));
	if (fd < 0)
		return result;
	/* Containers of one claim may run as different users; the umask is the
	 * program's own business and stays as it is. */
	if (fchmod(fd, 0666) != 0 && result == 0)
		result = -errno;
	close(fd);
	if (result == 0 && link(temporary, view->path) != 0 && errno != EEXIST)
		result = -errno;
	unlink(temporary);
	return result;
}

static const char *check(const struct vgpu_region *region, const struct vgpu_grant *grant)
{
	const struct vgpu_region_header *header = &region->header;

	if (memcmp(header->magic, VGPU_REGION_MAGIC, sizeof(header->magic)) != 0)
		return "it does not begin with " VGPU_REGION_MAGIC;
	if (header->abi_major != VGPU_REGION_ABI_MAJOR)
		return "its ABI major version is unknown";
	if (header->file_size != sizeof(struct vgpu_region) ||
	    header->header_size != sizeof(struct vgpu_region_header) ||
	    header->device_size != sizeof(struct vgpu_region_device) ||
	    header->slot_size != sizeof(struct vgpu_region_slot) ||
	    header->slot_count != VGPU_REGION_SLOTS || header->device_count != grant->device_count)
		return "its sizes are not those of this ABI and grant";
	for (unsigned int i = 0; i < grant->device_count; i++)
		if (memcmp(region->devices[i].uuid, grant->devices[i].uuid, VGPU_UUID_SIZE) != 0)
			return "its cards are not those of the grant";
	return NULL;
}

static const char *map(struct vgpu_view *view, const struct vgpu_grant *grant)
{
	int fd = -1;
	const char *reason = NULL;
	void *memory;

	for (int attempt = 0; attempt < 2 && fd < 0; attempt++) {
		fd = open(view->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (fd < 0) {
			int result = errno == ENOENT ? create(view, grant) : -errno;

			if (result < 0)
				return strerror(-result);
		}
	}
	if (fd < 0)
		return strerror(errno);
	if (lseek(fd, 0, SEEK_END) != (off_t)sizeof(struct vgpu_region)) {
		close(fd);
		return "its size is wrong";
	}
	memory = mmap(NULL, sizeof(struct vgpu_region), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		reason = strerror(errno);
	close(fd);
	if (reason)
		return reason;
	reason = check(memory, grant);
	if (reason) {
		munmap(memory, sizeof(struct vgpu_region));
		return reason;
	}
	view->map = memory;
	view->instance = view->map->header.instance;
	return NULL;
}

void vgpu_region_attach(struct vgpu_view *view, const char *path, const struct vgpu_grant *grant)
{
	const char *reason;
	void *memory;

	memset(view, 0, sizeof(*view));
	view->fd = -1;
	if (snprintf(view->path, sizeof(view->path), "%s", path) >= (int)sizeof(view->path))
		reason = "its path is too long";
	else
		reason = map(view, grant);
	if (!reason)
		return;
	vgpu_log(VGPU_LOG_ERROR,
		 "region %s cannot be used: %s: the limits hold for this process alone", view->path,
		 reason);
	memory = mmap(NULL, sizeof(struct vgpu_region), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return; /* the caller closes the GPU */
	view->map = memory;
	view->private = true;
	fill(view->map, grant);
}

/* The file behind view->map, opened anew, or a negative errno. The descriptor
 * is not kept: programs close descriptors they did not open, and a kept number
 * would soon be somebody else's file. */
int vgpu_region_open(const struct vgpu_view *view)
{
	uint64_t instance = 0;
	int fd = open(view->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

	if (fd < 0)
		return -errno;
	if (pread(fd, &instance, sizeof(instance), offsetof(struct vgpu_region_header, instance)) !=
		    (ssize_t)sizeof(instance) ||
	    instance != view->instance) {
		close(fd);
		return -ESTALE;
	}
	return fd;
}
