/* SPDX-License-Identifier: Apache-2.0 */
/* 64 processes grab a share in small pieces, by each of the calls that allocate: it
 * is used up to the last byte, and not one byte more, as the card itself sees it.
 * Then all give everything back. */
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "world.h"

#define PROCESSES 64
#define LIMIT_MIB 1000
#define PIECE (2 * MIB)

struct way {
	const char *name;
	CUresult (*grab)(uint64_t *piece);
	CUresult (*drop)(uint64_t piece);
};

static struct channel go, done;

static CUresult alloc(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUresult result = cuMemAlloc_v2(&pointer, PIECE);

	*piece = pointer;
	return result;
}

static CUresult alloc_narrow(uint64_t *piece)
{
	CUdeviceptr_v1 pointer = 0;
	CUresult result = cuMemAlloc(&pointer, PIECE);

	*piece = pointer;
	return result;
}

static CUresult alloc_rows(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	size_t pitch;
	CUresult result = cuMemAllocPitch_v2(&pointer, &pitch, 2048, PIECE / 2048, 4);

	*piece = pointer;
	return result;
}

static CUresult alloc_managed(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUresult result = cuMemAllocManaged(&pointer, PIECE, CU_MEM_ATTACH_GLOBAL);

	*piece = pointer;
	return result;
}

static CUresult give_back(uint64_t piece)
{
	return cuMemFree_v2(piece);
}

static CUresult create(uint64_t *piece)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle = 0;
	CUresult result = cuMemCreate(&handle, PIECE, &prop, 0);

	*piece = handle;
	return result;
}

static CUresult let_go(uint64_t piece)
{
	return cuMemRelease(piece);
}

static CUresult alloc_async(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUresult result = cuMemAllocAsync(&pointer, PIECE, NULL);

	*piece = pointer;
	return result;
}

static CUresult alloc_from_pool(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUmemoryPool pool;
	CUresult result;

	OK(cuDeviceGetDefaultMemPool(&pool, 0));
	result = cuMemAllocFromPoolAsync_ptsz(&pointer, PIECE, pool, NULL);
	*piece = pointer;
	return result;
}

static CUresult free_async(uint64_t piece)
{
	CUresult result = cuMemFreeAsync(piece, NULL);

	return result ? result : cuStreamSynchronize(NULL);
}

static CUresult make_array(uint64_t *piece)
{
	CUDA_ARRAY_DESCRIPTOR what = {1024, 512, CU_AD_FORMAT_FLOAT, 1};
	CUarray array = NULL;
	CUresult result = cuArrayCreate_v2(&array, &what);

	*piece = (uintptr_t)array;
	return result;
}

static CUresult make_solid(uint64_t *piece)
{
	CUDA_ARRAY3D_DESCRIPTOR what = {64, 64, 128, CU_AD_FORMAT_FLOAT, 1, 0};
	CUarray array = NULL;
	CUresult result = cuArray3DCreate_v2(&array, &what);

	*piece = (uintptr_t)array;
	return result;
}

static CUresult drop_array(uint64_t piece)
{
	return cuArrayDestroy((CUarray)(uintptr_t)piece);
}

static CUresult make_levels(uint64_t *piece)
{
	CUDA_ARRAY3D_DESCRIPTOR what = {1024, 256, 0, CU_AD_FORMAT_FLOAT, 1, 0};
	CUmipmappedArray array = NULL;
	CUresult result = cuMipmappedArrayCreate(&array, &what, 4);

	*piece = (uintptr_t)array;
	return result;
}

static CUresult drop_levels(uint64_t piece)
{
	return cuMipmappedArrayDestroy((CUmipmappedArray)(uintptr_t)piece);
}

static CUresult import(uint64_t *piece)
{
	return import_external(PIECE, piece);
}

static CUresult launch(uint64_t *piece)
{
	return launch_allocation(PIECE, piece);
}

static CUresult alloc_narrow_rows(uint64_t *piece)
{
	CUdeviceptr_v1 pointer = 0;
	unsigned int pitch;
	CUresult result = cuMemAllocPitch(&pointer, &pitch, 2048, PIECE / 2048, 4);

	*piece = pointer;
	return result;
}

static CUresult make_array_v1(uint64_t *piece)
{
	CUDA_ARRAY_DESCRIPTOR_v1 what = {1024, 512, CU_AD_FORMAT_FLOAT, 1};
	CUarray array = NULL;
	CUresult result = cuArrayCreate(&array, &what);

	*piece = (uintptr_t)array;
	return result;
}

static CUresult make_solid_v1(uint64_t *piece)
{
	CUDA_ARRAY3D_DESCRIPTOR_v1 what = {64, 64, 128, CU_AD_FORMAT_FLOAT, 1, 0};
	CUarray array = NULL;
	CUresult result = cuArray3DCreate(&array, &what);

	*piece = (uintptr_t)array;
	return result;
}

static CUresult alloc_async_ptsz(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUresult result = cuMemAllocAsync_ptsz(&pointer, PIECE, NULL);

	*piece = pointer;
	return result;
}

static CUresult alloc_from_pool_legacy(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUmemoryPool pool;
	CUresult result;

	OK(cuDeviceGetDefaultMemPool(&pool, 0));
	result = cuMemAllocFromPoolAsync(&pointer, PIECE, pool, NULL);
	*piece = pointer;
	return result;
}

/* ---- memory that another tenant has made */

#define GIVEN_PIECE (2 * PIECE)    /* of which lists hold enough */
#define GIVEN (LIMIT_MIB / 4 + 32) /* some more than there is room for */

static struct given {
	CUipcMemHandle handles[GIVEN];
	int descriptors[GIVEN]; /* of the giver; all have them by its /proc */
	int giver;
	unsigned int next;
} *given;

static void give_away(void)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle;
	CUdeviceptr pointer;

	setenv("VGPU_GRANT_ROOT", world_path("givers"), 1);
	use_gpu();
	for (int i = 0; i < GIVEN; i++) {
		OK(cuMemAlloc_v2(&pointer, GIVEN_PIECE));
		OK(cuIpcGetMemHandle(&given->handles[i], pointer));
		OK(cuMemCreate(&handle, GIVEN_PIECE, &prop, 0));
		OK(cuMemExportToShareableHandle(&given->descriptors[i], handle,
						CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	}
	channel_tell(go.up[1]);
	pause();
}

/* Each piece is opened once: who is charged for it is another matter (exchange.c). */
static unsigned int next_given(void)
{
	return __atomic_fetch_add(&given->next, 1, __ATOMIC_SEQ_CST) % GIVEN;
}

static CUresult open_given(uint64_t *piece)
{
	CUdeviceptr pointer = 0;
	CUresult result = cuIpcOpenMemHandle_v2(&pointer, given->handles[next_given()],
						CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);

	*piece = pointer;
	return result;
}

static CUresult close_given(uint64_t piece)
{
	return cuIpcCloseMemHandle(piece);
}

/* A copy of the giver's open file, as if it had been sent. */
static int descriptor_of_giver(int number)
{
	int process = (int)syscall(SYS_pidfd_open, given->giver, 0);
	int fd = process < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, process, number, 0);

	if (process >= 0)
		close(process);
	if (fd < 0)
		_Exit(77);
	return fd;
}

static CUresult map_given(uint64_t *piece)
{
	int fd = descriptor_of_giver(given->descriptors[next_given()]);
	CUmemGenericAllocationHandle handle;
	CUdeviceptr space;
	CUresult result;

	OK(cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd,
					  CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
	close(fd);
	OK(cuMemAddressReserve(&space, GIVEN_PIECE, 0, 0, 0));
	result = cuMemMap(space, GIVEN_PIECE, 0, handle, 0);
	OK(cuMemRelease(handle));
	if (result != CUDA_SUCCESS)
		OK(cuMemAddressFree(space, GIVEN_PIECE));
	*piece = space;
	return result;
}

static CUresult unmap_given(uint64_t piece)
{
	CUresult result = cuMemUnmap(piece, GIVEN_PIECE);

	return result ? result : cuMemAddressFree(piece, GIVEN_PIECE);
}

static const struct way ways[] = {
	{"cuMemAlloc_v2", alloc, give_back},
	{"cuMemAlloc", alloc_narrow, give_back},
	{"cuMemAllocPitch_v2", alloc_rows, give_back},
	{"cuMemAllocManaged", alloc_managed, give_back},
	{"cuMemCreate", create, let_go},
	{"cuArrayCreate_v2", make_array, drop_array},
	{"cuArray3DCreate_v2", make_solid, drop_array},
	{"cuMipmappedArrayCreate", make_levels, drop_levels},
	{"cuMemAllocAsync", alloc_async, free_async},
	{"cuMemAllocFromPoolAsync_ptsz", alloc_from_pool, free_async},
	{"cuMemAllocPitch", alloc_narrow_rows, give_back},
	{"cuArrayCreate", make_array_v1, drop_array},
	{"cuArray3DCreate", make_solid_v1, drop_array},
	{"cuMemAllocAsync_ptsz", alloc_async_ptsz, free_async},
	{"cuMemAllocFromPoolAsync", alloc_from_pool_legacy, free_async},
	{"cuImportExternalMemory", import, drop_external},
	{"cuGraphLaunch", launch, free_and_trim},
	{"cuIpcOpenMemHandle_v2", open_given, close_given},
	{"cuMemImportFromShareableHandle", map_given, unmap_given},
};
static const struct way *way;

static void grab(void)
{
	uint64_t pieces[LIMIT_MIB], piece;
	int count = 0, misses = 0;

	use_gpu();
	channel_tell(go.up[1]);
	channel_hear(go.down[0]);
	while (misses < 3) {
		CUresult result = way->grab(&piece);

		CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_OUT_OF_MEMORY);
		if (result == CUDA_SUCCESS)
			pieces[count++] = piece;
		else
			misses++;
	}
	channel_tell(done.up[1]);
	channel_hear(done.down[0]);
	while (count > 0)
		OK(way->drop(pieces[--count]));
}

static void race(void)
{
	struct vgpu_region *region;
	int children[PROCESSES];
	uint64_t sum = 0;

	for (int i = 0; i < PROCESSES; i++)
		children[i] = start_child(grab);
	for (int i = 0; i < PROCESSES; i++)
		channel_hear(go.up[0]);
	for (int i = 0; i < PROCESSES; i++)
		channel_tell(go.down[1]);
	for (int i = 0; i < PROCESSES; i++)
		channel_hear(done.up[0]);
	region = world_region("uid_gpu");
	for (int i = 0; i < VGPU_REGION_SLOTS; i++)
		sum += region->slots[i].used_bytes[0];
	IS(region->devices[0].used_bytes, LIMIT_MIB * MIB);
	IS(region->devices[0].peak_bytes, LIMIT_MIB * MIB);
	IS(sum, LIMIT_MIB * MIB);
	if (!given->giver) { /* else the card has what the giver has, once */
		IS(card_used(0), LIMIT_MIB * MIB);
		IS(card_peak(0), LIMIT_MIB * MIB);
	}
	for (int i = 0; i < PROCESSES; i++)
		channel_tell(done.down[1]);
	for (int i = 0; i < PROCESSES; i++)
		OK(wait_child(children[i]));
	IS(region->devices[0].used_bytes, 0);
}

int main(void)
{
	world();
	world_grant("uid_gpu", CARD_A, LIMIT_MIB, NULL, 0);
	world_grant_at("givers", "uid2_gpu", CARD_A, 2 * GIVEN * GIVEN_PIECE / MIB + 64);
	given = mmap(NULL, sizeof(*given), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	CHECK(given != MAP_FAILED);
	channel_open(&go);
	channel_open(&done);
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		way = &ways[i];
		if (way->grab == open_given) {
			given->giver = start_child(give_away);
			channel_hear(go.up[0]);
		}
		fprintf(stderr, "%s\n", way->name);
		race();
	}
	return 0;
}
