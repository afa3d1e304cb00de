/* SPDX-License-Identifier: Apache-2.0 */
/* A program without the driver does not find the driver's functions, though libvgpu, which
 * is preloaded, exports some of them; once it has loaded the driver, it finds what is
 * limited. Not linked with either. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "world.h"

static void no_such(void *handle, const char *name)
{
	const char *error;

	dlerror();
	CHECK(dlsym(handle, name) == NULL);
	error = dlerror();
	CHECK(error && strstr(error, name));
	CHECK(dlvsym(handle, name, "GLIBC_2.17") == NULL);
}

int main(int argc, char **argv)
{
	static const char *const names[] = {"cuInit", "cuMemAlloc_v2", "cuGetProcAddress",
					    "nvmlInit_v2"};
	void *self = dlopen(NULL, RTLD_NOW), *library, *vgpu = NULL;
	Dl_info place;

	CHECK(argc == 2 && self);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		no_such(RTLD_DEFAULT, names[i]);
		no_such(RTLD_NEXT, names[i]);
		no_such(self, names[i]);
	}
	CHECK(dlsym(RTLD_DEFAULT, "dlsym") != NULL);
	CHECK(dladdr(dlsym(RTLD_DEFAULT, "dlsym"), &place) != 0);
	vgpu = dlopen(place.dli_fname, RTLD_NOW | RTLD_NOLOAD);
	CHECK(vgpu && strstr(place.dli_fname, "libvgpu")); /* it is here, and exports cuInit */
	library = dlopen(argv[1], RTLD_NOW);
	CHECK(library);
	CHECK(dlsym(library, "cuInit") != NULL);
	CHECK(dlsym(library, "cuInit") == dlsym(RTLD_DEFAULT, "cuInit"));
	CHECK(dladdr(dlsym(library, "cuInit"), &place) != 0);
	CHECK(strstr(place.dli_fname, "libvgpu"));
	no_such(RTLD_DEFAULT, "nvmlInit_v2");
	return 0;
}
