/* SPDX-License-Identifier: Apache-2.0
 *
 * The first process of a pod: sleeps, reaps what is orphaned to it, ends on
 * SIGTERM and SIGINT. No C library, so that its image is this one file. Signals
 * are blocked and waited for, which needs no handler.
 */
#if defined(__x86_64__)
#define SYS_RT_SIGPROCMASK 14
#define SYS_WAIT4 61
#define SYS_EXIT_GROUP 231
#define SYS_RT_SIGTIMEDWAIT 128
#define START "xor %ebp, %ebp\nand $-16, %rsp\ncall pause_main\n"

static long call(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
#define SYS_RT_SIGPROCMASK 135
#define SYS_WAIT4 260
#define SYS_EXIT_GROUP 94
#define SYS_RT_SIGTIMEDWAIT 137
#define START "mov x29, #0\nmov x30, #0\nbl pause_main\n"

static long call(long number, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;

	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#else
#error "write the system call for this architecture"
#endif

#define BIT(signal) (1ul << ((signal) - 1))
#define SIGINT 2
#define SIGTERM 15
#define SIGCHLD 17
#define WNOHANG 1

__attribute__((used, noreturn)) void pause_main(void);

__asm__(".globl _start\n_start:\n" START);

void pause_main(void)
{
	unsigned long signals = BIT(SIGINT) | BIT(SIGTERM) | BIT(SIGCHLD);

	call(SYS_RT_SIGPROCMASK, 0, (long)&signals, 0, sizeof(signals));
	for (;;) {
		long signal = call(SYS_RT_SIGTIMEDWAIT, (long)&signals, 0, 0, sizeof(signals));

		if (signal == SIGINT || signal == SIGTERM)
			for (;;)
				call(SYS_EXIT_GROUP, 0, 0, 0, 0);
		while (call(SYS_WAIT4, -1, 0, WNOHANG, 0) > 0)
			;
	}
}
