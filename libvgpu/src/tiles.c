/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory by handle that is mapped into sparse arrays, part by part: it lives as long as
 * it is mapped there. The table says which part has which memory, by the number that
 * mem_virtual.c has given it.
 */
#include "vgpu.h"

static struct vgpu_lock lock; /* over a look at the table and a change */
static uint64_t last_call;

void vgpu_tiles_forget_lock(void)
{
	atomic_store(&lock.held, 0);
}

static uint64_t mix(uint64_t name, uint64_t value)
{
	name = (name ^ value) * 0x9e3779b97f4a7c15u;
	return name ^ name >> 29;
}

/* A part is told from others by all that names it: 63 bits of that will do. */
static uint64_t name_of(const CUarrayMapInfo *change)
{
	__typeof__(&change->subresource.sparseLevel) level = &change->subresource.sparseLevel;
	__typeof__(&change->subresource.miptail) tail = &change->subresource.miptail;
	uint64_t name = mix((uintptr_t)change->resource, (uint64_t)change->subresourceType);

	if (change->subresourceType == CU_ARRAY_SPARSE_SUBRESOURCE_TYPE_MIPTAIL) {
		name = mix(mix(mix(name, tail->layer), tail->offset), tail->size);
	} else {
		name = mix(mix(name, level->level), level->layer);
		name = mix(mix(mix(name, level->offsetX), level->offsetY), level->offsetZ);
		name = mix(mix(name, level->extentWidth), level->extentHeight);
		name = mix(name, level->extentDepth);
	}
	return name >> 1 | 1;
}

/* Parts whose memory is about to be unmapped or replaced are kept under a name of
 * the call's own, until the driver has agreed. */
static uint64_t name_for_now(uint64_t call, unsigned int i)
{
	return UINT64_C(1) << 63 | call << 24 | (i & 0xffffff);
}

/* What is mapped is held before the driver is asked: the handle may be released. */
static void before_tile(const CUarrayMapInfo *change, uint64_t parked)
{
	struct vgpu_pointer old,
		tile = {.address = name_of(change), .context = (CUcontext)change->resource};

	vgpu_lock(&lock);
	if (vgpu_pointer_take(VGPU_TILES, tile.address, &old)) {
		old.address = parked;
		vgpu_pointer_add(VGPU_TILES, &old);
	}
	if (change->memOperationType == CU_MEM_OPERATION_TYPE_MAP)
		tile.owner = vgpu_handle_hold(change->memHandle);
	if (tile.owner)
		vgpu_pointer_add(VGPU_TILES, &tile);
	vgpu_unlock(&lock);
}

static void after_tile(uint64_t parked, uint64_t stream)
{
	struct vgpu_pointer old;
	bool found;

	vgpu_lock(&lock);
	found = vgpu_pointer_take(VGPU_TILES, parked, &old);
	vgpu_unlock(&lock);
	if (found)
		vgpu_number_let_go(old.owner, stream);
}

/* A list that the driver refuses may have been done in part: what it names stays
 * held until the array is destroyed. */
static CUresult map_tiles(int real_index, CUarrayMapInfo *list, unsigned int count, CUstream stream,
			  uint64_t name)
{
	__typeof__(&cuMemMapArrayAsync) real =
		(__typeof__(&cuMemMapArrayAsync))vgpu_real_at(real_index);
	uint64_t call;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() != VGPU_ON || !list)
		return real(list, count, stream);
	vgpu_lock(&lock);
	call = ++last_call;
	vgpu_unlock(&lock);
	for (unsigned int i = 0; i < count; i++)
		before_tile(&list[i], name_for_now(call, i));
	result = real(list, count, stream);
	for (unsigned int i = 0; i < count && result == CUDA_SUCCESS; i++)
		after_tile(name_for_now(call, i), name);
	return result;
}

VGPU_EXPORT CUresult cuMemMapArrayAsync(CUarrayMapInfo *list, unsigned int count, CUstream stream)
{
	return map_tiles(VGPU_REAL_cuMemMapArrayAsync, list, count, stream,
			 vgpu_stream_name(stream, false));
}

VGPU_EXPORT CUresult cuMemMapArrayAsync_ptsz(CUarrayMapInfo *list, unsigned int count,
					     CUstream stream)
{
	return map_tiles(VGPU_REAL_cuMemMapArrayAsync_ptsz, list, count, stream,
			 vgpu_stream_name(stream, true));
}

/* The array is gone. */
void vgpu_tiles_forget(uint64_t array)
{
	struct vgpu_pointer tile;

	while (vgpu_pointer_take_context(VGPU_TILES, (CUcontext)(uintptr_t)array, &tile))
		vgpu_number_let_go(tile.owner, 0);
}
