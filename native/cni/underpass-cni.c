/*
 * A chained CNI plugin that changes nothing: it tells the node's agent of the pod whose network was just made, and returns
 * when the agent has enrolled it, or has found that nobody asks for that. No program of the pod runs before that.
 *
 * Its entry in the node's list of plugins, which the agent writes:
 *   {"type": "underpass-cni", "socket": "/run/underpass/default/cni.sock", "labelled": "/run/underpass/default/labelled",
 *    "whenAway": "wait-labelled"}
 * `whenAway` is what becomes of a pod while no agent answers: `wait` (an error by which kubelet tries again), `go-on` (the agent
 * enrols it later), `wait-labelled`: wait in the namespaces that the file `labelled` lists, a name a line.
 *
 * To the agent goes `CNI_…=…` a line, an empty line, and the configuration as it came; back comes `ok`, or `error: …`.
 * https://www.cni.dev/docs/spec/
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { ERROR_BAD_CONFIGURATION = 7, ERROR_TRY_AGAIN = 11 };

#define MAX_INPUT (1 << 20)
#define MAX_ANSWER 1024
#define CONNECT_SECONDS 2
/* Longer than the agent takes to say that a pod can't be enrolled. */
#define ANSWER_SECONDS 30
#define LIST_LINE 256

struct span {
	const char *at;
	size_t length;
};

static struct span version = { "\"1.0.0\"", 7 };

/* Prints text as the inside of a JSON string. */
static void print_escaped(const char *text)
{
	for (; *text; text++) {
		unsigned char c = *text;
		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 0x20)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
}

static int fail(int code, const char *message, const char *details)
{
	printf("{\"cniVersion\":%.*s,\"code\":%d,\"msg\":\"underpass-cni: ", (int)version.length, version.at, code);
	print_escaped(message);
	printf("\",\"details\":\"");
	print_escaped(details);
	printf("\"}\n");
	return 1;
}

static const char *skip_blanks(const char *at)
{
	return at + strspn(at, " \t\r\n");
}

/* Behind the string that begins at `at`; null: it has no end. */
static const char *skip_string(const char *at)
{
	for (at++; *at && *at != '"'; at++)
		if (*at == '\\' && at[1])
			at++;
	return *at ? at + 1 : NULL;
}

/* Behind the value that begins at `at`; null: it has no end. What is between is not checked: whoever made it has parsed it. */
static const char *skip_value(const char *at)
{
	if (*at == '"')
		return skip_string(at);
	if (*at != '{' && *at != '[')
		return at + strcspn(at, ",}] \t\r\n");
	int depth = 0;
	while (*at) {
		if (*at == '"') {
			at = skip_string(at);
			if (!at)
				return NULL;
			continue;
		}
		if (*at == '{' || *at == '[')
			depth++;
		else if (*at == '}' || *at == ']')
			depth--;
		at++;
		if (depth == 0)
			return at;
	}
	return NULL;
}

/* The value of a key of the outermost object; nothing in it: not there. */
static struct span value_of(const char *json, const char *key)
{
	struct span none = { NULL, 0 };
	const char *at = skip_blanks(json);
	if (*at++ != '{')
		return none;
	for (;;) {
		at = skip_blanks(at);
		if (*at != '"')
			return none;
		const char *name = at + 1;
		at = skip_string(at);
		if (!at)
			return none;
		size_t length = at - 1 - name;
		at = skip_blanks(at);
		if (*at++ != ':')
			return none;
		at = skip_blanks(at);
		const char *begin = at;
		at = skip_value(at);
		if (!at || at == begin)
			return none;
		if (length == strlen(key) && !memcmp(name, key, length))
			return (struct span){ begin, at - begin };
		at = skip_blanks(at);
		if (*at++ != ',')
			return none;
	}
}

/* A plain string, without escapes, copied; null: it is not there, or it is something else. */
static char *string_of(const char *json, const char *key)
{
	struct span value = value_of(json, key);
	if (value.length < 2 || *value.at != '"' || memchr(value.at, '\\', value.length))
		return NULL;
	return strndup(value.at + 1, value.length - 2);
}

/* One of the pairs `A=1;B=2` of CNI_ARGS, copied. */
static char *argument(const char *name)
{
	const char *at = getenv("CNI_ARGS");
	size_t length = strlen(name);
	while (at && *at) {
		size_t end = strcspn(at, ";");
		if (end > length && !strncmp(at, name, length) && at[length] == '=')
			return strndup(at + length + 1, end - length - 1);
		at += end + (at[end] == ';');
	}
	return NULL;
}

static char *read_all(FILE *from)
{
	char *text = malloc(MAX_INPUT + 1);
	size_t length = text ? fread(text, 1, MAX_INPUT + 1, from) : 0;
	if (!text || length > MAX_INPUT)
		return NULL;
	text[length] = 0;
	return text;
}

static bool write_all(int fd, const char *text, size_t length)
{
	while (length) {
		ssize_t n = send(fd, text, length, MSG_NOSIGNAL);
		if (n <= 0)
			return false;
		text += n;
		length -= n;
	}
	return true;
}

static bool write_variable(int fd, const char *name)
{
	const char *value = getenv(name);
	char line[4096];
	int n = snprintf(line, sizeof(line), "%s=%s\n", name, value ? value : "");
	return n > 0 && (size_t)n < sizeof(line) && !strchr(value ? value : "", '\n') && write_all(fd, line, n);
}

/* Asks the agent. Its answer; null: there is none, and `why` says why. */
static const char *ask(const char *path, const char *input, char *answer, const char **why)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	*why = "the path of its socket is too long";
	if (strlen(path) >= sizeof(address.sun_path))
		return NULL;
	strcpy(address.sun_path, path);
	struct timeval connecting = { CONNECT_SECONDS, 0 }, answering = { ANSWER_SECONDS, 0 };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	*why = strerror(errno);
	if (fd < 0)
		return NULL;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &connecting, sizeof(connecting));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &answering, sizeof(answering));
	size_t length = 0;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		*why = strerror(errno);
	} else if (!write_variable(fd, "CNI_COMMAND") || !write_variable(fd, "CNI_CONTAINERID") || !write_variable(fd, "CNI_NETNS") ||
		   !write_variable(fd, "CNI_IFNAME") || !write_variable(fd, "CNI_ARGS") || !write_all(fd, "\n", 1) || !write_all(fd, input, strlen(input)) ||
		   shutdown(fd, SHUT_WR)) {
		*why = "it did not take what it was told";
	} else {
		*why = "it did not answer";
		ssize_t n;
		while (length < MAX_ANSWER && (n = recv(fd, answer + length, MAX_ANSWER - length, 0)) > 0)
			length += n;
	}
	close(fd);
	while (length && answer[length - 1] == '\n')
		length--;
	answer[length] = 0;
	return length ? answer : NULL;
}

/* Whether a pod of this namespace is to wait for an agent. */
static bool is_listed(const char *path, const char *namespace)
{
	FILE *list = path && namespace ? fopen(path, "re") : NULL;
	char line[LIST_LINE];
	bool found = false;
	while (list && !found && fgets(line, sizeof(line), list)) {
		line[strcspn(line, "\n")] = 0;
		found = !strcmp(line, namespace);
	}
	if (list)
		fclose(list);
	return found;
}

static int add(const char *input)
{
	struct span result = value_of(input, "prevResult");
	char *socket_path = string_of(input, "socket"), *mode = string_of(input, "whenAway"), *labelled = string_of(input, "labelled");
	if (!result.length || *result.at != '{')
		return fail(ERROR_BAD_CONFIGURATION, "there is no prevResult", "it has to stand behind the plugin that makes the pod's network");
	if (!socket_path)
		return fail(ERROR_BAD_CONFIGURATION, "there is no socket", "expected the path of the agent's socket");
	char answer[MAX_ANSWER + 1];
	const char *why, *said = ask(socket_path, input, answer, &why);
	if (said && strcmp(said, "ok"))
		return fail(ERROR_TRY_AGAIN, "the agent could not enrol the pod", said);
	if (!said) {
		bool waits = mode && !strcmp(mode, "wait");
		if (!mode || !strcmp(mode, "wait-labelled"))
			waits = is_listed(labelled, argument("K8S_POD_NAMESPACE"));
		if (waits)
			return fail(ERROR_TRY_AGAIN, "no agent to enrol the pod", why);
	}
	printf("%.*s\n", (int)result.length, result.at);
	return 0;
}

int main(void)
{
	const char *command = getenv("CNI_COMMAND");
	if (!command)
		return fail(ERROR_BAD_CONFIGURATION, "CNI_COMMAND is not set", "this is a CNI plugin, which a container runtime runs");
	if (!strcmp(command, "VERSION")) {
		printf("{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n");
		return 0;
	}
	char *input = read_all(stdin);
	if (!input)
		return fail(ERROR_BAD_CONFIGURATION, "the configuration is longer than 1 MiB", "");
	struct span said = value_of(input, "cniVersion");
	if (said.length)
		version = said;
	/* What a pod's end needs, the agent sees by itself. */
	return strcmp(command, "ADD") ? 0 : add(input);
}
