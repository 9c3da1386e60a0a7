// A server on Node's http that stops in the usual way, for the keeper. It takes the socket with
// descriptor 3, serves GET /work?for=20ms, and stops at TERM.
//
// Run with:
//
//	smol-graceful keep --listen 127.0.0.1:8082 --ready 2s -- node tests/peers/node-http/main.mjs

import { createServer } from 'node:http';

const server = createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  if (request.method !== 'GET' || url.pathname !== '/work') {
    response.writeHead(404).end();
    return;
  }
  const [, wait] = /^(\d+)ms$/.exec(url.searchParams.get('for') ?? '0ms') ?? [null, '0'];
  setTimeout(() => response.end('okay'), Number(wait));
});

// The signal is handled before the server listens.
process.on('SIGTERM', () => {
  // The callback comes after every request is answered.
  server.close(() => console.error('stopped'));
  server.closeIdleConnections();
});

server.listen({ fd: 3 }, () => {
  const { address, port } = server.address();
  console.error(`listening on ${address}:${port}`);
});
