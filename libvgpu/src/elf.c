/* SPDX-License-Identifier: Apache-2.0
 *
 * Finds a function in a library that is already loaded, by reading its symbol
 * table. This is how libvgpu gets at the real dlsym (which it hides) and at the
 * driver's functions, without importing anything from libdl: the version of
 * dlsym and dlvsym differs between C libraries (GLIBC_2.2.5, 2.17, 2.34, none in
 * musl), and a wrong guess keeps every program of the container from starting.
 *
 * Runs inside dlsym, even before a sanitizer has set itself up: no allocation,
 * no libc calls besides dl_iterate_phdr, not instrumented.
 */
#include <elf.h>
#include <link.h>
#include <stdbool.h>

#include "vgpu.h"

struct search {
	const char *const *sonames; /* NULL-terminated; "x*" matches a prefix */
	const char *symbol;
	void *found;
};

struct dynamic {
	const char *strings;
	const ElfW(Sym) * symbols;
	const uint32_t *gnu_hash;
	const uint32_t *sysv_hash;
	const char *soname;
};

VGPU_ALWAYS_PLAIN static bool same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b || *b == '*';
}

/* glibc relocates the addresses in the dynamic section, musl leaves them be. */
VGPU_ALWAYS_PLAIN static const void *address(const struct dl_phdr_info *info, ElfW(Addr) value)
{
	if (value < info->dlpi_addr)
		value += info->dlpi_addr;
	return (const void *)value; // NOLINT(performance-no-int-to-ptr): that is what it is
}

VGPU_ALWAYS_PLAIN static bool read_dynamic(const struct dl_phdr_info *info, struct dynamic *dynamic)
{
	const ElfW(Dyn) *entry = NULL;
	ElfW(Xword) soname = 0;

	for (int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
			entry = address(info, info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
	if (!entry)
		return false;
	for (; entry->d_tag != DT_NULL; entry++) {
		const void *pointer = address(info, entry->d_un.d_ptr);

		switch (entry->d_tag) {
		case DT_STRTAB:
			dynamic->strings = pointer;
			break;
		case DT_SYMTAB:
			dynamic->symbols = pointer;
			break;
		case DT_GNU_HASH:
			dynamic->gnu_hash = pointer;
			break;
		case DT_HASH:
			dynamic->sysv_hash = pointer;
			break;
		case DT_SONAME:
			soname = entry->d_un.d_val;
			break;
		default:
			break;
		}
	}
	if (!dynamic->strings || !dynamic->symbols || !soname)
		return false;
	dynamic->soname = dynamic->strings + soname;
	return true;
}

VGPU_ALWAYS_PLAIN static void *usable(const struct dl_phdr_info *info,
				      const struct dynamic *dynamic, uint32_t index,
				      const char *name)
{
	const ElfW(Sym) *symbol = &dynamic->symbols[index];

	if (symbol->st_shndx == SHN_UNDEF || (symbol->st_info & 0xf) != STT_FUNC)
		return NULL;
	if (!same(dynamic->strings + symbol->st_name, name))
		return NULL;
	// NOLINTNEXTLINE(performance-no-int-to-ptr)
	return (void *)(info->dlpi_addr + symbol->st_value);
}

VGPU_ALWAYS_PLAIN static void *find_gnu(const struct dl_phdr_info *info,
					const struct dynamic *dynamic, const char *name)
{
	const uint32_t *table = dynamic->gnu_hash;
	const uint32_t bucket_count = table[0], first = table[1], bloom_words = table[2];
	const ElfW(Addr) *bloom = (const ElfW(Addr) *)(table + 4);
	const uint32_t *buckets = (const uint32_t *)(bloom + bloom_words);
	const uint32_t *chain = buckets + bucket_count;
	uint32_t hash = 5381;

	for (const char *c = name; *c; c++)
		hash = hash * 33 + (unsigned char)*c;
	if (!bucket_count)
		return NULL;
	for (uint32_t i = buckets[hash % bucket_count]; i >= first && i; i++) {
		void *found = NULL;

		if ((chain[i - first] | 1) == (hash | 1))
			found = usable(info, dynamic, i, name);
		if (found)
			return found;
		if (chain[i - first] & 1)
			break;
	}
	return NULL;
}

VGPU_ALWAYS_PLAIN static int visit(struct dl_phdr_info *info, size_t size, void *data)
{
	struct search *search = data;
	struct dynamic dynamic = {.soname = NULL};
	bool wanted = false;

	(void)size;
	if (!read_dynamic(info, &dynamic))
		return 0;
	for (const char *const *soname = search->sonames; *soname && !wanted; soname++)
		wanted = same(dynamic.soname, *soname);
	if (!wanted)
		return 0;
	if (dynamic.gnu_hash) {
		search->found = find_gnu(info, &dynamic, search->symbol);
	} else if (dynamic.sysv_hash) {
		for (uint32_t i = 1; i < dynamic.sysv_hash[1] && !search->found; i++)
			search->found = usable(info, &dynamic, i, search->symbol);
	}
	return search->found != NULL;
}

VGPU_ALWAYS_PLAIN void *vgpu_elf_find(const char *const *sonames, const char *symbol)
{
	struct search search = {.sonames = sonames, .symbol = symbol};

	dl_iterate_phdr(visit, &search);
	return search.found;
}
