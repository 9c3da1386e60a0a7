-- Sends sixteen requests in one packet, and reports each kind of failure.
init = function()
    local requests = {}
    for i = 1, 16 do
        requests[i] = wrk.format("GET", "/livez?n=" .. i)
    end
    all = table.concat(requests)
end

request = function()
    return all
end

done = function(summary)
    local e = summary.errors
    io.write(string.format("requests=%d connect=%d read=%d write=%d status=%d timeout=%d\n",
        summary.requests, e.connect, e.read, e.write, e.status, e.timeout))
end
