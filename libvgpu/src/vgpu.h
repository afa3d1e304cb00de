/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of libvgpu know of each other. Nothing here is exported.
 *
 * Rules that hold everywhere: nothing happens before the first cuInit or
 * nvmlInit; no thread, no signal handler, no umask, no exit; libpthread is not
 * used, because before glibc 2.34 it is a library of its own that a process may
 * not have loaded.
 */
#ifndef VGPU_VGPU_H
#define VGPU_VGPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "atomics.h"
#include "compute.h"
#include "cuda_api.h"
#include "hooks_gen.h"
#include "nvml_api.h"
#include "vgpu/grant.h"
#include "vgpu/region.h"

#define VGPU_EXPORT __attribute__((visibility("default")))
#define VGPU_ALWAYS_PLAIN __attribute__((no_sanitize("address", "undefined", "thread")))

/* ---- lock.c: a word that yields; held for nanoseconds, never over a driver call. And a
 * lock between processes, that ends with its holder */
struct vgpu_lock {
	int held;
};
void vgpu_lock(struct vgpu_lock *lock);
void vgpu_unlock(struct vgpu_lock *lock);
uint64_t vgpu_now_ns(void);
void vgpu_nap_us(unsigned int us);
void vgpu_wait_while(uint32_t *word, uint32_t value, unsigned int ns);
void vgpu_wake(uint32_t *word, int count);
bool vgpu_file_lock(int fd, off_t offset, uint32_t *turns);
void vgpu_file_unlock(int fd, off_t offset, uint32_t *turns);

/* ---- elf.c */
void *vgpu_elf_find(const char *const *sonames, const char *symbol);
/* Of the libraries that the program was started with, if they have it. */
void *vgpu_elf_find_at_start(const char *const *sonames, const char *symbol);

/* ---- hooks.c */
enum vgpu_library { VGPU_CUDA, VGPU_NVML };
struct vgpu_hook {
	const char *name;
	void *ours;
	int real; /* index into the real functions */
};
struct vgpu_variant {
	const char *base;
	const struct vgpu_hook *hook;
	int since;
	int ptsz;
};
struct vgpu_real_name {
	const char *name;
	enum vgpu_library library;
};
const struct vgpu_hook *vgpu_hook_find(const char *name);
const struct vgpu_variant *vgpu_variant_first(const char *base);
const struct vgpu_variant *vgpu_variant_next(const struct vgpu_variant *variant);
const struct vgpu_real_name *vgpu_real_name(int index);
const char *const *vgpu_library_sonames(enum vgpu_library library); /* NULL-terminated */

/* ---- real.c */
void *vgpu_real_at(int index);
void *vgpu_real_symbol(enum vgpu_library library, const char *name);
/* The driver's own function, typed as declared, or NULL if the driver has none. */
#define VGPU_REAL(function) ((__typeof__(&function))vgpu_real_at(VGPU_REAL_##function))

/* ---- log.c: one line on stderr when LIBCUDA_LOG_LEVEL >= level */
enum { VGPU_LOG_ERROR = 1, VGPU_LOG_WARN, VGPU_LOG_INFO, VGPU_LOG_DEBUG };
void vgpu_log(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- root.c: the one difference between the product and the library under test */
const char *vgpu_grant_root(void);
const char *vgpu_mps_pipes(void);
bool vgpu_grant_must_be_readonly(void);

/* ---- region.c, slots.c */
struct vgpu_view {
	struct vgpu_region *map;
	uint64_t instance;
	struct vgpu_region_slot *slot; /* ours, once claimed */
	struct vgpu_lock claim;
	int fd;       /* holds the slot's lock where a mapping cannot; else -1 */
	bool private; /* memory of this process alone */
	uint64_t last_repair_ns;
	char path[512];
};
void vgpu_region_attach(struct vgpu_view *view, const char *path, const struct vgpu_grant *grant);
int vgpu_region_open(const struct vgpu_view *view);
struct vgpu_region_slot *vgpu_slot_claim(struct vgpu_view *view);
void vgpu_slot_forget(struct vgpu_view *view);
uint64_t vgpu_pid_namespace(void);
void vgpu_region_repair(struct vgpu_view *view, uint64_t min_interval_ns);
void vgpu_region_settle(struct vgpu_view *view);

/* ---- grants.c */
#define VGPU_MAX_GRANTS 32
#define VGPU_MAX_CARDS 64
#define VGPU_MAX_PARTS 16
struct vgpu_part { /* what one grant gives of one card */
	const struct vgpu_grant *grant;
	struct vgpu_view *view;
	unsigned int index; /* of the device in grant and region */
	uint64_t limit;     /* last consistent value; UINT64_MAX = not limited */
	uint64_t rate;      /* likewise, packed */
	struct vgpu_renewed heartbeat;
};
struct vgpu_card {
	uint8_t uuid[16];
	unsigned int part_count;
	struct vgpu_part parts[VGPU_MAX_PARTS];
};
enum vgpu_state {
	VGPU_OFF,    /* no grant: every call goes to the driver untouched */
	VGPU_ON,     /* grants apply */
	VGPU_BROKEN, /* a grant cannot be read: the process gets no GPU */
};
struct vgpu_grants {
	enum vgpu_state state;
	unsigned int card_count, view_count;
	struct vgpu_card cards[VGPU_MAX_CARDS];
	struct vgpu_view views[VGPU_MAX_GRANTS];
};
void vgpu_grants_load(struct vgpu_grants *grants);
void vgpu_grants_add(struct vgpu_grants *grants, const struct vgpu_grant *grant, const char *path);
uint64_t vgpu_part_limit(struct vgpu_part *part);
struct vgpu_rate vgpu_part_rate(struct vgpu_part *part);
bool vgpu_part_node_lives(struct vgpu_part *part);
bool vgpu_part_spills(const struct vgpu_part *part);
bool vgpu_part_is_served(const struct vgpu_part *part); /* by MPS */
bool vgpu_uuid_parse(const char *text, size_t size, uint8_t uuid[16]);

/* ---- limits.c */
bool vgpu_parse_bytes(const char *text, uint64_t *bytes);
bool vgpu_parse_percent(const char *text, uint32_t *percent);

/* ---- environment.c */
bool vgpu_environment_read(void);
void vgpu_environment_apply(struct vgpu_grants *grants, enum vgpu_library library);
void vgpu_environment_forget_lock(void);

/* ---- init.c */
enum vgpu_state vgpu_init(void);
/* After the library's own start: limits of the environment need to know the cards. */
enum vgpu_state vgpu_started(enum vgpu_library library);
enum vgpu_state vgpu_state(void); /* VGPU_OFF before vgpu_init */
struct vgpu_grants *vgpu_grants(void);

/* ---- cards.c: the granted card behind a driver's handle, or NULL */
struct vgpu_card *vgpu_card_of_device(CUdevice device);
CUdevice vgpu_device_of_location(const CUmemLocation *location);
struct vgpu_card *vgpu_card_current(void);
struct vgpu_card *vgpu_card_of_nvml(nvmlDevice_t device);

/* ---- account.c: 0 or -ENOMEM */
int vgpu_reserve(struct vgpu_card *card, uint64_t bytes);
void vgpu_release(struct vgpu_card *card, uint64_t bytes);
void vgpu_give_back(struct vgpu_card *card, uint64_t bytes); /* not counted as a free */
void vgpu_count_anyway(struct vgpu_card *card, uint64_t bytes);
void vgpu_count_refused(struct vgpu_card *card);
void vgpu_count_driver_oom(struct vgpu_card *card);
void vgpu_count_unhooked(void);
/* false = the card is not limited; else its limit and what is used of it */
bool vgpu_card_usage(struct vgpu_card *card, uint64_t *limit, uint64_t *used);

/* ---- mps.c: what of a card MPS leaves this process */
uint32_t vgpu_mps_read(void); /* just before the driver's cuInit */
void vgpu_mps_started(uint32_t percent);
uint32_t vgpu_mps_percent(const struct vgpu_card *card);
bool vgpu_mps_is_shared(const struct vgpu_card *card);

/* ---- spill.c: when the card is full and the limit is not reached */
bool vgpu_card_spills(struct vgpu_card *card);
CUresult vgpu_spill(CUdeviceptr *pointer, size_t bytes);
void vgpu_count_spilled(struct vgpu_card *card, uint64_t bytes);
void vgpu_count_unspilled(struct vgpu_card *card, uint64_t bytes);

/* ---- pace.c: around everything that uses the card's time */
struct vgpu_paced;
struct vgpu_launch {
	struct vgpu_paced *paced; /* NULL: not limited, or not now */
	struct vgpu_bill bill;
	struct vgpu_ticket ticket;
	CUstream stream;
};
bool vgpu_pace_wanted(void);
void vgpu_pace_enter(struct vgpu_launch *launch, uint64_t key, CUstream stream, bool per_thread);
CUresult vgpu_pace_leave(struct vgpu_launch *launch, CUresult result);
void vgpu_pace_forget(uint64_t key);
void vgpu_pace_rename(uint64_t key, uint64_t new_key);
void vgpu_pace_context_ended(CUcontext context);
void vgpu_pace_forget_all(void);

/* ---- context.c: the device's primary context, once retained, or NULL */
CUcontext vgpu_primary_context(CUdevice device);

/* ---- mem_alloc.c */
struct vgpu_pointer;
CUcontext vgpu_current_context(void);
uint64_t vgpu_charge_of(uint64_t bytes);
int vgpu_try_charge(struct vgpu_card *card, uint64_t charge); /* 0 or -ENOMEM */
CUresult vgpu_charge(struct vgpu_card *card, uint64_t charge);
CUresult vgpu_refuse(struct vgpu_card *card, uint64_t charge);
void vgpu_pointer_freed(const struct vgpu_pointer *entry, uint64_t stream);
CUresult vgpu_charged(const struct vgpu_pointer *pointer, CUresult result);

/* ---- pointers.c: what each device pointer was charged */
enum vgpu_table {
	VGPU_POINTERS,
	VGPU_HANDLES, /* these three: see mem_virtual.c */
	VGPU_MAPPINGS,
	VGPU_ALLOCATIONS,
	VGPU_TILES,  /* see tiles.c */
	VGPU_ARRAYS, /* see arrays.c */
	VGPU_EXECS,  /* see graphs.c */
	VGPU_CHANGED_EXECS,
	VGPU_SHARES,   /* see shares.c */
	VGPU_OPENED,   /* memory of cuIpcOpenMemHandle, see ipc.c */
	VGPU_BINDINGS, /* see multicast.c */
	VGPU_CONTEXT_LIMITS,
	VGPU_TABLE_COUNT,
};
struct vgpu_pointer {
	uint64_t address; /* 0 = empty place */
	uint64_t bytes;
	CUcontext context;
	struct vgpu_card *card;
	uint64_t owner; /* of a pointer: its struct vgpu_pool */
	uint64_t count; /* of a pointer: bytes of it that spilled, all or none */
	uint64_t share; /* 0: no other process can have it */
};
int vgpu_pointer_add(enum vgpu_table table, const struct vgpu_pointer *pointer);
bool vgpu_pointer_take(enum vgpu_table table, uint64_t address, struct vgpu_pointer *pointer);
bool vgpu_pointer_find(enum vgpu_table table, uint64_t address, struct vgpu_pointer *pointer);
bool vgpu_pointer_find_around(enum vgpu_table table, uint64_t address,
			      struct vgpu_pointer *pointer);
bool vgpu_pointer_take_context(enum vgpu_table table, CUcontext context,
			       struct vgpu_pointer *pointer);
void vgpu_pointer_forget_all(void);

/* ---- pools.c: what pools of memory hold */
struct vgpu_pool;
enum vgpu_pool_kind {
	VGPU_MEMORY_POOL, /* by its handle */
	VGPU_GRAPH_POOL,  /* by its device */
	VGPU_NO_POOL,     /* memory that a stream is to free */
};
#define VGPU_ALL_STREAMS UINT64_MAX
#define VGPU_LEGACY_STREAM UINT64_C(1)
struct vgpu_pool *vgpu_pool_find(enum vgpu_pool_kind kind, uint64_t handle);
struct vgpu_pool *vgpu_pool_add(enum vgpu_pool_kind kind, uint64_t handle, CUdevice device);
struct vgpu_card *vgpu_pool_card(const struct vgpu_pool *pool);
CUdevice vgpu_pool_device(const struct vgpu_pool *pool);
CUresult vgpu_pool_enter(struct vgpu_pool *pool, uint64_t bytes, bool (*wait)(void *),
			 void *argument, uint64_t *reserved);
bool vgpu_pool_enter_again(struct vgpu_pool *pool, uint64_t generation);
uint64_t vgpu_pool_generation(const struct vgpu_pool *pool);
bool vgpu_pool_leave(struct vgpu_pool *pool, uint64_t reserved, unsigned int allocations,
		     bool failed);
void vgpu_pool_undo(struct vgpu_pool *pool);
void vgpu_pool_freed(struct vgpu_pool *pool, uint64_t stream);
void vgpu_pool_bury(struct vgpu_card *card, uint64_t bytes, uint64_t stream);
struct vgpu_pool *vgpu_pool_end(CUmemoryPool handle);
void vgpu_pool_ended(struct vgpu_pool *pool, bool success);
bool vgpu_pools_trim(const struct vgpu_card *card);
bool vgpu_pools_exist(void);
void vgpu_pools_synchronised(uint64_t stream, CUcontext context);
void vgpu_pools_device_ended(CUdevice device);
void vgpu_pools_forget_all(void);

/* ---- mem_async.c */
uint64_t vgpu_stream_name(CUstream stream, bool per_thread);
CUcontext vgpu_context_of_stream(uint64_t name);
void vgpu_pools_waited_for(uint64_t name);
int vgpu_capture_mode(int mode);

/* ---- graph_update.c */
uint64_t vgpu_graph_key(CUgraphExec exec);
void vgpu_graph_forget(CUgraphExec exec);

/* ---- mem_virtual.c */
void vgpu_virtual_forget_all(void);
/* Memory by handle, by a number of its own: 0 = not known. */
uint64_t vgpu_handle_hold(CUmemGenericAllocationHandle handle);
uint64_t vgpu_mapping_hold(CUdeviceptr pointer);
void vgpu_number_let_go(uint64_t number, uint64_t stream); /* 0: at once */
struct vgpu_card *vgpu_number_card(uint64_t number);
int vgpu_object_remember(CUmemGenericAllocationHandle handle);
void vgpu_object_is_multicast(CUmemGenericAllocationHandle handle);
/* ---- multicast.c */
void vgpu_bindings_forget(uint64_t object);
/* ---- ipc.c */
void vgpu_opened_forget(CUcontext context);
/* ---- tiles.c */
void vgpu_tiles_forget(uint64_t array);
void vgpu_tiles_forget_lock(void);

/* ---- context_limits.c */
void vgpu_context_limits_forget_lock(void);

/* ---- arrays.c */
void vgpu_array_gone(const struct vgpu_pointer *entry);

#endif
