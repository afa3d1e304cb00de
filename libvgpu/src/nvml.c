/* SPDX-License-Identifier: Apache-2.0
 *
 * NVML's view of the share. A process whose grant cannot be read gets
 * NVML_ERROR_NO_PERMISSION from every init; the reason is on stderr.
 */
#include "vgpu.h"

static nvmlReturn_t after_start(nvmlReturn_t result)
{
	if (result == NVML_SUCCESS && vgpu_started(VGPU_NVML) == VGPU_BROKEN)
		return NVML_ERROR_NO_PERMISSION;
	return result;
}

VGPU_EXPORT nvmlReturn_t nvmlInit(void)
{
	__typeof__(&nvmlInit) real = VGPU_REAL(nvmlInit);

	if (!real)
		return NVML_ERROR_FUNCTION_NOT_FOUND;
	if (vgpu_init() == VGPU_BROKEN)
		return NVML_ERROR_NO_PERMISSION;
	return after_start(real());
}

VGPU_EXPORT nvmlReturn_t nvmlInit_v2(void)
{
	__typeof__(&nvmlInit_v2) real = VGPU_REAL(nvmlInit_v2);

	if (!real)
		return NVML_ERROR_FUNCTION_NOT_FOUND;
	if (vgpu_init() == VGPU_BROKEN)
		return NVML_ERROR_NO_PERMISSION;
	return after_start(real());
}

VGPU_EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
	__typeof__(&nvmlInitWithFlags) real = VGPU_REAL(nvmlInitWithFlags);

	if (!real)
		return NVML_ERROR_FUNCTION_NOT_FOUND;
	if (vgpu_init() == VGPU_BROKEN)
		return NVML_ERROR_NO_PERMISSION;
	return after_start(real(flags));
}

/* A share larger than the card is told only if the host has the rest. */
static bool is_told(struct vgpu_card *card, uint64_t limit, uint64_t total)
{
	return limit <= total || vgpu_card_spills(card);
}

/* total = free + used always holds: monitors compute with it. */
VGPU_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	__typeof__(&nvmlDeviceGetMemoryInfo) real = VGPU_REAL(nvmlDeviceGetMemoryInfo);
	struct vgpu_card *card;
	uint64_t limit, used;
	nvmlReturn_t result;

	if (!real)
		return NVML_ERROR_FUNCTION_NOT_FOUND;
	result = real(device, memory);
	card = result == NVML_SUCCESS ? vgpu_card_of_nvml(device) : NULL;
	if (!card || !vgpu_card_usage(card, &limit, &used) || !is_told(card, limit, memory->total))
		return result;
	memory->total = limit;
	memory->used = used;
	memory->free = limit - used;
	return result;
}

VGPU_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
	__typeof__(&nvmlDeviceGetMemoryInfo_v2) real = VGPU_REAL(nvmlDeviceGetMemoryInfo_v2);
	struct vgpu_card *card;
	uint64_t limit, used;
	nvmlReturn_t result;

	if (!real)
		return NVML_ERROR_FUNCTION_NOT_FOUND;
	result = real(device, memory);
	card = result == NVML_SUCCESS ? vgpu_card_of_nvml(device) : NULL;
	if (!card || !vgpu_card_usage(card, &limit, &used) || !is_told(card, limit, memory->total))
		return result;
	memory->total = limit;
	memory->reserved = 0;
	memory->used = used;
	memory->free = limit - used;
	return result;
}
