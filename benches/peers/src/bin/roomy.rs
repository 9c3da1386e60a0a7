//! Serves for `benches/crowd` and `benches/growth` like `ours`, with more places than the default
//! (10,000), and with an idle timeout that is longer than all rounds.
//!
//! The server also answers `GET /bytes/N`, with a body of N bytes. The body is made of at most 1
//! MiB in memory, so its size does not show in the memory of the server.

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

/// A body of a number of bytes, which repeats the same 1 MiB.
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
