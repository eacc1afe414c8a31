# No sub-select beside an aggregate
s/^SELECT count(\*), min(event_id) - \((SELECT min(event_id) FROM gigs.gig_event_log .*)\) AS oldest FROM \(gigs.gig_recent_delivery .*\);$/SELECT r.count, r.min - l.min AS oldest FROM \1 AS l, (SELECT count(*), min(event_id) FROM \2) AS r;/
