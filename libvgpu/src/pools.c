/* SPDX-License-Identifier: Apache-2.0
 *
 * What memory pools hold of their cards. A pool takes memory from its card in
 * steps of its own and keeps what the program has freed: until the stream gets
 * there, until a synchronisation, or longer if its release threshold says so. So
 * a pool is charged for what it holds, not for what the program got from it:
 *
 *   before an allocation   the most that the pool can grow by is reserved;
 *   after every call       the driver is asked what the pool holds, and what was
 *                          reserved beyond that is given back.
 *
 * Threads that use one pool at the same time do not wait for each other: only if
 * no call was under way, neither before nor after the driver's answer, is that
 * answer believed; else whoever is last will ask again.
 *
 * A pool that is destroyed cannot be asked any more. It keeps its charge until
 * nothing of it is in use and the streams that freed it have been waited for. So
 * does other memory that a stream frees.
 */
#include <string.h>

#include "vgpu.h"

#define POOLS 1024
#define FIRST_STEP (UINT64_C(2) << 20)
#define LAST_STEP (UINT64_C(128) << 20)

enum pool_state { FREE_PLACE, LIVE, ENDED };

struct vgpu_pool {
	uint64_t handle; /* of the driver, unless ended */
	struct vgpu_card *card;
	CUdevice device;
	enum vgpu_pool_kind kind;
	enum pool_state state;
	unsigned int in_flight; /* calls that may change what it holds */
	uint64_t generation;    /* of such calls */
	uint64_t charged;
	uint64_t outstanding; /* allocations that the program has not freed */
	uint64_t pending;     /* the stream, or VGPU_ALL_STREAMS, that is to free some */
	CUcontext context;    /* of that stream */
};

static struct vgpu_lock lock; /* over all of them, never over a driver call */
static struct vgpu_pool pools[POOLS];
static unsigned int top; /* places beyond this one were never used */
static uint64_t step = FIRST_STEP;

void vgpu_pools_forget_all(void)
{
	atomic_store(&lock.held, 0);
	memset(pools, 0, sizeof(pools));
	atomic_store(&top, 0);
}

/* ---- finding them */

static struct vgpu_pool *find(enum vgpu_pool_kind kind, uint64_t handle)
{
	for (unsigned int i = 0; i < top; i++)
		if (pools[i].state == LIVE && pools[i].kind == kind && pools[i].handle == handle)
			return &pools[i];
	return NULL;
}

struct vgpu_pool *vgpu_pool_find(enum vgpu_pool_kind kind, uint64_t handle)
{
	struct vgpu_pool *found;

	vgpu_lock(&lock);
	found = find(kind, handle);
	vgpu_unlock(&lock);
	return found;
}

static struct vgpu_pool *new_place(void)
{
	for (unsigned int i = 0; i < POOLS; i++)
		if (pools[i].state == FREE_PLACE) {
			if (i >= top)
				atomic_store(&top, i + 1);
			return &pools[i];
		}
	return NULL;
}

/* Or the one that another thread has added meanwhile. NULL: there are too many. A pool without a
 * card is not charged to anybody. */
struct vgpu_pool *vgpu_pool_add(enum vgpu_pool_kind kind, uint64_t handle, CUdevice device)
{
	struct vgpu_card *card = device < 0 ? NULL : vgpu_card_of_device(device);
	struct vgpu_pool *pool;

	vgpu_lock(&lock);
	pool = find(kind, handle);
	if (!pool)
		pool = new_place();
	if (pool && pool->state == FREE_PLACE)
		*pool = (struct vgpu_pool){.handle = handle,
					   .card = card,
					   .device = device,
					   .kind = kind,
					   .state = LIVE};
	vgpu_unlock(&lock);
	return pool;
}

struct vgpu_card *vgpu_pool_card(const struct vgpu_pool *pool)
{
	return pool->card;
}

CUdevice vgpu_pool_device(const struct vgpu_pool *pool)
{
	return pool->device;
}

/* ---- what they hold */

static bool holds(const struct vgpu_pool *pool, uint64_t *bytes)
{
	__typeof__(&cuMemPoolGetAttribute) of_pool = VGPU_REAL(cuMemPoolGetAttribute);
	__typeof__(&cuDeviceGetGraphMemAttribute) of_graphs =
		VGPU_REAL(cuDeviceGetGraphMemAttribute);
	cuuint64_t value = 0;
	CUresult result = CUDA_ERROR_NOT_SUPPORTED;

	if (pool->kind == VGPU_GRAPH_POOL && of_graphs)
		result = of_graphs(pool->device, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &value);
	else if (pool->kind == VGPU_MEMORY_POOL && of_pool)
		result = of_pool((CUmemoryPool)(uintptr_t)pool->handle,
				 CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &value);
	*bytes = value;
	return result == CUDA_SUCCESS;
}

/* Charges exactly `held`, unless a call came in between. Returns what is missing. */
static uint64_t believe(struct vgpu_pool *pool, uint64_t generation, uint64_t held)
{
	uint64_t surplus = 0, missing = 0;

	vgpu_lock(&lock);
	if (pool->state == LIVE && !pool->in_flight && pool->generation == generation) {
		if (pool->charged > held)
			surplus = pool->charged - held;
		else
			missing = held - pool->charged;
		pool->generation += surplus > 0;
		pool->charged = held;
	}
	vgpu_unlock(&lock);
	if (surplus)
		vgpu_give_back(pool->card, surplus);
	return missing;
}

/* A pool that grew by more than was reserved for it grows in greater steps. */
static void learn(uint64_t missing)
{
	uint64_t wanted = atomic_load_explicit(&step, memory_order_relaxed);

	while (wanted < missing + FIRST_STEP && wanted < LAST_STEP)
		wanted *= 2;
	atomic_store_explicit(&step, wanted, memory_order_relaxed);
}

/* Makes the charge what the pool holds. False: that is more than is granted. */
static bool settle(struct vgpu_pool *pool)
{
	uint64_t generation, held, missing;
	bool quiet;

	if (!pool->card)
		return true;
	vgpu_lock(&lock);
	generation = pool->generation;
	quiet = pool->state == LIVE && !pool->in_flight;
	vgpu_unlock(&lock);
	if (!quiet || !holds(pool, &held))
		return true;
	missing = believe(pool, generation, held);
	if (!missing)
		return true;
	learn(missing);
	if (vgpu_reserve(pool->card, missing) == 0)
		return true;
	vgpu_count_anyway(pool->card, missing);
	return false;
}

/* Changes with every call that may take memory from the pool, and whenever the pool
 * was seen to have given some back. */
uint64_t vgpu_pool_generation(const struct vgpu_pool *pool)
{
	uint64_t generation;

	vgpu_lock(&lock);
	generation = pool->generation;
	vgpu_unlock(&lock);
	return generation;
}

static void trim(struct vgpu_pool *pool)
{
	__typeof__(&cuMemPoolTrimTo) trim_pool = VGPU_REAL(cuMemPoolTrimTo);
	__typeof__(&cuDeviceGraphMemTrim) trim_graphs = VGPU_REAL(cuDeviceGraphMemTrim);

	if (pool->kind == VGPU_GRAPH_POOL && trim_graphs)
		trim_graphs(pool->device);
	else if (pool->kind == VGPU_MEMORY_POOL && trim_pool)
		trim_pool((CUmemoryPool)(uintptr_t)pool->handle, 0);
	settle(pool);
}

static bool is_charged(unsigned int i, const struct vgpu_card *card)
{
	bool charged;

	vgpu_lock(&lock);
	charged = pools[i].state == LIVE && pools[i].charged && (!card || pools[i].card == card);
	vgpu_unlock(&lock);
	return charged;
}

/* Takes back what this process's pools keep of a card. False: there are none. */
bool vgpu_pools_trim(const struct vgpu_card *card)
{
	bool any = false;
	int mode;

	if (!vgpu_pools_exist())
		return false;
	mode = vgpu_capture_mode(CU_STREAM_CAPTURE_MODE_RELAXED);
	for (unsigned int i = 0; i < atomic_load(&top); i++)
		if (is_charged(i, card)) {
			trim(&pools[i]);
			any = true;
		}
	vgpu_capture_mode(mode);
	return any;
}

/* ---- calls that change it */

static uint64_t round_up(uint64_t bytes)
{
	uint64_t unit = atomic_load_explicit(&step, memory_order_relaxed);

	return bytes > UINT64_MAX - unit ? UINT64_MAX : (bytes + unit - 1) / unit * unit;
}

/* wait: for what is on its way to be free. Not even a pool that has room is let in
 * without a reservation: its room may be in pieces, and it would grow. */
CUresult vgpu_pool_enter(struct vgpu_pool *pool, uint64_t bytes, bool (*wait)(void *),
			 void *argument, uint64_t *reserved)
{
	*reserved = round_up(bytes);
	if (vgpu_try_charge(pool->card, *reserved) != 0 &&
	    (!wait || !wait(argument) || vgpu_try_charge(pool->card, *reserved) != 0))
		return vgpu_refuse(pool->card, bytes);
	vgpu_lock(&lock);
	pool->charged += *reserved;
	pool->in_flight++;
	pool->generation++;
	vgpu_unlock(&lock);
	return CUDA_SUCCESS;
}

/* For a call that finds in the pool what it had there in that generation; false if
 * that is over. From here on nobody gives back what others have reserved, so that
 * whoever takes this memory has paid for what this call then makes the pool grow by. */
bool vgpu_pool_enter_again(struct vgpu_pool *pool, uint64_t generation)
{
	bool same;

	vgpu_lock(&lock);
	same = pool->generation == generation;
	if (same) {
		pool->in_flight++;
		pool->generation++;
	}
	vgpu_unlock(&lock);
	return same;
}

/* After the driver's call. False: the pool grew beyond what is granted. */
bool vgpu_pool_leave(struct vgpu_pool *pool, uint64_t reserved, unsigned int allocations,
		     bool failed)
{
	vgpu_lock(&lock);
	pool->in_flight--;
	pool->outstanding += allocations;
	if (failed)
		pool->charged -= reserved < pool->charged ? reserved : pool->charged;
	vgpu_unlock(&lock);
	if (failed)
		vgpu_give_back(pool->card, reserved);
	return settle(pool);
}

void vgpu_pool_undo(struct vgpu_pool *pool)
{
	vgpu_lock(&lock);
	pool->outstanding--;
	vgpu_unlock(&lock);
	trim(pool);
}

/* Of streams of several contexts, only the end of the memory itself is waited for. */
static void expect(struct vgpu_pool *pool, uint64_t stream, CUcontext context)
{
	static struct vgpu_pool several;

	if (!stream)
		return;
	if (!pool->pending) {
		pool->pending = stream;
		pool->context = context;
		return;
	}
	if (pool->pending != stream || pool->context != context)
		pool->pending = VGPU_ALL_STREAMS;
	if (pool->context != context)
		pool->context = (CUcontext)&several; /* nobody's */
}

/* The last charge of a pool that is no more, if nothing of it is left. */
static uint64_t last_charge(struct vgpu_pool *pool)
{
	uint64_t charged = pool->charged;

	if (pool->state != ENDED || pool->outstanding || pool->pending)
		return 0;
	*pool = (struct vgpu_pool){0};
	return charged;
}

/* stream: that will free it; 0 = it is free. */
void vgpu_pool_freed(struct vgpu_pool *pool, uint64_t stream)
{
	CUcontext context = vgpu_context_of_stream(stream);
	struct vgpu_card *card = pool->card;
	uint64_t charged;

	vgpu_lock(&lock);
	if (pool->outstanding)
		pool->outstanding--;
	expect(pool, stream, context);
	charged = last_charge(pool);
	vgpu_unlock(&lock);
	if (!card)
		return;
	vgpu_release(card, charged);
	settle(pool);
}

/* Memory that is no pool's, but that a stream is to free. If there is no place to
 * note it, it stays charged: too much rather than nothing. */
void vgpu_pool_bury(struct vgpu_card *card, uint64_t bytes, uint64_t stream)
{
	CUcontext context = vgpu_context_of_stream(stream);
	struct vgpu_pool *grave = NULL;

	vgpu_lock(&lock);
	for (unsigned int i = 0; i < top && !grave; i++)
		if (pools[i].kind == VGPU_NO_POOL && pools[i].card == card &&
		    pools[i].pending == stream && pools[i].context == context)
			grave = &pools[i];
	if (!grave)
		grave = new_place();
	if (grave && grave->state == FREE_PLACE)
		*grave = (struct vgpu_pool){.card = card,
					    .kind = VGPU_NO_POOL,
					    .state = ENDED,
					    .pending = stream,
					    .context = context};
	if (grave)
		grave->charged += bytes;
	vgpu_unlock(&lock);
	vgpu_release(card, 0);
}

/* ---- their ends */

/* Before cuMemPoolDestroy, since another thread may be given the handle after it. */
struct vgpu_pool *vgpu_pool_end(CUmemoryPool handle)
{
	struct vgpu_pool *pool = vgpu_pool_find(VGPU_MEMORY_POOL, (uintptr_t)handle);

	if (!pool)
		return NULL;
	settle(pool);
	vgpu_lock(&lock);
	pool->state = ENDED;
	vgpu_unlock(&lock);
	return pool;
}

void vgpu_pool_ended(struct vgpu_pool *pool, bool success)
{
	struct vgpu_card *card = pool->card;
	uint64_t charged = 0;

	vgpu_lock(&lock);
	if (success)
		charged = last_charge(pool);
	else
		pool->state = LIVE;
	vgpu_unlock(&lock);
	if (card)
		vgpu_give_back(card, charged);
}

/* The legacy default stream is called the same in every context. */
static bool is_over(const struct vgpu_pool *pool, uint64_t stream, CUcontext context)
{
	if (stream == VGPU_ALL_STREAMS)
		return pool->context == context;
	return pool->pending == stream &&
	       (stream != VGPU_LEGACY_STREAM || pool->context == context);
}

static void waited(struct vgpu_pool *pool, uint64_t stream, CUcontext context)
{
	struct vgpu_card *card;
	uint64_t charged = 0;
	bool live;

	vgpu_lock(&lock);
	card = pool->card;
	if (is_over(pool, stream, context))
		pool->pending = 0;
	live = pool->state == LIVE && pool->charged;
	charged = last_charge(pool);
	vgpu_unlock(&lock);
	if (charged && card)
		vgpu_give_back(card, charged);
	if (live)
		settle(pool);
}

bool vgpu_pools_exist(void)
{
	return atomic_load_explicit(&top, memory_order_relaxed);
}

/* The host has waited for a stream, or for all of a context (VGPU_ALL_STREAMS), or
 * for something (0): pools may have given back what they kept. */
void vgpu_pools_synchronised(uint64_t stream, CUcontext context)
{
	for (unsigned int i = 0; i < atomic_load(&top); i++)
		if (atomic_load((int *)&pools[i].state) != FREE_PLACE)
			waited(&pools[i], stream, context);
}

/* The device's primary context is gone, and its pools' memory with it. */
void vgpu_pools_device_ended(CUdevice device)
{
	for (unsigned int i = 0; i < atomic_load(&top); i++) {
		vgpu_lock(&lock);
		if (pools[i].kind != VGPU_NO_POOL && pools[i].device == device)
			pools[i].outstanding = pools[i].pending = 0;
		vgpu_unlock(&lock);
	}
	vgpu_pools_synchronised(0, NULL);
}
