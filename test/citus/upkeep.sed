# No calculation with time zones from a column
s/^UPDATE gigs\.gig_event_log AS l SET received_at = received_at - interval '30 days'$/UPDATE gigs.gig_event_log AS l SET received_at = now() - interval '30 days'/
