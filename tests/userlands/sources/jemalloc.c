/* SPDX-License-Identifier: Apache-2.0 */
/* Linked with jemalloc: its malloc is in place before libvgpu is, and it hooks pthread_create
 * by dlsym(RTLD_NEXT). */
#include <jemalloc/jemalloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static void *churn(void *unused)
{
	for (int i = 1; i < 2000; i++)
		free(malloc((size_t)i * 17));
	return unused;
}

int main(void)
{
	unsigned int arenas = 0;
	size_t size = sizeof(arenas);
	pthread_t threads[4];

	for (int i = 0; i < 4; i++)
		if (pthread_create(&threads[i], NULL, churn, NULL))
			return 1;
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	printf("mallctl: %d, arenas: %d\n", mallctl("arenas.narenas", &arenas, &size, NULL, 0),
	       arenas > 0);
	return 0;
}
