#include "client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#endif

struct work work = {.host = "127.0.0.1", .user = "", .exchanges = 1};
struct result result;

static const char *const names[] = {[SECURING] = "TLS handshake", [GREETING] = "greeting",  [LOGIN] = "login",
                                    [OPENING] = "opening",        [EXPECTING] = "expecting", [ASKING] = "request",
                                    [HEARING] = "response",       [RECEIVING] = "body",     [DONE] = "idle"};
static double *latencies;
static char credentials[512]; /* Proxy-Authorization */
static char login[516];       /* RFC 1929 */
static size_t login_size;

double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int fail(struct client *client, const char *what)
{
    if (!result.errors++)
        snprintf(result.error, sizeof result.error, "%s: %s", names[client->step], what);
    return 0;
}

/* ---- TLS to the proxy ----------------------------------------------------------------------------------------------- */

#ifdef WITH_TLS
static SSL_CTX *tls;
static SSL_SESSION *session;

/* Copies are kept and used: OpenSSL spoils a session for everybody when one who has it gets a newer ticket. */
static int keep_session(SSL *from, SSL_SESSION *fresh)
{
    (void)from;
    SSL_SESSION_free(session);
    session = SSL_SESSION_dup(fresh);
    return 0;
}

static void use_session(SSL *in)
{
    SSL_SESSION *copy = SSL_SESSION_dup(session);
    check(copy && SSL_set_session(in, copy), "TLS session");
    SSL_SESSION_free(copy);
}

static void prepare_tls(void)
{
    int version = work.tls == 12 ? TLS1_2_VERSION : TLS1_3_VERSION;
    tls = SSL_CTX_new(TLS_client_method());
    check(tls && SSL_CTX_set_min_proto_version(tls, version) && SSL_CTX_set_max_proto_version(tls, version), "TLS");
    SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (work.resume) {
        SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(tls, keep_session);
    }
}

static void begin_tls(struct client *client)
{
    SSL *made = client->line.tls = SSL_new(tls);
    check(made && SSL_set_fd(made, client->line.socket), "TLS");
    if (work.resume && session)
        use_session(made);
    client->step = SECURING;
}

static ssize_t secure(struct client *client)
{
    ERR_clear_error();
    ssize_t done = tls_outcome(client->line.tls, SSL_connect(client->line.tls));
    if (done > 0)
        result.resumed += SSL_session_reused(client->line.tls);
    return done;
}

static const char *reason(void)
{
    const char *of_tls = ERR_reason_error_string(ERR_peek_error());
    return of_tls ? of_tls : errno ? strerror(errno) : "broken";
}
#else
static const char *reason(void) { return strerror(errno); }
static void prepare_tls(void) { errno = ENOTSUP, check(0, "built without OpenSSL"); }
static void begin_tls(struct client *client) { (void)client; }
static ssize_t secure(struct client *client) { return (void)client, BROKEN; }
#endif

/* ---- what is said --------------------------------------------------------------------------------------------------- */

static void base64(const char *from, char *into)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t left = strlen(from); left; left -= left < 3 ? left : 3, from += 3) {
        unsigned char three[3] = {0};
        memcpy(three, from, left < 3 ? left : 3);
        *into++ = digits[three[0] >> 2];
        *into++ = digits[(three[0] & 3) << 4 | three[1] >> 4];
        *into++ = left > 1 ? digits[(three[1] & 15) << 2 | three[2] >> 6] : '=';
        *into++ = left > 2 ? digits[three[2] & 63] : '=';
    }
    *into = 0;
}

static void prepare_login(void)
{
    const char *colon = strchr(work.user, ':');
    if (!colon)
        return;
    size_t name = (size_t)(colon - work.user), password = strlen(colon + 1);
    check(name && name < 128 && password && password < 128, "user is NAME:PASSWORD");
    char encoded[400];
    base64(work.user, encoded);
    snprintf(credentials, sizeof credentials, "Proxy-Authorization: Basic %s\r\n", encoded);
    login[0] = 1;
    login[1] = (char)name;
    memcpy(login + 2, work.user, name);
    login[2 + name] = (char)password;
    memcpy(login + 3 + name, colon + 1, password);
    login_size = 3 + name + password;
}

void prepare_clients(double *into)
{
    latencies = into;
    prepare_login();
    if (work.tls)
        prepare_tls();
}

/* A log agent's request, as far as its size and its fields matter to a proxy. */
static void ask(struct client *client)
{
    int forward = work.door == FORWARD, waits = work.up && work.expect;
    char place[300] = "", length[64] = "";
    if (forward)
        snprintf(place, sizeof place, "http://%s:%ld", work.host, work.origin);
    if (work.up)
        snprintf(length, sizeof length, "Content-Length: %ld\r\n%s", work.up, waits ? "Expect: 100-continue\r\n" : "");
    message_print(&client->message,
                  "%s %s/%ld HTTP/1.1\r\nHost: %s:%ld\r\n%s%sAccept: */*\r\n"
                  "Authorization: LOG id:c2lnbmF0dXJlIG9mIHRoaXMgcmVxdWVzdA==\r\n"
                  "Content-MD5: 0123456789ABCDEF0123456789ABCDEF\r\nContent-Type: application/x-protobuf\r\n"
                  "Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nUser-Agent: agent/1.0 (Linux; benchmark) ip/127.0.0.1\r\n"
                  "x-log-apiversion: 0.6.0\r\nx-log-bodyrawsize: 524288\r\nx-log-compresstype: lz4\r\n"
                  "x-log-signaturemethod: hmac-sha1\r\n%s\r\n",
                  work.up ? "POST" : "GET", place, work.down, work.host, work.origin, forward ? credentials : "",
                  forward ? "Proxy-Connection: Keep-Alive\r\n" : "", length);
    client->message.out_body = waits ? 0 : work.up;
    client->message.in_size = 0;
    client->step = waits ? EXPECTING : ASKING;
    client->asked = seconds();
}

/* RFC 1928 §4. */
static void command(struct client *client)
{
    unsigned char bytes[300] = {5, 1, 0}, *next = bytes + 3;
    struct in_addr address;
    size_t size = strlen(work.host);
    if (inet_pton(AF_INET, work.host, &address) == 1) {
        *next++ = 1;
        memcpy(next, &address, 4);
        next += 4;
    } else {
        check(size < 256, "host");
        *next++ = 3;
        *next++ = (unsigned char)size;
        memcpy(next, work.host, size);
        next += size;
    }
    *next++ = (unsigned char)(work.origin >> 8);
    *next++ = (unsigned char)work.origin;
    message_say(&client->message, bytes, (size_t)(next - bytes));
    client->message.in_size = 0;
    client->step = OPENING;
}

/* The first thing to say, inside TLS where there is TLS. */
static void knock(struct client *client)
{
    if (work.door == CONNECT) {
        message_print(&client->message, "CONNECT %s:%ld HTTP/1.1\r\nHost: %s:%ld\r\n%sProxy-Connection: Keep-Alive\r\n\r\n",
                      work.host, work.origin, work.host, work.origin, credentials);
        client->step = OPENING;
    } else if (work.door == SOCKS5) {
        char methods[] = {5, 1, login_size ? 2 : 0};
        message_say(&client->message, methods, sizeof methods);
        client->step = GREETING;
    } else {
        ask(client);
    }
}

/* ---- the connection ------------------------------------------------------------------------------------------------- */

void client_open(struct client *client)
{
    in_port_t port = htons((in_port_t)(work.door == DIRECT ? work.origin : work.proxy));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct message *message = &client->message;
    message->in_size = message->out_size = message->out_done = 0;
    message->in_body = message->out_body = 0;
    client->served = client->closing = 0;
    client->open = 1;
    client->line.tls = NULL;
    client->line.socket = new_socket(AF_INET);
    check(client->line.socket >= 0, "socket");
    int failed = connect(client->line.socket, (struct sockaddr *)&address, sizeof address);
    check(!failed || errno == EINPROGRESS, "connect");
    if (work.tls)
        begin_tls(client);
    else
        knock(client);
    watch(client->line.socket, client);
}

void client_close(struct client *client)
{
    line_close(&client->line);
    client->open = 0;
}

static void reopen(struct client *client)
{
    result.reopened++;
    client_close(client);
    client_open(client);
}

static void finish_exchange(struct client *client)
{
    latencies[result.exchanges++] = seconds() - client->asked;
    client->served++;
    if (--client->left == 0) {
        result.connections++;
        client->step = DONE;
    } else if (client->closing) {
        reopen(client);
    } else {
        ask(client);
    }
}

/* ---- what is heard -------------------------------------------------------------------------------------------------- */

static int hear_final(struct client *client, int status, size_t size)
{
    struct message *message = &client->message;
    if (status != 200 || client->step != HEARING)
        return fail(client, status == 407 ? "status 407" : status == 403 ? "status 403" : "not what was expected");
    client->closing = says_close(message->in);
    if (body_length(message->in) != work.down)
        return fail(client, "another length than expected");
    message_forget(message, size);
    if ((long)message->in_size > work.down)
        return fail(client, "more than the response");
    message->in_body = work.down - (long)message->in_size;
    client->step = RECEIVING;
    return 1;
}

/* The head of a response is there. */
static int hear(struct client *client, size_t size)
{
    struct message *message = &client->message;
    int status = message->in_size > 12 ? atoi(message->in + 9) : 0;
    if (client->step == OPENING && status == 200) {
        ask(client);
        return 1;
    }
    if (client->step == OPENING || status != 100)
        return hear_final(client, status, size);
    message_forget(message, size);
    if (client->step == EXPECTING) {
        message->out_body = work.up;
        client->step = ASKING;
    }
    return 1;
}

static int hear_socks(struct client *client)
{
    struct message *message = &client->message;
    char code = message->in[1];
    if (client->step == GREETING && code == 2 && login_size) {
        message_say(message, login, login_size);
        message->in_size = 0;
        client->step = LOGIN;
        return 1;
    }
    if (code)
        return fail(client, "refused");
    if (client->step == OPENING)
        ask(client);
    else
        command(client);
    return 1;
}

static ssize_t await_reply(struct client *client) /* RFC 1928 §6, with an address of either family */
{
    struct message *message = &client->message;
    ssize_t done = message_bytes(message, &client->line, 4);
    return done == 1 ? message_bytes(message, &client->line, message->in[3] == 4 ? 22 : 10) : done;
}

/* What has to come next: positive when it is there. */
static ssize_t await(struct client *client)
{
    struct message *message = &client->message;
    char nothing;
    switch (client->step) {
    case SECURING:
        return secure(client);
    case GREETING:
    case LOGIN:
        return message_bytes(message, &client->line, 2);
    case OPENING:
        return work.door == SOCKS5 ? await_reply(client) : message_head(message, &client->line);
    case RECEIVING:
        return message_skip(message, &client->line);
    case DONE:
        return line_read(&client->line, &nothing, 1);
    default:
        return message_head(message, &client->line);
    }
}

static int proceed(struct client *client, ssize_t done)
{
    switch (client->step) {
    case SECURING:
        knock(client);
        return 1;
    case RECEIVING:
        finish_exchange(client);
        return 1;
    case DONE:
        return fail(client, "bytes that nobody asked for");
    default:
        return work.door == SOCKS5 && client->step <= OPENING ? hear_socks(client) : hear(client, (size_t)done);
    }
}

/* Whether a proxy has closed a kept connection before it took the next request: then any client tries again. */
static int was_kept(struct client *client)
{
    return client->served && !client->message.in_size && client->step < RECEIVING;
}

int client_go_on(struct client *client)
{
    for (;;) {
        ssize_t done = client->step == SECURING ? 1 : message_send(&client->message, &client->line);
        if (done == 1) {
            if (client->step == ASKING)
                client->step = HEARING;
            done = await(client);
        }
        if (done == AGAIN)
            return 1;
        if (done > 0) {
            if (!proceed(client, done))
                return 0;
            if (client->step == DONE)
                return 1; /* what a proxy does afterwards concerns only those that hold */
        } else if (was_kept(client)) {
            reopen(client);
            return 1;
        } else {
            return fail(client, done ? reason() : "closed");
        }
    }
}

int client_give_up(struct client *client)
{
    return fail(client, "nobody says 100 Continue");
}
