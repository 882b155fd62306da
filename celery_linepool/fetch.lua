-- Takes messages off the queues and notes them as unacknowledged, in one step.
--
-- KEYS: the hash of what is unacknowledged, its index by time, and then the lists: all
--   queues of the first priority, all of the next one.
-- ARGV: how many messages at most, and how many in a row from one queue; the beginning of
--   their delivery tags; the time; how many bytes are enough; how many queues there are;
--   and for each of them what stands behind a message in its note, "" for no note.
-- Answers 1 if nothing was left, else 0; and then for each message the number of its
-- queue, and the message.
--
-- What is left empty is read once more at the end: Redis tells a client that tracks keys
-- when one that it has read is changed, and so it tells when there is something again.

local most, row, tag = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local now, enough, queues = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local answer, count, size, broken = {1}, 0, 0, nil

local function wanted()
  return count < most and size < enough and not broken
end

local function take(list, queue)
  local message = redis.pcall('RPOP', list)
  if not message then
    return false
  end
  if type(message) == 'table' then -- what is said is no list
    broken = message
    return false
  end
  count = count + 1
  size = size + #message
  local rest = ARGV[6 + queue]
  -- What is no object is no message; a note of it would be read by nobody.
  if rest ~= '' and message:sub(1, 1) == '{' and message:sub(-1) == '}' then
    redis.call('HSET', KEYS[1], tag .. count, '[' .. message .. rest)
    redis.call('ZADD', KEYS[2], now, tag .. count)
  end
  answer[2 * count] = queue
  answer[2 * count + 1] = message
  return true
end

for first = 3, #KEYS, queues do
  local more = true
  while more do
    more = false
    for queue = 1, queues do
      local left = row
      while left > 0 and wanted() and take(KEYS[first + queue - 1], queue) do
        left = left - 1
        more = true
      end
    end
  end
end

if broken and count == 0 then
  return broken
end
if wanted() then
  for list = 3, #KEYS do
    redis.call('EXISTS', KEYS[list])
  end
else
  answer[1] = 0
end
return answer
