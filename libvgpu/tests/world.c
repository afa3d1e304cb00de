/* SPDX-License-Identifier: Apache-2.0 */
#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char root[256];
static int owner;

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	(void)status, (void)kind, (void)walk;
	return remove(path);
}

static void clean(void)
{
	if (getpid() == owner)
		nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *world_path(const char *format, ...)
{
	static char paths[8][512];
	static unsigned int next;
	char *path = paths[next++ % 8];
	int used = snprintf(path, 512, "%s/", root);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(path + used, 512 - (size_t)used, format, arguments);
	va_end(arguments);
	return path;
}

void world_write(const char *path, const void *data, size_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

	CHECK(fd >= 0);
	CHECK(write(fd, data, size) == (ssize_t)size);
	close(fd);
}

static char cards[] = "driver_version = 580.95.05\ncuda_version = 13050\n"
		      "[card]\nuuid = " CARD_A "\nname = NVIDIA A100-SXM4-40GB\n"
		      "memory_mib = 40960\nsm_count = 108\npci = 0000:3b:00.0\n"
		      "minor = 0\nnvlink = 1\n"
		      "[card]\nuuid = " CARD_B "\nname = Tesla T4\n"
		      "memory_mib = 16384\nsm_count = 40\npci = 0000:86:00.0\n"
		      "minor = 1\nnuma_node = 1\ncompute_capability = 7.5\n"
		      "architecture = turing\nbrand = tesla\nnvlink = 0\n";

void world_driver(const char *cuda_version)
{
	char *at = strstr(cards, "cuda_version = ");

	CHECK(at && strlen(cuda_version) == 5);
	memcpy(at + strlen("cuda_version = "), cuda_version, 5);
	world_write(world_path("sim/cards.ini"), cards, sizeof(cards) - 1);
}

uint64_t world_setting(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : otherwise;
}

void world_last_card(const char *line)
{
	FILE *file = fopen(world_path("sim/cards.ini"), "ae");

	CHECK(file && fputs(line, file) >= 0 && fclose(file) == 0);
}

void world(void)
{
	const char *base = getenv("TMPDIR");

	snprintf(root, sizeof(root), "%s/vgpu-test-XXXXXX", base ? base : "/tmp");
	CHECK(mkdtemp(root));
	owner = getpid();
	atexit(clean);
	CHECK(mkdir(world_path("sim"), 0777) == 0);
	CHECK(mkdir(world_path("dev"), 0777) == 0);
	CHECK(mkdir(world_path("grants"), 0777) == 0);
	world_write(world_path("sim/cards.ini"), cards, sizeof(cards) - 1);
	world_write(world_path("dev/nvidia0"), "", 0);
	world_write(world_path("dev/nvidia1"), "", 0);
	setenv("VGPU_SIM_DIR", world_path("sim"), 1);
	setenv("VGPU_SIM_DEV", world_path("dev"), 1);
	setenv("VGPU_GRANT_ROOT", world_path("grants"), 1);
	unsetenv("CUDA_VISIBLE_DEVICES");
}

static void write_grant(const char *root_name, const char *name, const char *uuid, uint64_t mib,
			const char *uuid2, uint64_t mib2)
{
	struct vgpu_grant grant = {.abi_major = VGPU_GRANT_ABI_MAJOR,
				   .file_size = sizeof(grant),
				   .device_count = uuid2 ? 2 : 1};

	memcpy(grant.magic, VGPU_GRANT_MAGIC, sizeof(grant.magic));
	snprintf(grant.claim_uid, sizeof(grant.claim_uid), "%s", name);
	snprintf(grant.devices[0].uuid, VGPU_UUID_SIZE, "%s", uuid);
	grant.devices[0].memory_limit_bytes = mib * MIB;
	if (uuid2) {
		snprintf(grant.devices[1].uuid, VGPU_UUID_SIZE, "%s", uuid2);
		grant.devices[1].memory_limit_bytes = mib2 * MIB;
	}
	mkdir(world_path("%s", root_name), 0777);
	mkdir(world_path("%s/%s", root_name, name), 0777);
	mkdir(world_path("%s/%s/region", root_name, name), 0777);
	world_write(world_path("%s/%s/grant", root_name, name), &grant, sizeof(grant));
}

void world_grant(const char *name, const char *uuid, uint64_t mib, const char *uuid2, uint64_t mib2)
{
	write_grant("grants", name, uuid, mib, uuid2, mib2);
}

void world_grant_at(const char *directory, const char *name, const char *uuid, uint64_t mib)
{
	write_grant(directory, name, uuid, mib, NULL, 0);
}

void world_grant_both_at(const char *directory, const char *name, const char *uuid, uint64_t mib,
			 const char *uuid2, uint64_t mib2)
{
	write_grant(directory, name, uuid, mib, uuid2, mib2);
}

void world_set_flags(const char *grant, unsigned int device, uint32_t flags)
{
	int fd = open(world_path("grants/%s/grant", grant), O_WRONLY | O_CLOEXEC);
	off_t at = (off_t)(offsetof(struct vgpu_grant, devices) +
			   device * sizeof(struct vgpu_grant_device) +
			   offsetof(struct vgpu_grant_device, flags));

	CHECK(fd >= 0 && pwrite(fd, &flags, sizeof(flags), at) == (ssize_t)sizeof(flags));
	close(fd);
}

void world_set_compute(const char *name, uint32_t percent, uint32_t policy, uint32_t flags)
{
	FILE *file = fopen(world_path("grants/%s/grant", name), "r+e");
	struct vgpu_grant grant;

	CHECK(file && fread(&grant, sizeof(grant), 1, file) == 1);
	grant.devices[0].cores_percent = percent;
	grant.devices[0].core_policy = policy;
	grant.devices[0].flags = flags;
	CHECK(fseek(file, 0, SEEK_SET) == 0);
	CHECK(fwrite(&grant, sizeof(grant), 1, file) == 1);
	fclose(file);
}

struct vgpu_region *world_region(const char *name)
{
	int fd = open(world_path("grants/%s/region/region", name), O_RDWR | O_CLOEXEC);
	void *memory;

	CHECK(fd >= 0);
	memory = mmap(NULL, sizeof(struct vgpu_region), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(memory != MAP_FAILED);
	close(fd);
	return memory;
}

void use_gpu(void)
{
	CUcontext context;

	OK(cuInit(0));
	OK(cuDevicePrimaryCtxRetain(&context, 0));
	OK(cuCtxSetCurrent(context));
}

CUdeviceptr must_alloc(uint64_t mib)
{
	CUdeviceptr pointer = 0;

	OK(cuMemAlloc_v2(&pointer, mib * MIB));
	CHECK(pointer != 0);
	return pointer;
}

uint64_t card_used(int card)
{
	uint64_t used, peak;

	simCardUse(card, &used, &peak);
	return used;
}

uint64_t card_peak(int card)
{
	uint64_t used, peak;

	simCardUse(card, &used, &peak);
	return peak;
}

/* Of the leak sanitizer, if that is there: children do not come to its check at exit. */
void __lsan_do_leak_check(void) __attribute__((weak));

int start_child(void (*function)(void))
{
	int pid = fork();

	CHECK(pid >= 0);
	if (pid == 0) {
		/* A test that fails must not leave children that wait for ever. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		function();
		if (__lsan_do_leak_check)
			__lsan_do_leak_check();
		_Exit(0);
	}
	return pid;
}

int wait_child(int pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		CHECK(errno == EINTR);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int in_child(void (*function)(void))
{
	return wait_child(start_child(function));
}

void channel_open(struct channel *channel)
{
	CHECK(pipe(channel->up) == 0 && pipe(channel->down) == 0);
}

void channel_tell(int fd)
{
	CHECK(write(fd, "x", 1) == 1);
}

void channel_hear(int fd)
{
	char byte;

	CHECK(read(fd, &byte, 1) == 1);
}

static int wire[2];

void wire_open(void)
{
	OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, wire));
}

void wire_send(int fd)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	struct iovec byte = {"x", 1};
	struct msghdr message = {.msg_iov = &byte,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof(control)};

	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	IS(sendmsg(wire[1], &message, 0), 1);
}

int wire_receive(void)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	char place;
	struct iovec byte = {&place, 1};
	struct msghdr message = {.msg_iov = &byte,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof(control)};
	int fd;

	IS(recvmsg(wire[0], &message, 0), 1);
	memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
	return fd;
}

struct order {
	void (*function)(void);
	int pid, signal;
};
static int orders[2];

static int order(struct order what)
{
	int answer;

	IS(write(orders[1], &what, sizeof(what)), sizeof(what));
	IS(read(orders[1], &answer, sizeof(answer)), sizeof(answer));
	return answer;
}

static void obey(void)
{
	struct order what;
	int answer;

	while (read(orders[0], &what, sizeof(what)) == (ssize_t)sizeof(what)) {
		if (what.signal)
			kill(what.pid, what.signal);
		answer = what.function ? start_child(what.function) : wait_child(what.pid);
		IS(write(orders[0], &answer, sizeof(answer)), sizeof(answer));
	}
}

void starter_begin(void)
{
	OK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, orders));
	start_child(obey);
}

int starter_start(void (*function)(void))
{
	return order((struct order){function, 0, 0});
}

int starter_end(int pid, int signal)
{
	return order((struct order){NULL, pid, signal});
}

CUresult import_external(uint64_t bytes, uint64_t *piece)
{
	CUDA_EXTERNAL_MEMORY_HANDLE_DESC what = {.type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD,
						 .size = bytes};
	CUexternalMemory memory = NULL;
	CUresult result = cuImportExternalMemory(&memory, &what);

	CHECK(result == CUDA_SUCCESS || !memory);
	*piece = (uintptr_t)memory;
	return result;
}

CUresult drop_external(uint64_t piece)
{
	return cuDestroyExternalMemory((CUexternalMemory)(uintptr_t)piece);
}

CUresult launch_allocation(uint64_t bytes, uint64_t *piece)
{
	CUDA_MEM_ALLOC_NODE_PARAMS params = {
		.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
			      .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}},
		.bytesize = bytes};
	CUgraphNode node;
	CUgraphExec exec;
	CUgraph graph;
	CUresult result;

	OK(cuGraphCreate(&graph, 0));
	OK(cuGraphAddMemAllocNode(&node, graph, NULL, 0, &params));
	OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
	result = cuGraphLaunch(exec, NULL);
	OK(cuGraphExecDestroy(exec));
	OK(cuGraphDestroy(graph));
	*piece = params.dptr;
	return result;
}

CUresult free_and_trim(uint64_t piece)
{
	CUresult result = cuMemFree_v2(piece);

	return result ? result : cuDeviceGraphMemTrim(0);
}
