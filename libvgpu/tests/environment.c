/* SPDX-License-Identifier: Apache-2.0 */
/* Limits from environment variables: only where there is no grant, per card by its
 * place in the container, shared by all processes, and never taken for none. */
#include <signal.h>
#include <unistd.h>

#include "world.h"

bool vgpu_parse_bytes(const char *text, uint64_t *bytes);
bool vgpu_parse_percent(const char *text, uint32_t *percent);

static struct channel talk;

static void spellings(void)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {{"0", 0},
		    {"1", 1},
		    {"3000m", 3000 * MIB},
		    {"3000M", 3000 * MIB},
		    {"2g", 2048 * MIB},
		    {"2G", 2048 * MIB},
		    {"7k", 7 * 1024},
		    {"7K", 7 * 1024},
		    {"010", 10},
		    {"18446744073709551615", UINT64_MAX},
		    {"17179869183g", UINT64_C(17179869183) << 30}};
	static const char *const bad[] = {"",
					  " ",
					  "m",
					  "-1",
					  "+1",
					  " 1",
					  "1 ",
					  "1mb",
					  "1mm",
					  "0x10",
					  "1.5g",
					  "1t",
					  "3000 m",
					  "1\n",
					  "1e3m",
					  "\xff",
					  "18446744073709551616",
					  "17179869184g"};
	static const char *const bad_percents[] = {"",    "50%", "-1",
						   "5.0", "0x5", "99999999999999999999"};
	uint64_t bytes;
	uint32_t percent;

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		CHECK(vgpu_parse_bytes(good[i].text, &bytes));
		CHECK(bytes == good[i].bytes);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK(!vgpu_parse_bytes(bad[i], &bytes));
	CHECK(vgpu_parse_percent("30", &percent) && percent == 30);
	CHECK(vgpu_parse_percent("0", &percent) && percent == 0);
	CHECK(vgpu_parse_percent("100", &percent) && percent == 0);
	CHECK(vgpu_parse_percent("4294967299", &percent) && percent == 0);
	for (size_t i = 0; i < sizeof(bad_percents) / sizeof(char *); i++)
		CHECK(!vgpu_parse_percent(bad_percents[i], &percent));
}

static uint64_t total(int device)
{
	size_t bytes;

	OK(cuDeviceTotalMem_v2(&bytes, device));
	return bytes / MIB;
}

static void both_cards(void)
{
	CUdeviceptr pointer = 5;
	CUcontext second;

	use_gpu();
	IS(total(0), 3000);
	IS(total(1), 100);
	IS(cuMemAlloc_v2(&pointer, 3002 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	must_alloc(3000);
	OK(cuDevicePrimaryCtxRetain(&second, 1));
	OK(cuCtxSetCurrent(second));
	IS(cuMemAlloc_v2(&pointer, 102 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	must_alloc(100);
	IS(pointer, 5);
}

static void hold(void)
{
	use_gpu();
	must_alloc(2000);
	channel_tell(talk.up[1]);
	pause();
}

static void beside(void)
{
	nvmlDevice_t device;
	nvmlMemory_t memory;
	CUdeviceptr pointer;

	OK(nvmlInit_v2()); /* before CUDA */
	OK(nvmlDeviceGetHandleByUUID(CARD_A, &device));
	OK(nvmlDeviceGetMemoryInfo(device, &memory));
	IS(memory.total, 3000 * MIB);
	IS(memory.used, 2000 * MIB);
	use_gpu();
	IS(cuMemAlloc_v2(&pointer, 1002 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	must_alloc(1000);
}

static void second_only(void)
{
	CUdeviceptr pointer;

	use_gpu(); /* the container's second card, with its limit and books */
	IS(total(0), 100);
	IS(cuMemAlloc_v2(&pointer, 102 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	must_alloc(100);
}

static void not_limited(void)
{
	use_gpu();
	IS(total(0), 40960);
	must_alloc(4000);
}

static void only_first(void)
{
	use_gpu();
	IS(total(0), 3000);
	IS(total(1), 16384);
}

static void closed(void)
{
	IS(cuInit(0), CUDA_ERROR_NOT_INITIALIZED);
	IS(nvmlInit_v2(), NVML_ERROR_NO_PERMISSION);
}

static void in_its_grant(void)
{
	CUdeviceptr pointer;

	use_gpu();
	IS(total(0), 500);
	IS(cuMemAlloc_v2(&pointer, 502 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
}

static void forgets(void)
{
	OK(nvmlInit_v2());
	OK(in_child(both_cards)); /* as after a fork of any program */
}

int main(void)
{
	int child;

	spellings();
	world();
	channel_open(&talk);
	setenv("CUDA_DEVICE_MEMORY_SHARED_CACHE", world_path("sim/books"), 1);
	OK(in_child(not_limited));
	setenv("CUDA_DEVICE_MEMORY_LIMIT", "3000m", 1);
	setenv("CUDA_DEVICE_MEMORY_LIMIT_1", "102400k", 1);
	setenv("CUDA_DEVICE_SM_LIMIT", "30", 1);
	OK(in_child(both_cards));
	OK(in_child(forgets));
	child = start_child(hold);
	channel_hear(talk.up[0]);
	OK(in_child(beside));
	kill(child, SIGKILL);
	wait_child(child);
	setenv("CUDA_VISIBLE_DEVICES", "1", 1);
	OK(in_child(second_only));
	unsetenv("CUDA_VISIBLE_DEVICES");
	setenv("CUDA_DEVICE_MEMORY_LIMIT_1", "0", 1);
	OK(in_child(only_first));
	/* Books that cannot be shared leave the limit. */
	setenv("LIBCUDA_LOG_LEVEL", "0", 1);
	setenv("CUDA_DEVICE_MEMORY_SHARED_CACHE", "/nonexistent/books", 1);
	OK(in_child(only_first));
	setenv("CUDA_DEVICE_MEMORY_LIMIT", "3000mb", 1);
	OK(in_child(closed));
	setenv("CUDA_DEVICE_MEMORY_LIMIT", "3000m", 1);
	setenv("CUDA_DEVICE_SM_LIMIT", "half", 1);
	OK(in_child(closed));
	/* A grant decides, whatever the variables say. */
	world_grant("uid_gpu", CARD_A, 500, NULL, 0);
	OK(in_child(in_its_grant));
	return 0;
}
