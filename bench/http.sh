# shellcheck shell=bash
#
# The measures over HTTP, of the receiver and of the consumer.  To be sourced by bench/run.
#
# A service is the receiver, or the one in Node that does its work itself.

service_pid=
service_port=
admin_port=

prepare_node() {
	(cd "$TREE/bench/service" && stage as_user npm ci --silent --no-audit --no-fund) \
		>"$SCRATCH/npm.log" 2>&1 || {
		cat "$SCRATCH/npm.log" >&2
		fail "the packages of bench/service could not be installed by npm"
	}
}

service_log() {
	echo "$SCRATCH/service.log"
}

# Starts a service, in a process group of its own, which can be ended without
# knowing how as_user has started it; the shell in between waits for it then.
# Should this script end before, the mark in its environment gives it away.
start_service() {
	set -m
	(
		trap : TERM
		as_user "$@"
	) </dev/null >"$(service_log)" 2>&1 &
	service_pid=$!
	set +m
}

# Waits until a service accepts connections and, if it is the receiver, has its sessions.
wait_for_service() {
	local tries

	for ((tries = 0; tries < 300; tries++)); do
		if perl -MHTTP::Tiny -e 'exit(HTTP::Tiny->new->get($ARGV[0])->{status} == $ARGV[1] ? 0 : 1)' "$@"; then
			return
		fi
		kill -0 "$service_pid" 2>/dev/null || break
		sleep 0.1
	done
	return 1
}

stop_service() {
	kill -TERM -- "-$service_pid" 2>/dev/null
	wait "$service_pid"
}

# start_receiver OPTION...
start_receiver() {
	service_port=$(free_port)
	admin_port=$(free_port)
	start_service "$PRIVATE_BIN/gigs_receiver" --database "$(conninfo run)" --path /webhook \
		--listen "127.0.0.1:$service_port" --admin "127.0.0.1:$admin_port" "$@"
	wait_for_service "http://127.0.0.1:$admin_port/ready" 200
}

start_node() {
	service_port=$(free_port)
	start_service env PORT="$service_port" PGDATABASE=run node "$TREE/bench/service/server.js"
	wait_for_service "http://127.0.0.1:$service_port/" 404
}

load() {
	as_user "$TREE/bench/load" "$@"
}

# The first events are for the service to get warm: node compiles what runs often.
# A command substitution goes on after errors, so they are carried on by hand.
post_to() {
	local status=0

	sql -d postgres -c "ALTER DATABASE run SET synchronous_commit = $waits"
	{
		"start_$1" &&
			load "$connections" 127.0.0.1 "$service_port" "$SCRATCH/http_first.tsv" >/dev/null &&
			load "$connections" 127.0.0.1 "$service_port" "$SCRATCH/http.tsv"
	} || status=1
	stop_service || status=1
	if ((status != 0)); then
		show_log "$(service_log)" 30 >&2
	fi
	return "$status"
}

run_http_receiver() {
	post_to receiver
}

run_http_self() {
	post_to node
}

measure_http() {
	prepare_node
	events=$(scaled 60000)
	stream http_first --events 5000 --seed 7
	stream http --events "$events" --seed 8
	for connections in 64 512; do
		for waits in on off; do
			measure "http, $connections connections, synchronous_commit $waits" "$events" \
				extension:http_receiver:state peer:http_self:state
		done
	done
}

# A post over an open connection takes longer than a call over one, by so many
# seconds: the median, and the time of 99 %.
latency() {
	local direct posted

	direct=$(client -l "$(conninfo run)" "$extension_call" "$SCRATCH/latency_1.tsv")
	start_receiver || fail "the receiver did not start"
	posted=$(load -l 1 127.0.0.1 "$service_port" "$SCRATCH/latency_2.tsv")
	stop_service || fail "the receiver did not end"
	echo "$posted $direct" | awk -v column="$1" '{ printf "%.6f\n", $column - $(column + 2) }'
}

run_latency_median() {
	latency 1
}

run_latency_high() {
	latency 2
}

# Neither of both streams has events of the other, so that all are applied.
measure_latency() {
	events=$(scaled 10000)
	stream latency_1 --events "$events" --seed 9
	stream latency_2 --events "$events" --seed 10
	measure "latency of a post" 1 extension:latency_median:- extension:latency_high:-
}

run_memory() {
	local locker status=0

	start_receiver --answer-timeout 10min || fail "the receiver did not start"
	sql -d run -c "BEGIN" -c "LOCK TABLE gig_event_log IN EXCLUSIVE MODE" -c "SELECT pg_sleep(600)" >/dev/null 2>&1 &
	locker=$!
	as_user "$TREE/bench/waiting" "$service_port" "$admin_port" \
		"$(pgrep -f "^$PRIVATE_BIN/gigs_receiver " | head -n 1)" 10000 "$SCRATCH/memory.tsv" || status=1
	sql -d postgres -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)'" >/dev/null
	wait "$locker" || true
	stop_service || status=1
	return "$status"
}

measure_memory() {
	stream memory --events 10000 --seed 11
	measure "memory of the receiver with 10,000 waiting posts" 1 extension:memory:-
}

# ---------------------------------------------------------------------------
# The consumer
# ---------------------------------------------------------------------------

# Asks the stand-in for Argyle for what it counts, as a Perl expression of $c.
argyle_counts() {
	perl -MHTTP::Tiny -MJSON::PP -e '
		my $c = decode_json(HTTP::Tiny->new->get("$ARGV[0]/control/settled")->{content});
		print eval($ARGV[1]), "\n"' "$argyle_url" "$1"
}

# Waits until a query returns true.
wait_for_sql() {
	local tries

	for ((tries = 0; tries < 1200; tries++)); do
		[[ $(sql -d run -c "$1") != t ]] || return 0
		sleep 0.1
	done
	return 1
}

# The stand-in answers each request after a tenth of a second, and the consumer has 20
# requests under way.  Prints how many times the seconds it takes that the answers take.
run_consumer() {
	local argyle_url argyle_pid began ended requests

	start_service /usr/bin/python3 "$TREE/examples/argyle/argyle.py" --accounts "$accounts_fetched" --gigs 30 \
		--slow 1 --slow-by 0.1 --seed 12
	until grep -q '^listening on ' "$(service_log)"; do
		sleep 0.1
	done
	argyle_url=$(sed -n 's/^listening on //p' "$(service_log)")
	perl -MHTTP::Tiny -MJSON::PP -e '
		my $taken = decode_json(HTTP::Tiny->new->post("$ARGV[0]/control/take")->{content});
		printf "SELECT ingest_gig_event(\$b\$%s\$b\$, \x27%s\x27);\n", @$_{qw(body signature)} for @$taken' \
		"$argyle_url" >"$SCRATCH/webhooks.sql"
	sql -d run -c "SELECT create_gig_subscription('payroll', 'https://example.com/', 'secret')" \
		-c "SELECT create_gig_consumer('fetcher', parts => 4, start_after => (SELECT max(event_id) FROM gig_event_log))" \
		-f "$TREE/examples/consumers/gig.sql" -f "$SCRATCH/webhooks.sql" >/dev/null

	began=$(date +%s.%N)
	argyle_pid=$service_pid
	start_service env PGDATABASE=run ARGYLE_URL="$argyle_url" ARGYLE_ID=id ARGYLE_SECRET=secret \
		node "$TREE/examples/consumers/consumer.js"
	wait_for_sql 'SELECT (events_behind, retries, working) = (0, 0, 0) FROM gig_consumer_status' ||
		fail "the consumer does not get on: $(cat "$(service_log)")"
	ended=$(date +%s.%N)
	requests=$(argyle_counts '$c->{answers}{200}')
	stop_service || fail "the consumer did not end"
	service_pid=$argyle_pid
	stop_service || fail "the stand-in did not end"
	echo "$began $ended $requests" | awk '{ printf "%.3f\n", ($2 - $1) / ($3 * 0.1 / 20) }'
}

measure_consumer() {
	accounts_fetched=$(scaled 2000)
	(cd "$TREE/examples/consumers" && stage as_user npm ci --silent --no-audit --no-fund) >/dev/null 2>&1 ||
		fail "the packages of examples/consumers could not be installed by npm"
	measure "consumer in Node, 20 requests at a time" 1 extension:consumer:-
}
