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
