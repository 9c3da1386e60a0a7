//! The parts that the servers share: the address, the number of threads, and the bytes of a
//! download.
//!
//! All servers have the same application:
//!
//! | route | answers |
//! |---|---|
//! | `GET /` | `okay` |
//! | `POST /echo` | streams the body back |
//! | `POST /upload` | reads the body in pieces of 64 KiB and answers with its length |
//! | `GET /download` | 1 MiB of fixed bytes, not copied for the request |
//!
//! Every server sets TCP_NODELAY if it can, and otherwise has its default settings.

use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::OnceLock;

#[cfg(feature = "http-types-app")]
pub mod http_types_app;
#[cfg(feature = "hyper-app")]
pub mod hyper_app;

/// Returns the address to listen on, which is the only argument.
///
/// # Panics
///
/// Panics if the argument is not an address.
pub fn address() -> SocketAddr {
    let argument = std::env::args().nth(1).expect("usage: SERVER ADDRESS");
    argument.parse().expect("an address such as 127.0.0.1:8082")
}

/// Returns the number of threads to start, which is one for each core of this process.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Returns the 1 MiB of a download, which is made at the first request, so that it costs neither a
/// larger file nor a slower start.
pub fn download() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| vec![b'x'; 1 << 20])
}

/// Reads to the end, and returns the number of bytes.
///
/// # Errors
///
/// Returns the error of a read.
#[cfg(feature = "count")]
pub async fn count(mut body: impl futures_lite::AsyncRead + Unpin) -> std::io::Result<u64> {
    let mut piece = vec![0; 64 * 1024];
    let mut count = 0;
    loop {
        match futures_lite::AsyncReadExt::read(&mut body, &mut piece).await? {
            0 => return Ok(count),
            n => count += n as u64,
        }
    }
}
