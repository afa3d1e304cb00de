/* SPDX-License-Identifier: Apache-2.0
 *
 * cuMemCreate and what follows: physical memory by handle, mapped by the program.
 *
 * It belongs to the card that its properties name, not to a context. It lives as
 * long as one reference to a handle or one mapping does: the usual pattern is to
 * create, map and release at once, so a charge given back at cuMemRelease would
 * be a way round the limit. Hence these tables:
 *
 *   allocations  number -> card, charge, how many references and mappings
 *   handles      handle -> number, references
 *   mappings     address -> number, length
 *   tiles        part of a sparse array -> number
 *
 * The number is ours, because the driver may give a handle's value out again
 * while the memory behind the old one is still mapped.
 */
#include "vgpu.h"

static struct vgpu_lock lock; /* over the tables together */
static uint64_t last_number;

/* 0 marks an empty place in the tables; no driver has been seen to give a handle
 * of 0, but none promises not to. */
static uint64_t key(CUmemGenericAllocationHandle handle)
{
	return handle + 1;
}

void vgpu_virtual_forget_all(void)
{
	atomic_store(&lock.held, 0);
}

static void hold(uint64_t number)
{
	struct vgpu_pointer allocation;

	if (!vgpu_pointer_take(VGPU_ALLOCATIONS, number, &allocation))
		return;
	allocation.count++;
	vgpu_pointer_add(VGPU_ALLOCATIONS, &allocation);
}

/* Of the last one, the charge goes back: when the stream is there, if there is one. */
static void let_go_in_order(uint64_t number, uint64_t stream)
{
	struct vgpu_pointer allocation;
	bool last = false;

	vgpu_lock(&lock);
	if (vgpu_pointer_take(VGPU_ALLOCATIONS, number, &allocation)) {
		last = --allocation.count == 0;
		if (!last)
			vgpu_pointer_add(VGPU_ALLOCATIONS, &allocation);
	}
	vgpu_unlock(&lock);
	if (last && stream)
		vgpu_pool_bury(allocation.card, allocation.bytes, stream);
	else if (last)
		vgpu_release(allocation.card, allocation.bytes);
}

static void let_go(uint64_t number)
{
	let_go_in_order(number, 0);
}

static int add_reference(CUmemGenericAllocationHandle handle, uint64_t number)
{
	struct vgpu_pointer entry;

	if (!vgpu_pointer_take(VGPU_HANDLES, key(handle), &entry))
		entry = (struct vgpu_pointer){.address = key(handle), .owner = number};
	entry.count++;
	return vgpu_pointer_add(VGPU_HANDLES, &entry);
}

static bool take_reference(CUmemGenericAllocationHandle handle, uint64_t *number)
{
	struct vgpu_pointer entry;

	if (!vgpu_pointer_take(VGPU_HANDLES, key(handle), &entry))
		return false;
	*number = entry.owner;
	if (--entry.count)
		vgpu_pointer_add(VGPU_HANDLES, &entry);
	return true;
}

static int remember(CUmemGenericAllocationHandle handle, struct vgpu_card *card, uint64_t charge)
{
	struct vgpu_pointer allocation = {.bytes = charge, .card = card, .count = 1};
	int result;

	vgpu_lock(&lock);
	allocation.address = ++last_number;
	result = vgpu_pointer_add(VGPU_ALLOCATIONS, &allocation);
	if (result == 0) {
		result = add_reference(handle, allocation.address);
		if (result != 0)
			vgpu_pointer_take(VGPU_ALLOCATIONS, allocation.address, &allocation);
	}
	vgpu_unlock(&lock);
	return result;
}

VGPU_EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
				 const CUmemAllocationProp *prop, unsigned long long flags)
{
	__typeof__(&cuMemCreate) real = VGPU_REAL(cuMemCreate);
	__typeof__(&cuMemRelease) undo = VGPU_REAL(cuMemRelease);
	struct vgpu_card *card = NULL;
	CUmemGenericAllocationHandle fresh = 0;
	CUresult result;

	if (!real || !undo)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (handle && bytes && prop)
		card = vgpu_card_of_device(vgpu_device_of_location(&prop->location));
	if (!card)
		return real(handle, bytes, prop, flags);
	result = vgpu_charge(card, vgpu_charge_of(bytes));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&fresh, bytes, prop, flags);
	if (result == CUDA_SUCCESS) {
		if (remember(fresh, card, vgpu_charge_of(bytes)) == 0) {
			*handle = fresh;
			return CUDA_SUCCESS;
		}
		undo(fresh);
		result = CUDA_ERROR_OUT_OF_MEMORY;
	} else if (result == CUDA_ERROR_OUT_OF_MEMORY) {
		vgpu_count_driver_oom(card);
	}
	vgpu_release(card, vgpu_charge_of(bytes));
	return result;
}

/* The reference leaves the table before the driver's, since another thread may be
 * given the same handle right after; what it held is let go only when it is gone. */
VGPU_EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
	__typeof__(&cuMemRelease) real = VGPU_REAL(cuMemRelease);
	uint64_t number = 0;
	bool known;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	vgpu_lock(&lock);
	known = take_reference(handle, &number);
	vgpu_unlock(&lock);
	result = real(handle);
	if (known && result == CUDA_SUCCESS) {
		let_go(number);
	} else if (known) {
		vgpu_lock(&lock);
		add_reference(handle, number);
		vgpu_unlock(&lock);
	}
	return result;
}

/* The handle may be the old one, or another for the same memory. Being mapped, the
 * memory is found by its address if the handle is not known. */
VGPU_EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle,
						 void *address)
{
	__typeof__(&cuMemRetainAllocationHandle) real = VGPU_REAL(cuMemRetainAllocationHandle);
	struct vgpu_pointer entry;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(handle, address);
	if (result != CUDA_SUCCESS || !handle || vgpu_state() != VGPU_ON)
		return result;
	vgpu_lock(&lock);
	if (vgpu_pointer_find(VGPU_HANDLES, key(*handle), &entry)) {
		hold(entry.owner);
		add_reference(*handle, entry.owner);
	} else if (vgpu_pointer_find_around(VGPU_MAPPINGS, (uintptr_t)address, &entry) &&
		   entry.owner && add_reference(*handle, entry.owner) == 0) {
		hold(entry.owner);
	}
	vgpu_unlock(&lock);
	return result;
}

/* Nobody can know who else has the memory now, and for how long: it stays charged
 * to this process. Who imports it is not charged, so it counts once. */
static void pin(CUmemGenericAllocationHandle handle)
{
	struct vgpu_pointer entry, allocation;

	vgpu_lock(&lock);
	if (vgpu_pointer_find(VGPU_HANDLES, key(handle), &entry) &&
	    vgpu_pointer_find(VGPU_ALLOCATIONS, entry.owner, &allocation) && !allocation.owner) {
		allocation.owner = 1; /* once is enough */
		allocation.count++;
		vgpu_pointer_add(VGPU_ALLOCATIONS, &allocation);
	}
	vgpu_unlock(&lock);
}

VGPU_EXPORT CUresult cuMemExportToShareableHandle(void *shareable,
						  CUmemGenericAllocationHandle handle, int type,
						  unsigned long long flags)
{
	__typeof__(&cuMemExportToShareableHandle) real = VGPU_REAL(cuMemExportToShareableHandle);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(shareable, handle, type, flags);
	if (result == CUDA_SUCCESS && vgpu_state() == VGPU_ON)
		pin(handle);
	return result;
}

/* Held before the driver is asked: the handle may be released meanwhile. Memory
 * that is not ours to count is noted as well, so that cuMemUnmap finds its way. */
VGPU_EXPORT CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset,
			      CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	__typeof__(&cuMemMap) real = VGPU_REAL(cuMemMap);
	struct vgpu_pointer mapping = {.address = pointer, .bytes = bytes}, entry;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() != VGPU_ON)
		return real(pointer, bytes, offset, handle, flags);
	vgpu_lock(&lock);
	if (vgpu_pointer_find(VGPU_HANDLES, key(handle), &entry)) {
		mapping.owner = entry.owner;
		hold(entry.owner);
	}
	vgpu_unlock(&lock);
	result = real(pointer, bytes, offset, handle, flags);
	if (result == CUDA_SUCCESS && pointer && bytes) {
		/* Not enough memory for the note: charged until the process ends. */
		vgpu_lock(&lock);
		vgpu_pointer_add(VGPU_MAPPINGS, &mapping);
		vgpu_unlock(&lock);
	} else if (mapping.owner) {
		let_go(mapping.owner);
	}
	return result;
}

/* One call may end several mappings, whole ones and without a gap. They are taken
 * out afterwards: until this returns, nobody else can map to these addresses. */
VGPU_EXPORT CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes)
{
	__typeof__(&cuMemUnmap) real = VGPU_REAL(cuMemUnmap);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(pointer, bytes);
	if (result != CUDA_SUCCESS || vgpu_state() != VGPU_ON)
		return result;
	for (uint64_t gone = 0; gone < bytes;) {
		struct vgpu_pointer mapping;
		bool found;

		vgpu_lock(&lock);
		found = vgpu_pointer_take(VGPU_MAPPINGS, pointer + gone, &mapping);
		vgpu_unlock(&lock);
		if (!found)
			break;
		if (mapping.owner)
			let_go(mapping.owner);
		gone += mapping.bytes;
	}
	return result;
}

/* ---- memory mapped into sparse arrays */

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
	struct vgpu_pointer old, handle,
		tile = {.address = name_of(change), .context = (CUcontext)change->resource};

	vgpu_lock(&lock);
	if (vgpu_pointer_take(VGPU_TILES, tile.address, &old)) {
		old.address = parked;
		vgpu_pointer_add(VGPU_TILES, &old);
	}
	if (change->memOperationType == CU_MEM_OPERATION_TYPE_MAP &&
	    vgpu_pointer_find(VGPU_HANDLES, key(change->memHandle), &handle)) {
		tile.owner = handle.owner;
		hold(handle.owner);
		vgpu_pointer_add(VGPU_TILES, &tile);
	}
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
		let_go_in_order(old.owner, stream);
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
	call = ++last_number;
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
		let_go(tile.owner);
}
