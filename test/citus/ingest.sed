# From there on it looks at statistics, constraints and triggers, which are those
# of shards, or refused
/^-- An event is two rows/,$d
