/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VGPU_SIM_CONFIG_H
#define VGPU_SIM_CONFIG_H

#include "state.h"

/* 0 or a negative errno. Unknown keys are ignored. */
int sim_config_read(const char *path, struct sim_config *config);

#endif
