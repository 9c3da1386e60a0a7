//! smol-graceful for `benches/crowd` and `benches/growth`: as `ours`, with room for more connections
//! than the default (10,000), and for idle ones that outlive all rounds.
//!
//! `GET /bytes/N` answers with N bytes beside what the application answers. They lie in memory, and
//! no more of them than 1 MiB, so the size of a body does not show in the memory of the server.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::{AsyncBufRead, AsyncRead};
use http_types::{Body, Request, Response};
use smol_graceful::{Limits, Outcome, ServeError, Server, run};

fn main() -> Result<Outcome, ServeError> {
    let idle_timeout = Duration::from_secs(24 * 60 * 60);
    let limits = Limits::default().connections(18_000).idle_timeout(idle_timeout);
    run(Server::new(handle).limits(limits), [peers::address()])
}

async fn handle(request: Request) -> http_types::Result<Response> {
    let path = request.url().path();
    match path.strip_prefix("/bytes/").and_then(|length| length.parse().ok()) {
        Some(left) => Ok(Body::from_reader(Bytes { left }, Some(left)).into()),
        None => peers::http_types_app::handle(request).await,
    }
}

/// So many bytes, which are the same 1 MiB again and again.
struct Bytes {
    left: usize,
}

impl AsyncBufRead for Bytes {
    fn poll_fill_buf(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let bytes = peers::download();
        Poll::Ready(Ok(&bytes[..self.left.min(bytes.len())]))
    }

    fn consume(mut self: Pin<&mut Self>, count: usize) {
        self.left -= count;
    }
}

impl AsyncRead for Bytes {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut bytes = peers::download();
        bytes = &bytes[..self.left.min(bytes.len())];
        let count = io::Read::read(&mut bytes, buf)?;
        self.left -= count;
        Poll::Ready(Ok(count))
    }
}
