/* Puts an amount of work on a proxy.
 *
 *   load run  NAME=VALUE...     do the work, and print what came of it as one line of JSON
 *   load hold NAME=VALUE...     the same, but keep every connection open until standard input ends; then print it again
 *
 * Each NAME is a member of `struct work`, or: connections in all, at_once (so many of them), limit (seconds for it all).
 */
#include "client.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { TICK = 50 /* ms */ };

static long connections = 1, at_once = 1, limit = 60;
static int holding;

static struct client *clients;
static double *latencies;
static long places, started, ended;

static const struct {
    const char *name;
    long *number;
    const char **text;
} options[] = {
    {"host", NULL, &work.host},     {"user", NULL, &work.user},     {"proxy", &work.proxy, NULL},
    {"origin", &work.origin, NULL}, {"up", &work.up, NULL},         {"exchanges", &work.exchanges, NULL},
    {"down", &work.down, NULL},     {"expect", &work.expect, NULL}, {"connections", &connections, NULL},
    {"tls", &work.tls, NULL},       {"resume", &work.resume, NULL}, {"at_once", &at_once, NULL},
    {"limit", &limit, NULL},
};

static const char *const doors[] = {[DIRECT] = "direct", [FORWARD] = "forward", [CONNECT] = "connect", [SOCKS5] = "socks5"};

static void read_door(const char *name)
{
    size_t i = 0;
    while (i < sizeof doors / sizeof *doors && strcmp(doors[i], name))
        i++;
    check(i < sizeof doors / sizeof *doors, name);
    work.door = (enum door)i;
}

static void read_option(char *option)
{
    char *value = strchr(option, '=');
    check(value != NULL, option);
    *value++ = 0;
    if (!strcmp(option, "door")) {
        read_door(value);
        return;
    }
    size_t i = 0, count = sizeof options / sizeof *options;
    while (i < count && strcmp(options[i].name, option))
        i++;
    check(i < count, option);
    if (options[i].text)
        *options[i].text = value;
    else
        *options[i].number = atol(value);
}

static int by_size(const void *one, const void *other)
{
    double difference = *(const double *)one - *(const double *)other;
    return difference < 0 ? -1 : difference > 0;
}

static double percentile(long percent) /* in microseconds, of latencies in order */
{
    return result.exchanges ? 1e6 * latencies[(result.exchanges - 1) * percent / 100] : 0;
}

static void print_result(double took)
{
    qsort(latencies, (size_t)result.exchanges, sizeof *latencies, by_size);
    printf("{\"seconds\": %.6f, \"connections\": %ld, \"exchanges\": %ld, \"errors\": %ld, \"error\": \"%s\", "
           "\"reopened\": %ld, \"resumed\": %ld, \"p50\": %.1f, \"p99\": %.1f}\n",
           took, result.connections, result.exchanges, result.errors, result.error, result.reopened, result.resumed,
           percentile(50), percentile(99));
    fflush(stdout);
}

/* Opens the next connection: where the last one was, or beside it if that one is held. */
static void begin(struct client *client)
{
    if (started == connections)
        return;
    client->left = work.exchanges;
    started++;
    client_open(client);
}

/* A client has done its part, or failed: the next. */
static void end(struct client *client, int lasts)
{
    if (!lasts || !holding)
        client_close(client);
    ended++;
    begin(holding ? &clients[started] : client);
}

static void take_turn(struct client *client)
{
    int was_held = client->step == DONE, lasts = client_go_on(client);
    if (was_held && !lasts)
        client_close(client);
    if (was_held || (lasts && client->step != DONE))
        return;
    if (lasts && holding)
        lasts = client_go_on(client); /* the proxy may have closed it already */
    end(client, lasts);
}

/* libcurl would send the body after a second without 100 Continue; that would be other work. */
static void lose_patience(double now)
{
    for (long i = 0; i < places; i++)
        if (clients[i].open && clients[i].step == EXPECTING && now - clients[i].asked > 1)
            end(&clients[i], client_give_up(&clients[i]));
}

static int over(double took)
{
    if (ended < connections && took < (double)limit)
        return 0;
    if (ended < connections) {
        if (!result.errors)
            snprintf(result.error, sizeof result.error, "%ld connections not served in time", connections - ended);
        result.errors += connections - ended;
    }
    print_result(took);
    return 1;
}

static void prepare(void)
{
    check((errno = EINVAL, connections > 0 && at_once > 0 && work.exchanges > 0), "work");
    if (at_once > connections)
        at_once = connections;
    places = holding ? connections : at_once;
    clients = calloc((size_t)places, sizeof *clients);
    latencies = calloc((size_t)(connections * work.exchanges), sizeof *latencies);
    check(clients && latencies, "calloc");
    prepare_clients(latencies);
}

static void do_work(void)
{
    double start = seconds(), looked = start;
    struct epoll_event events[EVENTS];
    int told = 0;
    while (started < at_once)
        begin(&clients[started]);
    for (;;) {
        double now = seconds();
        if (now - looked > TICK / 1e3) {
            lose_patience(now);
            looked = now;
        }
        if (!told && (told = over(now - start)) && !holding)
            return;
        int count = epoll_wait(set, events, EVENTS, TICK);
        for (int i = 0; i < count; i++) {
            if (!events[i].data.ptr) {
                print_result(now - start);
                return;
            }
            take_turn(events[i].data.ptr);
        }
    }
}

int main(int count, char **arguments)
{
    holding = count > 2 && !strcmp(arguments[1], "hold");
    if (count < 3 || !(holding || !strcmp(arguments[1], "run"))) {
        fprintf(stderr, "usage: load run|hold NAME=VALUE...\n");
        return 2;
    }
    for (int i = 2; i < count; i++)
        read_option(arguments[i]);
    signal(SIGPIPE, SIG_IGN);
    start_set();
    if (holding)
        watch(STDIN_FILENO, NULL);
    prepare();
    do_work();
    return 0;
}
