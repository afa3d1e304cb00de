/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that several processes hold: see shares.c.
 */
#ifndef VGPU_SHARES_H
#define VGPU_SHARES_H

#include "vgpu.h"

enum vgpu_share_kind {
	VGPU_SHARE_HANDLE = 1, /* the 64 bytes of cuIpcGetMemHandle */
	VGPU_SHARE_POINTER,    /* and those of cuMemPoolExportPointer */
	VGPU_SHARE_DESCRIPTOR, /* of cuMemExportToShareableHandle: see descriptors.c */
};
struct vgpu_share_name {
	enum vgpu_share_kind kind;
	uint8_t bytes[64];
};

#define VGPU_SHARE_TAKEN 1u   /* somebody has opened it */
#define VGPU_SHARE_POOLED 2u  /* while its maker lives, it is in the charge of a pool */
#define VGPU_SHARE_FOREIGN 4u /* nobody of the grant made it */

int vgpu_descriptor_name(struct vgpu_share_name *name, int fd);
bool vgpu_descriptor_tag(const struct vgpu_share_name *name, int fd);
bool vgpu_descriptor_new_name(struct vgpu_share_name *name, int fd);

uint64_t vgpu_share_find(const struct vgpu_share_name *name);
uint64_t vgpu_share_add(const struct vgpu_share_name *name, struct vgpu_card *card, uint64_t bytes,
			uint32_t flags, bool *paid);
void vgpu_share_tag(uint64_t id, int descriptor);
uint64_t vgpu_share_owes(uint64_t id, uint64_t bytes, uint64_t charged, bool *accepted);
uint64_t vgpu_share_leave(uint64_t id);
int vgpu_shares_enter(struct vgpu_view *view);
void vgpu_shares_leave(struct vgpu_view *view, int fd);
void vgpu_shares_settle(struct vgpu_view *view, int fd, const bool *dead);
void vgpu_shares_forget_all(void);

#endif
