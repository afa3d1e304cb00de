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
 *
 * Memory that another process may have is charged as shares.c says. What comes from
 * elsewhere tells its size only when it is mapped, and is charged then.
 *
 * The number is ours, because the driver may give a handle's value out again
 * while the memory behind the old one is still mapped.
 */
#include "shares.h"
#include "vgpu.h"

/* An allocation's owner, if there is something special about it. */
enum { PINNED = 1, FOREIGN, MULTICAST };

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
void vgpu_number_let_go(uint64_t number, uint64_t stream)
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
	if (!last)
		return;
	if (allocation.owner == MULTICAST)
		vgpu_bindings_forget(number);
	if (allocation.share)
		allocation.bytes = vgpu_share_leave(allocation.share);
	if (allocation.card && stream && allocation.bytes)
		vgpu_pool_bury(allocation.card, allocation.bytes, stream);
	else if (allocation.card)
		vgpu_release(allocation.card, allocation.bytes);
}

static void let_go(uint64_t number)
{
	vgpu_number_let_go(number, 0);
}

uint64_t vgpu_handle_hold(CUmemGenericAllocationHandle handle)
{
	struct vgpu_pointer entry = {0};

	vgpu_lock(&lock);
	if (vgpu_pointer_find(VGPU_HANDLES, key(handle), &entry))
		hold(entry.owner);
	vgpu_unlock(&lock);
	return entry.owner;
}

uint64_t vgpu_mapping_hold(CUdeviceptr pointer)
{
	struct vgpu_pointer entry = {0};

	vgpu_lock(&lock);
	if (vgpu_pointer_find_around(VGPU_MAPPINGS, pointer, &entry) && entry.owner)
		hold(entry.owner);
	vgpu_unlock(&lock);
	return entry.owner;
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

/* A new handle, for what is in `allocation`. */
static int remember(CUmemGenericAllocationHandle handle, struct vgpu_pointer allocation)
{
	int result;

	allocation.count = 1;
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
		if (remember(fresh, (struct vgpu_pointer){.bytes = vgpu_charge_of(bytes),
							  .card = card}) == 0) {
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

/* Nobody can know who else has the memory now: it stays charged to this process. */
static void pin(uint64_t number)
{
	struct vgpu_pointer allocation;

	vgpu_lock(&lock);
	if (vgpu_pointer_find(VGPU_ALLOCATIONS, number, &allocation) && !allocation.owner) {
		allocation.owner = PINNED; /* once is enough */
		allocation.count++;
		vgpu_pointer_add(VGPU_ALLOCATIONS, &allocation);
	}
	vgpu_unlock(&lock);
}

/* The memory is held here, so that nobody releases it meanwhile. */
static void share(uint64_t number, int fd)
{
	struct vgpu_pointer allocation = {0};
	struct vgpu_share_name name;
	uint64_t id = 0;
	bool paid;

	vgpu_lock(&lock);
	vgpu_pointer_find(VGPU_ALLOCATIONS, number, &allocation);
	vgpu_unlock(&lock);
	if (allocation.share) {
		vgpu_share_tag(allocation.share, fd);
		return;
	}
	if (!allocation.card || allocation.owner)
		return;
	if (vgpu_descriptor_new_name(&name, fd))
		id = vgpu_share_add(&name, allocation.card, allocation.bytes, 0, &paid);
	if (!id) {
		pin(number);
		return;
	}
	vgpu_lock(&lock);
	vgpu_pointer_find(VGPU_ALLOCATIONS, number, &allocation);
	if (!allocation.share) {
		allocation.share = id;
		vgpu_pointer_add(VGPU_ALLOCATIONS, &allocation);
		id = 0;
	}
	vgpu_unlock(&lock);
	if (id) /* another thread was faster */
		vgpu_share_leave(id);
}

VGPU_EXPORT CUresult cuMemExportToShareableHandle(void *shareable,
						  CUmemGenericAllocationHandle handle, int type,
						  unsigned long long flags)
{
	__typeof__(&cuMemExportToShareableHandle) real = VGPU_REAL(cuMemExportToShareableHandle);
	uint64_t number;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	number = vgpu_state() == VGPU_ON ? vgpu_handle_hold(handle) : 0;
	result = real(shareable, handle, type, flags);
	if (number && result == CUDA_SUCCESS && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		share(number, *(int *)shareable);
	else if (number && result == CUDA_SUCCESS)
		pin(number);
	if (number)
		let_go(number);
	return result;
}

/* Its card, if its memory is one's; NULL: not to be charged. */
static struct vgpu_card *card_of_handle(CUmemGenericAllocationHandle handle)
{
	__typeof__(&cuMemGetAllocationPropertiesFromHandle) ask =
		VGPU_REAL(cuMemGetAllocationPropertiesFromHandle);
	CUmemAllocationProp prop = {0};

	if (!ask || ask(&prop, handle) != CUDA_SUCCESS)
		return NULL;
	return vgpu_card_of_device(vgpu_device_of_location(&prop.location));
}

/* What a process of the grant has made, or has taken in, is paid for. */
static int take_in(CUmemGenericAllocationHandle handle, int fd)
{
	struct vgpu_pointer fresh = {.card = card_of_handle(handle)};
	struct vgpu_share_name name;
	struct vgpu_pointer entry;
	bool paid = true, known;
	int result;

	vgpu_lock(&lock);
	known = vgpu_pointer_find(VGPU_HANDLES, key(handle), &entry);
	if (known) {
		hold(entry.owner);
		add_reference(handle, entry.owner);
	}
	vgpu_unlock(&lock);
	if (known || !fresh.card)
		return 0;
	fresh.owner = FOREIGN; /* as far as its record says so, if there is one */
	result = vgpu_descriptor_name(&name, fd);
	if (result == 0 && !vgpu_descriptor_new_name(&name, fd))
		result = -1;
	if (result >= 0)
		fresh.share = vgpu_share_find(&name);
	if (result >= 0 && !fresh.share)
		fresh.share = vgpu_share_add(&name, fresh.card, 0,
					     VGPU_SHARE_TAKEN | VGPU_SHARE_FOREIGN, &paid);
	result = remember(handle, fresh);
	if (result != 0 && fresh.share)
		vgpu_share_leave(fresh.share);
	return result;
}

VGPU_EXPORT CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle,
						    void *shareable, int type)
{
	__typeof__(&cuMemImportFromShareableHandle) real =
		VGPU_REAL(cuMemImportFromShareableHandle);
	__typeof__(&cuMemRelease) undo = VGPU_REAL(cuMemRelease);
	CUmemGenericAllocationHandle fresh = 0;
	CUresult result;

	if (!real || !undo)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (vgpu_state() == VGPU_OFF || !handle || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return real(handle, shareable, type);
	result = real(&fresh, shareable, type);
	if (result != CUDA_SUCCESS)
		return result;
	if (take_in(fresh, (int)(intptr_t)shareable) != 0) {
		undo(fresh);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*handle = fresh;
	return CUDA_SUCCESS;
}

/* Memory from elsewhere that is about to be mapped. */
static CUresult pay(const struct vgpu_pointer *allocation, uint64_t bytes)
{
	uint64_t charge = vgpu_charge_of(bytes), owed;
	CUresult result;
	bool accepted;

	if (allocation->owner != FOREIGN || !allocation->share)
		return CUDA_SUCCESS;
	owed = vgpu_share_owes(allocation->share, charge, 0, &accepted);
	if (!owed)
		return CUDA_SUCCESS;
	result = vgpu_charge(allocation->card, owed);
	if (result != CUDA_SUCCESS)
		return result;
	vgpu_share_owes(allocation->share, charge, owed, &accepted);
	if (!accepted) /* somebody else has paid meanwhile */
		vgpu_release(allocation->card, owed);
	return CUDA_SUCCESS;
}

/* Held before the driver is asked: the handle may be released meanwhile. Memory
 * that is not ours to count is noted as well, so that cuMemUnmap finds its way. */
VGPU_EXPORT CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset,
			      CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	__typeof__(&cuMemMap) real = VGPU_REAL(cuMemMap);
	struct vgpu_pointer mapping = {.address = pointer, .bytes = bytes}, allocation = {0};
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() != VGPU_ON)
		return real(pointer, bytes, offset, handle, flags);
	mapping.owner = vgpu_handle_hold(handle);
	if (mapping.owner) {
		vgpu_lock(&lock);
		if (!vgpu_pointer_find(VGPU_ALLOCATIONS, mapping.owner, &allocation))
			allocation.owner = PINNED;
		vgpu_unlock(&lock);
		result = pay(&allocation, offset + bytes);
		if (result != CUDA_SUCCESS) {
			let_go(mapping.owner);
			return result;
		}
	}
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

/* ---- multicast objects: handles without memory of their own */

int vgpu_object_remember(CUmemGenericAllocationHandle handle)
{
	return remember(handle, (struct vgpu_pointer){.owner = MULTICAST});
}

/* One that another process has made: what was taken for memory is none. */
void vgpu_object_is_multicast(CUmemGenericAllocationHandle handle)
{
	struct vgpu_pointer entry, allocation;
	uint64_t bytes = 0;

	vgpu_lock(&lock);
	if (!vgpu_pointer_find(VGPU_HANDLES, key(handle), &entry)) {
		vgpu_unlock(&lock);
		vgpu_object_remember(handle);
		return;
	}
	if (!vgpu_pointer_find(VGPU_ALLOCATIONS, entry.owner, &allocation) ||
	    allocation.owner == MULTICAST) {
		vgpu_unlock(&lock);
		return;
	}
	entry = allocation;
	allocation.owner = MULTICAST;
	allocation.share = allocation.bytes = 0;
	vgpu_pointer_add(VGPU_ALLOCATIONS, &allocation);
	vgpu_unlock(&lock);
	if (entry.share)
		bytes = vgpu_share_leave(entry.share);
	if (entry.card && bytes)
		vgpu_release(entry.card, bytes);
}

struct vgpu_card *vgpu_number_card(uint64_t number)
{
	struct vgpu_pointer allocation;

	return vgpu_pointer_find(VGPU_ALLOCATIONS, number, &allocation) ? allocation.card : NULL;
}
