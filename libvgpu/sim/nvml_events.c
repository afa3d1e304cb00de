/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libnvidia-ml.so.1: health and events. Health is what cards.ini
 * says. An event is a line "uuid type data" that somebody appends to the file
 * "events" beside it; a set delivers what was appended after it was created.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

#include "libnvml.h"

#define TYPES 0x1aull /* double-bit ECC, XID, clock */
#define RECOVERY_ACTION 230
#define VALUE_UNSIGNED_INT 1

struct nvmlEventSet_st {
	int file, watch;
	off_t offset;
	unsigned long long types[SIM_CARDS]; /* registered, by place in the list of devices */
};

struct event_data {
	nvmlDevice_t device;
	unsigned long long type, data;
	unsigned int gpu_instance, compute_instance;
};

struct field_value {
	unsigned int id, scope;
	long long timestamp, latency_us;
	unsigned int type;
	nvmlReturn_t result;
	unsigned long long value;
};

void sim_nvml_hang(nvmlDevice_t device)
{
	const struct timespec nap = {.tv_nsec = 20000000};

	while (sim_faults_of(device->card).hangs)
		nanosleep(&nap, NULL);
}

/* ---- health */

SIM nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned int type,
					     unsigned int counter, unsigned long long *count)
{
	CHECK(device);
	if (!count || type > 1 || counter > 1)
		return NVML_ERROR_INVALID_ARGUMENT;
	*count = type == 1 ? sim_faults_of(device->card).uncorrected_errors : 0;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected,
					   unsigned int *uncorrected, unsigned int *pending,
					   unsigned int *failed)
{
	CHECK(device);
	if (!corrected || !uncorrected || !pending || !failed)
		return NVML_ERROR_INVALID_ARGUMENT;
	*corrected = *uncorrected = *pending = 0;
	*failed = sim_faults_of(device->card).remap_failed;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count,
					  struct field_value *values)
{
	CHECK(device);
	if (!values || count < 1)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (int i = 0; i < count; i++) {
		values[i].result = NVML_ERROR_NOT_SUPPORTED;
		if (values[i].id != RECOVERY_ACTION)
			continue;
		values[i].type = VALUE_UNSIGNED_INT;
		values[i].value = (unsigned int)sim_faults_of(device->card).recovery_action;
		values[i].result = NVML_SUCCESS;
	}
	return NVML_SUCCESS;
}

/* ---- events */

SIM nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
	CHECK(device);
	if (!types)
		return NVML_ERROR_INVALID_ARGUMENT;
	*types = TYPES;
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlEventSetFree(struct nvmlEventSet_st *set)
{
	if (!set)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (set->file >= 0)
		close(set->file);
	if (set->watch >= 0)
		close(set->watch);
	free(set);
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlEventSetCreate(struct nvmlEventSet_st **set)
{
	char path[512];

	if (!set)
		return NVML_ERROR_INVALID_ARGUMENT;
	*set = calloc(1, sizeof(**set));
	if (!*set)
		return NVML_ERROR_UNKNOWN;
	sim_path(path, sizeof(path), "events");
	(*set)->file = open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0666);
	(*set)->watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if ((*set)->file < 0 || (*set)->watch < 0 ||
	    inotify_add_watch((*set)->watch, path, IN_MODIFY) < 0) {
		nvmlEventSetFree(*set);
		*set = NULL;
		return NVML_ERROR_UNKNOWN;
	}
	(*set)->offset = lseek((*set)->file, 0, SEEK_END);
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types,
					  struct nvmlEventSet_st *set)
{
	CHECK(device);
	if (!set)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (types & ~TYPES)
		return NVML_ERROR_NOT_SUPPORTED;
	set->types[device - sim_nvml_device(0)] |= types;
	return NVML_SUCCESS;
}

/* Takes one whole line; whether it is an event that was registered. */
static bool take(struct nvmlEventSet_st *set, const char *line, struct event_data *data)
{
	char uuid[64];
	unsigned long long type, number;

	if (sscanf(line, "%63s %llu %llu", uuid, &type, &number) != 3)
		return false;
	for (int i = 0; i < sim_nvml_count(); i++)
		if (strcasecmp(sim_nvml_device(i)->facts->uuid, uuid) == 0 &&
		    (set->types[i] & type)) {
			*data = (struct event_data){.device = sim_nvml_device(i),
						    .type = type,
						    .data = number,
						    .gpu_instance = ~0u,
						    .compute_instance = ~0u};
			return true;
		}
	return false;
}

static bool next_event(struct nvmlEventSet_st *set, struct event_data *data)
{
	char text[256], *end;
	ssize_t length;

	for (;;) {
		length = pread(set->file, text, sizeof(text) - 1, set->offset);
		if (length <= 0)
			return false;
		text[length] = 0;
		end = strchr(text, '\n');
		if (!end)
			return false;
		*end = 0;
		set->offset += end - text + 1;
		if (take(set, text, data))
			return true;
	}
}

SIM nvmlReturn_t nvmlEventSetWait_v2(struct nvmlEventSet_st *set, struct event_data *data,
				     unsigned int timeout_ms)
{
	uint64_t until = sim_now_ns() + timeout_ms * 1000000ull, now;
	struct pollfd changed;
	char ignored[512];

	if (!set || !data)
		return NVML_ERROR_INVALID_ARGUMENT;
	changed = (struct pollfd){.fd = set->watch, .events = POLLIN};
	while (!next_event(set, data)) {
		now = sim_now_ns();
		if (now >= until)
			return NVML_ERROR_TIMEOUT;
		if (poll(&changed, 1, (int)((until - now) / 1000000) + 1) < 0 && errno != EINTR)
			return NVML_ERROR_UNKNOWN;
		while (read(set->watch, ignored, sizeof(ignored)) > 0)
			;
	}
	return NVML_SUCCESS;
}

SIM nvmlReturn_t nvmlEventSetWait(struct nvmlEventSet_st *set, struct event_data *data,
				  unsigned int timeout_ms)
{
	return nvmlEventSetWait_v2(set, data, timeout_ms);
}
