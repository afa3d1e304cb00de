/* SPDX-License-Identifier: Apache-2.0 */
/* Parallel loops before and after a fork; libgomp looks its functions up at its start. */
#include <omp.h>
#include <stdio.h>

int main(void)
{
	long sum = 0;
	int most = 0;

	omp_set_num_threads(4);
#pragma omp parallel for reduction(+ : sum) reduction(max : most)
	for (int i = 0; i < 100000; i++) {
		sum += i;
		most = omp_get_thread_num() > most ? omp_get_thread_num() : most;
	}
	printf("%ld by %d\n", sum, most + 1);
	return 0;
}
