/* SPDX-License-Identifier: Apache-2.0
 *
 * How limits are written in environment variables: "3000m". Strict, since a limit
 * that was meant must not be taken for none.
 */
#include "vgpu.h"

static bool digits(const char **text, uint64_t *value)
{
	const char *c = *text;

	*value = 0;
	for (; *c >= '0' && *c <= '9'; c++) {
		uint64_t digit = (uint64_t)(*c - '0');

		if (*value > (UINT64_MAX - digit) / 10)
			return false;
		*value = *value * 10 + digit;
	}
	if (c == *text)
		return false;
	*text = c;
	return true;
}

static unsigned int shift_of(char suffix)
{
	switch (suffix) {
	case 'k':
	case 'K':
		return 10;
	case 'm':
	case 'M':
		return 20;
	case 'g':
	case 'G':
		return 30;
	default:
		return 0;
	}
}

/* Decimal digits, then at most one of k, m and g (1024-based), and nothing else. */
bool vgpu_parse_bytes(const char *text, uint64_t *bytes)
{
	unsigned int shift;

	if (!digits(&text, bytes))
		return false;
	shift = shift_of(*text);
	if (shift)
		text++;
	if (*text || *bytes > UINT64_MAX >> shift)
		return false;
	*bytes <<= shift;
	return true;
}

/* Decimal digits and nothing else. 0 = compute is not limited; so is 100 and more. */
bool vgpu_parse_percent(const char *text, uint32_t *percent)
{
	uint64_t value;

	if (!digits(&text, &value) || *text)
		return false;
	*percent = value < 100 ? (uint32_t)value : 0;
	return true;
}
