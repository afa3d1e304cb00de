/* SPDX-License-Identifier: Apache-2.0
 *
 * The part of <stdatomic.h> that is used, on plain types: words in shared memory
 * and in this process are handled alike, and clang-tidy needs no compiler headers.
 */
#ifndef VGPU_ATOMICS_H
#define VGPU_ATOMICS_H

#define memory_order_relaxed __ATOMIC_RELAXED
#define memory_order_acquire __ATOMIC_ACQUIRE
#define memory_order_release __ATOMIC_RELEASE

#define atomic_load(word) __atomic_load_n(word, __ATOMIC_SEQ_CST)
#define atomic_load_explicit(word, order) __atomic_load_n(word, order)
#define atomic_store(word, value) __atomic_store_n(word, value, __ATOMIC_SEQ_CST)
#define atomic_store_explicit(word, value, order) __atomic_store_n(word, value, order)
#define atomic_exchange(word, value) __atomic_exchange_n(word, value, __ATOMIC_SEQ_CST)
#define atomic_exchange_explicit(word, value, order) __atomic_exchange_n(word, value, order)
#define atomic_compare_exchange_strong(word, expected, value)                                      \
	__atomic_compare_exchange_n(word, expected, value, false, __ATOMIC_SEQ_CST,                \
				    __ATOMIC_SEQ_CST)

#endif
