-- Take from several buckets at once: from all of them, or from none.
--
-- KEYS: the buckets, which share a hash tag. ARGV: 'check' or 'spend', then four values per bucket:
--   rate   capacity, tokens per ms, how many to take (0: there must be one, none is taken)
--   slots  how many at once, ms after which a holder who says nothing is gone, the holder's name
--   quota  how many in all, ms to keep the count, how many the database knows to be used
-- 'spend' takes without asking: so many tokens, so that a level may fall below zero, or (quota) so
-- many calls, below zero to give them back; a count that is not there stays so.
-- Returns four numbers per bucket: 1 if it gives, what remains, ms until it gives, ms until it is full.
--
-- The time is Redis's own, so that replicas whose clocks differ agree.

local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local force = ARGV[1] == 'spend'
local out, writes, all = {}, {}, true

for i, key in ipairs(KEYS) do
    local kind, a, b, c = ARGV[i * 4 - 2], tonumber(ARGV[i * 4 - 1]), tonumber(ARGV[i * 4]), ARGV[i * 4 + 1]
    local gives, remains, wait, full = true, 0, 0, 0
    if kind == 'rate' then
        local kept = redis.call('HMGET', key, 'level', 'at')
        local level, cost = a, tonumber(c)
        if kept[1] then
            level = math.min(a, tonumber(kept[1]) + math.max(0, now - tonumber(kept[2])) * b)
        end
        local needed = math.max(cost, 1)
        -- A hair's breadth is forgiven: fractions that add up to one may come to 0.999999.
        gives = force or level + 0.000001 >= needed
        if gives then
            level = level - cost
            writes[i] = function()
                redis.call('HSET', key, 'level', string.format('%.6f', level), 'at', string.format('%.0f', now))
                redis.call('PEXPIRE', key, math.ceil((a - level) / b) + 1000)
            end
        else
            wait = math.ceil((needed - level) / b)
        end
        remains, full = math.max(0, math.floor(level + 0.000001)), math.ceil((a - level) / b)
    elseif kind == 'slots' then
        redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
        local held = redis.call('ZCARD', key)
        gives = held < a
        remains = math.max(0, a - held - 1)
        if gives then
            writes[i] = function()
                redis.call('ZADD', key, now + b, c)
                redis.call('PEXPIRE', key, b)
            end
        else
            wait = 1000
        end
    elseif force then
        writes[i] = function()
            if redis.call('EXISTS', key) == 1 then redis.call('INCRBY', key, c) end
        end
    else
        local used = math.max(tonumber(redis.call('GET', key) or '0'), tonumber(c))
        gives = used < a
        remains = math.max(0, a - used - 1)
        if gives then
            writes[i] = function()
                local left = redis.call('PTTL', key)
                redis.call('SET', key, string.format('%.0f', used + 1), 'PX', left > 0 and left or b)
            end
        end
    end
    all = all and gives
    out[i * 4 - 3], out[i * 4 - 2], out[i * 4 - 1], out[i * 4] = gives and 1 or 0, remains, wait, full
end

if all then
    for i = 1, #KEYS do
        if writes[i] then writes[i]() end
    end
end
return out
