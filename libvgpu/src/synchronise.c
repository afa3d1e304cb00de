/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the host waits for the card. That is when pools give memory back, and the
 * only sign that a stream has freed what it was told to free.
 */
#include "vgpu.h"

static CUresult after(CUresult result, uint64_t stream)
{
	if (result == CUDA_SUCCESS && vgpu_state() == VGPU_ON)
		vgpu_pools_synchronised(stream, vgpu_current_device());
	return result;
}

VGPU_EXPORT CUresult cuCtxSynchronize(void)
{
	__typeof__(&cuCtxSynchronize) real = VGPU_REAL(cuCtxSynchronize);

	return real ? after(real(), VGPU_ALL_STREAMS) : CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
}

/* Which device the context is on is not asked: it may not be current. */
VGPU_EXPORT CUresult cuCtxSynchronize_v2(CUcontext context)
{
	__typeof__(&cuCtxSynchronize_v2) real = VGPU_REAL(cuCtxSynchronize_v2);
	__typeof__(&cuCtxGetCurrent) get_current = VGPU_REAL(cuCtxGetCurrent);
	CUcontext current = NULL;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (get_current)
		get_current(&current);
	return after(real(context), context == current || !context ? VGPU_ALL_STREAMS : 0);
}

VGPU_EXPORT CUresult cuStreamSynchronize(CUstream stream)
{
	__typeof__(&cuStreamSynchronize) real = VGPU_REAL(cuStreamSynchronize);
	uint64_t name = vgpu_stream_name(stream, false);

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	return after(real(stream), name == VGPU_ALL_STREAMS ? 0 : name);
}

VGPU_EXPORT CUresult cuStreamSynchronize_ptsz(CUstream stream)
{
	__typeof__(&cuStreamSynchronize_ptsz) real = VGPU_REAL(cuStreamSynchronize_ptsz);
	uint64_t name = vgpu_stream_name(stream, true);

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	return after(real(stream), name == VGPU_ALL_STREAMS ? 0 : name);
}

VGPU_EXPORT CUresult cuEventSynchronize(CUevent event)
{
	__typeof__(&cuEventSynchronize) real = VGPU_REAL(cuEventSynchronize);

	return real ? after(real(event), 0) : CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
}
