/* SPDX-License-Identifier: Apache-2.0
 *
 * What the Multi-Process Service does to a simulated process.
 */
#ifndef VGPU_SIM_MPS_H
#define VGPU_SIM_MPS_H

#include <stdint.h>

void sim_mps_start(void);               /* at cuInit */
uint64_t sim_mps_stretch(uint64_t ns);  /* how long a kernel takes */
int sim_mps_multiprocessors(int count); /* of so many that the card has */

#endif
