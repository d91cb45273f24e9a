/* echo -- the limit for every datagram server: receive, send a reply of a given size, nothing else.
 *
 *   cc -O2 -o echo echo.c
 *   ./echo SOCKET-PATH REPLY-BYTES
 *
 * Serves until it is killed. The socket stays behind: give it a folder of its own.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { LONGEST_DATAGRAM = 1 << 16 };

static char request[LONGEST_DATAGRAM], reply[LONGEST_DATAGRAM];

static int serve(const char *path) {
    struct sockaddr_un here = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    strncpy(here.sun_path, path, sizeof here.sun_path - 1);
    if (fd >= 0 && !bind(fd, (struct sockaddr *)&here, sizeof here)) return fd;
    perror(path);
    exit(1);
}

int main(int argc, char **argv) {
    int size = argc == 3 ? atoi(argv[2]) : 0;
    if (size < 1 || size > LONGEST_DATAGRAM) {
        fprintf(stderr, "usage: echo SOCKET-PATH REPLY-BYTES (1..%d)\n", LONGEST_DATAGRAM);
        return 2;
    }
    memset(reply, 'x', size);
    for (int fd = serve(argv[1]);;) {
        struct sockaddr_un peer;
        socklen_t peer_size = sizeof peer;
        if (recvfrom(fd, request, sizeof request, 0, (struct sockaddr *)&peer, &peer_size) >= 0)
            sendto(fd, reply, size, 0, (struct sockaddr *)&peer, peer_size);
    }
}
