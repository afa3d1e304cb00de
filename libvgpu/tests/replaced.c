/* SPDX-License-Identifier: Apache-2.0 */
/* A program with a dl_iterate_phdr of its own, as Seastar and ThreadSanitizer have one. It looks
 * for the C library's by dlsym, which must not need it in turn. */
#include <dlfcn.h>
#include <link.h>

#include "world.h"

typedef int visit_fn(struct dl_phdr_info *info, size_t size, void *data);

static int depth, calls;

__attribute__((visibility("default"))) int dl_iterate_phdr(visit_fn *visit, void *data)
{
	static int (*next)(visit_fn *visit, void *data);

	CHECK(++depth == 1);
	calls++;
	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "dl_iterate_phdr");
	depth--;
	CHECK(next && next != dl_iterate_phdr);
	return next(visit, data);
}

static int count(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)info, (void)size;
	++*(int *)data;
	return 0;
}

int main(void)
{
	int seen = 0;

	IS(dl_iterate_phdr(count, &seen), 0);
	CHECK(seen > 3);
	IS(calls, 1);
	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	use_gpu();
	IS(cuMemAlloc_v2(&(CUdeviceptr){0}, 3001 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
	return 0;
}
