/* SPDX-License-Identifier: Apache-2.0
 *
 * Profiles as NVIDIA's MIG user guide lists them. Sizes of memory are what is
 * left of a card's slices, so they come close to what real cards say.
 */
#include "mig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
#define SLICE_LOSS_MIB 256
#define GI_IDS 15 /* of one card, each with as many nodes as it and its parts need */
#define FIRST_CAP 3
/* A number that no driver here has: opening such a node fails, finding it does not. */
#define CAPS_MAJOR 511

struct row {
	unsigned int number, id, slices, size, instances, starts[SIM_PLACES], places;
	unsigned int copy, decoders, jpeg, ofa;
	const char *more;
};

static const struct row eighths[] = {
	{0, 19, 1, 1, 7, {0, 1, 2, 3, 4, 5, 6}, 7, 1, 0, 0, 0, ""},
	{7, 20, 1, 1, 1, {0, 1, 2, 3, 4, 5, 6}, 7, 1, 1, 1, 1, "+me"},
	{9, 15, 1, 2, 4, {0, 2, 4, 6}, 4, 1, 1, 0, 0, ""},
	{1, 14, 2, 2, 3, {0, 2, 4}, 3, 2, 1, 0, 0, ""},
	{2, 9, 3, 4, 2, {0, 4}, 2, 3, 2, 0, 0, ""},
	{3, 5, 4, 4, 1, {0}, 1, 4, 2, 0, 0, ""},
	{4, 0, 7, 8, 1, {0}, 1, 7, 5, 1, 1, ""},
};
static const struct row quarters[] = {
	{0, 14, 1, 1, 4, {0, 1, 2, 3}, 4, 1, 0, 0, 0, ""},
	{7, 21, 1, 1, 1, {0, 1, 2, 3}, 4, 1, 1, 1, 1, "+me"},
	{1, 5, 2, 2, 2, {0, 2}, 2, 2, 2, 0, 0, ""},
	{8, 6, 2, 2, 1, {0, 2}, 2, 2, 2, 1, 1, "+me"},
	{3, 0, 4, 4, 1, {0}, 1, 4, 4, 1, 1, ""},
};

static const struct model {
	const char *name; /* part of NVML's name of the card */
	uint64_t least_mib;
	const struct row *rows;
	unsigned int count, total;
	unsigned int gb[4];              /* in the names of profiles: of 1, 2, 4 and 8 slices */
	unsigned int multiprocessors[8]; /* by slices of compute; [0]: 1 with 2 of memory */
} models[] = {
	{"A30", 0, quarters, 5, 4, {6, 12, 24, 0}, {14, 14, 28, 0, 56}},
	{"RTX PRO 6000 Blackwell", 0, quarters, 5, 4, {24, 48, 96, 0}, {46, 46, 94, 0, 188}},
	{"A100", 70000, eighths, 7, 8, {10, 20, 40, 80}, {14, 14, 28, 42, 56, 0, 0, 98}},
	{"A100", 0, eighths, 7, 8, {5, 10, 20, 40}, {14, 14, 28, 42, 56, 0, 0, 98}},
	{"GH200", 0, eighths, 7, 8, {12, 24, 48, 96}, {26, 16, 32, 60, 64, 0, 0, 132}},
	{"H200", 0, eighths, 7, 8, {18, 35, 71, 141}, {26, 16, 32, 60, 64, 0, 0, 132}},
	{"H100", 93000, eighths, 7, 8, {12, 24, 47, 94}, {26, 16, 32, 60, 64, 0, 0, 132}},
	{"H100", 0, eighths, 7, 8, {10, 20, 40, 80}, {26, 16, 32, 60, 64, 0, 0, 132}},
	{"H20", 0, eighths, 7, 8, {12, 24, 48, 96}, {10, 8, 16, 30, 32, 0, 0, 78}},
	{"B200", 0, eighths, 7, 8, {23, 45, 90, 180}, {30, 18, 36, 70, 72, 0, 0, 148}},
};

static const struct model *find_model(const struct sim_card *card)
{
	for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++)
		if (strstr(card->name, models[i].name) && card->memory / MIB >= models[i].least_mib)
			return &models[i];
	return NULL;
}

static void fill(const struct sim_card *card, const struct model *model, const struct row *row,
		 struct sim_profile *profile)
{
	unsigned int step = row->size == 1 ? 0 : row->size == 2 ? 1 : row->size == 4 ? 2 : 3;
	uint64_t mib = card->memory / MIB * row->size / model->total - SLICE_LOSS_MIB;

	*profile = (struct sim_profile){
		.number = row->number,
		.id = row->id,
		.slices = row->slices,
		.size = row->size,
		.instances = row->instances,
		.places = row->places,
		.multiprocessors =
			model->multiprocessors[row->slices == 1 && row->size == 2 ? 0
										  : row->slices],
		.copy = row->copy,
		.decoders = row->decoders,
		.jpeg = row->jpeg,
		.ofa = row->ofa,
		.memory_mib = mib / 64 * 64,
	};
	memcpy(profile->starts, row->starts, sizeof(profile->starts));
	snprintf(profile->name, sizeof(profile->name), "MIG %ug.%ugb%s", row->slices,
		 model->gb[step], row->more);
}

bool sim_mig_profile(const struct sim_card *card, unsigned int number, struct sim_profile *profile)
{
	const struct model *model = find_model(card);

	for (unsigned int i = 0; model && i < model->count; i++)
		if (model->rows[i].number == number) {
			fill(card, model, &model->rows[i], profile);
			return true;
		}
	return false;
}

bool sim_mig_profile_by_id(const struct sim_card *card, unsigned int id,
			   struct sim_profile *profile)
{
	const struct model *model = find_model(card);

	for (unsigned int i = 0; model && i < model->count; i++)
		if (model->rows[i].id == id) {
			fill(card, model, &model->rows[i], profile);
			return true;
		}
	return false;
}

unsigned int sim_mig_most(const struct sim_card *card)
{
	const struct model *model = find_model(card);

	return model ? model->rows[0].instances : 0;
}

bool sim_mig_enabled(int card)
{
	uint32_t mode = sim_shared()->mig_modes[card];

	return mode ? mode > 1 : sim_config()->cards[card].mig;
}

bool sim_mig_free(int card, unsigned int start, unsigned int size)
{
	for (int i = 0; i < SIM_INSTANCES; i++) {
		const struct sim_instance *other = &sim_shared()->instances[i];

		if (other->live && (int)other->card == card && start < other->start + other->size &&
		    other->start < start + size)
			return false;
	}
	return true;
}

unsigned int sim_mig_count(int card, unsigned int number)
{
	unsigned int count = 0;

	for (int i = 0; i < SIM_INSTANCES; i++) {
		const struct sim_instance *other = &sim_shared()->instances[i];

		count += other->live && (int)other->card == card && other->profile == number;
	}
	return count;
}

/* ---- what the kernel module shows: /proc/driver/nvidia/capabilities and nodes */

static unsigned int cap_of(int slot, int compute)
{
	const struct sim_instance *instance = &sim_shared()->instances[slot];
	unsigned int minor = (unsigned int)sim_config()->cards[instance->card].minor;

	return FIRST_CAP + (minor * GI_IDS + instance->id) * (SIM_COMPUTE + 1) +
	       (unsigned int)(compute + 1);
}

static void node_path(char *path, size_t size, unsigned int cap)
{
	const char *directory = getenv("VGPU_SIM_DEV");

	snprintf(path, size, "%s/nvidia-caps/nvidia-cap%u", directory ? directory : "/dev", cap);
}

/* compute -1: the GPU instance itself. */
static void proc_path(char *path, size_t size, int slot, int compute)
{
	const struct sim_instance *instance = &sim_shared()->instances[slot];
	char part[128], more[32] = "";

	if (compute >= 0)
		snprintf(more, sizeof(more), "/ci%d", compute);
	snprintf(part, sizeof(part), "proc/driver/nvidia/capabilities/gpu%d/mig/gi%u%s",
		 sim_config()->cards[instance->card].minor, instance->id, more);
	sim_path(path, size, part);
}

static void make_directories(char *path)
{
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		mkdir(path, 0755);
		*slash = '/';
	}
}

static void show(int slot, int compute)
{
	unsigned int cap = cap_of(slot, compute);
	char path[512], file[544];
	FILE *access;
	int fd;

	proc_path(path, sizeof(path), slot, compute);
	snprintf(file, sizeof(file), "%s/access", path);
	make_directories(file);
	access = fopen(file, "we");
	if (access) {
		fprintf(access, "DeviceFileMinor: %u\nDeviceFileMode: 292\nDeviceFileModify: 1\n",
			cap);
		fclose(access);
	}
	node_path(path, sizeof(path), cap);
	make_directories(path);
	if (mknod(path, S_IFCHR | 0444, makedev(CAPS_MAJOR, cap)) != 0 && errno == EPERM) {
		fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
		if (fd >= 0)
			close(fd);
	}
}

static void hide(int slot, int compute)
{
	char path[512], file[544];

	proc_path(path, sizeof(path), slot, compute);
	snprintf(file, sizeof(file), "%s/access", path);
	unlink(file);
	rmdir(path);
	node_path(path, sizeof(path), cap_of(slot, compute));
	unlink(path);
}

bool sim_mig_visible(int slot, int compute)
{
	char path[512];

	node_path(path, sizeof(path), cap_of(slot, -1));
	if (access(path, F_OK) != 0)
		return false;
	node_path(path, sizeof(path), cap_of(slot, compute));
	return access(path, F_OK) == 0;
}

/* ---- instances */

/* As the driver numbers them: by size and place, so that two never have one number. */
static unsigned int number_of(unsigned int start, unsigned int size)
{
	return size == 8 ? 0 : size == 4 ? 1 + start / 4 : size == 2 ? 3 + start / 2 : 7 + start;
}

int sim_mig_create(int card, const struct sim_profile *profile, unsigned int start)
{
	for (int i = 0; i < SIM_INSTANCES; i++) {
		struct sim_instance *instance = &sim_shared()->instances[i];
		uint32_t serial = instance->serial + 1;

		if (instance->live)
			continue;
		*instance = (struct sim_instance){.live = 1,
						  .card = (uint32_t)card,
						  .id = number_of(start, profile->size),
						  .profile = profile->number,
						  .start = start,
						  .size = profile->size,
						  .serial = serial};
		sim_shared()->peak[SIM_CARDS + i] = 0;
		show(i, -1);
		return i;
	}
	return -1;
}

void sim_mig_destroy(int slot)
{
	hide(slot, -1);
	sim_shared()->instances[slot].live = 0;
}

int sim_mig_create_compute(int slot, unsigned int profile, unsigned int start, unsigned int size)
{
	for (int i = 0; i < SIM_COMPUTE; i++) {
		struct sim_compute *compute = &sim_shared()->instances[slot].compute[i];

		if (compute->live)
			continue;
		*compute = (struct sim_compute){1, profile, start, size};
		show(slot, i);
		return i;
	}
	return -1;
}

void sim_mig_destroy_compute(int slot, int compute)
{
	if (compute < 0 || compute >= SIM_COMPUTE)
		return;
	hide(slot, compute);
	sim_shared()->instances[slot].compute[compute].live = 0;
}

/* Always the same for the same place on the same card, as the driver's are. */
static void name_uuid(const struct sim_card *card, unsigned int id, unsigned int compute,
		      unsigned char bytes[16])
{
	uint64_t hash = UINT64_C(14695981039346656037);

	for (int i = 0; i < 16; i++) {
		for (int j = 0; j < 16; j++)
			hash = (hash ^ card->uuid_bytes[j]) * UINT64_C(1099511628211);
		hash = (hash ^ (id << 8 | compute)) * UINT64_C(1099511628211);
		bytes[i] = (unsigned char)(hash >> 32);
	}
	bytes[6] = (unsigned char)((bytes[6] & 0x0f) | 0x50);
	bytes[8] = (unsigned char)((bytes[8] & 0x3f) | 0x80);
}

void sim_mig_describe(int slot, int compute, struct sim_card *card)
{
	const struct sim_instance *instance = &sim_shared()->instances[slot];
	const struct sim_card *parent = &sim_config()->cards[instance->card];
	struct sim_profile profile;
	unsigned char bytes[16];
	char *end = card->uuid;

	*card = *parent;
	if (compute < 0 || compute >= SIM_COMPUTE ||
	    !sim_mig_profile(parent, instance->profile, &profile))
		return;
	card->memory = profile.memory_mib * MIB;
	card->sm_count =
		(int)(profile.multiprocessors * instance->compute[compute].size / profile.slices);
	snprintf(card->name, sizeof(card->name), "%.40s %.20s", parent->name, profile.name);
	name_uuid(parent, instance->id, (unsigned int)compute, bytes);
	memcpy(card->uuid_bytes, bytes, sizeof(bytes));
	end += sprintf(end, "MIG-");
	for (int i = 0; i < 16; i++)
		end += sprintf(end, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
			       bytes[i]);
}

bool sim_mig_divides(int card)
{
	int guard = sim_enter();
	bool divided = guard >= 0 && sim_mig_enabled(card);

	if (guard >= 0)
		sim_leave(guard);
	return divided;
}

int sim_mig_find(int card, const char *uuid)
{
	struct sim_card facts;
	int guard = sim_enter(), unit = -1;

	if (guard < 0)
		return -1;
	for (int i = 0; unit < 0 && i < SIM_INSTANCES; i++) {
		const struct sim_instance *instance = &sim_shared()->instances[i];

		for (int j = 0; unit < 0 && j < SIM_COMPUTE; j++) {
			if (!instance->live || (int)instance->card != card ||
			    !instance->compute[j].live || !sim_mig_visible(i, j))
				continue;
			sim_mig_describe(i, j, &facts);
			if (strncasecmp(facts.uuid, uuid, strlen(uuid)) != 0)
				continue;
			unit = SIM_CARDS + i;
			*sim_open_unit(unit) = facts;
		}
	}
	sim_leave(guard);
	return unit;
}
