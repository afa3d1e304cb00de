/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated libcuda.so.1: what a card can do, by number.
 */
#include "libcuda.h"
#include "mps.h"
#include "state.h"

SIM CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
	/* By number, as in CUdevice_attribute; what is not here is 0. */
	static const int constants[][2] = {
		{1, 1024},        {2, 1024},   {3, 1024},     {4, 64},       {5, 2147483647},
		{6, 65535},       {7, 65535},  {8, 49152},    {9, 65536},    {10, 32},
		{11, 2147483647}, {12, 65536}, {13, 1410000}, {14, 512},     {15, 1},
		{19, 1},          {31, 1},     {35, 0},       {36, 1215000}, {37, 5120},
		{38, 41943040},   {39, 2048},  {40, 3},       {41, 1},       {83, 1},
		{97, 166912},     {106, 32},   {115, 1}};
	const int number = sim_card_of(device);
	const struct sim_card *card;

	if (sim_ready())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (number < 0)
		return CUDA_ERROR_INVALID_DEVICE;
	card = &sim_config()->cards[number];
	if (!value || attribute <= 0 || attribute > 200)
		return CUDA_ERROR_INVALID_VALUE;
	*value = 0;
	for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
		if (constants[i][0] == attribute)
			*value = constants[i][1];
	switch (attribute) {
	case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
		*value = sim_mps_multiprocessors(card->sm_count);
		break;
	case CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS:
		*value = !card->managed_stays;
		break;
	case CU_DEVICE_ATTRIBUTE_MPS_ENABLED:
		*value = sim_mps_client;
		break;
	case 33:
		*value = (int)card->pci_bus;
		break;
	case 34:
		*value = (int)card->pci_device;
		break;
	case 50:
		*value = (int)card->pci_domain;
		break;
	case 75:
		*value = card->cc_major;
		break;
	case 76:
		*value = card->cc_minor;
		break;
	default:
		break;
	}
	return CUDA_SUCCESS;
}
