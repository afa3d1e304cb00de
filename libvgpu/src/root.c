/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the grants are, and the pipes of the node's MPS daemon. Compiled twice: the
 * library that is shipped knows one fixed place each, because whoever may choose the place
 * may choose the limits; the one under test (VGPU_GRANT_ROOT_ENV) takes it from the
 * environment.
 */
#include <stdlib.h>

#include "vgpu.h"

#ifdef VGPU_GRANT_ROOT_ENV

const char *vgpu_grant_root(void)
{
	const char *root = getenv("VGPU_GRANT_ROOT");

	return root ? root : "/nonexistent";
}

const char *vgpu_mps_pipes(void)
{
	const char *pipes = getenv("VGPU_MPS_PIPES");

	return pipes ? pipes : "/nonexistent";
}

bool vgpu_grant_must_be_readonly(void)
{
	return getenv("VGPU_GRANT_READONLY") != NULL;
}

#else

const char *vgpu_grant_root(void)
{
	return "/run/vgpu";
}

const char *vgpu_mps_pipes(void)
{
	return "/run/nvidia-mps";
}

bool vgpu_grant_must_be_readonly(void)
{
	return true;
}

#endif
