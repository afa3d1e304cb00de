/* SPDX-License-Identifier: Apache-2.0 */
/* Memory by handle: charged to the card that it lies on, and as long as a handle
 * or a mapping keeps it. */
#include "world.h"

#define HANDLE CUmemGenericAllocationHandle

static struct channel talk;

static uint64_t used(const char *grant)
{
	return world_region(grant)->devices[0].used_bytes;
}

static CUresult create(HANDLE *handle, uint64_t mib, int device)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, device}};

	return cuMemCreate(handle, mib * MIB, &prop, 0);
}

static void *at(CUdeviceptr pointer)
{
	return (void *)(uintptr_t)pointer; // NOLINT(performance-no-int-to-ptr)
}

static void limit(void)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_HOST, 0}};
	HANDLE first, second, refused = 0xabc;

	OK(cuInit(0)); /* no context is needed */
	OK(create(&first, 2998, 0));
	IS(used("uid_gpu"), 2998 * MIB);
	IS(create(&refused, 4, 0), CUDA_ERROR_OUT_OF_MEMORY);
	IS(create(&refused, 2, 99), CUDA_ERROR_INVALID_DEVICE);
	IS(cuMemCreate(&refused, 2 * MIB, NULL, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemCreate(&refused, 0, &prop, 0), CUDA_ERROR_INVALID_VALUE);
	IS(create(NULL, 2, 0), CUDA_ERROR_INVALID_VALUE);
	IS(refused, 0xabc);
	prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
	IS(cuMemCreate(&refused, 4096, &prop, 0), CUDA_ERROR_INVALID_VALUE);
	IS(refused, 0xabc);
	IS(used("uid_gpu"), 2998 * MIB);
	OK(create(&second, 2, 0));
	IS(used("uid_gpu"), 3000 * MIB);
	OK(cuMemRelease(second));
	OK(cuMemRelease(first));
	IS(cuMemRelease(first), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemRelease(0x7777), CUDA_ERROR_INVALID_VALUE);
	IS(used("uid_gpu"), 0);
	/* The host's memory is not the card's. */
	prop.location.type = CU_MEM_LOCATION_TYPE_HOST;
	OK(cuMemCreate(&first, 4000 * MIB, &prop, 0));
	IS(used("uid_gpu"), 0);
	OK(cuMemRelease(first));
}

static void by_location(void)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED};
	HANDLE handle, domain, refused = 0xabc;

	use_gpu(); /* the first card's context */
	OK(create(&handle, 60, 1));
	IS(used("uid_gpu"), 0);
	IS(used("uid_second"), 60 * MIB);
	IS(create(&refused, 60, 1), CUDA_ERROR_OUT_OF_MEMORY);
	IS(refused, 0xabc);
	OK(create(&refused, 60, 0));
	IS(used("uid_gpu"), 60 * MIB);
	prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE_LOCALITY_DOMAIN;
	prop.location.id = 1 | 3 << 8; /* the fourth domain of the second card */
	IS(cuMemCreate(&domain, 60 * MIB, &prop, 0), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemCreate(&domain, 40 * MIB, &prop, 0));
	IS(used("uid_second"), 100 * MIB);
	OK(cuMemRelease(domain));
	IS(used("uid_second"), 60 * MIB);
	/* A context that ends does not take this memory along. */
	OK(cuDevicePrimaryCtxReset_v2(0));
	IS(used("uid_gpu"), 60 * MIB);
	OK(cuMemRelease(handle));
	OK(cuMemRelease(refused));
	IS(used("uid_gpu"), 0);
	IS(used("uid_second"), 0);
}

static void mapped(void)
{
	CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, 0},
				  CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	HANDLE handle, again, other, reused;
	CUdeviceptr space;
	char text[6] = "hello", back[6] = "";

	use_gpu();
	OK(cuMemAddressReserve(&space, 64 * MIB, 0, 0, 0));
	OK(create(&handle, 16, 0));
	OK(cuMemMap(space, 16 * MIB, 0, handle, 0));
	OK(cuMemSetAccess(space, 16 * MIB, &access, 1));
	OK(cuMemcpyHtoD_v2(space + MIB, text, sizeof(text)));
	OK(cuMemcpyDtoH_v2(back, space + MIB, sizeof(back)));
	IS(back[4], 'o');
	/* Refused mappings hold nothing. */
	IS(cuMemMap(space, 16 * MIB, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemMap(space + 16 * MIB, 16 * MIB, 0, 0x7777, 0), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemRelease(handle));
	IS(used("uid_gpu"), 16 * MIB);
	/* The same number for other memory. */
	OK(create(&reused, 8, 0));
	IS(reused, handle);
	IS(used("uid_gpu"), 24 * MIB);
	OK(cuMemRetainAllocationHandle(&again, at(space + 5 * MIB)));
	CHECK(again != reused);
	OK(cuMemMap(space + 16 * MIB, 8 * MIB, 0, reused, 0));
	OK(cuMemRelease(reused));
	IS(cuMemUnmap(space, 8 * MIB), CUDA_ERROR_INVALID_VALUE);
	IS(used("uid_gpu"), 24 * MIB);
	OK(cuMemUnmap(space, 24 * MIB)); /* both at once */
	IS(used("uid_gpu"), 16 * MIB);
	OK(cuMemRelease(again));
	IS(used("uid_gpu"), 0);
	IS(cuMemUnmap(space, 24 * MIB), CUDA_ERROR_INVALID_VALUE);
	/* Retained twice, released twice; mapped twice, unmapped twice. */
	OK(create(&handle, 16, 0));
	OK(cuMemMap(space, 16 * MIB, 0, handle, 0));
	OK(cuMemMap(space + 32 * MIB, 16 * MIB, 0, handle, 0));
	OK(cuMemRetainAllocationHandle(&again, at(space)));
	IS(again, handle);
	OK(cuMemRetainAllocationHandle(&other, at(space + 33 * MIB)));
	IS(other, handle);
	IS(cuMemRetainAllocationHandle(&other, at(space + 20 * MIB)), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemUnmap(space, 16 * MIB));
	OK(cuMemRelease(handle));
	OK(cuMemUnmap(space + 32 * MIB, 16 * MIB));
	OK(cuMemRelease(handle));
	IS(used("uid_gpu"), 16 * MIB);
	OK(cuMemRelease(handle));
	IS(used("uid_gpu"), 0);
	IS(cuMemRelease(handle), CUDA_ERROR_INVALID_VALUE);
	IS(used("uid_gpu"), 0);
	OK(cuMemAddressFree(space, 64 * MIB));
}

static void hold(void)
{
	HANDLE handle;

	OK(cuInit(0));
	OK(create(&handle, 2000, 0));
	channel_tell(talk.up[1]);
	channel_hear(talk.down[0]);
}

static void beside(void)
{
	HANDLE handle;

	OK(cuInit(0));
	IS(create(&handle, 1002, 0), CUDA_ERROR_OUT_OF_MEMORY);
	OK(create(&handle, 1000, 0));
	IS(used("uid_gpu"), 3000 * MIB);
}

/* Exported memory may live on in any process, and is charged once: see ipc.c. */
static void shared(void)
{
	HANDLE handle, again, imported, refused = 0xabc;
	int fd = -1;

	use_gpu();
	OK(create(&handle, 2000, 0));
	OK(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	OK(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	IS(cuMemExportToShareableHandle(&fd, 0x7777, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
	   CUDA_ERROR_INVALID_VALUE);
	OK(cuMemImportFromShareableHandle(&imported, at((CUdeviceptr)fd),
					  CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
	IS(used("uid_gpu"), 2000 * MIB);
	OK(cuMemRelease(handle));
	IS(create(&refused, 1002, 0), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemRelease(imported));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
	OK(create(&again, 3000, 0));
	OK(cuMemRelease(again));
	IS(used("uid_gpu"), 0);
}

/* Memory of other APIs counts from its import on. */
static void external(void)
{
	CUDA_EXTERNAL_MEMORY_HANDLE_DESC what = {.type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD,
						 .handle.fd = 0,
						 .size = 2000 * MIB};
	CUexternalMemory memory, refused = NULL;

	use_gpu();
	OK(cuImportExternalMemory(&memory, &what));
	IS(used("uid_gpu"), 2000 * MIB);
	IS(cuImportExternalMemory(&refused, &what), CUDA_ERROR_OUT_OF_MEMORY);
	IS(cuImportExternalMemory(&refused, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuImportExternalMemory(NULL, &what), CUDA_ERROR_INVALID_VALUE);
	CHECK(!refused);
	OK(cuDestroyExternalMemory(memory));
	IS(used("uid_gpu"), 0);
	OK(cuImportExternalMemory(&memory, &what));
	OK(cuDevicePrimaryCtxReset_v2(0));
	IS(used("uid_gpu"), 0);
	IS(card_used(0), 0);
}

int main(void)
{
	int child;

	world();
	world_grant("uid_gpu", CARD_A, 3000, NULL, 0);
	world_grant("uid_second", CARD_B, 100, NULL, 0);
	channel_open(&talk);
	OK(in_child(limit));
	OK(in_child(by_location));
	OK(in_child(mapped));
	OK(in_child(shared));
	OK(in_child(external));
	child = start_child(hold);
	channel_hear(talk.up[0]);
	OK(in_child(beside));
	channel_tell(talk.down[1]);
	OK(wait_child(child));
	use_gpu();
	OK(cuMemFree_v2(must_alloc(3000)));
	return 0;
}
