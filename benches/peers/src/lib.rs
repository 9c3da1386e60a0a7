//! What the servers share: the address, the number of threads, and the bytes of a download.
//!
//! The application, on each of them:
//!
//! | route | answers |
//! |---|---|
//! | `GET /` | `okay` |
//! | `POST /echo` | streams the body back |
//! | `POST /upload` | reads the body in pieces of 64 KiB and says how long it was |
//! | `GET /download` | 1 MiB of fixed bytes, not copied for the request |
//!
//! Every server sets TCP_NODELAY where it can, and is otherwise as it comes.

use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::OnceLock;

#[cfg(feature = "http-types-app")]
pub mod http_types_app;
#[cfg(feature = "hyper-app")]
pub mod hyper_app;

/// Where to listen: the only argument.
///
/// # Panics
///
/// If that is no address.
pub fn address() -> SocketAddr {
    let argument = std::env::args().nth(1).expect("usage: SERVER ADDRESS");
    argument.parse().expect("an address such as 127.0.0.1:8082")
}

/// How many threads to start: one for each core that this process may run on.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// What is downloaded: 1 MiB, made when it is first asked for, so that neither the file nor the
/// start carries it.
pub fn download() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| vec![b'x'; 1 << 20])
}

/// Reads to the end, and says how much that was.
///
/// # Errors
///
/// What reading says.
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
