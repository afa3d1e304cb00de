/* SPDX-License-Identifier: Apache-2.0 */
/* Every variant of every driver function × every way to reach it: what is hooked
 * is libvgpu's, what is not is the driver's, and refusals are in its own words.
 * Usage: matrix cuda_names.txt. */
#include <dlfcn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hooks_gen.h"
#include "world.h"

#define ROWS 2048

static struct row {
	char name[64], base[64];
	int since;
	bool per_thread, hooked;
	void *driver; /* where the driver has it */
} rows[ROWS];
static size_t row_count;
static int versions[256];
static size_t version_count;

static const struct hooked {
	const char *name;
	void *linked;
	bool cuda;
} hooks[] = {
#define VGPU_CUDA true
#define VGPU_NVML false
#define X(function, library) {#function, (void *)&function, library},
	VGPU_HOOKS(X)
#undef X
};

static bool is_from(const void *function, const char *library)
{
	Dl_info info;

	CHECK(function && dladdr((void *)function, &info));
	return strstr(info.dli_fname, library) != NULL;
}

static bool is_hooked(const char *name)
{
	for (size_t i = 0; i < sizeof(hooks) / sizeof(hooks[0]); i++)
		if (strcmp(hooks[i].name, name) == 0)
			return true;
	return false;
}

static void add_version(int version)
{
	for (size_t i = 0; i < version_count; i++)
		if (versions[i] == version)
			return;
	CHECK(version_count < sizeof(versions) / sizeof(versions[0]));
	versions[version_count++] = version;
}

static void read_rows(const char *path)
{
	FILE *file = fopen(path, "re");
	char suffix[8];
	struct row *row = rows;

	CHECK(file);
	while (fscanf(file, "%63s %63s %d %7s", row->name, row->base, &row->since, suffix) == 4) {
		row->per_thread = suffix[0] != '-';
		row->hooked = is_hooked(row->name);
		add_version(row->since);
		add_version(row->since - 1);
		CHECK(++row < rows + ROWS);
	}
	CHECK(feof(file));
	fclose(file);
	add_version(VGPU_NEWEST_CUDA);
	row_count = (size_t)(row - rows);
	CHECK(row_count > 600);
}

/* Linked, dlsym with a handle, RTLD_DEFAULT and RTLD_NEXT, dlvsym. */
static void by_name(void)
{
	void *cuda = dlopen("libcuda.so.1", RTLD_NOW),
	     *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);

	CHECK(cuda && nvml);
	for (struct row *row = rows; row < rows + row_count; row++) {
		const char *home = row->hooked ? "libvgpu" : "libcuda.so";

		CHECK(is_from(dlsym(cuda, row->name), home));
		CHECK(is_from(dlsym(RTLD_DEFAULT, row->name), home));
		CHECK(is_from(dlsym(RTLD_NEXT, row->name), home));
		row->driver = row->hooked ? NULL : dlsym(cuda, row->name);
	}
	for (size_t i = 0; i < sizeof(hooks) / sizeof(hooks[0]); i++) {
		void *library = hooks[i].cuda ? cuda : nvml;

		CHECK(is_from(hooks[i].linked, "libvgpu"));
		CHECK(dlsym(library, hooks[i].name) == hooks[i].linked);
		CHECK(dlsym(RTLD_NEXT, hooks[i].name) == hooks[i].linked);
		/* The driver has no versions; asking for one is refused as without us. */
		CHECK(!dlvsym(library, hooks[i].name, "libcuda.so.1") && dlerror());
	}
}

/* The answer for a base: the newest variant, per-thread ones only if asked for. */
static const struct row *expect(const char *base, int version, bool per_thread)
{
	const struct row *found = NULL;

	for (const struct row *row = rows; row < rows + row_count; row++)
		if (strcmp(row->base, base) == 0 && row->since <= version &&
		    (per_thread || !row->per_thread))
			found = row;
	return found;
}

static void check_answer(const struct row *row, const void *function, bool second)
{
	if (!row)
		CHECK(!function);
	else if (row->hooked)
		CHECK(function == dlsym(RTLD_DEFAULT, row->name));
	else
		CHECK(second ? is_from(function, "libcuda.so") : function == row->driver);
}

static void ask(const char *base, bool second)
{
	for (size_t v = 0; v < version_count; v++)
		for (cuuint64_t flags = 0; flags < 3; flags++) {
			const struct row *row = expect(base, versions[v], flags == 2);
			void *function = (void *)base;
			int status = -1;

			OK(cuGetProcAddress_v2(base, &function, versions[v], flags, &status));
			IS(status, row ? 0 : 2);
			check_answer(row, function, second);
			OK(cuGetProcAddress(base, &function, versions[v], flags));
			check_answer(row, function, second);
		}
}

/* What dlsym answers, or an address of the driver's own: both are recognised. */
static void by_procaddress(void)
{
	for (int second = 0; second < 2; second++) {
		if (second)
			setenv("VGPU_SIM_SECOND_ADDRESSES", "1", 1);
		for (const struct row *row = rows; row < rows + row_count; row++)
			if (row == rows || strcmp(row->base, row[-1].base) != 0)
				ask(row->base, second);
	}
	unsetenv("VGPU_SIM_SECOND_ADDRESSES");
}

typedef int function_of_words(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
			      uint64_t, uint64_t, uint64_t);

/* Calls a function with nothing but zeros; the driver's answer is the exit code. */
static int call(const char *program, const char *name, bool native)
{
	int pid = fork(), status;

	CHECK(pid >= 0);
	if (pid == 0) {
		if (native)
			unsetenv("LD_PRELOAD");
		execl(program, program, "--call", name, NULL);
		_exit(127);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	return status;
}

static void by_result(const char *program)
{
	for (size_t i = 0; i < sizeof(hooks) / sizeof(hooks[0]); i++) {
		int ours = call(program, hooks[i].name, false);
		int theirs = call(program, hooks[i].name, true);

		if (ours != theirs)
			fprintf(stderr, "%s: status %#x, the driver's is %#x\n", hooks[i].name,
				ours, theirs);
		CHECK(ours == theirs);
	}
}

static int call_one(const char *name)
{
	function_of_words *function;

	if (strncmp(name, "nvml", 4) == 0)
		OK(nvmlInit_v2());
	else
		use_gpu();
	*(void **)&function = dlsym(RTLD_DEFAULT, name);
	CHECK(function);
	return function(0, 0, 0, 0, 0, 0, 0, 0, 0, 0) & 0x7f;
}

int main(int count, char **arguments)
{
	if (count == 3 && strcmp(arguments[1], "--call") == 0)
		return call_one(arguments[2]);
	CHECK(count == 2);
	world();
	world_grant("uid_gpu", CARD_A, 1024, NULL, 0);
	read_rows(arguments[1]);
	by_name();
	use_gpu();
	by_procaddress();
	by_result(arguments[0]);
	return 0;
}
