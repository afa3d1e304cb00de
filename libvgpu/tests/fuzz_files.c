/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes where a tenant can write, and where a node can have written nonsense: the
 * region, the list of shared memory, the grant and the environment. Nothing crashes or
 * hangs, limits hold whatever the region says, and a grant that is not one closes the
 * GPU. The first byte says which of them it is.
 *
 * Links with -fsanitize=fuzzer as it is; without it, main() below changes good files, and
 * those that it is given, or writes them down for libFuzzer to begin with (--seeds DIRECTORY). */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shares.h"
#include "vgpu.h"

#define UUID "GPU-aaaaaaaa-0000-1111-2222-333333333333"
#define LIMIT (UINT64_C(1) << 30)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- what the files under test need of the others */

static char root[256];
static struct vgpu_grants grants;

const char *vgpu_grant_root(void)
{
	return root;
}

bool vgpu_grant_must_be_readonly(void)
{
	return false;
}

struct vgpu_grants *vgpu_grants(void)
{
	return &grants;
}

enum vgpu_state vgpu_state(void)
{
	return grants.state;
}

void *vgpu_real_at(int index)
{
	(void)index;
	return NULL;
}

/* ---- files */

static void require(bool condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "wrong: %s\n", what);
	abort();
}

static const char *path_of(const char *name)
{
	static char path[512];

	snprintf(path, sizeof(path), "%s/uid_gpu/%s", root, name);
	return path;
}

static void write_file(const char *name, const void *data, size_t size)
{
	int fd;

	unlink(path_of(name)); /* locks of earlier rounds stay with the old file */
	fd = open(path_of(name), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	require(fd >= 0 && write(fd, data, size) == (ssize_t)size, "the file is written");
	close(fd);
}

static struct vgpu_grant good_grant(void)
{
	struct vgpu_grant grant = {
		.abi_major = VGPU_GRANT_ABI_MAJOR, .file_size = sizeof(grant), .device_count = 1};

	memcpy(grant.magic, VGPU_GRANT_MAGIC, sizeof(grant.magic));
	snprintf(grant.devices[0].uuid, VGPU_UUID_SIZE, "%s", UUID);
	grant.devices[0].memory_limit_bytes = LIMIT;
	return grant;
}

static void end(void)
{
	static const char *const names[] = {"region/region", "region/region.shares", "grant",
					    "region", ""};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		remove(path_of(names[i]));
	rmdir(root);
}

static void begin(void)
{
	const char *base = getenv("TMPDIR");
	char path[512];

	if (root[0])
		return;
	snprintf(root, sizeof(root), "%s/vgpu-fuzz-XXXXXX", base ? base : "/tmp");
	require(mkdtemp(root) != NULL, "a directory");
	atexit(end);
	snprintf(path, sizeof(path), "%s/uid_gpu", root);
	mkdir(path, 0777);
	snprintf(path, sizeof(path), "%s/uid_gpu/region", root);
	mkdir(path, 0777);
	setenv("LIBCUDA_LOG_LEVEL", "0", 1);
}

static void load(void)
{
	memset(&grants, 0, sizeof(grants));
	vgpu_pointer_forget_all();
	vgpu_grants_load(&grants);
}

static void unload(void)
{
	for (unsigned int i = 0; i < grants.view_count; i++) {
		if (grants.views[i].map)
			munmap(grants.views[i].map, sizeof(struct vgpu_region));
		if (grants.views[i].fd >= 0)
			close(grants.views[i].fd);
	}
	for (unsigned int i = 0; i < grants.card_count && i < 1; i++)
		munmap((void *)(uintptr_t)grants.cards[i].parts[0].grant,
		       sizeof(struct vgpu_grant));
}

/* ---- the four */

static void with_grant(const uint8_t *data, size_t size)
{
	write_file("grant", data, size);
	unlink(path_of("region/region"));
	load();
	require(grants.state == VGPU_ON || grants.state == VGPU_BROKEN, "a grant is not ignored");
	require(grants.state == VGPU_BROKEN || size == sizeof(struct vgpu_grant), "its size");
	for (unsigned int i = 0; i < grants.card_count; i++)
		for (unsigned int p = 0; p < grants.cards[i].part_count; p++) {
			struct vgpu_part *part = &grants.cards[i].parts[p];

			require(part->index < VGPU_MAX_DEVICES, "a device's place");
			require(vgpu_part_limit(part) != 0, "no limit is 0");
			require(vgpu_part_rate(part).permille <= 1000, "a part of the whole");
		}
	unload();
}

/* Whatever is in there, this process alone does not get more than the limit. */
static void use_books(void)
{
	struct vgpu_card *card = &grants.cards[0];
	uint64_t limit, used;

	require(grants.state == VGPU_ON && grants.card_count == 1, "the grant is good");
	require(vgpu_reserve(card, LIMIT + 1) != 0, "more than the limit is refused");
	if (vgpu_reserve(card, LIMIT / 2) == 0) {
		require(vgpu_reserve(card, LIMIT / 2 + 1) != 0, "and so is it in parts");
		vgpu_release(card, LIMIT / 2);
	}
	require(vgpu_card_usage(card, &limit, &used) && limit == LIMIT && used <= limit,
		"the usage");
	vgpu_region_repair(card->parts[0].view, 0);
	vgpu_region_settle(card->parts[0].view);
}

static void with_region(const uint8_t *data, size_t size)
{
	struct vgpu_grant grant = good_grant();

	write_file("grant", &grant, sizeof(grant));
	write_file("region/region", data, size);
	load();
	use_books();
	unload();
}

static void with_shares(const uint8_t *data, size_t size)
{
	struct vgpu_grant grant = good_grant();
	struct vgpu_share_name name = {.kind = VGPU_SHARE_HANDLE, .bytes = {1, 2, 3}};
	struct vgpu_card *card = &grants.cards[0];
	uint64_t instance, id, other;
	bool paid, accepted;

	write_file("grant", &grant, sizeof(grant));
	unlink(path_of("region/region"));
	load();
	/* Behind a header that says that the rest is this region's. */
	instance = grants.views[0].instance;
	write_file("region/region.shares", data, size);
	if (size >= 16) {
		int fd = open(path_of("region/region.shares"), O_WRONLY | O_CLOEXEC);

		require(pwrite(fd, &instance, 8, 8) == 8, "the header");
		close(fd);
	}
	require(vgpu_reserve(card, LIMIT / 4) == 0, "an empty region has room");
	id = vgpu_share_add(&name, card, LIMIT / 4, 0, &paid);
	other = vgpu_share_find(&name);
	if (other)
		vgpu_share_owes(other, LIMIT / 2, 0, &accepted);
	if (other)
		vgpu_release(card, vgpu_share_leave(other));
	if (id)
		vgpu_release(card, vgpu_share_leave(id));
	use_books();
	unload();
}

static void with_environment(const uint8_t *data, size_t size)
{
	static const char *const bases[] = {"CUDA_DEVICE_MEMORY_LIMIT", "CUDA_DEVICE_SM_LIMIT"};
	char *text = malloc(size + 1), *rest = NULL;
	char name[64];

	if (!text)
		return;
	memcpy(text, data, size);
	text[size] = 0;
	for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		char *value = strchr(line, '=');

		if (!value || value == line || strncmp(line, "CUDA_", 5) != 0)
			continue;
		*value = 0;
		setenv(line, value + 1, 1);
	}
	vgpu_environment_read();
	for (size_t b = 0; b < 2; b++) {
		unsetenv(bases[b]);
		for (int i = 0; i < 16; i++) {
			snprintf(name, sizeof(name), "%s_%d", bases[b], i);
			unsetenv(name);
		}
	}
	free(text);
}

static void (*const ways[])(const uint8_t *data, size_t size) = {with_grant, with_region,
								 with_shares, with_environment};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	begin();
	if (size)
		ways[data[0] % 4](data + 1, size - 1);
	return 0;
}

#ifndef VGPU_LIBFUZZER

static uint64_t seed = 20261121;

static uint64_t next(uint64_t range)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (seed >> 33) % range;
}

static void put(uint8_t *data, size_t at, uint64_t value, size_t width)
{
	/* NOLINTBEGIN(clang-analyzer-security.ArrayBound): change() keeps within the size */
	for (size_t i = 0; i < width; i++)
		data[at + i] = (uint8_t)(value >> 8 * i);
	/* NOLINTEND(clang-analyzer-security.ArrayBound) */
}

/* Changes some bytes, words or the size; most of what is there stays. */
static size_t change(uint8_t *data, size_t size, size_t where)
{
	static const uint64_t likely[] = {0,    1,     UINT64_MAX, INT64_MAX,  1024,
					  1025, LIMIT, LIMIT * 2,  UINT32_MAX, 0x100000001};

	for (uint64_t n = 1 + next(4); n > 0 && size > 9; n--) {
		size_t at = 1 + next((where < size ? where : size) - 9);

		switch (next(4)) {
		case 0:
			put(data, at, 1u << next(8) ^ next(2), 1);
			break;
		case 1:
			put(data, at, next(256), 1);
			break;
		case 2:
			/* NOLINTNEXTLINE(clang-analyzer-security.ArrayBound): at is below size - 8
			 */
			put(data, (at - 1) / 8 * 8 + 1, likely[next(10)], 8);
			break;
		default:
			put(data, (at - 1) / 4 * 4 + 1, likely[next(10)], 4);
		}
	}
	return next(8) ? size : 1 + next(size);
}

static const char *seeds; /* a directory: good inputs are written there, and nothing is tried */

static void write_seed(const uint8_t *data, size_t size)
{
	static int number;
	char path[512];
	FILE *file;

	snprintf(path, sizeof(path), "%s/good-%d", seeds, number++);
	file = fopen(path, "we");
	require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0, path);
}

static void run_changed(const uint8_t *good, size_t size, int rounds, size_t where)
{
	uint8_t *data;

	if (seeds) {
		write_seed(good, size);
		return;
	}
	data = malloc(size);
	require(data != NULL, "memory");
	for (int i = 0; i < rounds; i++) {
		memcpy(data, good, size);
		LLVMFuzzerTestOneInput(data, i ? change(data, size, where) : size);
	}
	free(data);
}

static void run_grants(void)
{
	struct vgpu_grant grant = good_grant();
	uint8_t data[1 + sizeof(grant)] = {0};

	memcpy(data + 1, &grant, sizeof(grant));
	run_changed(data, sizeof(data), 3000, 1 + 256 + 128);
}

/* As libvgpu makes it, with a dead process's slot. */
static void run_regions(void)
{
	struct vgpu_grant grant = good_grant();
	size_t size = 1 + sizeof(struct vgpu_region);
	uint8_t *data = calloc(1, size);
	struct vgpu_region *region;

	begin();
	require(data != NULL, "memory");
	write_file("grant", &grant, sizeof(grant));
	unlink(path_of("region/region"));
	load();
	region = malloc(sizeof(*region));
	require(region != NULL && grants.state == VGPU_ON, "a region");
	memcpy(region, grants.views[0].map, sizeof(*region));
	unload();
	region->slots[3].state = VGPU_SLOT_LIVE;
	region->slots[3].used_bytes[0] = region->devices[0].used_bytes = LIMIT / 8;
	data[0] = 1;
	memcpy(data + 1, region, sizeof(*region));
	run_changed(data, size, 400, 1 + 256 + 256); /* header and card */
	run_changed(data, size, 200, 1 + 8448 + 8 * sizeof(struct vgpu_region_slot));
	free(region);
	free(data);
}

/* A list with a record that the process knows, one of the dead and one to be moved. */
static void run_shares(void)
{
	static const uint8_t magic[8] = {'V', 'G', 'P', 'U', 'S', 'H', 'R', 'S'};
	static uint32_t list[4 * 128];
	static uint8_t data[1 + sizeof(list)];

	memcpy(list, magic, sizeof(magic));
	for (int i = 1; i <= 3; i++) {
		uint32_t *record = list + i * 128;

		record[0] = record[2] = 1;
		record[1] = 77;
		record[4] = 1 << 20;
		record[6] = (uint32_t)i;     /* payer */
		record[7] = 1;               /* taken */
		record[10] = i == 3 ? 2 : 0; /* from */
		record[11] = i == 3 ? 1 : 0; /* to */
		memcpy(&record[16], (uint8_t[]){1, 2, (uint8_t)(i + 2)}, 3);
		record[32] = 1u << i;
	}
	data[0] = 2;
	memcpy(data + 1, list, sizeof(list));
	run_changed(data, sizeof(data), 1500, sizeof(data));
}

static void run_file(const char *path)
{
	static uint8_t data[65536] = {3};
	FILE *file = fopen(path, "re");
	size_t size = file ? fread(data + 1, 1, sizeof(data) - 1, file) : 0;

	require(size > 0, path);
	fclose(file);
	run_changed(data, size + 1, 500, size + 1);
}

int main(int argc, char **argv)
{
	int first = 1;

	if (argc > 2 && strcmp(argv[1], "--seeds") == 0) {
		seeds = argv[2];
		first = 3;
	}
	for (int i = first; i < argc; i++)
		run_file(argv[i]);
	run_grants();
	run_regions();
	run_shares();
	return 0;
}
#endif
