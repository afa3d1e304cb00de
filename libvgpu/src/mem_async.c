/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory in the order of a stream: cuMemAllocAsync and its kin. It comes from a
 * pool, and a pool is a device's: the one that the pool was made for, else the
 * stream's, which need not be the current context's. What is charged is what the
 * pool holds: see pools.c.
 *
 * While a stream is captured, nothing is allocated: the call becomes a node of a
 * graph.
 *
 * Contexts other than the primary one end without their device's pools.
 */
#include "vgpu.h"

#define NO_DEVICE (-1)
#define HOST_MEMORY (-2)
#define SPECIAL_STREAMS 2 /* NULL, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD */

/* A stream, and whether NULL means the thread's own. */
struct order {
	CUstream stream;
	bool per_thread;
};

static CUdevice current_device(void)
{
	__typeof__(&cuCtxGetDevice) get_device = VGPU_REAL(cuCtxGetDevice);
	CUdevice device;

	return get_device && get_device(&device) == CUDA_SUCCESS ? device : NO_DEVICE;
}

static CUdevice device_of_stream(CUstream stream)
{
	__typeof__(&cuStreamGetCtx) get_context = VGPU_REAL(cuStreamGetCtx);
	__typeof__(&cuCtxGetCurrent) get_current = VGPU_REAL(cuCtxGetCurrent);
	__typeof__(&cuCtxPushCurrent_v2) push = VGPU_REAL(cuCtxPushCurrent_v2);
	__typeof__(&cuCtxPopCurrent_v2) pop = VGPU_REAL(cuCtxPopCurrent_v2);
	CUcontext context = NULL, current = NULL;
	CUdevice device;

	if ((uintptr_t)stream <= SPECIAL_STREAMS || !get_context || !get_current || !push || !pop ||
	    get_context(stream, &context) != CUDA_SUCCESS ||
	    get_current(&current) != CUDA_SUCCESS || context == current ||
	    push(context) != CUDA_SUCCESS)
		return current_device();
	device = current_device();
	pop(&context);
	return device;
}

/* What a stream is called in pools.c. Threads' own streams have no name: only
 * waiting for everything is sure to wait for them. */
uint64_t vgpu_stream_name(CUstream stream, bool per_thread)
{
	if ((uintptr_t)stream == 2 || (!stream && per_thread))
		return VGPU_ALL_STREAMS;
	return stream ? (uintptr_t)stream : VGPU_LEGACY_STREAM;
}

/* Of a stream that was just used. The default ones are the current context's. */
CUcontext vgpu_context_of_stream(uint64_t name)
{
	__typeof__(&cuStreamGetCtx) get_context = VGPU_REAL(cuStreamGetCtx);
	CUcontext context = NULL;

	if (!name)
		return NULL;
	if (name != VGPU_ALL_STREAMS && name > SPECIAL_STREAMS && get_context &&
	    get_context((CUstream)(uintptr_t)name, &context) == CUDA_SUCCESS)
		return context;
	return vgpu_current_context();
}

static bool is_captured(struct order order)
{
	__typeof__(&cuStreamIsCapturing) ask = order.per_thread
						       ? VGPU_REAL(cuStreamIsCapturing_ptsz)
						       : VGPU_REAL(cuStreamIsCapturing);
	int status = CU_STREAM_CAPTURE_STATUS_NONE;

	return ask && ask(order.stream, &status) == CUDA_SUCCESS &&
	       status != CU_STREAM_CAPTURE_STATUS_NONE;
}

/* A thread's own stream has no name: that it was waited for says nothing here. */
void vgpu_pools_waited_for(uint64_t name)
{
	vgpu_pools_synchronised(name == VGPU_ALL_STREAMS ? 0 : name,
				name == VGPU_LEGACY_STREAM ? vgpu_current_context() : NULL);
}

/* A capture elsewhere in the process must not be spoilt by a call that its program
 * never made. Returns the mode to go back to, or -1. */
int vgpu_capture_mode(int mode)
{
	__typeof__(&cuThreadExchangeStreamCaptureMode) exchange =
		VGPU_REAL(cuThreadExchangeStreamCaptureMode);

	return mode >= 0 && exchange && exchange(&mode) == CUDA_SUCCESS ? mode : -1;
}

/* Waits for a stream, so that what it frees can be had. */
static bool wait_for(void *argument)
{
	struct order *order = argument;
	__typeof__(&cuStreamSynchronize) synchronise = order->per_thread
							       ? VGPU_REAL(cuStreamSynchronize_ptsz)
							       : VGPU_REAL(cuStreamSynchronize);
	int mode = vgpu_capture_mode(CU_STREAM_CAPTURE_MODE_RELAXED);
	bool waited = synchronise && synchronise(order->stream) == CUDA_SUCCESS;

	vgpu_capture_mode(mode);
	if (waited)
		vgpu_pools_waited_for(vgpu_stream_name(order->stream, order->per_thread));
	return waited;
}

/* ---- which pool */

/* Neither made here nor a default one: it says itself where it is, or it counts to
 * the stream's card. Too much rather than nothing. */
static CUdevice device_of_stranger(CUmemoryPool pool, CUstream stream)
{
	__typeof__(&cuDeviceGetDefaultMemPool) get_default = VGPU_REAL(cuDeviceGetDefaultMemPool);
	CUmemoryPool candidate;

	for (CUdevice device = 0; get_default && get_default(&candidate, device) == CUDA_SUCCESS;
	     device++)
		if (candidate == pool)
			return device;
	return device_of_stream(stream);
}

/* NULL: not to be charged. */
static CUresult pool_of(CUmemoryPool handle, CUstream stream, struct vgpu_pool **pool)
{
	CUdevice device;

	*pool = vgpu_pool_find(VGPU_MEMORY_POOL, (uintptr_t)handle);
	if (!*pool) {
		device = device_of_stranger(handle, stream);
		*pool = vgpu_pool_add(VGPU_MEMORY_POOL, (uintptr_t)handle, device);
	}
	if (!*pool)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (!vgpu_pool_card(*pool))
		*pool = NULL;
	return CUDA_SUCCESS;
}

static CUresult pool_of_stream(CUstream stream, struct vgpu_pool **pool)
{
	__typeof__(&cuDeviceGetMemPool) get_pool = VGPU_REAL(cuDeviceGetMemPool);
	CUmemoryPool handle;

	*pool = NULL;
	if (!get_pool || get_pool(&handle, device_of_stream(stream)) != CUDA_SUCCESS)
		return CUDA_SUCCESS; /* the driver will say why */
	return pool_of(handle, stream, pool);
}

/* ---- allocating */

/* What the driver gave goes back to it. */
static CUresult undo(struct vgpu_pool *pool, CUdeviceptr address, struct order order)
{
	__typeof__(&cuMemFreeAsync) give =
		order.per_thread ? VGPU_REAL(cuMemFreeAsync_ptsz) : VGPU_REAL(cuMemFreeAsync);

	if (give)
		give(address, order.stream);
	wait_for(&order);
	vgpu_pool_undo(pool);
	return vgpu_refuse(vgpu_pool_card(pool), 0);
}

static CUresult note(struct vgpu_pool *pool, uint64_t reserved, CUresult result,
		     CUdeviceptr address, struct order order)
{
	struct vgpu_pointer entry = {.address = address,
				     .card = vgpu_pool_card(pool),
				     .context = vgpu_primary_context(vgpu_pool_device(pool)),
				     .owner = (uintptr_t)pool};
	bool granted =
		vgpu_pool_leave(pool, reserved, result == CUDA_SUCCESS, result != CUDA_SUCCESS);

	if (result == CUDA_ERROR_OUT_OF_MEMORY)
		vgpu_count_driver_oom(entry.card);
	if (result != CUDA_SUCCESS)
		return result;
	if (!granted || vgpu_pointer_add(VGPU_POINTERS, &entry) != 0)
		return undo(pool, address, order);
	return CUDA_SUCCESS;
}

/* The pool has no more, and the card neither. Memory that is there at once is there in
 * the order of any stream. */
static CUresult spill(struct vgpu_pool *pool, CUdeviceptr *address, size_t bytes)
{
	struct vgpu_pointer entry = {.bytes = vgpu_charge_of(bytes),
				     .card = vgpu_pool_card(pool),
				     .context = vgpu_current_context(),
				     .count = vgpu_charge_of(bytes)};
	CUresult result = vgpu_charge(entry.card, entry.bytes);

	if (result != CUDA_SUCCESS)
		return result;
	result = vgpu_spill(address, bytes);
	entry.address = *address;
	return vgpu_charged(&entry, result);
}

/* Managed memory is made on the current context's card. */
static bool may_spill(const struct vgpu_pool *pool)
{
	struct vgpu_card *card = vgpu_pool_card(pool);

	return vgpu_card_spills(card) && vgpu_card_current() == card;
}

static CUresult allocate(int real_index, CUdeviceptr *pointer, size_t bytes, struct order order)
{
	__typeof__(&cuMemAllocAsync) real = (__typeof__(&cuMemAllocAsync))vgpu_real_at(real_index);
	struct vgpu_pool *pool;
	CUdeviceptr address = 0;
	uint64_t reserved = 0;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (vgpu_state() == VGPU_OFF || !pointer || !bytes || is_captured(order))
		return real(pointer, bytes, order.stream); /* in the driver's own words */
	result = pool_of_stream(order.stream, &pool);
	if (result == CUDA_SUCCESS && !pool)
		return real(pointer, bytes, order.stream);
	if (result == CUDA_SUCCESS)
		result = vgpu_pool_enter(pool, bytes, wait_for, &order, &reserved);
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, bytes, order.stream);
	if (result == CUDA_ERROR_OUT_OF_MEMORY && may_spill(pool)) {
		vgpu_pool_leave(pool, reserved, false, true);
		result = spill(pool, &address, bytes);
	} else {
		result = note(pool, reserved, result, address, order);
	}
	if (result == CUDA_SUCCESS)
		*pointer = address;
	return result;
}

static CUresult allocate_from(int real_index, CUdeviceptr *pointer, size_t bytes,
			      CUmemoryPool handle, struct order order)
{
	__typeof__(&cuMemAllocFromPoolAsync) real =
		(__typeof__(&cuMemAllocFromPoolAsync))vgpu_real_at(real_index);
	struct vgpu_pool *pool;
	CUdeviceptr address = 0;
	uint64_t reserved = 0;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (vgpu_state() == VGPU_OFF || !pointer || !bytes || !handle || is_captured(order))
		return real(pointer, bytes, handle, order.stream);
	result = pool_of(handle, order.stream, &pool);
	if (result == CUDA_SUCCESS && !pool)
		return real(pointer, bytes, handle, order.stream);
	if (result == CUDA_SUCCESS)
		result = vgpu_pool_enter(pool, bytes, wait_for, &order, &reserved);
	if (result != CUDA_SUCCESS)
		return result;
	result = real(&address, bytes, handle, order.stream);
	result = note(pool, reserved, result, address, order);
	if (result == CUDA_SUCCESS)
		*pointer = address;
	return result;
}

/* ---- freeing */

/* Whether a driver frees managed memory in the order of a stream is for it to say. If it
 * does not, the stream is waited for. */
static CUresult free_spilled(CUdeviceptr pointer, struct order order)
{
	__typeof__(&cuMemFree_v2) real = VGPU_REAL(cuMemFree_v2);
	int mode;
	CUresult result;

	if (!real || !wait_for(&order))
		return CUDA_ERROR_INVALID_VALUE;
	mode = vgpu_capture_mode(CU_STREAM_CAPTURE_MODE_RELAXED);
	result = real(pointer);
	vgpu_capture_mode(mode);
	return result;
}

/* The entry leaves the table before the driver frees: see cuMemFree_v2. */
static CUresult give_back(int real_index, CUdeviceptr pointer, struct order order)
{
	__typeof__(&cuMemFreeAsync) real = (__typeof__(&cuMemFreeAsync))vgpu_real_at(real_index);
	struct vgpu_pointer entry;
	bool known;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() != VGPU_ON || is_captured(order))
		return real(pointer, order.stream);
	known = vgpu_pointer_take(VGPU_POINTERS, pointer, &entry);
	result = real(pointer, order.stream);
	if (known && entry.count &&
	    (result == CUDA_ERROR_INVALID_VALUE || result == CUDA_ERROR_NOT_SUPPORTED)) {
		result = free_spilled(pointer, order);
		if (result == CUDA_SUCCESS) {
			vgpu_pointer_freed(&entry, 0);
			return result;
		}
	}
	if (known && result == CUDA_SUCCESS)
		vgpu_pointer_freed(&entry, vgpu_stream_name(order.stream, order.per_thread));
	else if (known)
		vgpu_pointer_add(VGPU_POINTERS, &entry);
	return result;
}

VGPU_EXPORT CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return allocate(VGPU_REAL_cuMemAllocAsync, pointer, bytes, (struct order){stream, false});
}

VGPU_EXPORT CUresult cuMemAllocAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return allocate(VGPU_REAL_cuMemAllocAsync_ptsz, pointer, bytes,
			(struct order){stream, true});
}

VGPU_EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
					     CUstream stream)
{
	return allocate_from(VGPU_REAL_cuMemAllocFromPoolAsync, pointer, bytes, pool,
			     (struct order){stream, false});
}

VGPU_EXPORT CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *pointer, size_t bytes,
						  CUmemoryPool pool, CUstream stream)
{
	return allocate_from(VGPU_REAL_cuMemAllocFromPoolAsync_ptsz, pointer, bytes, pool,
			     (struct order){stream, true});
}

VGPU_EXPORT CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream)
{
	return give_back(VGPU_REAL_cuMemFreeAsync, pointer, (struct order){stream, false});
}

VGPU_EXPORT CUresult cuMemFreeAsync_ptsz(CUdeviceptr pointer, CUstream stream)
{
	return give_back(VGPU_REAL_cuMemFreeAsync_ptsz, pointer, (struct order){stream, true});
}

/* ---- pools */

static CUdevice device_of_props(const CUmemPoolProps *props)
{
	CUdevice device = vgpu_device_of_location(&props->location);

	return device < 0 ? HOST_MEMORY : device;
}

VGPU_EXPORT CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *props)
{
	__typeof__(&cuMemPoolCreate) real = VGPU_REAL(cuMemPoolCreate);
	__typeof__(&cuMemPoolDestroy) destroy = VGPU_REAL(cuMemPoolDestroy);
	CUmemoryPool fresh = NULL;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_state() != VGPU_ON || !pool || !props)
		return real(pool, props);
	result = real(&fresh, props);
	if (result != CUDA_SUCCESS)
		return result;
	if (!vgpu_pool_add(VGPU_MEMORY_POOL, (uintptr_t)fresh, device_of_props(props))) {
		if (destroy)
			destroy(fresh);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*pool = fresh;
	return CUDA_SUCCESS;
}

VGPU_EXPORT CUresult cuMemPoolDestroy(CUmemoryPool pool)
{
	__typeof__(&cuMemPoolDestroy) real = VGPU_REAL(cuMemPoolDestroy);
	struct vgpu_pool *books;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	books = vgpu_state() == VGPU_ON ? vgpu_pool_end(pool) : NULL;
	result = real(pool);
	if (books)
		vgpu_pool_ended(books, result == CUDA_SUCCESS);
	return result;
}

VGPU_EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep)
{
	__typeof__(&cuMemPoolTrimTo) real = VGPU_REAL(cuMemPoolTrimTo);
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	result = real(pool, keep);
	if (result == CUDA_SUCCESS && vgpu_state() == VGPU_ON)
		vgpu_pools_synchronised(0, NULL);
	return result;
}
