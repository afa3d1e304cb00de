/* SPDX-License-Identifier: Apache-2.0 */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cgroups.h"
#include "config.h"
#include "managed.h"

#define MAGIC UINT64_C(0x3230545355504753)
#define LOCK_BYTE 0
#define PROCESS_BYTE 4096

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct sim_config config;
static struct timespec config_time;
static uint64_t config_checked_ns;
static bool loaded, atfork_set;
static struct sim_state *state;
static struct sim_process *self;
bool sim_mps_client;
static int self_fd = -1, pids_fd = -1;
static __thread uint64_t waited_ns;
int (*sim_before_taking)(void);

void sim_path(char *path, size_t size, const char *name)
{
	const char *directory = getenv("VGPU_SIM_DIR");

	snprintf(path, size, "%s/%s", directory ? directory : "/run/vgpu-sim", name);
}

uint64_t sim_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int open_file(const char *name)
{
	char path[512];
	int fd;

	sim_path(path, sizeof(path), name);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	if (fd < 0)
		return -errno;
	if (fchmod(fd, 0666) != 0 && errno != EPERM) {
		int error = errno;

		close(fd);
		return -error;
	}
	return fd;
}

static int lock(int fd, int command, short type, off_t start, struct flock *answer)
{
	struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = 1};
	int result;

	do
		result = fcntl(fd, command, &range);
	while (result != 0 && errno == EINTR);
	if (answer)
		*answer = range;
	return result == 0 ? 0 : -errno;
}

/* The lock over all processes lasts as long as the descriptor it returns. */
static int enter(void)
{
	int fd = open_file("state");
	uint64_t from = sim_now_ns();

	if (fd >= 0)
		lock(fd, F_OFD_SETLKW, F_WRLCK, LOCK_BYTE, NULL);
	waited_ns += sim_now_ns() - from;
	return fd;
}

uint64_t sim_waited_ns(void)
{
	return waited_ns;
}

static void after_fork_in_child(void)
{
	/* The parent's record stays the parent's. */
	pthread_mutex_init(&mutex, NULL);
	self = NULL;
	if (self_fd >= 0)
		close(self_fd);
	self_fd = -1;
}

static int map_state(void)
{
	int guard = enter(), fd, result = 0;
	void *memory;

	if (guard < 0)
		return guard;
	/* Not the descriptor with the lock: a mapping would keep that locked. */
	fd = open_file("state");
	if (fd < 0) {
		close(guard);
		return fd;
	}
	if (lseek(fd, 0, SEEK_END) < (off_t)sizeof(struct sim_state) &&
	    ftruncate(fd, sizeof(struct sim_state)) != 0)
		result = -errno;
	memory = result ? MAP_FAILED
			: mmap(NULL, sizeof(struct sim_state), PROT_READ | PROT_WRITE, MAP_SHARED,
			       fd, 0);
	if (memory == MAP_FAILED) {
		result = result ? result : -errno;
	} else {
		state = memory;
		if (state->magic != MAGIC || state->size != sizeof(struct sim_state)) {
			memset(state, 0, sizeof(*state));
			state->size = sizeof(struct sim_state);
			state->magic = MAGIC;
		}
	}
	close(fd);
	close(guard);
	return result;
}

/* Takes over what may change under running processes: the cards' health, what room
 * managed memory has, and whether NVML initialises (a driver can be loaded later). */
static void refresh(void)
{
	struct sim_config fresh;
	struct stat status;
	char path[512];

	config_checked_ns = sim_now_ns();
	sim_path(path, sizeof(path), "cards.ini");
	if (stat(path, &status) != 0 ||
	    memcmp(&status.st_mtim, &config_time, sizeof(config_time)) == 0 ||
	    sim_config_read(path, &fresh) != 0 || fresh.card_count != config.card_count)
		return;
	config_time = status.st_mtim;
	config.init_error = fresh.init_error;
	config.host_memory = fresh.host_memory;
	for (int i = 0; i < config.card_count; i++) {
		config.cards[i].lost = fresh.cards[i].lost;
		config.cards[i].managed_stays = fresh.cards[i].managed_stays;
		config.cards[i].faults = fresh.cards[i].faults;
		config.cards[i].mig_create_error = fresh.cards[i].mig_create_error;
		config.cards[i].mig_destroy_error = fresh.cards[i].mig_destroy_error;
	}
}

int sim_load(void)
{
	char path[512];
	struct stat status;
	int result = 0;

	pthread_mutex_lock(&mutex);
	if (!loaded) {
		sim_path(path, sizeof(path), "cards.ini");
		result = sim_config_read(path, &config);
		if (result == 0 && stat(path, &status) == 0)
			config_time = status.st_mtim;
		if (result == 0)
			result = map_state();
		if (result == 0 && !atfork_set) {
			atfork_set = true;
			pthread_atfork(NULL, NULL, after_fork_in_child);
		}
		loaded = result == 0;
	} else {
		refresh();
	}
	pthread_mutex_unlock(&mutex);
	return result;
}

const struct sim_config *sim_config(void)
{
	return &config;
}

bool sim_lost(int card)
{
	bool lost;

	pthread_mutex_lock(&mutex);
	if (sim_now_ns() - config_checked_ns > 10000000u)
		refresh();
	if (card >= SIM_CARDS)
		card = (int)state->instances[card - SIM_CARDS].card;
	lost = config.cards[card].lost;
	pthread_mutex_unlock(&mutex);
	return lost;
}

struct sim_faults sim_faults_of(int card)
{
	struct sim_faults faults;

	pthread_mutex_lock(&mutex);
	if (sim_now_ns() - config_checked_ns > 10000000u)
		refresh();
	faults = config.cards[card].faults;
	pthread_mutex_unlock(&mutex);
	return faults;
}

bool sim_visible(int card)
{
	const char *directory = getenv("VGPU_SIM_DEV");
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/nvidia%d", directory ? directory : "/dev",
		 config.cards[card].minor);
	fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return false;
	close(fd);
	return true;
}

static uint64_t pid_namespace(void)
{
	char text[64];
	ssize_t size = readlink("/proc/self/ns/pid", text, sizeof(text) - 1);

	if (size < 6)
		return 0;
	text[size] = 0;
	return strtoull(text + 5, NULL, 10);
}

static bool alive(int fd, unsigned int index)
{
	struct flock answer = {.l_type = F_WRLCK};

	if (self == &state->processes[index])
		return true;
	return lock(fd, F_OFD_GETLK, F_WRLCK, PROCESS_BYTE + (off_t)index, &answer) != 0 ||
	       answer.l_type != F_UNLCK;
}

static void prune(int fd)
{
	for (unsigned int i = 0; i < SIM_PROCESSES; i++)
		if (state->processes[i].live && !alive(fd, i)) {
			sim_forget_holder(i);
			memset(&state->processes[i], 0, sizeof(state->processes[i]));
		}
}

static int join(int fd)
{
	unsigned int index = 0;
	void *page;
	int high;

	if (self)
		return 0;
	prune(fd);
	while (index < SIM_PROCESSES && state->processes[index].live)
		index++;
	if (index == SIM_PROCESSES)
		return -ENOSPC;
	self_fd = open_file("state");
	if (self_fd < 0)
		return self_fd;
	high = fcntl(self_fd, F_DUPFD_CLOEXEC, 600);
	if (high >= 0) {
		close(self_fd);
		self_fd = high;
	}
	if (lock(self_fd, F_OFD_SETLK, F_WRLCK, PROCESS_BYTE + (off_t)index, NULL) != 0)
		return -EBUSY;
	/* The mapping keeps the lock if the program closes every descriptor. */
	page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, self_fd, 0);
	if (page != MAP_FAILED)
		madvise(page, 4096, MADV_DONTFORK);
	if (pids_fd < 0)
		pids_fd = open_file("pids");
	if (pids_fd >= 0)
		lock(pids_fd, F_SETLK, F_WRLCK, (off_t)index, NULL);
	self = &state->processes[index];
	memset(self, 0, sizeof(*self));
	self->pid = (uint32_t)getpid();
	self->pid_namespace = pid_namespace();
	self->mps_client = sim_mps_client;
	sim_cgroup_of_self(self->cgroup);
	self->live = 1;
	return 0;
}

static uint64_t sum(int card)
{
	uint64_t used = 0;

	for (unsigned int i = 0; i < SIM_PROCESSES; i++)
		if (state->processes[i].live)
			used += state->processes[i].cards[card].used;
	used += sim_shared_on(card);
	return used;
}

/* The dead are not counted: their memory was free before anybody looked. */
static void note_peak(int fd, int card)
{
	if (sum(card) > state->peak[card])
		prune(fd);
	if (sum(card) > state->peak[card])
		state->peak[card] = sum(card);
}

/* Enters, joins if asked to, runs the change, leaves. */
static int change(int card, int64_t bytes, int contexts)
{
	struct sim_use *use;
	int fd, result;

	result = bytes > 0 && sim_before_taking ? sim_before_taking() : 0;
	if (result != 0)
		return result;
	pthread_mutex_lock(&mutex);
	fd = enter();
	if (fd < 0) {
		pthread_mutex_unlock(&mutex);
		return fd;
	}
	result = join(fd);
	if (result == 0) {
		use = &self->cards[card];
		if (contexts > 0 && use->contexts == 0)
			bytes += (int64_t)config.cards[card].context_overhead;
		if (contexts < 0 && use->contexts == 1)
			bytes -= (int64_t)config.cards[card].context_overhead;
		if (bytes > 0 && sum(card) + (uint64_t)bytes > config.cards[card].memory)
			prune(fd);
		if (bytes > 0 && sum(card) + (uint64_t)bytes > config.cards[card].memory)
			sim_drive_out(state, &config, card,
				      sum(card) + (uint64_t)bytes - config.cards[card].memory);
		if (bytes > 0 && (sum(card) + (uint64_t)bytes > config.cards[card].memory ||
				  (uint64_t)bytes > sim_cgroup_room(state, self->cgroup, card))) {
			result = -ENOMEM;
		} else {
			use->used = bytes < 0 && use->used < (uint64_t)-bytes
					    ? 0
					    : use->used + (uint64_t)bytes;
			use->contexts += (uint32_t)contexts;
			if (bytes > 0)
				note_peak(fd, card);
		}
	}
	close(fd);
	pthread_mutex_unlock(&mutex);
	return result;
}

static int change_managed(int card, int64_t bytes)
{
	uint64_t used;
	int fd, result;

	result = bytes > 0 && sim_before_taking ? sim_before_taking() : 0;
	if (result != 0)
		return result;
	pthread_mutex_lock(&mutex);
	fd = enter();
	result = fd < 0 ? fd : join(fd);
	if (result == 0 && bytes < 0) {
		sim_managed_give(&self->cards[card], (uint64_t)-bytes);
	} else if (result == 0) {
		prune(fd);
		used = sum(card);
		result = sim_managed_take(
			state, &config, &self->cards[card], (uint64_t)bytes,
			used < config.cards[card].memory ? config.cards[card].memory - used : 0);
		note_peak(fd, card);
	}
	if (fd >= 0)
		close(fd);
	pthread_mutex_unlock(&mutex);
	return result;
}

int sim_enter(void)
{
	int fd;

	pthread_mutex_lock(&mutex);
	if (sim_now_ns() - config_checked_ns > 10000000u)
		refresh();
	fd = enter();
	if (fd < 0)
		pthread_mutex_unlock(&mutex);
	return fd;
}

void sim_leave(int guard)
{
	close(guard);
	pthread_mutex_unlock(&mutex);
}

struct sim_state *sim_shared(void)
{
	return state;
}

bool sim_in_use(int guard, int unit)
{
	prune(guard);
	for (unsigned int i = 0; i < SIM_PROCESSES; i++)
		if (state->processes[i].live && state->processes[i].cards[unit].contexts)
			return true;
	return false;
}

int sim_self(int guard)
{
	int result = join(guard);

	return result == 0 ? (int)(self - state->processes) : result;
}

void sim_prune(int guard)
{
	prune(guard);
}

/* Where this process keeps what it knows of a GPU instance. */
struct sim_card *sim_open_unit(int unit)
{
	return &config.cards[unit];
}

int sim_alloc(int card, uint64_t bytes)
{
	return bytes > INT64_MAX / 2 ? -ENOMEM : change(card, (int64_t)bytes, 0);
}

void sim_free(int card, uint64_t bytes)
{
	change(card, -(int64_t)bytes, 0);
}

int sim_alloc_managed(int card, uint64_t bytes)
{
	return bytes > INT64_MAX / 2 ? -ENOMEM : change_managed(card, (int64_t)bytes);
}

void sim_free_managed(int card, uint64_t bytes)
{
	change_managed(card, -(int64_t)bytes);
}

uint64_t sim_on_host(int card)
{
	uint64_t bytes = 0;
	int fd = sim_enter();

	if (fd >= 0) {
		prune(fd);
		bytes = sim_sum_on_host(state, card);
		sim_leave(fd);
	}
	return bytes;
}

int sim_context(int card, int contexts)
{
	return change(card, 0, contexts);
}

uint64_t sim_peak(int card)
{
	uint64_t peak;
	int fd;

	pthread_mutex_lock(&mutex);
	fd = enter();
	peak = state->peak[card];
	if (fd >= 0)
		close(fd);
	pthread_mutex_unlock(&mutex);
	return peak;
}

void sim_busy(int card, uint64_t from, uint64_t until)
{
	struct sim_use *use;

	pthread_mutex_lock(&mutex);
	if (self) {
		use = &self->cards[card];
		if (from > use->busy_until) {
			sim_note_busy(use, use->busy_from, use->busy_until);
			use->busy_from = from;
		}
		if (until > use->busy_until)
			use->busy_until = until;
	}
	pthread_mutex_unlock(&mutex);
}

/* Adds up and lists the living users of a card. */
static unsigned int census(int card, struct sim_usage *users, unsigned int capacity, uint64_t *used,
			   unsigned int *busy)
{
	unsigned int count = 0;
	uint64_t here = pid_namespace();
	int fd;

	pthread_mutex_lock(&mutex);
	fd = enter();
	if (fd >= 0)
		prune(fd);
	if (pids_fd < 0)
		pids_fd = open_file("pids");
	for (unsigned int i = 0; i < SIM_PROCESSES; i++) {
		struct sim_process *process = &state->processes[i];
		struct sim_use *use = &process->cards[card];
		struct flock answer = {.l_type = F_UNLCK};
		uint64_t bytes = use->used;
		uint32_t pid = 0;

		if (!process->live)
			continue;
		bytes += sim_shared_of(i, card);
		*used += bytes;
		*busy += sim_percent_of(use);
		if (!use->contexts)
			continue;
		if (process->pid_namespace == here)
			pid = process->pid;
		else if (lock(pids_fd, F_GETLK, F_WRLCK, (off_t)i, &answer) == 0 &&
			 answer.l_type != F_UNLCK && answer.l_pid > 0)
			pid = (uint32_t)answer.l_pid;
		if (!pid)
			continue; /* not to be seen from this namespace */
		if (users && count < capacity)
			users[count] = (struct sim_usage){pid, bytes, sim_percent_of(use),
							  process->mps_client != 0};
		count++;
	}
	if (fd >= 0)
		close(fd);
	pthread_mutex_unlock(&mutex);
	return count;
}

uint64_t sim_used(int card)
{
	uint64_t used = 0;
	unsigned int busy = 0;

	census(card, NULL, 0, &used, &busy);
	return used;
}

unsigned int sim_busy_percent(int card)
{
	uint64_t used = 0;
	unsigned int busy = 0;

	census(card, NULL, 0, &used, &busy);
	return busy > 100 ? 100 : busy;
}

unsigned int sim_users(int card, struct sim_usage *users, unsigned int capacity)
{
	uint64_t used = 0;
	unsigned int busy = 0;

	return census(card, users, capacity, &used, &busy);
}
