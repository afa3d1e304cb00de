/* SPDX-License-Identifier: Apache-2.0
 *
 * What launches and events have to know of each other.
 */
#ifndef VGPU_SIM_WORK_H
#define VGPU_SIM_WORK_H

#include <stdint.h>

void sim_synchronise(const uint64_t *end); /* returns when it has passed; it may move meanwhile */

#endif
