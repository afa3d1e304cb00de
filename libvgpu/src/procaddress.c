/* SPDX-License-Identifier: Apache-2.0
 *
 * cuGetProcAddress: the way in which the CUDA runtime and nearly every library
 * since CUDA 11.3 get at the driver.
 *
 * The driver answers first, with the caller's version, flags and status: what
 * it refuses or does not know is refused in its own words. Then the variant
 * that it chose is recognised by its address, and ours is given instead. Only
 * if the address is none of the exported ones is the version table asked.
 */
#include <stdio.h>
#include <string.h>

#include "vgpu.h"

static bool is_ptsz(const struct vgpu_variant *variant, cuuint64_t flags)
{
	return !variant->ptsz || (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM);
}

static const char *const suffixes[] = {"",         "_v2",      "_v3",      "_v4",     "_v5",
				       "_v6",      "_v7",      "_v8",      "_ptsz",   "_ptds",
				       "_v2_ptsz", "_v2_ptds", "_v3_ptsz", "_v3_ptds"};

/* Whether the driver gave an exported variant that is not in our list, or may have:
 * asked for a version after the list's last one, it can mean a variant that is newer. */
static bool is_unknown_variant(const char *base, const void *function, int version)
{
	char name[160];

	for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
		const void *exported;

		snprintf(name, sizeof(name), "%s%s", base, suffixes[i]);
		exported = vgpu_real_symbol(VGPU_CUDA, name);
		if (exported &&
		    (exported == function || (version > VGPU_NEWEST_CUDA && !vgpu_hook_find(name))))
			return true;
	}
	return false;
}

static void *choose(const char *symbol, void *theirs, int version, cuuint64_t flags)
{
	const struct vgpu_variant *first = vgpu_variant_first(symbol), *variant;

	if (!first) {
		/* Some drivers take the suffixed name, too. */
		const struct vgpu_hook *hook = vgpu_hook_find(symbol);

		return hook && vgpu_real_at(hook->real) == theirs ? hook->ours : theirs;
	}
	for (variant = first; variant; variant = vgpu_variant_next(variant))
		if (vgpu_real_at(variant->hook->real) == theirs)
			return variant->hook->ours;
	if (is_unknown_variant(symbol, theirs, version)) {
		vgpu_log(VGPU_LOG_WARN, "%s for CUDA %d is a variant that is not limited", symbol,
			 version);
		vgpu_count_unhooked();
		return theirs;
	}
	for (variant = first; variant; variant = vgpu_variant_next(variant))
		if (variant->since <= version && is_ptsz(variant, flags))
			return variant->hook->ours;
	return theirs;
}

VGPU_EXPORT CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version,
					 cuuint64_t flags, int *status)
{
	__typeof__(&cuGetProcAddress_v2) real = VGPU_REAL(cuGetProcAddress_v2);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(symbol, function, version, flags, status);
	if (result == CUDA_SUCCESS && symbol && function && *function)
		*function = choose(symbol, *function, version, flags);
	return result;
}

VGPU_EXPORT CUresult cuGetProcAddress(const char *symbol, void **function, int version,
				      cuuint64_t flags)
{
	__typeof__(&cuGetProcAddress) real = VGPU_REAL(cuGetProcAddress);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(symbol, function, version, flags);
	if (result == CUDA_SUCCESS && symbol && function && *function)
		*function = choose(symbol, *function, version, flags);
	return result;
}
