/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the host waits for the card. That is when pools give memory back, and the
 * only sign that a stream has freed what it was told to free.
 */
#include "vgpu.h"

static CUresult after_context(CUresult result, CUcontext context)
{
	if (result == CUDA_SUCCESS && vgpu_state() == VGPU_ON && vgpu_pools_exist())
		vgpu_pools_synchronised(VGPU_ALL_STREAMS,
					context ? context : vgpu_current_context());
	return result;
}

static CUresult after_stream(CUresult result, uint64_t name)
{
	if (result == CUDA_SUCCESS && vgpu_state() == VGPU_ON && vgpu_pools_exist())
		vgpu_pools_waited_for(name);
	return result;
}

VGPU_EXPORT CUresult cuCtxSynchronize(void)
{
	__typeof__(&cuCtxSynchronize) real = VGPU_REAL(cuCtxSynchronize);

	return real ? after_context(real(), NULL) : CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
}

VGPU_EXPORT CUresult cuCtxSynchronize_v2(CUcontext context)
{
	__typeof__(&cuCtxSynchronize_v2) real = VGPU_REAL(cuCtxSynchronize_v2);

	return real ? after_context(real(context), context) : CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
}

VGPU_EXPORT CUresult cuStreamSynchronize(CUstream stream)
{
	__typeof__(&cuStreamSynchronize) real = VGPU_REAL(cuStreamSynchronize);

	return real ? after_stream(real(stream), vgpu_stream_name(stream, false))
		    : CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
}

VGPU_EXPORT CUresult cuStreamSynchronize_ptsz(CUstream stream)
{
	__typeof__(&cuStreamSynchronize_ptsz) real = VGPU_REAL(cuStreamSynchronize_ptsz);

	return real ? after_stream(real(stream), vgpu_stream_name(stream, true))
		    : CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
}

/* Which stream the event was recorded in is not known. */
VGPU_EXPORT CUresult cuEventSynchronize(CUevent event)
{
	__typeof__(&cuEventSynchronize) real = VGPU_REAL(cuEventSynchronize);

	return real ? after_stream(real(event), 0) : CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
}
