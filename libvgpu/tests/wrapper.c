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
	return dlsym(RTLD_NEXT, "getppid");
}

__attribute__((visibility("default"))) void *wrapper_own_getppid(void)
{
	return dlsym(RTLD_DEFAULT, "getppid");
}
