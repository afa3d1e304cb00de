/* SPDX-License-Identifier: Apache-2.0
 *
 * The grant file: what a container may use. ABI between the node (the only
 * writer) and libvgpu inside the container (a reader; the mount is read-only).
 *
 * Mounted as /run/vgpu/<claimUID>_<request>/grant, one per claim and request.
 * A card named by several grants has the sum of their limits.
 *
 * Rules of the format
 *  - little-endian, fixed width, no implicit padding; asserted below and,
 *    from Python, in tests/contract/test_abi.py;
 *  - abi_major changes when a reader of the old layout would be wrong; readers
 *    refuse a major they do not know;
 *  - abi_minor grows when a reserved field gets a meaning; zero in that field
 *    always means "as before", so any reader of the same major goes on working;
 *  - a field never moves and is never reused.
 *
 * Changing limits under a running program: the writer makes `sequence` odd,
 * stores the new values in place, and makes it even again. It never truncates,
 * renames over or grows the file: containers have it mapped. Only
 * memory_limit_bytes, cores_percent, the flags and, from 1.1 on, core_policy,
 * priority_plus_one, ceiling_percent and burst_ms may change; which cards are
 * granted, and in which order, is fixed for the life of the file.
 *
 * heartbeat changes every few seconds, outside the sequence, while the node lives. If it
 * has stayed the same for VGPU_HEARTBEAT_STALE_MS, what the node says of the moment (ALONE
 * here, the correction of charges in the region) counts as not said. It is here because
 * tenants cannot write here, and a count because their clocks may be others.
 */
#ifndef VGPU_GRANT_H
#define VGPU_GRANT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define VGPU_GRANT_MAGIC "VGPUGRNT" /* 8 bytes, no NUL */
#define VGPU_GRANT_ABI_MAJOR 1
/* 1: policy, priority, ceiling, burst, ALONE; 2: SPILL; 3: MPS; 4: heartbeat */
#define VGPU_GRANT_ABI_MINOR 4
#define VGPU_MAX_DEVICES 32
#define VGPU_UUID_SIZE 48

/* Device flag: apply no limit to this card (values are kept for display). */
#define VGPU_GRANT_CONTROL_DISABLED 1u
/* Device flag, live: nobody else uses the card just now. Lifts cores_percent, to the
 * ceiling if there is one; under VGPU_POLICY_FORCE only if there is one. */
#define VGPU_GRANT_ALONE 2u
/* Device flag, live: below the limit, what the card has no room for may be memory of the
 * host (managed memory). Without a limit, or with more than VGPU_SPILL_DEVICES devices, it
 * has no effect. */
#define VGPU_GRANT_SPILL 4u
/* Device flag: the node serves the card by MPS, so cores_percent may hold in space: what a
 * client's active thread percentage leaves it is not held back in time as well. */
#define VGPU_GRANT_MPS 8u

#define VGPU_HEARTBEAT_STALE_MS 10000u

/* When compute is limited: as HAMi's GPU_CORE_UTILIZATION_POLICY. */
#define VGPU_POLICY_DEFAULT 0u /* unless ALONE */
#define VGPU_POLICY_FORCE 1u   /* always */
#define VGPU_POLICY_DISABLE 2u /* never */

struct vgpu_grant_device {
	char uuid[VGPU_UUID_SIZE];   /* "GPU-8-4-4-4-12" or "MIG-...", NUL padded */
	uint64_t memory_limit_bytes; /* 0 = memory is not limited */
	uint32_t cores_percent;      /* 0 = compute is not limited */
	uint32_t flags;              /* VGPU_GRANT_... */
	char share_id[40];           /* the scheduler's share of the card, NUL padded */
	uint32_t core_policy;        /* VGPU_POLICY_... */
	uint32_t priority_plus_one;  /* HAMi's priority, 0 first; 0 here = not said */
	uint32_t ceiling_percent;    /* what ALONE raises cores_percent to; 0 = all */
	uint32_t burst_ms;           /* wall time that can be saved up; 0 = 10 */
	uint8_t reserved[8];         /* zero */
};

struct vgpu_grant {
	char magic[8];         /* VGPU_GRANT_MAGIC */
	uint16_t abi_major;    /* VGPU_GRANT_ABI_MAJOR */
	uint16_t abi_minor;    /* VGPU_GRANT_ABI_MINOR of the writer */
	uint32_t file_size;    /* sizeof(struct vgpu_grant) */
	uint64_t sequence;     /* odd while the node is rewriting values */
	uint32_t device_count; /* 1..VGPU_MAX_DEVICES records are valid */
	uint32_t flags;        /* zero */
	char claim_uid[64];    /* NUL padded */
	char request[64];      /* NUL padded */
	uint32_t heartbeat;    /* another value every few seconds; 0 = never */
	uint8_t reserved[92];  /* zero */
	struct vgpu_grant_device devices[VGPU_MAX_DEVICES];
};

static_assert(offsetof(struct vgpu_grant_device, uuid) == 0, "grant ABI");
static_assert(offsetof(struct vgpu_grant_device, memory_limit_bytes) == 48, "grant ABI");
static_assert(offsetof(struct vgpu_grant_device, cores_percent) == 56, "grant ABI");
static_assert(offsetof(struct vgpu_grant_device, flags) == 60, "grant ABI");
static_assert(offsetof(struct vgpu_grant_device, share_id) == 64, "grant ABI");
static_assert(offsetof(struct vgpu_grant_device, core_policy) == 104, "grant ABI");
static_assert(offsetof(struct vgpu_grant_device, priority_plus_one) == 108, "grant ABI");
static_assert(offsetof(struct vgpu_grant_device, ceiling_percent) == 112, "grant ABI");
static_assert(offsetof(struct vgpu_grant_device, burst_ms) == 116, "grant ABI");
static_assert(offsetof(struct vgpu_grant_device, reserved) == 120, "grant ABI");
static_assert(sizeof(struct vgpu_grant_device) == 128, "grant ABI");
static_assert(offsetof(struct vgpu_grant, magic) == 0, "grant ABI");
static_assert(offsetof(struct vgpu_grant, abi_major) == 8, "grant ABI");
static_assert(offsetof(struct vgpu_grant, abi_minor) == 10, "grant ABI");
static_assert(offsetof(struct vgpu_grant, file_size) == 12, "grant ABI");
static_assert(offsetof(struct vgpu_grant, sequence) == 16, "grant ABI");
static_assert(offsetof(struct vgpu_grant, device_count) == 24, "grant ABI");
static_assert(offsetof(struct vgpu_grant, flags) == 28, "grant ABI");
static_assert(offsetof(struct vgpu_grant, claim_uid) == 32, "grant ABI");
static_assert(offsetof(struct vgpu_grant, request) == 96, "grant ABI");
static_assert(offsetof(struct vgpu_grant, heartbeat) == 160, "grant ABI");
static_assert(offsetof(struct vgpu_grant, reserved) == 164, "grant ABI");
static_assert(offsetof(struct vgpu_grant, devices) == 256, "grant ABI");
static_assert(sizeof(struct vgpu_grant) == 4352, "grant ABI");

#endif
