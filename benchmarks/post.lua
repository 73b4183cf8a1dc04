-- wrk script: POST the given files in turn, and print what was measured as one line of JSON.
-- wrk ... -s post.lua URL -- CONTENT_TYPE FILE...

local requests = {}
local turn = 0

function init(args)
   wrk.headers["Content-Type"] = args[1]
   for i = 2, #args do
      local file = assert(io.open(args[i], "rb"))
      requests[#requests + 1] = wrk.format("POST", nil, nil, file:read("*a"))
      file:close()
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

function done(summary, latency)
   local e = summary.errors
   print(string.format(
      'RESULT {"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f, "failed": %d}',
      summary.requests, summary.duration / 1e6, latency:percentile(50.0) / 1e3, latency:percentile(99.0) / 1e3, latency.max / 1e3,
      e.connect + e.read + e.write + e.status + e.timeout))
end
