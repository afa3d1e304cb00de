/* SPDX-License-Identifier: Apache-2.0
 *
 * Which functions are hooked. The tables come from gen/hooks.toml. The look-up
 * by name runs inside dlsym and keeps to the rules of entry.c.
 */
#include "vgpu.h"

#include "hooks.inc"

VGPU_ALWAYS_PLAIN static bool same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* Same function as in gen.py. */
VGPU_ALWAYS_PLAIN static uint32_t place_of(const char *name)
{
	uint32_t value = VGPU_HASH_SEED;

	for (; *name; name++)
		value = (value ^ (unsigned char)*name) * 16777619u;
	value ^= value >> 15;
	return value & ((1u << VGPU_HASH_BITS) - 1);
}

VGPU_ALWAYS_PLAIN const struct vgpu_hook *vgpu_hook_find(const char *name)
{
	int place;

	/* Nearly every look-up of a process ends here. */
	if (!(name[0] == 'c' && name[1] == 'u') && !(name[0] == 'n' && name[1] == 'v'))
		return NULL;
	place = hook_places[place_of(name)];
	return place >= 0 && same(name, hooks[place].name) ? &hooks[place] : NULL;
}

VGPU_ALWAYS_PLAIN const struct vgpu_real_name *vgpu_real_name(int index)
{
	return &real_names[index];
}

VGPU_ALWAYS_PLAIN const char *const *vgpu_library_sonames(enum vgpu_library library)
{
	static const char *const sonames[][2] = {
		[VGPU_CUDA] = {"libcuda.so.1", NULL},
		[VGPU_NVML] = {"libnvidia-ml.so.1", NULL},
	};

	return sonames[library];
}

/* Variants of one base are neighbours, the newest first. */
const struct vgpu_variant *vgpu_variant_first(const char *base)
{
	for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++)
		if (same(variants[i].base, base))
			return &variants[i];
	return NULL;
}

const struct vgpu_variant *vgpu_variant_next(const struct vgpu_variant *variant)
{
	const struct vgpu_variant *next = variant + 1;

	if (next == variants + sizeof(variants) / sizeof(variants[0]))
		return NULL;
	return same(next->base, variant->base) ? next : NULL;
}
