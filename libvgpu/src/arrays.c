/* SPDX-License-Identifier: Apache-2.0
 *
 * CUDA arrays and mipmapped arrays. The driver tiles them and does not say how much
 * that takes; charged is what the public descriptions of its tiles (64 bytes by 8
 * rows) come to, in the granules of other memory. What it takes beyond that shows
 * up in the region's overhead_bytes.
 *
 * Sparse arrays, and those whose memory is mapped later, have no memory of their
 * own: what is mapped into them is counted where it was made (mem_virtual.c).
 */
#include "vgpu.h"

#define TILE_BYTES UINT64_C(64)
#define TILE_ROWS UINT64_C(8)
#define WITHOUT_MEMORY (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)
#define BLOCK_COMPRESSED_FIRST 0x91 /* CU_AD_FORMAT_BC1_UNORM */
#define BLOCK_COMPRESSED_LAST 0x9e  /* CU_AD_FORMAT_BC7_UNORM_SRGB */

static uint64_t times(uint64_t a, uint64_t b)
{
	return b && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

static uint64_t round_up(uint64_t value, uint64_t step)
{
	return value > UINT64_MAX - step ? UINT64_MAX : (value + step - 1) / step * step;
}

/* CU_AD_FORMAT_*. What is not known takes 4 bytes, as the video formats do at most. */
static uint64_t element_bytes(int format, unsigned int channels)
{
	switch (format) {
	case 0x01: /* 8 bits: unsigned, signed, and normalised ones of 1, 2 and 4 channels */
	case 0x08:
	case 0xc0:
	case 0xc1:
	case 0xc2:
	case 0xc6:
	case 0xc7:
	case 0xc8:
		return channels;
	case 0x02: /* 16 bits, also half floats */
	case 0x09:
	case 0x10:
	case 0xc3:
	case 0xc4:
	case 0xc5:
	case 0xc9:
	case 0xca:
	case 0xcb:
		return UINT64_C(2) * channels;
	case 0x03: /* 32 bits, also floats */
	case 0x0a:
	case 0x20:
		return UINT64_C(4) * channels;
	default:
		return format >= BLOCK_COMPRESSED_FIRST && format <= BLOCK_COMPRESSED_LAST ? 1 : 4;
	}
}

static uint64_t level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *what, unsigned int level)
{
	uint64_t width = what->Width >> level, height = what->Height >> level;
	uint64_t depth = what->Flags & CUDA_ARRAY3D_LAYERED ? what->Depth : what->Depth >> level;
	uint64_t row = times(width ? width : 1, element_bytes(what->Format, what->NumChannels));
	uint64_t rows = what->Height ? round_up(height ? height : 1, TILE_ROWS) : 1;

	return times(times(round_up(row, TILE_BYTES), rows), depth ? depth : 1);
}

/* The driver makes no more levels than down to one element. */
static uint64_t charge_of(const CUDA_ARRAY3D_DESCRIPTOR *what, unsigned int levels)
{
	uint64_t longest = what->Width > what->Height ? what->Width : what->Height, sum = 0;

	if (what->Flags & WITHOUT_MEMORY)
		return 0;
	if (what->Depth > longest && !(what->Flags & CUDA_ARRAY3D_LAYERED))
		longest = what->Depth;
	for (unsigned int level = 0; level < levels && (level == 0 || longest >> level); level++) {
		uint64_t bytes = level_bytes(what, level);

		sum = sum > UINT64_MAX - bytes ? UINT64_MAX : sum + bytes;
	}
	return vgpu_charge_of(sum);
}

/* Before the driver's call. No card: nothing to charge. Arrays without memory are
 * noted, too: their context takes along what is mapped into them. */
static CUresult before(struct vgpu_pointer *entry, uint64_t charge)
{
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	*entry = (struct vgpu_pointer){
		.card = vgpu_card_current(), .bytes = charge, .context = vgpu_current_context()};
	return entry->card ? vgpu_charge(entry->card, charge) : CUDA_SUCCESS;
}

/* After it. False: there is no memory for the note, so the array must go. */
static bool after(struct vgpu_pointer *entry, CUresult result, const void *array)
{
	bool noted;

	if (!entry->card)
		return true;
	entry->address = (uintptr_t)array;
	noted = result == CUDA_SUCCESS && vgpu_pointer_add(VGPU_ARRAYS, entry) == 0;
	if (result == CUDA_ERROR_OUT_OF_MEMORY)
		vgpu_count_driver_oom(entry->card);
	if (!noted)
		vgpu_release(entry->card, entry->bytes);
	return noted || result != CUDA_SUCCESS;
}

typedef CUresult create_array(CUarray *array, const void *what);

static CUresult create(int real_index, CUarray *array, const void *theirs,
		       const CUDA_ARRAY3D_DESCRIPTOR *what)
{
	create_array *real = (create_array *)vgpu_real_at(real_index);
	__typeof__(&cuArrayDestroy) destroy = VGPU_REAL(cuArrayDestroy);
	struct vgpu_pointer entry;
	CUarray fresh = NULL;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_OFF || !array || !what)
		return real(array, theirs); /* in the driver's own words */
	result = before(&entry, charge_of(what, 1));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&fresh, theirs);
	if (!after(&entry, result, fresh)) {
		if (destroy)
			destroy(fresh);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (result == CUDA_SUCCESS)
		*array = fresh;
	return result;
}

VGPU_EXPORT CUresult cuArrayCreate_v2(CUarray *array, const CUDA_ARRAY_DESCRIPTOR *what)
{
	CUDA_ARRAY3D_DESCRIPTOR whole;

	if (what)
		whole = (CUDA_ARRAY3D_DESCRIPTOR){what->Width,  what->Height,      0,
						  what->Format, what->NumChannels, 0};
	return create(VGPU_REAL_cuArrayCreate_v2, array, what, what ? &whole : NULL);
}

VGPU_EXPORT CUresult cuArrayCreate(CUarray *array, const CUDA_ARRAY_DESCRIPTOR_v1 *what)
{
	CUDA_ARRAY3D_DESCRIPTOR whole;

	if (what)
		whole = (CUDA_ARRAY3D_DESCRIPTOR){what->Width,  what->Height,      0,
						  what->Format, what->NumChannels, 0};
	return create(VGPU_REAL_cuArrayCreate, array, what, what ? &whole : NULL);
}

VGPU_EXPORT CUresult cuArray3DCreate_v2(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *what)
{
	return create(VGPU_REAL_cuArray3DCreate_v2, array, what, what);
}

VGPU_EXPORT CUresult cuArray3DCreate(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR_v1 *what)
{
	CUDA_ARRAY3D_DESCRIPTOR whole;

	if (what)
		whole = (CUDA_ARRAY3D_DESCRIPTOR){what->Width,  what->Height,      what->Depth,
						  what->Format, what->NumChannels, what->Flags};
	return create(VGPU_REAL_cuArray3DCreate, array, what, what ? &whole : NULL);
}

VGPU_EXPORT CUresult cuMipmappedArrayCreate(CUmipmappedArray *array,
					    const CUDA_ARRAY3D_DESCRIPTOR *what,
					    unsigned int levels)
{
	__typeof__(&cuMipmappedArrayCreate) real = VGPU_REAL(cuMipmappedArrayCreate);
	__typeof__(&cuMipmappedArrayDestroy) destroy = VGPU_REAL(cuMipmappedArrayDestroy);
	struct vgpu_pointer entry;
	CUmipmappedArray fresh = NULL;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_OFF || !array || !what)
		return real(array, what, levels);
	result = before(&entry, charge_of(what, levels));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&fresh, what, levels);
	if (!after(&entry, result, fresh)) {
		if (destroy)
			destroy(fresh);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (result == CUDA_SUCCESS)
		*array = fresh;
	return result;
}

void vgpu_array_gone(const struct vgpu_pointer *entry)
{
	vgpu_tiles_forget(entry->address);
	vgpu_release(entry->card, entry->bytes);
}

/* The entry leaves the table before the driver frees: see cuMemFree_v2. */
static CUresult destroy_array(int real_index, void *array)
{
	CUresult (*real)(void *) = (CUresult (*)(void *))vgpu_real_at(real_index);
	struct vgpu_pointer entry;
	bool known;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() != VGPU_ON)
		return real(array);
	known = vgpu_pointer_take(VGPU_ARRAYS, (uintptr_t)array, &entry);
	result = real(array);
	if (known && result != CUDA_SUCCESS)
		vgpu_pointer_add(VGPU_ARRAYS, &entry);
	if (known && result == CUDA_SUCCESS)
		vgpu_array_gone(&entry);
	return result;
}

VGPU_EXPORT CUresult cuArrayDestroy(CUarray array)
{
	return destroy_array(VGPU_REAL_cuArrayDestroy, array);
}

VGPU_EXPORT CUresult cuMipmappedArrayDestroy(CUmipmappedArray array)
{
	return destroy_array(VGPU_REAL_cuMipmappedArrayDestroy, array);
}

/* Memory of another API, for example Vulkan's, which nobody has charged yet. It is
 * counted from the import on, as an array is: until it is destroyed, or its context. */
VGPU_EXPORT CUresult cuImportExternalMemory(CUexternalMemory *memory,
					    const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *what)
{
	__typeof__(&cuImportExternalMemory) real = VGPU_REAL(cuImportExternalMemory);
	__typeof__(&cuDestroyExternalMemory) destroy = VGPU_REAL(cuDestroyExternalMemory);
	struct vgpu_pointer entry;
	CUexternalMemory fresh = NULL;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_OFF || !memory || !what)
		return real(memory, what);
	result = before(&entry, vgpu_charge_of(what->size));
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&fresh, what);
	if (!after(&entry, result, fresh)) {
		if (destroy)
			destroy(fresh);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (result == CUDA_SUCCESS)
		*memory = fresh;
	return result;
}

VGPU_EXPORT CUresult cuDestroyExternalMemory(CUexternalMemory memory)
{
	return destroy_array(VGPU_REAL_cuDestroyExternalMemory, memory);
}
