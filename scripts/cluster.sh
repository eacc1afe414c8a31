# shellcheck shell=bash
#
# A PostgreSQL server with gigs_webhooks in a scratch directory, for
# scripts/check and scripts/demo.  To be sourced, after "set -euo pipefail":
#
#   scratch_new             make the scratch directory, $SCRATCH, and see to it
#                           that it and all that runs in it goes when the
#                           script ends, however it ends
#   server_under PROGRAM    have what is built next built for it, and all
#                           servers and receivers run under it: asan or valgrind.
#                           What these report goes to $REPORTS.  With coverage,
#                           the module itself counts its lines, and with tsan,
#                           the receiver itself looks for data races.
#   tree_copy               copy the source tree to $SCRATCH/src, $TREE
#   private_install         build $TREE, and install it into a private copy of
#                           PostgreSQL; puts that first in PATH
#   cluster_start [LINE...] start a server; the lines go to postgresql.conf.
#                           Sets PGHOST, PGPORT and PGUSER.
#   cluster_stop            stop it (the end of the script does as well)
#   as_user COMMAND...      run a command as the user that the server runs as
#   stage COMMAND...        run a command or function such that a signal to the
#                           script is acted on at once
#   server_log              the name of the server's log
#   free_port               print a TCP port of 127.0.0.1 that is free
#
# Nothing is written outside of the scratch directory, and none of these opens a TCP
# port.  The scratch directory stays when KEEP_SCRATCH is set; processes
# never do.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

SCRATCH=
TREE=
RUN_USER=
PRIVATE_BIN=
PGXS_DIR=
REPORTS=
under_flags=
under_command=
receiver_flags=
stage_pid=

# Read by scripts that source this one.
export REPOSITORY SCRATCH TREE PRIVATE_BIN PGXS_DIR REPORTS

fail() {
	echo "$(basename "$0"): $*" >&2
	exit 1
}

server_log() {
	echo "$SCRATCH/server.log"
}

free_port() {
	perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1")->sockport'
}

# ---------------------------------------------------------------------------
# The scratch directory
# ---------------------------------------------------------------------------

scratch_new() {
	local parent name

	# What the caller has set for psql or make is not meant for this server.
	for name in "${!PG@}"; do
		[[ $name == PG_* || $name == PGXS_DIR ]] || unset "$name"
	done
	unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES DESTDIR PROVE_FLAGS LANGUAGE
	PG_CONFIG=$(command -v "${PG_CONFIG:-pg_config}") || fail "there is no pg_config"
	export PG_CONFIG
	if locale -a 2>/dev/null | grep -ix 'C.utf-\?8' >/dev/null; then
		export LC_ALL=C.UTF-8
	else
		export LC_ALL=C
	fi

	# PostgreSQL does not run as root.
	if [[ $(id -u) -eq 0 ]]; then
		if id postgres >/dev/null 2>&1; then
			RUN_USER=postgres
		else
			RUN_USER=nobody
		fi
	fi

	trap scratch_end EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 141' PIPE
	trap 'exit 143' TERM

	# The path of a Unix socket has room for 107 bytes, and the servers of the
	# TAP tests add some 40 to that of the scratch directory.
	parent=$(cd "${TMPDIR:-/tmp}" && pwd -P)
	if [[ ${#parent} -gt 50 ]] || ! as_user test -x "$parent"; then
		parent=/tmp
	fi
	SCRATCH=$(mktemp -d "$parent/gigs.XXXXXX")
	mkdir "$SCRATCH/home" "$SCRATCH/socket" "$SCRATCH/tmp"
	[[ -z $RUN_USER ]] || chown -R "$RUN_USER:" "$SCRATCH"

	# GIGS_SCRATCH marks what has been started from here.
	export GIGS_SCRATCH=$SCRATCH HOME=$SCRATCH/home TMPDIR=$SCRATCH/tmp
	# The caller's directory may be closed to the user of the server.
	cd "$SCRATCH" || fail "cannot enter $SCRATCH"
	[[ -z ${KEEP_SCRATCH:-} ]] || echo "$(basename "$0"): will keep $SCRATCH" >&2
}

as_user() {
	if [[ -z $RUN_USER ]]; then
		"$@"
	elif command -v setpriv >/dev/null 2>&1; then
		setpriv --reuid="$(id -u "$RUN_USER")" --regid="$(id -g "$RUN_USER")" \
			--init-groups "$@"
	else
		runuser -u "$RUN_USER" -- "$@"
	fi
}

# Bash puts off a trap until the command in the foreground has ended, but not
# when it waits for one in the background.  Job control gives that a process
# group of its own, so that it can be ended with all it has started, and lets
# it have SIGINT, which would be ignored otherwise.
stage() {
	local status=0

	set -m
	"$@" </dev/null &
	stage_pid=$!
	set +m
	wait "$stage_pid" || status=$?
	stage_pid=
	return "$status"
}

# The processes that have been started from the scratch directory: those that
# run its PostgreSQL, which overwrites its environment, and those that carry the
# mark.
scratch_processes() {
	local proc pid exe

	[[ -d /proc/self ]] || return 0
	for proc in /proc/[0-9]*; do
		pid=${proc#/proc/}
		[[ $pid != "$$" && $pid != "$BASHPID" ]] || continue
		exe=$(readlink "$proc/exe" 2>/dev/null) || continue
		if [[ $exe == "$SCRATCH"/* ]]; then
			echo "$pid $(basename "${exe% (deleted)}")"
		elif [[ ${exe##*/} == memcheck-* ]] &&
			grep -qzxF "GIGS_SCRATCH=$SCRATCH" "$proc/environ" 2>/dev/null; then
			# Valgrind, which runs nothing but servers.
			echo "$pid postgres"
		elif grep -qzxF "GIGS_SCRATCH=$SCRATCH" "$proc/environ" 2>/dev/null; then
			echo "$pid ${exe##*/}"
		fi
	done
}

scratch_kill() {
	local pid name round pidfile processes

	# A postmaster takes its shared memory along when it may end by itself:
	# SIGQUIT is the immediate shutdown, SIGTERM would wait for its clients.
	for ((round = 0; round < 50; round++)); do
		processes=$(scratch_processes)
		[[ -n $processes ]] || break
		while read -r pid name; do
			if ((round >= 40)); then
				kill -KILL "$pid" 2>/dev/null || true
			elif ((round % 20 == 0)); then
				if [[ $name == postgres ]]; then
					kill -QUIT "$pid" 2>/dev/null || true
				else
					kill -TERM "$pid" 2>/dev/null || true
				fi
			fi
		done <<<"$processes"
		sleep 0.1
	done

	# Without /proc, only servers can be found.
	if [[ ! -d /proc/self ]]; then
		while read -r pidfile; do
			as_user "$PRIVATE_BIN/pg_ctl" stop -s -m immediate \
				-D "${pidfile%/*}" >/dev/null 2>&1 || true
		done < <(find "$SCRATCH" -name postmaster.pid 2>/dev/null)
	fi
}

scratch_end() {
	local status=$?

	trap '' HUP INT PIPE TERM
	trap - EXIT
	set +e
	if [[ -n $stage_pid ]]; then
		kill -TERM -- "-$stage_pid" 2>/dev/null
		wait "$stage_pid" 2>/dev/null
	fi
	[[ -n $SCRATCH ]] || exit "$status"

	# A script that fails where it did not expect to has not shown the logs.
	if [[ $status -ne 0 && $status -lt 128 && -z ${LOGS_SHOWN:-} ]]; then
		show_log "$(server_log)" 30 >&2
	fi
	cluster_stop
	cd /
	scratch_kill
	[[ -n ${KEEP_SCRATCH:-} ]] || rm -rf "$SCRATCH"
	exit "$status"
}

# Prints the end of a log file, if there is one.
show_log() {
	if [[ -s $1 ]]; then
		echo "--- the last $2 lines of $(basename "$1") ---"
		tail -n "$2" "$1"
		echo "---"
	fi
}

# ---------------------------------------------------------------------------
# A private copy of PostgreSQL
# ---------------------------------------------------------------------------

# The checkout may belong to somebody else or be read-only, and the tests'
# user may not even be able to read it.
tree_copy() {
	local status=0

	TREE=$SCRATCH/src
	mkdir "$TREE"
	# tar's exit code 1 is a file that was edited meanwhile.
	{
		tar -C "$REPOSITORY" --exclude=./.git --exclude='*.o' --exclude='*.so' \
			--exclude=./results --exclude=./output_iso \
			--exclude=./tmp_check --exclude=./tmp_check_iso --exclude=./log \
			-cf - . || [[ $? -eq 1 ]]
	} | tar -C "$TREE" --no-same-owner -xf - || status=$?
	[[ $status -eq 0 ]] || fail "could not copy $REPOSITORY"
	chmod -R u+rwX "$TREE"
	[[ -z $RUN_USER ]] || chown -R "$RUN_USER:" "$TREE"
	as_user make -s -C "$TREE" clean
}

# Links all entries of a directory into another one, except those that the
# installation of the extension is to write.
link_entries() {
	local entry

	mkdir -p "$2"
	for entry in "$1"/*; do
		case ${entry##*/} in
			gigs_webhooks*) ;;
			*) [[ -e $2/${entry##*/} ]] || ln -s "$entry" "$2/" ;;
		esac
	done
}

# PostgreSQL finds its files by where its programs are, relative to them: a
# copy of the programs, at the same path below another directory, has an
# installation of its own.  The rest need not be copied, only the directories
# that the extension is installed into have to be real ones.
private_install() {
	local root=$SCRATCH/install bindir sharedir pkglibdir includedir localedir

	[[ -n $TREE ]] || tree_copy
	bindir=$("$PG_CONFIG" --bindir)
	sharedir=$("$PG_CONFIG" --sharedir)
	pkglibdir=$("$PG_CONFIG" --pkglibdir)
	includedir=$("$PG_CONFIG" --includedir)
	localedir=$("$PG_CONFIG" --localedir)
	PGXS_DIR=$(cd "$(dirname "$("$PG_CONFIG" --pgxs)")/../.." && pwd -P)

	PRIVATE_BIN=$root$bindir
	mkdir -p "$PRIVATE_BIN"
	cp -L "$bindir"/* "$PRIVATE_BIN/"
	mkdir -p "$root$sharedir/extension"
	link_entries "$sharedir/extension" "$root$sharedir/extension"
	link_entries "$sharedir" "$root$sharedir"
	link_entries "$pkglibdir" "$root$pkglibdir"
	mkdir -p "$(dirname "$root$includedir")"
	ln -s "$includedir" "$root$includedir"
	if [[ -d $localedir && ! -e $root$localedir ]]; then
		mkdir -p "$(dirname "$root$localedir")"
		ln -s "$localedir" "$root$localedir"
	fi
	[[ -z $RUN_USER ]] || chown -R -h "$RUN_USER:" "$root"

	# COPT is how PostgreSQL's makefiles take additional flags.
	stage as_user make -s -C "$TREE" COPT="${COPT:-} $under_flags" all
	stage as_user make -s -C "$TREE" COPT="${COPT:-} $under_flags" DESTDIR="$root" install
	stage as_user make -s -C "$TREE/receiver" CFLAGS="-O2 -g ${COPT:-} $receiver_flags"
	cp "$TREE/receiver/gigs_receiver" "$PRIVATE_BIN/"
	[[ -z $under_command ]] || watch_servers
	export PATH=$PRIVATE_BIN:$PATH
}

# ---------------------------------------------------------------------------
# A server that is watched
# ---------------------------------------------------------------------------

# Sets what is to be built and run differently, in the environment as well.
server_under() {
	local suppressions

	REPORTS=$SCRATCH/reports
	as_user mkdir "$REPORTS"
	case $1 in
		asan)
			# PostgreSQL is compiled such that signed integers wrap around, and
			# so are its extensions; in ours an overflow is a mistake.
			under_flags="-fsanitize=address,undefined -fno-sanitize-recover=all"
			under_flags+=" -fno-omit-frame-pointer -fno-wrapv -O1 -g"
			receiver_flags=$under_flags
			# Sessions end by exit() and leave their memory to the system, so
			# that nothing can be said of leaks.  PostgreSQL measures the depth
			# of its stack by addresses, which must be those of one stack.
			export ASAN_OPTIONS="log_path=$REPORTS/asan:detect_leaks=0"
			ASAN_OPTIONS+=:detect_stack_use_after_return=0:abort_on_error=1
			# A test may have a library of its own loaded first.
			ASAN_OPTIONS+=:verify_asan_link_order=0
			# The other sanitizer looks into its environment only when it has
			# something to report, and PostgreSQL has moved that by then: what
			# it reports is a line in the server's log.
			# For a server that is not instrumented itself.
			under_command="env LD_PRELOAD=$(gcc -print-file-name=libasan.so)"
			under_command+=:$(gcc -print-file-name=libubsan.so)
			# shellcheck disable=SC2016
			under_command+='${LD_PRELOAD:+:$LD_PRELOAD}'
			;;
		valgrind)
			# VALGRIND_OPTS may add to these, --track-origins=yes for one.
			#
			# A server process that ended with an exit code of Valgrind's own
			# would take all the others along.  So the reports say whether there
			# was an error, and nothing else does.
			under_flags="-fno-omit-frame-pointer -O1 -g"
			under_command="valgrind -q --tool=memcheck --leak-check=no --trace-children=yes"
			under_command+=" --num-callers=30 --gen-suppressions=all --error-limit=no"
			under_command+=" --log-file=$REPORTS/valgrind.%p"
			# What the server's makers know to be harmless.
			suppressions=$("$PG_CONFIG" --bindir)/../valgrind.supp
			if [[ -f $suppressions ]]; then
				under_command+=" --suppressions=$suppressions"
			fi
			# Twenty to fifty times slower: time is no measure.
			export PGCTLTIMEOUT=600 PGISOLATIONTIMEOUT=3600
			export PG_TEST_TIMEOUT_DEFAULT=3600
			;;
		tsan)
			receiver_flags="-fsanitize=thread -fno-omit-frame-pointer -O1 -g"
			export TSAN_OPTIONS="log_path=$REPORTS/tsan"
			;;
		coverage)
			under_flags="--coverage -fprofile-update=atomic -O0"
			;;
		*) fail "cannot run a server under \"$1\"" ;;
	esac
}

# All servers of all tests are started by pg_ctl, which can be told what to
# start.  So neither initdb nor the clients run under Valgrind, but for receivers.
watch_servers() {
	mkdir "$PRIVATE_BIN/unwatched"
	mv "$PRIVATE_BIN/pg_ctl" "$PRIVATE_BIN/gigs_receiver" "$PRIVATE_BIN/unwatched/"
	cat >"$PRIVATE_BIN/gigs_receiver" <<-END
		#!/usr/bin/env bash
		exec $under_command "$PRIVATE_BIN/unwatched/gigs_receiver" "\$@"
	END
	cat >"$PRIVATE_BIN/pg_ctl" <<-END
		#!/usr/bin/env bash
		exec -a "$PRIVATE_BIN/pg_ctl" "$PRIVATE_BIN/unwatched/pg_ctl" "\$@" -p "$SCRATCH/server"
	END
	cat >"$SCRATCH/server" <<-END
		#!/usr/bin/env bash
		exec $under_command "$PRIVATE_BIN/postgres" "\$@"
	END
	chmod 755 "$PRIVATE_BIN/pg_ctl" "$PRIVATE_BIN/gigs_receiver" "$SCRATCH/server"
}

# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------

cluster_start() {
	local data=$SCRATCH/data

	PGHOST=$SCRATCH/socket
	PGPORT=65432
	PGUSER=postgres
	export PGHOST PGPORT PGUSER

	stage as_user "$PRIVATE_BIN/initdb" --no-sync -A trust -U postgres -E UTF8 \
		--locale="$LC_ALL" -D "$data" >"$SCRATCH/initdb.log" 2>&1 || {
		cat "$SCRATCH/initdb.log" >&2
		fail "initdb failed"
	}
	{
		echo "listen_addresses = ''"
		echo "unix_socket_directories = '$PGHOST'"
		echo "port = $PGPORT"
		echo "fsync = off"
		echo "log_line_prefix = '%m [%p] %q%a '"
		echo "lc_messages = 'C'"
		[[ $# -eq 0 ]] || printf '%s\n' "$@"
	} >>"$data/postgresql.conf"
	as_user "$PRIVATE_BIN/pg_ctl" start -s -w -t "${PGCTLTIMEOUT:-60}" -D "$data" \
		-l "$(server_log)" </dev/null || fail "the server did not start"
	as_user "$PRIVATE_BIN/psql" -X -t -A -d postgres \
		-c "SELECT setting FROM pg_config WHERE name = 'SHAREDIR'" |
		grep -qF "$SCRATCH/install/" ||
		fail "a copy of this PostgreSQL does not find its files"
}

cluster_stop() {
	local data=$SCRATCH/data

	[[ -f $data/postmaster.pid ]] || return 0
	as_user "$PRIVATE_BIN/pg_ctl" stop -s -m fast -t "${PGCTLTIMEOUT:-20}" -D "$data" ||
		as_user "$PRIVATE_BIN/pg_ctl" stop -s -m immediate -D "$data" || true
}
