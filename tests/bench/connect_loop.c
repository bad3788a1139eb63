/* connect() over and over, for tests/bench/refusal.py.
 *
 * connect_loop open|fresh COUNT ADDRESS PORT [PROCESSES]
 * open: one TCP socket for all; fresh: a new one each time. Prints ns a connect, and how many ended
 * otherwise than with ECONNREFUSED or EPERM. The time is this process's CPU time, because others use
 * the machine too; with PROCESSES it says nothing.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static long loop(const char *mode, long count, const struct sockaddr_in *to)
{
	int fresh = !strcmp(mode, "fresh");
	long strange = 0;
	int fd = fresh ? -1 : socket(AF_INET, SOCK_STREAM, 0);

	for (long i = 0; i < count; i++) {
		if (fresh)
			fd = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(fd, (const void *)to, sizeof(*to)) == 0 ||
		    (errno != ECONNREFUSED && errno != EPERM))
			strange++;
		if (fresh)
			close(fd);
	}
	if (!fresh)
		close(fd);
	return strange;
}

int main(int argc, char **argv)
{
	int processes = argc > 5 ? atoi(argv[5]) : 1;
	struct sockaddr_in to = {.sin_family = AF_INET};
	long count, strange = 0;
	double start;

	if (argc < 5 || inet_pton(AF_INET, argv[3], &to.sin_addr) != 1)
		return 2;
	count = atol(argv[2]);
	to.sin_port = htons(atoi(argv[4]));
	start = now();
	if (processes == 1) {
		strange = loop(argv[1], count, &to);
	} else {
		for (int i = 0; i < processes; i++)
			if (fork() == 0)
				_exit(loop(argv[1], count, &to) ? 1 : 0);
		for (int i = 0; i < processes; i++) {
			int status;

			wait(&status);
			strange += status != 0;
		}
	}
	printf("%.1f %ld\n", (now() - start) / count / processes, strange);
	return 0;
}
