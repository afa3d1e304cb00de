/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: arrays. They take memory in tiles of 64 bytes by 8
 * rows and hold no data. Sparse ones take none: memory by handle is mapped into
 * them, tile by tile.
 */
#include "arrays.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

struct tile {
	struct tile *next;
	CUarrayMapInfo where;
	void *memory;
};
struct CUarray_st {
	struct CUarray_st *next;
	CUcontext context;
	size_t charged;
	enum { ARRAY, MIPMAPPED, EXTERNAL } kind;
	bool sparse;
	struct tile *tiles;
};

static struct CUarray_st *arrays;

static size_t size_of_channel(int format)
{
	switch (format) {
	case CU_AD_FORMAT_UNSIGNED_INT8:
	case CU_AD_FORMAT_SIGNED_INT8:
		return 1;
	case CU_AD_FORMAT_UNSIGNED_INT16:
	case CU_AD_FORMAT_SIGNED_INT16:
	case CU_AD_FORMAT_HALF:
		return 2;
	case CU_AD_FORMAT_UNSIGNED_INT32:
	case CU_AD_FORMAT_SIGNED_INT32:
	case CU_AD_FORMAT_FLOAT:
		return 4;
	default:
		return 0;
	}
}

static bool valid(const CUDA_ARRAY3D_DESCRIPTOR *what)
{
	bool layered = what->Flags & CUDA_ARRAY3D_LAYERED;

	return what->Width && what->Width <= 131072 && what->Height <= 131072 &&
	       what->Depth <= 16384 && (what->Height || !what->Depth || layered) &&
	       size_of_channel(what->Format) &&
	       (what->NumChannels == 1 || what->NumChannels == 2 || what->NumChannels == 4);
}

static size_t at_least_one(size_t value)
{
	return value ? value : 1;
}

static size_t level_size(const CUDA_ARRAY3D_DESCRIPTOR *what, unsigned int level)
{
	size_t row = at_least_one(what->Width >> level) * what->NumChannels *
		     size_of_channel(what->Format);
	size_t rows = what->Height ? (at_least_one(what->Height >> level) + 7) / 8 * 8 : 1;
	size_t layers = what->Flags & CUDA_ARRAY3D_LAYERED ? what->Depth : what->Depth >> level;

	return (row + 63) / 64 * 64 * rows * at_least_one(layers);
}

static size_t size_of(const CUDA_ARRAY3D_DESCRIPTOR *what, unsigned int levels)
{
	size_t sum = 0, step;

	for (unsigned int level = 0; level < levels; level++) {
		size_t deep = what->Flags & CUDA_ARRAY3D_LAYERED ? 0 : what->Depth;

		if (level && !(what->Width >> level) && !(what->Height >> level) &&
		    !(deep >> level))
			break;
		sum += level_size(what, level);
	}
	step = sum >= (1u << 20) ? 2u << 20 : 512;
	return (sum + step - 1) / step * step;
}

static CUresult take(struct CUarray_st **array, CUcontext context, size_t bytes, int kind,
		     bool sparse)
{
	struct CUarray_st *fresh = calloc(1, sizeof(*fresh));
	int error;

	if (!fresh)
		return CUDA_ERROR_OUT_OF_MEMORY;
	fresh->context = context;
	fresh->kind = kind;
	fresh->sparse = sparse;
	fresh->charged = bytes;
	pthread_mutex_lock(&sim_mutex);
	error = sim_take_from_card(context->card, bytes);
	if (error == 0) {
		fresh->next = arrays;
		arrays = fresh;
		*array = fresh;
	} else {
		free(fresh);
	}
	pthread_mutex_unlock(&sim_mutex);
	if (error == -ENOMEM)
		return CUDA_ERROR_OUT_OF_MEMORY;
	return error == 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

static CUresult create(struct CUarray_st **array, const CUDA_ARRAY3D_DESCRIPTOR *what,
		       unsigned int levels, int kind)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	if (result != CUDA_SUCCESS)
		return result;
	if (!array || !what || !levels || !valid(what))
		return CUDA_ERROR_INVALID_VALUE;
	if (what->Flags & CUDA_ARRAY3D_SPARSE)
		return take(array, context, 0, kind, true);
	return take(array, context, size_of(what, levels), kind, false);
}

static void drop(struct CUarray_st **place)
{
	struct CUarray_st *gone = *place;

	*place = gone->next;
	sim_free(gone->context->card, gone->charged);
	while (gone->tiles) {
		struct tile *tile = gone->tiles;

		gone->tiles = tile->next;
		sim_tile_unmap(tile->memory);
		free(tile);
	}
	free(gone);
}

static struct CUarray_st **place_of(const struct CUarray_st *array, int kind)
{
	struct CUarray_st **place = &arrays;

	while (*place && (*place != array || (int)(*place)->kind != kind))
		place = &(*place)->next;
	return place;
}

static CUresult destroy(const struct CUarray_st *array, int kind)
{
	CUresult result = CUDA_ERROR_INVALID_HANDLE;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&sim_mutex);
	if (array && *place_of(array, kind)) {
		drop(place_of(array, kind));
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

void sim_arrays_end(CUcontext context)
{
	for (struct CUarray_st **place = &arrays; *place;)
		if ((*place)->context == context)
			drop(place);
		else
			place = &(*place)->next;
}

SIM CUresult cuArrayCreate_v2(CUarray *array, const CUDA_ARRAY_DESCRIPTOR *what)
{
	CUDA_ARRAY3D_DESCRIPTOR whole;

	if (!what)
		return create(array, NULL, 1, ARRAY);
	whole = (CUDA_ARRAY3D_DESCRIPTOR){what->Width,  what->Height,      0,
					  what->Format, what->NumChannels, 0};
	return create(array, &whole, 1, ARRAY);
}

SIM CUresult cuArrayCreate(CUarray *array, const CUDA_ARRAY_DESCRIPTOR_v1 *what)
{
	CUDA_ARRAY_DESCRIPTOR wide;

	if (!what)
		return create(array, NULL, 1, ARRAY);
	wide = (CUDA_ARRAY_DESCRIPTOR){what->Width, what->Height, what->Format, what->NumChannels};
	return cuArrayCreate_v2(array, &wide);
}

SIM CUresult cuArray3DCreate_v2(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *what)
{
	return create(array, what, 1, ARRAY);
}

SIM CUresult cuArray3DCreate(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR_v1 *what)
{
	CUDA_ARRAY3D_DESCRIPTOR wide;

	if (!what)
		return create(array, NULL, 1, ARRAY);
	wide = (CUDA_ARRAY3D_DESCRIPTOR){what->Width,  what->Height,      what->Depth,
					 what->Format, what->NumChannels, what->Flags};
	return create(array, &wide, 1, ARRAY);
}

SIM CUresult cuArrayDestroy(CUarray array)
{
	return destroy(array, ARRAY);
}

SIM CUresult cuMipmappedArrayCreate(CUmipmappedArray *array, const CUDA_ARRAY3D_DESCRIPTOR *what,
				    unsigned int levels)
{
	return create((struct CUarray_st **)array, what, levels, MIPMAPPED);
}

SIM CUresult cuMipmappedArrayDestroy(CUmipmappedArray array)
{
	return destroy((struct CUarray_st *)array, MIPMAPPED);
}

/* ---- memory of other APIs: counted here as if it was made by the import */

SIM CUresult cuImportExternalMemory(CUexternalMemory *memory,
				    const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *what)
{
	CUcontext context;
	CUresult result = sim_usable(&context);
	size_t granule = (size_t)2 << 20;

	if (result != CUDA_SUCCESS)
		return result;
	if (!memory || !what || what->type != CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD ||
	    !what->size || what->size > (size_t)1 << 48)
		return CUDA_ERROR_INVALID_VALUE;
	return take((struct CUarray_st **)memory, context,
		    (what->size + granule - 1) / granule * granule, EXTERNAL, false);
}

SIM CUresult cuDestroyExternalMemory(CUexternalMemory memory)
{
	return destroy((struct CUarray_st *)memory, EXTERNAL);
}

/* ---- memory mapped into sparse ones */

static bool same_part(const CUarrayMapInfo *a, const CUarrayMapInfo *b)
{
	if (a->subresourceType != b->subresourceType)
		return false;
	if (a->subresourceType == CU_ARRAY_SPARSE_SUBRESOURCE_TYPE_MIPTAIL)
		return a->subresource.miptail.layer == b->subresource.miptail.layer &&
		       a->subresource.miptail.offset == b->subresource.miptail.offset &&
		       a->subresource.miptail.size == b->subresource.miptail.size;
	return memcmp(&a->subresource.sparseLevel, &b->subresource.sparseLevel,
		      sizeof(a->subresource.sparseLevel)) == 0;
}

static struct tile **tile_of(struct CUarray_st *array, const CUarrayMapInfo *where)
{
	struct tile **place = &array->tiles;

	while (*place && !same_part(&(*place)->where, where))
		place = &(*place)->next;
	return place;
}

static CUresult change_tile(const CUarrayMapInfo *change)
{
	int kind = change->resourceType == CU_RESOURCE_TYPE_MIPMAPPED_ARRAY ? MIPMAPPED : ARRAY;
	struct CUarray_st *array = *place_of((struct CUarray_st *)change->resource, kind);
	struct tile **place, *fresh;

	if (!array || !array->sparse)
		return CUDA_ERROR_INVALID_VALUE;
	place = tile_of(array, change);
	if (change->memOperationType == CU_MEM_OPERATION_TYPE_UNMAP) {
		struct tile *gone = *place;

		if (!gone)
			return CUDA_ERROR_INVALID_VALUE;
		*place = gone->next;
		sim_tile_unmap(gone->memory);
		free(gone);
		return CUDA_SUCCESS;
	}
	fresh = *place ? NULL : calloc(1, sizeof(*fresh));
	if (!fresh)
		return CUDA_ERROR_INVALID_VALUE; /* mapped already */
	fresh->memory = sim_tile_map(change->memHandle);
	if (!fresh->memory) {
		free(fresh);
		return CUDA_ERROR_INVALID_VALUE;
	}
	fresh->where = *change;
	*place = fresh;
	return CUDA_SUCCESS;
}

SIM CUresult cuMemMapArrayAsync(CUarrayMapInfo *list, unsigned int count, CUstream stream)
{
	CUcontext context;
	CUresult result = sim_usable(&context);

	(void)stream;
	if (result != CUDA_SUCCESS)
		return result;
	if (!list || !count)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim_mutex);
	for (unsigned int i = 0; i < count && result == CUDA_SUCCESS; i++)
		result = change_tile(&list[i]);
	pthread_mutex_unlock(&sim_mutex);
	return result;
}

SIM CUresult cuMemMapArrayAsync_ptsz(CUarrayMapInfo *list, unsigned int count, CUstream stream)
{
	return cuMemMapArrayAsync(list, count, stream);
}
