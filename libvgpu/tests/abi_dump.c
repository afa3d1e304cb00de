/* SPDX-License-Identifier: Apache-2.0 */
/* Prints the sizes and offsets of the ABI as JSON, for the Python side to compare. */
#include <stdio.h>

#include "vgpu/grant.h"
#include "vgpu/region.h"

#define BEGIN(type)                                                                                \
	printf("%s\"" #type "\": {\"size\": %zu", separator, sizeof(struct type)),                 \
		separator = ",\n "
#define FIELD(type, field) printf(", \"" #field "\": %zu", offsetof(struct type, field))
#define END printf("}")

int main(void)
{
	const char *separator = "{";

	BEGIN(vgpu_grant);
	FIELD(vgpu_grant, magic), FIELD(vgpu_grant, abi_major), FIELD(vgpu_grant, abi_minor);
	FIELD(vgpu_grant, file_size), FIELD(vgpu_grant, sequence), FIELD(vgpu_grant, device_count);
	FIELD(vgpu_grant, flags), FIELD(vgpu_grant, claim_uid), FIELD(vgpu_grant, request);
	FIELD(vgpu_grant, heartbeat), FIELD(vgpu_grant, reserved), FIELD(vgpu_grant, devices);
	END;
	BEGIN(vgpu_grant_device);
	FIELD(vgpu_grant_device, uuid), FIELD(vgpu_grant_device, memory_limit_bytes);
	FIELD(vgpu_grant_device, cores_percent), FIELD(vgpu_grant_device, flags);
	FIELD(vgpu_grant_device, share_id), FIELD(vgpu_grant_device, core_policy);
	FIELD(vgpu_grant_device, priority_plus_one), FIELD(vgpu_grant_device, ceiling_percent);
	FIELD(vgpu_grant_device, burst_ms), FIELD(vgpu_grant_device, reserved);
	END;
	BEGIN(vgpu_region_header);
	FIELD(vgpu_region_header, magic), FIELD(vgpu_region_header, abi_major);
	FIELD(vgpu_region_header, abi_minor), FIELD(vgpu_region_header, file_size);
	FIELD(vgpu_region_header, header_size), FIELD(vgpu_region_header, device_size);
	FIELD(vgpu_region_header, slot_size), FIELD(vgpu_region_header, device_count);
	FIELD(vgpu_region_header, slot_count), FIELD(vgpu_region_header, flags);
	FIELD(vgpu_region_header, instance), FIELD(vgpu_region_header, created_ns);
	FIELD(vgpu_region_header, reserved0), FIELD(vgpu_region_header, gate);
	FIELD(vgpu_region_header, repairs), FIELD(vgpu_region_header, shares_turns);
	FIELD(vgpu_region_header, reserved);
	END;
	BEGIN(vgpu_region_device);
	FIELD(vgpu_region_device, uuid), FIELD(vgpu_region_device, limit_bytes);
	FIELD(vgpu_region_device, reserved0), FIELD(vgpu_region_device, used_bytes);
	FIELD(vgpu_region_device, overhead_bytes), FIELD(vgpu_region_device, peak_bytes);
	FIELD(vgpu_region_device, long_ns), FIELD(vgpu_region_device, reserved1),
		FIELD(vgpu_region_device, spill_count);
	FIELD(vgpu_region_device, bucket_ns);
	FIELD(vgpu_region_device, last_refill_ns), FIELD(vgpu_region_device, trim_permille);
	FIELD(vgpu_region_device, gate), FIELD(vgpu_region_device, busy_ns);
	FIELD(vgpu_region_device, due_ns), FIELD(vgpu_region_device, throttled_ns);
	FIELD(vgpu_region_device, limit_permille), FIELD(vgpu_region_device, watched);
	FIELD(vgpu_region_device, known_ns);
	FIELD(vgpu_region_device, alloc_count);
	FIELD(vgpu_region_device, free_count), FIELD(vgpu_region_device, oom_count);
	FIELD(vgpu_region_device, driver_oom_count), FIELD(vgpu_region_device, unhooked_count);
	FIELD(vgpu_region_device, waits);
	END;
	BEGIN(vgpu_region_slot);
	FIELD(vgpu_region_slot, state), FIELD(vgpu_region_slot, inflight);
	FIELD(vgpu_region_slot, pid), FIELD(vgpu_region_slot, host_pid);
	FIELD(vgpu_region_slot, start_time), FIELD(vgpu_region_slot, pid_namespace);
	FIELD(vgpu_region_slot, reserved), FIELD(vgpu_region_slot, used_bytes);
	END;
	BEGIN(vgpu_region);
	FIELD(vgpu_region, header), FIELD(vgpu_region, devices), FIELD(vgpu_region, slots);
	END;
	printf("}\n");
	return 0;
}
