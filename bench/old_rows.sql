-- Rows that earlier messages have left behind, as `hopline worker` leaves them: sent, done, spread over 13 days.
-- :rows is replaced by their number.
CREATE TEMPORARY TABLE old ON COMMIT DROP AS
SELECT id, at FROM (
    SELECT (left(hex, 8) || '-' || right(hex, 4) || '-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid AS id, at
    FROM (
        SELECT i, at, lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS hex
        FROM (SELECT i, now() - interval '13 days' + i * (interval '12 days' / :rows) AS at
              FROM generate_series(1, :rows) AS i) AS times
    ) AS hexes
) AS ids;
INSERT INTO hopline_messages (id, type, version, key, correlation_id, headers, body, created_at)
SELECT id, 'noop', 1, 'noop-' || id, id, '{}', '{"sent_at":0.0,"padding":"","key":"noop"}'::bytea, at FROM old;
INSERT INTO hopline_outbox (id, message_id, destination, run, attempt, sends, due_at, sent_at)
SELECT id, id, '', 0, 0, 0, at, at FROM old;
INSERT INTO hopline_inbox (message_id, endpoint, run, attempt, outcome, note, worker, started_at, done_at)
SELECT id, 'noop/noop', 0, 0, 'done', '', 'old', at, at FROM old;
