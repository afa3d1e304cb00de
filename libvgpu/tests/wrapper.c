/* SPDX-License-Identifier: Apache-2.0 */
/* A library that wraps a libc function, as tracers and allocators do. */
#include <dlfcn.h>
#include <unistd.h>

void *wrapper_next_getppid(void);
void *wrapper_own_getppid(void);

__attribute__((visibility("default"))) pid_t getppid(void)
{
	return -1;
}

__attribute__((visibility("default"))) void *wrapper_next_getppid(void)
{
	/* volatile: this function must be the caller, not jump to dlsym itself. */
	void *volatile found = dlsym(RTLD_NEXT, "getppid");

	return found;
}

__attribute__((visibility("default"))) void *wrapper_own_getppid(void)
{
	void *volatile found = dlsym(RTLD_DEFAULT, "getppid");

	return found;
}
