/* SPDX-License-Identifier: Apache-2.0
 *
 * Launches of kernels; those of graphs are in graphs.c. While no card is limited, a
 * launch is a jump to the driver.
 */
#include "vgpu.h"

static uint64_t key_of(CUfunction function, unsigned int gx, unsigned int gy, unsigned int gz,
		       unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared)
{
	return vgpu_kernel_key(function, (const uint32_t[7]){gx, gy, gz, bx, by, bz, shared});
}

#define LAUNCH(name, per_thread)                                                                   \
	VGPU_EXPORT CUresult name(CUfunction function, unsigned int gx, unsigned int gy,           \
				  unsigned int gz, unsigned int bx, unsigned int by,               \
				  unsigned int bz, unsigned int shared, CUstream stream,           \
				  void **params, void **extra)                                     \
	{                                                                                          \
		__typeof__(&name) real = VGPU_REAL(name);                                          \
		struct vgpu_launch launch;                                                         \
                                                                                                   \
		if (!real)                                                                         \
			return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;                               \
		if (!vgpu_pace_wanted())                                                           \
			return real(function, gx, gy, gz, bx, by, bz, shared, stream, params,      \
				    extra);                                                        \
		vgpu_pace_enter(&launch, key_of(function, gx, gy, gz, bx, by, bz, shared), stream, \
				per_thread);                                                       \
		return vgpu_pace_leave(&launch, real(function, gx, gy, gz, bx, by, bz, shared,     \
						     stream, params, extra));                      \
	}
LAUNCH(cuLaunchKernel, false)
LAUNCH(cuLaunchKernel_ptsz, true)

#define LAUNCH_EX(name, per_thread)                                                                \
	VGPU_EXPORT CUresult name(const CUlaunchConfig *config, CUfunction function,               \
				  void **params, void **extra)                                     \
	{                                                                                          \
		__typeof__(&name) real = VGPU_REAL(name);                                          \
		struct vgpu_launch launch;                                                         \
                                                                                                   \
		if (!real)                                                                         \
			return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;                               \
		if (!config || !vgpu_pace_wanted())                                                \
			return real(config, function, params, extra);                              \
		vgpu_pace_enter(&launch,                                                           \
				key_of(function, config->gridDimX, config->gridDimY,               \
				       config->gridDimZ, config->blockDimX, config->blockDimY,     \
				       config->blockDimZ, config->sharedMemBytes),                 \
				config->hStream, per_thread);                                      \
		return vgpu_pace_leave(&launch, real(config, function, params, extra));            \
	}
LAUNCH_EX(cuLaunchKernelEx, false)
LAUNCH_EX(cuLaunchKernelEx_ptsz, true)

#define LAUNCH_COOPERATIVE(name, per_thread)                                                       \
	VGPU_EXPORT CUresult name(CUfunction function, unsigned int gx, unsigned int gy,           \
				  unsigned int gz, unsigned int bx, unsigned int by,               \
				  unsigned int bz, unsigned int shared, CUstream stream,           \
				  void **params)                                                   \
	{                                                                                          \
		__typeof__(&name) real = VGPU_REAL(name);                                          \
		struct vgpu_launch launch;                                                         \
                                                                                                   \
		if (!real)                                                                         \
			return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;                               \
		if (!vgpu_pace_wanted())                                                           \
			return real(function, gx, gy, gz, bx, by, bz, shared, stream, params);     \
		vgpu_pace_enter(&launch, key_of(function, gx, gy, gz, bx, by, bz, shared), stream, \
				per_thread);                                                       \
		return vgpu_pace_leave(                                                            \
			&launch, real(function, gx, gy, gz, bx, by, bz, shared, stream, params));  \
	}
LAUNCH_COOPERATIVE(cuLaunchCooperativeKernel, false)
LAUNCH_COOPERATIVE(cuLaunchCooperativeKernel_ptsz, true)

/* ---- from before CUDA 4: the block's shape is not known here, and its kernels have few */

VGPU_EXPORT CUresult cuLaunchGridAsync(CUfunction function, int width, int height, CUstream stream)
{
	__typeof__(&cuLaunchGridAsync) real = VGPU_REAL(cuLaunchGridAsync);
	struct vgpu_launch launch;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (!vgpu_pace_wanted())
		return real(function, width, height, stream);
	vgpu_pace_enter(&launch,
			key_of(function, (unsigned int)width, (unsigned int)height, 1, 0, 0, 0, 0),
			stream, false);
	return vgpu_pace_leave(&launch, real(function, width, height, stream));
}

VGPU_EXPORT CUresult cuLaunchGrid(CUfunction function, int width, int height)
{
	__typeof__(&cuLaunchGrid) real = VGPU_REAL(cuLaunchGrid);
	struct vgpu_launch launch;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (!vgpu_pace_wanted())
		return real(function, width, height);
	vgpu_pace_enter(&launch,
			key_of(function, (unsigned int)width, (unsigned int)height, 1, 0, 0, 0, 0),
			NULL, false);
	return vgpu_pace_leave(&launch, real(function, width, height));
}

VGPU_EXPORT CUresult cuLaunch(CUfunction function)
{
	__typeof__(&cuLaunch) real = VGPU_REAL(cuLaunch);
	struct vgpu_launch launch;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (!vgpu_pace_wanted())
		return real(function);
	vgpu_pace_enter(&launch, key_of(function, 1, 1, 1, 0, 0, 0, 0), NULL, false);
	return vgpu_pace_leave(&launch, real(function));
}

/* ---- one kernel on several cards: each card's part is paid from its share of that card */

static bool go_to(CUstream stream)
{
	__typeof__(&cuCtxPushCurrent_v2) push = VGPU_REAL(cuCtxPushCurrent_v2);
	CUcontext context = vgpu_context_of_stream((uintptr_t)stream);

	return context && push && push(context) == CUDA_SUCCESS;
}

static void come_back(bool gone)
{
	__typeof__(&cuCtxPopCurrent_v2) pop = VGPU_REAL(cuCtxPopCurrent_v2);
	CUcontext context;

	if (gone && pop)
		pop(&context);
}

VGPU_EXPORT CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *parts,
							  unsigned int count, unsigned int flags)
{
	__typeof__(&cuLaunchCooperativeKernelMultiDevice) real =
		VGPU_REAL(cuLaunchCooperativeKernelMultiDevice);
	struct vgpu_launch launches[VGPU_MAX_CARDS];
	CUresult result;
	bool gone;

	if (!real)
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (!parts || count > VGPU_MAX_CARDS || !vgpu_pace_wanted())
		return real(parts, count, flags);
	for (unsigned int i = 0; i < count; i++) {
		const CUDA_LAUNCH_PARAMS *part = &parts[i];

		launches[i].paced = NULL;
		gone = go_to(part->hStream);
		if (gone)
			vgpu_pace_enter(&launches[i],
					key_of(part->function, part->gridDimX, part->gridDimY,
					       part->gridDimZ, part->blockDimX, part->blockDimY,
					       part->blockDimZ, part->sharedMemBytes),
					part->hStream, false);
		come_back(gone);
	}
	result = real(parts, count, flags);
	for (unsigned int i = 0; i < count; i++) {
		gone = go_to(parts[i].hStream);
		vgpu_pace_leave(&launches[i], result);
		come_back(gone);
	}
	return result;
}
