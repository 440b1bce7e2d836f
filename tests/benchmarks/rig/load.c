/* A load client for the chat upstream beside it, straight or through whatever is measured.
 *
 * usage: load [options] HOST:PORT[,PORT...] PATH BODY [HEADER...]
 *
 *   --connections N   connections, each with one request after the other (default 1)
 *   --seconds S       until then (default 5)
 *   --spread-ms N     connections begin evenly over that time instead of all at once
 *   --settle-ms N     what comes earlier is not counted
 *   --events N        what a whole stream has; a stream that ends with fewer has lost some
 *   --vary N          `{n}` in BODY and in headers is the connection's number modulo N, 7 digits
 *
 * Connections are dealt out over the ports. When counting begins the line "open" is printed, and
 * "closed" when it ends: whoever measures CPU time reads its clock at these lines. Then comes
 * one line of JSON. Delays are of events, from the upstream's sending to the reading here; `first`
 * is from a request's sending to its first event, `total` to its end. Each is [p50, p99, most].
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_PORTS = 64,
    MAX_LINE = 256,       /* of a header; the rest of a longer one is skipped */
    MAX_DISCONNECTS = 10000,
    STAMP_DIGITS = 16,
};

/* Where in an answer the next byte belongs. */
enum part { HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

/* Where in "w<number> @<stamp>@" the next byte belongs. */
enum mark { OUTSIDE, NUMBER, AT, STAMP };

struct connection {
    int fd;
    int port; /* an index of `ports` */
    char *request;
    int request_size;
    long began_us;

    enum part part;
    char line[MAX_LINE];
    int line_size;
    int status;
    bool chunked;
    long left; /* bytes of the body or of the chunk */

    enum mark mark;
    long number, stamp;
    int digits;
    long next; /* the number that the next event must have */
};

struct samples {
    int *us;
    long count, room;
};

static struct {
    int connections, vary;
    double seconds;
    long spread_us, settle_us, events;
} options = {.connections = 1, .vary = 1, .seconds = 5};

static struct sockaddr_in ports[MAX_PORTS];
static int port_count, poller;
static bool counting;
static struct samples delays, firsts, totals;
static long requests, events, all_requests, all_events;
static long lost, reordered, refused, disconnects;

static long now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

/* Samples ---------------------------------------------------------------------------------- */

static void keep(struct samples *samples, long us)
{
    if (samples->count == samples->room) {
        samples->room = samples->room ? samples->room * 2 : 4096;
        samples->us = realloc(samples->us, samples->room * sizeof *samples->us);
    }
    samples->us[samples->count++] = us < 0 ? 0 : us;
}

static int by_size(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static void print_samples(const char *name, struct samples *samples)
{
    double ms[3] = {-1, -1, -1}, share[3] = {0.5, 0.99, 1};
    if (samples->count > 0) {
        qsort(samples->us, samples->count, sizeof *samples->us, by_size);
        for (int i = 0; i < 3; i++)
            ms[i] = samples->us[(long)((samples->count - 1) * share[i])] / 1000.0;
    }
    printf(", \"%s\": [%.3f, %.3f, %.3f]", name, ms[0], ms[1], ms[2]);
}

/* Events in the text ----------------------------------------------------------------------- */

static void event_arrived(struct connection *c)
{
    long now = now_us();
    if (c->next == 0)
        keep(&firsts, now - c->began_us);
    if (c->number < c->next) {
        reordered++; /* or twice */
    } else {
        lost += c->number - c->next;
        c->next = c->number + 1;
    }
    all_events++;
    if (counting) {
        events++;
        keep(&delays, now - c->stamp);
    }
}

/* Follow "w<number> @<stamp>@" through the text, however it is cut into pieces. */
static void read_text(struct connection *c, const char *text, long size)
{
    for (long i = 0; i < size; i++) {
        char byte = text[i];
        bool is_digit = byte >= '0' && byte <= '9';
        if (c->mark == OUTSIDE) {
            const char *found = memchr(text + i, 'w', size - i);
            if (!found)
                return;
            i = found - text;
            c->mark = NUMBER;
            c->number = c->digits = 0;
        } else if (c->mark == NUMBER && is_digit) {
            c->number = c->number * 10 + byte - '0';
            c->digits++;
        } else if (c->mark == NUMBER && byte == ' ' && c->digits > 0) {
            c->mark = AT;
        } else if (c->mark == AT && byte == '@') {
            c->mark = STAMP;
            c->stamp = c->digits = 0;
        } else if (c->mark == STAMP && is_digit) {
            c->stamp = c->stamp * 10 + byte - '0';
            c->digits++;
        } else {
            if (c->mark == STAMP && byte == '@' && c->digits == STAMP_DIGITS)
                event_arrived(c);
            c->mark = byte == 'w' ? NUMBER : OUTSIDE;
            c->number = c->digits = 0;
        }
    }
}

/* Requests and answers --------------------------------------------------------------------- */

static void ask(struct connection *c)
{
    c->part = HEAD;
    c->mark = OUTSIDE;
    c->line_size = c->status = 0;
    c->chunked = false;
    c->left = c->next = 0;
    c->began_us = now_us();
    send(c->fd, c->request, c->request_size, MSG_NOSIGNAL); /* far smaller than any buffer */
}

static void dial(struct connection *c, int index)
{
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (void *)&ports[c->port], sizeof ports[0])) {
        perror("connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
    ask(c);
}

static void answer_ended(struct connection *c)
{
    all_requests++;
    requests += counting;
    if (c->status != 200)
        refused++;
    else if (c->next < options.events)
        lost += options.events - c->next;
    keep(&totals, now_us() - c->began_us);
    ask(c);
}

static void head_ended(struct connection *c)
{
    c->part = c->chunked ? CHUNK_SIZE : BODY;
    if (!c->chunked && c->left == 0)
        answer_ended(c);
}

static void line_ended(struct connection *c)
{
    if (c->line_size > 0 && c->line[c->line_size - 1] == '\r')
        c->line_size--;
    bool is_empty = c->line_size == 0;
    c->line[c->line_size] = 0;
    c->line_size = 0;
    if (c->part == CHUNK_SIZE) {
        c->left = strtol(c->line, NULL, 16);
        c->part = c->left ? CHUNK : TRAILER;
    } else if (c->part == CHUNK_END) {
        c->part = CHUNK_SIZE;
    } else if (c->part == TRAILER) {
        if (is_empty)
            answer_ended(c);
    } else if (is_empty) {
        head_ended(c);
    } else if (!strncmp(c->line, "HTTP/1.1 ", 9)) {
        c->status = atoi(c->line + 9);
    } else if (!strncasecmp(c->line, "content-length:", 15)) {
        c->left = atol(c->line + 15);
    } else if (!strncasecmp(c->line, "transfer-encoding: chunked", 26)) {
        c->chunked = true;
    }
}

static void read_answer(struct connection *c, const char *bytes, long size)
{
    while (size > 0) {
        if (c->part == BODY || c->part == CHUNK) {
            long count = size < c->left ? size : c->left;
            read_text(c, bytes, count);
            bytes += count;
            size -= count;
            c->left -= count;
            if (c->left == 0 && c->part == BODY)
                answer_ended(c);
            else if (c->left == 0)
                c->part = CHUNK_END;
        } else {
            char byte = *bytes++;
            size--;
            if (byte == '\n')
                line_ended(c);
            else if (c->line_size < MAX_LINE - 1)
                c->line[c->line_size++] = byte;
        }
    }
}

static void receive(struct connection *c, int index)
{
    static char bytes[256 * 1024];
    ssize_t count = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (count > 0) {
        read_answer(c, bytes, count);
    } else if (count == 0 || errno != EAGAIN) {
        if (++disconnects > MAX_DISCONNECTS) {
            fprintf(stderr, "load: the server closes every connection\n");
            exit(1);
        }
        close(c->fd);
        dial(c, index);
    }
}

/* Set-up ----------------------------------------------------------------------------------- */

/* A copy of `text` in which every {n} is the number. */
static char *numbered(const char *text, int number)
{
    char *copy, *out;
    out = copy = malloc(strlen(text) * 3 + 1); /* {n} has three characters, the number seven */
    while (*text) {
        if (!strncmp(text, "{n}", 3)) {
            out += sprintf(out, "%07d", number);
            text += 3;
        } else {
            *out++ = *text++;
        }
    }
    *out = 0;
    return copy;
}

static void make_request(struct connection *c, int number, char **arguments, int header_count)
{
    char *body = numbered(arguments[2], number);
    FILE *out = open_memstream(&c->request, &(size_t){0});
    fprintf(out, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n",
            arguments[1]);
    for (int i = 0; i < header_count; i++) {
        char *header = numbered(arguments[3 + i], number);
        fprintf(out, "%s\r\n", header);
        free(header);
    }
    fprintf(out, "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
    c->request_size = ftell(out);
    fclose(out);
    free(body);
}

static void read_ports(char *address)
{
    char *colon = strchr(address, ':');
    if (!colon)
        exit(2);
    *colon = 0;
    for (char *port = strtok(colon + 1, ","); port; port = strtok(NULL, ",")) {
        if (port_count == MAX_PORTS)
            exit(2);
        ports[port_count].sin_family = AF_INET;
        ports[port_count].sin_port = htons(atoi(port));
        inet_pton(AF_INET, address, &ports[port_count++].sin_addr);
    }
}

static char **read_options(int argc, char **argv)
{
    static const struct option known[] = {
        {"connections", 1, NULL, 'c'}, {"seconds", 1, NULL, 's'}, {"spread-ms", 1, NULL, 'p'},
        {"settle-ms", 1, NULL, 't'},   {"events", 1, NULL, 'e'},  {"vary", 1, NULL, 'v'}, {0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "+", known, NULL)) != -1) {
        switch (option) {
        case 'c': options.connections = atoi(optarg); break;
        case 's': options.seconds = atof(optarg); break;
        case 'p': options.spread_us = atol(optarg) * 1000; break;
        case 't': options.settle_us = atol(optarg) * 1000; break;
        case 'e': options.events = atol(optarg); break;
        case 'v': options.vary = atoi(optarg); break;
        default: exit(2);
        }
    }
    if (argc - optind < 3) {
        fprintf(stderr, "usage: load [options] HOST:PORT[,PORT...] PATH BODY [HEADER...]\n");
        exit(2);
    }
    return argv + optind;
}

static void raise_file_limit(void)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

/* The run ---------------------------------------------------------------------------------- */

static void say(const char *word)
{
    puts(word);
    fflush(stdout);
}

/* Dial those whose turn it is; gives how many have begun. */
static int dial_due(struct connection *all, int begun, long elapsed_us)
{
    while (begun < options.connections &&
           elapsed_us >= options.spread_us * begun / options.connections) {
        dial(&all[begun], begun);
        begun++;
    }
    return begun;
}

static double run(struct connection *all)
{
    struct epoll_event ready[256];
    long start = now_us(), end = start + options.seconds * 1e6, opened = start;
    int begun = 0;
    for (long now = start; now < end; now = now_us()) {
        begun = dial_due(all, begun, now - start);
        if (!counting && now - start >= options.settle_us) {
            counting = true;
            opened = now;
            say("open");
        }
        /* Dialling in time needs short waits. */
        int count = epoll_wait(poller, ready, 256, begun < options.connections ? 1 : 10);
        for (int i = 0; i < count; i++)
            receive(&all[ready[i].data.u32], ready[i].data.u32);
    }
    say("closed");
    return (now_us() - opened) / 1e6;
}

int main(int argc, char **argv)
{
    char **arguments = read_options(argc, argv);
    int header_count = argv + argc - arguments - 3;
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    read_ports(arguments[0]);
    poller = epoll_create1(0);
    struct connection *all = calloc(options.connections, sizeof *all);
    for (int i = 0; i < options.connections; i++) {
        all[i].port = i % port_count;
        make_request(&all[i], i % options.vary, arguments, header_count);
    }
    double seconds = run(all);
    printf("{\"seconds\": %.3f, \"requests\": %ld, \"events\": %ld, \"all_requests\": %ld, "
           "\"all_events\": %ld, \"lost\": %ld, \"reordered\": %ld, \"refused\": %ld, "
           "\"disconnects\": %ld",
           seconds, requests, events, all_requests, all_events, lost, reordered, refused,
           disconnects);
    print_samples("delay_ms", &delays);
    print_samples("first_ms", &firsts);
    print_samples("total_ms", &totals);
    puts("}");
    return 0;
}
