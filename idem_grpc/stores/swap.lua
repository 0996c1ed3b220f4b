-- The rule of may_swap in idem_grpc/swap.py, on the server that holds the key, so that nobody comes
-- between the look and the write. KEYS: the key. ARGV: expected, new, ttl and max_left in milliseconds;
-- '' stands for nothing, as no value is empty. Returns {left}, or {left, held} when nothing was changed;
-- left is PTTL's: -2 when absent, -1 when the key never expires.
local held, left = redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[1])
local expected, new, ttl, max_left = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local unrenewed = not max_left or (left ~= -1 and left <= max_left)
if held ~= new and not (held == expected and unrenewed) then return {left, held} end
if new ~= '' then redis.call('SET', KEYS[1], new, 'PX', ttl)
elseif held ~= '' then redis.call('DEL', KEYS[1]) end
return {left}
