/* SPDX-License-Identifier: Apache-2.0
 *
 * Finds a function in a library that is already loaded, by reading its symbol
 * table. This is how libvgpu gets at the real dlsym (which it hides) and at the
 * driver's functions, without importing anything from libdl: the version of
 * dlsym and dlvsym differs between C libraries (GLIBC_2.2.5, 2.17, 2.34, none in
 * musl), and a wrong guess keeps every program of the container from starting.
 *
 * Runs inside dlsym, even before a sanitizer has set itself up: no allocation,
 * no libc calls besides dl_iterate_phdr and getauxval, not instrumented. The real dlsym itself
 * is found without dl_iterate_phdr: programs that replace that one (Seastar, ThreadSanitizer)
 * look for the C library's by dlsym.
 */
#include <elf.h>
#include <link.h>
#include <stdbool.h>
#include <sys/auxv.h>

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
VGPU_ALWAYS_PLAIN static const void *address(ElfW(Addr) base, ElfW(Addr) value)
{
	if (value < base)
		value += base;
	return (const void *)value; // NOLINT(performance-no-int-to-ptr): that is what it is
}

VGPU_ALWAYS_PLAIN static bool read_dynamic(ElfW(Addr) base, const ElfW(Dyn) * entry,
					   struct dynamic *dynamic)
{
	ElfW(Xword) soname = 0;

	for (; entry->d_tag != DT_NULL; entry++) {
		const void *pointer = address(base, entry->d_un.d_ptr);

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

VGPU_ALWAYS_PLAIN static void *usable(ElfW(Addr) base, const struct dynamic *dynamic,
				      uint32_t index, const char *name)
{
	const ElfW(Sym) *symbol = &dynamic->symbols[index];

	if (symbol->st_shndx == SHN_UNDEF || (symbol->st_info & 0xf) != STT_FUNC)
		return NULL;
	if (!same(dynamic->strings + symbol->st_name, name))
		return NULL;
	// NOLINTNEXTLINE(performance-no-int-to-ptr)
	return (void *)(base + symbol->st_value);
}

VGPU_ALWAYS_PLAIN static void *find_gnu(ElfW(Addr) base, const struct dynamic *dynamic,
					const char *name)
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
			found = usable(base, dynamic, i, name);
		if (found)
			return found;
		if (chain[i - first] & 1)
			break;
	}
	return NULL;
}

/* Looks into one library; says whether the search is over. */
VGPU_ALWAYS_PLAIN static bool look(struct search *search, ElfW(Addr) base, const ElfW(Dyn) * entry)
{
	struct dynamic dynamic = {.soname = NULL};
	bool wanted = false;

	if (!entry || !read_dynamic(base, entry, &dynamic))
		return false;
	for (const char *const *soname = search->sonames; *soname && !wanted; soname++)
		wanted = same(dynamic.soname, *soname);
	if (!wanted)
		return false;
	if (dynamic.gnu_hash) {
		search->found = find_gnu(base, &dynamic, search->symbol);
	} else if (dynamic.sysv_hash) {
		for (uint32_t i = 1; i < dynamic.sysv_hash[1] && !search->found; i++)
			search->found = usable(base, &dynamic, i, search->symbol);
	}
	return search->found != NULL;
}

VGPU_ALWAYS_PLAIN static const ElfW(Dyn) *
	dynamic_of(const ElfW(Phdr) * headers, size_t count, ElfW(Addr) base)
{
	for (size_t i = 0; i < count; i++)
		if (headers[i].p_type == PT_DYNAMIC)
			return address(base, base + headers[i].p_vaddr);
	return NULL;
}

VGPU_ALWAYS_PLAIN static int visit(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)size;
	return look(data, info->dlpi_addr,
		    dynamic_of(info->dlpi_phdr, info->dlpi_phnum, info->dlpi_addr));
}

VGPU_ALWAYS_PLAIN void *vgpu_elf_find(const char *const *sonames, const char *symbol)
{
	struct search search = {.sonames = sonames, .symbol = symbol};

	dl_iterate_phdr(visit, &search);
	return search.found;
}

/* The list of libraries that the dynamic linker keeps for debuggers (DT_DEBUG of the program),
 * or NULL. */
VGPU_ALWAYS_PLAIN static const struct link_map *first_library(void)
{
	const ElfW(Phdr) *headers = address(0, getauxval(AT_PHDR));
	const size_t count = getauxval(AT_PHNUM);
	const ElfW(Dyn) *entry = NULL;
	const struct r_debug *list;

	for (size_t i = 0; headers && i < count; i++)
		if (headers[i].p_type == PT_PHDR)
			entry = dynamic_of(headers, count,
					   (ElfW(Addr))headers - headers[i].p_vaddr);
	while (entry && entry->d_tag != DT_NULL && entry->d_tag != DT_DEBUG)
		entry++;
	if (!entry || entry->d_tag != DT_DEBUG || !entry->d_un.d_ptr)
		return NULL;
	list = address(0, entry->d_un.d_ptr);
	return list->r_state == RT_CONSISTENT ? list->r_map : NULL;
}

/* Those come first in the list, and stay as they are while others are loaded behind them. */
VGPU_ALWAYS_PLAIN void *vgpu_elf_find_at_start(const char *const *sonames, const char *symbol)
{
	struct search search = {.sonames = sonames, .symbol = symbol};

	for (const struct link_map *map = first_library(); map; map = map->l_next)
		if (look(&search, map->l_addr, map->l_ld))
			return search.found;
	return vgpu_elf_find(sonames, symbol);
}
