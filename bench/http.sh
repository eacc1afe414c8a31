# shellcheck shell=bash
#
# The measure over HTTP.  To be sourced by bench/run.

service_pid=

prepare_http() {
	(cd "$TREE/bench/service" && stage as_user npm ci --silent --no-audit --no-fund) \
		>"$SCRATCH/npm.log" 2>&1 || {
		cat "$SCRATCH/npm.log" >&2
		fail "the packages of bench/service could not be installed by npm"
	}
}

service_log() {
	echo "$SCRATCH/service.log"
}

# start_service MODE, in a process group of its own, which can be ended without
# knowing how as_user has started it; the shell in between waits for it then.
# Should this script end before, the mark in its environment gives it away.
start_service() {
	: >"$(service_log)" # what the last one wrote is not for this one
	set -m
	(
		trap : TERM
		MODE=$1 PORT=0 PGDATABASE=run as_user node "$TREE/bench/service/server.js"
	) </dev/null >"$(service_log)" 2>&1 &
	service_pid=$!
	set +m
}

# Prints the port that the service listens on, once it does.
service_port() {
	local tries

	for ((tries = 0; tries < 300; tries++)); do
		if grep -q '^ready ' "$(service_log)"; then
			sed -n 's/^ready //p' "$(service_log)"
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

load() {
	as_user "$TREE/bench/load" 64 127.0.0.1 "$@"
}

# The first events are for the service to get warm: node compiles what runs often.
# A command substitution goes on after errors, so they are carried on by hand.
post_to() {
	local port status=0

	start_service "$1"
	{
		port=$(service_port) &&
			load "$port" "$SCRATCH/http_first.tsv" >/dev/null &&
			load "$port" "$SCRATCH/http.tsv"
	} || status=1
	stop_service || status=1
	if ((status != 0)); then
		show_log "$(service_log)" 30 >&2
	fi
	return "$status"
}

run_http_extension() {
	post_to extension
}

run_http_self() {
	post_to self
}

measure_http() {
	prepare_http
	events=$(scaled 20000)
	stream http_first --events 5000 --seed 7
	stream http --events "$events" --seed 8
	measure "http, 64 connections" "$events" \
		extension:http_extension:state peer:http_self:state
}
