/* One connection of the load: opens a way through the proxy and makes its requests, one after the other. */
#ifndef CLIENT_H
#define CLIENT_H
#include "line.h"

enum door { DIRECT, FORWARD, CONNECT, SOCKS5 };

struct work {
    enum door door;
    const char *host; /* the origin, as it is named to the proxy */
    const char *user; /* name:password, or nothing */
    long proxy, origin; /* ports of 127.0.0.1 */
    long exchanges;     /* requests on each connection */
    long up, down;      /* bytes of each request's and each response's body */
    long expect;        /* whether a request with a body waits for 100 Continue */
    long tls;           /* version of TLS to the proxy: 12, 13, or 0 */
    long resume;        /* whether TLS sessions are resumed */
};

struct result {
    long connections, exchanges, errors;
    long reopened;   /* connections that the proxy closed between two requests */
    long resumed;    /* TLS sessions */
    char error[128]; /* the first */
};

extern struct work work;
extern struct result result;

enum step { SECURING, GREETING, LOGIN, OPENING, EXPECTING, ASKING, HEARING, RECEIVING, DONE };

struct client {
    struct line line;
    struct message message;
    enum step step;
    long left;            /* exchanges still to come */
    int served, closing;  /* exchanges that this connection has seen, and whether it will see no more */
    int open;
    double asked;
};

double seconds(void);
void prepare_clients(double *latencies); /* one for each exchange, to be filled in */
void client_open(struct client *client);
int client_go_on(struct client *client); /* false when the connection has failed, which is counted */
int client_give_up(struct client *client); /* waiting for 100 Continue; always false */
void client_close(struct client *client);
#endif
