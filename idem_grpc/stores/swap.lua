-- The rule of may_swap in idem_grpc/swap.py, on the server that holds the key, so that nobody comes
-- between the look and the write. KEYS: the key. ARGV: expected, new, ttl and max_left in milliseconds;
-- '' stands for nothing, as no value is empty. Returns {left}, or {left, held} when nothing was changed;
-- left is PTTL's: -2 when absent, -1 when the key never expires. What is there already is not written
-- again, only its life is set: a server out of memory refuses SET, and leases must be renewed all the same.
-- Errors are returned rather than raised, and the place cut off, since Redis 6 puts it before their code.
local function failed(reply) return type(reply) == 'table' and reply.err end
local function failure(reply) return {err = (reply.err:gsub('^@user_script: %d+: %-?', ''))} end
local value = redis.pcall('GET', KEYS[1])
local held = value == '' and '\255' or value or '' -- nobody writes an empty value: it is no record
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
