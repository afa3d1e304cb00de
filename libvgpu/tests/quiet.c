/* SPDX-License-Identifier: Apache-2.0 */
/* A process that does not use CUDA is not touched: no file, thread or mapping. */
#include <dirent.h>
#include <dlfcn.h>
#include <string.h>

#include "world.h"

static int entries(const char *path)
{
	DIR *directory = opendir(path);
	int count = 0;

	CHECK(directory);
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

int main(void)
{
	char line[512];
	FILE *maps;
	bool loaded = false;
	int before = entries("/proc/self/fd");

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	CHECK(dlsym(RTLD_DEFAULT, "strlen"));
	maps = fopen("/proc/self/maps", "re");
	CHECK(maps);
	while (fgets(line, sizeof(line), maps)) {
		loaded = loaded || strstr(line, "libvgpu");
		CHECK(!strstr(line, "/grants/"));
	}
	fclose(maps);
	CHECK(loaded);
	IS(entries("/proc/self/fd"), before);
	IS(entries("/proc/self/task"), 3);
	IS(entries(world_path("grants/uid_gpu/region")), 2); /* "." and ".." */
	return 0;
}
