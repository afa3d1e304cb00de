/* SPDX-License-Identifier: Apache-2.0
 *
 * The driver's own functions, looked up in the loaded libcuda.so.1 and
 * libnvidia-ml.so.1 at first use. libvgpu never loads them itself: a hook is
 * called by a program that has.
 */
#include <dlfcn.h>

#include "vgpu.h"

static void *functions[VGPU_REAL_COUNT];

/* A program may dlclose the driver and load it again elsewhere: the pointers
 * kept here must stay good, so the library is told never to leave. */
static void pin(enum vgpu_library library)
{
	static const char *const loaders[] = {"libc.so.6", "libdl.so.2", "libc.musl-*", NULL};
	static int pinned[2];
	void *(*open_library)(const char *, int) = NULL;

	if (atomic_exchange(&pinned[library], 1))
		return;
	*(void **)&open_library = vgpu_elf_find(loaders, "dlopen");
	if (open_library)
		open_library(vgpu_library_sonames(library)[0],
			     RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
}

void *vgpu_real_symbol(enum vgpu_library library, const char *name)
{
	return vgpu_elf_find(vgpu_library_sonames(library), name);
}

void *vgpu_real_at(int index)
{
	void *function = atomic_load_explicit(&functions[index], memory_order_relaxed);

	if (!function) {
		const struct vgpu_real_name *name = vgpu_real_name(index);

		function = vgpu_real_symbol(name->library, name->name);
		if (function) {
			pin(name->library);
			atomic_store_explicit(&functions[index], function, memory_order_relaxed);
		}
	}
	return function;
}
