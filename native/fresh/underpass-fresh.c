/*
 * For a container's probes, where there is no shell: is FILE there, and was it written within the last SECONDS? The agent writes
 * its files anew all the time, from the loop that does its work; one that hangs leaves them as they are.
 *
 * underpass-fresh FILE SECONDS
 *
 * Exit 0: yes. 1: no, and why on stderr. 2: it was called in another way.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

int main(int argc, char **argv)
{
	char *end = NULL;
	long seconds = argc == 3 ? strtol(argv[2], &end, 10) : 0;
	if (seconds <= 0 || !end || *end) {
		fprintf(stderr, "usage: underpass-fresh FILE SECONDS\n");
		return 2;
	}
	struct stat file;
	if (stat(argv[1], &file)) {
		fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	long long age = (long long)time(NULL) - file.st_mtim.tv_sec;
	if (age > seconds) {
		fprintf(stderr, "%s: written %lld s ago, expected at most %ld\n", argv[1], age, seconds);
		return 1;
	}
	return 0;
}
