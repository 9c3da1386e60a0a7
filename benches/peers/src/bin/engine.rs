//! The costs of async-h1 and http-types for a small request, in memory and on one thread, which
//! every server that uses them has. Prints nanoseconds, the least of seven rounds.
//!
//! Run with: `cargo run --release --features engine --bin engine` in `benches/peers`.

use std::hint::black_box;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use async_h1::server::{Encoder, decode};
use futures_lite::{AsyncRead, AsyncWrite};
use http_types::{Method, Request, Response, Url};

const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8082\r\n\r\n";
const URL: &str = "http://127.0.0.1:8082/";

fn main() {
    let mut sent = vec![0; 1024];
    println!("decode, and drop, a request: {} ns", least(decoded));
    println!("  its URL alone: {} ns", least(|| drop(black_box(URL).parse::<Url>())));
    println!("  the same request without decode: {} ns", least(|| drop(request())));
    println!("make, encode and drop a response: {} ns", least(|| encode(response(), &mut sent)));
    println!("  without encoding it: {} ns", least(|| drop(response())));
}

fn decoded() {
    let decoding = pin!(decode(Message(HEAD)));
    let Poll::Ready(Ok(Some(request))) = decoding.poll(&mut context()) else {
        panic!("the head is whole, and good");
    };
    drop(request);
}

/// Returns the request of the head, made by hand instead of by `decode`.
fn request() -> Request {
    let mut request = Request::new(Method::Get, black_box(URL));
    request.append_header("Host", "127.0.0.1:8082");
    request
}

/// Returns a response like a server's, with a date, whose text is made beforehand.
fn response() -> Response {
    let mut response = Response::from("okay");
    response.insert_header("Date", "Thu, 26 Nov 2026 20:00:00 GMT");
    response
}

fn encode(response: Response, to: &mut [u8]) {
    let mut encoder = pin!(Encoder::new(response, Method::Get));
    while !matches!(encoder.as_mut().poll_read(&mut context(), to), Poll::Ready(Ok(0))) {}
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn least(mut what: impl FnMut()) -> u128 {
    const TIMES: u32 = 100_000;
    let mut round = || {
        let begin = Instant::now();
        (0..TIMES).for_each(|_| what());
        begin.elapsed().as_nanos() / u128::from(TIMES)
    };
    (0..7).map(|_| round()).min().expect("seven rounds")
}

/// A message in memory.
#[derive(Clone)]
struct Message(&'static [u8]);

impl AsyncRead for Message {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(io::Read::read(&mut self.0, buf))
    }
}

impl AsyncWrite for Message {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
