/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "vgpu.h"

static int threshold(void)
{
	static int cached = -1;
	int level = atomic_load_explicit(&cached, memory_order_relaxed);

	if (level < 0) {
		const char *text = getenv("LIBCUDA_LOG_LEVEL");

		level = VGPU_LOG_ERROR;
		if (text && text[0] >= '0' && text[0] <= '4' && !text[1])
			level = text[0] - '0';
		atomic_store_explicit(&cached, level, memory_order_relaxed);
	}
	return level;
}

void vgpu_log(int level, const char *format, ...)
{
	static const char *const names[] = {"", "error", "warning", "info", "debug"};
	char line[1024];
	va_list arguments;
	int used, more;

	if (level > threshold())
		return;
	used = snprintf(line, sizeof(line), "[libvgpu %s %d] ", names[level], (int)getpid());
	va_start(arguments, format);
	more = vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, arguments);
	va_end(arguments);
	if (more < 0)
		return;
	used += more;
	if (used > (int)sizeof(line) - 2)
		used = (int)sizeof(line) - 2;
	line[used++] = '\n';
	/* One write, so that lines of several processes do not mix. */
	if (write(STDERR_FILENO, line, (size_t)used) < 0)
		return;
}
