/* SPDX-License-Identifier: Apache-2.0 */
/* The least that starts: for static programs, other C libraries and other word sizes. */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int status = 0;

	if (argc > 1)
		return 5;
	if (!fork()) {
		execl(argv[0], argv[0], "child", (char *)NULL);
		_exit(127);
	}
	wait(&status);
	printf("hello of %zu bits, child %d\n", sizeof(void *) * 8, WEXITSTATUS(status));
	return 0;
}
