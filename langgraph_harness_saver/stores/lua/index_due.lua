-- Returns threads that may have expired, and the time that is entered for each, in turn. ARGV: now, how many to pass over,
-- how many.
return call('ZRANGEBYSCORE', DUE, '-inf', ARGV[1], 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[3])
