/* The yardstick: publish and consume through librabbitmq, as fast as a plain C program gets.

   wire publish URL_HOST PORT USER PASSWORD VHOST QUEUE SECONDS COUNT   publish confirmed, window 1000, until either is reached
   wire consume URL_HOST PORT USER PASSWORD VHOST QUEUE ACK_EVERY COUNT consume COUNT messages; ACK_EVERY 1 acknowledges each
   wire decode ...                                                       the same: librabbitmq always decodes all properties

   Prints one line of JSON: messages, seconds, cpu_seconds. Any error ends the program with a message and status 1. */

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>

#define CHANNEL 1
#define WINDOW 1000
#define PREFETCH 1000
#define BODY_BYTES 1024

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void fail(const char *what) {
  fprintf(stderr, "wire: %s failed\n", what);
  exit(1);
}

static void check(amqp_connection_state_t c, const char *what) {
  if (amqp_get_rpc_reply(c).reply_type != AMQP_RESPONSE_NORMAL) fail(what);
}

static amqp_connection_state_t open_connection(char **a) {
  amqp_connection_state_t c = amqp_new_connection();
  amqp_socket_t *s = amqp_tcp_socket_new(c);
  if (!s || amqp_socket_open(s, a[0], atoi(a[1]))) fail("connect");
  if (amqp_login(c, a[4], 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, a[2], a[3]).reply_type != AMQP_RESPONSE_NORMAL)
    fail("login");
  amqp_channel_open(c, CHANNEL);
  check(c, "channel.open");
  return c;
}

/* Takes one frame that is a confirm; gives the highest confirmed number. RabbitMQ may confirm out of order, so singles are counted. */
static uint64_t take_confirm(amqp_connection_state_t c, uint64_t *below, uint64_t *singles, const struct timeval *wait) {
  amqp_frame_t f;
  int r = amqp_simple_wait_frame_noblock(c, &f, wait);
  if (r == AMQP_STATUS_TIMEOUT) return 0;
  if (r != AMQP_STATUS_OK) fail("wait for confirm");
  if (f.frame_type != AMQP_FRAME_METHOD || f.payload.method.id != AMQP_BASIC_ACK_METHOD) fail("confirm");
  amqp_basic_ack_t *ack = f.payload.method.decoded;
  if (ack->multiple) {
    if (ack->delivery_tag > *below) {
      *singles = 0; /* those below are included; those above would be counted again, which only ends a run early by a few */
      *below = ack->delivery_tag;
    }
  } else if (ack->delivery_tag == *below + 1) {
    *below += 1;
  } else {
    *singles += 1;
  }
  return 1;
}

static void publish(char **a) {
  amqp_connection_state_t c = open_connection(a);
  amqp_bytes_t queue = amqp_cstring_bytes(a[5]);
  double limit = atof(a[6]);
  uint64_t count = strtoull(a[7], NULL, 10), sent = 0, below = 0, singles = 0;
  char body[BODY_BYTES], id[64], key[32];
  memset(body, 'x', sizeof body);
  amqp_bytes_t content = {sizeof body, body};
  amqp_table_entry_t h[3];
  memset(h, 0, sizeof h);
  h[0].key = amqp_cstring_bytes("hopline-version");
  h[0].value.kind = AMQP_FIELD_KIND_I64;
  h[0].value.value.i64 = 1;
  h[1].key = amqp_cstring_bytes("hopline-key");
  h[1].value.kind = AMQP_FIELD_KIND_UTF8;
  h[2].key = amqp_cstring_bytes("traceparent");
  h[2].value.kind = AMQP_FIELD_KIND_UTF8;
  h[2].value.value.bytes = amqp_cstring_bytes("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  amqp_basic_properties_t p;
  memset(&p, 0, sizeof p);
  p._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
             AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_TYPE_FLAG;
  p.content_type = amqp_cstring_bytes("application/json");
  p.delivery_mode = 2;
  p.type = amqp_cstring_bytes("order.placed");
  p.headers.num_entries = 3;
  p.headers.entries = h;
  amqp_confirm_select(c, CHANNEL);
  check(c, "confirm.select");
  const struct timeval no_wait = {0, 0};
  double start = now(), cpu_start = cpu();
  while (sent < count) {
    while (sent - below - singles >= WINDOW) take_confirm(c, &below, &singles, NULL);
    while ((amqp_frames_enqueued(c) || amqp_data_in_buffer(c)) && take_confirm(c, &below, &singles, &no_wait)) {
    }
    if (!(sent & 63) && now() - start >= limit) break;
    sent++;
    snprintf(id, sizeof id, "0190f3c8-7b6a-7c3e-9d2a-%012" PRIx64, sent);
    snprintf(key, sizeof key, "order-%" PRIu64, sent);
    p.message_id = amqp_cstring_bytes(id);
    p.timestamp = (uint64_t)time(NULL);
    h[1].value.value.bytes = amqp_cstring_bytes(key);
    if (amqp_basic_publish(c, CHANNEL, amqp_empty_bytes, queue, 1, 0, &p, content)) fail("publish");
    amqp_maybe_release_buffers(c);
  }
  while (below + singles < sent) take_confirm(c, &below, &singles, NULL);
  printf("{\"messages\": %" PRIu64 ", \"seconds\": %f, \"cpu_seconds\": %f}\n", sent, now() - start, cpu() - cpu_start);
  amqp_destroy_connection(c);
}

static void consume(char **a) {
  amqp_connection_state_t c = open_connection(a);
  uint64_t every = strtoull(a[6], NULL, 10), count = strtoull(a[7], NULL, 10), got = 0, bytes = 0;
  amqp_basic_qos(c, CHANNEL, 0, PREFETCH, 0);
  check(c, "basic.qos");
  double start = now(), cpu_start = cpu();
  amqp_basic_consume(c, CHANNEL, amqp_cstring_bytes(a[5]), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
  check(c, "basic.consume");
  while (got < count) {
    amqp_envelope_t e;
    amqp_maybe_release_buffers(c);
    if (amqp_consume_message(c, &e, NULL, 0).reply_type != AMQP_RESPONSE_NORMAL) fail("consume");
    got++;
    bytes += e.message.body.len + e.message.properties.message_id.len;
    if (got % every == 0 || got == count)
      if (amqp_basic_ack(c, CHANNEL, e.delivery_tag, every > 1)) fail("ack");
    amqp_destroy_envelope(&e);
  }
  double seconds = now() - start, used = cpu() - cpu_start;
  if (bytes < got * BODY_BYTES) fail("bodies");
  amqp_channel_close(c, CHANNEL, AMQP_REPLY_SUCCESS); /* the last acknowledgement is processed before this is answered */
  printf("{\"messages\": %" PRIu64 ", \"seconds\": %f, \"cpu_seconds\": %f}\n", got, seconds, used);
  amqp_destroy_connection(c);
}

int main(int argc, char **argv) {
  if (argc == 10 && !strcmp(argv[1], "publish")) publish(argv + 2);
  else if (argc == 10 && (!strcmp(argv[1], "consume") || !strcmp(argv[1], "decode"))) consume(argv + 2);
  else fail("usage");
  return 0;
}
