# No sub-select beside an aggregate
s/^SELECT count(\*) > 100 AS logged, \(.* AS duplicates\) FROM \("Gig Hooks".gig_event_log\);$/SELECT (SELECT count(*) FROM \2) > 100 AS logged, \1;/
