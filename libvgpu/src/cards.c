/* SPDX-License-Identifier: Apache-2.0
 *
 * From a driver's handle to the granted card, always by UUID. An index means
 * something else to CUDA (CUDA_VISIBLE_DEVICES), to NVML and to the node.
 */
#include <string.h>

#include "vgpu.h"

#define KNOWN_DEVICES 64

static struct vgpu_card *find(const uint8_t uuid[16])
{
	struct vgpu_grants *grants = vgpu_grants();
	unsigned int count = atomic_load(&grants->card_count);

	for (unsigned int i = 0; i < count; i++)
		if (memcmp(grants->cards[i].uuid, uuid, 16) == 0)
			return &grants->cards[i];
	return NULL;
}

struct vgpu_card *vgpu_card_of_device(CUdevice device)
{
	/* What a CUdevice is never changes within a process: 0 = not asked yet,
	 * 1 = not granted, else the card's number + 2. */
	static unsigned int known[KNOWN_DEVICES];
	__typeof__(&cuDeviceGetUuid_v2) get_uuid = VGPU_REAL(cuDeviceGetUuid_v2);
	struct vgpu_card *card;
	CUuuid uuid;

	if (vgpu_state() != VGPU_ON)
		return NULL;
	if (device >= 0 && device < KNOWN_DEVICES) {
		unsigned int value = atomic_load_explicit(&known[device], memory_order_relaxed);

		if (value)
			return value == 1 ? NULL : &vgpu_grants()->cards[value - 2];
	}
	if (!get_uuid) /* drivers before CUDA 11.4 */
		get_uuid = VGPU_REAL(cuDeviceGetUuid);
	if (!get_uuid || get_uuid(&uuid, device) != CUDA_SUCCESS)
		return NULL;
	card = find((const uint8_t *)uuid.bytes);
	if (device >= 0 && device < KNOWN_DEVICES)
		atomic_store_explicit(&known[device],
				      card ? (unsigned int)(card - vgpu_grants()->cards) + 2 : 1,
				      memory_order_relaxed);
	return card;
}

/* -1: the host's memory, or nothing that is known. */
CUdevice vgpu_device_of_location(const CUmemLocation *location)
{
	switch (location->type) {
	case CU_MEM_LOCATION_TYPE_DEVICE:
		return location->id;
	case CU_MEM_LOCATION_TYPE_DEVICE_LOCALITY_DOMAIN:
		return *(const unsigned char *)&location->id;
	default:
		return -1;
	}
}

struct vgpu_card *vgpu_card_current(void)
{
	__typeof__(&cuCtxGetDevice) get_device = VGPU_REAL(cuCtxGetDevice);
	CUdevice device;

	if (vgpu_state() != VGPU_ON || !get_device || get_device(&device) != CUDA_SUCCESS)
		return NULL;
	return vgpu_card_of_device(device);
}

struct vgpu_card *vgpu_card_of_nvml(nvmlDevice_t device)
{
	__typeof__(&nvmlDeviceGetUUID) get_uuid = VGPU_REAL(nvmlDeviceGetUUID);
	char text[96];
	uint8_t uuid[16];

	if (vgpu_state() != VGPU_ON || !get_uuid)
		return NULL;
	if (get_uuid(device, text, sizeof(text)) != NVML_SUCCESS ||
	    !vgpu_uuid_parse(text, sizeof(text), uuid))
		return NULL;
	return find(uuid);
}
