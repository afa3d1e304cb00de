/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads cards.ini.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "config.h"

static char *trim(char *text)
{
	size_t length;

	while (*text == ' ' || *text == '\t')
		text++;
	length = strlen(text);
	while (length && strchr(" \t\r\n", text[length - 1]))
		text[--length] = 0;
	return text;
}

static void parse_uuid(struct sim_card *card)
{
	unsigned int digits = 0;

	for (const char *c = card->uuid + (strlen(card->uuid) > 4 ? 4 : 0); *c && digits < 32;
	     c++) {
		char text[2] = {*c, 0};
		unsigned int value = (unsigned int)strtoul(text, NULL, 16);

		if (*c == '-')
			continue;
		card->uuid_bytes[digits / 2] =
			(unsigned char)(card->uuid_bytes[digits / 2] << 4 | value);
		digits++;
	}
}

static int number_of(const char *const *names, const char *name, int fallback)
{
	for (int i = 0; names[i]; i++)
		if (strcasecmp(names[i], name) == 0)
			return i;
	return fallback;
}

static void set_card(struct sim_card *card, const char *key, char *value)
{
	static const char *const architectures[] = {"-",      "-",      "kepler",    "maxwell",
						    "pascal", "volta",  "turing",    "ampere",
						    "ada",    "hopper", "blackwell", NULL};
	static const char *const brands[] = {
		"unknown",    "quadro",     "tesla",  "nvs",         "grid",      "geforce",
		"titan",      "-",          "-",      "-",           "-",         "-",
		"quadro rtx", "nvidia rtx", "nvidia", "geforce rtx", "titan rtx", NULL};

	if (strcmp(key, "uuid") == 0) {
		snprintf(card->uuid, sizeof(card->uuid), "%s", value);
		parse_uuid(card);
	} else if (strcmp(key, "name") == 0) {
		snprintf(card->name, sizeof(card->name), "%s", value);
	} else if (strcmp(key, "memory_mib") == 0) {
		card->memory = strtoull(value, NULL, 10) << 20;
	} else if (strcmp(key, "context_overhead_mib") == 0) {
		card->context_overhead = strtoull(value, NULL, 10) << 20;
	} else if (strcmp(key, "pitch_bytes") == 0) {
		card->pitch = strtoull(value, NULL, 10);
	} else if (strcmp(key, "pool_step_mib") == 0) {
		card->pool_step = strtoull(value, NULL, 10) << 20;
	} else if (strcmp(key, "concurrent_managed_access") == 0) {
		card->managed_stays = atoi(value) == 0;
	} else if (strcmp(key, "managed_free_async") == 0) {
		card->managed_async = atoi(value) != 0;
	} else if (strcmp(key, "sm_count") == 0) {
		card->sm_count = atoi(value);
	} else if (strcmp(key, "numa_node") == 0) {
		card->numa_node = atoi(value);
	} else if (strcmp(key, "minor") == 0) {
		card->minor = atoi(value);
	} else if (strcmp(key, "compute_capability") == 0) {
		sscanf(value, "%d.%d", &card->cc_major, &card->cc_minor);
	} else if (strcmp(key, "pci") == 0) {
		sscanf(value, "%x:%x:%x.%x", &card->pci_domain, &card->pci_bus, &card->pci_device,
		       &card->pci_function);
	} else if (strcmp(key, "architecture") == 0) {
		card->architecture = number_of(architectures, value, 7);
	} else if (strcmp(key, "brand") == 0) {
		card->brand = number_of(brands, value, 14);
	} else if (strcmp(key, "health") == 0) {
		card->lost = strcmp(value, "lost") == 0;
	} else if (strcmp(key, "hangs") == 0) {
		card->faults.hangs = atoi(value) != 0;
	} else if (strcmp(key, "memory_info") == 0) {
		card->faults.no_memory_info = strcmp(value, "none") == 0;
	} else if (strcmp(key, "remap_failed") == 0) {
		card->faults.remap_failed = atoi(value) != 0;
	} else if (strcmp(key, "recovery_action") == 0) {
		card->faults.recovery_action = atoi(value);
	} else if (strcmp(key, "uncorrected_errors") == 0) {
		card->faults.uncorrected_errors = strtoull(value, NULL, 10);
	} else if (strcmp(key, "mig_mode") == 0) {
		card->mig = strcmp(value, "enabled") == 0;
	} else if (strcmp(key, "mig_create_error") == 0) {
		card->mig_create_error = atoi(value);
	} else if (strcmp(key, "mig_destroy_error") == 0) {
		card->mig_destroy_error = atoi(value);
	} else if (strcmp(key, "nvlink") == 0) {
		char *rest = NULL;

		for (char *item = strtok_r(value, ", ", &rest); item;
		     item = strtok_r(NULL, ", ", &rest))
			if (atoi(item) >= 0 && atoi(item) < SIM_CARDS)
				card->nvlink |= 1u << atoi(item);
	}
}

static void set_top(struct sim_config *config, const char *key, const char *value)
{
	if (strcmp(key, "driver_version") == 0)
		snprintf(config->driver_version, sizeof(config->driver_version), "%s", value);
	else if (strcmp(key, "cgroup_root") == 0)
		snprintf(config->cgroup_root, sizeof(config->cgroup_root), "%s", value);
	else if (strcmp(key, "cuda_version") == 0)
		config->cuda_version = atoi(value);
	else if (strcmp(key, "init_error") == 0)
		config->init_error = atoi(value);
	else if (strcmp(key, "host_memory_mib") == 0)
		config->host_memory = strtoull(value, NULL, 10) << 20;
}

int sim_config_read(const char *path, struct sim_config *config)
{
	FILE *file = fopen(path, "re");
	struct sim_card *card = NULL;
	char line[256];

	if (!file)
		return -errno;
	memset(config, 0, sizeof(*config));
	snprintf(config->driver_version, sizeof(config->driver_version), "580.95.05");
	config->cuda_version = 13000;
	while (fgets(line, sizeof(line), file)) {
		char *key = trim(line), *value;

		if (!*key || *key == '#' || *key == ';')
			continue;
		if (*key == '[') {
			if (config->card_count == SIM_CARDS)
				break;
			card = &config->cards[config->card_count];
			card->minor = config->card_count++;
			card->sm_count = 108;
			card->pitch = 512;
			card->pool_step = 2 << 20;
			card->managed_async = true;
			card->cc_major = 8;
			card->architecture = 7;
			card->brand = 14;
			continue;
		}
		value = strchr(key, '=');
		if (!value)
			continue;
		*value++ = 0;
		key = trim(key);
		if (card)
			set_card(card, key, trim(value));
		else
			set_top(config, key, trim(value));
	}
	fclose(file);
	return 0;
}
