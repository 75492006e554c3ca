-- For wrk: numbers from the environment's FIRST on, and whether each answer is what one of them asked for, and comes once.
local n, asked, wrong, right, fast, said = tonumber(os.getenv("FIRST")), {}, 0, 0, 0, nil
local sizes = { 0, 1, 200, 1400, 200, 5000, 30000, 200 }
local all = {}

function setup(thread) table.insert(all, thread) end

function request()
  n = n + 1
  local size = sizes[n % #sizes + 1]
  local path = string.format("/r/%d?size=%d&answer=%s&status=200", n, size, n % 5 == 2 and "chunked" or "length")
  asked[path] = size
  return wrk.format("GET", path, { ["x-number"] = tostring(n), Host = wrk.headers["Host"] })
end

local function header(headers, name)
  for key, value in pairs(headers) do if string.lower(key) == name then return value end end
end

function response(status, headers, body)
  local path, number = header(headers, "x-path"), header(headers, "x-number")
  local size = path and asked[path]
  local unit = size and (number .. " " .. path .. " ")
  if status ~= 200 or not size or path:match("^/r/(%d+)") ~= number or
     body ~= string.rep(unit, math.floor(size / #unit) + 1):sub(1, size) then
    wrong_answers, what_was_wrong = (wrong_answers or 0) + 1, string.format("%s %s %s bytes", tostring(status), tostring(path), #body)
    return
  end
  asked[path] = nil
  right_answers = (right_answers or 0) + 1
  if header(headers, "x-via") == "fast" then fast_answers = (fast_answers or 0) + 1 end
end

function done(summary)
  local sum = { right = 0, wrong = 0, fast = 0, errors = 0 }
  for _, thread in ipairs(all) do
    sum.right = sum.right + (thread:get("right_answers") or 0)
    sum.wrong = sum.wrong + (thread:get("wrong_answers") or 0)
    sum.fast = sum.fast + (thread:get("fast_answers") or 0)
    said = said or thread:get("what_was_wrong")
  end
  for _, kind in ipairs({ "connect", "read", "write", "timeout" }) do sum.errors = sum.errors + summary.errors[kind] end
  io.write(string.format('{"right":%d,"wrong":%d,"fast":%d,"errors":%d,"said":"%s"}\n', sum.right, sum.wrong, sum.fast, sum.errors, said or ""))
end
