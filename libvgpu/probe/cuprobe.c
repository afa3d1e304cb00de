/* SPDX-License-Identifier: Apache-2.0
 *
 * Shows what a program sees of the GPUs:
 *
 *   cuprobe devices [--json]
 *   cuprobe alloc MIB [MIB...] [--json]
 *   cuprobe hold MIB
 *   cuprobe busy MS
 *   cuprobe work KERNEL_US SECONDS
 */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api.h"

#define MIB (1024ull * 1024)
#define WORK_AHEAD 4 /* launches before the program waits for the card */

static bool json;

static const char *name_of(CUresult result)
{
	const char *name = NULL;

	if (cuda.GetErrorName(result, &name) != CUDA_SUCCESS || !name)
		name = "an unknown CUDA error";
	return name;
}

static int failed(const char *what, CUresult result)
{
	if (json)
		printf("{\"error\": \"%s\", \"call\": \"%s\"}\n", name_of(result), what);
	fprintf(stderr, "cuprobe: %s: %s (%d)\n", what, name_of(result), result);
	return 1;
}

#define TRY(call)                                                                                  \
	do {                                                                                       \
		CUresult try_result = cuda.call;                                                   \
		if (try_result != CUDA_SUCCESS)                                                    \
			return failed("cu" #call, try_result);                                     \
	} while (0)

static void uuid_text(const CUuuid *uuid, char text[48])
{
	static const char dashes[16] = {0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1};
	char *end = text + sprintf(text, "GPU-");

	for (int i = 0; i < 16; i++)
		end += sprintf(end, "%s%02x", dashes[i] ? "-" : "", (unsigned char)uuid->bytes[i]);
}

/* MiB by NVML, or 0 with a line on stderr. */
static unsigned long long nvml_total(const char *uuid)
{
	nvmlDevice_t device;
	nvmlMemory_t memory;
	nvmlReturn_t result = nvml.Init();

	if (result == NVML_SUCCESS)
		result = nvml.HandleByUUID(uuid, &device);
	if (result != NVML_SUCCESS) {
		/* CUDA does not tell a card from a part of one. */
		char part[48] = "MIG-";

		snprintf(part + 4, sizeof(part) - 4, "%s", uuid + 4);
		result = nvml.HandleByUUID(part, &device);
	}
	if (result == NVML_SUCCESS)
		result = nvml.MemoryInfo(device, &memory);
	if (result != NVML_SUCCESS) {
		fprintf(stderr, "cuprobe: NVML: %s\n", nvml.ErrorString(result));
		return 0;
	}
	return memory.total / MIB;
}

static int show_devices(void)
{
	char name[128], uuid[48];
	size_t bytes;
	CUdevice device;
	CUuuid raw;
	int count;

	TRY(DeviceGetCount(&count));
	if (json)
		printf("[");
	for (int i = 0; i < count; i++) {
		TRY(DeviceGet(&device, i));
		TRY(DeviceGetName(name, sizeof(name), device));
		TRY(DeviceGetUuid(&raw, device));
		TRY(DeviceTotalMem(&bytes, device));
		uuid_text(&raw, uuid);
		printf(json ? "%s{\"index\": %d, \"name\": \"%s\", \"uuid\": \"%s\", "
			      "\"cuda_total_mib\": %llu, \"nvml_total_mib\": %llu}"
			    : "%sGPU %d: %s  %s  total %llu MiB by CUDA, %llu MiB by NVML\n",
		       json && i ? ", " : "", i, name, uuid, (unsigned long long)(bytes / MIB),
		       nvml_total(uuid));
	}
	if (json)
		printf("]\n");
	return 0;
}

static int use_device(void)
{
	CUcontext context;
	CUdevice device;

	TRY(DeviceGet(&device, 0));
	TRY(PrimaryCtxRetain(&context, device));
	TRY(CtxSetCurrent(context));
	return 0;
}

static int allocate(int count, char **sizes)
{
	int first = 1;
	size_t available, total;

	if (json)
		printf("{\"allocations\": [");
	for (int i = 0; i < count; i++) {
		unsigned long long mib = strtoull(sizes[i], NULL, 10);
		CUdeviceptr pointer = 0;
		CUresult result = cuda.MemAlloc(&pointer, mib * MIB);

		if (json)
			printf("%s{\"mib\": %llu, \"result\": \"%s\"}", first ? "" : ", ", mib,
			       name_of(result));
		else if (result == CUDA_SUCCESS)
			printf("allocated %llu MiB: ok\n", mib);
		else
			printf("allocating %llu MiB: %s\n", mib, name_of(result));
		first = 0;
		if (result != CUDA_SUCCESS && result != CUDA_ERROR_OUT_OF_MEMORY)
			return failed("cuMemAlloc", result);
		if (result != CUDA_SUCCESS && pointer != 0) {
			fprintf(stderr, "cuprobe: a refused allocation changed the pointer\n");
			return 1;
		}
	}
	TRY(MemGetInfo(&available, &total));
	printf(json ? "], \"free_mib\": %llu, \"total_mib\": %llu}\n"
		    : "free %llu MiB of %llu MiB\n",
	       (unsigned long long)(available / MIB), (unsigned long long)(total / MIB));
	return 0;
}

static int hold(unsigned long long mib)
{
	CUdeviceptr pointer;
	sigset_t signals;
	int number;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	TRY(MemAlloc(&pointer, mib * MIB));
	printf("holding %llu MiB\n", mib);
	fflush(stdout);
	sigwait(&signals, &number);
	TRY(MemFree(pointer));
	return 0;
}

static int busy(unsigned long long ms)
{
	unsigned long long ns = ms * 1000000;
	void *params[] = {&ns};
	CUfunction function;
	CUmodule module;

	TRY(ModuleLoadData(&module, "probe"));
	TRY(ModuleGetFunction(&function, module, "busy_ns"));
	TRY(LaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
	TRY(CtxSynchronize());
	printf("was busy for %llu ms\n", ms);
	return 0;
}

static unsigned long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (unsigned long long)now.tv_sec * 1000 + (unsigned long long)now.tv_nsec / 1000000;
}

/* Keeps the card busy with kernels of one length, and says about once a second how much
 * of them was done, by a clock that all containers of a machine share. */
static int work(unsigned long long us, unsigned long long seconds)
{
	unsigned long long ns = us * 1000, from = now_ms(), end = from + seconds * 1000, done = 0;
	void *params[] = {&ns};
	CUfunction function;
	CUmodule module;

	TRY(ModuleLoadData(&module, "probe"));
	TRY(ModuleGetFunction(&function, module, "busy_ns"));
	while (from < end) {
		unsigned long long now;

		for (int i = 0; i < WORK_AHEAD; i++)
			TRY(LaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
		TRY(CtxSynchronize());
		done += WORK_AHEAD;
		now = now_ms();
		if (now - from < 1000 && now < end)
			continue;
		printf("{\"from_ms\": %llu, \"until_ms\": %llu, \"busy_ms\": %llu}\n", from, now,
		       done * us / 1000);
		from = now;
		done = 0;
	}
	return 0;
}

static int usage(void)
{
	fprintf(stderr, "usage: cuprobe devices [--json] | alloc MIB... [--json] | hold MIB | "
			"busy MS | work KERNEL_US SECONDS\n");
	return 2;
}

int main(int argc, char **argv)
{
	const char *missing;
	CUresult result;
	int count = 0;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			json = true;
		else
			argv[count++] = argv[i];
	}
	if (count == 0 || (strcmp(argv[0], "devices") != 0 && count < 2))
		return usage();
	setvbuf(stdout, NULL, _IOLBF, 0);
	missing = probe_load();
	if (missing) {
		fprintf(stderr, "cuprobe: the driver has no %s\n", missing);
		return 1;
	}
	result = cuda.Init(0);
	if (result != CUDA_SUCCESS)
		return failed("cuInit", result);
	if (strcmp(argv[0], "devices") == 0)
		return show_devices();
	if (use_device() != 0)
		return 1;
	if (strcmp(argv[0], "alloc") == 0)
		return allocate(count - 1, argv + 1);
	if (strcmp(argv[0], "hold") == 0)
		return hold(strtoull(argv[1], NULL, 10));
	if (strcmp(argv[0], "busy") == 0)
		return busy(strtoull(argv[1], NULL, 10));
	if (strcmp(argv[0], "work") == 0 && count > 2)
		return work(strtoull(argv[1], NULL, 10), strtoull(argv[2], NULL, 10));
	return usage();
}
