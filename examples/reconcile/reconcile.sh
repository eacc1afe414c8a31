#!/usr/bin/env bash
#
# Reconciles all accounts with Argyle's API, by curl, jq and psql:
#
#   reconcile.sh [everything]
#
# ARGYLE_ID and ARGYLE_SECRET are your API key; PG* variables name the database.

set -euo pipefail

everything=false
[[ ${1:-} != everything ]] || everything=true
status=0
page=$(mktemp)
trap 'rm -f "$page"' EXIT

url="${ARGYLE_URL:-https://api.argyle.com}/v2/accounts?limit=100"
while [[ $url != null ]]; do
	sent=$(psql -XAtc 'SELECT clock_timestamp()')
	curl --fail --silent --show-error --retry 5 --user "$ARGYLE_ID:$ARGYLE_SECRET" --output "$page" "$url"
	psql -X -v ON_ERROR_STOP=1 -v sent="$sent" -v everything="$everything" -v file="$page" <<-'SQL' || status=1
		\set page `cat :'file'`
		SELECT * FROM reconcile_gig_accounts(:'page', :'sent', :'everything');
	SQL
	url=$(jq -r .next "$page")
done
exit "$status"
