// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: switches the power of a PCIe root port's hot-plug slot, like the script slot.
 */
#define BRIDGE "0x060400"
/* PCI Express Base 7.5.1.1, 7.5.3 */
#define STATUS 0x06
#define STATUS_CAPABILITIES 0x10
#define CAPABILITIES 0x34
#define EXPRESS 0x10
#define SLOT_CAPABILITIES 0x14
#define SLOT_NUMBER_SHIFT 19
#define SLOT_CONTROL 0x18
#define POWER_OFF 0x400
#define INDICATOR 0x300
#define INDICATOR_ON 0x100

/* A little-endian number in the configuration space, 0 if it cannot be read. */
static unsigned int config_value(int config, size_t size, unsigned int offset)
{
	unsigned char bytes[4] = { 0 };

	if (pread(config, bytes, size, offset) != (ssize_t)size)
		return 0;
	return bytes[0] | (unsigned int)bytes[1] << 8 | (unsigned int)bytes[2] << 16 | (unsigned int)bytes[3] << 24;
}

/* The offset of the PCI Express capability, 0 if there is none. */
static unsigned int find_express(int config)
{
	unsigned int at;

	if (!(config_value(config, 2, STATUS) & STATUS_CAPABILITIES))
		return 0;
	at = config_value(config, 1, CAPABILITIES);
	for (int tries = 0; tries < 16 && at >= 64; tries++) {
		if (config_value(config, 1, at) == EXPRESS)
			return at;
		at = config_value(config, 1, at + 1);
	}
	return 0;
}

struct port {
	char path[PATH_MAX];
	int config;
	unsigned int express;
};

/* Finds the root port whose slot has the number; its configuration space is left open. */
static bool find_port(struct port *port, unsigned long number)
{
	const char *class;
	glob_t paths;
	bool found = false;

	if (glob(BUS "/pci/devices/*", 0, NULL, &paths))
		return false;
	for (size_t p = 0; p < paths.gl_pathc && !found; p++) {
		snprintf(port->path, sizeof(port->path), "%s", paths.gl_pathv[p]);
		class = first_line(path_of("%s/class", port->path));
		if (!class || strcmp(class, BRIDGE))
			continue;
		port->config = open(path_of("%s/config", port->path), O_RDWR | O_CLOEXEC);
		if (port->config < 0)
			continue;
		port->express = find_express(port->config);
		found = port->express &&
			config_value(port->config, 4, port->express + SLOT_CAPABILITIES) >> SLOT_NUMBER_SHIFT == number;
		if (!found)
			close(port->config);
	}
	globfree(&paths);
	return found;
}

static bool set_control(const struct port *port, unsigned int word)
{
	unsigned char bytes[] = { word & 255, word >> 8 & 255 };

	return pwrite(port->config, bytes, sizeof(bytes), port->express + SLOT_CONTROL) == sizeof(bytes);
}

static void remove_children(const struct port *port)
{
	glob_t paths;

	if (glob(path_of("%s/[0-9a-f]*:*/remove", port->path), 0, NULL, &paths))
		return;
	for (size_t p = 0; p < paths.gl_pathc; p++)
		write_line(paths.gl_pathv[p], "1", 0);
	globfree(&paths);
}

static int switch_port(unsigned long number, bool on)
{
	struct port port;
	unsigned int control;
	bool done;

	if (!find_port(&port, number)) {
		complain("slot %lu: no root port has this slot\n", number);
		return 1;
	}
	control = config_value(port.config, 2, port.express + SLOT_CONTROL);
	if (!on)
		remove_children(&port);
	done = set_control(&port, on ? (control & ~(POWER_OFF | INDICATOR)) | INDICATOR_ON :
				       control | POWER_OFF | INDICATOR);
	close(port.config);
	if (!done) {
		complain("slot %lu: cannot write the port's slot control\n", number);
		return 1;
	}
	if (on)
		write_line(path_of("%s/rescan", port.path), "1", 0);
	return 0;
}

static int slot(int count, char **words)
{
	unsigned long number;
	bool on;
	int error;

	if (count != 2 || (strcmp(words[1], "on") && strcmp(words[1], "off")))
		return -1;
	number = strtoul(words[0], NULL, 10);
	on = !strcmp(words[1], "on");
	/* Only pciehp gives a slot this file. */
	if (!exists(path_of(BUS "/pci/slots/%lu/power", number)))
		return switch_port(number, on);
	error = write_line(path_of(BUS "/pci/slots/%lu/power", number), on ? "1" : "0", 0).error;
	if (!error)
		return 0;
	complain("slot %lu: the kernel refused to switch it %s: %s\n", number, words[1], strerror(error));
	return 1;
}
