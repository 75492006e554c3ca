/*
 * Starts a program inside a pod: joins cgroups, enters a network namespace, then execs. Node can do none of these
 * between fork and exec, and a shell with nsenter(1) would leave a process in between that signals do not pass through.
 *
 * underpass-exec [--cgroup PATH]... [--netns PATH] [--new-mount-ns] [--overlay DIR:DST]... [--bind SRC:DST]...
 *                [--hostname NAME] [--uid N] [--gid N] [--chdir DIR] [--setsid] [--die-with-parent] [--close-fds] [--cpu N] [--stay FD] [--] program args...
 *
 * With --stay it does not become the program but stays as its parent, for programs that end with their parent whatever they are
 * told: it writes the program's pid and a newline to FD, and ends as the program does. The program ends with it.
 *
 * Exit 125: a step failed, named on stderr. Exit 127: the program was not found. Exit 126: it could not be executed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { EXIT_STEP_FAILED = 125, EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127 };

#define MAX_REPEATED 32

static void die(const char *action, const char *object)
{
	fprintf(stderr, "underpass-exec: %s %s: %s\n", action, object, strerror(errno));
	exit(EXIT_STEP_FAILED);
}

static void usage(const char *format, const char *argument)
{
	fprintf(stderr, "underpass-exec: ");
	fprintf(stderr, format, argument);
	fprintf(stderr, "\nusage: underpass-exec [--cgroup PATH]... [--netns PATH] [--new-mount-ns] [--overlay DIR:DST]... [--bind SRC:DST]... "
			"[--hostname NAME] [--uid N] [--gid N] [--chdir DIR] [--setsid] [--die-with-parent] "
			"[--close-fds] [--cpu N] [--stay FD] [--] program args...\n");
	exit(EXIT_STEP_FAILED);
}

static long parse_number(const char *option, const char *text, long max)
{
	char *end;
	errno = 0;
	long value = strtol(text, &end, 10);
	if (errno || end == text || *end || value < 0 || value > max) {
		fprintf(stderr, "underpass-exec: %s %s: expected a number from 0 to %ld\n", option, text, max);
		exit(EXIT_STEP_FAILED);
	}
	return value;
}

static void join_cgroup(const char *path)
{
	char file[4096];
	if ((size_t)snprintf(file, sizeof(file), "%s/cgroup.procs", path) >= sizeof(file)) {
		errno = ENAMETOOLONG;
		die("joining cgroup", path);
	}
	int fd = open(file, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) != 1)
		die("joining cgroup", path);
	close(fd);
}

/* Shows DIR's entries in DST beside DST's own, read-only: so come mount points where the machine has none. */
static void overlay_directory(const char *pair)
{
	char options[4096];
	const char *colon = strchr(pair, ':');
	if (!colon || colon == pair || !colon[1])
		usage("--overlay %s: expected DIR:DST", pair);
	if ((size_t)snprintf(options, sizeof(options), "lowerdir=%s", pair) >= sizeof(options)) {
		errno = ENAMETOOLONG;
		die("overlaying", pair);
	}
	if (mount("overlay", colon + 1, "overlay", MS_RDONLY, options))
		die("overlaying", pair);
}

static void bind_file(char *pair)
{
	char *colon = strchr(pair, ':');
	if (!colon || colon == pair || !colon[1])
		usage("--bind %s: expected SRC:DST", pair);
	*colon = 0;
	const char *source = pair, *target = colon + 1;
	if (mount(source, target, NULL, MS_BIND, NULL)) {
		fprintf(stderr, "underpass-exec: binding %s over %s: %s\n", source, target, strerror(errno));
		exit(EXIT_STEP_FAILED);
	}
}

/* Returns in the child alone. */
static void stay_as_parent(int fd, const char *program)
{
	int status;
	pid_t parent = getpid(), child = fork();
	if (child < 0)
		die("making a process for", program);
	if (child == 0) {
		if (fcntl(fd, F_SETFD, FD_CLOEXEC) || prctl(PR_SET_PDEATHSIG, SIGTERM))
			die("preparing", program);
		if (getppid() != parent)
			raise(SIGKILL);
		return;
	}
	dprintf(fd, "%d\n", child);
	close(fd);
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			die("waiting for", program);
	if (WIFSIGNALED(status)) {
		signal(WTERMSIG(status), SIG_DFL);
		raise(WTERMSIG(status));
	}
	exit(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_STEP_FAILED);
}

int main(int argc, char **argv)
{
	enum { CGROUP = 256, NETNS, NEW_MOUNT_NS, OVERLAY, BIND, HOSTNAME, UID, GID, CHDIR, SETSID, DIE_WITH_PARENT, CLOSE_FDS, CPU, STAY };
	static const struct option options[] = {
		{ "cgroup", required_argument, NULL, CGROUP },
		{ "netns", required_argument, NULL, NETNS },
		{ "new-mount-ns", no_argument, NULL, NEW_MOUNT_NS },
		{ "overlay", required_argument, NULL, OVERLAY },
		{ "bind", required_argument, NULL, BIND },
		{ "hostname", required_argument, NULL, HOSTNAME },
		{ "uid", required_argument, NULL, UID },
		{ "gid", required_argument, NULL, GID },
		{ "chdir", required_argument, NULL, CHDIR },
		{ "setsid", no_argument, NULL, SETSID },
		{ "die-with-parent", no_argument, NULL, DIE_WITH_PARENT },
		{ "close-fds", no_argument, NULL, CLOSE_FDS },
		{ "cpu", required_argument, NULL, CPU },
		{ "stay", required_argument, NULL, STAY },
		{ 0 },
	};
	char *cgroups[MAX_REPEATED], *binds[MAX_REPEATED], *overlays[MAX_REPEATED];
	int cgroup_count = 0, bind_count = 0, overlay_count = 0, new_mount_ns = 0, want_setsid = 0, die_with_parent = 0, close_fds = 0;
	const char *netns = NULL, *hostname = NULL, *directory = NULL;
	long uid = -1, gid = -1, cpu = -1, stay = -1;
	pid_t parent = getppid();

	opterr = 0;
	for (int option; (option = getopt_long(argc, argv, "+:", options, NULL)) != -1;) {
		switch (option) {
		case CGROUP:
			if (cgroup_count == MAX_REPEATED)
				usage("--cgroup %s: too many", optarg);
			cgroups[cgroup_count++] = optarg;
			break;
		case BIND:
			if (bind_count == MAX_REPEATED)
				usage("--bind %s: too many", optarg);
			binds[bind_count++] = optarg;
			break;
		case OVERLAY:
			if (overlay_count == MAX_REPEATED)
				usage("--overlay %s: too many", optarg);
			overlays[overlay_count++] = optarg;
			break;
		case NETNS: netns = optarg; break;
		case NEW_MOUNT_NS: new_mount_ns = 1; break;
		case HOSTNAME: hostname = optarg; break;
		case UID: uid = parse_number("--uid", optarg, 0xfffffffe); break;
		case GID: gid = parse_number("--gid", optarg, 0xfffffffe); break;
		case CHDIR: directory = optarg; break;
		case SETSID: want_setsid = 1; break;
		case DIE_WITH_PARENT: die_with_parent = 1; break;
		case CLOSE_FDS: close_fds = 1; break;
		case CPU: cpu = parse_number("--cpu", optarg, CPU_SETSIZE - 1); break;
		case STAY: stay = parse_number("--stay", optarg, 1023); break;
		case ':': usage("%s: needs a value", argv[optind - 1]); break;
		default: usage("unknown option %s", argv[optind - 1]);
		}
	}
	if (optind == argc)
		usage("%s", "no program given");

	/* Paths are looked up in the caller's mount namespace, so everything that has one comes before the binds. */
	for (int i = 0; i < cgroup_count; i++)
		join_cgroup(cgroups[i]);
	if (netns) {
		int fd = open(netns, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || setns(fd, CLONE_NEWNET))
			die("entering network namespace", netns);
		close(fd);
	}
	if (new_mount_ns || bind_count || overlay_count) {
		/* Slave, not private: when the node unmounts something it must not live on in here. */
		if (unshare(CLONE_NEWNS) || mount("", "/", NULL, MS_SLAVE | MS_REC, NULL))
			die("making a mount namespace for", argv[optind]);
		for (int i = 0; i < overlay_count; i++)
			overlay_directory(overlays[i]);
		for (int i = 0; i < bind_count; i++)
			bind_file(binds[i]);
	}
	if (hostname && (unshare(CLONE_NEWUTS) || sethostname(hostname, strlen(hostname))))
		die("setting hostname", hostname);
	if (cpu >= 0) {
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		if (sched_setaffinity(0, sizeof(set), &set))
			die("pinning to a CPU", argv[optind]);
	}
	if (want_setsid && setsid() < 0 && errno != EPERM) /* EPERM: is a process group leader already */
		die("starting a session for", argv[optind]);
	if (gid >= 0 && (setgroups(0, NULL) || setresgid(gid, gid, gid)))
		die("setting the group id for", argv[optind]);
	if (uid >= 0 && setresuid(uid, uid, uid))
		die("setting the user id for", argv[optind]);
	if (directory && chdir(directory))
		die("changing to directory", directory);
	if (die_with_parent) {
		/* After setresuid, which clears it; prctl(2). */
		if (prctl(PR_SET_PDEATHSIG, SIGKILL))
			die("asking for the parent's death signal for", argv[optind]);
		if (getppid() != parent)
			raise(SIGKILL); /* the parent went before we asked */
	}
	if (stay >= 0)
		stay_as_parent(stay, argv[optind]);
	if (close_fds)
		syscall(SYS_close_range, 3, ~0U, 0);
	execvp(argv[optind], argv + optind);
	int code = errno == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
	fprintf(stderr, "underpass-exec: executing %s: %s\n", argv[optind], strerror(errno));
	return code;
}
