/* SPDX-License-Identifier: Apache-2.0
 *
 * Time of single calls, on simulated cards:
 *
 *   calls CALL BATCH BATCHES    nanoseconds of a batch of calls, the median
 *   calls start                 cuInit, a context, the end: a process's own cost
 *   calls starts COUNT [LIB]    nanoseconds until COUNT processes like that, all
 *                               started at once, have ended; LIB is preloaded
 *
 * libvgpu is measured by preloading it. Without arguments: the names of calls.
 */
#include <dlfcn.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "world.h"

#define BATCHES 10000

static CUfunction kernel;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void alloc_free(int count)
{
	for (int i = 0; i < count; i++)
		OK(cuMemFree_v2(must_alloc(2)));
}

static void mem_info(int count)
{
	size_t free_bytes, total;

	for (int i = 0; i < count; i++)
		OK(cuMemGetInfo_v2(&free_bytes, &total));
}

static void foreign_dlsym(int count)
{
	for (int i = 0; i < count; i++)
		CHECK(dlsym(RTLD_DEFAULT, "getppid"));
}

static void launch(int count)
{
	for (int i = 0; i < count; i++)
		OK(cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL));
}

static const struct call {
	const char *name;
	void (*run)(int count);
} calls[] = {{"alloc-free", alloc_free},
	     {"mem-info", mem_info},
	     {"foreign-dlsym", foreign_dlsym},
	     {"launch", launch}};

static void prepare(void)
{
	static const char image[] = "none";
	CUmodule module;

	world();
	world_grant("uid_gpu", CARD_A, 4096, NULL, 0);
	use_gpu();
	OK(cuModuleLoadData(&module, image));
	OK(cuModuleGetFunction(&kernel, module, "noop"));
}

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static int measure(const struct call *call, int batch, long batches)
{
	static double times[BATCHES];

	CHECK(batches > 0 && batches <= BATCHES);
	prepare();
	call->run(batch);
	for (long i = 0; i < batches; i++) {
		const uint64_t begun = now_ns();

		call->run(batch);
		times[i] = (double)(now_ns() - begun);
	}
	qsort(times, (size_t)batches, sizeof(times[0]), compare);
	printf("%.1f\n", times[batches / 2]);
	return 0;
}

static int start_many(int count, const char *library)
{
	char *const arguments[] = {(char *)"bench-calls", (char *)"start", NULL};
	uint64_t begun;
	int gate[2], status;

	world();
	world_grant("uid_gpu", CARD_A, 4096, NULL, 0);
	if (library)
		setenv("LD_PRELOAD", library, 1);
	CHECK(pipe(gate) == 0);
	/* Each waits for the gate before it becomes the measured program. */
	for (int i = 0; i < count; i++) {
		const int pid = fork();

		CHECK(pid >= 0);
		if (pid == 0) {
			char byte;

			close(gate[1]);
			if (read(gate[0], &byte, 1) != 0)
				_exit(1);
			execve("/proc/self/exe", arguments, environ);
			_exit(127);
		}
	}
	begun = now_ns();
	close(gate[1]);
	for (int i = 0; i < count; i++) {
		CHECK(wait(&status) > 0);
		CHECK(status == 0);
	}
	printf("%llu\n", (unsigned long long)(now_ns() - begun));
	return 0;
}

static int at_least_one(const char *text)
{
	const long number = strtol(text, NULL, 10);

	return number < 1 ? 1 : number > 1000000 ? 1000000 : (int)number;
}

int main(int count, char **arguments)
{
	if (count == 2 && strcmp(arguments[1], "start") == 0) {
		use_gpu();
		return 0;
	}
	if (count >= 3 && strcmp(arguments[1], "starts") == 0)
		return start_many(at_least_one(arguments[2]), arguments[3]);
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		if (count == 4 && strcmp(arguments[1], calls[i].name) == 0)
			return measure(&calls[i], at_least_one(arguments[2]),
				       at_least_one(arguments[3]));
		if (count == 1)
			puts(calls[i].name);
	}
	return count != 1;
}
