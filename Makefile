# gigs_webhooks: build with PGXS.
#
#   make, make install    build against the PostgreSQL that PG_CONFIG names
#   make installcheck     test what is installed, on a server that is running
#   make check            build and test in a scratch directory; needs neither
#                         an installation nor a server
#   make demo             show the extension at work, in a scratch directory
#   make receiver         build gigs_receiver; make install-receiver installs it
#
# scripts/run names the other goals, and runs check and demo as well.

EXTENSION = gigs_webhooks
MODULE_big = gigs_webhooks
PGFILEDESC = "gigs_webhooks - receives Argyle gigs webhooks"

PG_CONFIG ?= pg_config

script_goals = bench check check-asan check-cassert check-citus check-valgrind \
	check-versions coverage demo demo-down demo-up format fuzz lint torture
other_goals = $(filter-out $(script_goals),$(MAKECMDGOALS))

# PGXS is not read for these: PostgreSQL may be missing until scripts/setup has
# installed it, and PGXS has a target "check" of its own.
ifneq ($(filter $(script_goals),$(MAKECMDGOALS)),)

.PHONY: $(script_goals) $(other_goals)
.NOTPARALLEL:

$(script_goals):
	@scripts/run $@

$(other_goals):
	@$(MAKE) --no-print-directory $@

else

# PGXS sets VERSION, to that of PostgreSQL.
extversion := $(shell sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" $(EXTENSION).control)
DATA_built = sql/$(EXTENSION)--$(extversion).sql
DATA = $(wildcard sql/$(EXTENSION)--*--*.sql)
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))

# PostgreSQL's headers and macros are not written for -Wextra.
PG_CPPFLAGS = -isystem $(includedir_server)
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter
SHLIB_LINK = -lcrypto

# No bitcode: it takes the clang that PostgreSQL was built with, and the JIT
# compiler has nothing of use to inline here.
override with_llvm = no

# The tests are in test/, their expected output is in expected/.  PostgreSQL 15
# looks for that in the output directory.
REGRESS = $(sort $(basename $(notdir $(wildcard test/sql/*.sql))))
REGRESS_OPTS = --inputdir=test --outputdir=. $(expecteddir)
ISOLATION = $(sort $(basename $(notdir $(wildcard test/specs/*.spec))))
ISOLATION_OPTS = --inputdir=output_iso --outputdir=output_iso $(expecteddir)
expecteddir = $(if $(filter-out 15,$(MAJORVERSION)),--expecteddir=.)
REGRESS_PREP = output_iso/expected $(ISOLATION:%=output_iso/specs/%.spec)

# The TAP tests start servers, which PostgreSQL does not allow root to do.
PROVE_TESTS = $(sort $(wildcard test/t/*.pl))
ifneq ($(shell id -u),0)
TAP_TESTS = 1
else ifneq ($(filter installcheck,$(MAKECMDGOALS)),)
$(info test/t is left out, because root cannot start servers)
endif

PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq ($(wildcard $(PGXS)),)
$(error "$(PG_CONFIG)" names no PGXS: run scripts/setup, or set PG_CONFIG)
endif
include $(PGXS)

$(OBJS): $(wildcard src/*.h)

$(DATA_built): sql/$(EXTENSION).sql $(EXTENSION).control
	cp $< $@

output_iso/expected:
	@mkdir -p $(@D) && ln -sfn ../expected $@

.PHONY: receiver install-receiver clean-receiver
receiver install-receiver clean-receiver:
	@$(MAKE) -C receiver $(filter-out receiver,$(subst -, ,$@))
clean: clean-receiver

# Isolation specs cannot include a file.
output_iso/specs/%.spec: test/specs/common test/specs/%.spec
	@mkdir -p $(@D) && cat $^ >$@

endif
