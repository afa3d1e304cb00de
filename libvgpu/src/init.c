/* SPDX-License-Identifier: Apache-2.0
 *
 * The one-time start, at the first cuInit or nvmlInit, and what a forked child
 * must not inherit.
 */
#include <pthread.h>

#include "shares.h"
#include "vgpu.h"

enum { UNTOUCHED, STARTING, STARTED };

static int stage;
static struct vgpu_grants grants;

/* The child shares the mappings but is another process: it gets its own slot
 * when it first asks for memory. The pointers it knows of are its parent's. */
static void after_fork_in_child(void)
{
	for (unsigned int i = 0; i < grants.view_count; i++)
		vgpu_slot_forget(&grants.views[i]);
	vgpu_pointer_forget_all();
	vgpu_virtual_forget_all();
	vgpu_tiles_forget_lock();
	vgpu_context_limits_forget_lock();
	vgpu_shares_forget_all();
	vgpu_pools_forget_all();
	vgpu_pace_forget_all();
	vgpu_environment_forget_lock();
	if (atomic_load(&stage) == STARTING)
		atomic_store(&stage, UNTOUCHED);
}

enum vgpu_state vgpu_init(void)
{
	int expected = UNTOUCHED;

	if (atomic_load_explicit(&stage, memory_order_acquire) == STARTED)
		return vgpu_state();
	if (atomic_compare_exchange_strong(&stage, &expected, STARTING)) {
		grants.state = VGPU_OFF;
		grants.card_count = grants.view_count = 0;
		vgpu_grants_load(&grants);
		if (grants.state == VGPU_OFF && !vgpu_environment_read())
			grants.state = VGPU_BROKEN;
		pthread_atfork(NULL, NULL, after_fork_in_child);
		vgpu_log(VGPU_LOG_INFO, "%u card(s) granted", grants.card_count);
		atomic_store_explicit(&stage, STARTED, memory_order_release);
	}
	while (atomic_load_explicit(&stage, memory_order_acquire) != STARTED)
		vgpu_nap_us(50);
	return vgpu_state();
}

enum vgpu_state vgpu_state(void)
{
	if (atomic_load_explicit(&stage, memory_order_acquire) != STARTED)
		return VGPU_OFF;
	return atomic_load_explicit(&grants.state, memory_order_acquire);
}

enum vgpu_state vgpu_started(enum vgpu_library library)
{
	vgpu_environment_apply(&grants, library);
	return vgpu_state();
}

struct vgpu_grants *vgpu_grants(void)
{
	return &grants;
}

VGPU_EXPORT CUresult cuInit(unsigned int flags)
{
	__typeof__(&cuInit) real = VGPU_REAL(cuInit);
	uint32_t percent;
	CUresult result;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (vgpu_init() == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	percent = vgpu_mps_read();
	result = real(flags);
	if (result == CUDA_SUCCESS)
		vgpu_mps_started(percent);
	if (result == CUDA_SUCCESS && vgpu_started(VGPU_CUDA) == VGPU_BROKEN)
		return CUDA_ERROR_NOT_INITIALIZED;
	return result;
}
