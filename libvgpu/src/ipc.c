/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of cuMemAlloc and of pools that processes give each other, by the 64 bytes
 * of cuIpcGetMemHandle and cuMemPoolExportPointer. Who is charged: shares.c.
 *
 * Opening takes no memory of the card that was not taken before, so what has to be
 * charged is charged afterwards, when the driver can say how much it is; if that
 * would pass the limit, it is closed again.
 */
#include <string.h>

#include "shares.h"
#include "vgpu.h"

static struct vgpu_share_name name_of(enum vgpu_share_kind kind, const void *bytes)
{
	struct vgpu_share_name name = {.kind = kind};

	memcpy(name.bytes, bytes, sizeof(name.bytes));
	return name;
}

static uint64_t size_of(CUdeviceptr pointer)
{
	__typeof__(&cuMemGetAddressRange_v2) ask = VGPU_REAL(cuMemGetAddressRange_v2);
	CUdeviceptr base;
	size_t bytes = 0;

	return ask && ask(&base, &bytes, pointer) == CUDA_SUCCESS ? bytes : 0;
}

static struct vgpu_card *card_of(CUdeviceptr pointer)
{
	__typeof__(&cuPointerGetAttribute) ask = VGPU_REAL(cuPointerGetAttribute);
	int device;

	if (ask && ask(&device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer) == CUDA_SUCCESS)
		return vgpu_card_of_device(device);
	return vgpu_card_current();
}

/* ---- giving */

/* Only memory that is on the books. The entry is out of the table meanwhile: to free
 * memory while giving it away is no correct program. */
static void give(CUdeviceptr pointer, const struct vgpu_share_name *name, uint32_t flags)
{
	struct vgpu_pointer entry;
	uint64_t bytes;
	bool paid;

	if (vgpu_state() != VGPU_ON ||
	    (!vgpu_pointer_find(VGPU_POINTERS, pointer, &entry) &&
	     !vgpu_pointer_find_around(VGPU_POINTERS, pointer, &entry)) ||
	    entry.share || !vgpu_pointer_take(VGPU_POINTERS, entry.address, &entry))
		return;
	bytes = entry.owner ? vgpu_charge_of(size_of(pointer)) : entry.bytes;
	if (entry.card)
		entry.share = vgpu_share_add(name, entry.card, bytes, flags, &paid);
	vgpu_pointer_add(VGPU_POINTERS, &entry);
}

VGPU_EXPORT CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr pointer)
{
	__typeof__(&cuIpcGetMemHandle) real = VGPU_REAL(cuIpcGetMemHandle);
	struct vgpu_share_name name;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(handle, pointer);
	if (result == CUDA_SUCCESS && handle) {
		name = name_of(VGPU_SHARE_HANDLE, handle);
		give(pointer, &name, 0);
	}
	return result;
}

VGPU_EXPORT CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData *data, CUdeviceptr pointer)
{
	__typeof__(&cuMemPoolExportPointer) real = VGPU_REAL(cuMemPoolExportPointer);
	struct vgpu_share_name name;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(data, pointer);
	if (result == CUDA_SUCCESS && data) {
		name = name_of(VGPU_SHARE_POINTER, data);
		give(pointer, &name, VGPU_SHARE_POOLED);
	}
	return result;
}

/* ---- taking */

static CUresult take(const struct vgpu_share_name *name, struct vgpu_pointer *entry)
{
	uint64_t charge;
	CUresult result;
	bool paid = true;

	entry->card = card_of(entry->address);
	entry->share = vgpu_share_find(name);
	if (entry->share || !entry->card)
		return CUDA_SUCCESS;
	charge = vgpu_charge_of(size_of(entry->address));
	result = vgpu_charge(entry->card, charge);
	if (result != CUDA_SUCCESS)
		return result;
	entry->share = vgpu_share_add(name, entry->card, charge,
				      VGPU_SHARE_TAKEN | VGPU_SHARE_FOREIGN, &paid);
	if (!paid)
		vgpu_release(entry->card, charge);
	else if (!entry->share)
		entry->bytes = charge;
	return CUDA_SUCCESS;
}

static void leave(const struct vgpu_pointer *entry)
{
	struct vgpu_pointer gone = *entry;

	gone.owner = 0;
	vgpu_pointer_freed(&gone, 0);
}

/* Opened twice it is at the same place, and has to be closed twice. */
static bool open_again(CUdeviceptr pointer)
{
	struct vgpu_pointer entry;

	if (!vgpu_pointer_take(VGPU_OPENED, pointer, &entry))
		return false;
	entry.count++;
	vgpu_pointer_add(VGPU_OPENED, &entry);
	return true;
}

static CUresult open_handle(int real_index, CUdeviceptr *pointer, CUipcMemHandle handle,
			    unsigned int flags)
{
	__typeof__(&cuIpcOpenMemHandle) real =
		(__typeof__(&cuIpcOpenMemHandle))vgpu_real_at(real_index);
	__typeof__(&cuIpcCloseMemHandle) undo = VGPU_REAL(cuIpcCloseMemHandle);
	struct vgpu_share_name name = name_of(VGPU_SHARE_HANDLE, &handle);
	struct vgpu_pointer entry = {.count = 1};
	CUdeviceptr address = 0;
	CUresult result;

	if (!real || !undo)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (vgpu_state() == VGPU_OFF || !pointer)
		return real(pointer, handle, flags);
	result = real(&address, handle, flags);
	if (result != CUDA_SUCCESS)
		return result;
	if (!open_again(address)) {
		entry.address = address;
		entry.context = vgpu_current_context();
		result = take(&name, &entry);
		if (result == CUDA_SUCCESS && vgpu_pointer_add(VGPU_OPENED, &entry) != 0) {
			leave(&entry);
			result = CUDA_ERROR_OUT_OF_MEMORY;
		}
	}
	if (result == CUDA_SUCCESS)
		*pointer = address;
	else
		undo(address);
	return result;
}

VGPU_EXPORT CUresult cuIpcOpenMemHandle(CUdeviceptr *pointer, CUipcMemHandle handle,
					unsigned int flags)
{
	return open_handle(VGPU_REAL_cuIpcOpenMemHandle, pointer, handle, flags);
}

VGPU_EXPORT CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *pointer, CUipcMemHandle handle,
					   unsigned int flags)
{
	return open_handle(VGPU_REAL_cuIpcOpenMemHandle_v2, pointer, handle, flags);
}

VGPU_EXPORT CUresult cuIpcCloseMemHandle(CUdeviceptr pointer)
{
	__typeof__(&cuIpcCloseMemHandle) real = VGPU_REAL(cuIpcCloseMemHandle);
	struct vgpu_pointer entry;
	bool known;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	known = vgpu_pointer_take(VGPU_OPENED, pointer, &entry);
	result = real(pointer);
	if (known && (result != CUDA_SUCCESS || --entry.count))
		vgpu_pointer_add(VGPU_OPENED, &entry);
	else if (known)
		leave(&entry);
	return result;
}

/* Its context is gone. */
void vgpu_opened_forget(CUcontext context)
{
	struct vgpu_pointer entry;

	while (vgpu_pointer_take_context(VGPU_OPENED, context, &entry))
		leave(&entry);
}

/* Nothing is allocated from a pool of another process, and what it holds is that
 * one's: it is known here without a card. */
VGPU_EXPORT CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool *pool, void *shareable,
							int type, unsigned long long flags)
{
	__typeof__(&cuMemPoolImportFromShareableHandle) real =
		VGPU_REAL(cuMemPoolImportFromShareableHandle);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(pool, shareable, type, flags);
	if (result == CUDA_SUCCESS && pool && vgpu_state() == VGPU_ON)
		vgpu_pool_add(VGPU_MEMORY_POOL, (uintptr_t)*pool, -1);
	return result;
}

VGPU_EXPORT CUresult cuMemPoolImportPointer(CUdeviceptr *pointer, CUmemoryPool pool,
					    CUmemPoolPtrExportData *data)
{
	__typeof__(&cuMemPoolImportPointer) real = VGPU_REAL(cuMemPoolImportPointer);
	__typeof__(&cuMemFree_v2) undo = VGPU_REAL(cuMemFree_v2);
	struct vgpu_share_name name;
	struct vgpu_pointer entry = {0};
	CUdeviceptr address = 0;
	CUresult result;

	if (!real || !undo)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (vgpu_state() == VGPU_OFF || !pointer || !data)
		return real(pointer, pool, data);
	name = name_of(VGPU_SHARE_POINTER, data);
	result = real(&address, pool, data);
	if (result != CUDA_SUCCESS)
		return result;
	entry.address = address;
	result = take(&name, &entry);
	if (result == CUDA_SUCCESS && vgpu_pointer_add(VGPU_POINTERS, &entry) != 0) {
		leave(&entry);
		result = CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (result == CUDA_SUCCESS)
		*pointer = address;
	else
		undo(address);
	return result;
}
