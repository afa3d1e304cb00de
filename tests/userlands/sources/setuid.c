/* SPDX-License-Identifier: Apache-2.0 */
/* A program with the set-user-ID bit: the loader is in secure mode. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <unistd.h>

int main(void)
{
	printf("uid %d, effective %d, secure %lu, LD_LIBRARY_PATH %s\n", (int)getuid(),
	       (int)geteuid(), getauxval(AT_SECURE), getenv("LD_LIBRARY_PATH") ? "kept" : "gone");
	return 0;
}
