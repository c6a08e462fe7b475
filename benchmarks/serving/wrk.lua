-- One JPEG as the body of every request; at the end the figures as one line of JSON.
local file = io.open(os.getenv("PHOTO"), "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = "image/jpeg"

function done(summary, latency, requests)
  local errors = summary.errors
  local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '{"rate": %.3f, "p50_ms": %.4f, "p99_ms": %.4f, "errors": %d, "requests": %d}\n',
    (summary.requests - errors.status) / summary.duration * 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    bad, summary.requests))
end
