/* One thing over and over, on demand and at a rate, for tests/bench/trace.py.
 *
 * trace_loop connect|call|datagram ADDRESS PORT, and on stdin lines "COUNT RATE CPU": so many in
 * bursts of 100, RATE a second (0: as fast as it goes), on that CPU (-1: on any). A connect on one
 * open TCP socket, which has to be refused; getppid(2); or a datagram to itself. Answers each line
 * with CPU time each in ns, the whole in wall-clock ns, and how many ended otherwise than they
 * should. Ends with its input. Waits asleep and counts only the bursts, because others use the
 * machine too.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BURST 100

static int fd;
static struct sockaddr_in to = {.sin_family = AF_INET};

static int refused_connect(void)
{
	return connect(fd, (const void *)&to, sizeof(to)) != 0 && errno == ECONNREFUSED;
}

static int call(void)
{
	return syscall(SYS_getppid) > 0;
}

static int datagram(void)
{
	char byte = 0;

	return sendto(fd, &byte, 1, 0, (const void *)&to, sizeof(to)) == 1 &&
	       recv(fd, &byte, 1, 0) == 1;
}

static long long now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sleep_until(long long when)
{
	struct timespec t = {.tv_sec = when / 1000000000LL, .tv_nsec = when % 1000000000LL};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static void run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (cpu < 0 || i == cpu)
			CPU_SET(i, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

int main(int argc, char **argv)
{
	int (*once)(void) = refused_connect;
	long count, rate;
	int cpu;

	if (argc < 4 || inet_pton(AF_INET, argv[2], &to.sin_addr) != 1)
		return 2;
	to.sin_port = htons(atoi(argv[3]));
	fd = socket(AF_INET, strcmp(argv[1], "datagram") ? SOCK_STREAM : SOCK_DGRAM, 0);
	if (!strcmp(argv[1], "call"))
		once = call;
	if (!strcmp(argv[1], "datagram")) {
		socklen_t size = sizeof(to);

		once = datagram;
		if (bind(fd, (const void *)&to, size) || getsockname(fd, (void *)&to, &size))
			return 1;
	}
	while (scanf("%ld %ld %d", &count, &rate, &cpu) == 3) {
		long long spent = 0, begun, due;
		long strange = 0;

		run_on(cpu);
		begun = due = now(CLOCK_MONOTONIC);
		for (long done = 0; done < count;) {
			long long start = now(CLOCK_PROCESS_CPUTIME_ID);
			long end = done + BURST < count ? done + BURST : count;

			for (; done < end; done++)
				strange += !once();
			spent += now(CLOCK_PROCESS_CPUTIME_ID) - start;
			if (rate) {
				due += 1000000000LL * BURST / rate;
				sleep_until(due);
			}
		}
		printf("%.1f %lld %ld\n", (double)spent / count, now(CLOCK_MONOTONIC) - begun, strange);
		fflush(stdout);
	}
	return 0;
}
