// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of load-keeper.c and of agent.c: the clients of load-keeper, which command loads and print their answers. They
 * print with say().
 */
#include <sys/socket.h>
#include <sys/un.h>

#ifndef FOLDER
#define FOLDER "/run/memhp/loads"
#endif
#define MAX_LOADS 64
#define KILL_MS 1000
#define LONGEST_MS 86400000

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static int left(long long end)
{
	long long ms = end - now();

	return ms < 0 ? 0 : ms < LONGEST_MS ? (int)ms : LONGEST_MS;
}

static bool set_address(struct sockaddr_un *address, const char *id)
{
	int size;

	address->sun_family = AF_UNIX;
	size = snprintf(address->sun_path, sizeof(address->sun_path), FOLDER "/%s", id);
	return *id && *id != '.' && !strchr(id, '/') && size < (int)sizeof(address->sun_path);
}

/* Sends a command to a load; returns the connected socket, -1 if the load has no keeper. */
static int send_command(const char *id, const char *command)
{
	struct sockaddr_un address = { 0 };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0 || !set_address(&address, id) || connect(fd, (struct sockaddr *)&address, sizeof(address)) ||
	    send(fd, command, strlen(command), MSG_NOSIGNAL) < 0) {
		if (fd >= 0)
			close(fd);
		return -1;
	}
	return fd;
}

/* Prints the load's answer; returns false if there is none in time. */
static bool print_answer(const char *id, int fd, long long end)
{
	struct pollfd polled = { .fd = fd, .events = POLLIN };
	char text[LINE + 80];
	ssize_t size;

	if (fd < 0) {
		say("%s 0 0 gone\n", id);
		return true;
	}
	if (poll(&polled, 1, left(end)) != 1)
		return false;
	size = recv(fd, text, sizeof(text) - 1, 0);
	text[size < 0 ? 0 : size] = 0;
	say("%s %s\n", id, size > 0 ? text : "0 0 gone");
	return true;
}

/* Prints the counts of a load that did not answer in time. It answers count at once, unless the keeper hangs. */
static void print_busy(const char *id)
{
	int fd = send_command(id, "count");

	if (!print_answer(id, fd, now() + KILL_MS))
		say("%s 0 0 busy\n", id);
	if (fd >= 0)
		close(fd);
}

static int stop_load(long long end, const char *id)
{
	struct sockaddr_un address = { 0 };
	int fd = send_command(id, "stop");

	if (fd < 0) {
		if (!set_address(&address, id) || access(address.sun_path, F_OK))
			return 4;
		unlink(address.sun_path);
	}
	if (print_answer(id, fd, end))
		return 0;
	if (send(fd, "kill", 4, MSG_NOSIGNAL) < 0 || !print_answer(id, fd, now() + KILL_MS))
		say("%s 0 0 busy\n", id);
	return 0;
}

static int command_all_loads(long long end, const char *command)
{
	static char names[MAX_LOADS][LINE];
	int fds[MAX_LOADS], count = 0;
	DIR *folder = opendir(FOLDER);
	struct dirent *entry;

	while (folder && (entry = readdir(folder)) && count < MAX_LOADS)
		if (*entry->d_name != '.' && strlen(entry->d_name) < LINE)
			strcpy(names[count++], entry->d_name);
	if (folder)
		closedir(folder);
	/* Send the command to all loads first, so that their rounds end concurrently. */
	for (int i = 0; i < count; i++)
		fds[i] = send_command(names[i], command);
	for (int i = 0; i < count; i++) {
		bool answered = print_answer(names[i], fds[i], end);

		if (fds[i] >= 0)
			close(fds[i]);
		if (!answered)
			print_busy(names[i]);
	}
	return 0;
}

/* Does all commands but start. Returns load-keeper's status, -1 for any other command. */
static int command_loads(int count, char **words)
{
	long long end = count > 1 ? now() + atoll(words[1]) : 0;

	if (count == 3 && !strcmp(words[0], "stop"))
		return stop_load(end, words[2]);
	if (count == 2 && (!strcmp(words[0], "pause") || !strcmp(words[0], "resume") || !strcmp(words[0], "count")))
		return command_all_loads(end, words[0]);
	return -1;
}
