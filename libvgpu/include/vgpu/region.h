/* SPDX-License-Identifier: Apache-2.0
 *
 * The region file: what a container does use. ABI between all processes of a
 * claim's containers (libvgpu) and the node, which reads it for metrics and
 * writes the few words marked so. It is mounted read-write, therefore every
 * reader treats it as hostile: the tenant can write anything here. It can hurt
 * only itself; the limits are in the grant, which it cannot write.
 *
 * The file is <directory>/region, created by the first process that needs it
 * (a complete file is linked into place, so nobody sees half of one).
 *
 * Who is alive: a process holds an open-file-description write lock on the
 * first byte of its slot record as long as it lives. The kernel drops it at
 * death, whatever killed the process, and F_OFD_GETLK tells it across PID
 * namespaces, where a pid says nothing.
 *
 * What is true: the process slots. devices[d].used is their sum, kept so that
 * a reservation is one compare-and-swap against the limit. A process counts
 * itself into `inflight` around the two additions; whoever finds a slot whose
 * lock is gone takes the repair lock (byte 0 of the file), raises `gate`, waits
 * until no living slot is in flight, clears the dead slots, adds the sums up
 * again and lowers the gate. Each step may be cut short by SIGKILL: the next
 * one to want memory finds the gate up and the repair lock free, and repeats.
 *
 * The compute limit is one word per card, due_ns: until when everything that was
 * launched is paid for. A launch of c GPU nanoseconds under a limit L moves it on by
 * c / L in one compare-and-swap, so no death leaves it half changed and nothing has
 * to be repaired. See src/compute_bucket.c.
 *
 * Rules of the format are those of grant.h. Device i of the region is device i
 * of the grant.
 */
#ifndef VGPU_REGION_H
#define VGPU_REGION_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "vgpu/grant.h"

#define VGPU_REGION_MAGIC "VGPUREGN" /* 8 bytes, no NUL */
#define VGPU_REGION_ABI_MAJOR 1
/* 1: due_ns and what is counted about waiting; 2: what spilled to the host; 3: shares_turns;
 * 4: watched, long_ns */
#define VGPU_REGION_ABI_MINOR 4
#define VGPU_REGION_SLOTS 1024

/* A region of at most so many devices has room to say what spilled. */
#define VGPU_SPILL_DEVICES 16

#define VGPU_WAIT_CLASSES 6
#define VGPU_GATE_STALE_MS 2000u

#define VGPU_SLOT_FREE 0u
#define VGPU_SLOT_LIVE 1u

/* Frozen: readers of every major may rely on these 256 bytes. */
struct vgpu_region_header {
	char magic[8];         /* W creator: VGPU_REGION_MAGIC */
	uint16_t abi_major;    /* W creator */
	uint16_t abi_minor;    /* W creator */
	uint32_t file_size;    /* W creator: sizeof(struct vgpu_region) */
	uint32_t header_size;  /* W creator: 256 */
	uint32_t device_size;  /* W creator: sizeof(struct vgpu_region_device) */
	uint32_t slot_size;    /* W creator: sizeof(struct vgpu_region_slot) */
	uint32_t device_count; /* W creator: device records in use */
	uint32_t slot_count;   /* W creator: VGPU_REGION_SLOTS */
	uint32_t flags;        /* zero */
	uint64_t instance;     /* W creator: random; tells two files of one path apart */
	uint64_t created_ns;   /* W creator: CLOCK_REALTIME */
	uint8_t reserved0[64]; /* zero; `gate` gets its own cache line */
	uint32_t gate;         /* W repairer: not 0 while slots are added up; a futex */
	uint32_t repairs;      /* W repairer (atomic): how many looks; R node; a futex */
	uint32_t shares_turns; /* W libvgpu (atomic): uses of <region>.shares; a futex */
	uint8_t reserved[124]; /* zero */
};

struct vgpu_region_device {
	/* line 0: written once, read by everybody */
	char uuid[VGPU_UUID_SIZE]; /* W creator: as in the grant */
	uint64_t limit_bytes;      /* W libvgpu: last limit seen, for display only */
	uint64_t reserved0;
	/* line 1: accounting */
	uint64_t used_bytes;     /* W libvgpu (atomic): sum over the slots */
	uint64_t overhead_bytes; /* W node: contexts, modules, ... as seen by NVML */
	uint64_t peak_bytes;     /* W libvgpu: highest used_bytes seen */
	uint64_t long_ns;        /* W libvgpu (atomic): of busy_ns, what the correction is for */
	uint8_t reserved1[24];
	uint64_t spill_count; /* W libvgpu (atomic): allocations that went to the host; R node */
	/* line 2: compute limit */
	int64_t bucket_ns;       /* zero: two words cannot change at once; see due_ns */
	uint64_t last_refill_ns; /* zero */
	uint32_t trim_permille;  /* W node: correction of charged time; 0 = 1000 */
	uint32_t gate;           /* W node: not 0 holds launches back; a futex. Another value
				  * within VGPU_GATE_STALE_MS, or it is taken for left behind */
	uint64_t busy_ns;        /* W libvgpu (atomic): GPU nanoseconds charged so far */
	uint64_t due_ns;         /* W libvgpu (CAS): CLOCK_MONOTONIC; all is paid for by then */
	uint64_t throttled_ns;   /* W libvgpu (atomic): sum of what launches waited */
	uint32_t limit_permille; /* W libvgpu: last limit seen; 0 = none yet, 1000 = not limited */
	/* W node: 1 asks whether somebody launches; W libvgpu: 0 says so, and wakes the node */
	uint32_t watched;
	uint64_t known_ns; /* W libvgpu (CAS): CLOCK_MONOTONIC; first samples are charged so far */
	/* line 3: statistics */
	uint64_t alloc_count;      /* W libvgpu; R node */
	uint64_t free_count;       /* W libvgpu; R node */
	uint64_t oom_count;        /* W libvgpu: refusals by the limit; R node */
	uint64_t driver_oom_count; /* W libvgpu: refusals by the driver; R node */
	uint64_t unhooked_count;   /* W libvgpu: unknown variants handed out; R node */
	/* W libvgpu (atomic): launches that waited up to 100 us, 1, 10, 100 ms, 1 s, and
	 * longer; they wrap */
	uint32_t waits[VGPU_WAIT_CLASSES];
};

struct vgpu_region_slot {
	uint32_t state;         /* W owner LIVE, W repairer FREE */
	uint32_t inflight;      /* W owner (atomic): threads between two additions */
	uint32_t pid;           /* W owner: in its own PID namespace */
	uint32_t host_pid;      /* W node: 0 = not known yet */
	uint64_t start_time;    /* W owner: /proc/self/stat field 22 (clock ticks) */
	uint64_t pid_namespace; /* W owner: inode of /proc/self/ns/pid */
	uint8_t reserved[32];   /* zero */
	/* W owner (atomic); R everybody. Of the entries that no device needs, the last
	 * ones say how much of it the driver was given as managed memory because the
	 * card was full: entry VGPU_MAX_DEVICES - 1 - d for device d, in a region of at
	 * most VGPU_SPILL_DEVICES devices. So both end with the slot. */
	uint64_t used_bytes[VGPU_MAX_DEVICES];
};

struct vgpu_region {
	struct vgpu_region_header header;
	struct vgpu_region_device devices[VGPU_MAX_DEVICES];
	struct vgpu_region_slot slots[VGPU_REGION_SLOTS];
};

#define VGPU_REGION_AT(type, field, offset)                                                        \
	static_assert(offsetof(struct type, field) == (offset), "region ABI: " #type "." #field)
VGPU_REGION_AT(vgpu_region_header, magic, 0);
VGPU_REGION_AT(vgpu_region_header, abi_major, 8);
VGPU_REGION_AT(vgpu_region_header, abi_minor, 10);
VGPU_REGION_AT(vgpu_region_header, file_size, 12);
VGPU_REGION_AT(vgpu_region_header, header_size, 16);
VGPU_REGION_AT(vgpu_region_header, device_size, 20);
VGPU_REGION_AT(vgpu_region_header, slot_size, 24);
VGPU_REGION_AT(vgpu_region_header, device_count, 28);
VGPU_REGION_AT(vgpu_region_header, slot_count, 32);
VGPU_REGION_AT(vgpu_region_header, flags, 36);
VGPU_REGION_AT(vgpu_region_header, instance, 40);
VGPU_REGION_AT(vgpu_region_header, created_ns, 48);
VGPU_REGION_AT(vgpu_region_header, reserved0, 56);
VGPU_REGION_AT(vgpu_region_header, gate, 120);
VGPU_REGION_AT(vgpu_region_header, repairs, 124);
VGPU_REGION_AT(vgpu_region_header, shares_turns, 128);
VGPU_REGION_AT(vgpu_region_header, reserved, 132);
VGPU_REGION_AT(vgpu_region_device, uuid, 0);
VGPU_REGION_AT(vgpu_region_device, limit_bytes, 48);
VGPU_REGION_AT(vgpu_region_device, reserved0, 56);
VGPU_REGION_AT(vgpu_region_device, used_bytes, 64);
VGPU_REGION_AT(vgpu_region_device, overhead_bytes, 72);
VGPU_REGION_AT(vgpu_region_device, peak_bytes, 80);
VGPU_REGION_AT(vgpu_region_device, long_ns, 88);
VGPU_REGION_AT(vgpu_region_device, reserved1, 96);
VGPU_REGION_AT(vgpu_region_device, spill_count, 120);
VGPU_REGION_AT(vgpu_region_device, bucket_ns, 128);
VGPU_REGION_AT(vgpu_region_device, last_refill_ns, 136);
VGPU_REGION_AT(vgpu_region_device, trim_permille, 144);
VGPU_REGION_AT(vgpu_region_device, gate, 148);
VGPU_REGION_AT(vgpu_region_device, busy_ns, 152);
VGPU_REGION_AT(vgpu_region_device, due_ns, 160);
VGPU_REGION_AT(vgpu_region_device, throttled_ns, 168);
VGPU_REGION_AT(vgpu_region_device, limit_permille, 176);
VGPU_REGION_AT(vgpu_region_device, watched, 180);
VGPU_REGION_AT(vgpu_region_device, known_ns, 184);
VGPU_REGION_AT(vgpu_region_device, alloc_count, 192);
VGPU_REGION_AT(vgpu_region_device, free_count, 200);
VGPU_REGION_AT(vgpu_region_device, oom_count, 208);
VGPU_REGION_AT(vgpu_region_device, driver_oom_count, 216);
VGPU_REGION_AT(vgpu_region_device, unhooked_count, 224);
VGPU_REGION_AT(vgpu_region_device, waits, 232);
VGPU_REGION_AT(vgpu_region_slot, state, 0);
VGPU_REGION_AT(vgpu_region_slot, inflight, 4);
VGPU_REGION_AT(vgpu_region_slot, pid, 8);
VGPU_REGION_AT(vgpu_region_slot, host_pid, 12);
VGPU_REGION_AT(vgpu_region_slot, start_time, 16);
VGPU_REGION_AT(vgpu_region_slot, pid_namespace, 24);
VGPU_REGION_AT(vgpu_region_slot, reserved, 32);
VGPU_REGION_AT(vgpu_region_slot, used_bytes, 64);
VGPU_REGION_AT(vgpu_region, header, 0);
VGPU_REGION_AT(vgpu_region, devices, 256);
VGPU_REGION_AT(vgpu_region, slots, 8448);
#undef VGPU_REGION_AT
static_assert(sizeof(struct vgpu_region_header) == 256, "region ABI");
static_assert(sizeof(struct vgpu_region_device) == 256, "region ABI");
static_assert(sizeof(struct vgpu_region_slot) == 320, "region ABI");
static_assert(sizeof(struct vgpu_region) == 336128, "region ABI");
static_assert(2 * VGPU_SPILL_DEVICES <= VGPU_MAX_DEVICES, "region ABI");

#endif
