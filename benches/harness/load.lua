-- The requests of wrk, and its report, which is one line of JSON. The argument is "keep"
-- (keep-alive), "close" (a connection for each request), "pipeline" (16 at a time), or "browser"
-- (twelve fields, as a browser sends them, about 650 bytes).

local browser = {
    ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    ["Accept-Encoding"] = "gzip, deflate, br, zstd",
    ["Accept-Language"] = "en-GB,en;q=0.8,de;q=0.5,de-DE;q=0.3",
    ["Cookie"] = "session=8f14e45fceea167a5a36dedd4bea2543; theme=dark; consent=necessary",
    ["Referer"] = "https://www.example.org/some/page/that/links/here",
    ["Sec-Fetch-Dest"] = "document",
    ["Sec-Fetch-Mode"] = "navigate",
    ["Sec-Fetch-Site"] = "same-origin",
    ["Sec-Fetch-User"] = "?1",
    ["Upgrade-Insecure-Requests"] = "1",
    ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
}

function init(arguments)
    local how = arguments[1]
    if how == "close" then
        wrk.headers["Connection"] = "close"
    elseif how == "browser" then
        for name, value in pairs(browser) do
            wrk.headers[name] = value
        end
    elseif how == "pipeline" then
        local all = string.rep(wrk.format(), 16)
        request = function()
            return all
        end
    end
end

function done(summary, latency)
    local e = summary.errors
    io.write(string.format(
        '{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d, "broken": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6,
        latency:percentile(99) / 1e6, e.connect + e.status + e.timeout, e.read + e.write))
end
