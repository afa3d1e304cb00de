/* SPDX-License-Identifier: Apache-2.0 */
/* What programs do with processes, threads, descriptors and dlsym. Prints what it saw. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 8

static int ended(pid_t child)
{
	int status = 0;

	if (child < 0 || waitpid(child, &status, 0) != child)
		return -1;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void *count(void *argument)
{
	char *text = malloc(64);

	snprintf(text, 64, "%d", *(int *)argument);
	*(int *)argument += atoi(text);
	free(text);
	return NULL;
}

static void threads(void)
{
	pthread_t thread[THREADS];
	int numbers[THREADS], sum = 0;

	for (int i = 0; i < THREADS; i++) {
		numbers[i] = i;
		if (pthread_create(&thread[i], NULL, count, &numbers[i]))
			abort();
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(thread[i], NULL);
		sum += numbers[i];
	}
	printf("threads: %d\n", sum);
}

static void lookups(void)
{
	void *library = dlopen("libm.so.6", RTLD_NOW);
	double (*root)(double) = library ? (double (*)(double))dlsym(library, "sqrt") : NULL;
	const char *error;

	printf("sqrt: %.0f\n", root ? root(81) : -1.0);
	dlerror();
	printf("missing: %d\n", dlsym(RTLD_DEFAULT, "no_such_function_here") == NULL);
	error = dlerror();
	printf("dlerror: %s\n", error && strstr(error, "no_such_function_here") ? "named" : "lost");
	printf("dlerror again: %d\n", dlerror() == NULL);
#ifdef __GLIBC__
	printf("dlvsym: %d\n", dlvsym(RTLD_DEFAULT, "strlen", "GLIBC_2.2.5") != NULL);
#endif
	errno = ENOTTY;
	dlsym(RTLD_NEXT, "malloc");
	printf("errno: %d\n", errno);
	if (library)
		printf("dlclose: %d\n", dlclose(library));
	printf("driver: %d\n", dlsym(RTLD_DEFAULT, "cuInit") == NULL);
}

int main(int argc, char **argv)
{
	char *const empty[] = {NULL};
	char *const again[] = {argv[0], "child", NULL};
	pid_t child;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1) {
		threads();
		return 7;
	}
	threads();
	lookups();
	child = fork();
	if (!child) {
		threads();
		_exit(3);
	}
	printf("fork: %d\n", ended(child));
	child = vfork();
	if (!child) {
		execve(argv[0], again, empty);
		_exit(127);
	}
	printf("vfork and exec without environment: %d\n", ended(child));
	if (posix_spawn(&child, argv[0], NULL, NULL, again, empty))
		return 1;
	printf("posix_spawn: %d\n", ended(child));
	child = fork();
	if (!child) {
		for (int fd = 3; fd < 1024; fd++)
			close(fd);
		execve(argv[0], again, empty);
		_exit(127);
	}
	printf("all descriptors closed: %d\n", ended(child));
	child = fork();
	if (!child)
		raise(SIGSEGV);
	printf("killed: %d\n", ended(child));
	for (int fd = 3; fd < 64; fd++)
		if (fcntl(fd, F_GETFD) != -1)
			printf("open: %d\n", fd);
	return 0;
}
