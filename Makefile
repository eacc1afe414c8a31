# gigs_webhooks: build with PGXS.
#
#   make, make install    build against the PostgreSQL that PG_CONFIG names
#   make installcheck     test what is installed, on a server that is running
#   make check            build and test in a scratch directory; needs neither
#                         an installation nor a server
#   make check-cassert    the same against a server with assertions, which is
#   make check-asan       built once, from Debian's source package; with it and
#   make check-valgrind   the module instrumented; most tests under Valgrind
#   make check-versions   check with the PostgreSQL of every Debian suite
#   make coverage         the same, counting the lines of src/ that are run
#   make torture          the long form of those tests that break things: kill
#                         the server again and again, and so on
#   make bench            measure it against its alternatives, likewise
#   make fuzz             throw inputs at its parser, likewise
#   make lint             read it as cppcheck, clang-tidy and gcc -fanalyzer do
#   make demo             show the extension at work, in a scratch directory
#   make format           lay out the C sources with clang-format

EXTENSION = gigs_webhooks
MODULE_big = gigs_webhooks
PGFILEDESC = "gigs_webhooks - receives Argyle gigs webhooks"

PG_CONFIG ?= pg_config

# These need no PGXS: check, demo and torture run on a machine that does not have
# PostgreSQL yet and see to it themselves.  PGXS has a target "check" of its
# own that only prints a refusal, and a recipe given twice draws a warning, so
# PGXS is read only when none of these is asked for; what is asked for together
# with them is handed to a make of its own.
script_goals = bench check check-asan check-cassert check-valgrind check-versions \
	coverage demo format fuzz lint torture
other_goals := $(filter-out $(script_goals),$(MAKECMDGOALS))

ifneq ($(filter $(script_goals),$(MAKECMDGOALS)),)

.PHONY: $(script_goals) $(other_goals)
.NOTPARALLEL:

# Whatever make was told about PG_CONFIG is meant for the scripts as well.
export PG_CONFIG

bench:
	@scripts/setup bench
	@bench/run

check:
	@scripts/setup check
	@scripts/check

# The server forgets all that it caches wherever it might have to, which is when
# a pointer into a cache is found out.  That is a thousand times slower, hence
# only tests that use the module's own caches without thousands of statements.
cache_tests = drain inbox ingest renamed subscription

check-cassert:
	@scripts/setup sanitize
	@server=$$(scripts/build-server cassert) && export PG_CONFIG=$$server && \
		scripts/check && \
		CHECK_OPTIONS='-c debug_discard_caches=1 -c statement_timeout=30min' \
			scripts/check regress $(cache_tests)

check-asan:
	@scripts/setup sanitize
	@server=$$(scripts/build-server asan) && \
		PG_CONFIG=$$server CHECK_UNDER=asan scripts/check

# Everything takes twenty to fifty times as long.  So of the TAP tests only those
# that run code of ours in ways that no other test does: not those that are about
# the life of servers, or about many sessions at once, which Valgrind runs one
# after the other anyway.
valgrind_tap = 001_stream 002_dump 003_encoding 004_sessions 005_memory \
	008_attack 013_update 014_openssl

check-valgrind:
	@scripts/setup sanitize
	@server=$$(scripts/build-server cassert) && \
		export PG_CONFIG=$$server CHECK_UNDER=valgrind && \
		scripts/check regress && scripts/check isolation && \
		scripts/check tap $(wildcard $(valgrind_tap:%=test/t/%.pl))

coverage:
	@scripts/setup check
	@CHECK_UNDER=coverage scripts/check

check-versions:
	@scripts/setup versions
	@scripts/check-versions

demo:
	@scripts/setup
	@scripts/demo

lint:
	@scripts/setup lint
	@scripts/lint

format:
	clang-format -i $(wildcard src/*.[ch] test/fuzz/*.[ch])

fuzz:
	@scripts/setup fuzz
	@test/fuzz/run

torture:
	@scripts/setup check
	@GIGS_KILLS=$${GIGS_KILLS:-60} GIGS_LONG=1 \
		scripts/check tap 005_memory 006_crash 007_stress 009_replication \
			010_life 011_pooler 012_disk_full

ifneq ($(other_goals),)
$(other_goals):
	@$(MAKE) --no-print-directory $@
endif

else # none of the above: the ordinary PGXS targets

# The name VERSION is taken, by the version of PostgreSQL.
extversion := $(shell sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" $(EXTENSION).control)

OBJS := $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
headers := $(wildcard src/*.h)

DATA_built = sql/$(EXTENSION)--$(extversion).sql
DATA := $(sort $(wildcard sql/$(EXTENSION)--*--*.sql))

# PostgreSQL is not written for -Wextra: as system headers, its headers and the
# macros from them draw no warnings, whatever the version.  Functions that
# PostgreSQL calls do not need all the arguments that they get.
PG_CPPFLAGS += -isystem $(includedir_server)
PG_CFLAGS += -Wall -Wextra -Wno-unused-parameter
SHLIB_LINK += -lcrypto

# Simply expanded, because PGXS asks with ifdef: a list that is empty has to be
# an undefined one.
REGRESS := $(sort $(basename $(notdir $(wildcard test/sql/*.sql))))
ISOLATION := $(sort $(basename $(notdir $(wildcard test/specs/*.spec))))
PROVE_TESTS := $(sort $(wildcard test/t/*.pl))

# The tests are in test/, what they must print in expected/.  PostgreSQL 13 to
# 15 look for expected/ in the output directory, later ones where they are
# told; MAJORVERSION is known once PGXS has been read.
expecteddir_option = $(if $(filter-out 13 14 15,$(MAJORVERSION)),--expecteddir=.)
REGRESS_OPTS = --inputdir=test --outputdir=. $(expecteddir_option)
ISOLATION_OPTS = --inputdir=output_iso --outputdir=output_iso $(expecteddir_option)

# pg_regress takes sql/NAME.sql of its output directory, which is this one,
# before it looks into test/.
ifneq ($(filter $(EXTENSION) $(EXTENSION)--%,$(REGRESS)),)
$(error a test may not be named like the scripts in sql/)
endif

# So that the isolation tests share expected/ but not results/ and
# regression.diffs, which would overwrite those of the regression tests.
ifneq ($(ISOLATION),)
REGRESS_PREP += output_iso/expected output_iso/specs
endif

# The TAP tests of installcheck start servers of their own, which PostgreSQL
# does not allow root to do.
ifneq ($(PROVE_TESTS),)
ifneq ($(shell id -u),0)
TAP_TESTS = 1
else
REGRESS_PREP += no-tap-tests-as-root
endif
endif

PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifeq ($(wildcard $(PGXS)),)
$(error "$(PG_CONFIG)" names no PGXS: install the development files of the PostgreSQL server (scripts/setup does) or set PG_CONFIG)
endif

# A PostgreSQL built with LLVM wants bitcode of every extension as well, which
# takes the clang it was built with.  The bitcode only lets the JIT compiler
# inline functions, so do without it where the tools are missing.
pgxs_variable = $(shell sed -n 's/^$(1)[[:space:]]*=[[:space:]]*//p' $(dir $(PGXS))../Makefile.global)
pgxs_clang := $(call pgxs_variable,CLANG)
pgxs_llvm_lto := $(addsuffix /llvm-lto,$(call pgxs_variable,LLVM_BINPATH))
ifeq ($(shell command -v $(pgxs_clang) >/dev/null 2>&1 && command -v $(pgxs_llvm_lto) >/dev/null 2>&1 && echo yes),)
override with_llvm = no
endif

include $(PGXS)

# PGXS tracks no dependencies unless PostgreSQL was configured to.
$(OBJS) $(OBJS:.o=.bc): $(headers)

$(DATA_built): sql/$(EXTENSION).sql $(EXTENSION).control
	cp $< $@

output_iso/expected:
	@mkdir -p output_iso
	@ln -sfn ../expected $@

# Specs can't include anything, so what all of them begin with is put before
# each.
.PHONY: output_iso/specs
output_iso/specs:
	@rm -rf $@
	@mkdir -p $@
	@for spec in $(ISOLATION); do \
		cat test/specs/common test/specs/$$spec.spec >$@/$$spec.spec || exit 1; \
	done

.PHONY: no-tap-tests-as-root
no-tap-tests-as-root:
	@echo "# test/t is left out: its tests start servers, which root may not"

endif
