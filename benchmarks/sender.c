/* The load generator: POSTs files to 127.0.0.1 over HTTP/1.1 keep-alive connections and says what came back.
 *
 *     sender MODE PORT PATH CONTENT_TYPE [name=value ...] -- FILE...
 *
 * Modes:
 *   closed   `connections` callers, each sends its next request when it has its answer, for `seconds`; then waits for the last answers, so
 *            that no work the server did goes uncounted. Rates are over the time to the last answer.
 *   open     requests fall due at `rate` a second for `seconds`, whatever the server does: arrivals=poisson (default) or constant. A request
 *            that finds all `connections` busy waits here. Latency counts from when it fell due, so a server that stalls pays for everybody
 *            it kept waiting. Rates are over `seconds`.
 *   burst    `connections` connections are opened at once, each with one request, which is sent again until it is answered: after a 429 or
 *            503 when Retry-After (or retry-after-ms) says, after a broken connection in 50 ms.
 *
 * Options: connections=1 seconds=1 rate=0 arrivals=poisson timeout=60 (seconds a request may take; for a burst, all of it) seed=1
 *          keep=0 answers=FILE  (keep so many answers, each as likely as any other, as lines "turn status bytes" followed by the body; turn is
 *          the request's number, and turn modulo the number of files is which file was sent)
 *
 * Prints one line of JSON. "answered" counts statuses 200 to 299, the only ones whose latency counts; "refused" 429 and 503; "rejected" all
 * other statuses; "broken" connections that failed or spoke no HTTP; "timeouts" requests given up. It spends one thread, and tells how much
 * CPU that was ("cpu_s"), because it shares the machine with the server.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_MAX = 65536, BODY_MAX = 64 << 20, FIRST_READ = 16384, EVENTS = 512, STATUSES = 600 };
static const int64_t NEVER = INT64_MAX, SECOND = 1000000000, MILLISECOND = 1000000;

enum state { CLOSED, CONNECTING, IDLE, SENDING, WAITING };
struct message {
    char *data;
    size_t size;
};
struct connection {
    int fd, events, number;
    enum state state;
    int64_t due;      /* what its latency counts from */
    int64_t deadline; /* when the request is given up */
    int64_t wake;     /* when to connect or send again, NEVER when it need not */
    long turn;        /* number of its request, -1 when it has none */
    size_t sent;
    char *in;
    size_t have, room;
};
struct answer {
    long turn;
    int status;
    size_t size;
    char *body;
};
struct head {
    int status, chunked, close;
    long long length; /* -1: until the connection ends */
    int64_t retry_ns; /* -1: it does not say */
    size_t size;
};

static enum { CLOSED_LOOP, OPEN_LOOP, BURST } mode;
static int port, n_connections = 1, poisson = 1, poller, timer;
static double seconds = 1, rate, timeout_s = 60;
static long keep;
static uint64_t random_state = 1;
static const char *answers_file;

static struct message *requests;
static int n_requests;
static struct connection *connections;
static struct answer *kept;
static struct sockaddr_in server;

static int64_t began, stop, last_answer, look; /* look: when the clocks of the connections must be looked at next */
static int64_t *latencies;
static size_t n_latencies, latencies_room;
static long turns, statuses[STATUSES], answered, in_time, refused, rejected, broken, timeouts, retries, opened, n_busy, n_done;
static size_t bytes_in;

/* Requests that fell due and found no idle connection: a ring of the times they fell due. */
static int64_t *backlog;
static size_t backlog_first, backlog_size, backlog_room;
/* Idle connections; the one used last is used next, as pools do, so that a low rate needs few of them and no keep-alive runs out. */
static int *idle;
static int n_idle;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *grown(void *old, size_t bytes) {
    void *new = realloc(old, bytes);
    if (!new) die("realloc");
    return new;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* xorshift64*: a fraction in (0, 1]. */
static double fraction(void) {
    random_state ^= random_state >> 12, random_state ^= random_state << 25, random_state ^= random_state >> 27;
    return (double)((random_state * 0x2545F4914F6CDD1DULL >> 11) + 1) / 9007199254740992.0;
}

/* --- what came back ------------------------------------------------------------------------------------------------------------------ */

static void keep_answer(const struct connection *c, int status, const char *body, size_t size) {
    static long seen; /* reservoir sampling (Vitter, algorithm R) */
    long place = seen < keep ? seen : (long)((double)(seen + 1) * (1 - fraction()));
    seen++;
    if (place >= keep) return;
    kept[place] = (struct answer){c->turn, status, size, grown(kept[place].body, size + 1)};
    memcpy(kept[place].body, body, size);
}

static void count_latency(int64_t latency) {
    if (n_latencies == latencies_room) {
        latencies_room = latencies_room ? 2 * latencies_room : 65536;
        latencies = grown(latencies, latencies_room * sizeof *latencies);
    }
    latencies[n_latencies++] = latency;
}

static const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, length) && line[2 + length] == ':') return line + 3 + length + strspn(line + 3 + length, " \t");
    return NULL;
}

/* Parse a head. Return 1 when it is whole, 0 when more must come, -1 when it is no HTTP. The buffer has room for a byte more. */
static int parse_head(char *in, size_t have, struct head *head) {
    char *end = memmem(in, have, "\r\n\r\n", 4);
    if (!end) return have > HEAD_MAX ? -1 : 0;
    head->size = (size_t)(end + 4 - in);
    char after = end[4];
    end[4] = 0;
    int minor, parsed = sscanf(in, "HTTP/1.%d %d", &minor, &head->status) == 2 && head->status >= 100 && head->status < STATUSES;
    if (parsed) {
        const char *length = header(in, "content-length"), *encoding = header(in, "transfer-encoding"), *connection = header(in, "connection");
        const char *ms = header(in, "retry-after-ms"), *s = header(in, "retry-after");
        head->chunked = encoding && !strncasecmp(encoding, "chunked", 7);
        head->length = length ? strtoll(length, NULL, 10) : -1;
        head->close = connection ? !strncasecmp(connection, "close", 5) : minor == 0;
        head->retry_ns = ms ? strtoll(ms, NULL, 10) * MILLISECOND : s ? (int64_t)(strtod(s, NULL) * (double)SECOND) : -1;
        if (head->status == 204 || head->status == 304) head->length = 0;
    }
    end[4] = after;
    return parsed && head->length <= BODY_MAX ? 1 : -1;
}

/* Join the chunks in place. Return 1 when the last has come (`used` of `have` bytes, `size` of body), 0 when more must come, -1 when wrong. */
static int join_chunks(char *in, size_t have, size_t *used, size_t *size) {
    size_t at = 0;
    for (int pass = 0; pass < 2; pass++) { /* look whether all is there before anything is moved */
        at = *size = 0;
        for (;;) {
            char *line = in + at, *end = memmem(line, have - at, "\r\n", 2);
            if (!end) return have - at > 64 ? -1 : 0;
            size_t chunk = strtoul(line, NULL, 16), next = (size_t)(end + 2 - in);
            if (chunk > BODY_MAX) return -1;
            if (have < next + chunk + 2) return 0;
            if (chunk == 0) {
                *used = next + 2; /* no server here sends trailers */
                if (memcmp(in + next, "\r\n", 2)) return -1;
                break;
            }
            if (pass) memmove(in + *size, in + next, chunk);
            *size += chunk, at = next + chunk + 2;
        }
    }
    return 1;
}

/* --- connections ---------------------------------------------------------------------------------------------------------------------- */

static void watch(struct connection *c, int events) {
    if (events == c->events) return;
    struct epoll_event event = {.events = (uint32_t)events, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
    c->events = events;
}

static void hang_up(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1, c->state = CLOSED, c->have = c->sent = 0;
}

static void wake_at(struct connection *c, int64_t at) {
    c->wake = at;
    if (at < look) look = at;
}

static void make_idle(struct connection *c) {
    if (c->state != CLOSED) c->state = IDLE;
    if (mode == OPEN_LOOP) idle[n_idle++] = c->number;
}

static void send_rest(struct connection *c);
static void lose(struct connection *c);

static void dial(struct connection *c) {
    c->wake = NEVER;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("socket");
    opened++;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    int refused_at_once = connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS;
    c->state = CONNECTING, c->events = EPOLLIN | EPOLLOUT;
    struct epoll_event event = {.events = (uint32_t)c->events, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
    if (refused_at_once) lose(c);
}

/* Give a connection the request that fell due at `due`; a closed one is opened first. */
static void begin(struct connection *c, int64_t due) {
    c->turn = turns++, c->due = due, c->deadline = now_ns() + (int64_t)(timeout_s * (double)SECOND), c->sent = 0, n_busy++;
    if (c->state == IDLE) send_rest(c);
    else if (c->state == CLOSED && c->wake == NEVER) dial(c);
}

static void send_rest(struct connection *c) {
    struct message *m = &requests[c->turn % n_requests];
    c->state = SENDING;
    while (c->sent < m->size) {
        ssize_t n = send(c->fd, m->data + c->sent, m->size - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) {
                watch(c, EPOLLIN | EPOLLOUT);
                return;
            }
            if (errno == EPIPE || errno == ECONNRESET) break; /* an early answer may still be there to read; if not, reading says so */
            lose(c);
            return;
        }
        c->sent += (size_t)n;
    }
    c->state = WAITING;
    watch(c, EPOLLIN);
}

/* The connection's request is over, one way or another: go on as the mode says. */
static void over(struct connection *c) {
    c->turn = -1, n_busy--;
    if (mode == BURST) {
        n_done++;
        hang_up(c);
    } else if (mode == CLOSED_LOOP) {
        make_idle(c);
        if (c->wake == NEVER && now_ns() < stop) begin(c, now_ns());
    } else {
        make_idle(c);
    }
}

/* The connection failed. In a burst the request is sent again, elsewhere it is lost. */
static void lose(struct connection *c) {
    hang_up(c);
    if (c->turn < 0) return; /* an idle connection may be closed by the server: that is no failure */
    broken++;
    wake_at(c, now_ns() + (mode == BURST ? 50 : 10) * MILLISECOND);
    if (mode == BURST) retries++;
    else over(c);
}

static void give_up(struct connection *c) {
    timeouts++;
    hang_up(c);
    over(c);
}

/* Say it again later: the server refused, and may have said when to come back. */
static void retry(struct connection *c, int64_t after, int closing) {
    retries++;
    if (closing) hang_up(c);
    else c->state = IDLE;
    c->sent = 0;
    wake_at(c, now_ns() + (after < 0 ? 100 * MILLISECOND : after));
}

static void take_answer(struct connection *c, const struct head *head, const char *body, size_t size) {
    int64_t now = now_ns();
    statuses[head->status]++;
    int good = head->status / 100 == 2, refusal = head->status == 429 || head->status == 503;
    refused += refusal;
    if (c->state == SENDING || head->close) hang_up(c); /* answered before it was all sent: what follows cannot be told apart */
    if (mode == BURST && refusal) {
        retry(c, head->retry_ns, c->fd < 0);
        return;
    }
    if (good) {
        answered++, in_time += now <= stop, last_answer = now;
        count_latency(now - c->due);
    } else {
        rejected += !refusal;
    }
    if (keep && good) keep_answer(c, head->status, body, size);
    over(c);
}

/* Take answers from what has been read. */
static void take(struct connection *c, int ended) {
    while (c->have || ended) {
        struct head head;
        int whole = parse_head(c->in, c->have, &head);
        if (whole == 1 && head.status < 200) { /* 100 Continue and its kind */
            c->have -= head.size;
            memmove(c->in, c->in + head.size, c->have);
            continue;
        }
        size_t used = 0, size = 0;
        if (whole == 1 && head.chunked) {
            whole = join_chunks(c->in + head.size, c->have - head.size, &used, &size);
        } else if (whole == 1) {
            used = size = head.length < 0 ? c->have - head.size : (size_t)head.length;
            whole = head.length < 0 ? ended : c->have - head.size >= size;
        }
        if (whole < 0 || c->turn < 0 || (whole == 0 && ended)) {
            lose(c);
            return;
        }
        if (whole == 0) return;
        if (c->have != head.size + used) head.close = 1; /* more than was asked for: do not trust this connection again */
        c->have = 0;
        if (ended) head.close = 1;
        take_answer(c, &head, c->in + head.size, size);
        return;
    }
}

static void receive(struct connection *c) {
    if (c->room - c->have < FIRST_READ / 2) {
        c->room = c->room ? 2 * c->room : FIRST_READ;
        if (c->room > 2 * (size_t)BODY_MAX) {
            lose(c);
            return;
        }
        c->in = grown(c->in, c->room + 1);
    }
    ssize_t n = read(c->fd, c->in + c->have, c->room - c->have);
    if (n < 0) {
        if (errno != EAGAIN) lose(c);
        return;
    }
    bytes_in += (size_t)n, c->have += (size_t)n;
    if (n == 0 && c->have == 0) lose(c);
    else take(c, n == 0);
}

static void handle(struct connection *c, uint32_t events) {
    if (c->state == CLOSED) return; /* closed by what an earlier event of this round did */
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            lose(c);
            return;
        }
        watch(c, EPOLLIN);
        c->state = IDLE;
        if (c->turn >= 0) send_rest(c);
        return;
    }
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) receive(c);
    else if ((events & EPOLLOUT) && c->state == SENDING) send_rest(c);
}

/* --- time ------------------------------------------------------------------------------------------------------------------------------ */

static void push_backlog(int64_t due) {
    if (backlog_size == backlog_room) {
        size_t room = backlog_room ? 2 * backlog_room : 4096;
        int64_t *wider = grown(NULL, room * sizeof *wider);
        for (size_t i = 0; i < backlog_size; i++) wider[i] = backlog[(backlog_first + i) % backlog_room];
        free(backlog);
        backlog = wider, backlog_first = 0, backlog_room = room;
    }
    backlog[(backlog_first + backlog_size++) % backlog_room] = due;
}

/* Let fall due what falls due, give it to idle connections, and return when the next falls due. */
static int64_t arrivals(int64_t *next) {
    for (int64_t now = now_ns(); *next <= now && *next < stop;) {
        push_backlog(*next);
        *next += (int64_t)((poisson ? -log(fraction()) : 1) / rate * (double)SECOND);
    }
    while (backlog_size && n_idle) {
        struct connection *c = &connections[idle[--n_idle]];
        int64_t due = backlog[backlog_first];
        backlog_first = (backlog_first + 1) % backlog_room, backlog_size--;
        begin(c, due);
    }
    return *next < stop ? *next : NEVER;
}

/* Wake what waits for its time, and give up what took too long. */
static void look_at_clocks(int64_t now) {
    look = now + 500 * MILLISECOND;
    for (int i = 0; i < n_connections; i++) {
        struct connection *c = &connections[i];
        if (c->turn >= 0 && now >= c->deadline) {
            give_up(c);
        } else if (c->wake <= now) {
            c->wake = NEVER;
            if (c->turn < 0) {
                if (mode == CLOSED_LOOP && now < stop) begin(c, now);
            } else if (c->state == IDLE) {
                send_rest(c);
            } else if (c->state == CLOSED) {
                dial(c);
            }
        }
        if (c->wake < look) look = c->wake;
    }
}

static void set_timer(int64_t at) {
    struct itimerspec when = {.it_value = {at / SECOND, at % SECOND}};
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL)) die("timerfd_settime");
}

static int finished(int64_t now) {
    if (mode == BURST) return n_done == n_connections;
    return now >= stop && n_busy == 0 && backlog_size == 0;
}

static void run(void) {
    struct epoll_event ready[EVENTS];
    int64_t next_due = began, armed = NEVER;
    for (;;) {
        int64_t now = now_ns();
        if (finished(now) || (mode == OPEN_LOOP && now > stop + (int64_t)(timeout_s * (double)SECOND))) return;
        int64_t due = mode == OPEN_LOOP ? arrivals(&next_due) : NEVER;
        if (now >= look) look_at_clocks(now);
        int64_t wake = look < due ? look : due;
        if (now < stop && stop < wake) wake = stop;
        if (wake != armed) set_timer(armed = wake);
        int n = epoll_wait(poller, ready, EVENTS, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            if (ready[i].data.ptr) handle(ready[i].data.ptr, ready[i].events);
            else armed = NEVER;
        }
    }
}

/* --- start and end --------------------------------------------------------------------------------------------------------------------- */

static struct message request_for(const char *file, const char *path, const char *content_type) {
    FILE *in = fopen(file, "rb");
    struct stat facts;
    if (!in || fstat(fileno(in), &facts)) die(file);
    char head[4096];
    int size = snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: %s\r\nContent-Length: %lld\r\n\r\n", path, port,
                        content_type, (long long)facts.st_size);
    if (size >= (int)sizeof head) die("the path is too long");
    struct message m = {grown(NULL, (size_t)size + (size_t)facts.st_size), (size_t)size + (size_t)facts.st_size};
    memcpy(m.data, head, (size_t)size);
    if (fread(m.data + size, 1, (size_t)facts.st_size, in) != (size_t)facts.st_size) die(file);
    fclose(in);
    return m;
}

static int option(const char *argument) {
    const char *value = strchr(argument, '=');
    if (!value) return 0;
    size_t n = (size_t)(value++ - argument);
#define IS(name) (n == sizeof name - 1 && !strncmp(argument, name, n))
    if (IS("connections")) n_connections = atoi(value);
    else if (IS("seconds")) seconds = atof(value);
    else if (IS("rate")) rate = atof(value);
    else if (IS("arrivals")) poisson = !strcmp(value, "poisson");
    else if (IS("timeout")) timeout_s = atof(value);
    else if (IS("seed")) random_state = strtoull(value, NULL, 10) * 2 + 1;
    else if (IS("keep")) keep = atol(value);
    else if (IS("answers")) answers_file = value;
    else return 0;
    return 1;
}

static void read_command_line(int argc, char **argv) {
    static const char *const modes[] = {"closed", "open", "burst"};
    int at = 5, known = 0;
    for (int i = 0; i < 3 && argc > 1; i++)
        if (!strcmp(argv[1], modes[i])) mode = i, known = 1;
    while (at < argc && option(argv[at])) at++;
    if (!known || at + 1 >= argc || strcmp(argv[at], "--") || n_connections < 1 || (mode == OPEN_LOOP && rate <= 0) || (keep && !answers_file)) {
        fprintf(stderr, "usage: sender closed|open|burst PORT PATH CONTENT_TYPE [name=value ...] -- FILE...\n");
        exit(2);
    }
    port = atoi(argv[2]);
    n_requests = argc - at - 1;
    requests = grown(NULL, (size_t)n_requests * sizeof *requests);
    for (int i = 0; i < n_requests; i++) requests[i] = request_for(argv[at + 1 + i], argv[3], argv[4]);
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The nearest-rank quantile, in milliseconds. */
static double quantile_ms(double q) {
    if (!n_latencies) return 0;
    size_t rank = (size_t)ceil(q * (double)n_latencies);
    return (double)latencies[rank ? rank - 1 : 0] / 1e6;
}

static void report(double cpu_s) {
    if (n_latencies) qsort(latencies, n_latencies, sizeof *latencies, ascending);
    double took = mode == OPEN_LOOP ? seconds : (double)((last_answer ? last_answer : now_ns()) - began) / 1e9;
    long unanswered = n_busy + (long)backlog_size;
    printf("{\"seconds\": %.6f, \"sent\": %ld, \"answered\": %ld, \"in_time\": %ld, \"refused\": %ld, \"rejected\": %ld, \"broken\": %ld, ", took,
           turns, answered, in_time, refused, rejected, broken);
    printf("\"timeouts\": %ld, \"unanswered\": %ld, \"retries\": %ld, \"opened\": %ld, \"bytes_in\": %zu, ", timeouts, unanswered, retries, opened,
           bytes_in);
    printf("\"p50_ms\": %.4f, \"p90_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f, \"cpu_s\": %.6f, \"statuses\": {", quantile_ms(.5),
           quantile_ms(.9), quantile_ms(.99), quantile_ms(1), cpu_s);
    const char *comma = "";
    for (int i = 0; i < STATUSES; i++)
        if (statuses[i]) printf("%s\"%d\": %ld", comma, i, statuses[i]), comma = ", ";
    printf("}}\n");
    if (!keep) return;
    FILE *out = fopen(answers_file, "wb");
    if (!out) die(answers_file);
    for (long i = 0; i < keep && kept[i].body; i++) {
        fprintf(out, "%ld %d %zu\n", kept[i].turn, kept[i].status, kept[i].size);
        fwrite(kept[i].body, 1, kept[i].size, out);
    }
    if (fclose(out)) die(answers_file);
}

static double cpu_used(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv) {
    read_command_line(argc, argv);
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connections = calloc((size_t)n_connections, sizeof *connections);
    idle = calloc((size_t)n_connections, sizeof *idle);
    kept = calloc((size_t)keep + 1, sizeof *kept);
    poller = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (!connections || !idle || !kept || poller < 0 || timer < 0) die("setting up");
    struct epoll_event tick = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, timer, &tick)) die("epoll_ctl");
    double cpu = cpu_used();
    began = now_ns();
    stop = mode == BURST ? NEVER : began + (int64_t)(seconds * (double)SECOND);
    for (int i = 0; i < n_connections; i++) {
        struct connection *c = &connections[i];
        c->fd = c->turn = -1, c->number = i, c->wake = NEVER;
        if (mode == OPEN_LOOP) make_idle(c); /* opened when first needed */
        else begin(c, began);
    }
    run();
    report(cpu_used() - cpu);
    return 0;
}
