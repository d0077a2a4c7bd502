// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * load-keeper: runs programs in the background, in rounds, and pauses them between two rounds.
 *
 *   load-keeper start MS ID WORKERS PROGRAM [ARGUMENT...]
 *   load-keeper pause|resume|count MS
 *   load-keeper stop MS ID
 *
 * A load is one keeper process with the socket /run/memhp/loads/ID, and up to 16 workers, each a process of PROGRAM (a
 * binary or a script).
 *
 *   start   returns when all workers are ready.
 *   pause   waits until no round of any load is running. None starts until resume.
 *   resume  continues all loads.
 *   count   only reports.
 *   stop    ends the load after its current rounds, and kills its workers if these take longer than MS.
 *
 * MS is the time limit, in milliseconds, for workers to get ready and rounds to end. All commands but start print a line
 * for each load, "ID ROUNDS FAILURES STATE [NOTE]". NOTE is the last error. STATE is
 *
 *   running, resting   resting: paused, and no round is running
 *   busy               paused, but a round is still running; or no answer in time
 *   dead               a worker exited by itself or broke the protocol
 *   gone               the socket exists, but no keeper answers
 *   stopped, killed    after stop; killed: a round did not end in time
 *
 * Protocol of a worker: it writes "ready", or one line that says why it cannot do its work. For each line that it reads
 * on stdin, it then does one round and writes "ok" or "failed REASON". A round frees everything that it allocated. A
 * worker exits at end of file.
 *
 * Exits with 0; 2: invalid usage, or an error of the keeper; 3: the workers cannot run, the reason is on stdout; 4: the
 * load ID does not exist, or (start) exists already.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_WORKERS 16
#define LINE 160

#define say printf
#include "load-client.h"

struct worker {
	pid_t pid;
	int in, out; /* its stdin and stdout; out is -1 once it has exited */
	bool ready, busy;
	char line[LINE];
	size_t length;
};

struct load {
	struct worker workers[MAX_WORKERS];
	int count;
	int listener, client, starter; /* -1 if there is none */
	bool paused, dead, stopping, killed;
	bool pausing; /* the client waits until no round is running */
	unsigned long long rounds, failures;
	char note[LINE];
	struct sockaddr_un address;
};

static int fail(const char *what)
{
	fprintf(stderr, "load-keeper: %s: %s\n", what, strerror(errno));
	return 2;
}

/* ---- the keeper -------------------------------------------------------------------------------------------------- */

static void __attribute__((format(printf, 2, 3))) note(struct load *load, const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vsnprintf(load->note, sizeof(load->note), format, values);
	va_end(values);
	/* The note must stay on one line of the answer. */
	for (char *c = load->note; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
}

static void put_number(const char *path, const char *number)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	/* An error is not fatal: the OOM killer may then choose another victim. */
	if (fd >= 0) {
		if (write(fd, number, strlen(number)) < 0)
			errno = 0;
		close(fd);
	}
}

static int spawn(struct worker *worker, char **argv)
{
	int in[2], out[2], null = open("/dev/null", O_WRONLY | O_CLOEXEC);

	if (null < 0 || pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
		return -1;
	worker->pid = fork();
	if (worker->pid < 0)
		return -1;
	/* Its own process group, so that its children are killed with it. */
	setpgid(worker->pid, worker->pid);
	if (!worker->pid) {
		signal(SIGPIPE, SIG_DFL);
		put_number("/proc/self/oom_score_adj", "1000");
		if (dup2(in[0], 0) == 0 && dup2(out[1], 1) == 1 && dup2(null, 2) == 2)
			execv(argv[0], argv);
		dprintf(out[1], "%s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	close(null);
	worker->in = in[1];
	worker->out = out[0];
	return 0;
}

static bool any_busy(const struct load *load)
{
	for (int i = 0; i < load->count; i++)
		if (load->workers[i].busy)
			return true;
	return false;
}

static int count_alive(const struct load *load)
{
	int count = 0;

	for (int i = 0; i < load->count; i++)
		count += load->workers[i].out >= 0;
	return count;
}

static const char *state(const struct load *load)
{
	if (load->dead)
		return "dead";
	if (load->stopping && !count_alive(load))
		return load->killed ? "killed" : "stopped";
	if (!load->paused)
		return "running";
	return any_busy(load) ? "busy" : "resting";
}

static void start_rounds(struct load *load)
{
	if (load->paused || load->dead || load->stopping || load->starter >= 0)
		return;
	for (int i = 0; i < load->count; i++) {
		struct worker *worker = &load->workers[i];

		/* A failed write means that the worker has exited; read_worker will notice. */
		if (worker->out >= 0 && !worker->busy)
			worker->busy = write(worker->in, "go\n", 3) == 3;
	}
}

/* Kills a worker, if it still runs, and reaps it. */
static void reap_worker(struct load *load, struct worker *worker)
{
	int status = 0;

	kill(-worker->pid, SIGKILL);
	waitpid(worker->pid, &status, 0);
	close(worker->out);
	if (worker->in >= 0)
		close(worker->in);
	worker->in = worker->out = -1;
	worker->busy = false;
	if (load->stopping)
		return;
	if (!load->dead && load->starter < 0) {
		if (WIFEXITED(status))
			note(load, "a worker ended with status %d", WEXITSTATUS(status));
		else
			note(load, "a worker was killed by signal %d", WTERMSIG(status));
	}
	load->dead = true;
}

static void handle_line(struct load *load, struct worker *worker, const char *line)
{
	if (!worker->ready) {
		worker->ready = !strcmp(line, "ready");
		if (!worker->ready) {
			note(load, "%s", line);
			load->dead = true;
		}
		return;
	}
	if (worker->busy && !strcmp(line, "ok")) {
		load->rounds++;
	} else if (worker->busy && !strncmp(line, "failed ", 7)) {
		load->failures++;
		note(load, "%s", line + 7);
	} else if (!load->dead) {
		note(load, "a worker wrote: %s", line);
		load->dead = true;
	}
	worker->busy = false;
}

static void read_worker(struct load *load, struct worker *worker)
{
	ssize_t size = read(worker->out, worker->line + worker->length, LINE - 1 - worker->length);
	char *line = worker->line, *end;

	if (size <= 0) {
		reap_worker(load, worker);
		return;
	}
	worker->length += (size_t)size;
	worker->line[worker->length] = 0;
	if (strlen(line) != worker->length || (worker->length == LINE - 1 && !strchr(line, '\n'))) {
		note(load, "a worker wrote an invalid line");
		load->dead = true;
		reap_worker(load, worker);
		return;
	}
	while ((end = strchr(line, '\n'))) {
		*end = 0;
		handle_line(load, worker, line);
		line = end + 1;
	}
	worker->length = strlen(line);
	memmove(worker->line, line, worker->length);
}

static void send_answer(struct load *load)
{
	char text[LINE + 80];
	int size = snprintf(text, sizeof(text), "%llu %llu %s%s%s", load->rounds, load->failures, state(load),
			    *load->note ? " " : "", load->note);

	/* Not an error: the client may have exited. */
	if (send(load->client, text, (size_t)size, MSG_NOSIGNAL) < 0)
		errno = 0;
}

static void drop_client(struct load *load)
{
	close(load->client);
	load->client = -1;
	load->pausing = false;
}

static void stop_workers(struct load *load)
{
	load->stopping = true;
	for (int i = 0; i < load->count; i++) {
		if (load->workers[i].in >= 0)
			close(load->workers[i].in);
		load->workers[i].in = -1;
	}
}

static void kill_workers(const struct load *load)
{
	for (int i = 0; i < load->count; i++)
		if (load->workers[i].out >= 0)
			kill(-load->workers[i].pid, SIGKILL);
}

static void handle_command(struct load *load)
{
	char text[16] = "";
	ssize_t size = recv(load->client, text, sizeof(text) - 1, 0);

	if (size <= 0) {
		drop_client(load);
	} else if (!strcmp(text, "pause")) {
		load->paused = true;
		load->pausing = true;
	} else if (!strcmp(text, "resume") || !strcmp(text, "count")) {
		if (*text == 'r')
			load->paused = false;
		send_answer(load);
		drop_client(load);
	} else if (!strcmp(text, "stop")) {
		stop_workers(load);
	} else if (!strcmp(text, "kill")) {
		load->killed = true;
		kill_workers(load);
	}
}

/* Tells start that all workers are ready, or why one is not; returns true if the load failed to start. */
static bool report_start(struct load *load)
{
	for (int i = 0; i < load->count; i++)
		if (!load->dead && !load->workers[i].ready)
			return false;
	if (load->dead) {
		/* First, so that the ID can be used again as soon as start returns. */
		unlink(load->address.sun_path);
		dprintf(load->starter, "%s\n", *load->note ? load->note : "a worker ended before it was ready");
	} else {
		dprintf(load->starter, "ready\n");
	}
	close(load->starter);
	load->starter = -1;
	return load->dead;
}

static void wait_for_event(struct load *load)
{
	struct pollfd polled[MAX_WORKERS + 2];

	for (int i = 0; i < load->count; i++)
		polled[i] = (struct pollfd){ .fd = load->workers[i].out, .events = POLLIN };
	polled[load->count] = (struct pollfd){ .fd = load->client, .events = POLLIN };
	/* Only one client at a time. */
	polled[load->count + 1] = (struct pollfd){ .fd = load->client < 0 ? load->listener : -1, .events = POLLIN };
	if (poll(polled, (nfds_t)load->count + 2, -1) < 0)
		return;
	for (int i = 0; i < load->count; i++)
		if (polled[i].revents)
			read_worker(load, &load->workers[i]);
	if (polled[load->count].revents)
		handle_command(load);
	if (polled[load->count + 1].revents)
		load->client = accept4(load->listener, NULL, NULL, SOCK_CLOEXEC);
}

static void run_load(struct load *load)
{
	for (;;) {
		if (load->starter >= 0 && report_start(load)) {
			kill_workers(load);
			return;
		}
		start_rounds(load);
		if (load->pausing && !any_busy(load)) {
			send_answer(load);
			drop_client(load);
		}
		if (load->stopping && !count_alive(load))
			break;
		wait_for_event(load);
	}
	unlink(load->address.sun_path);
	if (load->client >= 0)
		send_answer(load);
}

/* The background process. It reports to start through the pipe starter. */
static int run_keeper(struct load *load, char **argv)
{
	int null = open("/dev/null", O_RDWR);

	setsid();
	signal(SIGPIPE, SIG_IGN);
	put_number("/proc/self/oom_score_adj", "-1000");
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	for (int i = 0; i < load->count; i++) {
		if (spawn(&load->workers[i], argv)) {
			unlink(load->address.sun_path);
			dprintf(load->starter, "cannot start a worker: %s\n", strerror(errno));
			return 1;
		}
	}
	run_load(load);
	return 0;
}

/* ---- start ------------------------------------------------------------------------------------------------------- */

static int start(long long end, const char *id, int workers, char **argv)
{
	static struct load load = { .client = -1 };
	char text[LINE] = "";
	struct pollfd polled;
	int pipes[2];
	pid_t pid;

	mkdir("/run/memhp", 0755);
	mkdir(FOLDER, 0755);
	if (!set_address(&load.address, id) || workers < 1 || workers > MAX_WORKERS) {
		fputs("load-keeper: invalid ID, or not 1 to 16 workers\n", stderr);
		return 2;
	}
	load.count = workers;
	load.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (load.listener < 0 || pipe2(pipes, O_CLOEXEC))
		return fail("socket");
	if (bind(load.listener, (struct sockaddr *)&load.address, sizeof(load.address)))
		return errno == EADDRINUSE ? 4 : fail(load.address.sun_path);
	if (listen(load.listener, 8))
		return fail("listen");
	load.starter = pipes[1];
	pid = fork();
	if (pid < 0)
		return fail("fork");
	if (!pid)
		_exit(run_keeper(&load, argv));
	close(pipes[1]);
	polled = (struct pollfd){ .fd = pipes[0], .events = POLLIN };
	if (poll(&polled, 1, left(end)) == 1 && read(pipes[0], text, sizeof(text) - 1) > 0) {
		if (!strcmp(text, "ready\n"))
			return 0;
	} else {
		snprintf(text, sizeof(text), "not ready in time\n");
		/* The workers exit at the end of their input. */
		kill(pid, SIGKILL);
		unlink(load.address.sun_path);
	}
	fputs(text, stdout);
	return 3;
}

int main(int argc, char **argv)
{
	long long end = argc > 2 ? now() + atoll(argv[2]) : 0;
	int status;

	if (argc > 5 && !strcmp(argv[1], "start"))
		return start(end, argv[3], atoi(argv[4]), argv + 5);
	status = command_loads(argc - 1, argv + 1);
	if (status >= 0)
		return status;
	fputs("usage: load-keeper start MS ID WORKERS PROGRAM [ARGUMENT...]\n"
	      "       load-keeper pause|resume|count MS\n"
	      "       load-keeper stop MS ID\n",
	      stderr);
	return 2;
}
