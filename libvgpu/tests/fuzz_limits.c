/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a limit: what is accepted is digits and one suffix, and is worth what
 * it says; everything else is refused. Links with -fsanitize=fuzzer as it is; without
 * it, main() below makes up inputs of its own. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool vgpu_parse_bytes(const char *text, uint64_t *bytes);
bool vgpu_parse_percent(const char *text, uint32_t *percent);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition, const char *text)
{
	if (condition)
		return;
	fprintf(stderr, "wrong about \"%s\"\n", text);
	abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1); /* of its exact size, for the address sanitizer */
	uint64_t bytes = 0;
	uint32_t percent = 0;
	size_t count;

	if (!text)
		return 0;
	if (size)
		memcpy(text, data, size);
	text[size] = 0;
	count = strspn(text, "0123456789");
	if (vgpu_parse_bytes(text, &bytes)) {
		const char *rest = text + count;
		char *end = NULL;
		unsigned long long digits = strtoull(text, &end, 10);
		uint64_t factor = !*rest                ? 1
				  : strchr("kK", *rest) ? 1 << 10
				  : strchr("mM", *rest) ? 1 << 20
							: 1 << 30;

		require(count && end == rest && strlen(rest) <= 1, text);
		require(!*rest || strchr("kKmMgG", *rest), text);
		require(bytes == digits * factor && bytes / factor == digits, text);
	}
	if (vgpu_parse_percent(text, &percent))
		require(count && !text[count] && percent < 100, text);
	free(text);
	return 0;
}

#ifndef VGPU_LIBFUZZER
#define ROUNDS 200000

int main(void)
{
	static const char likely[] = "0123456789kKmMgG -+x.%\n";
	uint64_t random = 20261121;
	uint8_t data[32];

	for (int round = 0; round < ROUNDS; round++) {
		size_t size;

		random = random * 6364136223846793005u + 1442695040888963407u;
		size = (random >> 33) % sizeof(data);
		for (size_t i = 0; i < size; i++) {
			random = random * 6364136223846793005u + 1442695040888963407u;
			data[i] = random >> 60
					  ? (uint8_t)likely[(random >> 33) %
							    ((random >> 62) ? 16 : sizeof(likely))]
					  : (uint8_t)(random >> 40);
		}
		LLVMFuzzerTestOneInput(data, size);
	}
	return 0;
}
#endif
