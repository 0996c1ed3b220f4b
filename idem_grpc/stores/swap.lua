-- The rule of may_swap in idem_grpc/_core/swap.py, run on the server so that the read and the write are atomic.
-- KEYS: the key. ARGV: expected, new, ttl and max_left in milliseconds; '' means absent, as no value is empty.
-- Returns {left} if swapped, {left, held} if not. left is PTTL's: -2 if absent, -1 if the key never expires.
-- If the key already holds new, only its ttl is set: a server out of memory refuses SET, but leases must be
-- renewed. Errors are returned rather than raised, without their place, which Redis 6 puts before their code.
local function failed(reply) return type(reply) == 'table' and reply.err end
local function failure(reply) return {err = (reply.err:gsub('^@user_script: %d+: %-?', ''))} end
local value = redis.pcall('GET', KEYS[1])
local held = value == '' and '\255' or value or '' -- an empty value is not a record: report it as unreadable
if failed(held) then return failure(held) end
local left = redis.call('PTTL', KEYS[1])
local expected, new, ttl, max_left = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local unrenewed = not max_left or (left ~= -1 and left <= max_left)
if held ~= new and not (held == expected and unrenewed) then return {left, held} end
local done
if held ~= new and new ~= '' then done = redis.pcall('SET', KEYS[1], new, 'PX', ttl)
elseif held ~= new then done = redis.pcall('DEL', KEYS[1])
elseif new ~= '' then done = redis.pcall('PEXPIRE', KEYS[1], ttl) end
if failed(done) then return failure(done) end
return {left}
