/* The floor: an HTTP/1.1 server that reads each request whole and answers a constant.
 *
 *     floor PORT
 *
 * One thread, one epoll. It parses what it must to know where a request ends (the head's end, Content-Length, Connection: close), answers
 * requests that were sent ahead in order, and stops reading from a caller who does not read his answers. No server in the table can cost
 * less than this on the same machine with the same load; what it costs is the kernel's price and the load generator's, not a server's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD_MAX = 16384, CHUNK = 262144, EVENTS = 256, COPIES = 64, OWED_MAX = 1 << 20 };

static const char ANSWER[] = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 51\r\n\r\n"
                             "{\"predictions\": [{\"label\": 1, \"probability\": 0.5}]}"; /* 51 bytes, counted by main() */
static const char LENGTH_REQUIRED[] = "HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
#define ANSWER_BYTES (sizeof ANSWER - 1)

struct caller {
    int fd;
    int closing;   /* close when everything owed is written */
    int refused;   /* the last thing owed is LENGTH_REQUIRED */
    int events;    /* what epoll is asked for */
    size_t skip;   /* bytes of a body still to come */
    size_t owed;   /* bytes of answers still to write */
    size_t have;   /* bytes of an unfinished head */
    char head[HEAD_MAX];
};

static char answers[COPIES * ANSWER_BYTES]; /* so that answers to requests sent ahead leave in one write */
static char chunk[CHUNK];
static int poller;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(struct caller *c, int events) {
    if (events == c->events) return;
    struct epoll_event event = {.events = (uint32_t)events, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
    c->events = events;
}

/* Return the value of a header in a head that ends in an empty line, or NULL. */
static const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, length) && line[2 + length] == ':') return line + 3 + length + strspn(line + 3 + length, " \t");
    return NULL;
}

/* Take one whole head: owe an answer and know how much body follows. */
static void take_head(struct caller *c, char *head) {
    const char *length = header(head, "content-length"), *connection = header(head, "connection");
    if (!length && (header(head, "transfer-encoding") || !strncmp(head, "POST", 4))) {
        c->closing = c->refused = 1;
        c->owed += sizeof LENGTH_REQUIRED - 1;
        return;
    }
    c->skip = length ? strtoull(length, NULL, 10) : 0;
    c->owed += ANSWER_BYTES;
    const char *line_end = strstr(head, "\r\n");
    int old = line_end - head >= 8 && !strncmp(line_end - 8, "HTTP/1.0", 8);
    if (old || (connection && !strncasecmp(connection, "close", 5))) c->closing = 1;
}

/* Take what came: bodies are skipped, heads taken; what is left of an unfinished head is kept. Return 0 when the caller must go. */
static int take(struct caller *c, char *data, size_t n) {
    while (n && !(c->closing && !c->skip)) {
        if (c->skip) {
            size_t part = n < c->skip ? n : c->skip;
            c->skip -= part, data += part, n -= part;
            continue;
        }
        size_t part = n < HEAD_MAX - 1 - c->have ? n : HEAD_MAX - 1 - c->have;
        size_t from = c->have > 3 ? c->have - 3 : 0; /* the empty line may have begun in what was kept */
        memcpy(c->head + c->have, data, part);
        char *end = memmem(c->head + from, c->have + part - from, "\r\n\r\n", 4);
        if (!end) {
            c->have += part;
            return part == n; /* a head larger than HEAD_MAX is nobody's we know */
        }
        size_t used = (size_t)(end + 4 - c->head) - c->have;
        end[4] = 0;
        take_head(c, c->head);
        c->have = 0, data += used, n -= used;
    }
    return 1;
}

/* Write what is owed. Return 0 when the caller must go. */
static int settle(struct caller *c) {
    while (c->owed) {
        size_t tail = c->refused ? sizeof LENGTH_REQUIRED - 1 : 0;
        ssize_t n;
        if (c->owed <= tail) {
            n = write(c->fd, LENGTH_REQUIRED + tail - c->owed, c->owed);
        } else {
            size_t left = c->owed - tail, part = left % ANSWER_BYTES; /* the rest of an answer that was cut, then whole ones */
            size_t whole = left / ANSWER_BYTES < COPIES - 1 ? left / ANSWER_BYTES : COPIES - 1;
            n = write(c->fd, answers + (part ? ANSWER_BYTES - part : 0), part + whole * ANSWER_BYTES);
        }
        if (n < 0) {
            if (errno != EAGAIN) return 0;
            break;
        }
        c->owed -= (size_t)n;
    }
    if (!c->owed && c->closing && !c->skip) return 0;
    watch(c, (c->owed < OWED_MAX ? EPOLLIN : 0) | (c->owed ? EPOLLOUT : 0));
    return 1;
}

static void serve(struct caller *c, uint32_t events) {
    if (events & EPOLLIN) {
        ssize_t n = read(c->fd, chunk, CHUNK);
        if (n == 0 || (n < 0 && errno != EAGAIN) || (n > 0 && !take(c, chunk, (size_t)n))) goto gone;
    } else if (events & (EPOLLERR | EPOLLHUP)) {
        goto gone;
    }
    if (settle(c)) return;
gone:
    close(c->fd);
    free(c);
}

static void welcome(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        struct caller *c = malloc(sizeof *c);
        if (!c) die("malloc");
        c->fd = fd, c->closing = c->refused = 0, c->events = EPOLLIN, c->skip = c->owed = c->have = 0;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: floor PORT\n");
        return 2;
    }
    if (strlen(strstr(ANSWER, "\r\n\r\n") + 4) != 51) {
        fprintf(stderr, "floor: the constant's Content-Length is wrong\n");
        return 1;
    }
    for (int i = 0; i < COPIES; i++) memcpy(answers + (size_t)i * ANSWER_BYTES, ANSWER, ANSWER_BYTES);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, sizeof address)) die("bind");
    if (listen(listener, 4096)) die("listen");
    if ((poller = epoll_create1(0)) < 0) die("epoll_create1");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, ready[EVENTS];
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event)) die("epoll_ctl");
    for (;;) {
        int n = epoll_wait(poller, ready, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.ptr) serve(ready[i].data.ptr, ready[i].events);
            else welcome(listener);
        }
    }
}
