--
-- The trigger of inbox tables, whatever their columns are
--
CREATE SCHEMA "Gig Inbox";
CREATE EXTENSION gigs_webhooks SCHEMA "Gig Inbox";
CREATE SCHEMA app;
SET search_path = app, pg_catalog;
\encoding UTF8
\pset format unaligned

SELECT "Gig Inbox".create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');
SELECT "Gig Inbox".create_gig_subscription('open', 'https://example.com/hooks');

-- Bodies of an account that is named by one digit
CREATE FUNCTION pg_temp.full(account int, available int, name text DEFAULT 'payroll')
RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.fully_synced","name":"%s","data":{"account":"00000000-0000-4000-8000-00000000000%s","user":"00000000-0000-4000-9000-000000000001","available_count":%s}}', name, account, available)
$$;
CREATE FUNCTION pg_temp.partial(account int, days int)
RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.partially_synced","name":"payroll","data":{"account":"00000000-0000-4000-8000-00000000000%s","user":"00000000-0000-4000-9000-000000000001","available_count":1,"days_synced":%s}}', account, days)
$$;
CREATE FUNCTION pg_temp.sign(body text) RETURNS text LANGUAGE sql AS
	$$SELECT "Gig Inbox".sign_gig_event(body, 's3cret')$$;
-- Runs a statement, and shows its error with the SQLSTATE
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END
$$;
-- What has been ingested, by account
CREATE VIEW pg_temp.account AS
SELECT right(account_id::text, 1) AS account, state, available_count, events, duplicates
FROM "Gig Inbox".gig_account_sync ORDER BY 1;

-- The columns by their default names.  Every row is kept, whatever its outcome is,
-- and the outcome is the trigger's, not what has been inserted.
CREATE TABLE hook (
	id int PRIMARY KEY,
	body bytea,
	signature text,
	outcome "Gig Inbox".gig_ingest_outcome,
	error text
);
CREATE TRIGGER ingest BEFORE INSERT ON hook
	FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest();
INSERT INTO hook (id, body, signature)
VALUES (1, convert_to(pg_temp.full(1, 10), 'UTF8'), pg_temp.sign(pg_temp.full(1, 10)));
-- ... rows of a statement are ingested one after the other
INSERT INTO hook
SELECT i, convert_to(body, 'UTF8'), pg_temp.sign(body), outcome::"Gig Inbox".gig_ingest_outcome, error
FROM (VALUES
	(2, pg_temp.full(1, 10), NULL, NULL),
	(3, pg_temp.partial(1, 30), 'rejected', 'was there before'),
	(4, '{"event":"paystubs.added","name":"payroll","data":{}}', NULL, NULL),
	(5, pg_temp.full(1, -1), 'applied', NULL),
	(6, pg_temp.full(1, 12), NULL, NULL)
) AS v (i, body, outcome, error) ORDER BY i;
-- ... and so are rows that are rejected
INSERT INTO hook (id, body, signature) VALUES
	(7, convert_to(pg_temp.full(2, 1), 'UTF8'), NULL),
	(8, convert_to(pg_temp.full(2, 1), 'UTF8'), 'no signature'),
	(9, convert_to(pg_temp.full(2, 1), 'UTF8'), pg_temp.sign(pg_temp.full(2, 2))),
	(10, NULL, pg_temp.sign('')),
	(11, NULL, NULL),
	(12, '', pg_temp.sign('')),
	(13, '{', pg_temp.sign('{')),
	(14, '\xff', pg_temp.sign('{'));
SELECT id, outcome, error FROM hook ORDER BY id;
SELECT * FROM pg_temp.account;
-- ... a row that is updated later is not ingested again
UPDATE hook SET body = convert_to(pg_temp.full(2, 1), 'UTF8'), signature = pg_temp.sign(pg_temp.full(2, 1)) WHERE id = 14;
SELECT id, outcome IS NULL AS unset, error FROM hook WHERE id = 14;
-- ... a statement that fails undoes its events
SELECT pg_temp.try(format('INSERT INTO hook (id, body, signature) VALUES (1, %L, %L)', pg_temp.full(3, 3), pg_temp.sign(pg_temp.full(3, 3))));
SELECT * FROM pg_temp.account;
-- ... but a row that ON CONFLICT leaves out has been ingested
INSERT INTO hook (id, body, signature) VALUES (1, convert_to(pg_temp.full(1, 12), 'UTF8'), pg_temp.sign(pg_temp.full(1, 12)))
ON CONFLICT DO NOTHING;
SELECT * FROM pg_temp.account;
DROP TABLE hook;

-- COPY, into a partitioned table whose partition has its columns elsewhere,
-- and columns that have been dropped before them
CREATE TABLE hook (
	gone int,
	body text,
	signature text,
	id int,
	outcome text,
	error text
) PARTITION BY RANGE (id);
ALTER TABLE hook DROP COLUMN gone;
CREATE TABLE hook_2 (
	error text,
	gone_1 text DEFAULT 'x',
	gone_2 uuid,
	id int,
	outcome text,
	signature text,
	body text
);
ALTER TABLE hook_2 DROP COLUMN gone_1, DROP COLUMN gone_2;
CREATE TABLE hook_1 PARTITION OF hook FOR VALUES FROM (1) TO (3);
ALTER TABLE hook ATTACH PARTITION hook_2 FOR VALUES FROM (3) TO (10);
CREATE TRIGGER ingest BEFORE INSERT ON hook
	FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest();
COPY hook (id, signature, body) FROM STDIN;
1	\N	{"event":"gigs.fully_synced","name":"open","data":{"account":"00000000-0000-4000-8000-000000000002","user":"00000000-0000-4000-9000-000000000001","available_count":20}}
2	abc	{"event":"gigs.fully_synced","name":"open","data":{"account":"00000000-0000-4000-8000-000000000002","user":"00000000-0000-4000-9000-000000000001","available_count":21}}
3	\N	{"event":"gigs.fully_synced","name":"open","data":{"account":"00000000-0000-4000-8000-000000000002","user":"00000000-0000-4000-9000-000000000001","available_count":22}}
4	\N	\N
5	\N	{"event":"gigs.fully_synced","name":"open","data":{"account":"00000000-0000-4000-8000-000000000002","user":"00000000-0000-4000-9000-000000000001","available_count":20}}
\.
INSERT INTO hook_2 (id, body) VALUES (6, pg_temp.full(2, 26, 'open'));
SELECT tableoid::regclass AS partition, id, outcome, error, right(body, 5) AS body FROM hook ORDER BY id;
SELECT * FROM pg_temp.account WHERE account = '2';
DROP TABLE hook;

-- Generated columns see the outcome
CREATE TABLE hook (
	id int GENERATED ALWAYS AS IDENTITY,
	size int GENERATED ALWAYS AS (length(body)) STORED,
	body text,
	bad boolean GENERATED ALWAYS AS (outcome = 'rejected') STORED,
	signature text,
	outcome "Gig Inbox".gig_ingest_outcome,
	error text,
	why text GENERATED ALWAYS AS (left(error, 5)) STORED
);
CREATE TRIGGER ingest BEFORE INSERT ON hook
	FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest();
INSERT INTO hook (body) VALUES (pg_temp.full(3, 30, 'open')), ('12345') RETURNING id, size = length(body) AS size, bad, outcome, why;
DROP TABLE hook;

-- Makes an inbox, whose first two columns are for body and signature, and
-- inserts a valid webhook and an odd one.  Shows outcome and error.
-- It is the same body every time: from the second time on it is a duplicate,
-- because no type of column changes its bytes.
CREATE FUNCTION pg_temp.inbox(columns text, VARIADIC names text[] DEFAULT '{}')
RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	body text;
	result text;
BEGIN
	EXECUTE format('CREATE TABLE hook (%s)', columns);
	EXECUTE format('CREATE TRIGGER ingest BEFORE INSERT ON hook FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest(%s)',
		(SELECT string_agg(quote_literal(n), ', ') FROM unnest(names) AS n));
	FOREACH body IN ARRAY ARRAY[pg_temp.full(4, 40), pg_temp.full(4, -40)] LOOP
		EXECUTE format('INSERT INTO hook VALUES (%L, %L) RETURNING concat(to_jsonb(hook) ->> %L, '' ('', to_jsonb(hook) ->> %L, '')'')',
			body, pg_temp.sign(body), coalesce(names[3], 'outcome'), coalesce(names[4], 'error')) INTO result;
		RETURN NEXT result;
	END LOOP;
	DROP TABLE hook;
EXCEPTION WHEN OTHERS THEN
	RETURN NEXT sqlstate || ': ' || sqlerrm;
END
$$;

-- Column types: bytea or text for the body, text or gig_ingest_outcome for the
-- outcome, and domains over them
CREATE DOMAIN raw AS bytea CHECK (length(VALUE) > 10);
CREATE DOMAIN raw_twice AS raw;
CREATE DOMAIN words AS text CHECK (VALUE <> '');
CREATE DOMAIN short AS varchar(12);
CREATE DOMAIN outcome AS "Gig Inbox".gig_ingest_outcome CHECK (VALUE <> 'ignored');
CREATE DOMAIN never_bad AS "Gig Inbox".gig_ingest_outcome CONSTRAINT good CHECK (VALUE <> 'quarantined');
SELECT pg_temp.inbox('body bytea, signature text, outcome text, error text');
SELECT pg_temp.inbox('body text, signature varchar, outcome varchar, error varchar');
SELECT pg_temp.inbox('body varchar(1000), signature varchar(128), outcome varchar(11), error varchar(100)');
SELECT pg_temp.inbox('body raw, signature words, outcome words, error words');
SELECT pg_temp.inbox('body raw_twice, signature text, outcome outcome, error short');
SELECT pg_temp.inbox('body words, signature text, outcome short, error text');
-- ... an error too long for its column is cut, and costs no row
SELECT pg_temp.inbox('body text, signature text, outcome text, error varchar(10)');
-- ... between characters
CREATE TABLE hook (body text, signature text, outcome text, error varchar(75));
CREATE TRIGGER ingest BEFORE INSERT ON hook
	FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest();
INSERT INTO hook SELECT b, pg_temp.sign(b) FROM replace(pg_temp.full(4, 1), '-4000-8000-', 'éééééé') AS b RETURNING length(error), octet_length(error) > length(error) OR getdatabaseencoding() <> 'UTF8' AS multibyte;
DROP TABLE hook;
-- ... a check that doesn't like the outcome refuses the row
SELECT pg_temp.inbox('body text, signature text, outcome never_bad, error text');
-- ... only an outcome
SELECT pg_temp.inbox('body text, signature text, outcome text');
-- ... other types are refused before anything is ingested
SELECT pg_temp.inbox('body jsonb, signature text, outcome text, error text');
SELECT pg_temp.inbox('body char(1000), signature text, outcome text, error text');
SELECT pg_temp.inbox('body json, signature text, outcome text, error text');
SELECT pg_temp.inbox('body text, signature bytea, outcome text, error text');
SELECT pg_temp.inbox('body text, signature text, outcome int, error text');
SELECT pg_temp.inbox('body text, signature text, outcome "Gig Inbox".gig_sync_state, error text');
SELECT pg_temp.inbox('body text, signature text, outcome text, error "Gig Inbox".gig_ingest_outcome');
-- ... so are generated columns
SELECT pg_temp.inbox('raw text, signature text, body text GENERATED ALWAYS AS (raw) STORED, outcome text, error text');
SELECT pg_temp.inbox('body text, signature text, outcome text GENERATED ALWAYS AS (body) STORED, error text');

-- Columns by other names
SELECT pg_temp.inbox('payload text, signature text, outcome text, error text', 'payload');
SELECT pg_temp.inbox('payload text, hmac text, outcome text, error text', 'payload', 'hmac');
SELECT pg_temp.inbox('payload text, hmac text, became text, error text', 'payload', 'hmac', 'became');
SELECT pg_temp.inbox('payload text, hmac text, became text, reason text', 'payload', 'hmac', 'became', 'reason');
-- ... of any characters and length
SELECT pg_temp.inbox('"The ""Body""" text, "it''s signed" text, "größe, länge" text, "a\b %s" text', 'The "Body"', 'it''s signed', 'größe, länge', 'a\b %s');
SELECT pg_temp.inbox(format('%1$s1 text, %1$s2 text, %1$s3 text, %1$s4 text', repeat('x', 62)), repeat('x', 62) || 1, repeat('x', 62) || 2, repeat('x', 62) || 3, repeat('x', 62) || 4);
-- ... exactly; the error tells trigger, table and column
SELECT pg_temp.inbox('body text, signature text, outcome text, error text', 'Body');
SELECT pg_temp.inbox('body text, signature text, outcome text, error text', 'body', 'sig');
SELECT pg_temp.inbox('body text, signature text, outcome text, error text', 'body', 'signature', 'result');
SELECT pg_temp.inbox('body text, signature text, outcome text, error text', 'body', 'signature', 'outcome', 'reason');
SELECT pg_temp.inbox('body text, signature text, outcome text, error text', '');
SELECT pg_temp.inbox('body text, signature text, outcome text, error text', 'ctid');
SELECT pg_temp.inbox('body text, signature text, outcome text, error text', 'body', 'signature', 'outcome', 'error', 'more');
-- ... those for the input have to be there
SELECT pg_temp.inbox('raw text, signature text, outcome text, error text');
SELECT pg_temp.inbox('body text, gone text, outcome text, error text', 'body', 'signature');

-- Without an outcome column a rejected row raises the webhook's error
CREATE TABLE hook (body text, signature text, error text);
CREATE TRIGGER ingest BEFORE INSERT ON hook
	FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest();
INSERT INTO hook VALUES (pg_temp.full(5, 50), pg_temp.sign(pg_temp.full(5, 50)), 'untouched');
INSERT INTO hook VALUES (pg_temp.full(5, 50), pg_temp.sign(pg_temp.full(5, 50)));
INSERT INTO hook VALUES ('{"event":"users.fully_synced","name":"open"}');
SELECT pg_temp.try(format('INSERT INTO hook VALUES (%L, %L)', b, pg_temp.sign(b))) FROM rtrim(pg_temp.full(5, 51), '}') AS b;
SELECT pg_temp.try(format('INSERT INTO hook VALUES (%L, NULL)', pg_temp.full(5, 52)));
SELECT pg_temp.try('INSERT INTO hook VALUES (NULL, NULL)');
SELECT pg_temp.try('INSERT INTO hook VALUES (''x'', NULL)');
-- ... with all of the statement
SELECT pg_temp.try(format('INSERT INTO hook VALUES (%L, %L), (%L, NULL)', b, pg_temp.sign(b), b)) FROM pg_temp.full(5, 53) AS b;
SELECT right(body, 5) AS body, error FROM hook ORDER BY 1;
SELECT * FROM pg_temp.account WHERE account IN ('4', '5');
DROP TABLE hook;

-- It fires before a row is inserted, or not at all
CREATE TABLE hook (body text, signature text, outcome text, error text);
CREATE VIEW hook_view AS TABLE hook;
CREATE FUNCTION pg_temp.fires(timing text, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	EXECUTE format('CREATE TRIGGER misplaced %s EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest()', timing);
	result := pg_temp.try(statement);
	EXECUTE 'DROP TRIGGER misplaced ON ' || substring(timing FROM ' ON (\w+)');
	RETURN result;
END
$$;
INSERT INTO hook VALUES ('{}');
SELECT pg_temp.fires('BEFORE INSERT ON hook FOR EACH ROW', 'INSERT INTO hook VALUES (''{}'')');
SELECT pg_temp.fires('AFTER INSERT ON hook FOR EACH ROW', 'INSERT INTO hook VALUES (''{}'')');
SELECT pg_temp.fires('BEFORE INSERT ON hook FOR EACH STATEMENT', 'INSERT INTO hook VALUES (''{}'')');
SELECT pg_temp.fires('AFTER INSERT ON hook FOR EACH STATEMENT', 'INSERT INTO hook VALUES (''{}'')');
SELECT pg_temp.fires('BEFORE UPDATE ON hook FOR EACH ROW', 'UPDATE hook SET body = NULL');
SELECT pg_temp.fires('BEFORE DELETE ON hook FOR EACH ROW', 'DELETE FROM hook');
SELECT pg_temp.fires('AFTER TRUNCATE ON hook FOR EACH STATEMENT', 'TRUNCATE hook');
SELECT pg_temp.fires('BEFORE INSERT OR UPDATE ON hook FOR EACH ROW', 'INSERT INTO hook VALUES (''{}'')');
SELECT pg_temp.fires('BEFORE INSERT OR UPDATE ON hook FOR EACH ROW', 'UPDATE hook SET body = NULL');
SELECT pg_temp.fires('INSTEAD OF INSERT ON hook_view FOR EACH ROW', 'INSERT INTO hook_view VALUES (''{}'')');
SELECT count(*) AS kept, count(outcome) AS fired FROM hook;
SELECT pg_temp.try('SELECT "Gig Inbox".gig_inbox_ingest()');
DROP VIEW hook_view;
DROP TABLE hook;

-- The table's owner needs EXECUTE on the trigger function; a role that inserts needs
-- nothing but INSERT on the table
CREATE ROLE regress_inbox_owner;
CREATE ROLE regress_inbox_writer;
GRANT USAGE, CREATE ON SCHEMA app TO regress_inbox_owner;
GRANT USAGE ON SCHEMA app TO regress_inbox_writer;
SET ROLE regress_inbox_owner;
CREATE TABLE hook (tenant text, body text, signature text, outcome text, error text);
SELECT pg_temp.try('CREATE TRIGGER ingest BEFORE INSERT ON hook FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest()');
RESET ROLE;
GRANT USAGE ON SCHEMA "Gig Inbox" TO regress_inbox_owner;
SET ROLE regress_inbox_owner;
SELECT pg_temp.try('CREATE TRIGGER ingest BEFORE INSERT ON hook FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest()');
RESET ROLE;
GRANT EXECUTE ON FUNCTION "Gig Inbox".gig_inbox_ingest() TO regress_inbox_owner;
SET ROLE regress_inbox_owner;
CREATE TRIGGER ingest BEFORE INSERT ON hook FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest();
GRANT INSERT ON hook TO regress_inbox_writer;
SET ROLE regress_inbox_writer;
INSERT INTO hook (tenant, body) VALUES ('a', '{"event":"gigs.fully_synced","name":"open","data":{"account":"00000000-0000-4000-8000-000000000006","user":"00000000-0000-4000-9000-000000000001","available_count":60}}');
SELECT pg_temp.try('TABLE hook');
SELECT current_user;
RESET ROLE;
SELECT tenant, outcome, error FROM hook;
SELECT * FROM pg_temp.account WHERE account = '6';

-- Row security sees the row with its outcome; a row that it refuses is not ingested
SET ROLE regress_inbox_owner;
ALTER TABLE hook ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON hook FOR INSERT TO regress_inbox_writer
	WITH CHECK (tenant = 'a' AND outcome <> 'rejected');
SET ROLE regress_inbox_writer;
INSERT INTO hook (tenant, body) VALUES ('a', '{"event":"gigs.fully_synced","name":"open","data":{"account":"00000000-0000-4000-8000-000000000006","user":"00000000-0000-4000-9000-000000000001","available_count":61}}');
SELECT pg_temp.try($$INSERT INTO hook (tenant, body) VALUES ('b', '{"event":"gigs.fully_synced","name":"open","data":{"account":"00000000-0000-4000-8000-000000000006","user":"00000000-0000-4000-9000-000000000001","available_count":62}}')$$);
SELECT pg_temp.try($$INSERT INTO hook (tenant, body) VALUES ('a', '{}')$$);
RESET ROLE;
SELECT tenant, outcome, right(body, 5) AS body FROM hook ORDER BY 3;
SELECT * FROM pg_temp.account WHERE account = '6';

-- No column is named twice: the outcome would overwrite the body
CREATE TABLE twice (body text, signature text, outcome text);
CREATE TRIGGER ingest BEFORE INSERT ON twice FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest('body', 'signature', 'body');
SELECT pg_temp.try($$INSERT INTO twice VALUES ('{}')$$);
DROP TABLE twice;
-- A domain checks even the null of an error; an outcome is never truncated
CREATE DOMAIN told AS text NOT NULL;
CREATE TABLE picky (body text, signature text, outcome varchar(7), error told DEFAULT '');
CREATE TRIGGER ingest BEFORE INSERT ON picky FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest();
SELECT pg_temp.try(format('INSERT INTO picky VALUES (%L)', replace(pg_temp.full(7, 1), 'payroll', 'open')));
SELECT pg_temp.try($$INSERT INTO picky VALUES ('{}')$$);
ALTER TABLE picky ALTER outcome TYPE varchar(8);
SELECT pg_temp.try($$INSERT INTO picky VALUES ('{}')$$);
TABLE picky;
SELECT * FROM pg_temp.account WHERE account = '7';
DROP TABLE picky;
DROP DOMAIN told;

DROP TABLE hook;
-- Arguments are names of columns and nothing else: no SQL, no expression, no
-- system column, none that has been dropped, none that is cut to fit
SELECT arg, pg_temp.inbox('body text, signature text, outcome text, error text', arg) FROM unnest(ARRAY[
	'body"; DROP TABLE hook; --', '''; DROP TABLE hook; --', 'body; SELECT 1', 'body, signature', '"body"', 'hook.body', 'new.body', 'body::text', '(body)', 'body ', ' body', 'BODY', '*', '1', '-1', '0', 'NULL', '%s', '%n%n%n', '$1', '\', 'body\', E'body\n', E'body\x01', 'bödy', 'ｂｏｄｙ',
	'ctid', 'tableoid', 'xmin', 'xmax', 'cmin', 'oid', '........pg.dropped.2........', repeat('x', 63), repeat('x', 64), repeat('ü', 40)
]) WITH ORDINALITY AS a (arg, place) ORDER BY place;
SELECT left(pg_temp.inbox('body text, signature text, outcome text, error text', repeat('x', 100000)), 100);
SELECT pg_temp.inbox(format('%s text, signature text, outcome text, error text', repeat('x', 63)), repeat('x', 64));
SELECT pg_temp.inbox(format('%s text, signature text, outcome text, error text', repeat('x', 63)), repeat('x', 63));
SELECT pg_temp.inbox('body text, signature text, outcome text, error text', 'body', 'body');
SELECT pg_temp.inbox('body text, signature text, outcome text, error text', 'body', 'signature', 'signature');
SELECT pg_temp.inbox('body text, signature text, outcome text, error text', 'body', 'signature', 'error', 'error');
SELECT left(pg_temp.inbox('body text, signature text, outcome text, error text', 'signature', 'body'), 40);
CREATE TABLE hook (gone text, body text, signature text, outcome text, error text);
ALTER TABLE hook DROP COLUMN gone;
CREATE TRIGGER ingest BEFORE INSERT ON hook FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest('........pg.dropped.1........');
SELECT pg_temp.try('INSERT INTO hook VALUES (''{}'')');
DROP TABLE hook;

-- Inboxes of every kind, and every way to insert into one
CREATE TABLE hook (id int PRIMARY KEY, body text, signature text, outcome text, error text);
CREATE TRIGGER ingest BEFORE INSERT ON hook FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest();
-- ... an updatable view, and one with a check option
CREATE VIEW entry AS SELECT id, body, signature FROM hook;
CREATE VIEW good AS SELECT * FROM hook WHERE outcome <> 'rejected' WITH CHECK OPTION;
INSERT INTO entry VALUES (1, pg_temp.full(8, 801, 'open'));
INSERT INTO good VALUES (2, pg_temp.full(8, 802, 'open'));
SELECT pg_temp.try('INSERT INTO good VALUES (3, ''{}'')');
-- ... rules, triggers and functions that insert there
CREATE TABLE front (body text);
CREATE RULE forward AS ON INSERT TO front DO INSTEAD INSERT INTO hook (id, body) VALUES (4, new.body);
INSERT INTO front VALUES (pg_temp.full(8, 804, 'open'));
CREATE VIEW ruled AS SELECT body FROM hook WHERE id < 0;
CREATE RULE forward AS ON INSERT TO ruled DO INSTEAD INSERT INTO hook (id, body) VALUES (5, new.body);
INSERT INTO ruled VALUES (pg_temp.full(8, 805, 'open'));
WITH i AS (INSERT INTO hook (id, body) VALUES (6, pg_temp.full(8, 806, 'open')) RETURNING outcome) SELECT * FROM i;
-- ... a conflict: the event was ingested, and its outcome can be stored
INSERT INTO hook (id, body) VALUES (6, pg_temp.full(8, 807, 'open')) ON CONFLICT (id) DO UPDATE SET body = excluded.body, outcome = excluded.outcome || ' again';
SELECT id, right(body, 5) AS body, outcome, error FROM hook ORDER BY id;
SELECT available_count, events FROM pg_temp.account WHERE account = '8';
-- ... a rule that drops the row drops the event
CREATE RULE nothing AS ON INSERT TO hook WHERE new.id = 8 DO INSTEAD NOTHING;
INSERT INTO hook (id, body) VALUES (8, pg_temp.full(8, 808, 'open'));
-- ... and so does row security without a policy
CREATE ROLE regress_inbox_stranger;
GRANT USAGE ON SCHEMA app TO regress_inbox_stranger;
GRANT INSERT, SELECT ON hook TO regress_inbox_stranger;
ALTER TABLE hook ENABLE ROW LEVEL SECURITY;
SET ROLE regress_inbox_stranger;
SELECT pg_temp.try(format('INSERT INTO hook (id, body) VALUES (9, %L)', '{"event":"gigs.fully_synced","name":"open","data":{"account":"00000000-0000-4000-8000-000000000008","user":"00000000-0000-4000-9000-000000000001","available_count":809}}'));
RESET ROLE;
-- ... a policy's function runs as the role that inserts, sees the outcome, and undoes
-- the event by refusing the row
CREATE FUNCTION judge(outcome text, body text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE 'judged by %: %', current_user, outcome;
	RETURN body NOT LIKE '%810}}';
END
$$;
CREATE POLICY judged ON hook TO regress_inbox_stranger WITH CHECK (judge(outcome, body));
SET ROLE regress_inbox_stranger;
SELECT pg_temp.try(format('INSERT INTO hook (id, body) VALUES (10, %L)', '{"event":"gigs.fully_synced","name":"open","data":{"account":"00000000-0000-4000-8000-000000000008","user":"00000000-0000-4000-9000-000000000001","available_count":810}}'));
SELECT pg_temp.try(format('INSERT INTO hook (id, body) VALUES (11, %L)', '{"event":"gigs.fully_synced","name":"open","data":{"account":"00000000-0000-4000-8000-000000000008","user":"00000000-0000-4000-9000-000000000001","available_count":811}}'));
RESET ROLE;
SELECT available_count, events FROM pg_temp.account WHERE account = '8';
DROP TABLE hook CASCADE;
DROP TABLE front CASCADE;
DROP FUNCTION judge(text, text);
-- ... temporary, unlogged and typed tables, and children
CREATE TYPE hook_type AS (body text, signature text, outcome text, error text, id int);
CREATE TEMP TABLE temp_hook (LIKE hook_type);
CREATE UNLOGGED TABLE unlogged_hook (LIKE hook_type);
CREATE TABLE typed_hook OF hook_type;
CREATE TABLE parent_hook (LIKE hook_type);
CREATE TABLE child_hook () INHERITS (parent_hook);
SELECT format('CREATE TRIGGER ingest BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION "Gig Inbox".gig_inbox_ingest()', name) FROM unnest(ARRAY['temp_hook', 'unlogged_hook', 'typed_hook', 'parent_hook']) AS t (name) \gexec
INSERT INTO temp_hook VALUES (pg_temp.full(9, 901, 'open')), ('{}') RETURNING outcome;
INSERT INTO unlogged_hook VALUES (pg_temp.full(9, 902, 'open')), ('{}') RETURNING outcome;
INSERT INTO typed_hook VALUES (pg_temp.full(9, 903, 'open')), ('{}') RETURNING outcome;
INSERT INTO parent_hook VALUES (pg_temp.full(9, 904, 'open')), ('{}') RETURNING outcome;
-- ... (triggers are not inherited)
INSERT INTO child_hook (id, body) VALUES (5, pg_temp.full(9, 905, 'open')) RETURNING outcome;
SELECT available_count, events FROM pg_temp.account WHERE account = '9';
-- ... only tables can be drained
INSERT INTO child_hook (id, body) VALUES (6, pg_temp.full(9, 906, 'open'));
CREATE VIEW undrained AS SELECT * FROM parent_hook WHERE id > 5;
CREATE VIEW counted AS SELECT count(*) AS id, ''::text AS body, ''::text AS signature, NULL::text AS outcome, ''::text AS error FROM parent_hook;
\set VERBOSITY terse
CALL "Gig Inbox".drain_gig_inbox('undrained');
CALL "Gig Inbox".drain_gig_inbox('counted');
CALL "Gig Inbox".drain_gig_inbox('parent_hook');
CALL "Gig Inbox".drain_gig_inbox(NULL);
CALL "Gig Inbox".drain_gig_inbox(0);
CALL "Gig Inbox".drain_gig_inbox('parent_hook', body => 'ctid');
CALL "Gig Inbox".drain_gig_inbox('parent_hook', key => 'id; DROP TABLE parent_hook');
CALL "Gig Inbox".drain_gig_inbox('parent_hook', error => '%s');
CALL "Gig Inbox".drain_gig_inbox('parent_hook', outcome => repeat('x', 100)::name);
\set VERBOSITY default
SELECT id, outcome FROM child_hook ORDER BY id;

SET client_min_messages = warning;
DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA "Gig Inbox", app CASCADE;
DROP ROLE regress_inbox_owner, regress_inbox_writer, regress_inbox_stranger;
RESET search_path;
