/* SPDX-License-Identifier: Apache-2.0
 *
 * dlsym and dlvsym, as every program of the container sees them.
 *
 * A name that is not hooked must reach the real dlsym as a jump, not as a call:
 * dlsym(RTLD_NEXT, ...) looks behind the library that its return address lies
 * in. With a call in between that would be libvgpu, and every wrapper of malloc
 * or pthread_create in the process would find the wrong function, or itself.
 * The stubs are assembly because no compiler promises a tail call.
 *
 * No lock, allocation, log line or libc call here besides the one look-up of
 * the real functions: dlsym is called by allocators and sanitizers before they
 * work.
 */
#include <dlfcn.h>

#include "vgpu.h"

struct pick {
	void *result;       /* what to return ... */
	const void *target; /* ... unless this is where to jump */
};

typedef void *dlsym_fn(void *handle, const char *name);
typedef void *dlvsym_fn(void *handle, const char *name, const char *version);

__attribute__((used)) struct pick vgpu_pick_dlsym(void *handle, const char *name);
__attribute__((used)) struct pick vgpu_pick_dlvsym(void *handle, const char *name,
						   const char *version);

static void *real_dlsym, *real_dlvsym;

/* Stands in for a real function that this C library does not have (dlvsym in musl). */
VGPU_ALWAYS_PLAIN static void *absent(void)
{
	return NULL;
}

VGPU_ALWAYS_PLAIN static void *real(void **cache, const char *name)
{
	static const char *const sonames[] = {"libc.so.6", "libdl.so.2", "libc.musl-*",
					      "ld-musl-*", "libc.so",    NULL};
	void *function = atomic_load_explicit(cache, memory_order_relaxed);

	if (!function) {
		function = vgpu_elf_find_at_start(sonames, name);
		if (!function)
			function = (void *)&absent;
		/* Every thread finds the same: no lock is needed. */
		atomic_store_explicit(cache, function, memory_order_relaxed);
	}
	return function;
}

/* Whether a look-up found only that libvgpu exports the name, which it must for programs
 * that are linked with the driver. */
VGPU_ALWAYS_PLAIN static bool is_only_ours(const struct vgpu_hook *hook, const void *found)
{
	const struct vgpu_real_name *name = vgpu_real_name(hook->real);

	return found == hook->ours &&
	       !vgpu_elf_find(vgpu_library_sonames(name->library), name->name);
}

/* Asking the real one first keeps what a program may rely on: a function that
 * the driver does not have is not there, and dlerror() says why. Asked again from
 * here, RTLD_NEXT looks behind libvgpu. */
VGPU_ALWAYS_PLAIN struct pick vgpu_pick_dlsym(void *handle, const char *name)
{
	dlsym_fn *function = (dlsym_fn *)real(&real_dlsym, "dlsym");
	const struct vgpu_hook *hook = name ? vgpu_hook_find(name) : NULL;
	void *found;

	if (!hook)
		return (struct pick){.target = (void *)function};
	found = function(handle, name);
	if (is_only_ours(hook, found))
		found = function(RTLD_NEXT, name);
	return (struct pick){.result = found ? hook->ours : NULL};
}

VGPU_ALWAYS_PLAIN struct pick vgpu_pick_dlvsym(void *handle, const char *name, const char *version)
{
	dlvsym_fn *function = (dlvsym_fn *)real(&real_dlvsym, "dlvsym");
	const struct vgpu_hook *hook = name ? vgpu_hook_find(name) : NULL;
	void *found;

	if (!hook)
		return (struct pick){.target = (void *)function};
	found = function(handle, name, version);
	if (is_only_ours(hook, found))
		found = function(RTLD_NEXT, name, version);
	return (struct pick){.result = found ? hook->ours : NULL};
}

#if defined(__x86_64__)
#define STUB(name, pick)                                                                           \
	__asm__(".text\n"                                                                          \
		".globl " #name "\n"                                                               \
		".type " #name ", @function\n"                                                     \
		".p2align 4\n" #name ":\n"                                                         \
		".cfi_startproc\n"                                                                 \
		"endbr64\n"                                                                        \
		"push %rdi\n"                                                                      \
		".cfi_adjust_cfa_offset 8\n"                                                       \
		"push %rsi\n"                                                                      \
		".cfi_adjust_cfa_offset 8\n"                                                       \
		"push %rdx\n"                                                                      \
		".cfi_adjust_cfa_offset 8\n"                                                       \
		"call " #pick "\n"                                                                 \
		"mov %rdx, %rcx\n"                                                                 \
		"pop %rdx\n"                                                                       \
		".cfi_adjust_cfa_offset -8\n"                                                      \
		"pop %rsi\n"                                                                       \
		".cfi_adjust_cfa_offset -8\n"                                                      \
		"pop %rdi\n"                                                                       \
		".cfi_adjust_cfa_offset -8\n"                                                      \
		"test %rcx, %rcx\n"                                                                \
		"jz 1f\n"                                                                          \
		"jmp *%rcx\n"                                                                      \
		"1: ret\n"                                                                         \
		".cfi_endproc\n"                                                                   \
		".size " #name ", .-" #name "\n")
#elif defined(__aarch64__)
#define STUB(name, pick)                                                                           \
	__asm__(".text\n"                                                                          \
		".globl " #name "\n"                                                               \
		".type " #name ", %function\n"                                                     \
		".p2align 4\n" #name ":\n"                                                         \
		".cfi_startproc\n"                                                                 \
		"hint #34\n"                                                                       \
		"stp x29, x30, [sp, #-48]!\n"                                                      \
		".cfi_def_cfa_offset 48\n"                                                         \
		".cfi_offset 29, -48\n"                                                            \
		".cfi_offset 30, -40\n"                                                            \
		"mov x29, sp\n"                                                                    \
		"stp x0, x1, [sp, #16]\n"                                                          \
		"str x2, [sp, #32]\n"                                                              \
		"bl " #pick "\n"                                                                   \
		"mov x16, x1\n"                                                                    \
		"mov x17, x0\n"                                                                    \
		"ldp x0, x1, [sp, #16]\n"                                                          \
		"ldr x2, [sp, #32]\n"                                                              \
		"ldp x29, x30, [sp], #48\n"                                                        \
		".cfi_restore 29\n"                                                                \
		".cfi_restore 30\n"                                                                \
		".cfi_def_cfa_offset 0\n"                                                          \
		"cbz x16, 1f\n"                                                                    \
		"br x16\n"                                                                         \
		"1: mov x0, x17\n"                                                                 \
		"ret\n"                                                                            \
		".cfi_endproc\n"                                                                   \
		".size " #name ", .-" #name "\n")
#else
#error "write the dlsym stub for this architecture"
#endif

/* ThreadSanitizer's runtime looks symbols up before it can bear any call. */
#ifndef VGPU_WITHOUT_DLSYM
STUB(dlsym, vgpu_pick_dlsym);
STUB(dlvsym, vgpu_pick_dlvsym);
#endif
