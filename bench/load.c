/* load -- closed-loop clients for a datagram server; prints what they saw as one line of key=value pairs.
 *
 *   cc -O2 -o load load.c
 *   ./load [-u[N]] ADDRESS CLIENTS SECONDS REQUEST-FILE [PID...]
 *
 * ADDRESS is the path of a UNIX socket or udp:HOST:PORT. Each client sends the request, waits for its reply and
 * sends again. -u makes every request another one: a number that no other request of any run has takes the place
 * of the first "@@" of the file, or is added behind it as a line of its own. -uN: the numbers are 0 to N-1, again and
 * again. PIDs are the server's processes.
 * The clients' own UNIX sockets stand in a folder below $TMPDIR while it runs.
 *
 *   replies=N        replies received while time ran
 *   rate=N           of them per second
 *   p50_us p99_us max_us    from sending a request to its reply, microseconds
 *   sent=N           requests sent
 *   lost=N           of them never answered, not even in the second after the end
 *   timeouts=N       requests given up after a second; the client sent its next one
 *   refused=N        attempts to send that the kernel refused (no server, or its queue full for a second)
 *   reply_bytes=N    size of the last reply
 *   cpu_us=N         CPU time of the PIDs per reply, user and system, microseconds
 *
 * Exit status 1 when nothing was answered.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { LONGEST_DATAGRAM = 1 << 16, READY_AT_ONCE = 64 };
static const uint64_t SECOND = 1000000000, GLANCE = 100000000; /* nanoseconds */

struct client { int fd; bool waiting; uint64_t sent_at; };

static struct { struct sockaddr_storage address; socklen_t size; } server;
static struct {
    char datagram[2 * LONGEST_DATAGRAM], tail[LONGEST_DATAGRAM]; /* the number, if any, stands between the two */
    size_t head_size, tail_size;
    bool distinct;
    uint64_t numbers; /* 0: as many as there are */
} text;
static struct { uint64_t replies, sent, answered, timeouts, refused, max_ns; ssize_t reply_bytes; } seen;
static char folder[64]; /* of the clients' sockets */

static void fail(const char *what) { perror(what); exit(1); }

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* Latencies are counted in buckets of under 1 % width, 128 to each power of two, so a long run needs no more room. */
enum { STEP_BITS = 7, STEPS = 1 << STEP_BITS, BUCKETS = 65 * STEPS };
static uint64_t histogram[BUCKETS];

static unsigned bucket_of(uint64_t ns) {
    int shift = 63 - __builtin_clzll(ns | 1) - STEP_BITS;
    if (shift < 0) shift = 0;
    return shift * STEPS + (ns >> shift);
}

static double bucket_us(unsigned bucket) {
    int shift = bucket < 2 * STEPS ? 0 : bucket / STEPS - 1;
    return ((double)(bucket - shift * STEPS) + .5) * (double)(1ULL << shift) / 1000;
}

static double percentile_us(double part) {
    uint64_t wanted = seen.replies * part, passed = 0;
    for (unsigned i = 0; i < BUCKETS; i++)
        if ((passed += histogram[i]) > wanted) return bucket_us(i);
    return 0;
}

static uint64_t cpu_of(int count, char **pids) { /* nanoseconds; /proc/PID/stat has it in steps of 10 ms */
    uint64_t all = 0;
    for (int i = 0; i < count; i++) {
        clockid_t clock;
        struct timespec t;
        if ((errno = clock_getcpuclockid(atoi(pids[i]), &clock)) || clock_gettime(clock, &t)) fail(pids[i]);
        all += t.tv_sec * SECOND + t.tv_nsec;
    }
    return all;
}

static void find_udp(char *host) {
    char *colon = strrchr(host, ':');
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *found;
    if (!colon) fail("udp:HOST:PORT");
    *colon = 0;
    if (getaddrinfo(host, colon + 1, &hints, &found)) fail(host);
    memcpy(&server.address, found->ai_addr, server.size = found->ai_addrlen);
}

static void find_server(char *address) {
    struct sockaddr_un *un = (void *)&server.address;
    if (!strncmp(address, "udp:", 4)) { find_udp(address + 4); return; }
    un->sun_family = AF_UNIX;
    strncpy(un->sun_path, address, sizeof un->sun_path - 1);
    server.size = sizeof *un;
}

static void read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    text.head_size = fread(text.datagram, 1, LONGEST_DATAGRAM, file);
    fclose(file);
    char *mark = text.distinct ? memmem(text.datagram, text.head_size, "@@", 2) : NULL;
    if (mark) {
        text.tail_size = text.datagram + text.head_size - (mark + 2);
        memcpy(text.tail, mark + 2, text.tail_size);
        text.head_size = mark - text.datagram;
    } else if (text.distinct) text.tail[text.tail_size++] = '\n';
}

static size_t next_request(void) {
    static uint64_t number; /* starts at the clock's nanosecond: two runs never send the same one */
    if (!text.distinct) return text.head_size;
    if (!number) number = now_ns();
    char *behind = text.datagram + text.head_size;
    behind += sprintf(behind, "%llu", (unsigned long long)(text.numbers ? number % text.numbers : number));
    number++;
    memcpy(behind, text.tail, text.tail_size);
    return behind + text.tail_size - text.datagram;
}

static void make_folder(void) {
    const char *parent = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/load.XXXXXX", parent ? parent : "/tmp");
    if (!mkdtemp(folder)) fail(folder);
}

static void client_path(char *path, size_t room, int number) { snprintf(path, room, "%s/%d", folder, number); }

static void open_client(struct client *client, int number, int epoll) {
    struct timeval patience = {.tv_sec = 1};
    struct sockaddr_un me = {.sun_family = AF_UNIX};
    client->fd = socket(server.address.ss_family, SOCK_DGRAM, 0);
    if (server.address.ss_family == AF_UNIX) {
        client_path(me.sun_path, sizeof me.sun_path, number);
        if (bind(client->fd, (struct sockaddr *)&me, sizeof me)) fail(me.sun_path);
    }
    setsockopt(client->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event)) fail("epoll_ctl");
}

static void ask(struct client *client) {
    size_t size = next_request();
    client->sent_at = now_ns();
    client->waiting = sendto(client->fd, text.datagram, size, 0, (void *)&server.address, server.size) >= 0;
    if (client->waiting) seen.sent++;
    else seen.refused++;
}

static bool take(struct client *client) {
    static char reply[LONGEST_DATAGRAM];
    ssize_t size = recv(client->fd, reply, sizeof reply, MSG_DONTWAIT);
    if (size < 0) return false;
    seen.answered++;
    seen.reply_bytes = size;
    client->waiting = false;
    return true;
}

static void note(uint64_t ns) {
    seen.replies++;
    histogram[bucket_of(ns)]++;
    if (ns > seen.max_ns) seen.max_ns = ns;
}

static void ask_again_after_a_second(struct client *clients, int count, uint64_t now) {
    for (int i = 0; i < count; i++) {
        if (clients[i].waiting && now - clients[i].sent_at < SECOND) continue;
        seen.timeouts += clients[i].waiting;
        ask(&clients[i]);
    }
}

static void run(int epoll, struct client *clients, int count, uint64_t end) {
    struct epoll_event ready[READY_AT_ONCE];
    uint64_t now, glance = 0;
    while ((now = now_ns()) < end) {
        if (now >= glance) { ask_again_after_a_second(clients, count, now); glance = now + GLANCE; }
        int events = epoll_wait(epoll, ready, READY_AT_ONCE, GLANCE / 1000000);
        for (int i = 0; i < events; i++) {
            struct client *client = ready[i].data.ptr;
            if (!take(client)) continue;
            note(now_ns() - client->sent_at);
            ask(client);
        }
    }
}

static void take_late_ones(int epoll, uint64_t end) {
    struct epoll_event ready;
    while (seen.answered < seen.sent && now_ns() < end)
        if (epoll_wait(epoll, &ready, 1, GLANCE / 1000000) > 0) take(ready.data.ptr);
}

static void print(double seconds, uint64_t cpu_ns, bool with_cpu) {
    printf("replies=%llu rate=%.0f p50_us=%.1f p99_us=%.1f max_us=%.1f ", (unsigned long long)seen.replies,
           seen.replies / seconds, percentile_us(.5), percentile_us(.99), seen.max_ns / 1e3);
    printf("sent=%llu lost=%lld timeouts=%llu refused=%llu reply_bytes=%zd", (unsigned long long)seen.sent,
           (long long)(seen.sent - seen.answered), (unsigned long long)seen.timeouts,
           (unsigned long long)seen.refused, seen.reply_bytes);
    if (with_cpu && seen.replies) printf(" cpu_us=%.3f", cpu_ns / 1e3 / seen.replies);
    printf("\n");
}

static void remove_clients(int count) {
    char path[sizeof folder + 16];
    for (int i = 0; i < count; i++) { client_path(path, sizeof path, i); unlink(path); }
    rmdir(folder);
}

int main(int argc, char **argv) {
    text.distinct = argc > 1 && !strncmp(argv[1], "-u", 2);
    text.numbers = text.distinct ? atoi(argv[1] + 2) : 0;
    argc -= text.distinct;
    argv += text.distinct;
    if (argc < 5 || atoi(argv[2]) < 1) {
        fprintf(stderr, "usage: load [-u[N]] ADDRESS CLIENTS SECONDS REQUEST-FILE [PID...]\n");
        return 2;
    }
    int count = atoi(argv[2]), epoll = epoll_create1(0);
    struct client *clients = calloc(count, sizeof *clients);
    find_server(argv[1]);
    read_request(argv[4]);
    make_folder();
    for (int i = 0; i < count; i++) open_client(&clients[i], i, epoll);
    uint64_t before = cpu_of(argc - 5, argv + 5);
    uint64_t start = now_ns();
    run(epoll, clients, count, start + atof(argv[3]) * SECOND);
    double seconds = (now_ns() - start) / 1e9;
    uint64_t after = cpu_of(argc - 5, argv + 5);
    take_late_ones(epoll, now_ns() + SECOND);
    print(seconds, after - before, argc > 5);
    remove_clients(count);
    return seen.replies ? 0 : 1;
}
