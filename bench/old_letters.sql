-- What a long life leaves for operators, beside old_rows.sql: a tenth as many dead letters as messages, half of them parked,
-- of 40 causes; a hundredth as many sends that wait for a later day; a hundredth as many acts. :rows is replaced.
INSERT INTO hopline_dead_letters (id, identity, queue, endpoint, message_id, type, version, run, attempt, key, reason,
                                  error, stack, error_type, frame, fingerprint, properties, body, dead_at, resolution,
                                  resolved_at)
SELECT id, 'old-' || n, 'noop', 'noop/noop', id, 'noop', 1, 0, 3, key, 'failed',
       'TimeoutError: no answer from 10.0.0.' || n % 40, 'Traceback (most recent call last): ...', 'TimeoutError',
       'orders/handlers.py:' || n % 40, left(md5((n % 40)::text), 12), '{}', body, created_at,
       CASE WHEN n % 2 = 0 THEN 'replayed' END, CASE WHEN n % 2 = 0 THEN created_at END
FROM (SELECT *, row_number() OVER () AS n FROM hopline_messages ORDER BY id LIMIT :rows / 10) AS chosen;
INSERT INTO hopline_outbox (id, message_id, destination, run, attempt, sends, due_at, next_at)
SELECT gen_random_uuid(), id, 'noop', 0, 1, 0, later, later
FROM (SELECT id, now() + interval '1 day' + (row_number() OVER ()) * interval '1 second' AS later
      FROM hopline_messages ORDER BY id LIMIT :rows / 100) AS chosen;
INSERT INTO hopline_audit_log (id, at, who, action, target, reason)
SELECT id, created_at, 'ann', 'replay', 'dead-letter ' || id, 'mended'
FROM hopline_messages ORDER BY id LIMIT :rows / 100;
