/* SPDX-License-Identifier: Apache-2.0
 *
 * What the simulated libcuda and libnvidia-ml have in common: the cards, as
 * cards.ini describes them, and who uses how much of them. The use is in a file
 * that all processes and containers map, so a card's memory really runs out.
 *
 * A process owns one record. An open-file-description lock says that it lives,
 * a POSIX lock in a second file tells its pid in the reader's PID namespace.
 */
#ifndef VGPU_SIM_STATE_H
#define VGPU_SIM_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_CARDS 16
#define SIM_INSTANCES 112 /* GPU instances of all cards together: seven of each */
#define SIM_COMPUTE 8     /* compute instances of one GPU instance */
/* What has memory of its own: the cards, then the GPU instances. */
#define SIM_UNITS (SIM_CARDS + SIM_INSTANCES)
#define SIM_PROCESSES 512
#define SIM_SHARED 1024
#define SIM_RING 32
#define SIM_BUCKET_NS 50000000u
#define SIM_LIMITS 128 /* memory limits of control groups, over all cards */
#define SIM_CGROUP 256

struct sim_faults { /* what cards.ini says of a card's health; may change under processes */
	bool hangs; /* no question to it is answered */
	bool no_memory_info; /* as cards that have no memory of their own */
	bool remap_failed;
	int recovery_action;
	uint64_t uncorrected_errors;
};

struct sim_card {
	struct sim_faults faults;
	char uuid[48];
	unsigned char uuid_bytes[16];
	char name[64];
	uint64_t memory;
	uint64_t context_overhead;
	uint64_t pitch;     /* rows of cuMemAllocPitch are multiples of this */
	uint64_t pool_step; /* and what pools take from the card, of this */
	bool managed_stays; /* no concurrentManagedAccess: managed memory cannot leave the card */
	bool managed_async; /* cuMemFreeAsync takes managed memory */
	int sm_count, numa_node, cc_major, cc_minor, minor, architecture, brand;
	unsigned int pci_domain, pci_bus, pci_device, pci_function;
	uint32_t nvlink; /* bit i: linked to card i */
	bool lost, mig;
	int mig_create_error, mig_destroy_error; /* NVML's codes, or 0 */
};

struct sim_config {
	char driver_version[32];
	char cgroup_root[SIM_CGROUP / 2]; /* "": the usual place */
	int cuda_version;
	int init_error;
	int card_count;
	uint64_t host_memory;             /* for managed memory that is not on a card; 0 = enough */
	struct sim_card cards[SIM_UNITS]; /* instances: those that this process has opened */
};

struct sim_use { /* of one card by one process */
	uint64_t used;
	uint64_t managed; /* the part of it that others can drive to the host */
	uint64_t on_host; /* managed memory that has no room on the card */
	uint32_t contexts;
	uint32_t pad;
	uint64_t busy_from, busy_until; /* CLOCK_MONOTONIC; the last run of kernels */
	struct {
		uint32_t id, ns;
	} ring[SIM_RING]; /* earlier ones, per bucket of time */
};

struct sim_process {
	uint32_t live, pid;
	uint32_t mps_client, pad;
	uint64_t pid_namespace;
	char cgroup[SIM_CGROUP]; /* when it first used a card; full path */
	struct sim_use cards[SIM_UNITS];
};

struct sim_shared {         /* memory that several processes may hold; counted once */
	uint64_t id, bytes; /* id 0: none */
	uint32_t card, maker;
	uint64_t holders[SIM_PROCESSES / 64];
};

struct sim_compute { /* a compute instance; its id is its place in the list */
	uint32_t live, profile, start, size;
};

struct sim_instance { /* a GPU instance; its unit is SIM_CARDS + its place in the list */
	uint32_t live, card, id, profile, start, size, serial, pad;
	struct sim_compute compute[SIM_COMPUTE];
};

struct sim_limit { /* of a control group on a card; see cgroups.c */
	uint32_t live;
	int32_t card;
	uint64_t soft, hard;
	char cgroup[SIM_CGROUP];
};

struct sim_state {
	uint64_t magic;
	uint64_t size;
	uint64_t peak[SIM_UNITS];      /* the most that was ever used */
	uint32_t mig_modes[SIM_CARDS]; /* 0: as cards.ini says, else 1 + the mode */
	struct sim_instance instances[SIM_INSTANCES];
	struct sim_limit limits[SIM_LIMITS];
	struct sim_process processes[SIM_PROCESSES];
	struct sim_shared shared[SIM_SHARED];
};

int sim_load(void); /* 0 or a negative errno; may be called often */
const struct sim_config *sim_config(void);
bool sim_lost(int card); /* re-reads cards.ini when it has changed */
struct sim_faults sim_faults_of(int card);
bool sim_visible(int card);
uint64_t sim_now_ns(void);
void sim_path(char *path, size_t size, const char *name);

extern bool sim_mps_client;              /* of the Multi-Process Service; since cuInit */
extern int (*sim_before_taking)(void);   /* NULL, or says why memory cannot be taken */
int sim_alloc(int card, uint64_t bytes); /* 0, -ENOMEM or another errno */
void sim_free(int card, uint64_t bytes);
/* Managed memory takes what room the card has, and the host's for the rest. */
int sim_alloc_managed(int card, uint64_t bytes);
void sim_free_managed(int card, uint64_t bytes);
int sim_context(int card, int change);
void sim_busy(int card, uint64_t from, uint64_t until);
/* busy.c, for what holds the lock over all processes */
void sim_note_busy(struct sim_use *use, uint64_t from, uint64_t until);
unsigned int sim_percent_of(const struct sim_use *use);

struct sim_usage {
	uint32_t pid;
	uint64_t used;
	unsigned int busy_percent;
	bool mps_client;
};
uint64_t sim_used(int card);
uint64_t sim_on_host(int card);
/* As a process of a limited control group is told. */
void sim_limit_figures(int card, uint64_t *total, uint64_t *available);
uint64_t sim_peak(int card);
unsigned int sim_busy_percent(int card);
/* The lock over all processes, and what it guards. */
int sim_enter(void);
uint64_t sim_waited_ns(void); /* for that lock, by this thread */
void sim_leave(int guard);
struct sim_state *sim_shared(void);
bool sim_in_use(int guard, int unit); /* between enter and leave */
struct sim_card *sim_open_unit(int unit);
int sim_self(int guard); /* this process's record; between enter and leave */
void sim_prune(int guard);
/* ---- holders.c */
void sim_drop_shared(struct sim_shared *shared);
void sim_forget_holder(unsigned int process);
uint64_t sim_shared_of(unsigned int process, int card); /* what shows with it */
uint64_t sim_shared_on(int card);
/* Living processes with a context on the card, as this PID namespace sees them. */
unsigned int sim_users(int card, struct sim_usage *users, unsigned int capacity);

#endif
